"""An assignment: what one worker owns from when the group gives it partitions until it hands them over.

For: one object per generation of the group. It has the partitions, all that is known of their deliveries, the fence
that says whether they are still the worker's, and the loops that serve them. A hand-over drops the object: what was
begun for an earlier assignment holds that one, and reaches no later one.
Not for: joining the group and the order of a take-over (worker.py), one listener's deliveries (dispatcher.py).
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Collection, Coroutine, Iterator, Mapping, Sequence
from typing import Any

from broker.core.events import KeptDelivery
from broker.core.flow import WHOLE
from broker.delivery.changes.honour import Changes
from broker.delivery.checkpoint.checkpoints import Checkpoints
from broker.delivery.checkpoint.metrics import Meters
from broker.delivery.dispatch.dispatcher import Dispatcher
from broker.delivery.dispatch.stream import Delivery
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


class Assignment:
    """One per generation. partitions: empty before the take-over. dispatchers: the worker's; they outlive it.

    share: of what each listener may have from all workers. count: see Worker. run: starts what the worker must not
    outlive, and fails with it. lost: called when Kafka says that the worker is no member any more.
    """

    def __init__(
        self,
        kafka: Ports,
        view: DirectoryView,
        dispatchers: Mapping[str, Dispatcher],
        meters: Meters,
        *,
        tuning: Tuning,
        retain_s: int | None,
        count: Count | None,
        run: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
        lost: Callable[[Assignment], None],
    ) -> None:
        log = kafka.log
        self._tuning = tuning
        self._log = log
        self._membership = kafka.membership
        self._view = view
        self._run = run
        self._lost = lost
        self.loops: set[asyncio.Task[None]] = set()
        self.dispatchers = dispatchers
        self.partitions: dict[int, Partition] = {}
        self.share = WHOLE
        self.leaving: set[asyncio.Task[None]] = set()  # deliveries being written to `outstanding`
        self.fence = fence = Fence(self._ask, tuning)
        self.catch_up = CatchUp(self, self.partitions, tuning)
        self.outstanding = Outstanding(
            log.outstanding,
            log.requests,
            log.messages.name,
            self.partitions,
            dispatchers,
            fence.assure,
            count,
            log.deliveries.name,
            tuning,
        )
        self.changes = Changes(
            log,
            kafka.changes,
            self.outstanding,
            self.partitions,
            dispatchers,
            self.placed,
            run,
            fence.confirm,
            tuning,
        )
        self.checkpoints = Checkpoints(
            kafka.cursors,
            log.deliveries,
            self.outstanding,
            self.partitions,
            dispatchers,
            meters,
            fence.confirm,
            count,
            tuning,
        )
        self.endings = EndedListeners(
            kafka.cursors, view, self.checkpoints, self.outstanding, self.partitions, dispatchers, tuning
        )
        self.replaying = ReplayProgress(log.control.append, self.partitions, dispatchers, self.outstanding, tuning)
        self.retention = Retention(
            log, kafka.cursors, view, self.outstanding, self.partitions, dispatchers, retain_s, fence.assure, tuning
        )
        # What dispatchers ask (stream.Assigned).
        self.known_changes = self.changes.known
        self.touched = self.checkpoints.touched
        self.lagging = self.catch_up.request
        self.overtakes = self.outstanding.overtakes
        self.is_owed = self.outstanding.is_owed
        self.delivered = self.outstanding.delivered
        self.returned = self.outstanding.returned
        self.hold = self.changes.hold

    # Its life

    def start(self) -> None:
        """The partitions are taken over: serve them."""
        loops = (
            self._serve_outstanding,
            self.endings.run,
            self.changes.run,
            self.changes.prune,
            self.replaying.run,
            self.retention.run,
            self.fence.run,
            self.checkpoints.run,
            self.checkpoints.run_idle,
            *self.catch_up.loops(),
        )
        self.loops = {self._run(loop()) for loop in loops}

    async def pause(self) -> None:
        """Have its loops end; what is under way goes on."""
        for task in self.loops:
            task.cancel()
        await asyncio.gather(*self.loops, return_exceptions=True)

    def drop(self) -> None:
        """The partitions are handed over: nothing is done for them from now on."""
        self.fence.end()
        for task in self.loops:
            task.cancel()
        for dispatcher in self.dispatchers.values():
            for stream in list(dispatcher.streams.values()):
                dispatcher.drop(stream)
        self.outstanding.close()

    async def _ask(self) -> None:
        """For the fence. When they are not ours, others deliver what waits here: no more of it is sent."""
        try:
            await self._membership.confirm({number: partition.tail for number, partition in self.partitions.items()})
        except NoMember:
            self._lost(self)
            raise

    def placed(self, number: int, queue_id: str) -> Iterator[Dispatcher]:
        """The dispatchers of a queue whose place on a partition is known."""
        partition, queue = self.partitions[number], self._view.state.queues.get(queue_id)
        for listener_id in () if queue is None else queue.listeners:
            dispatcher = self.dispatchers.get(listener_id)
            if dispatcher is not None and partition.placed(dispatcher):
                yield dispatcher

    async def stretch(
        self, partition: int, offset: int, bytes_max: int, queue_ids: Collection[str]
    ) -> tuple[Sequence[Message], int]:
        """For the catch-up readers (catch_up.Source)."""
        requests, name, worth = self._log.requests, self._log.messages.name, may_be_in(queue_ids)
        try:
            stretch = await requests.read(name, partition, offset, bytes_max=bytes_max, worth=worth)
        except OffsetTooOld:
            begin = (await requests.offsets(name, {partition: EARLIEST}))[partition]
            report_messages_gone(partition, offset, begin)
            at = max(begin, offset)
            stretch = await requests.read(name, partition, at, bytes_max=bytes_max, worth=worth)
        found, rest = list[Message](), messages(stretch.records, queue_ids)
        while some := list(itertools.islice(rest, self._tuning.messages_at_once)):
            found += some
            await asyncio.sleep(0)
        await self.fence.assure()
        return found, stretch.next_offset

    async def park_damaged(self, partition: int, ranges: Sequence[tuple[Dispatcher, int, int]]) -> bool:
        """For the catch-up readers (catch_up.Source)."""
        return await self.outstanding.park_damaged(
            partition, [(one.listener, first, last) for one, first, last in ranges]
        )

    # Deliveries that leave their window

    def put_aside(self, delivery: Delivery, status: int | None, error: str | None, due_ms: int | None) -> None:
        """Write the delivery to `outstanding`, to be tried at a time (ms), or parked when that is None."""
        if delivery.message is None:
            return
        event = self.outstanding.expect(delivery, delivery.message, status, error, due_ms)
        task = self._run(self._put_aside_now(delivery, event))
        self.leaving.add(task)
        task.add_done_callback(self.leaving.discard)

    async def _put_aside_now(self, delivery: Delivery, event: KeptDelivery) -> None:
        """Write the delivery to `outstanding`, and only then let the cursor pass it."""
        dispatcher = delivery.stream.dispatcher
        if self.changes.deleted(delivery):
            self.outstanding.expect_no_more(delivery)
            dispatcher.cancel(delivery)
        elif await self.outstanding.put_aside(delivery, event):
            dispatcher.settle(delivery)
            if self.changes.deleted(delivery):  # meanwhile
                self.outstanding.cancel(event.partition, event.listener_id, event.message_id)

    async def _serve_outstanding(self) -> None:
        while True:
            if not await self.outstanding.serve_due():
                await self.outstanding.pause(self._tuning.serve_s)
