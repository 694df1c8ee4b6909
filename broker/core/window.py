"""One stream's place in its partition: what is taken, what is settled, what waits to be read.

For: which offsets a stream takes, from the tail or from a catch-up reader, and what its cursor may say. Pure; the
deliveries themselves are opaque. Not for: sending, retrying, or when there is room (broker/delivery/dispatch).

A partition's offsets, for one stream (own offsets only; another queue's do not count):

    settled, or open | behind: noted, not taken | not known: must be scanned | not written yet
    .................|..........................|...........................|
                     top                        scan_from                   the tail

Rule 1: an own offset is settled, open, behind, or at or after scan_from. Nothing is ever between the chairs.
Rule 2: every open offset is below every one behind, and those are below scan_from.
Rule 3: a stream with nothing behind and no scan_from is *attached*: the tail tells it of every own offset. Any other
        one is told by catch-up readers, which begin at wanted() and never read past the tail.
Rule 4: nothing is taken from the tail while the message of an earlier offset is missing: what has the same ordering
        key must not overtake it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Final, Generic, TypeVar

from broker.core.cursor import OPEN_MAX, Cursor

# Offsets noted per stream, of which there may be thousands; with more, the tail skips the stream.
BEHIND_MAX: Final = 32

D = TypeVar("D")


class Window(Generic[D]):
    """The place of one stream in its partition: what is taken, settled, and still to be read.

    open: by offset, the deliveries that are taken and not settled.
    begin: own offsets below it do not belong to this stream.
    missing: open offsets whose message must be read again.
    behind, scan_from: see the picture above.
    """

    __slots__ = ("begin", "behind", "missing", "open", "scan_from")

    def __init__(self, *, begin: int = 0, scan_from: int | None = None) -> None:
        self.begin = begin
        self.scan_from = scan_from
        self.open: dict[int, D] = {}
        self.behind: deque[int] = deque()
        self.missing: set[int] = set()

    def restore(self, cursor: Cursor, tail: int, opened: Iterable[tuple[int, D]]) -> None:
        """Restore the window from a cursor. tail: where the tail reader is. opened: a delivery for each open offset."""
        self.open = dict(opened)
        self.missing = set(self.open)
        if cursor.top < tail:
            self.scan_from = cursor.top
        else:
            self.begin = cursor.top

    @property
    def attached(self) -> bool:
        return self.scan_from is None and not self.behind

    def idle(self, tail: int) -> bool:
        """Return whether the tail's position says everything about this stream."""
        return not self.open and not self.behind and self.scan_from is None and self.begin <= tail

    @property
    def full(self) -> bool:
        """Whether the cursor could not name one more open offset."""
        return len(self.open) >= OPEN_MAX

    def seen(self, offset: int, delivery: D | None) -> bool:
        """Note that the tail is at an own offset. Return whether the stream took it.

        delivery: None when there is no room.
        """
        if offset < self.begin or self.scan_from is not None:
            return False
        if delivery is not None and not self.behind and not self.missing:
            self.open[offset] = delivery
            return True
        if len(self.behind) < BEHIND_MAX:
            self.behind.append(offset)
        else:
            self.scan_from = offset
        return False

    def wanted(self) -> int | None:
        """Return the offset from which a catch-up reader should read for this stream, or None when nothing is
        missing.
        """
        if self.missing:
            return min(self.missing)
        return self.behind[0] if self.behind else self.scan_from

    def may_take(self, offset: int) -> bool:
        """Return whether take() may open this own offset if there is room."""
        if self.behind:
            return offset == self.behind[0]
        return self.scan_from is not None and offset >= self.scan_from

    def take(self, offset: int, delivery: D) -> None:
        """Take an own offset that a catch-up reader brings and may_take() allows."""
        if self.behind:
            self.behind.popleft()
        else:
            self.scan_from = offset + 1
        self.open[offset] = delivery

    def passed(self, start: int, end: int, tail: int) -> None:
        """Note that a catch-up reader has brought all own offsets in [start, end), each taken now or before.

        While an offset is still behind, because the log did not hold it, none from scan_from on could be taken.
        """
        if self.scan_from is not None and not self.behind and start <= self.scan_from:
            self.scan_from = max(self.scan_from, end)
            if self.scan_from >= tail:
                self.scan_from = None

    def gone(self, offset: int) -> None:
        """Forget an offset of this stream, because the log no longer holds its message: there is nothing to deliver."""
        self.missing.discard(offset)
        if self.behind and self.behind[0] == offset:
            self.behind.popleft()
        self.open.pop(offset, None)

    def scan(self, offset: int) -> None:
        """Let catch-up readers scan from this offset, where the tail stands, because the tail can't tell which offsets
        are own.
        """
        if self.scan_from is None:
            self.scan_from = max(offset, self.begin)

    def within(self, first: int, last: int) -> tuple[list[int], int | None]:
        """Return the own offsets that are missing in this range, and the offset from which the rest must be scanned
        (None: no scan is needed).
        """
        own = sorted(offset for offset in (*self.missing, *self.behind) if first <= offset <= last)
        begin = self.scan_from
        return own, begin if begin is not None and first <= begin <= last else None

    def found(self, offset: int) -> D | None:
        """Return the open delivery that was missing the message at this own offset, if there is one."""
        if offset not in self.missing:
            return None
        self.missing.remove(offset)
        return self.open[offset]

    def forget(self, offsets: Iterable[int]) -> None:
        """Note that the messages of these open offsets were dropped to save memory and must be read again."""
        self.missing.update(offsets)

    def settle(self, offset: int) -> D | None:
        """Settle a delivery: delivered, parked or cancelled. Return it, or None when it was not open (a late
        answer).
        """
        if self.missing:
            self.missing.discard(offset)
        return self.open.pop(offset, None)

    def top(self, tail: int) -> int:
        """Return the offset below which every own offset was taken. tail: where the tail reader is."""
        if self.behind:
            return self.behind[0]
        return max(tail, self.begin) if self.scan_from is None else self.scan_from

    def settled(self, offset: int, tail: int) -> bool:
        """Return whether this own offset is settled, as the cursor would say. tail: where the tail reader is."""
        return offset < self.top(tail) and offset not in self.open

    def opened(self) -> tuple[int, ...]:
        """List the open offsets, ascending."""
        return tuple(sorted(self.open))

    @property
    def first(self) -> int | None:
        """The lowest open offset."""
        return min(self.open, default=None)
