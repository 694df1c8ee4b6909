"""How often something may be asked for, and the headers that say what is left of it.

For: counting, `RateLimit` and `RateLimit-Policy` (draft-ietf-httpapi-ratelimit-headers-10), and the 429. Counted in
this process alone. Not for: the arithmetic (buckets.py), what is limited and how far (those who have a Limit)."""

from __future__ import annotations

import asyncio
import math
from typing import Final

from api.buckets import Allowance, Buckets
from api.problems import Headers, TooManyRequests

EVERYBODY: Final = ""  # who shares a limit with all others


class Limit:
    """So many at once, then so many a second, for each name apart.

    name: the policy's. unit: what is counted, where that is not requests. refusal: what is said to who comes too often.
    """

    def __init__(self, name: str, size: int, *, per_s: float, refusal: str, unit: str | None = None) -> None:
        self._buckets = Buckets(size, per_s=per_s)
        self._refusal = refusal
        quota_unit = "" if unit is None else f';qu="{unit}"'
        self._policy = f'"{name}";q={size}{quota_unit};w={math.ceil(size / per_s - 1e-9)}'.encode()
        self._told = f'"{name}";r=%d;t=%d'.encode()

    @property
    def size(self) -> int:
        """How many may come at once."""
        return self._buckets.size

    def take(self, headers: Headers, whose: str, count: int = 1) -> None:
        """Count so many, up to size (TooManyRequests). headers: of the answer.

        What others have left is nobody's business: of EVERYBODY's limit only who is refused is told.
        """
        allowance = self._buckets.take(whose, asyncio.get_running_loop().time(), count)
        if whose != EVERYBODY or allowance.wait_s:
            self._tell(headers, allowance)

    def check(self, headers: Headers, whose: str) -> None:
        """Count nothing (TooManyRequests where take() would raise it)."""
        allowance = self._buckets.look(whose, asyncio.get_running_loop().time())
        if allowance.wait_s:
            self._tell(headers, allowance)

    def _tell(self, headers: Headers, allowance: Allowance) -> None:
        left, full_in_s, wait_s = allowance
        headers.append((b"ratelimit-policy", self._policy))
        headers.append((b"ratelimit", self._told % (left, math.ceil(wait_s or full_in_s))))
        if wait_s:
            raise TooManyRequests(self._refusal, retry_after_s=wait_s)
