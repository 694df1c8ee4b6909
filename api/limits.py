"""Rate limits of requests, and the headers that tell a client what is left.

For: counting in this process, the headers `RateLimit` and `RateLimit-Policy` (draft-ietf-httpapi-ratelimit-headers-10),
and the 429. Not for: the arithmetic (buckets.py), or which requests are limited (the users of a Limit).
"""

from __future__ import annotations

import asyncio
import math
from typing import Final

from api.buckets import Allowance, Buckets
from api.problems import Headers, TooManyRequests

EVERYBODY: Final = ""  # If `whose` has this value, a Limit counts the uses of all clients together.


class Recent:
    """The number of each network's recent attempts to sign in, to confirm a password or to register.

    Callers pass this number as `left` to Limit.check() and Limit.take(). So a network with many recent attempts is
    refused earlier, and the last uses of the limit remain for other networks. Every `each_s` seconds, the number of
    each network falls by one. The number is never above `most`.
    """

    def __init__(self, most: int, *, each_s: float) -> None:
        self._buckets = Buckets(most, per_s=1 / each_s)

    def count(self, network: str | None) -> int:
        """Return how many attempts of the network are remembered. Return 0 if the network is None (unknown)."""
        if network is None:
            return 0
        return self._buckets.taken(network, asyncio.get_running_loop().time())

    def add(self, network: str | None) -> None:
        """Remember one more attempt of the network."""
        if network is not None:
            self._buckets.take(network, asyncio.get_running_loop().time())


class Limit:
    """A rate limit that permits bursts. The uses are counted separately for each `whose`, such as a client, an account
    or an organization.

    `name` (the limit's own name) and `unit` appear in the `RateLimit` headers. Without a unit, the limit counts
    requests. `refusal` is the error text for a client that exceeds the limit.
    """

    def __init__(self, name: str, size: int, *, per_s: float, refusal: str, unit: str | None = None) -> None:
        self._buckets = Buckets(size, per_s=per_s)
        self._refusal = refusal
        quota_unit = "" if unit is None else f';qu="{unit}"'
        self._policy = f'"{name}";q={size}{quota_unit};w={math.ceil(size / per_s - 1e-9)}'.encode()
        self._told = f'"{name}";r=%d;t=%d'.encode()

    @property
    def size(self) -> int:
        """The largest number of uses in one burst."""
        return self._buckets.size

    def take(self, headers: Headers, whose: str, count: int = 1, *, left: int = 0) -> None:
        """Count `count` uses by `whose`, and append the `RateLimit` headers to `headers`. Raises TooManyRequests if the
        limit does not permit these uses. If `whose` is EVERYBODY, append the headers only when the request is refused.

        `left` is the number of uses that must remain for other clients afterwards. A larger `left` than half of a full
        burst counts as half of a full burst.
        """
        if left:
            self.check(headers, whose, left=left)
        allowance = self._buckets.take(whose, asyncio.get_running_loop().time(), count)
        if whose != EVERYBODY or allowance.wait_s:
            self._tell(headers, allowance)

    def permits(self, whose: str, count: int = 1) -> bool:
        """Return whether the rate limit permits `count` more uses now. Do not count these uses."""
        return not self._buckets.look(whose, asyncio.get_running_loop().time(), count).wait_s

    def check(self, headers: Headers, whose: str, *, left: int = 0) -> None:
        """Raise TooManyRequests if one more use would leave fewer than `left` uses for other clients. A larger `left`
        than half of a full burst counts as half of a full burst. Do not count a use.
        """
        left = min(left, self.size // 2)
        allowance = self._buckets.look(whose, asyncio.get_running_loop().time(), 1 + left)
        if allowance.wait_s:
            self._tell(headers, allowance)

    def _tell(self, headers: Headers, allowance: Allowance) -> None:
        left, full_in_s, wait_s = allowance
        headers.append((b"ratelimit-policy", self._policy))
        headers.append((b"ratelimit", self._told % (left, math.ceil(wait_s or full_in_s))))
        if wait_s:
            raise TooManyRequests(self._refusal, retry_after_s=wait_s)
