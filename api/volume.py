"""The rate limit on the bytes of messages that an organization puts.

For: the limit, which is checked before the handler. Not for: the size of one request (calls.py), or the number of
requests (auth.py).
"""

from __future__ import annotations

from functools import partial
from typing import Any, Final

from api.calls import Call, Handler
from api.limits import Limit
from api.problems import Headers

# The largest burst is the bytes that the rate permits in this many seconds, or the largest body if that has more bytes.
_WINDOW_S: Final = 10


class Volume:
    """The rate limit on the bytes that each organization sends in requests that put or change messages. Each process
    counts on its own. `bytes_max` is the size of the largest body.
    """

    def __init__(self, bytes_per_s: int, *, bytes_max: int) -> None:
        self._limit = Limit(
            "bytes",
            max(bytes_per_s * _WINDOW_S, bytes_max),
            per_s=bytes_per_s,
            unit="content-bytes",
            refusal="This organization puts too many bytes.",
        )

    def before(self, handler: Handler) -> Handler:
        """Return a handler that counts the bytes of the request's body and calls the given handler. The returned
        handler raises TooManyRequests instead if these bytes would exceed the organization's rate limit.
        """

        async def counted(call: Call) -> Any:
            length = call.declared_length()
            if length is None:
                call.when_received(partial(self._take, call))
            else:  # The HTTP server ensures that the body is as long as Content-Length says.
                self._take(call, length)
            return await handler(call)

        return counted

    def permits(self, organization_id: str, size: int) -> bool:
        """Return whether the rate limit permits this many bytes from the organization now. Do not count the bytes."""
        return self._limit.permits(organization_id, min(size, self._limit.size))

    def take(self, headers: Headers, organization_id: str, size: int) -> None:
        """Count the bytes of one request, and append the `RateLimit` headers to `headers`. Raises TooManyRequests if
        the limit does not permit so many bytes. A request that is larger than a full burst counts as a full burst.
        """
        self._limit.take(headers, organization_id, min(size, self._limit.size))

    def _take(self, call: Call, size: int) -> None:
        self.take(call.headers, call.organization_id, size)
