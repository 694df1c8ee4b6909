"""The deliveries that a partition of `outstanding` must hold, in a few bytes: how many, and a hash of their keys.

For: knowing that records are missing. `outstanding` is compacted, so a hole between its offsets shows nothing. The
owner of a partition notes the sum, and the next owner and `everput verify` compare it with what they read. Pure. Not
for: where it is noted (broker/kafka/tail.py), finding the deliveries (broker/delivery/outstanding/rebuild.py).
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple


class OutstandingSum(NamedTuple):
    """The deliveries of one partition, at one moment.

    end: where the partition of `outstanding` ended.
    deliveries: how many they are.
    digest: the hashes of the records' keys, combined by XOR.
    """

    end: int
    deliveries: int
    digest: int

    def text(self) -> str:
        return f"{self.end}:{self.deliveries}:{self.digest:016x}"

    def agrees(self, found: OutstandingSum) -> bool | None:
        """Return whether what was read is what was noted. None: records were written since, so nobody can tell."""
        if found.end > self.end:
            return None
        return found == self


def parse_sum(text: str) -> OutstandingSum | None:
    """Parse text(); None for anything else, such as what an older program has committed."""
    try:
        end, deliveries, digest = text.split(":")
        return OutstandingSum(int(end), int(deliveries), int(digest, 16))
    except ValueError:
        return None


class KeySum:
    """The sum of the keys that a partition holds now."""

    __slots__ = ("deliveries", "digest")

    def __init__(self) -> None:
        self.deliveries = 0
        self.digest = 0

    def add(self, key: bytes, by: int) -> None:
        """Count a key that has come (1) or gone (-1)."""
        self.deliveries += by
        self.digest ^= int.from_bytes(hashlib.blake2b(key, digest_size=8).digest())

    def until(self, end: int) -> OutstandingSum:
        return OutstandingSum(end, self.deliveries, self.digest)


class LiveKeys:
    """The keys of a partition of `outstanding`, folded from its records.

    lost: the keys of records that took the place of lost ones.
    """

    def __init__(self) -> None:
        self._keys: set[bytes] = set()
        self.lost: set[bytes] = set()

    def note(self, key: bytes | None, value: bytes | None) -> None:
        """Fold the next record of the partition."""
        key = key or b""
        self._keys.discard(key)
        self.lost.discard(key)
        if value is not None:
            (self._keys if value else self.lost).add(key)

    def until(self, end: int) -> OutstandingSum:
        found = KeySum()
        for key in self._keys:
            found.add(key, 1)
        return found.until(end)
