"""The worker: owns a share of the partitions and delivers their messages to every listener.

For: ownership, couriers following the directory, the tail loop, and an orderly end.
Not for: one listener's deliveries (courier.py), reading (readers.py), checkpoints.py, wiring a process (cli/).
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections.abc import Callable, Collection, Coroutine, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, Protocol

from broker.core.cursor import Cursor
from broker.core.directory import Directory, Listener
from broker.core.events import (
    ControlEvent,
    Event,
    Fields,
    KeptDelivery,
    ListenerDeleted,
    ListenerPaused,
    LogMended,
    QueueDeleted,
    ReplayPaused,
)
from broker.core.flow import WHOLE, Gate
from broker.core.window import Window
from broker.delivery.changes import Changes
from broker.delivery.checkpoints import Checkpoints
from broker.delivery.courier import Courier, Depot
from broker.delivery.endings import Endings
from broker.delivery.guard import Resolver
from broker.delivery.http import tls_context
from broker.delivery.limits import FAILS
from broker.delivery.liveness import Liveness
from broker.delivery.message import Message, may_be_in, messages
from broker.delivery.meters import Condition, Meters, condition
from broker.delivery.outstanding import Outstanding
from broker.delivery.ownership import Ownership
from broker.delivery.ports import Ports
from broker.delivery.readers import CatchUp, Partition
from broker.delivery.replaying import Replaying
from broker.delivery.request import Opened, open_listener, same_seals
from broker.delivery.retention import Retention
from broker.delivery.shares import Processor, Sockets, let_begin, share_out
from broker.delivery.stream import Delivery, Stream, now_ms
from broker.errors import BrokerError, LogDamaged, LogUnavailable
from broker.ports import EARLIEST, Count, DirectoryView, NoMember, OffsetTooOld, Record
from broker.sealing import Sealer
from broker.settings import Settings

log = logging.getLogger(__name__)

TICK_S: Final = 0.05
_PARTS: Final = 5  # in which couriers have their ticks, one after the other: all at once would hold the others up
_ROUND: Final = 5  # ticks after which all is shared out anew; a courier that gives way has one of them
_PUMPED: Final = 8  # attempts that are begun before others run
STOOD_STILL_S: Final = 0.1  # an event loop as late as this expires nothing: first it reads what has come meanwhile
_TIDY_TICKS: Final = 100  # within so many every courier is tidied once
DRAIN_S: Final = 5.0  # how long attempts under way may take to finish at the end
HAND_OVER_S: Final = 2.0  # and at a hand-over, for which all workers wait
HANGING_S: Final = 1.0  # nobody waits there, nor at the end if it is of one that fails, for one that has taken as long
CHECKPOINT_S_MAX: Final = 5.0  # for the last checkpoint; with the drain, less than the group waits for a member
TAIL_BACKLOG_MAX: Final = 10_000  # a stream further behind than this does not hold the tail back: it catches up
NO_CURSOR_MS: Final = (
    180_000  # a listener may be so old before each of its cursors was committed: idle ones take a minute
)
_LOAD_PAUSE_S: Final = 0.5
_MESSAGES_AT_ONCE: Final = 500  # that are made of what was read before others run
_AT_ONCE: Final = 20  # couriers that are employed before others run: opening their secrets takes its time


class DirectoryFeed(Protocol):
    """The directory, and a call after each change."""

    @property
    def directory(self) -> DirectoryView: ...

    def on_change(self, callback: Callable[[Event], None]) -> None: ...


class Worker:
    """One per process. kafka: its ports. projections: the directory as folded here, caught up before start().

    count: called with the organization and the size of what is written for it (broker/volume.py).
    """

    def __init__(
        self,
        settings: Settings,
        kafka: Ports,
        projections: DirectoryFeed,
        sealer: Sealer,
        count: Count | None = None,
    ) -> None:
        event_log = kafka.log
        self._settings = settings
        self._log = event_log
        self._sealer = sealer
        self._projections = projections
        self._topic = event_log.messages.name
        self._cursors = kafka.cursors
        self._tail = kafka.membership
        self._partitions: dict[int, Partition] = {}
        self._couriers: dict[str, Courier] = {}
        self._catch_up = CatchUp(self, self._partitions)
        resolver, tls = Resolver(settings.allow_networks), tls_context()
        self._liveness = Liveness(resolver, tls)
        self._active: dict[Courier, None] = {}  # who asked for ticks, the longest first
        self.meters = Meters()
        self._ours = ours = Ownership(self._ask_whether_ours)
        self._outstanding = Outstanding(
            event_log.outstanding,
            event_log.requests,
            self._topic,
            self._partitions,
            self._couriers,
            ours.assure,
            count,
        )
        self._changes_tail = kafka.changes
        self._changes = Changes(
            event_log,
            self._changes_tail,
            self._outstanding,
            self._partitions,
            self._couriers,
            self._placed,
            self._run,
            ours.confirm,
        )
        self._checkpoints = Checkpoints(
            self._cursors,
            event_log.deliveries,
            self._outstanding,
            self._partitions,
            self._couriers,
            self.meters,
            ours.confirm,
            count,
        )
        self._endings = Endings(
            self._cursors,
            projections.directory,
            self._checkpoints,
            self._outstanding,
            self._partitions,
            self._couriers,
        )
        self._replaying = Replaying(event_log.control.append, self._partitions, self._couriers, self._outstanding)
        self._retention = Retention(
            event_log,
            self._cursors,
            projections.directory,
            self._outstanding,
            self._partitions,
            self._couriers,
            settings.retain_messages_s,
            ours.assure,
        )
        self._changed: dict[str, None] = {}  # ids of listeners that the directory has changed
        self._unusable: set[str] = set()  # ids of those whose secret can't be opened
        self._change = asyncio.Event()
        self._broken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._tasks: list[asyncio.Task[None]] = []
        self._background: set[asyncio.Task[None]] = set()
        self._leaving: set[asyncio.Task[None]] = set()  # of the background: deliveries being written to `outstanding`
        self._loaded = asyncio.Event()
        self._share = WHOLE
        self._ownership = 0  # counts hand-overs: what was begun in an earlier one is not finished in a later one
        self._sending = False  # the partitions are ours, and nobody else waits for them
        self._depot = Depot(
            resolver=resolver,
            sockets=Sockets(),
            tls=tls,
            touched=self._checkpoints.touched,
            lagging=self._catch_up.request,
            active=lambda courier: self._active.update({courier: None}),
            put_aside=self._put_aside,
            overtakes=self._outstanding.overtakes,
            is_owed=self._outstanding.is_owed,
            delivered=self._outstanding.delivered,
            returned=self._outstanding.returned,
            gone=self._gone,
            changes=self._changes.known,
            hold=self._changes.hold,
        )

    async def start(self) -> None:
        """Join the group, load the cursors of what it was given, begin to deliver (LogUnavailable)."""
        self._projections.on_change(self._note_change)
        self._catch_up.start()
        await self._changes_tail.start()
        await self._tail.start(self._gained, self._given_up)
        checkpoints = self._checkpoints
        loops = (
            self._follow_directory,
            self._follow_tail,
            self._ticks,
            self._serve_outstanding,
            self._endings.run,
            self._changes.run,
            self._changes.prune,
            self._replaying.run,
            self._retention.run,
            self._ours.run,
            checkpoints.run,
            checkpoints.run_idle,
        )
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
        try:
            await self._let_go(list(self._partitions), at_end=True)
        finally:  # should that go wrong, the group must not wait for a member that is gone
            for task in self._background:
                task.cancel()
            await self._liveness.stop()
            await self._catch_up.stop()
            await self._tail.stop()
            await self._changes_tail.stop()
            for courier in self._couriers.values():
                courier.close()

    async def condition(self) -> Condition:
        """As of now."""
        now = await condition(self._couriers.values(), self._partitions, self._outstanding)
        now.listeners["unusable"] = len(self._unusable & self._directory.listeners.keys())
        return now

    # Ownership

    def _gained(self, partitions: Collection[int]) -> None:
        """Called when the group has agreed on who owns what; everything of before was given up."""
        self._ownership += 1
        self._ours.begin_anew()
        self.meters.gained += 1
        log.info("worker.gained partitions=%s", sorted(partitions))
        if partitions:
            self._run(self._take_over(list(partitions), self._ownership))
        else:  # it stands by
            self._loaded.set()

    async def _given_up(self, partitions: Collection[int]) -> None:
        """Called before anybody else may own them."""
        await self._let_go(partitions)

    async def _let_go(self, partitions: Collection[int], *, at_end: bool = False) -> None:
        self._ownership += 1
        if not partitions:
            return
        await self._drain(at_end=at_end)
        in_doubt = any(courier.busy for courier in self._couriers.values())
        committed = False
        try:
            async with asyncio.timeout(CHECKPOINT_S_MAX):
                await self._checkpoints.last()
                if not in_doubt and not self._checkpoints.suspended:
                    await self._changes.hand_over()
                committed = True
                await self._checkpoints.once_more()
        except (LogUnavailable, TimeoutError) as error:
            if not committed:  # what is not is repeated
                log.warning("checkpoint.last_failed error=%s", error or "it took too long")
        log.info("worker.gave_up partitions=%s", sorted(partitions))
        for partition in self._partitions.values():
            partition.alive = False
        self._partitions.clear()
        for courier in self._couriers.values():
            for stream in list(courier.streams.values()):
                courier.drop(stream)
        self._checkpoints.forget()
        self._outstanding.forget()
        self._changes.forget()

    async def _ask_whether_ours(self) -> None:
        """For Ownership. When they are not, others deliver what waits here: no more of it is sent."""
        ownership = self._ownership
        try:
            await self._tail.confirm({number: partition.tail for number, partition in self._partitions.items()})
        except NoMember:
            if ownership == self._ownership:
                self._let_send(False)
            raise

    def _let_send(self, sending: bool) -> None:
        """Whether attempts may begin, also to listeners that come meanwhile."""
        self._sending = sending
        for courier in self._couriers.values():
            courier.sending = sending

    async def _drain(self, *, at_end: bool) -> None:
        """Begin nothing more. What hangs is repeated by the next owner, so that all others' messages need not wait."""
        time = asyncio.get_running_loop().time

        def promising(courier: Courier) -> bool:
            if at_end and courier.limits.rank != FAILS:
                return courier.busy > 0  # it takes what it gets, in its time
            return courier.busy_since(time() - HANGING_S)

        self._let_send(False)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_S if at_end else HAND_OVER_S):
                while self._leaving or any(map(promising, self._couriers.values())):
                    await asyncio.sleep(TICK_S)

    async def _take_over(self, partitions: list[int], ownership: int) -> None:
        """Load the cursors of all listeners on these partitions and begin to read."""
        while ownership == self._ownership:
            try:
                share = await self._tail.share(partitions)
                listeners = list(self._directory.listeners.values())
                cursors = await self._cursors.load([listener.id for listener in listeners], partitions)
                ends = await self._log.messages.end_offsets()
                begins = await self._log.requests.offsets(self._topic, dict.fromkeys(partitions, EARLIEST))
                await asyncio.gather(*(self._outstanding.read(number) for number in partitions))
                lows = {number: self._low(listeners, cursors, number, ends[number]) for number in partitions}
                changes = await self._changes.read(lows, ends)
            except LogUnavailable as error:
                log.warning("worker.waits_for_cursors error=%s", error)
                await asyncio.sleep(_LOAD_PAUSE_S)
                continue
            break
        else:
            return
        if ownership != self._ownership:
            return
        self._share = share
        for place, listener_id in enumerate([listener.id for listener in listeners], 1):
            if place % _AT_ONCE == 0:  # before anything is at its place: from then on it must be of one moment
                await asyncio.sleep(0)
                if ownership != self._ownership:
                    return
            listener_now = self._directory.listeners.get(listener_id)
            if listener_now is not None:  # as it is by now; what comes meanwhile is employed in a moment
                self._employ(listener_now)
        if not await self._said_taken(partitions, ownership):
            return
        self._tell_of_lost(listeners, cursors, {number: ends[number] for number in partitions})
        tails = {}
        for number in partitions:
            tops = [listener.stands_at(cursors.get(listener.id, {}), number).top for listener in listeners]
            near = [top for top in tops if ends[number] - TAIL_BACKLOG_MAX <= top <= ends[number]]
            tails[number] = min(near, default=ends[number])
            if tails[number] < begins[number]:
                _tell_of_gone(number, tails[number], begins[number])
            self._partitions[number] = Partition(number, tails[number])
        self._changes.take_over(changes)
        self._let_send(True)
        for listener_id in [listener.id for listener in listeners]:
            listener_now = self._directory.listeners.get(listener_id)
            if listener_now is not None:
                self._place(listener_now, cursors.get(listener_id, {}), partitions)
        for number in partitions:
            self._outstanding.take_over(number)
        self._changes.placed(changes)
        self._tail.begin(tails)
        self._look_at(self._directory.listeners.keys() ^ self._couriers.keys())  # while the cursors were read
        self._endings.look()
        self._loaded.set()

    async def _said_taken(self, partitions: list[int], ownership: int) -> bool:
        """Say that they are ours, right before the first attempt. Whether they still are."""
        while ownership == self._ownership:
            try:
                await self._changes.say_taken(partitions)
            except LogUnavailable as error:
                log.warning("worker.waits_to_begin error=%s", error)
                await asyncio.sleep(_LOAD_PAUSE_S)
            else:
                return ownership == self._ownership
        return False

    @staticmethod
    def _tell_of_lost(
        listeners: Iterable[Listener], cursors: Mapping[str, Mapping[int, Cursor]], ends: Mapping[int, int]
    ) -> None:
        """Who is not new and has no cursor where there is something for him begins again: Kafka has lost it, or no
        worker ran since he was made."""
        before_ms = now_ms() - NO_CURSOR_MS
        lost = [
            listener.id
            for listener in listeners
            if listener.created_at_ms < before_ms
            for known in (cursors.get(listener.id, {}),)
            if any(number not in known and listener.start_offsets[number] < end for number, end in ends.items())
        ]
        if lost:
            log.warning("worker.cursors_missing listeners=%d one=%s partitions=%s", len(lost), lost[0], sorted(ends))

    # Couriers follow the directory

    @property
    def _directory(self) -> Directory:
        return self._projections.directory.state

    def _note_change(self, event: Event) -> None:
        listener_id, replay_id = getattr(event, "listener_id", None), getattr(event, "replay_id", None)
        if isinstance(event, LogMended):
            if event.topic == "messages" and event.partition in self._partitions:
                span = event.partition, event.first_offset, event.last_offset
                self._run(self._outstanding.mended(*span, given_up=event.given_up))
            return
        changed: Iterable[str] = ()
        if replay_id is not None:
            changed = (replay_id,)
            self._endings.look()
        elif listener_id is not None:
            changed = (listener_id, *self._replaying.ids)  # perhaps its own
        elif isinstance(event, QueueDeleted):
            changed = (one.listener.id for one in self._couriers.values() if one.queue.id == event.queue_id)
        if isinstance(event, ListenerDeleted | QueueDeleted):
            self._endings.look()
        self._look_at(changed)

    def _look_at(self, listener_ids: Iterable[str]) -> None:
        """Have the couriers of these listeners follow the directory."""
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
        """Make the couriers of these listeners what the directory says: employ, update, dismiss."""
        arrived: list[Listener] = []
        for listener_id in changed:
            listener, courier = self._directory.listeners.get(listener_id), self._couriers.get(listener_id)
            if listener is None and courier is not None:
                self._dismiss(self._couriers.pop(listener_id))
            elif listener is not None and courier is not None:
                redriven = courier.listener.redrives.count != listener.redrives.count
                self._employ(listener)
                if redriven:
                    self._outstanding.redrive(listener)
            elif listener is not None:
                arrived.append(listener)
        if not arrived or not self._sending:  # the next take-over employs them
            return
        ownership = self._ownership
        partitions = list(self._partitions)
        try:
            cursors = await self._cursors.load([listener.id for listener in arrived], partitions)
            await self._changes.cover({number: self._low(arrived, cursors, number) for number in partitions})
        except LogUnavailable:
            await asyncio.sleep(_LOAD_PAUSE_S)
            self._look_at(listener.id for listener in arrived)
            return
        if ownership != self._ownership or not self._sending:
            return
        for listener_id in [listener.id for listener in arrived]:
            listener_now = self._directory.listeners.get(listener_id)
            if listener_now is not None and listener_id not in self._couriers:
                self._employ(listener_now)
                self._place(listener_now, cursors.get(listener_id, {}), partitions)
                self._outstanding.redrive(listener_now)

    @staticmethod
    def _low(
        listeners: Iterable[Listener], cursors: Mapping[str, Mapping[int, Cursor]], number: int, end: int | None = None
    ) -> int:
        """The lowest offset of a partition that one of these listeners has not settled."""
        lows = [listener.stands_at(cursors.get(listener.id, {}), number).offset for listener in listeners]
        return min(lows) if end is None else min((*lows, end))

    def _employ(self, listener: Listener) -> None:
        courier = self._couriers.get(listener.id)
        self._unusable.discard(listener.id)
        try:
            opened = self._opened(listener, courier)
        except (BrokerError, ValueError):  # it stands still until that is put right; all others go on
            log.exception("listener.secret_unusable listener=%s", listener.id)
            self._unusable.add(listener.id)
            if courier is not None:
                self._dismiss(self._couriers.pop(listener.id))
                self._outstanding.dismissed(listener.id)
            return
        if courier is not None:
            courier.update(listener, share=self._share, opened=opened)
            return
        queue = self._directory.queues[listener.queue_id]
        courier = self._couriers[listener.id] = Courier(self._depot, queue, listener, opened, share=self._share)
        courier.sending = self._sending
        if listener.replay is not None:
            self._replaying.ids.add(listener.id)

    def _opened(self, listener: Listener, courier: Courier | None) -> Opened:
        if courier is not None and same_seals(courier.listener, listener):
            return courier.opened
        return open_listener(self._sealer, listener)

    def _place(self, listener: Listener, cursors: Mapping[int, Cursor], partitions: Iterable[int]) -> None:
        """Put the listener's streams where their cursors say and route the queue's messages to it."""
        courier = self._couriers.get(listener.id)
        if courier is None:
            return
        for number in partitions:
            partition = self._partitions[number]
            cursor = listener.stands_at(cursors, number)
            reach = listener.reach(number, partition.tail)
            if cursor.top != reach or cursor.open:
                window: Window[Delivery] = Window()
                stream = courier.streams[number] = Stream(courier, number, window)
                opened = [(offset, Delivery(stream, offset, None)) for offset in cursor.open]
                if opened:
                    opened[0][1].put_at_ms = cursor.oldest_at_ms or 0
                for (_, delivery), made in zip(opened, cursor.attempts, strict=False):  # none where none is known
                    delivery.number = made
                window.restore(cursor, reach, opened)
                if window.wanted() is not None:
                    courier.behind[stream] = None
            partition.place(courier)
        if courier.behind:
            courier.wake()  # and its ticks ask again: what a stream wants may be further than the tail is by now

    def _placed(self, number: int, queue_id: str) -> Iterator[Courier]:
        """The couriers of a queue whose place on a partition is known."""
        partition, queue = self._partitions[number], self._directory.queues.get(queue_id)
        for listener_id in () if queue is None else queue.listeners:
            courier = self._couriers.get(listener_id)
            if courier is not None and partition.placed(courier):
                yield courier

    def _dismiss(self, courier: Courier) -> None:
        for partition in self._partitions.values():
            partition.dismiss(courier)
        self._checkpoints.dismissed(courier.listener.id)
        courier.close()
        self._liveness.down.discard(courier)
        self._active.pop(courier, None)

    # The log

    async def _follow_tail(self) -> None:
        while True:
            try:
                await self._feed(await self._tail.read())
            except LogDamaged as damage:
                self._pass_over(damage)
            await asyncio.sleep(0)  # records that are there already must not keep the answers waiting

    async def _feed(self, read: Mapping[int, Iterable[Record]]) -> None:
        """What the tail has brought goes to the couriers. But who heard nothing for long is brought first of all what
        others have delivered meanwhile: that is read again once it is known to be ours."""
        owned = {number: self._partitions[number] for number in read if number in self._partitions}
        try:
            if owned:
                await self._ours.assure()
        except LogUnavailable as error:
            log.warning("tail.waits error=%s", error)
            await asyncio.sleep(_LOAD_PAUSE_S)
            self._tail.begin({number: partition.tail for number, partition in owned.items() if partition.alive})
            return
        for number, partition in owned.items():
            if partition.alive:
                partition.feed(messages(read[number]))

    async def stretch(
        self, partition: int, offset: int, bytes_max: int, queue_ids: Collection[str]
    ) -> tuple[Sequence[Message], int]:
        """For the catch-up readers (readers.Source)."""
        requests, worth = self._log.requests, may_be_in(queue_ids)
        try:
            stretch = await requests.read(self._topic, partition, offset, bytes_max=bytes_max, worth=worth)
        except OffsetTooOld:
            begin = (await requests.offsets(self._topic, {partition: EARLIEST}))[partition]
            _tell_of_gone(partition, offset, begin)
            at = max(begin, offset)
            stretch = await requests.read(self._topic, partition, at, bytes_max=bytes_max, worth=worth)
        found, rest = list[Message](), messages(stretch.records, queue_ids)
        while some := list(itertools.islice(rest, _MESSAGES_AT_ONCE)):
            found += some
            await asyncio.sleep(0)
        await self._ours.assure()
        return found, stretch.next_offset

    def _pass_over(self, damage: LogDamaged) -> None:
        """The tail goes on after what it can't read; each stream sees to its part of that."""
        partition = self._partitions.get(damage.partition)
        if partition is not None:
            partition.pass_over(damage.last)
        self._tail.begin({damage.partition: damage.last + 1})

    async def park_damaged(self, partition: int, ranges: Sequence[tuple[Courier, int, int]]) -> bool:
        """For the catch-up readers (readers.Source)."""
        return await self._outstanding.park_damaged(
            partition, [(one.listener, first, last) for one, first, last in ranges]
        )

    # Time, and what happens seldom

    async def _ticks(self) -> None:
        gate, processor, time = Gate(), Processor(), asyncio.get_running_loop().time
        pumped: list[Courier] = []
        for number in itertools.count():
            late_s = 0.0
            active, ticked = list(self._active), list[Courier]()
            for part in range(_PARTS):
                before_s = time()
                await asyncio.sleep(TICK_S / _PARTS)
                part_late_s = time() - before_s - TICK_S / _PARTS
                late_s += part_late_s
                ticked += self._tick_some(active[part::_PARTS], number, late=part_late_s > STOOD_STILL_S)
                await self._pump(pumped[part::_PARTS])
            begins = gate.tick(late_s / _PARTS, waited=processor.waited())
            pumped = let_begin(ticked, begins, turn=number // _ROUND)
            if number % _ROUND == 0:
                share_out(self._active)
            self._liveness.tick(begins=begins)
            for courier in list(self._couriers.values())[number % _TIDY_TICKS :: _TIDY_TICKS]:
                courier.tidy()

    @staticmethod
    async def _pump(couriers: Iterable[Courier]) -> None:
        """Let them begin what they were dealt."""
        begun = 0
        for courier in couriers:
            begun += courier.limits.begins
            courier.pump()
            if begun >= _PUMPED:
                begun = 0
                await asyncio.sleep(0)

    def _tick_some(self, couriers: Iterable[Courier], number: int, *, late: bool) -> Iterator[Courier]:
        """Those that still have something to do."""
        at_ms = now_ms()
        for place, courier in enumerate(couriers):
            if courier not in self._active:  # its listener has ended meanwhile
                continue
            if (place + number) % _ROUND and courier.limits.gives_way:
                continue
            if courier.tick(at_ms, late=late):
                yield courier
            else:
                del self._active[courier]
            if courier.circuit.allowance == 0:
                self._liveness.watch(courier)

    def _put_aside(self, delivery: Delivery, status: int | None, error: str | None, due_ms: int | None) -> None:
        if delivery.message is None:
            return
        event = self._outstanding.expect(delivery, delivery.message, status, error, due_ms)
        task = self._run(self._put_aside_now(delivery, event))
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    async def _put_aside_now(self, delivery: Delivery, event: KeptDelivery) -> None:
        """Write the delivery to `outstanding`, and only then let the cursor pass it."""
        courier = delivery.stream.courier
        if self._changes.deleted(delivery):
            self._outstanding.expect_no_more(delivery)
            courier.cancel(delivery)
        elif await self._outstanding.put_aside(delivery, event):
            courier.settle(delivery)
            if self._changes.deleted(delivery):  # meanwhile
                self._outstanding.cancel(event.partition, event.listener_id, event.message_id)

    async def _serve_outstanding(self) -> None:
        while True:
            if not await self._outstanding.serve_due():
                await self._outstanding.pause(TICK_S)

    def _gone(self, courier: Courier) -> None:
        self._run(self._pause(courier))

    async def _pause(self, courier: Courier) -> None:
        listener = courier.listener
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
            await self._log.control.append(event)
        except BrokerError:
            courier.said_gone = False  # its next 410 tries again

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


def _tell_of_gone(partition: int, wanted: int, begins: int) -> None:
    log.warning("worker.messages_gone partition=%d wanted=%d begins=%d", partition, wanted, begins)
