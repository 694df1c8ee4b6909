"""A fingerprint of the deliveries in a partition of the topic `outstanding`: their number, and a hash of their keys.

For: noticing that records are missing. `outstanding` is compacted, so a gap between offsets proves nothing. The owner
of a partition commits the fingerprint, and the next owner and `everput verify` compare it with what they read. Pure.
Not for: committing it (broker/kafka/tail.py), finding the missing deliveries (broker/delivery/outstanding/rebuild.py).
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple


class OutstandingSum(NamedTuple):
    """A fingerprint of the deliveries that one partition of the topic `outstanding` must hold: their number, and a hash
    of their keys.

    `digest` combines the hashes of all keys by XOR. `end` is the partition's end offset at the time of the fingerprint.
    """

    end: int
    deliveries: int
    digest: int

    def text(self) -> str:
        return f"{self.end}:{self.deliveries}:{self.digest:016x}"

    def agrees(self, found: OutstandingSum) -> bool | None:
        """Return whether this fingerprint is equal to the fingerprint of the deliveries in Kafka. Return None if that
        is unknown, because records were written after the fingerprint.
        """
        if found.end > self.end:
            return None
        return found == self


def parse_sum(text: str) -> OutstandingSum | None:
    """Parse the fingerprint of deliveries from the metadata of a Kafka commit.

    Return None for any other text, such as the text of an older program.
    """
    try:
        end, deliveries, digest = text.split(":")
        return OutstandingSum(int(end), int(deliveries), int(digest, 16))
    except ValueError:
        return None


class KeySum:
    """The fingerprint of one partition of the topic `outstanding`, updated while keys of deliveries are added and
    removed.
    """

    __slots__ = ("deliveries", "digest")

    def __init__(self) -> None:
        self.deliveries = 0
        self.digest = 0

    def add(self, key: bytes, by: int) -> None:
        """Add the key of a delivery's record to the fingerprint if `by` is 1, or remove it if `by` is -1."""
        self.deliveries += by
        self.digest ^= int.from_bytes(hashlib.blake2b(key, digest_size=8).digest())

    def until(self, end: int) -> OutstandingSum:
        return OutstandingSum(end, self.deliveries, self.digest)


class LiveKeys:
    """The keys of the deliveries that a partition of the topic `outstanding` holds, computed from its records in order.
    `lost` has the made-up keys of empty records, which Everput wrote at the offsets of records that Kafka had lost.
    """

    def __init__(self) -> None:
        self._keys: set[bytes] = set()
        self.lost: set[bytes] = set()

    def note(self, key: bytes | None, value: bytes | None) -> None:
        """Apply the partition's next record to the keys. A record without a value (a tombstone) removes its key. A
        record with an empty value adds its key to `lost`. Any other record adds its key to the keys of deliveries.
        """
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
