"""Rate limits of requests, and the headers that say what is left.

For: counting, `RateLimit` and `RateLimit-Policy` (draft-ietf-httpapi-ratelimit-headers-10), and the 429. They are
counted in this process alone. Not for: the arithmetic (buckets.py), what is limited and how far (the users of a Limit).
"""

from __future__ import annotations

import asyncio
import math
from typing import Final

from api.buckets import Allowance, Buckets
from api.problems import Headers, TooManyRequests

EVERYBODY: Final = ""  # This name stands for all requests together.


class Recent:
    """The recent attempts of each network, so that networks with many leave room for the others (Limit.check).

    An attempt is remembered for `each_s` seconds after the one before it is forgotten, and at most `most` are.
    """

    def __init__(self, most: int, *, each_s: float) -> None:
        self._buckets = Buckets(most, per_s=1 / each_s)

    def count(self, network: str | None) -> int:
        """Count the remembered attempts of the network; 0 for an unknown network."""
        if network is None:
            return 0
        return self._buckets.taken(network, asyncio.get_running_loop().time())

    def add(self, network: str | None) -> None:
        """Remember one more."""
        if network is not None:
            self._buckets.take(network, asyncio.get_running_loop().time())


class Limit:
    """A rate limit that permits bursts and counts each client (an address, an account, …) separately.

    name: what the limit is called in the `RateLimit` headers.
    unit: what is counted; None for requests.
    refusal: the error text for a client that exceeds the limit.
    """

    def __init__(self, name: str, size: int, *, per_s: float, refusal: str, unit: str | None = None) -> None:
        self._buckets = Buckets(size, per_s=per_s)
        self._refusal = refusal
        quota_unit = "" if unit is None else f';qu="{unit}"'
        self._policy = f'"{name}";q={size}{quota_unit};w={math.ceil(size / per_s - 1e-9)}'.encode()
        self._told = f'"{name}";r=%d;t=%d'.encode()

    @property
    def size(self) -> int:
        """Return the size of the burst."""
        return self._buckets.size

    def take(self, headers: Headers, whose: str, count: int = 1, *, left: int = 0) -> None:
        """Count uses of the limit, up to its size. Raises TooManyRequests.

        headers: of the answer. The state of EVERYBODY's limit is told only to a client that is refused.
        left: as in check().
        """
        if left:
            self.check(headers, whose, left=left)
        allowance = self._buckets.take(whose, asyncio.get_running_loop().time(), count)
        if whose != EVERYBODY or allowance.wait_s:
            self._tell(headers, allowance)

    def check(self, headers: Headers, whose: str, *, left: int = 0) -> None:
        """Check without counting (TooManyRequests where take() would raise it).

        left: how many must be left for others after this one; at most half of the limit.
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
