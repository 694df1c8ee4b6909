"""A listener's cursor in a partition, as Kafka stores it: a committed offset that every Kafka tool understands, and
metadata.

For: encoding and decoding. The committed offset is the lowest offset that is not settled, so a reader that ignores the
metadata repeats some deliveries and skips none. Not for: storing cursors (broker/kafka/cursors.py).

Metadata, version 1: `1 <open> <pending> <oldest_at_ms> <state> <error> <attempts>`, with `-` for a missing value.
<open> is unpadded url-safe base64 of unsigned LEB128 varints: first top - offset, then each open offset as the distance
from the one before, the first from the committed offset. OPEN_MAX open offsets fit into Kafka's 4,096 bytes. <attempts>
has the same encoding, with a number for each open offset. It is left out, with the space before it, if all numbers are
0 or if it does not fit. <error> may be followed by `;` and the listener's counts (health.py). Older programs read the
counts as a part of the error.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import Final

from broker.core.varints import pack, unpack

OPEN_MAX: Final = 512
METADATA_BYTES_MAX: Final = 4096  # the default of Kafka's offset.metadata.max.bytes
_VERSION: Final = "1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cursor:
    """The progress of a listener's deliveries in one partition of `messages`. Kafka stores a cursor as a committed
    offset with metadata.

    The deliveries of messages below the offset `top` are settled: delivered, parked, cancelled or kept in the topic
    `outstanding`. The offsets in `open` are the exceptions: their deliveries are not settled yet.
    """

    top: int
    open: tuple[int, ...] = ()
    pending: int = 0  # waiting messages below `top`
    oldest_at_ms: int | None = None  # when the oldest waiting message was put, in UTC epoch ms; None if unknown
    state: str = "live"  # `live` or `down`
    error: str | None = None  # error or HTTP status of the newest failure; None after an accepted attempt
    attempts: tuple[int, ...] = ()  # finished attempts, by open offset
    counts: str = ""  # deliveries and attempts, see health.py

    @property
    def offset(self) -> int:
        """The committed offset. All deliveries of messages below this offset are settled: delivered, parked, cancelled
        or kept in the topic `outstanding`.
        """
        return self.open[0] if self.open else self.top

    def settled(self, offset: int) -> bool:
        """Return whether the delivery of the message at this offset is settled: delivered, parked, cancelled or kept in
        the topic `outstanding`.
        """
        return offset < self.top and offset not in self.open

    def metadata(self) -> str:
        """Encode the details of a listener's progress as the metadata of a commit to Kafka, in at most
        METADATA_BYTES_MAX bytes.

        If the open offsets need more bytes, some of the highest ones are left out, and `top` becomes the first offset
        that was left out. The next owner of the partition then delivers all messages from this offset on again.
        """
        numbers = [self.top - self.offset]
        before = self.offset
        for offset in self.open:
            numbers.append(offset - before)
            before = offset
        packed = pack(numbers)
        oldest = "-" if self.oldest_at_ms is None else str(self.oldest_at_ms)
        error = f"{self.error or '-'};{self.counts}" if self.counts else self.error or "-"
        text = f"{_VERSION} {packed} {self.pending} {oldest} {self.state} {error}"
        # If the metadata is too long, drop the upper half of the open offsets, and set `top` to the first dropped one.
        # After a take-over, messages from this offset on are then delivered again.
        if len(text) > METADATA_BYTES_MAX and self.open:
            fewer = len(self.open) // 2
            return replace(self, top=self.open[fewer], open=self.open[:fewer], attempts=()).metadata()
        if any(self.attempts):
            longer = f"{text} {pack(self.attempts)}"
            return longer if len(longer) <= METADATA_BYTES_MAX else text
        return text

    @classmethod
    def from_metadata(cls, offset: int, text: str) -> Cursor:
        """Decode a listener's progress from a committed offset and its metadata. If the metadata is not valid, for
        example because a Kafka tool has reset the offset, use only the committed offset.
        """
        try:
            version, packed, pending, oldest, state, error, *more = text.split(" ")
            error, _, counts = error.partition(";")
            to_top, *distances = unpack(packed)
            attempts = tuple(unpack(*more)) if more else ()
            opened = tuple(accumulate(distances, initial=offset))[1:]
            cursor = cls(
                top=offset + to_top,
                open=opened,
                pending=int(pending),
                oldest_at_ms=None if oldest == "-" else int(oldest),
                state=state,
                error=None if error == "-" else error,
                attempts=attempts,
                counts=counts,
            )
        except (ValueError, TypeError):  # TypeError means too many fields
            return cls(top=offset)
        # If the metadata contradicts itself, use only the committed offset: a wrong `top` could skip messages.
        ascending = all(low < high for low, high in pairwise((*opened, cursor.top)))
        ours = version == _VERSION and state in ("live", "down") and cursor.pending >= 0
        counted = len(attempts) in (0, len(opened))
        return cursor if ours and ascending and counted and cursor.offset == offset else cls(top=offset)
