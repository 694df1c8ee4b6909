"""An assignment: the partitions that one worker owns in one generation of the consumer group, until the next rebalance.

For: one object per generation. It holds the partitions, the state of their deliveries, the fence that asks Kafka
whether the worker still owns them, and the loops that serve them. A rebalance drops the object, so that work begun for
an earlier generation can't reach a later one.
Not for: joining the group and the order of a take-over (worker.py), one listener's deliveries (dispatcher.py).
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Collection, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from broker.core.events import KeptDelivery
from broker.core.flow import WHOLE
from broker.delivery.changes.honour import Changes
from broker.delivery.checkpoint.checkpoints import Checkpoints
from broker.delivery.checkpoint.metrics import Metrics
from broker.delivery.dispatch.dispatcher import Dispatcher
from broker.delivery.dispatch.stream import Delivery, Dispatching
from broker.delivery.fence import Fence
from broker.delivery.housekeeping.ended_listeners import EndedListeners
from broker.delivery.housekeeping.replay_progress import ReplayProgress
from broker.delivery.housekeeping.retention import Retention
from broker.delivery.outstanding.schedule import Outstanding
from broker.delivery.ports import Ports
from broker.delivery.reading.catch_up import CatchUp
from broker.delivery.reading.message import Message, may_be_in, messages
from broker.delivery.reading.partition import Partition, report_messages_gone
from broker.delivery.tuning import Tuning
from broker.ports import EARLIEST, Count, DirectoryView, NoMember, OffsetTooOld


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """The objects and settings that a worker gives to each new assignment. An assignment is what the worker owns
    between two rebalances: partitions, and the deliveries of their messages.
    """

    kafka: Ports
    view: DirectoryView
    dispatchers: Mapping[str, Dispatcher]  # by listener id; kept across rebalances
    metrics: Metrics
    tuning: Tuning
    retain_s: int | None
    count: Count | None  # adds to an organization's stored bytes
    # The function `run` starts a background task. If the task fails, the worker ends.
    run: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]
    # An assignment calls the function `lost` if Kafka answers that the worker is no longer in the consumer group.
    lost: Callable[[Assignment], None]


class Assignment:
    """The partitions that a worker owns between two rebalances, the state of their deliveries, and the loops that serve
    them.
    """

    def __init__(self, shared: Shared) -> None:
        kafka, dispatchers, count, tuning = shared.kafka, shared.dispatchers, shared.count, shared.tuning
        log, cursors = kafka.log, kafka.cursors
        self._shared = shared
        self.dispatchers = dispatchers
        self.partitions: dict[int, Partition] = {}  # empty until they are taken over
        self._dropped = False  # True after this worker has handed the partitions over or lost them
        self.share = WHOLE  # its part of listeners' limits
        self.loops: set[asyncio.Task[None]] = set()
        self.leaving: set[asyncio.Task[None]] = set()  # writes to `outstanding` in flight
        self.fence = fence = Fence(self._ask, tuning)
        self.catch_up = CatchUp(self, self.partitions, tuning)
        topics = log.messages.name, log.deliveries.name
        may_write = fence.assure, count, topics[1], tuning
        self.outstanding = outstanding = Outstanding(
            log.outstanding, log.requests, topics[0], self.partitions, dispatchers, *may_write
        )
        owned = outstanding, self.partitions, dispatchers
        self.changes = Changes(log, kafka.changes, *owned, self.dispatchers_of, shared.run, fence.confirm, tuning)
        self.checkpoints = Checkpoints(cursors, log.deliveries, *owned, shared.metrics, fence.confirm, count, tuning)
        self.ended_listeners = EndedListeners(cursors, shared.view, self.checkpoints, *owned, tuning)
        self.replay_progress = ReplayProgress(log.control.append, self.partitions, dispatchers, outstanding, tuning)
        self.retention = Retention(log, cursors, shared.view, *owned, shared.retain_s, fence.assure, tuning)
        # Dispatchers use the attributes below, which the typing.Protocol `Assigned` in dispatch/stream.py declares.
        self.known_changes = self.changes.known
        self.touched = self.checkpoints.touched
        self.changed = self.checkpoints.changed
        self.lagging = self.catch_up.request
        self.overtakes = outstanding.overtakes
        self.is_outstanding = outstanding.is_outstanding
        self.delivered = outstanding.delivered
        self.returned = outstanding.returned
        self.hold = self.changes.hold
        self.held = self.checkpoints.held.partitions

    # Start and end

    def start(self) -> None:
        """Start the loops that serve the assigned partitions. Call this during a take-over, after the deliveries to
        each listener were set up from the listener's committed offsets.
        """
        loops = (
            self._serve_outstanding,
            self.ended_listeners.run,
            self.changes.run,
            self.changes.prune,
            self.replay_progress.run,
            self.retention.run,
            self.fence.run,
            self.checkpoints.run,
            self.checkpoints.run_idle,
            *self.catch_up.loops(),
        )
        self.loops = {self._shared.run(loop()) for loop in loops}

    async def pause(self) -> None:
        """Cancel the loops that serve the assigned partitions, and wait until the loops have ended. Running attempts
        continue, and new attempts can still begin.
        """
        for task in self.loops:
            task.cancel()
        await asyncio.gather(*self.loops, return_exceptions=True)

    def drop(self) -> None:
        """Stop the loops and drop all deliveries of the partitions, because this worker has handed them over or lost
        them. Requests in flight are not aborted, but their answers no longer change a delivery.
        """
        self._dropped = True
        self.fence.end()
        for task in self.loops:
            task.cancel()
        for dispatcher in self.dispatchers.values():
            for stream in list(dispatcher.streams.values()):
                dispatcher.drop(stream)
        self.outstanding.close()

    async def _ask(self) -> None:
        """Ask Kafka whether the worker still owns its partitions. If the worker has lost its partitions, let no more
        attempts begin, and raise NoMember. Raises another LogUnavailable if Kafka does not answer, or if the worker has
        no partitions.
        """
        try:
            await self._shared.kafka.membership.confirm(
                {number: partition.tail for number, partition in self.partitions.items()}, self.outstanding.notes()
            )
        except NoMember:
            self._shared.lost(self)
            raise

    def delivers(self, number: int, dispatcher: Dispatching) -> bool:
        """Return True if this assignment has the partition, and has loaded the listener's committed offset on this
        partition. Then this worker delivers the partition's messages to the listener, unless the listener is paused or
        down.
        """
        partition = self.partitions.get(number)
        return not self._dropped and partition is not None and partition.placed(dispatcher)

    def dispatchers_of(self, number: int, queue_id: str) -> Iterator[Dispatcher]:
        """Yield the dispatchers of a queue's listeners. Leave out replays, and listeners whose committed offset on this
        partition is not loaded yet.
        """
        partition, queue = self.partitions[number], self._shared.view.state.queues.get(queue_id)
        for listener_id in () if queue is None else queue.listeners:
            dispatcher = self.dispatchers.get(listener_id)
            if dispatcher is not None and partition.placed(dispatcher):
                yield dispatcher

    async def fetch(
        self, partition: int, offset: int, bytes_max: int, queue_ids: Collection[str]
    ) -> tuple[Sequence[Message], int]:
        """Read messages of these queues from Kafka, in one fetch of about `bytes_max` bytes that begins at `offset`.
        Return the messages (possibly none), and the offset at which the next fetch begins. If Kafka has deleted the
        record at `offset`, this fetch begins at the partition's first record.

        Raises LogDamaged if the first records are unreadable. Raises LogUnavailable if Kafka does not answer, or if the
        worker has lost the partition.
        """
        log = self._shared.kafka.log
        requests, name, worth = log.requests, log.messages.name, may_be_in(queue_ids)
        try:
            fetched = await requests.read(name, partition, offset, bytes_max=bytes_max, worth=worth)
        except OffsetTooOld:
            begin = (await requests.offsets(name, {partition: EARLIEST}))[partition]
            report_messages_gone(partition, offset, begin)
            at = max(begin, offset)
            fetched = await requests.read(name, partition, at, bytes_max=bytes_max, worth=worth)
        found, rest = list[Message](), messages(fetched.records, queue_ids)
        while some := list(itertools.islice(rest, self._shared.tuning.messages_at_once)):
            found += some
            await asyncio.sleep(0)
        await self.fence.assure()
        return found, fetched.next_offset

    async def park_damaged(self, partition: int, ranges: Sequence[tuple[Dispatching, int, int]]) -> bool:
        """Park the deliveries whose messages can't be read from Kafka: keep them without further attempts. Each item of
        `ranges` has a listener's dispatcher, and the first and the last offset of an unreadable range.

        Return False if this worker has not taken the partition over. Raises LogUnavailable if Kafka does not answer, or
        if the worker has lost the partition.
        """
        return await self.outstanding.park_damaged(
            partition, [(one.listener, first, last) for one, first, last in ranges]
        )

    # Deliveries that leave their window

    def set_aside(self, delivery: Delivery, status: int | None, error: str | None, due_ms: int | None) -> None:
        """Start to write the delivery to the topic `outstanding`, in a background task. Its next attempt is due at
        `due_ms` (ms since the epoch). If `due_ms` is None, the delivery is parked. Do nothing if its message is not in
        memory.
        """
        if delivery.message is None:
            return
        event = self.outstanding.expect(delivery, delivery.message, status, error, due_ms)
        task = self._shared.run(self._set_aside_now(delivery, event))
        self.leaving.add(task)
        task.add_done_callback(self.leaving.discard)

    async def _set_aside_now(self, delivery: Delivery, event: KeptDelivery) -> None:
        """Write the delivery to the topic `outstanding`. After the write, the message no longer holds back the
        listener's committed offset. If the message was deleted, cancel the delivery instead. If the delivery was
        dropped before the write, do nothing.
        """
        dispatcher = delivery.stream.dispatcher
        if self.known_changes and self.changes.deleted(delivery):
            self.outstanding.expect_no_more(delivery)
            dispatcher.cancel(delivery)
        elif await self.outstanding.set_aside(delivery, event):
            dispatcher.settle(delivery)
            if self.known_changes and self.changes.deleted(delivery):  # deleted while the delivery was written
                self.outstanding.cancel(event.partition, event.listener_id, event.message_id)

    async def _serve_outstanding(self) -> None:
        while True:
            if not await self.outstanding.serve_due():
                await self.outstanding.pause()
