"""Problem details (RFC 9457): the HTTP answer to an error. No other module has HTTP status codes of errors.

For: turning an error into status, headers and body, and the errors that only an HTTP request can have. Not for: raising
errors (the handlers and the commands do) or logging them (calls.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Final, NamedTuple

import orjson

from broker import errors
from broker.commands.accounts import AccountBlocked, WrongPassword
from broker.core.names import shortened

# The titles of HTTP statuses are written here, because Python 3.13 has changed the title of 422 in http.HTTPStatus.
TITLES: Final = {
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    408: "Request Timeout",
    409: "Conflict",
    412: "Precondition Failed",
    413: "Content Too Large",
    414: "URI Too Long",
    415: "Unsupported Media Type",
    421: "Misdirected Request",
    422: "Unprocessable Entity",
    429: "Too Many Requests",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    501: "Not Implemented",
    503: "Service Unavailable",
    507: "Insufficient Storage",
}
MEDIA_TYPE: Final = b"application/problem+json"
# A JSON pointer is cut to this many characters in the error answer, because the client may have chosen its text.
_POINTER_CHARS_MAX: Final = 300

Headers = list[tuple[bytes, bytes]]


class Malformed(errors.BrokerError):
    """The request's body, its query or its header Content-Length can't be read."""

    code = "malformed"


class Unauthenticated(errors.BrokerError):
    """The header X-API-KEY holds no valid API key.

    `challenge` is the header WWW-Authenticate of the answer (RFC 9110, 11.6.1).
    """

    code = "unauthenticated"
    challenge = b'ApiKey realm="everput"'


class NoSession(Unauthenticated):
    """The request has no token of a running session."""

    challenge = b'Bearer realm="everput"'


class Forbidden(errors.BrokerError):
    """These credentials do not allow this operation."""

    code = "forbidden"


class NoSuchPath(errors.NotFound):
    """The path is unknown. /docs lists all paths."""


class MethodNotAllowed(errors.BrokerError):
    """The resource does not support this method.

    `allow` lists the supported methods, for the header Allow of the answer.
    """

    code = "method-not-allowed"

    def __init__(self, detail: str, *, allow: str) -> None:
        super().__init__(detail)
        self.allow = allow


class TooLarge(errors.BrokerError):
    """The request's body is too large."""

    code = "too-large"


class TooManyRequests(errors.BrokerError):
    """Too many requests.

    `retry_after_s` is the number of seconds that the client must wait before the next request.
    """

    code = "too-many-requests"

    def __init__(self, detail: str, *, retry_after_s: float) -> None:
        super().__init__(detail)
        self.retry_after_s = math.ceil(retry_after_s)


class NotJson(errors.BrokerError):
    """The request's content type is not JSON, or the body is compressed."""

    code = "not-json"


class BadParameter(errors.Refused):
    """A parameter of the query is not acceptable.

    `parameter` is its name.
    """

    code = "bad-parameter"

    def __init__(self, detail: str, *, parameter: str) -> None:
        super().__init__(detail)
        self.parameter = parameter


class BadHeader(errors.Refused):
    """A header of the request is not acceptable.

    `header` is its name.
    """

    code = "bad-header"

    def __init__(self, detail: str, *, header: str) -> None:
        super().__init__(detail)
        self.header = header


# The HTTP status of each error's class. A class that is missing here has the status of its nearest base class, or 500.
_STATUS: Final[dict[type, int]] = {
    Malformed: 400,
    Unauthenticated: 401,
    WrongPassword: 401,
    Forbidden: 403,
    AccountBlocked: 403,
    errors.IdentityRefused: 403,
    errors.NotFound: 404,
    MethodNotAllowed: 405,
    TooLarge: 413,
    NotJson: 415,
    errors.KeyInFlight: 409,
    errors.Changed: 412,
    errors.Refused: 422,
    TooManyRequests: 429,
    errors.ShareUsed: 429,
    errors.Unavailable: 503,
    errors.StorageFull: 507,
}


class Problem(NamedTuple):
    """The HTTP answer to an error: status, headers and body."""

    status: int
    headers: Headers
    body: bytes


def problem(error: BaseException) -> Problem:
    """Create the HTTP answer to a request that ended with this error."""
    status = next((_STATUS[kind] for kind in type(error).__mro__ if kind in _STATUS), 500)
    if status == 500 or not isinstance(error, errors.BrokerError):
        return _problem(
            500,
            "internal",
            "An internal error occurred. The server's log has more, under the ID in the header X-Request-Id.",
            (),
            [],
        )
    headers: Headers = []
    if isinstance(error, Unauthenticated):
        headers.append((b"www-authenticate", error.challenge))
    elif isinstance(error, WrongPassword):
        headers.append((b"www-authenticate", NoSession.challenge))
    elif isinstance(error, MethodNotAllowed):
        headers.append((b"allow", error.allow.encode()))
    elif isinstance(error, errors.Unavailable | errors.KeyInFlight | errors.ShareUsed | TooManyRequests):
        headers.append((b"retry-after", b"%d" % error.retry_after_s))
    detail = error.public or str(error) or (type(error).__doc__ or "").partition("\n")[0]
    return _problem(status, error.code, detail, _places(error, detail), headers)


def framework_problem(status: int, detail: str) -> Problem:
    """Create the HTTP answer to a request that Starlette or the HTTP server refused before a handler of the API was
    called. The answer has the status `status` if TITLES has a title for `status`, and otherwise the status 400.
    """
    status = status if status in TITLES else 400
    return _problem(status, TITLES[status].lower().replace(" ", "-"), detail, (), [])


def _places(error: errors.BrokerError, detail: str) -> Iterable[dict[str, str]]:
    if isinstance(error, BadParameter):
        yield {"parameter": error.parameter, "detail": detail}
    elif isinstance(error, BadHeader):
        yield {"header": error.header, "detail": detail}
    elif isinstance(error, errors.Refused) and error.pointer is not None:
        yield {"pointer": shortened(error.pointer, _POINTER_CHARS_MAX), "detail": detail}


def _problem(status: int, code: str, detail: str, places: Iterable[dict[str, str]], headers: Headers) -> Problem:
    body: dict[str, Any] = {"type": f"/problems/{code}", "title": TITLES[status], "status": status, "detail": detail}
    if where := list(places):
        body["errors"] = where
    return Problem(status, headers, orjson.dumps(body))
