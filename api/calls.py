"""One HTTP request: what every handler needs from it, and what happens before and after a handler.

For: the credentials, the size limit of the body, the answer, the problem details, the request id. Not for: what a
handler does (queues.py, listeners.py, messages.py). It is plain ASGI without Starlette's Request and Response objects,
because puts of messages come thousands of times a second.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from time import perf_counter
from typing import Any, Final, NamedTuple, TypeVar
from urllib.parse import parse_qsl, urlencode

import orjson
from starlette.types import Message, Receive, Scope, Send

from api.auth import ORGANIZATION, ApiKeys, Members, check_queue, check_scope, check_unexpired
from api.bodies import Bodies
from api.etags import Item, entity_tag, is_known, versions
from api.problems import (
    MEDIA_TYPE,
    BadParameter,
    Forbidden,
    Headers,
    Malformed,
    MethodNotAllowed,
    NoSession,
    NotJson,
    Problem,
    TooLarge,
    Unauthenticated,
    problem,
)
from api.request_counts import GONE, RequestCounts
from api.shapes import parse
from api.streams import Stream, answer_stream
from broker.clock import now_ms
from broker.commands.context import Context
from broker.commands.puts import random_bits
from broker.core.accounts import Session
from broker.core.api_keys import ApiKey
from broker.core.keys import PREFIX, SESSION_PREFIX, covers
from broker.core.names import shortened
from broker.errors import NotFound, Unavailable
from broker.ports import DirectoryView

log = logging.getLogger(__name__)

_JSON: Final = b"application/json"
_QUERY_FIELDS_MAX: Final = 100
_LENGTH_DIGITS_MAX: Final = 19  # digits of the header Content-Length
_READS: Final = ("GET", "HEAD")
# This header forbids caches to store the answer: a cache could return it to a client with another API key.
_NOT_STORED: Final = (b"cache-control", b"no-store")
# The client's own cache may store the answer, but must ask this server before each use whether it has changed.
_ASKED_AGAIN: Final = (b"cache-control", b"private, no-cache")
SMALL_BYTES_MAX: Final = 16 << 10
# A client's request id that may contain a secret is replaced, because request ids are logged and stored.
# This regular expression takes linear time on any input, because it searches for one of two fixed words.
_SECRET = re.compile(rf"{PREFIX}|{SESSION_PREFIX}".encode())
# This regular expression takes linear time on any input: it is one character class, repeated at most 128 times.
_REQUEST_ID = re.compile(rb"[0-9A-Za-z._:/+=-]{1,128}")
T = TypeVar("T")


class Disconnected(Exception):
    """The client closed the connection before it had sent its whole request."""


class Service(NamedTuple):
    """The parts of the API process that the handlers of all paths share."""

    keys: ApiKeys
    members: Members
    view: DirectoryView
    # Links in answers begin with this URL. If None, links begin with the scheme and the header Host of the request.
    public_url: str | None
    body_bytes_max: int
    bodies: Bodies
    requests: RequestCounts


def request_id_of(sent: Mapping[bytes, bytes]) -> bytes:
    """Return the request id that the client has sent in the header `X-Request-Id`. Return a new id if the client's id
    is missing, is not valid, or looks like a secret.
    """
    given = sent.get(b"x-request-id")
    if given is not None and _REQUEST_ID.fullmatch(given) and not _SECRET.search(given):
        return given
    return b"%016x" % random_bits()


class Call:
    """An HTTP request, from its arrival to its answer.

    `organization_id` and `actor` say who sends the request. If the route requires a scope, both are set before the
    handler is called. `sent` holds the request's headers, and `headers` collects headers for the answer.
    """

    __slots__ = (
        "_receive",
        "_scopes_needed",
        "_service",
        "actor",
        "api_key",
        "api_key_text",
        "headers",
        "organization_id",
        "request_id",
        "scope",
        "sent",
        "session",
    )

    organization_id: str
    actor: str

    def __init__(self, scope: Scope, receive: Receive, service: Service) -> None:
        self.api_key: ApiKey | None = None
        self.session: Session | None = None
        self._scopes_needed: tuple[str, ...] = ()
        self.scope = scope
        self.headers: Headers = []
        self._receive = receive
        self._service = service
        self.sent: dict[bytes, bytes] = dict(scope["headers"])  # the last of repeated headers counts
        self.api_key_text = self.sent.get(b"x-api-key", b"")
        self.request_id = request_id_of(self.sent)

    @property
    def request_text(self) -> str:
        return str(self.request_id, "ascii")

    async def admit(self, scope: str, *, narrows: bool = False) -> None:
        """Authenticate the request by its API key, or by its session and the header `Everput-Organization`. Require
        that the key, or the member's role in the organization, has the scope.

        Raises Unauthenticated, NoSession, TooManyRequests, Forbidden or NotFound if the request is not permitted. With
        `narrows`, an API key that is restricted to some queues may also use a path that names no queue.
        """
        if not self.api_key_text and ORGANIZATION in self.sent:
            self.by_member(*await self._service.members.find(self.scope, self.headers))
            self.need(scope)
        else:
            await self.admit_api_key(scope, narrows=narrows)

    async def admit_api_key(self, scope: str, *, narrows: bool = False) -> ApiKey:
        """Authenticate the request by its API key, require that the key has the scope, and return the key.

        Raises Unauthenticated if there is no valid key, TooManyRequests if the requests exceed the rate limit, and
        Forbidden if the key lacks the scope. If the key is restricted to some queues, raises NotFound for the path of
        another queue, and Forbidden for a path without a queue. With `narrows`, a path without a queue is permitted,
        because its handler shows a restricted key only the key's queues.
        """
        api_key = await self._service.keys.find(self.api_key_text, self.headers, self.request_id)
        check_scope(api_key, scope)
        check_queue(api_key, self.scope["path_params"].get("queue_id"), narrows=narrows)
        self.by_api_key(api_key)
        return api_key

    def by_api_key(self, api_key: ApiKey) -> None:
        """Set an API key as the requester."""
        self.api_key = api_key
        self.organization_id = api_key.organization_id
        self.actor = f"key:{api_key.id}"

    def by_session(self, session: Session) -> None:
        """Set a signed-in account as the sender of this request, without an organization."""
        self.session = session
        self.actor = f"account:{session.account_id}"

    def by_member(self, session: Session, organization_id: str) -> None:
        """Set a signed-in member of an organization as the sender of this request."""
        self.by_session(session)
        self.organization_id = organization_id

    @property
    def scopes(self) -> tuple[str, ...]:
        """The scopes of the API key, or the scopes of the member's role in the organization."""
        if self.api_key is not None:
            return self.api_key.scopes
        if self.session is None:
            return ()
        return self._service.view.state.scopes_of(self.organization_id, self.session.account_id)

    def need(self, scope: str) -> None:
        """Raise Forbidden unless the API key or the member's role has this scope. A member's role may change while the
        request is handled, so check_still_in() checks the role again.
        """
        self._scopes_needed += (scope,)
        if self.api_key is not None:
            check_scope(self.api_key, scope)
        elif not covers(self.scopes, scope):
            raise Forbidden(
                f"Your role in this organization lacks the scope {scope!r}. Ask an owner of the organization for a "
                "role that has it."
            )

    def check_still_in(self) -> None:
        """Check that the API key or the session is still valid. If a session acts in an organization, the account must
        also still be a member, and its role must still permit the request. Raises Unauthenticated, NoSession, NotFound
        or Forbidden.

        This method is called after a JSON body has arrived, which may take a minute. It is also called again and again
        while an answer is streamed or a tunnel is open, which may take hours.
        """
        state = self._service.view.state
        if self.api_key is not None:
            if self.api_key.id not in state.keys:
                raise Unauthenticated("This API key was revoked. Use another key, or create one.")
            check_unexpired(self.api_key)
        elif self.session is not None:
            if self.session.id not in state.accounts.sessions or self.session.expires_at_ms <= now_ms():
                raise NoSession("This session has ended. Sign in again.")
            organization_id = getattr(self, "organization_id", None)
            if organization_id is not None and not state.is_member(organization_id, self.session.account_id):
                raise NotFound("None of your organizations has this ID. GET /v1/organizations lists them.")
            needed, self._scopes_needed = self._scopes_needed, ()
            for scope in needed:
                self.need(scope)

    def context(self) -> Context:
        """Return the context of a command: the organization's id, the sender of the request (`actor`), the request id
        and the current time.
        """
        return Context(
            organization_id=self.organization_id,
            actor=self.actor,
            request_id=self.request_text,
            at_ms=now_ms(),
        )

    def if_match(self) -> frozenset[int] | None:
        """Return the versions in the request's header `If-Match`. The request changes a resource only if the resource
        has one of these versions. Return None if the header is missing or is `*`: any version is then accepted.
        """
        return versions(self.sent.get(b"if-match"))

    def path(self, name: str) -> str:
        """Return a parameter of the path."""
        return str(self.scope["path_params"][name])

    def query(self) -> dict[str, str]:
        """Return the parameters of the URL's query. If a parameter is given twice, the last value counts."""
        try:
            text = self.scope["query_string"].decode()
            return dict(parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=_QUERY_FIELDS_MAX))
        except (UnicodeDecodeError, ValueError):
            raise Malformed(
                f"The URL's query must be percent-encoded UTF-8 with at most {_QUERY_FIELDS_MAX} parameters."
            ) from None

    def href(self, path: str) -> str:
        """Return the absolute URL of a path such as `/v1/queues`. For an empty path, return the URL of the server."""
        public_url = self._service.public_url
        if public_url is not None:
            return public_url + path
        host = self.sent.get(b"host", b"").decode("latin-1")
        if not host:
            name, port = self.scope.get("server") or ("localhost", None)
            host = name if port is None else f"{name}:{port}"
        return f"{self.scope['scheme']}://{host}{path}"

    def links(self, path: str, query: Mapping[str, str], page_token: str | None) -> dict[str, Any]:
        """Return the `_links` of a list: `self`, and `next` if there is a page token."""

        def link(parameters: Mapping[str, str]) -> dict[str, str]:
            return {"href": self.href(f"{path}?{urlencode(parameters)}" if parameters else path)}

        links = {"self": link(query)}
        if page_token is not None:
            links["next"] = link({**query, "cursor": page_token})
        return links

    async def json(self, shape: type[T], *, times_bytes_max: int = 1, small: bool = False) -> T:
        """Read the request's JSON body into an object of the class `shape`. The body may have `times_bytes_max` times
        the usual limit of bytes (`body_bytes_max`). With `small`, the body may have at most 16 KiB.

        Raises NotJson, TooLarge, Malformed, Refused, TooMuchUnderWay or Disconnected if the body can't be used. Raises
        Unauthenticated, NoSession, NotFound or Forbidden if the sender has lost its rights while the body arrived.
        """
        self._check_json()
        limit = self._service.body_bytes_max * times_bytes_max
        body = await self.body(min(limit, SMALL_BYTES_MAX) if small else limit)
        self.check_still_in()
        return parse(body, shape)

    def _check_json(self) -> None:
        kind = self.sent.get(b"content-type", b"")
        if kind != _JSON and not _is_json(kind):
            raise NotJson("Send the body with the header `Content-Type: application/json`.")
        if self.sent.get(b"content-encoding", b"") not in (b"", b"identity"):
            raise NotJson("Send the body uncompressed, without the header Content-Encoding.")

    async def json_or_nothing(self, shape: type[T]) -> T:
        """Read the request's JSON body as `json()` does, but treat a missing body as an empty object."""
        if not self.declared_length() and b"transfer-encoding" not in self.sent:
            return parse(b"{}", shape)
        return await self.json(shape)

    def declared_length(self) -> int | None:
        """Return the size of the body in bytes from the header Content-Length. Return None if this header is missing.
        Raises Malformed if the header is no number.
        """
        length = self.sent.get(b"content-length")
        if length is None:
            return None
        if len(length) > _LENGTH_DIGITS_MAX or not length.isdigit():
            raise Malformed("The header Content-Length must be a number of bytes.")
        return int(length)

    async def body(self, limit: int) -> bytes:
        """Read the request's body. Raises TooLarge as soon as the body is known to exceed `limit` bytes, and Malformed
        if the header Content-Length is no number. Raises TooMuchUnderWay if unfinished bodies take too much memory, and
        Disconnected if the client closes the connection.
        """
        length = self.declared_length()
        if length is not None and length > limit:
            raise TooLarge(f"The body is too large. Send at most {limit} bytes.")
        message = await self._receive()
        if message["type"] == "http.disconnect":
            raise Disconnected
        if message.get("more_body", False):
            organization_id = getattr(self, "organization_id", "")
            tenant = self._service.view.state.tenant_of(organization_id)
            with self._service.bodies.arriving(tenant) as hold:
                return await self._rest(message.get("body", b""), limit, hold)
        body: bytes = message.get("body", b"")
        if len(body) > limit:
            raise TooLarge(f"The body is too large. Send at most {limit} bytes.")
        return body

    async def _rest(self, first: bytes, limit: int, hold: Callable[[int], None]) -> bytes:
        body = bytearray(first)
        hold(len(first))
        more = True
        while more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise Disconnected
            part = message.get("body", b"")
            if len(body) + len(part) > limit:
                raise TooLarge(f"The body is too large. Send at most {limit} bytes.")
            hold(len(part))
            body += part
            more = message.get("more_body", False)
        return bytes(body)

    def when_received(self, act: Callable[[int], None]) -> None:
        """Register the function `act`. When a handler has read the whole body, `act` is called with the body's size in
        bytes. If `act` raises an error, the request is refused with this error.
        """
        receive, size = self._receive, 0

        async def watched() -> Message:
            nonlocal size
            message = await receive()
            if message["type"] == "http.request":
                size += len(message.get("body", b""))
                if not message.get("more_body", False):
                    act(size)
            return message

        self._receive = watched


Handler = Callable[[Call], Awaitable[Any]]


class Method(NamedTuple):
    """A handler for one HTTP method of an API path, and who may call it. The handler returns a Stream, an Item (an
    answer with an entity tag), or another value that is sent as JSON.
    """

    handler: Handler
    # The scope that the API key or the member's role must have. If None, the handler does its own checks, if any.
    scope: str | None
    # True if an API key that is restricted to some queues may use this path, although the path names no queue.
    # If `narrows` is true, the handler must show a request with such a restricted API key only the key's queues.
    narrows: bool = False


class Resource:
    """The ASGI application for one path of the API.

    It calls the handler for the request's HTTP method, and sends the handler's answer. It also answers OPTIONS and, if
    there is a handler for GET, HEAD. It refuses a request with a query parameter that `parameters` does not list for
    the method.
    """

    def __init__(
        self, service: Service, path: str, methods: Mapping[str, Method], parameters: Mapping[str, Collection[str]]
    ) -> None:
        self._service = service
        self._path = path
        self.methods = dict(methods)
        if "GET" in self.methods:
            self.methods["HEAD"] = self.methods["GET"]
        self.scopes = {name: method.scope for name, method in methods.items()}
        self._parameters = {"HEAD": parameters.get("GET", ()), **parameters}
        self._allow = ", ".join(sorted([*self.methods, "OPTIONS"]))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun_s = perf_counter()
        status = await self._answered(Call(scope, receive, self._service), scope, receive, send)
        method = scope["method"] if scope["method"] in self.methods else "other"
        self._service.requests.add(method, self._path, status, begun_s)

    async def _answered(self, call: Call, scope: Scope, receive: Receive, send: Send) -> int:
        """Answer the request, and return the HTTP status."""
        method = self.methods.get(scope["method"])
        try:
            if method is None:
                if scope["method"] == "OPTIONS":
                    allow = [(b"allow", self._allow.encode())]
                    return await answer(send, scope, 204, allow, None, b"", call.request_id)
                detail = f"This resource does not support {scope['method']}. It supports {self._allow}."
                raise MethodNotAllowed(detail, allow=self._allow)  # noqa: TRY301
            if method.scope is not None:
                await call.admit(method.scope, narrows=method.narrows)
                # Before a GET, read the topic `control` to its end, so that the answer shows all earlier changes.
                if scope["method"] in _READS:
                    await self._service.view.caught_up()
            if scope["query_string"]:
                _check_parameters(call.query(), self._parameters[scope["method"]])
            made = await method.handler(call)
            if type(made) is Stream:
                await answer_stream(scope, receive, send, made, call.request_id, call.headers)
                return 200
            body = orjson.dumps(made.fields if type(made) is Item else made)
            if type(made) is Item:
                tag = entity_tag(made, body)
                call.headers.append((b"etag", tag))
                if scope["method"] in _READS:
                    call.headers.append(_ASKED_AGAIN)
                    if is_known(call.sent.get(b"if-none-match"), tag):
                        return await answer(send, scope, 304, call.headers, None, b"", call.request_id)
            elif scope["method"] in _READS:
                call.headers.append(_NOT_STORED)
        except Disconnected:
            return GONE
        except Exception as error:  # noqa: BLE001 - told apart by problem(); a stack trace goes to the log only
            return await answer_problem(send, scope, error, call.request_id, call.headers)
        return await answer(send, scope, 200, call.headers, _JSON, body, call.request_id)


async def answer(
    send: Send, scope: Scope, status: int, headers: Headers, kind: bytes | None, body: bytes, request_id: bytes
) -> int:
    """Send a whole HTTP response, and return its status. A HEAD request gets no body."""
    if kind is not None:
        headers.append((b"content-type", kind))
    if status not in (204, 304):
        headers.append((b"content-length", b"%d" % len(body)))
    headers.append((b"x-request-id", request_id))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})
    return status


async def answer_problem(
    send: Send, scope: Scope, error: BaseException, request_id: bytes, more: Sequence[tuple[bytes, bytes]] = ()
) -> int:
    """Answer a request with the problem details of an error, and return the HTTP status. Log the error if the status is
    500 or 503.
    """
    status, headers, body = logged_problem(error, request_id, scope["path"], more)
    return await answer(send, scope, status, headers, MEDIA_TYPE, body, request_id)


def logged_problem(
    error: BaseException, request_id: bytes, path: str, more: Sequence[tuple[bytes, bytes]] = ()
) -> Problem:
    """Return the HTTP answer to an error. Its headers include `more`, but not yet the content type, the content length
    and the request id. Log the error if the status is 500 or 503.
    """
    status, headers, body = problem(error)
    headers += [*more, _NOT_STORED]
    if status == 500:
        log.error("request.failed id=%s path=%s", request_id.decode(), path, exc_info=error)
    elif isinstance(error, Unavailable):
        log.warning("request.unavailable id=%s path=%s reason=%s", request_id.decode(), path, error)
    return Problem(status, headers, body)


def whole_headers(headers: Headers, kind: bytes, body: bytes, request_id: bytes) -> Headers:
    """Return a copy of the headers, with the content type, the content length and the request id added."""
    return [
        *headers,
        (b"content-type", kind),
        (b"content-length", b"%d" % len(body)),
        (b"x-request-id", request_id),
    ]


def _check_parameters(query: Mapping[str, str], known: Collection[str]) -> None:
    for name in query:
        if name not in known:
            quoted = shortened(name)
            raise BadParameter(
                f"This operation has no query parameter {quoted!r}. /docs lists its parameters.", parameter=quoted
            )


def _is_json(kind: bytes) -> bool:
    media, *parameters = kind.lower().split(b";")
    charsets = (p.split(b"=", 1)[1].strip(b' "') for p in parameters if p.strip().startswith(b"charset="))
    return media.strip() == _JSON and all(charset in (b"utf-8", b"utf8") for charset in charsets)
