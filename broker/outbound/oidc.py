"""The OpenID Connect provider that signs people in: the requests to it, and the check of its ID tokens.

For: the authorization code flow with PKCE (OpenID Connect Core 1.0, 3.1; RFC 7636). Not for: the cookie that binds a
sign-in to a browser (api/oidc.py), the account (broker/commands/identities.py).
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any, Final
from urllib.parse import quote_plus

import httpx
import orjson
from authlib.oauth2.rfc6749.parameters import prepare_grant_uri
from authlib.oauth2.rfc7636 import create_s256_code_challenge
from authlib.oidc.core import CodeIDToken
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet

from broker.core.accounts import Identity, refuse_email
from broker.errors import IdentityRefused, Unavailable
from broker.outbound.addresses import is_https_or_loopback
from broker.settings import OidcSettings

log = logging.getLogger(__name__)

TIMEOUT_S: Final = 10.0  # one conversation with the provider
ANSWER_BYTES_MAX: Final = 256 << 10
_KEPT_S: Final = 3600.0  # seconds after which the OpenID Connect provider's metadata and keys are read again
# If an ID token can't be verified, the provider's keys are read again, but at most once in this many seconds.
_KEYS_AGAIN_S: Final = 60.0
_LEEWAY_S: Final = 60  # accepted difference between this machine's clock and the OpenID Connect provider's
# The allowed signature algorithms of ID tokens. HMAC and `none` are missing: they use no private key of the provider.
ALGORITHMS: Final = (
    "RS256",
    "RS384",
    "RS512",
    "PS256",
    "PS384",
    "PS512",
    "ES256",
    "ES384",
    "ES512",
    "EdDSA",
    "Ed25519",
)
_TEXT_CHARS_MAX: Final = 255  # most characters of a person's id at the provider (OpenID Connect Core 1.0, 2)
_ENDPOINTS: Final = ("authorization_endpoint", "token_endpoint", "jwks_uri")


class ProviderUnavailable(Unavailable):
    """The OpenID Connect provider does not answer, or its answer is not valid. Try again later, or tell the
    operator.
    """


class Provider:
    """The OpenID Connect provider of this installation. Its answers are bounded in size and time."""

    def __init__(self, settings: OidcSettings) -> None:
        self._settings = settings
        self._metadata: tuple[float, dict[str, str]] | None = None
        self._keys: tuple[float, KeySet] | None = None

    async def sign_in_url(self, *, redirect_uri: str, state: str, nonce: str, verifier: str) -> str:
        """Return the URL at the OpenID Connect provider where the person signs in. Raises ProviderUnavailable if the
        provider does not tell its endpoints.
        """
        return str(
            prepare_grant_uri(
                (await self._endpoints())["authorization_endpoint"],
                client_id=self._settings.client_id,
                response_type="code",
                redirect_uri=redirect_uri,
                scope="openid email",
                state=state,
                nonce=nonce,
                code_challenge=create_s256_code_challenge(verifier),
                code_challenge_method="S256",
            )
        )

    async def identity(self, *, code: str, redirect_uri: str, nonce: str, verifier: str) -> Identity:
        """Exchange an authorization code for an ID token, and return the person that it names.

        Raises ProviderUnavailable if the provider does not answer. Raises IdentityRefused if the provider refuses the
        code, or if the ID token is not valid or has no verified e-mail address. Also raises IdentityRefused if the
        address has a domain that is not allowed.
        """
        endpoints, settings = await self._endpoints(), self._settings
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": redirect_uri,
            "code_verifier": verifier,
        }
        auth = None
        if endpoints["auth"] == "basic":  # RFC 6749, 2.3.1
            auth = httpx.BasicAuth(quote_plus(settings.client_id), quote_plus(settings.client_secret))
        else:
            form |= {"client_id": settings.client_id, "client_secret": settings.client_secret}
        status, token = await self._ask("POST", endpoints["token_endpoint"], data=form, auth=auth)
        if 400 <= status < 500:
            log.warning("oidc.code_refused status=%d", status)
            raise _refused(
                "The OpenID Connect provider refused the authorization code or the client secret. If this happens at "
                "each sign-in, check EVERPUT_OIDC_CLIENT_SECRET and --oidc-client-id."
            )
        if status != 200:
            raise _unavailable(endpoints["token_endpoint"], status)
        id_token = token.get("id_token")
        if not isinstance(id_token, str):
            raise _refused(
                "The OpenID Connect provider's answer has no ID token. Check at the provider that the client of "
                "--oidc-client-id may use the scope `openid`."
            )
        return self._person(await self._claims(id_token, nonce))

    def _person(self, claims: CodeIDToken) -> Identity:
        subject, email = claims["sub"], claims.get("email")
        if not isinstance(subject, str) or not 1 <= len(subject) <= _TEXT_CHARS_MAX or not subject.isascii():
            raise _refused(
                "The OpenID Connect provider's ID token has no valid claim `sub`. It must be an ASCII text of 1 to "
                f"{_TEXT_CHARS_MAX} characters. Check the provider's settings."
            )
        # The claim `email_verified` must be the JSON value true. Some providers send a text, which is not accepted.
        if not isinstance(email, str) or refuse_email(email) or claims.get("email_verified") is not True:
            raise IdentityRefused(
                "The OpenID Connect provider's ID token has no claim `email` with a valid address, or its claim "
                "`email_verified` is not true. Let the person verify the address at the provider, and let the provider "
                "put both claims into the ID token.",
                reason="email",
            )
        domains = self._settings.domains
        if domains and email.lower().rpartition("@")[2] not in domains:
            raise IdentityRefused(
                "The option --oidc-domain does not list the domain of the person's e-mail address. If people of this "
                "domain may sign in, add it to --oidc-domain.",
                reason="domain",
            )
        return Identity(self._settings.issuer, subject, email)

    async def _claims(self, id_token: str, nonce: str) -> CodeIDToken:
        """Check the signature, issuer, audience, times and nonce of an ID token, and return its claims. Raises
        IdentityRefused if one of these is wrong, and ProviderUnavailable if the provider does not answer.
        """
        try:
            try:
                token = jwt.decode(id_token, await self._key_set(), algorithms=[*ALGORITHMS])
            # If the token can't be verified, the provider may have a new key. So read the provider's keys again.
            except (JoseError, ValueError):
                token = jwt.decode(id_token, await self._key_set(again=True), algorithms=[*ALGORITHMS])
            claims = CodeIDToken(
                token.claims,
                token.header,
                {
                    "iss": {"essential": True, "value": self._settings.issuer},
                    "aud": {"essential": True, "value": self._settings.client_id},
                    "exp": {"essential": True},
                    "nonce": {"essential": True, "value": nonce},
                },
                {"nonce": nonce, "client_id": self._settings.client_id},
            )
            claims.validate(leeway=_LEEWAY_S)
        except (JoseError, ValueError, TypeError, KeyError) as error:
            log.warning("oidc.id_token_refused error=%s", type(error).__name__)
            raise _refused(
                "The OpenID Connect provider's ID token is not valid. If this happens at each sign-in, check this "
                "machine's clock, --oidc-issuer and --oidc-client-id."
            ) from error
        return claims

    async def _endpoints(self) -> dict[str, str]:
        """Return the provider's endpoints, from its metadata (OpenID Connect Discovery 1.0, 4)."""
        if self._metadata is None or time.monotonic() - self._metadata[0] > _KEPT_S:
            url = self._settings.issuer.rstrip("/") + "/.well-known/openid-configuration"
            status, found = await self._ask("GET", url)
            if status != 200 or found.get("issuer") != self._settings.issuer:
                raise _unavailable(url, f"the metadata is missing or of another issuer (status {status})")
            endpoints = {name: str(found.get(name, "")) for name in _ENDPOINTS}
            for endpoint in endpoints.values():
                if not is_https_or_loopback(endpoint):
                    raise _unavailable(url, "the metadata names an endpoint without https")
            methods = found.get("token_endpoint_auth_methods_supported")
            # A provider that names no methods of authentication supports HTTP Basic (OpenID Connect Discovery 1.0, 3).
            basic = not isinstance(methods, list) or "client_secret_basic" in methods
            endpoints["auth"] = "basic" if basic else "post"
            self._metadata = (time.monotonic(), endpoints)
        return self._metadata[1]

    async def _key_set(self, *, again: bool = False) -> KeySet:
        kept_s = _KEYS_AGAIN_S if again else _KEPT_S
        if self._keys is None or time.monotonic() - self._keys[0] > kept_s:
            url = (await self._endpoints())["jwks_uri"]
            status, found = await self._ask("GET", url)
            if status != 200:
                raise _unavailable(url, status)
            try:
                self._keys = (time.monotonic(), KeySet.import_key_set(found))  # type: ignore[arg-type]
            except (JoseError, ValueError, TypeError, KeyError) as error:
                raise _unavailable(url, error) from error
        return self._keys[1]

    async def _ask(self, method: str, url: str, **sent: Any) -> tuple[int, dict[str, Any]]:
        """Send a request to the provider. Return the HTTP status, and the answer's JSON object. If the status is not
        200, the returned object is empty.

        Raises ProviderUnavailable if the provider does not answer in time, or if its answer is not valid.
        """
        try:
            async with asyncio.timeout(TIMEOUT_S), httpx.AsyncClient(transport=_Bounded(), timeout=TIMEOUT_S) as client:
                answer = await client.request(method, url, **sent)
            found = orjson.loads(answer.content) if answer.status_code == 200 else {}
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError, ValueError) as error:
            raise _unavailable(url, error) from error
        if not isinstance(found, dict):
            raise _unavailable(url, "no JSON object")
        return answer.status_code, found


class _Bounded(httpx.AsyncBaseTransport):
    """An HTTP transport that refuses long or compressed answers, so that an OpenID provider can't fill the memory."""

    def __init__(self) -> None:
        self._inner = httpx.AsyncHTTPTransport()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        request.headers["accept-encoding"] = "identity"
        answer = await self._inner.handle_async_request(request)
        try:
            if answer.headers.get("content-encoding", "identity") != "identity":
                raise httpx.DecodingError(
                    "the OpenID Connect provider's answer is compressed, although Everput has asked for an "
                    "uncompressed one: turn compression off at the provider, or at the proxy before it",
                    request=request,
                )
            body = bytearray()
            async for part in answer.stream:  # type: ignore[union-attr]
                body += part
                if len(body) > ANSWER_BYTES_MAX:
                    raise httpx.DecodingError(
                        f"the OpenID Connect provider's answer has more than {ANSWER_BYTES_MAX} bytes: check that the "
                        "provider's URL is right",
                        request=request,
                    )
        finally:
            await answer.aclose()
        return httpx.Response(answer.status_code, headers=answer.headers, content=bytes(body), request=request)

    async def aclose(self) -> None:
        await self._inner.aclose()


def _refused(detail: str) -> IdentityRefused:
    return IdentityRefused(detail, reason="provider")


def _unavailable(url: str, error: object) -> ProviderUnavailable:
    log.warning("oidc.provider_failed url=%s error=%r", url, error)
    return ProviderUnavailable("The OpenID Connect provider can't be reached, or its answer is not usable. Try again.")
