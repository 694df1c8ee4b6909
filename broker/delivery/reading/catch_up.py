"""Catch-up readers: read older messages for streams that lag. One read can serve several streams.

For: which stream is served next, how much is read, and what happens to unreadable records. Not for: which offsets a
stream takes (broker/core/window.py), the Kafka requests themselves (broker/kafka).
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import OrderedDict
from collections.abc import Callable, Collection, Coroutine, Iterable, Sequence
from functools import partial
from typing import Any, Final, Protocol

from broker.delivery.dispatch.stream import Dispatching, Stream
from broker.delivery.reading.message import Message
from broker.delivery.reading.partition import Partition, note_caught_up
from broker.delivery.tuning import TUNED, Tuning
from broker.errors import LogDamaged, LogUnavailable

log = logging.getLogger(__name__)

_RECORD_BYTES_MIN: Final = 128  # A message's record has more than 128 bytes.


class Source(Protocol):
    """The source of older messages for listeners that lag. It can also park deliveries whose messages can't be read:
    the deliveries are kept without further attempts.
    """

    async def fetch(
        self, partition: int, offset: int, bytes_max: int, queue_ids: Collection[str]
    ) -> tuple[Sequence[Message], int]:
        """Read the messages of these queues from `offset` on, with one fetch of about `bytes_max` bytes. If Kafka has
        already deleted the record at `offset`, begin at the partition's first record.

        Return the messages (perhaps none), and the offset at which the next read must begin.

        Raises LogDamaged if the first records are unreadable. Raises LogUnavailable if Kafka does not answer, or if the
        worker has lost the partition.
        """

    async def park_damaged(self, partition: int, ranges: Sequence[tuple[Dispatching, int, int]]) -> bool:
        """Park deliveries whose messages can't be read: keep them without further attempts. Each item of `ranges` has a
        listener's dispatcher, and the first and the last offset of an unreadable range.

        Return False if this worker has not taken the partition over. Raises LogUnavailable if Kafka does not answer, or
        if the worker has lost the partition.
        """


def _adapt(stream: Stream, start: int, end: int, tuning: Tuning) -> None:
    """Set the size of the listener's next read of older messages. If the listener took all messages of this read, and
    still lags, double the size. If the listener took less than half of them, halve the size. Keep the size between
    `fetch_bytes_min` and `fetch_bytes_max`.
    """
    wanted = stream.window.wanted()
    if wanted is not None and wanted >= end:
        stream.fetch_bytes = min(2 * stream.fetch_bytes, tuning.fetch_bytes_max)
    elif wanted is not None and 2 * wanted < start + end:
        stream.fetch_bytes = max(stream.fetch_bytes // 2, tuning.fetch_bytes_min)


class CatchUpQueue:
    """Two queues of delivery streams that wait for older messages. A delivery stream is the delivery of one partition's
    messages to one listener. One queue has the streams to fast listeners; the other has all other streams.
    """

    def __init__(self) -> None:
        # The keys are the streams, in the order in which they joined; all values are None.
        self._waiting: tuple[OrderedDict[Stream, None], OrderedDict[Stream, None]] = (OrderedDict(), OrderedDict())
        self._some = asyncio.Event()

    def __len__(self) -> int:
        return sum(map(len, self._waiting))

    def join(self, stream: Stream) -> None:
        first, others = self._waiting
        (others if stream.dispatcher.limits.low_priority else first)[stream] = None
        self._some.set()

    def leave(self, stream: Stream) -> None:
        """Remove a delivery stream, because it no longer needs a read. Do nothing if it is in neither queue."""
        for waiting in self._waiting:
            waiting.pop(stream, None)

    async def next(self, *, first: bool) -> Stream:
        """Wait until a queue has a delivery stream (one partition's messages to one listener). Remove the stream from
        its queue, and return it.

        If `first` is true, prefer the streams to fast listeners, else prefer all other streams. Of the streams in one
        queue, take the stream that has waited longest.
        """
        while not len(self):
            self._some.clear()
            await self._some.wait()
        wanted, instead = self._waiting if first else reversed(self._waiting)
        return (wanted or instead).popitem(last=False)[0]


class CatchUp:
    """The catch-up readers of a worker, which read older messages for listeners that lag. One read can serve several
    listeners that need the same messages, or messages close to them.
    """

    def __init__(self, source: Source, partitions: dict[int, Partition], tuning: Tuning = TUNED) -> None:
        self._tuning = tuning
        self._source = source
        self._partitions = partitions
        self._queue = CatchUpQueue()
        self._lagging: dict[int, set[Stream]] = {}

    def loops(self) -> list[Callable[[], Coroutine[Any, Any, None]]]:
        """Return the loops of the two catch-up readers (readers of older messages), each to be run as a task."""
        # The first catch-up reader always prefers fast listeners.
        # The second catch-up reader alternately prefers fast listeners and all others, so that all are served.
        turns = (itertools.repeat(True), itertools.cycle((True, False)))
        return [partial(self._run, first) for first in turns]

    def request(self, stream: Stream) -> None:
        """Get the older messages of a partition that a lagging listener needs. If the worker has these messages in
        memory, hand them to the listener's dispatcher at once. Otherwise, queue a request, and a catch-up reader will
        read the messages from Kafka.
        """
        partition = self._partitions.get(stream.partition)
        if partition is None:
            return
        if partition.from_ring(stream):
            return
        if not stream.requested:
            stream.requested = True
            self._lagging.setdefault(stream.partition, set()).add(stream)
            self._queue.join(stream)

    async def _run(self, turns: Iterable[bool]) -> None:
        for first in turns:
            await self.serve_next(first=first)

    @property
    def waiting(self) -> int:
        """The number of queued requests for older messages. Each request is for one listener in one partition."""
        return len(self._queue)

    async def serve_next(self, *, first: bool) -> None:
        """Wait for a listener that lags, and read older messages for it. If `first` is true, prefer fast listeners,
        else prefer slow and failing listeners.
        """
        stream = await self._queue.next(first=first)
        try:
            await self._serve(stream)
        except LogUnavailable as error:
            log.warning("catch_up.waits partition=%d error=%s", stream.partition, error)
            await asyncio.sleep(self._tuning.stuck_pause_s)
            if stream.requested:  # another listener's read may have served this request meanwhile
                self._queue.join(stream)
        except Exception:
            log.exception("catch_up.failed partition=%d", stream.partition)
            self._done(stream)

    async def _serve(self, stream: Stream) -> None:
        partition = self._partitions.get(stream.partition)
        start = stream.window.wanted()
        if partition is None or start is None or not stream.current:
            self._done(stream)
            return
        queue_ids = self._queues_near(stream, start)
        try:
            messages, next_offset = await self._source.fetch(stream.partition, start, stream.fetch_bytes, queue_ids)
        except LogDamaged as damage:
            await self._pass_damage(partition, damage)
            if stream.requested:
                asyncio.get_running_loop().call_later(self._tuning.stuck_pause_s, self._done, stream)
            return
        end = min(next_offset, partition.tail)
        was_served = False
        for served, other in enumerate(list(self._lagging.get(stream.partition, ())), 1):
            if served % self._tuning.streams_at_once == 0:
                await asyncio.sleep(0)
            if not other.requested:
                continue  # No read is needed: for example, another listener's read has served this request.
            wanted = other.window.wanted()
            if other.dispatcher.listener.queue_id not in queue_ids:
                # This read did not return messages of this listener's queue, so this listener needs another read.
                continue
            if wanted is None or start <= wanted < end or not other.current:
                self._done(other)
                # Remember that `stream` was served, because refill() may immediately set `stream.requested` again.
                was_served = was_served or other is stream
                if wanted is not None and other.current:
                    partition.bring(other, messages, start, end)
                    self.report_gone(other, wanted, messages, end)
                    if other is stream:
                        _adapt(stream, start, end, self._tuning)
                    other.dispatcher.refill()
        # If this read did not serve the stream for which it was made, pause before the next read for this stream.
        if stream.requested and not was_served:
            asyncio.get_running_loop().call_later(self._tuning.stuck_pause_s, self._done, stream)

    async def _pass_damage(self, partition: Partition, damage: LogDamaged) -> None:
        """Park the deliveries of the damaged records, for each listener that waits for one of these records. The
        listener then continues after the damaged records. Raises LogUnavailable if Kafka does not answer, or if the
        worker has lost the partition.
        """
        found = []
        for stream in list(self._lagging.get(partition.number, ())):
            own, begin = stream.window.within(damage.first, damage.last)
            if stream.current and (own or begin is not None):
                found.append((stream, own, begin))
        last = min(damage.last, partition.tail - 1)
        ranges = [(stream.dispatcher, offset, offset) for stream, own, _ in found for offset in own]
        ranges += [
            (stream.dispatcher, begin, last) for stream, _, begin in found if begin is not None and begin <= last
        ]
        if not await self._source.park_damaged(partition.number, ranges):
            return
        for number, (stream, own, begin) in enumerate(found, 1):
            if stream.current:
                self._done(stream)
                partition.pass_damage(stream, own, begin, damage.last)
                stream.dispatcher.refill()
            if number % self._tuning.streams_at_once == 0:
                await asyncio.sleep(0)

    def _queues_near(self, stream: Stream, start: int) -> set[str]:
        """Return the ids of the queues whose messages the next read of older messages should return. One of them is the
        queue of this stream's listener. The others are the queues of all lagging listeners whose next needed offset
        this read can reach.
        """
        far = start + stream.fetch_bytes // _RECORD_BYTES_MIN
        queue_ids = {stream.dispatcher.listener.queue_id}
        for other in self._lagging.get(stream.partition, ()):
            wanted = other.window.wanted()
            if wanted is not None and start <= wanted < far:
                queue_ids.add(other.dispatcher.listener.queue_id)
        return queue_ids

    def _done(self, stream: Stream) -> None:
        stream.requested = False
        self._queue.leave(stream)
        self._lagging.get(stream.partition, set()).discard(stream)

    @staticmethod
    def report_gone(stream: Stream, wanted: int, messages: Sequence[Message], end: int) -> None:
        """Log an error if a message that this listener still needs was deleted from Kafka, and continue without the
        message.
        """
        window = stream.window
        noted = wanted in window.missing or (bool(window.behind) and window.behind[0] == wanted)
        if noted and window.wanted() == wanted and wanted < end and all(m.offset != wanted for m in messages):
            log.error(
                "message.gone listener=%s partition=%d offset=%d",
                stream.dispatcher.listener.id,
                stream.partition,
                wanted,
            )
            window.gone(wanted)
            note_caught_up(stream)
            stream.assignment.touched(stream)
