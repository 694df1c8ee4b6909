"""The states of many messages' deliveries at once, read from cursors and the topic `outstanding`.

For: ports.QueueStates, which lists of messages use. Not for: the attempts of one message (deliveries.py).

A delivery is settled if its offset is below the listener's cursor and not open. A settled delivery is delivered, unless
the topic `outstanding` has it. A delivery that is not settled is retrying if the cursor counts attempts for it, and
else pending. The topic `deliveries` is not read. What has happened since the listener's last checkpoint is missing.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from typing import Final, NamedTuple

from broker.core.claims import CLOCKS_MS
from broker.core.entities import Listener
from broker.core.ids import partition_of
from broker.kafka.outstanding import KafkaOutstanding
from broker.ports import EARLIEST, Cursors, DeliverySummary, OutstandingDelivery, PlacedMessage

_PENDING: Final = DeliverySummary("pending", 0)
_DELIVERED: Final = DeliverySummary("delivered")
_UNKNOWN: Final = DeliverySummary("unknown")
# One call makes at most 32 reads of 1 MiB of the topic `outstanding`. Each read takes about 10 ms.
# If a partition of `outstanding` was not read completely, a delivery that may be in it is shown as `unknown`.
_READS_MAX: Final = 32

Rows = Mapping[tuple[str, str], OutstandingDelivery]


class _Position(NamedTuple):
    """A listener's position in a partition. The listener receives messages from the offset `start` on. The deliveries
    of messages before the offset `top` are settled: delivered, parked, cancelled or kept in `outstanding`. The
    exceptions are in `open`: it maps the offset of each message before `top` whose delivery is not settled to the
    number of the delivery's finished attempts.
    """

    listener_id: str
    start: int
    top: int
    open: Mapping[int, int]


class KafkaQueueStates:
    """The reader of the states of a queue's deliveries, for one API request. For each message and each listener, it
    reads the state of the delivery from Kafka.

    A call makes at most `reads_max` reads of 1 MiB of the topic `outstanding`, in all partitions together.
    """

    def __init__(
        self,
        cursors: Cursors,
        outstanding: KafkaOutstanding,
        listeners: Sequence[Listener],
        partitions: int,
        *,
        reads_max: int = _READS_MAX,
    ) -> None:
        self._cursors = cursors
        self._outstanding = outstanding
        self._listeners = listeners
        self._partitions = partitions
        self._reads_max = reads_max
        self._loaded: Mapping[int, Sequence[_Position]] | None = None
        # The deliveries that narrowed() has read from `outstanding`, and the partitions that it has read only partly.
        # None: narrowed() has read nothing yet.
        self._all: tuple[Rows, set[int]] | None = None
        self._candidates: dict[str, Mapping[int, _Candidates]] = {}

    async def summaries(self, messages: Sequence[PlacedMessage]) -> Sequence[Mapping[str, DeliverySummary]]:
        """See ports.QueueStates."""
        positions = await self._positions()
        found: list[dict[str, DeliverySummary]] = []
        settled: list[PlacedMessage] = []
        for message in messages:
            states: dict[str, DeliverySummary] = {}
            kept = False
            offset = message.offset
            for listener_id, start, top, opened in positions[message.partition]:
                if offset < start:
                    continue
                if offset < top and offset not in opened:
                    states[listener_id], kept = _DELIVERED, True
                else:
                    attempts = opened.get(offset, 0)
                    states[listener_id] = DeliverySummary("retrying", attempts) if attempts else _PENDING
            found.append(states)
            if kept:
                settled.append(message)
        rows, incomplete = await self._kept(settled)
        known = {message_id for _, message_id in rows}
        for message, states in zip(messages, found, strict=True):
            if message.message_id not in known and message.partition not in incomplete:
                continue
            for listener_id, summary in states.items():
                if summary is _DELIVERED:
                    row = rows.get((listener_id, message.message_id))
                    if row is not None:
                        states[listener_id] = DeliverySummary(row.state, row.attempts, row.next_attempt_at_ms)
                    elif message.partition in incomplete:
                        states[listener_id] = _UNKNOWN
        return found

    async def narrowed(
        self, state: str, begin: Sequence[int], end: Sequence[int]
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """See ports.QueueStates."""
        # Nearly every message was delivered, so a search for delivered messages must look at all offsets.
        if state == "delivered":
            return tuple(begin), tuple(end)
        if self._all is None:
            # Read the committed offsets before `outstanding`.
            # If `outstanding` were read first, a delivery that moves to it between the two reads would be missed.
            await self._positions()
            everywhere = dict.fromkeys(range(self._partitions), EARLIEST)
            self._all = await self._outstanding.of_listeners(self._listeners, everywhere, reads_max=self._reads_max)
        if state not in self._candidates:
            self._candidates[state] = _candidates(state, await self._positions(), *self._all)
        candidates = self._candidates[state]
        both = [
            candidates[number].narrowed(first, last) if number in candidates else (first, last)
            for number, (first, last) in enumerate(zip(begin, end, strict=True))
        ]
        return tuple(first for first, _ in both), tuple(last for _, last in both)

    async def _positions(self) -> Mapping[int, Sequence[_Position]]:
        if self._loaded is None:
            cursors = await self._cursors.load([one.id for one in self._listeners], range(self._partitions))
            loaded: dict[int, list[_Position]] = defaultdict(list)
            for listener in self._listeners:
                for partition, start in enumerate(listener.start_offsets):
                    cursor = listener.stands_at(cursors[listener.id], partition)
                    opened = dict(zip_longest(cursor.open, cursor.attempts, fillvalue=0))
                    loaded[partition].append(_Position(listener.id, start, cursor.top, opened))
            self._loaded = loaded
        return self._loaded

    async def _kept(self, settled: Sequence[PlacedMessage]) -> tuple[Rows, set[int]]:
        """Return the deliveries of these messages in the topic `outstanding`, and the partitions that could not be read
        completely. If narrowed() has read the topic before, return what it has read: the deliveries of all messages.
        """
        if self._all is not None:
            return self._all
        since_ms: dict[int, int] = {}
        for message in settled:
            at_ms = message.at_ms - CLOCKS_MS
            since_ms[message.partition] = min(at_ms, since_ms.get(message.partition, at_ms))
        message_ids = {message.message_id for message in settled}
        return await self._outstanding.of_listeners(
            self._listeners, since_ms, message_ids=message_ids, reads_max=self._reads_max
        )


class _Candidates(NamedTuple):
    """The offsets of a partition that may have messages with a delivery in a certain state: the offsets in `offsets`
    (ascending), and all offsets from `tail` on. If `tail` is None, only the offsets in `offsets`.
    """

    offsets: Sequence[int]
    tail: int | None

    def narrowed(self, begin: int, end: int) -> tuple[int, int]:
        first = self.offsets[0] if self.offsets else self.tail
        if first is not None and self.tail is not None:
            first = min(first, self.tail)
        if first is None or first >= end:
            return begin, begin
        if self.tail is None or end <= self.tail:
            below = bisect_left(self.offsets, end)
            end = self.offsets[below - 1] + 1 if below else begin
        begin = max(begin, first)
        return begin, max(begin, end)


def _candidates(
    state: str, positions: Mapping[int, Sequence[_Position]], rows: Rows, incomplete: Iterable[int]
) -> Mapping[int, _Candidates]:
    """Return, by partition, the offsets of messages that may have a delivery in this state. Leave out the partitions in
    `incomplete`. They could not be read completely, so each message in them may have such a delivery.
    """
    pending = state in ("pending", "scheduled")  # The delivery of a scheduled message is pending until `deliver_at`.
    offsets: dict[int, set[int]] = defaultdict(set)
    for row in rows.values():
        partition = partition_of(row.message_id)
        if partition is not None and row.state == ("pending" if pending else state):
            offsets[partition].add(row.offset)
    tails: dict[int, int | None] = {}
    for partition, there in positions.items():
        tails[partition] = min((one.top for one in there), default=None) if pending else None
        if state != "parked":
            offsets[partition].update(
                offset for one in there for offset, attempts in one.open.items() if bool(attempts) != pending
            )
    skipped = set(incomplete)
    return {
        partition: _Candidates(sorted(offsets[partition]), tail)
        for partition, tail in tails.items()
        if partition not in skipped
    }
