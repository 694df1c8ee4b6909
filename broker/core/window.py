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

# A listener's window remembers this many offsets of one partition that it could not take yet.
BEHIND_MAX: Final = 32

D = TypeVar("D")


class Window(Generic[D]):
    """The messages of one partition that are taken, settled, or still to be read, for one listener.

    `open` holds the deliveries that are taken but not settled, by offset. `missing` are open offsets whose message must
    be read again. The listener does not get messages below `begin`.
    """

    __slots__ = ("begin", "behind", "missing", "open", "scan_from")

    def __init__(self, *, begin: int = 0, scan_from: int | None = None) -> None:
        self.begin = begin
        self.scan_from = scan_from
        self.open: dict[int, D] = {}
        self.behind: deque[int] = deque()
        self.missing: set[int] = set()

    def restore(self, cursor: Cursor, tail: int, opened: Iterable[tuple[int, D]]) -> None:
        """Restore the window from a stored cursor, with one delivery for each open offset. `tail` is the tail reader's
        offset.
        """
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
        """Return whether nothing is known about this listener and partition except the tail reader's offset."""
        return not self.open and not self.behind and self.scan_from is None and self.begin <= tail

    @property
    def full(self) -> bool:
        """Whether the cursor has no room for another open offset."""
        return len(self.open) >= OPEN_MAX

    def seen(self, offset: int, delivery: D | None) -> bool:
        """Record that the tail reader is at a message of this listener. Return whether its delivery was taken.

        `delivery` is None if there is no room for it.
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
        """Return the offset from which a catch-up reader should read for this listener. Return None if nothing is
        missing.
        """
        if self.missing:
            return min(self.missing)
        return self.behind[0] if self.behind else self.scan_from

    def may_take(self, offset: int) -> bool:
        """Return whether take() may take the message at this offset, if there is room."""
        if self.behind:
            return offset == self.behind[0]
        return self.scan_from is not None and offset >= self.scan_from

    def take(self, offset: int, delivery: D) -> None:
        """Take a message that a catch-up reader has read and that may_take() allows."""
        if self.behind:
            self.behind.popleft()
        else:
            self.scan_from = offset + 1
        self.open[offset] = delivery

    def passed(self, start: int, end: int, tail: int) -> None:
        """Record that a catch-up reader has read all of this listener's messages in [start, end).

        While an earlier offset could not be taken, because the log no longer has its message, no later one is taken.
        """
        if self.scan_from is not None and not self.behind and start <= self.scan_from:
            self.scan_from = max(self.scan_from, end)
            if self.scan_from >= tail:
                self.scan_from = None

    def gone(self, offset: int) -> None:
        """Forget an offset whose message the log no longer has. There is nothing to deliver."""
        self.missing.discard(offset)
        if self.behind and self.behind[0] == offset:
            self.behind.popleft()
        self.open.pop(offset, None)

    def scan(self, offset: int) -> None:
        """Let catch-up readers scan from the tail's offset on, because the tail can't tell which messages the listener
        gets.
        """
        if self.scan_from is None:
            self.scan_from = max(offset, self.begin)

    def within(self, first: int, last: int) -> tuple[list[int], int | None]:
        """Return the listener's offsets in this range that must be read again, and where the scan of the rest begins.

        The second value is None if no scan is needed.
        """
        own = sorted(offset for offset in (*self.missing, *self.behind) if first <= offset <= last)
        begin = self.scan_from
        return own, begin if begin is not None and first <= begin <= last else None

    def found(self, offset: int) -> D | None:
        """Return the open delivery that was waiting for the message at this offset, if there is one."""
        if offset not in self.missing:
            return None
        self.missing.remove(offset)
        return self.open[offset]

    def forget(self, offsets: Iterable[int]) -> None:
        """Record that the messages of these open offsets were dropped to save memory, and must be read again."""
        self.missing.update(offsets)

    def settle(self, offset: int) -> D | None:
        """Settle a delivery, because it was delivered, parked or cancelled.

        Return the delivery, or None if it was not open, such as after a late answer.
        """
        if self.missing:
            self.missing.discard(offset)
        return self.open.pop(offset, None)

    def top(self, tail: int) -> int:
        """Return the offset below which every message of this listener was taken. `tail` is the tail reader's
        offset.
        """
        if self.behind:
            return self.behind[0]
        return max(tail, self.begin) if self.scan_from is None else self.scan_from

    def settled(self, offset: int, tail: int) -> bool:
        """Return whether the message at this offset is settled. `tail` is the tail reader's offset."""
        return offset < self.top(tail) and offset not in self.open

    def opened(self) -> tuple[int, ...]:
        """Return the open offsets in ascending order."""
        return tuple(sorted(self.open))

    @property
    def first(self) -> int | None:
        """Lowest open offset; None if there is none."""
        return min(self.open, default=None)
