"""A stream's cursor as Kafka keeps it: an offset that every Kafka tool understands, and metadata with the details.

For: encoding and decoding. The committed offset is the lowest that is not settled, so a reader that ignores the
metadata repeats some deliveries and skips none. Not for: storing it (broker/kafka/cursors.py).

Metadata, version 1: `1 <open> <pending> <oldest_at_ms> <state> <error> <attempts>`, with `-` for a missing value.
<open> is unpadded url-safe base64 of unsigned LEB128 varints: top - offset, then the open offsets, each as the distance
to the one before (the first to the committed offset). OPEN_MAX of them fit Kafka's 4,096 bytes. <attempts> is written
in the same way, a number for each open offset. It is left out, with the space before it, when all are 0 or it does not
fit.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import Final

from broker.core.varints import pack, unpack

OPEN_MAX: Final = 512
METADATA_BYTES_MAX: Final = 4096  # Kafka's offset.metadata.max.bytes, at its default
_VERSION: Final = "1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cursor:
    """A stream's committed place: everything below `top` that is not in `open` is settled.

    top: every own offset below it was taken.
    open: the own offsets below `top` that are not settled, ascending.
    pending: own messages below `top` that wait, including the open ones.
    oldest_at_ms: since when the oldest of these waits.
    state: `live` or `down`.
    error: the last attempt's error in a word, None if that attempt succeeded.
    attempts: for each open offset, the number of finished attempts; empty when all are 0 or unknown.
    """

    top: int
    open: tuple[int, ...] = ()
    pending: int = 0
    oldest_at_ms: int | None = None
    state: str = "live"
    error: str | None = None
    attempts: tuple[int, ...] = ()

    @property
    def offset(self) -> int:
        """The committed offset: every offset below it is settled."""
        return self.open[0] if self.open else self.top

    def settled(self, offset: int) -> bool:
        """Return whether the message at this offset is settled, if it belongs to this stream."""
        return offset < self.top and offset not in self.open

    def metadata(self) -> str:
        """Encode everything but the offset, in at most METADATA_BYTES_MAX bytes. OPEN_MAX open offsets fit; others are
        left out from the end.
        """
        numbers = [self.top - self.offset]
        before = self.offset
        for offset in self.open:
            numbers.append(offset - before)
            before = offset
        packed = pack(numbers)
        oldest = "-" if self.oldest_at_ms is None else str(self.oldest_at_ms)
        text = f"{_VERSION} {packed} {self.pending} {oldest} {self.state} {self.error or '-'}"
        # Drop open offsets from the end: what is above a lower top is delivered again.
        if len(text) > METADATA_BYTES_MAX and self.open:
            fewer = len(self.open) // 2
            return replace(self, top=self.open[fewer], open=self.open[:fewer], attempts=()).metadata()
        if any(self.attempts):
            longer = f"{text} {pack(self.attempts)}"
            return longer if len(longer) <= METADATA_BYTES_MAX else text
        return text

    @classmethod
    def from_metadata(cls, offset: int, text: str) -> Cursor:
        """Decode a committed cursor. Metadata in another form counts as empty, for example after a tool reset the
        offset.
        """
        try:
            version, packed, pending, oldest, state, error, *more = text.split(" ")
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
            )
        except (ValueError, TypeError):  # TypeError: too many fields
            return cls(top=offset)
        # Refuse metadata that makes no sense: a top that is too high would skip messages.
        ascending = all(low < high for low, high in pairwise((*opened, cursor.top)))
        ours = version == _VERSION and state in ("live", "down") and cursor.pending >= 0
        counted = len(attempts) in (0, len(opened))
        return cursor if ours and ascending and counted and cursor.offset == offset else cls(top=offset)
