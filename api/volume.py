"""The limit on the bytes that an organization puts.

For: the limit, if there is one; it stands before a handler, so that it costs nothing otherwise. Not for: the size of
one request (calls.py) or how often a key may ask (auth.py).
"""

from __future__ import annotations

from functools import partial
from typing import Any, Final

from api.calls import Call, Handler
from api.limits import Limit

_WINDOW_S: Final = 10  # whose bytes may come at once


class Volume:
    """The count of request bodies' bytes, for each organization, in this process. bytes_max: the largest body."""

    def __init__(self, bytes_per_s: int, *, bytes_max: int) -> None:
        self._limit = Limit(
            "bytes",
            max(bytes_per_s * _WINDOW_S, bytes_max),
            per_s=bytes_per_s,
            unit="content-bytes",
            refusal="This organization puts too many bytes.",
        )

    def before(self, handler: Handler) -> Handler:
        """Return the handler with a limit in front. Raises TooManyRequests."""

        async def counted(call: Call) -> Any:
            length = call.declared_length()
            if length is None:
                call.when_received(partial(self._take, call))
            else:  # The server makes sure that this many bytes arrive.
                self._take(call, length)
            return await handler(call)

        return counted

    def _take(self, call: Call, size: int) -> None:
        self._limit.take(call.headers, call.organization_id, min(size, self._limit.size))
