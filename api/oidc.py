"""Sign-in with an OpenID Connect provider: the two requests of a browser, and the cookie that binds them together.

For: POST /v1/sessions/oidc, which begins a sign-in, and GET /console/oidc, to which the provider sends the browser
back. Not for: the provider (broker/outbound/oidc.py), accounts (broker/commands/identities.py).
"""

from __future__ import annotations

import hmac
import logging
import re
import secrets
from typing import TYPE_CHECKING, Any, Final

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.types import Scope

from api.auth import Sessions, cookie
from api.browsers import Browsers
from api.calls import Call, request_id_of
from api.clients import Clients
from api.limits import EVERYBODY, Limit
from api.page_tokens import PageTokens
from api.problems import BadParameter, Forbidden, Headers, TooManyRequests
from api.shapes import SignInBody
from broker.clock import now_ms
from broker.commands.accounts import SESSION_S, AccountCommands
from broker.commands.identities import IdentityCommands
from broker.commands.invitations import InvitationCommands
from broker.errors import BrokerError, IdentityRefused, Refused, Unavailable

if TYPE_CHECKING:
    from broker.outbound.oidc import Provider

log = logging.getLogger(__name__)

PATH: Final = "/console/oidc"
VALID_S: Final = 600  # A person has this many seconds to sign in at the OpenID Connect provider.
# The rate limits on requests of OpenID Connect sign-ins: for one client, and for all clients of a process together.
# A sign-in with OpenID Connect takes two requests, and each of the two counts against these rate limits.
CLIENTS_AT_ONCE, CLIENTS_PER_S = 20, 0.5
ALL_AT_ONCE, ALL_PER_S = 50, 3.0
_COOKIE: Final = "everput_oidc"
_RANDOM_BYTES: Final = 32
_TEXT_CHARS_MAX: Final = 4_096  # A longer cookie, authorization code or parameter `state` is refused.
_INVITATION: Final = "#/invitation/"
# This regular expression takes linear time on any input, because its only repetition is bounded.
_PAGE = re.compile(r"(?:#/[\w/.~%?&=-]{0,300})?", re.ASCII)
_REFUSAL: Final = "Too many people are signing in at the moment. Try again later."
_NONE: Final = "This server has no OpenID Connect provider. Sign in with a password."


class OidcSignIn:
    """Handlers for sign-in with the OpenID Connect provider. `provider` is None if the operator has set none.

    If `may_create` is true, every person whom the provider signs in may get a new account. If it is false, a person
    gets a new account only by signing in from the link of an invitation for the same e-mail address.
    """

    def __init__(
        self,
        provider: Provider | None,
        identities: IdentityCommands,
        invitations: InvitationCommands,
        accounts: AccountCommands,
        sessions: Sessions,
        browsers: Browsers,
        clients: Clients,
        tokens: PageTokens,
        *,
        public_url: str | None,
        may_create: bool,
    ) -> None:
        self._provider = provider
        self._identities = identities
        self._invitations = invitations
        self._accounts = accounts
        self._sessions = sessions
        self._browsers = browsers
        self._clients = clients
        self._tokens = tokens
        self._redirect_uri = f"{public_url or ''}{PATH}"
        self._may_create = may_create
        self._of_clients = Limit("network-oidc", CLIENTS_AT_ONCE, per_s=CLIENTS_PER_S, refusal=_REFUSAL)
        self._all = Limit("all-oidc", ALL_AT_ONCE, per_s=ALL_PER_S, refusal=_REFUSAL)

    async def start(self, call: Call) -> Any:
        """Begin a sign-in. The answer has the URL at the provider, and a cookie without which nobody can complete the
        sign-in. Only this server's own pages may begin a sign-in.
        """
        body = await call.json(SignInBody, small=True)
        if not _PAGE.fullmatch(body.page):
            raise Refused("The field `page` must name a page of the console, such as `#/overview`.", pointer="/page")
        if self._provider is None:
            raise Forbidden(_NONE)
        if not self._sessions.same_origin(call.scope):
            raise Forbidden(
                "Only this server's own pages can begin a sign-in with OpenID Connect. Open the console at this "
                "server's public URL, and sign in there."
            )
        self._count(call.scope, call.headers)
        state, nonce, verifier = (secrets.token_urlsafe(_RANDOM_BYTES) for _ in range(3))
        url = await self._provider.sign_in_url(
            redirect_uri=self._redirect_uri, state=state, nonce=nonce, verifier=verifier
        )
        claim = f"{now_ms() + VALID_S * 1000} {state} {nonce} {verifier} {body.page}"
        call.headers += [
            self._cookie(call.scope, self._tokens.seal(claim.encode(), "", PATH), VALID_S),
            (b"cache-control", b"no-store"),
        ]
        return {"url": url}

    async def finish(self, request: Request) -> Response:
        """Complete a sign-in: check the provider's answer, start a session, and redirect the browser to the console.

        If the sign-in fails, redirect the browser to the sign-in page, which explains the reason.
        """
        scope, headers = request.scope, list[tuple[bytes, bytes]]()
        request_id = str(request_id_of(dict(scope["headers"])), "ascii")
        try:
            page = await self._sign_in(request, headers, request_id)
        except IdentityRefused as error:
            log.warning("oidc.refused id=%s reason=%s detail=%s", request_id, error.reason, error)
            page = f"#/signin/{error.reason}"
        except TooManyRequests:
            page = "#/signin/busy"
        except Unavailable as error:
            log.warning("oidc.unavailable id=%s error=%s", request_id, error)
            page = "#/signin/unavailable"
        except BrokerError as error:
            log.warning("oidc.refused id=%s error=%r", request_id, error)
            page = "#/signin/provider"
        # The URL of the redirect is relative, because a proxy may add a prefix to the path.
        answer = RedirectResponse(f"../console{page}", 303)
        answer.raw_headers += [
            *headers,
            self._cookie(scope, "", 0),
            (b"cache-control", b"no-store"),
            (b"referrer-policy", b"no-referrer"),
            (b"x-request-id", request_id.encode()),
        ]
        return answer

    async def _sign_in(self, request: Request, headers: Headers, request_id: str) -> str:
        """Complete the sign-in, and return the console page from which the person began. Add the cookies of the new
        session and of the known browser to the headers. Raises IdentityRefused if the person may not sign in.
        """
        if self._provider is None:
            raise IdentityRefused(_NONE, reason="provider")
        self._count(request.scope, [])
        nonce, verifier, page = self._opened(request)
        code = request.query_params.get("code", "")
        if "error" in request.query_params or not 1 <= len(code) <= _TEXT_CHARS_MAX:
            raise IdentityRefused(
                "The OpenID Connect provider sent the browser back with an error, or without a usable authorization "
                "code. The person may have cancelled the sign-in. If not, check the provider's log.",
                reason="cancelled",
            )
        identity = await self._provider.identity(
            code=code, redirect_uri=self._redirect_uri, nonce=nonce, verifier=verifier
        )
        may_create = self._may_create or await self._is_invited(page, identity.email)
        account = await self._identities.account_of(identity, may_create=may_create, request_id=request_id)
        _, token = await self._accounts.start_session(account, by_identity=True, request_id=request_id)
        https = self._sessions.https(request.scope)
        headers += [
            self._sessions.cookie(request.scope, token, SESSION_S),
            self._browsers.cookie(account.email, https=https),
        ]
        return page

    async def _is_invited(self, page: str, email: str) -> bool:
        """Return whether the console page belongs to a valid invitation for this e-mail address. With such an
        invitation, the person may get an account.
        """
        if not page.startswith(_INVITATION):
            return False
        try:
            invitation = await self._invitations.find(page.removeprefix(_INVITATION))
        except Refused:
            return False
        return invitation.email.lower() == email.lower()

    def _opened(self, request: Request) -> tuple[str, str, str]:
        """Return the nonce, the PKCE verifier and the page of the sign-in that this browser has begun.

        Raises IdentityRefused unless the request has the cookie and the state of the same sign-in, and the sign-in
        began less than ten minutes ago.
        """
        stale = IdentityRefused("This sign-in was not begun in this browser, or too long ago.", reason="stale")
        sealed = cookie(request.headers.get("cookie", ""), self._cookie_name(request.scope))
        state = request.query_params.get("state", "")
        if not sealed or len(sealed) > _TEXT_CHARS_MAX or len(state) > _TEXT_CHARS_MAX:
            raise stale
        try:
            ends_at_ms, expected, nonce, verifier, page = self._tokens.open(sealed, "", PATH).decode().split(" ")
        except BadParameter:
            raise stale from None
        if not hmac.compare_digest(expected.encode(), state.encode()) or int(ends_at_ms) <= now_ms():
            raise stale
        return nonce, verifier, page

    def _count(self, scope: Scope, headers: Headers) -> None:
        client = self._clients.name(scope)
        if client is not None:
            self._of_clients.check(headers, client)
        self._all.take(headers, EVERYBODY)
        if client is not None:
            self._of_clients.take(headers, client)

    def _cookie_name(self, scope: Scope) -> str:
        return f"__Host-{_COOKIE}" if self._sessions.https(scope) else _COOKIE

    def _cookie(self, scope: Scope, value: str, age_s: int) -> tuple[bytes, bytes]:
        # With SameSite=Strict, the browser would not send this cookie when the provider redirects it to this server.
        secure = "; Secure" if self._sessions.https(scope) else ""
        text = f"{self._cookie_name(scope)}={value}; Path=/; Max-Age={age_s}; HttpOnly; SameSite=Lax{secure}"
        return b"set-cookie", text.encode()
