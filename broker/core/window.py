"""The progress of one listener in one partition (a stream): which messages are taken, settled, or still to be read.

For: which offsets a stream takes from the reader of new messages (the tail) or from a catch-up reader, and what its
cursor says. Pure. Not for: sending, retrying, memory limits (broker/delivery/dispatch).

The offsets of a partition, for one stream. Only the offsets of its own queue's messages count:

    settled, or open | behind: known, not taken | unknown: must be scanned  | not written yet
    .................|..........................|...........................|
                     top                        scan_from                   the tail

Rule 1: every own offset is settled, open, behind, or at or after scan_from.
Rule 2: every open offset is below every offset that is behind, and those are below scan_from.
Rule 3: a stream with nothing behind and no scan_from is *attached*: the tail tells it every own offset. Other streams
        are told by catch-up readers, which begin at wanted() and never read past the tail.
Rule 4: nothing is taken from the tail while the message of an earlier offset is missing, because messages with the
        same ordering key must not overtake it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Final, Generic, TypeVar

from broker.core.cursor import OPEN_MAX, Cursor

# If a listener can't take new messages of a partition yet, such as while it is paused, remember the first 32 offsets.
# The offsets of further messages are not remembered: all later records must be searched for the listener's messages.
BEHIND_MAX: Final = 32

D = TypeVar("D")


class Window(Generic[D]):
    """The deliveries of one partition's messages to one listener, as a worker knows them.

    `open` maps the offset of a message to its delivery. The item is removed when the delivery is delivered, parked,
    cancelled or moved to the topic `outstanding`. `missing` has the offsets in `open` whose messages are not in memory,
    and must be read again from Kafka. The listener gets no message below the offset `begin`.
    """

    __slots__ = ("begin", "behind", "missing", "open", "scan_from")

    def __init__(self, *, begin: int = 0, scan_from: int | None = None) -> None:
        self.begin = begin
        self.scan_from = scan_from
        self.open: dict[int, D] = {}
        self.behind: deque[int] = deque()
        self.missing: set[int] = set()

    def restore(self, cursor: Cursor, tail: int, opened: Iterable[tuple[int, D]]) -> None:
        """Restore a listener's deliveries in a partition from its committed progress `cursor`. `opened` has the offset
        and the delivery of each message in `cursor.open`. The messages from `cursor.top` on follow. `tail` is the
        offset up to which this worker has read new messages, or the end offset of a replay: if `cursor.top` is below
        `tail`, older messages must be read first.
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
        """Return whether the listener has nothing left to do in this partition: no open delivery, and no unread message
        below `tail` (the offset of the next new message). Return False if the listener starts at an offset above
        `tail`.
        """
        return not self.open and not self.behind and self.scan_from is None and self.begin <= tail

    @property
    def full(self) -> bool:
        """Whether the listener has 512 or more open deliveries in this partition: the metadata of a committed offset
        can't list more than 512.
        """
        return len(self.open) >= OPEN_MAX

    def seen(self, offset: int, delivery: D | None) -> bool:
        """Process a new message of this listener's queue. Return True if the delivery of the message begins now.

        The delivery begins if `delivery` is given, and the listener waits for no older message. Pass None as `delivery`
        if the listener has no room for the message, or is paused. If the delivery does not begin, the message is read
        again later. A message below the listener's start offset is ignored.
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
        """Return the offset from which a catch-up reader (a reader of older messages) must read for this listener.
        Return None if the listener needs no older message.
        """
        if self.missing:
            return min(self.missing)
        return self.behind[0] if self.behind else self.scan_from

    def may_take(self, offset: int) -> bool:
        """Return whether the older message at this offset is the next one for the listener, which gets messages in
        order.
        """
        if self.behind:
            return offset == self.behind[0]
        return self.scan_from is not None and offset >= self.scan_from

    def take(self, offset: int, delivery: D) -> None:
        """Add the delivery of an older message that was read for this listener. Call this only if may_take() has
        returned True for this offset.
        """
        if self.behind:
            self.behind.popleft()
        else:
            self.scan_from = offset + 1
        self.open[offset] = delivery

    def passed(self, start: int, end: int, tail: int) -> None:
        """Record that a catch-up reader (a reader of older messages) has searched the offsets [start, end) for this
        listener's messages.

        The next search begins at `end`. If `end` reaches `tail`, the offset of the next new message, no further search
        is needed. While `behind` has offsets of messages that the listener must get first, this call changes nothing.
        If the message at the first of these offsets is missing in the log, call gone(): until then, may_take() allows
        no later message.
        """
        if self.scan_from is not None and not self.behind and start <= self.scan_from:
            self.scan_from = max(self.scan_from, end)
            if self.scan_from >= tail:
                self.scan_from = None

    def gone(self, offset: int) -> None:
        """Forget the message at this offset, and its open delivery, because the message can't be read."""
        self.missing.discard(offset)
        if self.behind and self.behind[0] == offset:
            self.behind.popleft()
        self.open.pop(offset, None)

    def scan(self, offset: int) -> None:
        """Record that all records from this offset on must be searched for the listener's messages, because this worker
        does not know the offsets of these messages. Do nothing if such a search is recorded already.
        """
        if self.scan_from is None:
            self.scan_from = max(offset, self.begin)

    def within(self, first: int, last: int) -> tuple[list[int], int | None]:
        """Return two values about the offsets from `first` to `last`. The first value lists the offsets whose messages
        must be read again for the listener. The second value is the offset from which all records must be searched for
        the listener's messages; None if no search begins in this range.
        """
        own = sorted(offset for offset in (*self.missing, *self.behind) if first <= offset <= last)
        begin = self.scan_from
        return own, begin if begin is not None and first <= begin <= last else None

    def found(self, offset: int) -> D | None:
        """Record that the message at this offset has been read again. Return the open delivery that needs the message.

        Return None if no delivery needs it.
        """
        if offset not in self.missing:
            return None
        self.missing.remove(offset)
        return self.open[offset]

    def forget(self, offsets: Iterable[int]) -> None:
        """Record that the messages of these open deliveries were removed from memory, and must be read again."""
        self.missing.update(offsets)

    def settle(self, offset: int) -> D | None:
        """Remove and return the open delivery at this offset, because it has ended or is stored in `outstanding`.

        Return None if no delivery is open at this offset, such as after a late answer.
        """
        if self.missing:
            self.missing.discard(offset)
        return self.open.pop(offset, None)

    def top(self, tail: int) -> int:
        """Return the offset below which the listener has taken all its messages. The deliveries of these messages are
        open or settled (delivered, parked, cancelled or moved to the topic `outstanding`). `tail` is the offset of the
        next new message.
        """
        if self.behind:
            return self.behind[0]
        return max(tail, self.begin) if self.scan_from is None else self.scan_from

    def settled(self, offset: int, tail: int) -> bool:
        """Return whether the delivery at this offset is settled: delivered, parked, cancelled or moved to the topic
        `outstanding`. `tail` is the offset up to which new messages were read.
        """
        return offset < self.top(tail) and offset not in self.open

    def opened(self) -> tuple[int, ...]:
        """Return the offsets of the listener's open deliveries, in ascending order."""
        return tuple(sorted(self.open))

    @property
    def first(self) -> int | None:
        """The lowest offset of an open delivery (one that has not ended); None if no delivery is open."""
        return min(self.open, default=None)
