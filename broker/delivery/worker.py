"""The worker: owns a share of the partitions and delivers their messages to every listener.

For: ownership, dispatchers following the directory, the tail loop, and an orderly end.
Not for: one listener's deliveries (dispatcher.py), reading (catch_up.py), checkpoints.py, wiring a process (cli/).
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections.abc import Callable, Collection, Coroutine, Iterable, Iterator, Mapping
from random import random
from typing import Any, Protocol

from broker.core.cursor import Cursor
from broker.core.directory import Directory, Listener
from broker.core.events import (
    ControlEvent,
    Event,
    Fields,
    ListenerDeleted,
    ListenerPaused,
    LogMended,
    QueueDeleted,
    ReplayPaused,
)
from broker.core.flow import Gate
from broker.core.window import Window
from broker.delivery.assignment import Assignment
from broker.delivery.checkpoint.metrics import Condition, Meters, condition
from broker.delivery.dispatch.connections import Network
from broker.delivery.dispatch.dispatcher import Dispatcher
from broker.delivery.dispatch.fairness import Processor, Sockets, let_begin, share_out
from broker.delivery.dispatch.limits import FAILS
from broker.delivery.dispatch.liveness import Liveness
from broker.delivery.dispatch.stream import Delivery, Stream, now_ms
from broker.delivery.ports import Ports
from broker.delivery.reading.message import messages
from broker.delivery.reading.partition import Partition, report_messages_gone
from broker.delivery.tuning import TUNED, Tuning
from broker.errors import BrokerError, LogDamaged, LogUnavailable
from broker.outbound.addresses import Resolver
from broker.outbound.connection import tls_context
from broker.outbound.request import Opened, open_listener, same_seals
from broker.ports import EARLIEST, Count, DirectoryView, Record
from broker.sealing import Sealer
from broker.settings import Settings

log = logging.getLogger(__name__)


class DirectoryFeed(Protocol):
    """The directory, and a call after each change."""

    @property
    def directory(self) -> DirectoryView: ...

    def on_change(self, callback: Callable[[Event], None]) -> None: ...


class Worker:
    """One per process. kafka: its ports. projections: the directory as folded here, caught up before start().

    count: called with the organization and the size of what is written for it (broker/volume.py). network: None for
    the real one. dice: draws the jitter of retries and probes; it guards nothing.
    """

    def __init__(
        self,
        settings: Settings,
        kafka: Ports,
        projections: DirectoryFeed,
        sealer: Sealer,
        count: Count | None = None,
        *,
        tuning: Tuning = TUNED,
        network: Network | None = None,
        dice: Callable[[], float] = random,
    ) -> None:
        self._dice = dice
        self.tuning = tuning
        self._settings = settings
        self._kafka = kafka
        self._sealer = sealer
        self._projections = projections
        self._cursors = kafka.cursors
        self._tail = kafka.membership
        self._dispatchers: dict[str, Dispatcher] = {}
        self._replays: set[str] = set()  # ids of the dispatchers that are replays
        self._active: dict[Dispatcher, None] = {}  # who asked for ticks, the longest first
        self.meters = Meters()
        self._count = count
        self._changed: dict[str, None] = {}  # ids of listeners that the directory has changed
        self._unusable: set[str] = set()  # ids of those whose secret can't be opened
        self._change = asyncio.Event()
        self._broken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._tasks: list[asyncio.Task[None]] = []
        self._background: set[asyncio.Task[None]] = set()
        self._loaded = asyncio.Event()
        self._sending = False  # the partitions are ours, and nobody else waits for them
        self._network = network = network or Network(
            Resolver(settings.allow_networks), Sockets(tuning=tuning), tls_context()
        )
        self._liveness = Liveness(network.resolver, network.tls, dice, tuning)
        self.assignment = self._new_assignment()  # of no partition, until there is one

    def _new_assignment(self) -> Assignment:
        return Assignment(
            self._kafka,
            self._projections.directory,
            self._dispatchers,
            self.meters,
            tuning=self.tuning,
            retain_s=self._settings.retain_messages_s,
            count=self._count,
            run=self._run,
            lost=self._no_member,
        )

    async def start(self) -> None:
        """Join the group, load the cursors of what it was given, begin to deliver (LogUnavailable)."""
        self._projections.on_change(self._note_change)
        await self._kafka.changes.start()
        await self._tail.start(self._gained, self._given_up)
        loops = (self._follow_directory, self._follow_tail, self._ticks)
        self._tasks = [asyncio.create_task(loop(), name=loop.__name__) for loop in loops]
        loaded, failed = asyncio.create_task(self._loaded.wait()), asyncio.create_task(self.failed())
        try:
            await asyncio.wait([loaded, failed], return_when=asyncio.FIRST_COMPLETED)
            if failed.done():
                await failed
        finally:
            loaded.cancel()
            failed.cancel()

    async def failed(self) -> None:
        """Ends, with the error, when a loop of the worker has: the process must end then, and be started again."""
        done, _ = await asyncio.wait([*self._tasks, self._broken], return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()

    async def stop(self) -> None:
        """Begin no more attempts, let those under way finish (bounded), checkpoint, leave the group."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.assignment.pause()
        try:
            await self._let_go(list(self.assignment.partitions), at_end=True)
        finally:  # should that go wrong, the group must not wait for a member that is gone
            for task in self._background:
                task.cancel()
            await self._liveness.stop()
            await self._tail.stop()
            await self._kafka.changes.stop()
            for dispatcher in self._dispatchers.values():
                dispatcher.close()

    async def condition(self) -> Condition:
        """As of now."""
        assignment = self.assignment
        now = await condition(
            self._dispatchers.values(),
            assignment.partitions,
            assignment.outstanding,
            at_once=self.tuning.conditions_at_once,
        )
        now.listeners["unusable"] = len(self._unusable & self._directory.listeners.keys())
        return now

    # Ownership

    def _gained(self, partitions: Collection[int]) -> None:
        """Called when the group has agreed on who owns what; everything of before was given up."""
        assignment = self.assignment = self._new_assignment()
        self.meters.gained += 1
        log.info("worker.gained partitions=%s", sorted(partitions))
        if partitions:
            self._run(self._take_over(list(partitions), assignment))
        else:  # it stands by
            self._loaded.set()

    async def _given_up(self, partitions: Collection[int]) -> None:
        """Called before anybody else may own them: all that it was given."""
        await self._let_go(partitions)

    async def _let_go(self, partitions: Collection[int], *, at_end: bool = False) -> None:
        """Stop sending, make the last checkpoint, drop the assignment."""
        assignment = self.assignment
        if assignment.partitions:  # else it was not taken over, or not yet, and nothing was done for it
            await self._drain(assignment, at_end=at_end)
            await self._commit_last(assignment)
        if partitions:
            log.info("worker.gave_up partitions=%s", sorted(partitions))
        self.assignment = self._new_assignment()
        assignment.drop()

    async def _commit_last(self, assignment: Assignment) -> None:
        in_doubt = any(dispatcher.busy for dispatcher in self._dispatchers.values())
        checkpoints, committed = assignment.checkpoints, False
        try:
            async with asyncio.timeout(self.tuning.last_checkpoint_s_max):
                await checkpoints.last()
                if not in_doubt and not checkpoints.suspended:
                    await assignment.changes.hand_over()
                committed = True
                await checkpoints.once_more()
        except (LogUnavailable, TimeoutError) as error:
            if not committed:  # what is not is repeated
                log.warning("checkpoint.last_failed error=%s", error or "it took too long")

    def _no_member(self, assignment: Assignment) -> None:
        """Kafka says so: nothing is sent before the next take-over."""
        if assignment is self.assignment:
            self._let_send(False)

    def _let_send(self, sending: bool) -> None:
        """Whether attempts may begin, also to listeners that come meanwhile."""
        self._sending = sending
        for dispatcher in self._dispatchers.values():
            dispatcher.sending = sending

    async def _drain(self, assignment: Assignment, *, at_end: bool) -> None:
        """Begin nothing more. What hangs is repeated by the next owner, so that all others' messages need not wait."""
        time = asyncio.get_running_loop().time

        def promising(dispatcher: Dispatcher) -> bool:
            if at_end and dispatcher.limits.rank != FAILS:
                return dispatcher.busy > 0  # it takes what it gets, in its time
            return dispatcher.connections.busy_since(time() - self.tuning.hanging_s)

        self._let_send(False)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.tuning.drain_s if at_end else self.tuning.hand_over_s):
                while assignment.leaving or any(map(promising, self._dispatchers.values())):
                    await asyncio.sleep(self.tuning.tick_s)

    async def _take_over(self, partitions: list[int], assignment: Assignment) -> None:
        """Load the cursors of all listeners on these partitions and begin to read."""
        outstanding, event_log = assignment.outstanding, self._kafka.log
        while assignment is self.assignment:
            try:
                assignment.share = await self._tail.share(partitions)
                listeners = list(self._directory.listeners.values())
                cursors = await self._cursors.load([listener.id for listener in listeners], partitions)
                ends = await event_log.messages.end_offsets()
                begins = await event_log.requests.offsets(event_log.messages.name, dict.fromkeys(partitions, EARLIEST))
                await asyncio.gather(*(outstanding.read(number) for number in partitions))
                lows = {number: self._low(listeners, cursors, number, ends[number]) for number in partitions}
                changes = await assignment.changes.read(lows, ends)
            except LogUnavailable as error:
                log.warning("worker.waits_for_cursors error=%s", error)
                await asyncio.sleep(self.tuning.load_pause_s)
                continue
            break
        else:
            return
        if assignment is not self.assignment:
            return
        for place, listener_id in enumerate([listener.id for listener in listeners], 1):
            if (
                place % self.tuning.opened_at_once == 0
            ):  # before anything is at its place: from then on it must be of one moment
                await asyncio.sleep(0)
                if assignment is not self.assignment:
                    return
            listener_now = self._directory.listeners.get(listener_id)
            if listener_now is not None:  # as it is by now; what comes meanwhile is employed in a moment
                self._employ(listener_now)
        if not await self._said_taken(partitions, assignment):
            return
        self._tell_of_lost(listeners, cursors, {number: ends[number] for number in partitions})
        tails = {}
        for number in partitions:
            tops = [listener.stands_at(cursors.get(listener.id, {}), number).top for listener in listeners]
            near = [top for top in tops if ends[number] - self.tuning.tail_backlog_max <= top <= ends[number]]
            tails[number] = min(near, default=ends[number])
            if tails[number] < begins[number]:
                report_messages_gone(number, tails[number], begins[number])
            assignment.partitions[number] = Partition(number, tails[number], self.tuning)
        assignment.changes.take_over(changes)
        self._let_send(True)
        for listener_id in [listener.id for listener in listeners]:
            listener_now = self._directory.listeners.get(listener_id)
            if listener_now is not None:
                self._place(listener_now, cursors.get(listener_id, {}), assignment)
        for number in partitions:
            outstanding.take_over(number)
            self._run(outstanding.review(number, self._directory.damage, self._directory.given_up))
        assignment.changes.placed(changes)
        assignment.start()
        self._tail.begin(tails)
        self._look_at(self._directory.listeners.keys() ^ self._dispatchers.keys())  # while the cursors were read
        assignment.endings.look()
        self._loaded.set()

    async def _said_taken(self, partitions: list[int], assignment: Assignment) -> bool:
        """Say that they are ours, right before the first attempt. Whether they still are."""
        while assignment is self.assignment:
            try:
                await assignment.changes.say_taken(partitions)
            except LogUnavailable as error:
                log.warning("worker.waits_to_begin error=%s", error)
                await asyncio.sleep(self.tuning.load_pause_s)
            else:
                return assignment is self.assignment
        return False

    def _tell_of_lost(
        self, listeners: Iterable[Listener], cursors: Mapping[str, Mapping[int, Cursor]], ends: Mapping[int, int]
    ) -> None:
        """Who is not new and has no cursor where there is something for him begins again: Kafka has lost it, or no
        worker ran since he was made."""
        before_ms = now_ms() - self.tuning.no_cursor_ms
        lost = [
            listener.id
            for listener in listeners
            if listener.created_at_ms < before_ms
            for known in (cursors.get(listener.id, {}),)
            if any(number not in known and listener.start_offsets[number] < end for number, end in ends.items())
        ]
        if lost:
            log.warning("worker.cursors_missing listeners=%d one=%s partitions=%s", len(lost), lost[0], sorted(ends))

    # Dispatchers follow the directory

    @property
    def _directory(self) -> Directory:
        return self._projections.directory.state

    def _note_change(self, event: Event) -> None:
        listener_id, replay_id = getattr(event, "listener_id", None), getattr(event, "replay_id", None)
        if isinstance(event, LogMended):
            assignment = self.assignment
            if event.topic == "messages" and event.partition in assignment.partitions:
                span = event.partition, event.first_offset, event.last_offset
                self._run(assignment.outstanding.mended(*span, given_up=event.given_up))
            return
        changed: Iterable[str] = ()
        if replay_id is not None:
            changed = (replay_id,)
            self.assignment.endings.look()
        elif listener_id is not None:
            changed = (listener_id, *self._replays)  # perhaps its own
        elif isinstance(event, QueueDeleted):
            changed = (one.listener.id for one in self._dispatchers.values() if one.queue.id == event.queue_id)
        if isinstance(event, ListenerDeleted | QueueDeleted):
            self.assignment.endings.look()
        self._look_at(changed)

    def _look_at(self, listener_ids: Iterable[str]) -> None:
        """Have the dispatchers of these listeners follow the directory."""
        self._changed.update(dict.fromkeys(listener_ids))
        self._change.set()

    async def _follow_directory(self) -> None:
        while True:
            await self._change.wait()
            await self._follow_changes()

    async def _follow_changes(self) -> None:
        self._change.clear()
        changed, self._changed = self._changed, {}
        await self._reconcile(changed)

    async def _reconcile(self, changed: Iterable[str]) -> None:
        """Make the dispatchers of these listeners what the directory says: employ, update, dismiss."""
        arrived: list[Listener] = []
        for listener_id in changed:
            listener, dispatcher = self._directory.listeners.get(listener_id), self._dispatchers.get(listener_id)
            if listener is None and dispatcher is not None:
                self._dismiss(self._dispatchers.pop(listener_id))
            elif listener is not None and dispatcher is not None:
                redriven = dispatcher.listener.redrives.count != listener.redrives.count
                self._employ(listener)
                if redriven:
                    self.assignment.outstanding.redrive(listener)
            elif listener is not None:
                arrived.append(listener)
        if not arrived or not self._sending:  # the next take-over employs them
            return
        assignment = self.assignment
        partitions = list(assignment.partitions)
        try:
            cursors = await self._cursors.load([listener.id for listener in arrived], partitions)
            await assignment.changes.cover({number: self._low(arrived, cursors, number) for number in partitions})
        except LogUnavailable:
            await asyncio.sleep(self.tuning.load_pause_s)
            self._look_at(listener.id for listener in arrived)
            return
        if assignment is not self.assignment or not self._sending:
            return
        for listener_id in [listener.id for listener in arrived]:
            listener_now = self._directory.listeners.get(listener_id)
            if listener_now is not None and listener_id not in self._dispatchers:
                self._employ(listener_now)
                self._place(listener_now, cursors.get(listener_id, {}), assignment)
                assignment.outstanding.redrive(listener_now)

    @staticmethod
    def _low(
        listeners: Iterable[Listener], cursors: Mapping[str, Mapping[int, Cursor]], number: int, end: int | None = None
    ) -> int:
        """The lowest offset of a partition that one of these listeners has not settled."""
        lows = [listener.stands_at(cursors.get(listener.id, {}), number).offset for listener in listeners]
        return min(lows) if end is None else min((*lows, end))

    def _employ(self, listener: Listener) -> None:
        dispatcher = self._dispatchers.get(listener.id)
        self._unusable.discard(listener.id)
        try:
            opened = self._opened(listener, dispatcher)
        except (BrokerError, ValueError):  # it stands still until that is put right; all others go on
            log.exception("listener.secret_unusable listener=%s", listener.id)
            self._unusable.add(listener.id)
            if dispatcher is not None:
                self._dismiss(self._dispatchers.pop(listener.id))
                self.assignment.outstanding.dismissed(listener.id)
            return
        assignment = self.assignment
        if dispatcher is not None:
            dispatcher.assignment = assignment
            dispatcher.update(listener, share=assignment.share, opened=opened)
            return
        queue = self._directory.queues[listener.queue_id]
        dispatcher = self._dispatchers[listener.id] = Dispatcher(
            self._network,
            assignment,
            queue,
            listener,
            opened,
            tuning=self.tuning,
            dice=self._dice,
            share=assignment.share,
            wants_tick=self._ticks_for,
            gone=self._gone,
        )
        dispatcher.sending = self._sending
        if listener.replay is not None:
            self._replays.add(listener.id)

    def _opened(self, listener: Listener, dispatcher: Dispatcher | None) -> Opened:
        if dispatcher is not None and same_seals(dispatcher.listener, listener):
            return dispatcher.opened
        return open_listener(self._sealer, listener)

    def _place(self, listener: Listener, cursors: Mapping[int, Cursor], assignment: Assignment) -> None:
        """Put the listener's streams where their cursors say and route the queue's messages to it."""
        dispatcher = self._dispatchers.get(listener.id)
        if dispatcher is None:
            return
        for number, partition in assignment.partitions.items():
            cursor = listener.stands_at(cursors, number)
            reach = listener.reach(number, partition.tail)
            if cursor.top != reach or cursor.open:
                window: Window[Delivery] = Window()
                stream = dispatcher.streams[number] = Stream(dispatcher, number, window)
                opened = [(offset, Delivery(stream, offset, None)) for offset in cursor.open]
                if opened:
                    opened[0][1].put_at_ms = cursor.oldest_at_ms or 0
                for (_, delivery), made in zip(opened, cursor.attempts, strict=False):  # none where none is known
                    delivery.number = made
                window.restore(cursor, reach, opened)
                if window.wanted() is not None:
                    dispatcher.behind[stream] = None
            partition.place(dispatcher)
        if dispatcher.behind:
            dispatcher.wake()  # and its ticks ask again: what a stream wants may be further than the tail is by now

    def _dismiss(self, dispatcher: Dispatcher) -> None:
        for partition in self.assignment.partitions.values():
            partition.dismiss(dispatcher)
        self.assignment.checkpoints.dismissed(dispatcher.listener.id)
        self._replays.discard(dispatcher.listener.id)
        dispatcher.close()
        self._liveness.down.discard(dispatcher)
        self._active.pop(dispatcher, None)

    # The log

    async def _follow_tail(self) -> None:
        while True:
            try:
                # A read that began before a take-over may bring the first records after it: nothing may be left out.
                await self._feed(await self._tail.read())
            except LogDamaged as damage:
                self._pass_over(damage)
            await asyncio.sleep(0)  # records that are there already must not keep the answers waiting

    async def _feed(self, read: Mapping[int, Iterable[Record]]) -> None:
        """Give the dispatchers what the tail has brought. But a worker that heard nothing for long is brought first of
        all what others have delivered meanwhile: that is read again once it is known to be ours."""
        assignment = self.assignment
        owned = {number: assignment.partitions[number] for number in read if number in assignment.partitions}
        try:
            if owned:
                await assignment.fence.assure()
        except LogUnavailable as error:
            log.warning("tail.waits error=%s", error)
            await asyncio.sleep(self.tuning.load_pause_s)
            if assignment is self.assignment:
                self._tail.begin({number: partition.tail for number, partition in owned.items()})
            return
        if assignment is self.assignment:
            for number, partition in owned.items():
                partition.feed(messages(read[number]))

    def _pass_over(self, damage: LogDamaged) -> None:
        """The tail goes on after what it can't read; each stream sees to its part of that."""
        partition = self.assignment.partitions.get(damage.partition)
        if partition is not None:
            partition.pass_over(damage.last)
        self._tail.begin({damage.partition: damage.last + 1})

    # Time, and what happens seldom

    async def _ticks(self) -> None:
        tuning = self.tuning
        gate, processor, time = Gate(), Processor(), asyncio.get_running_loop().time
        pumped: list[Dispatcher] = []
        for number in itertools.count():
            late_s = 0.0
            active, ticked = list(self._active), list[Dispatcher]()
            for part in range(tuning.tick_parts):
                before_s = time()
                await asyncio.sleep(tuning.tick_s / tuning.tick_parts)
                part_late_s = time() - before_s - tuning.tick_s / tuning.tick_parts
                late_s += part_late_s
                ticked += self._tick_some(
                    active[part :: tuning.tick_parts], number, late=part_late_s > tuning.stood_still_s
                )
                await self._pump(pumped[part :: tuning.tick_parts], tuning.begun_at_once)
            begins = gate.tick(late_s / tuning.tick_parts, waited=processor.waited())
            pumped = let_begin(ticked, begins, turn=number // tuning.share_ticks)
            if number % tuning.share_ticks == 0:
                share_out(self._active, tuning)
            self._liveness.tick(begins=begins)
            for dispatcher in list(self._dispatchers.values())[number % tuning.tidy_ticks :: tuning.tidy_ticks]:
                dispatcher.tidy()

    def _ticks_for(self, dispatcher: Dispatcher) -> None:
        self._active[dispatcher] = None

    @staticmethod
    async def _pump(dispatchers: Iterable[Dispatcher], at_once: int) -> None:
        """Let them begin what they were dealt."""
        begun = 0
        for dispatcher in dispatchers:
            begun += dispatcher.limits.begins
            dispatcher.pump()
            if begun >= at_once:
                begun = 0
                await asyncio.sleep(0)

    def _tick_some(self, dispatchers: Iterable[Dispatcher], number: int, *, late: bool) -> Iterator[Dispatcher]:
        """Those that still have something to do."""
        at_ms = now_ms()
        for place, dispatcher in enumerate(dispatchers):
            if dispatcher not in self._active:  # its listener has ended meanwhile
                continue
            if (place + number) % self.tuning.share_ticks and dispatcher.limits.gives_way:
                continue
            if dispatcher.tick(at_ms, late=late):
                yield dispatcher
            else:
                del self._active[dispatcher]
            if dispatcher.circuit.allowance == 0:
                self._liveness.watch(dispatcher)

    def _gone(self, dispatcher: Dispatcher) -> None:
        self._run(self._pause(dispatcher))

    async def _pause(self, dispatcher: Dispatcher) -> None:
        listener = dispatcher.listener
        fields: Fields = {
            "at_ms": now_ms(),
            "organization_id": listener.organization_id,
            "actor": "worker",
            "reason": "the listener answered 410 Gone",
        }
        event: ControlEvent = (
            ListenerPaused(**fields, listener_id=listener.id)
            if listener.replay is None
            else ReplayPaused(**fields, replay_id=listener.id)
        )
        try:
            await self._kafka.log.control.append(event)
        except BrokerError:
            dispatcher.said_gone = False  # its next 410 tries again

    def _run(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._ran)
        return task

    def _ran(self, task: asyncio.Task[None]) -> None:
        self._background.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and not self._broken.done():
            self._broken.set_exception(error)
