"""A worker of the simulation: the real couriers, windows and checkpoints, with a fake network and event loop around.

For: doing one step of what a worker does, when it is told to. Not for: which step comes next (simulation.py)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from broker.core.circuit import State
from broker.core.cursor import Cursor
from broker.core.directory import Listener
from broker.core.flow import WHOLE
from broker.core.signing import Signer
from broker.delivery.changes import Changes, Taken
from broker.delivery.checkpoints import Checkpoints
from broker.delivery.courier import Courier, Depot
from broker.delivery.guard import Target
from broker.delivery.message import Message
from broker.delivery.meters import Meters
from broker.delivery.outstanding import Outstanding
from broker.delivery.readers import CatchUp, Partition
from broker.delivery.request import Opened
from broker.delivery.shares import Sockets, let_begin, share_out
from broker.delivery.stream import Delivery, Stream
from broker.delivery.worker import Worker
from broker.errors import LogUnavailable
from tests.stateful.simulated_log import Log, Pause, Tail, Topic, append

if TYPE_CHECKING:
    from tests.stateful.simulation import World

OPENED = Opened(Signer(b"k" * 32))
WORKS_OFF_MAX = 60  # steps of each
CRASH_BETWEEN = 0.1  # the chance that a worker dies after a record of `outstanding` and before its cursor passes


class Connection:
    """What a courier sends on. phase: idle, sent, taken (its answer is on the way)."""

    def __init__(self, owner: Courier, worker: SimWorker, target: Target) -> None:
        self.owner, self.worker, self.target = owner, worker, target
        self.work: Any = None
        self.at = 0.0
        self.used = 0
        self.fresh = True
        self.well = False
        self.phase = "idle"
        self.message: Message | None = None
        self.crash: int | None = None  # whose worker has gone, or given its partition up, while it was under way

    def send(self, _request: bytes, work: Delivery, at: float) -> None:
        world, listener = self.worker.world, self.owner.listener
        self.work, self.at, self.phase, self.message, self.crash = work, at, "sent", work.message, None
        mine = [one for one in self.worker.requests if one.owner is self.owner]
        if self.worker.cut is not None:
            self.crash = self.worker.cut
            world.more_in_flight(self.crash)
        elif world.under_way(listener.id) >= max(listener.settings.max_in_flight, self.worker.share.workers):
            world.found.append("too many: more under way than max_in_flight")
        if self.worker.cut is None:
            world.attempted(listener, self.message, work.number)
            world.changes.sent(self.worker, listener.name, work.stream.partition, self.message)
        key = self.message.key
        if key is not None and any(one.message.key == key and one.work.stream.alive for one in mine):
            world.found.append(f"out of order: two of the key {key} under way")
        self.worker.requests.append(self)

    def take(self) -> None:
        """The listener takes the message."""
        self.phase = "taken"
        self.worker.world.take(self.owner.listener.name, self.message, self.crash)
        self.worker.world.changes.took(self.owner.listener.name, self.message, self)

    def answer(self, status: int, retry_after_s: int | None = None) -> None:
        self.owner.answered(self, status, retry_after_s)
        self.used += 1
        self._end()
        self.owner.released(self)

    def fail(self, error: str) -> None:
        self.owner.failed(self, error)
        self._end(lost=True)
        self.owner.lost(self)

    def expire(self) -> None:
        self.owner.failed(self, "timeout")
        self._end(lost=True)
        self.worker.loop.call_soon(self.owner.lost, self)

    def close(self) -> None:
        if self in self.worker.requests:
            self.owner.failed(self, "closed")
            self._end(lost=True)
        self.worker.loop.call_soon(self.owner.lost, self)

    def _end(self, *, lost: bool = False) -> None:
        if lost and self.phase == "taken":
            self.worker.world.record.lost_answers += 1
            self.worker.world.changes.lost(self.owner.listener.name, self.message, self)
        if self in self.worker.requests:
            self.worker.requests.remove(self)
        self.work, self.phase = None, "idle"


class Loop:
    """What a courier wants of the event loop."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._soon: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self.connecting: list[Task] = []

    def time(self) -> float:
        return self._world.now_ms / 1000

    def call_soon(self, callback: Callable[..., None], *arguments: Any) -> None:
        self._soon.append((callback, arguments))

    def create_task(self, coroutine: Coroutine[Any, Any, None]) -> Task:
        self.connecting.append(Task(coroutine))
        return self.connecting[-1]

    def settle(self) -> None:
        while self._soon:
            callback, arguments = self._soon.popleft()
            callback(*arguments)


class Task:
    """A coroutine, stepped from one await to the next."""

    def __init__(self, coroutine: Coroutine[Any, Any, None]) -> None:
        self._coroutine = coroutine
        self._callbacks: list[Callable[[Any], Any]] = []

    def add_done_callback(self, callback: Callable[[Any], Any]) -> None:
        self._callbacks.append(callback)

    def step(self) -> None:
        try:
            self._coroutine.send(None)
        except StopIteration:
            for callback in self._callbacks:
                callback(self)

    def cancel(self) -> None:
        self._coroutine.close()

    def cancelled(self) -> bool:
        return False


class SimWorker:
    """A worker's parts around the real couriers. Lives until it crashes; its partitions come and go."""

    _place = Worker._place
    _reconcile = Worker._reconcile
    _put_aside = Worker._put_aside
    _put_aside_now = Worker._put_aside_now
    _placed = Worker._placed
    _low = staticmethod(Worker._low)

    def __init__(self, world: World) -> None:
        self.world = world
        self.loop = Loop(world)
        self.requests: list[Connection] = []
        self.lagging: list[Stream] = []
        self.tasks: list[Task] = []
        self.changed: dict[str, None] = {}
        self.ownership = 0
        self.gave_up: int | None = None  # the crash that counts for what it gave up last
        self.active: list[Courier] = []
        self.share = WHOLE
        self.cut: int | None = None  # the crash that counts, while its session has ended and it does not know
        self.under_checkpoint: Any = None
        self.confirmed = False  # it was a member a moment ago: it may commit once
        self.began_ms = self.saved_ms = world.now_ms  # of the checkpoint under way, and of the last that succeeded
        self.all_saved_ms = world.now_ms  # of the last that succeeded before a hand-over
        self._partitions: dict[int, Partition] = {}
        self._couriers: dict[str, Courier] = {}
        self._leaving: set[Task] = set()
        self._serving: Task | None = None
        topic = Topic(self)
        self._outstanding = Outstanding(topic, topic, "messages", self._partitions, self._couriers, self._assure)
        self._new_checkpoints()
        self.tail = Tail(world)
        self._changes = Changes(
            Log(world),
            self.tail,
            self._outstanding,
            self._partitions,
            self._couriers,
            self._placed,
            self._run,
            self._confirm_answer,
        )
        self._hearing = self._changes.run()
        self.hear()
        self._cursors = SimpleNamespace(load=self._load)
        self._changed = SimpleNamespace(update=lambda ids: self.changed.update(dict.fromkeys(ids)))
        self._change = SimpleNamespace(set=lambda: None)
        self.depot = Depot(
            resolver=None,
            sockets=Sockets(3),
            tls=None,
            touched=self.checkpoints.touched,
            lagging=self._lag,
            active=self.active.append,
            put_aside=self._put_aside,
            overtakes=self._outstanding.overtakes,
            is_owed=self._outstanding.is_owed,
            delivered=self._outstanding.delivered,
            returned=self._outstanding.returned,
            gone=lambda _courier: None,
            changes=self._changes.known,
            hold=self._changes.hold,
        )

    def _new_checkpoints(self) -> None:
        cursors = SimpleNamespace(store=self._store)
        deliveries = SimpleNamespace(append=lambda outcomes: append(self.world, outcomes, self.world.write_delivery))
        self.checkpoints = Checkpoints(
            cursors, deliveries, self._outstanding, self._partitions, self._couriers, Meters(), self._confirm
        )

    # Ownership

    def take_over(self, numbers: Collection[int]) -> None:
        """As Worker._take_over."""
        world = self.world
        cursors = {one.id: world.cursors(one) for one in world.listeners}
        changes = self._read(numbers, cursors)
        for number in numbers:
            tops = [one.stands_at(cursors[one.id], number).top for one in world.listeners]
            end = len(world.log[number])
            self._partitions[number] = Partition(number, min(tops) if world.dice.random() < 0.7 else end)
        self._changes.take_over(changes)
        for one in world.listeners:
            self._employ(one)
            self._couriers[one.id].sending = True
            self._place(one, cursors[one.id], numbers)
        for number in numbers:
            self._outstanding.take_over(number)
        self._changes.placed(changes)

    def _read(self, numbers: Collection[int], cursors: Mapping[str, Mapping[int, Cursor]]) -> dict[int, Taken]:
        """Nothing else happening meanwhile but new changes."""
        world = self.world
        ends = [len(puts) for puts in world.log]
        lows = {number: self._low(world.listeners, cursors, number, ends[number]) for number in numbers}

        async def read() -> dict[int, Taken]:
            for number in numbers:
                await self._outstanding.read(number)
            changes: dict[int, Taken] = await self._changes.read(lows, ends)
            await self._changes.say_taken(numbers)
            return changes

        try:
            changes = to_its_end(read(), world.meanwhile)
        except LogUnavailable:
            outage, world.outage = world.outage, False  # tried again until it is over
            changes = to_its_end(read(), world.meanwhile)
            world.outage = outage
        for key, event in world.kept.items():
            if event.partition in numbers and key in world.stored_late:
                world.lasts(world.stored_late.pop(key))
        return changes

    def follow(self) -> None:
        """As Worker._follow_directory."""
        changed, self.changed = self.changed, {}
        to_its_end(self._reconcile(changed), self.world.meanwhile)

    async def _load(self, ids: Iterable[str], _numbers: Collection[int]) -> dict[str, dict[int, Cursor]]:
        return {one: self.world.cursors(self.world.listener(one)) for one in ids}

    @property
    def _directory(self) -> SimpleNamespace:
        listeners = {one.id: one for one in self.world.listeners}
        return SimpleNamespace(listeners=listeners, queues={"own": SimpleNamespace(listeners=listeners)})

    @property
    def _ownership(self) -> int:
        return self.ownership

    @property
    def _sending(self) -> bool:
        return bool(self._partitions)

    def _employ(self, listener: Listener) -> None:
        if listener.id not in self._couriers:
            self.world.current = self
            self._couriers[listener.id] = Courier(self.depot, self.world.queue, listener, OPENED, share=self.share)
        self._couriers[listener.id].update(listener, share=self.share)

    def give_up(self) -> None:
        """As Worker._given_up, the attempts under way having ended or not."""
        world = self.world
        if not self._partitions:
            return
        for one in self._couriers.values():
            one.sending = False
        for request in list(self.requests):
            if world.dice.random() < 0.7:
                world.settle(request)
        for _ in range(4):
            for task in list(self.tasks):
                if world.dice.random() < 0.9:
                    task.step()
        self.finish_checkpoint()
        self.begin_checkpoint(self._last(), of_all=True)
        self.finish_checkpoint()
        saved_ms = self.saved_ms
        self.begin_checkpoint(self.checkpoints.once_more())
        self.finish_checkpoint()
        self.saved_ms = saved_ms  # it says nothing new
        world.crashed(self)
        self.ownership, self.gave_up = self.ownership + 1, len(world.record.crashes) - 1
        for partition in self._partitions.values():
            partition.alive = False
        self._partitions.clear()
        for one in self._couriers.values():
            for stream_now in list(one.streams.values()):
                one.drop(stream_now)
        self.checkpoints.forget()
        self._outstanding.forget()
        self._changes.forget()
        for one in self.lagging:
            one.requested = False  # its catch-up reader comes, and finds that it is given up
        self.lagging.clear()

    async def _last(self) -> None:
        """As in Worker._let_go."""
        in_doubt = any(one.busy for one in self._couriers.values())
        await self.checkpoints.last()
        if not in_doubt:
            await self._changes.hand_over()

    # What the tail and the catch-up readers do

    def feed(self) -> None:
        number = self.world.dice.choice(list(self._partitions))
        partition = self._partitions[number]
        partition.feed(self.world.messages(number, partition.tail, partition.tail + self.world.dice.randint(1, 6)))

    def _lag(self, one: Stream) -> None:
        partition = self._partitions.get(one.partition)
        if partition is None or not one.alive or partition.from_ring(one) or one.requested:
            return
        one.requested = True
        self.lagging.append(one)

    def catch_up(self) -> None:
        """As CatchUp._serve, for one stream."""
        one = self.lagging.pop(self.world.dice.randrange(len(self.lagging)))
        one.requested = False
        partition, start = self._partitions.get(one.partition), one.window.wanted()
        if partition is None or start is None or not one.alive:
            return
        end = min(start + self.world.dice.randint(1, 8), partition.tail)
        if start < end:
            found = self.world.messages(one.partition, start, end)
            partition.bring(one, found, start, end)
            CatchUp._report_gone(one, start, found, end)
            one.courier.refill()

    # Changes of messages

    def hear(self) -> None:
        """Some that are new."""
        self._hearing.send(None)

    def prune(self) -> None:
        """As Changes.prune."""
        for number in self._partitions:
            self._changes.forget_settled(number)

    async def _confirm_answer(self) -> None:
        await Pause()
        if self.cut is not None:
            raise LogUnavailable("no member any more")

    # Deliveries that left their window

    def die(self) -> None:
        """Nothing of it is heard again."""
        for one in (*self.loop.connecting, *self.tasks):
            one.cancel()
        self.tasks.clear()
        if self.under_checkpoint is not None:
            self.under_checkpoint.close()

    def work(self) -> None:
        """A step or three of what is on its way to `outstanding`, or handed to couriers from there."""
        if self._serving not in self.tasks:
            self._serving = self._run(self._outstanding.serve_due())
        for _ in range(self.world.dice.randint(1, 3)):
            task = self.world.dice.choice(self.tasks)
            task.step()
            if task is not self._serving and self.world.dice.random() < CRASH_BETWEEN:
                self.world.crash(self)
            if not self.tasks:
                break

    def work_off(self) -> None:
        """Until nothing is on its way, or it waits for an attempt that is under way."""
        self._run(self._outstanding.serve_due())
        for _ in range(WORKS_OFF_MAX):
            for task in list(self.tasks):
                task.step()
            if not self.tasks:
                break

    def _run(self, coroutine: Coroutine[Any, Any, Any]) -> Task:
        task = Task(coroutine)
        self.tasks.append(task)
        task.add_done_callback(self.tasks.remove)
        return task

    # Checkpoints: the real ones, a step at each await

    def begin_checkpoint(self, checkpoint: Coroutine[Any, Any, None] | None = None, *, of_all: bool = False) -> None:
        """of_all: nobody gives way in it."""
        self.of_all = of_all
        # What is under way now may have been taken already, and is settled after this checkpoint.
        self.began_ms = min([self.world.now_ms, *(int(one.at * 1000) for one in self.requests)])
        self.confirmed = False
        self.under_checkpoint = self.checkpoints.checkpoint() if checkpoint is None else checkpoint
        self.step_checkpoint()

    def step_checkpoint(self) -> None:
        try:
            self.under_checkpoint.send(None)
        except StopIteration:
            self.under_checkpoint, self.saved_ms = None, self.began_ms
            if self.of_all:
                self.all_saved_ms = self.began_ms
        except LogUnavailable:
            self.under_checkpoint = None

    def finish_checkpoint(self) -> None:
        while self.under_checkpoint is not None:
            self.step_checkpoint()

    def finish_commit(self) -> None:
        """What it was a moment ago a member for is made before its session can end: there are seconds for it."""
        while self.confirmed and self.under_checkpoint is not None:
            self.step_checkpoint()

    async def _store(self, cursors: Mapping[str, Mapping[int, Cursor]]) -> None:
        await Pause()
        self.confirmed = False
        if self.world.unavailable():
            raise LogUnavailable("an outage")
        self.world.commit(cursors, by=self)

    async def _confirm(self) -> None:
        await Pause()
        if self.cut is not None:
            raise LogUnavailable("no member any more")
        self.confirmed = True

    async def _assure(self) -> None:
        if self.cut is not None:
            await self._confirm()

    # Time

    def tick(self) -> None:
        at_ms = self.world.now_ms
        self.active[:] = [one for one in self.active if one.tick(at_ms)]
        share_out(self.active)
        for one in let_begin(self.active, self.world.dice.randrange(4), turn=at_ms):
            one.pump()
        for one in self._couriers.values():
            if one.circuit.state is State.OPEN and one.circuit.probe_at_ms <= at_ms:
                alive = self.world.moods[one.listener.name] != "down"
                if one.circuit.probed(alive=alive, at_ms=at_ms, interval_ms=500):
                    one.wake()


def to_its_end(coroutine: Coroutine[Any, Any, Any], meanwhile: Callable[[], None]) -> Any:
    """What it comes to, nothing else happening but this, at each await."""
    try:
        while True:
            coroutine.send(None)
            meanwhile()
    except StopIteration as end:
        return end.value
