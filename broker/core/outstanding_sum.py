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

    `digest` is the XOR of the hashes of all keys. `end` is the end offset that the partition had when the fingerprint
    was computed.
    """

    end: int
    deliveries: int
    digest: int

    def text(self) -> str:
        return f"{self.end}:{self.deliveries}:{self.digest:016x}"

    def agrees(self, found: OutstandingSum) -> bool | None:
        """Return whether this fingerprint is equal to `found`, which was computed from the records in Kafka. Return
        None if the two can't be compared, because records were written after this fingerprint was computed.
        """
        if found.end > self.end:
            return None
        return found == self


def parse_sum(text: str) -> OutstandingSum | None:
    """Parse a fingerprint of deliveries, as text() writes it into the metadata of a committed offset.

    Return None if the text is no fingerprint: an older version of Everput may have written it.
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
        """Add the key of a delivery's record to the fingerprint (`by` is 1), or remove the key (`by` is -1)."""
        self.deliveries += by
        self.digest ^= int.from_bytes(hashlib.blake2b(key, digest_size=8).digest())

    def until(self, end: int) -> OutstandingSum:
        return OutstandingSum(end, self.deliveries, self.digest)


class LiveKeys:
    """The keys of the deliveries that a partition of the topic `outstanding` holds, computed from its records in order.

    If Kafka has lost records, Everput writes records with an empty value at their offsets. The keys of these empty
    records are made up, because the lost keys are unknown. `lost` has the made-up keys.
    """

    def __init__(self) -> None:
        self._keys: set[bytes] = set()
        self.lost: set[bytes] = set()

    def note(self, key: bytes | None, value: bytes | None) -> None:
        """Process the partition's next record. A record with a value is a delivery: remember its key. A record with an
        empty value stands for a lost record: add its key to `lost`. A record without a value (a tombstone) means that
        the delivery with this key is gone: forget the key.
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
