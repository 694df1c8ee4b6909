"""How many bytes an organization may put.

For: the quota of bytes, where there is one; it stands before a handler, so that it costs nothing where there is none.
Not for: the size of one request (calls.py) or how often a key may ask (auth.py)."""

from __future__ import annotations

import asyncio
import math
from typing import Any, Final

from api.buckets import Buckets
from api.calls import Call, Handler
from api.problems import TooManyRequests

_WINDOW_S: Final = 10  # whose bytes may come at once
_UNTOLD_BYTES: Final = 1 << 20  # what a body counts whose length is not told


class Volume:
    """Counts the bytes of request bodies, for each organization, in this process alone. bytes_max: the largest body."""

    def __init__(self, bytes_per_s: int, *, bytes_max: int) -> None:
        self._buckets = Buckets(max(bytes_per_s * _WINDOW_S, bytes_max), per_s=bytes_per_s)
        self._policy = b'"bytes";q=%d;qu="content-bytes";w=%d' % (
            self._buckets.size,
            math.ceil(self._buckets.size / bytes_per_s),
        )

    def before(self, handler: Handler) -> Handler:
        """The handler, and TooManyRequests when it would be too much."""

        async def counted(call: Call) -> Any:
            self._take(call)
            return await handler(call)

        return counted

    def _take(self, call: Call) -> None:
        told = call.told_length()
        size = _UNTOLD_BYTES if told is None else min(told, self._buckets.size)
        now_s = asyncio.get_running_loop().time()
        left, full_in_s, wait_s = self._buckets.take(call.key.organization_id, now_s, size)
        call.headers.append((b"ratelimit-policy", self._policy))
        call.headers.append((b"ratelimit", b'"bytes";r=%d;t=%d' % (left, math.ceil(wait_s or full_in_s))))
        if wait_s:
            raise TooManyRequests("This organization puts too many bytes.", retry_after_s=wait_s)
