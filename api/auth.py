"""The authentication of requests: by the API key in the header X-API-KEY, or by the token of a session.

For: finding the key or the session (401), and the organization that a session acts in (404). It checks a key's scopes
(403), queues (404) and expiry (401), refuses requests that another site makes a browser send (403), and records about
once an hour that a key is used. Not for: the format of a key (broker/core/keys.py).
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from time import monotonic
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from starlette.types import Scope

from api.limits import Limit
from api.problems import Forbidden, Headers, NoSession, Unauthenticated
from broker.clock import now_ms
from broker.core.accounts import Session
from broker.core.api_keys import ApiKey
from broker.core.codec import encode
from broker.core.events import KeyUsed
from broker.core.keys import SESSION_PREFIX, covers, is_key, key_sha256
from broker.errors import BrokerError, NotFound, StorageFull
from broker.ports import ControlLog, DirectoryView
from broker.volume import StoredBytes

log = logging.getLogger(__name__)

# With this header, a request with a session names the organization in which it acts.
ORGANIZATION: Final = b"everput-organization"
COOKIE: Final = "everput_session"
# Browsers accept a cookie named `__Host-…` only over TLS and for the host that sets it, so no other host can set it.
COOKIE_HTTPS: Final = f"__Host-{COOKIE}"
_REMEMBERED_MAX: Final = 10_000
_USE_NOTED_S: Final = 3600
_NOT_CACHED: Final = ("", 0.0)
# A burst may have this many times the requests of a second, but at least 1: 20 if the rate limit is 2 a second.
_WINDOW_S: Final = 10
_BEARER: Final = "bearer "
# The rate limit on one account's requests with a session, for operations that need no `Everput-Organization` header.
_SESSION_CALLS_AT_ONCE: Final = 60
_SESSION_CALLS_PER_S: Final = 1.0


class ApiKeys:
    """The look-up of API keys by the text that a client sends.

    It caches the SHA-256 of each key's text, but not whether the key is valid. So this process refuses a revoked key as
    soon as it has read from the log that the key was revoked. `limit` is the rate limit on each organization's requests
    with API keys. None means no limit.
    """

    def __init__(
        self, view: DirectoryView, control: ControlLog, stored: StoredBytes, *, requests_per_s: float | None
    ) -> None:
        refusal = "This organization's keys make too many requests."
        self.limit = _request_limit("keys", requests_per_s, refusal=refusal)
        self._view = view
        self._control = control
        self._stored = stored
        # By the text of a key: the text's SHA-256, and until when it is in the cache (seconds on the monotonic clock).
        self._hashes: dict[bytes, tuple[str, float]] = {}
        self._noting: set[asyncio.Task[None]] = set()

    async def find(self, text: bytes, headers: Headers, request_id: bytes) -> ApiKey:
        """Return the API key that a client sent, and count the request. Add rate limit headers to `headers` if there is
        a limit. Raises Unauthenticated if the key is missing, unknown, revoked or expired. Raises TooManyRequests if
        the key's organization exceeds the rate limit.
        """
        api_key = self._cached(text)
        if api_key is None:
            api_key = await self._look_up(text, request_id)
        else:
            check_unexpired(api_key)
        if self.limit is not None:
            self.limit.take(headers, api_key.organization_id)
        return api_key

    def remembered(self, text: bytes) -> ApiKey | None:
        """Return the API key with this text if it is in the cache and valid. Otherwise return None: the caller must
        then call find(), which looks the key up or refuses it.
        """
        api_key = self._cached(text)
        if api_key is None or (api_key.expires_at_ms is not None and api_key.has_expired(now_ms())):
            return None
        return api_key

    def _cached(self, text: bytes) -> ApiKey | None:
        sha256, until_s = self._hashes.get(text, _NOT_CACHED)
        return self._view.state.keys_by_sha256.get(sha256) if monotonic() < until_s else None

    async def _look_up(self, text: bytes, request_id: bytes) -> ApiKey:
        if not text:
            raise Unauthenticated(
                "Send an API key in the header X-API-KEY. Or send a session's token as `Authorization: Bearer evs_…`, "
                "and the organization's ID in the header Everput-Organization."
            )
        decoded = text.decode("latin-1")
        if not is_key(decoded):
            raise Unauthenticated(
                "The value of the header X-API-KEY is not an API key of Everput. A key begins with `evp_`, and has 53 "
                "characters. Send the whole key."
            )
        sha256 = key_sha256(decoded)
        api_key = self._view.state.keys_by_sha256.get(sha256)
        if api_key is None:
            # Another process may have created this key just now. So wait until this process has read all of `control`.
            await self._view.caught_up()
            api_key = self._view.state.keys_by_sha256.get(sha256)
        if api_key is None:
            raise Unauthenticated("This API key is unknown or was revoked. Use another key, or create one.")
        check_unexpired(api_key)
        self._hashes.pop(text, None)
        if len(self._hashes) >= _REMEMBERED_MAX:
            del self._hashes[next(iter(self._hashes))]  # the oldest entry
        self._hashes[text] = sha256, monotonic() + _USE_NOTED_S
        self._used(api_key, request_id)
        return api_key

    def _used(self, api_key: ApiKey, request_id: bytes) -> None:
        """Record in the log that an API key was used, unless the log has a use of the key in the last half hour, or the
        organization may store nothing more. After an hour, the key is not in the cache any more, so that its next use
        can be recorded, too.
        """
        at_ms = now_ms()
        if at_ms - (api_key.last_used_at_ms or 0) < _USE_NOTED_S * 500:
            return
        with suppress(StorageFull):
            self._stored.check_change(api_key.organization_id)
            task = asyncio.create_task(self._note(api_key, at_ms, request_id))
            self._noting.add(task)
            task.add_done_callback(self._noting.discard)

    async def _note(self, api_key: ApiKey, at_ms: int, request_id: bytes) -> None:
        event = KeyUsed(
            at_ms=at_ms,
            organization_id=api_key.organization_id,
            actor=f"key:{api_key.id}",
            request_id=str(request_id, "ascii"),
            key_id=api_key.id,
        )
        self._stored.add(api_key.organization_id, len(encode(event)))
        try:
            await self._control.append(event)
        # If the event `key.used` could not be stored, only log a warning.
        # The key's next use after an hour sends a new event `key.used`.
        except BrokerError as error:
            log.warning("key.use_not_noted key=%s error=%s", api_key.id, error)


def _request_limit(name: str, per_s: float | None, *, refusal: str) -> Limit | None:
    if per_s is None:
        return None
    return Limit(name, max(1, round(per_s * _WINDOW_S)), per_s=per_s, refusal=refusal)


def check_unexpired(api_key: ApiKey) -> None:
    """Raise Unauthenticated if the API key has expired."""
    if api_key.expires_at_ms is not None and api_key.has_expired(now_ms()):
        raise Unauthenticated("This API key has expired. Create a new one.")


def check_scope(api_key: ApiKey, scope: str) -> None:
    """Raise Forbidden if the API key lacks the scope."""
    if not covers(api_key.scopes, scope):
        raise Forbidden(f"This API key lacks the scope {scope!r}. Use a key that has it.")


def check_queue(api_key: ApiKey, queue_id: str | None, *, narrows: bool) -> None:
    """Check that an API key may be used for a request. `queue_id` is the queue in the request's path; None if the path
    has no queue. A key for all queues passes. If the key is restricted to some queues, raise NotFound for any other
    queue, and Forbidden if `queue_id` is None.

    With `narrows`, a path without a queue passes, too: the handler of the request uses only the key's own queues.
    """
    if api_key.queue_ids is None:
        return
    if queue_id is None:
        if not narrows:
            raise Forbidden(
                "This operation needs an API key for all queues, but this key is restricted to some. Use an "
                "unrestricted key."
            )
    elif queue_id not in api_key.queue_ids:
        raise NotFound("No queue that this API key may use has this ID. Check the ID, or use another key.")


class Token(NamedTuple):
    """A session's token, as a request holds it."""

    text: str
    # True if the token came in a cookie. A browser also sends the cookie with requests that another site's page makes.
    by_cookie: bool


class Sessions:
    """The look-up of sessions by their tokens, and the cookies that hold the tokens.

    `public_url` is the URL of this server in browsers. It decides whether the cookie is sent only over https, and which
    origin this server's own pages have. If `public_url` is None, both follow from the scheme and the header `Host` of
    each request.
    """

    def __init__(self, view: DirectoryView, public_url: str | None) -> None:
        self._view = view
        self._public_url = public_url
        self._limit = Limit(
            "account",
            _SESSION_CALLS_AT_ONCE,
            per_s=_SESSION_CALLS_PER_S,
            refusal="This account's sessions make too many requests.",
        )

    async def find(self, scope: Scope, headers: Headers) -> Session:
        """Return the session whose token the request holds, and count the request. Raises NoSession if the request
        holds no valid token, and TooManyRequests beyond the rate limit. Raises Forbidden if the token is in a cookie,
        and the request does not come from a page of this server. This origin is not checked for GET and HEAD.
        """
        session = await self.look_up(scope)
        self._limit.take(headers, session.account_id)
        return session

    async def look_up(self, scope: Scope) -> Session:
        """Return the session whose token the request holds. Do not count the request for the rate limit. Raises
        NoSession if the request holds no valid token. Raises Forbidden if the token is in a cookie, and the request
        does not come from a page of this server. This origin is not checked for GET and HEAD.
        """
        token = self._token(scope)
        if token is None:
            raise NoSession(
                "This request holds no token of a session. Sign in, and send the token in the header Authorization, "
                "as `Bearer evs_…`."
            )
        # Check a WebSocket, too: a page of another origin may open it, and the browser may add the session's cookie.
        if token.by_cookie and scope.get("method") not in ("GET", "HEAD") and not self.same_origin(scope):
            raise Forbidden(
                "This request has a session's cookie, but comes from another origin, or from no browser page. Open "
                "the console at this server's public URL, or send the session's token in the header Authorization, as "
                "`Bearer evs_…`."
            )
        session = None
        if is_key(token.text, prefix=SESSION_PREFIX):
            sha256 = key_sha256(token.text)
            # Another process may have started or ended this session just now, so read the topic `control` to its end.
            await self._view.caught_up()
            session = self._view.state.accounts.sessions_by_sha256.get(sha256)
        if session is None or session.expires_at_ms <= now_ms():
            raise NoSession("This session is unknown or has ended. Sign in again.")
        return session

    def cookie(self, scope: Scope, token: str, age_s: int) -> tuple[bytes, bytes]:
        """Return the `Set-Cookie` header that stores a session's token in the browser for `age_s` seconds."""
        https = self.https(scope)
        name = COOKIE_HTTPS if https else COOKIE
        secure = "; Secure" if https else ""
        cookie = f"{name}={token}; Path=/; Max-Age={age_s}; HttpOnly; SameSite=Lax{secure}"
        return b"set-cookie", cookie.encode()

    def _token(self, scope: Scope) -> Token | None:
        """Return the session's token from the header `Authorization: Bearer evs_…`, or else from the cookie. Return
        None if both are missing.
        """
        headers = dict(scope["headers"])
        authorization = headers.get(b"authorization", b"").decode("latin-1")
        if authorization.lower().startswith(_BEARER):
            return Token(authorization[len(_BEARER) :].strip(), by_cookie=False)
        name = COOKIE_HTTPS if self.https(scope) else COOKIE
        text = cookie(headers.get(b"cookie", b"").decode("latin-1"), name)
        return None if text is None else Token(text, by_cookie=True)

    def https(self, scope: Scope) -> bool:
        """Return whether browsers use the API over https."""
        public_url = self._public_url
        return scope["scheme"] in ("https", "wss") if public_url is None else public_url.lower().startswith("https:")

    def same_origin(self, scope: Scope) -> bool:
        """Return True if the browser says that a page of this server sent the request, else False.

        Browsers say so in the header `Sec-Fetch-Site` or, without this header, in `Origin`. Without both headers,
        return False (decision 0121).
        """
        headers: dict[bytes, bytes] = dict(scope["headers"])
        site = headers.get(b"sec-fetch-site")
        if site is not None:
            return site.decode("latin-1") == "same-origin"
        origin = headers.get(b"origin", b"").decode("latin-1").lower()
        if self._public_url is not None:
            own = urlsplit(self._public_url.lower())
            return origin == f"{own.scheme}://{own.netloc}"
        scheme = "https" if self.https(scope) else "http"
        return origin == f"{scheme}://{headers.get(b'host', b'').decode('latin-1').lower()}"


def cookie(text: str, name: str) -> str | None:
    """Return a cookie's value from the text of the header `Cookie`. Return None if the cookie is missing. If the header
    has the name more than once, the last value counts.

    Python's module http.cookies is not used, because it takes quadratic time before 3.11.10 and 3.12.6
    (CVE-2024-7592). Quotes are not removed from the value, because the cookies of Everput have none.
    """
    value = None
    for pair in text.split(";"):
        own, is_pair, rest = pair.partition("=")
        if is_pair and own.strip() == name:
            value = rest.strip()
    return value


class Members:
    """The look-up of the member who sends a request with a session, and of the organization in which the member acts.

    `requests_per_s` is the rate limit on the requests of all members of one organization together, counted in this
    process. None means no limit.
    """

    def __init__(self, view: DirectoryView, sessions: Sessions, *, requests_per_s: float | None) -> None:
        self._view = view
        self._sessions = sessions
        refusal = "This organization's members make too many requests."
        self._limit = _request_limit("members", requests_per_s, refusal=refusal)

    async def find(self, scope: Scope, headers: Headers) -> tuple[Session, str]:
        """Return the session of the request, and the id of the organization that its header `Everput-Organization`
        names.

        Raises NoSession if the request holds no valid token. Raises Forbidden if the token is in a cookie, and the
        request does not come from a page of this server. This origin is not checked for GET and HEAD. Raises
        TooManyRequests beyond the rate limit, and NotFound if the account is no member of the organization.
        """
        session = await self._sessions.look_up(scope)
        organization_id = dict(scope["headers"])[ORGANIZATION].decode("latin-1")
        is_member = self._view.state.is_member(organization_id, session.account_id)
        # If the account is no member, count the request for the account instead of the organization.
        # Otherwise, strangers could use up the rate limit of the organization.
        if self._limit is not None:
            self._limit.take(headers, organization_id if is_member else session.account_id)
        if not is_member:
            raise NotFound("None of your organizations has this ID. GET /v1/organizations lists them.")
        return session, organization_id
