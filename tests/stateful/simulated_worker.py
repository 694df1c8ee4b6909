"""A worker of the simulation: the real Worker, with Kafka in memory and a fake network and event loop around it.

For: doing one step of what a worker does, when it is told to. Not for: which step comes next (simulation.py)."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Collection, Coroutine, Mapping
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import orjson

from broker.core.damage import Damage
from broker.core.delivery import DROPPED
from broker.core.entities import Queue
from broker.core.flow import Share
from broker.delivery.dispatch.attempts import Attempts
from broker.delivery.dispatch.connections import Network
from broker.delivery.dispatch.delivery_batch import DeliveryBatch
from broker.delivery.dispatch.dispatcher import Dispatcher
from broker.delivery.dispatch.fairness import Sockets
from broker.delivery.dispatch.stream import Delivery
from broker.delivery.outstanding.schedule import Outstanding
from broker.delivery.reading.message import Message
from broker.delivery.reading.partition import Partition
from broker.delivery.worker import Worker
from broker.errors import LogUnavailable
from broker.outbound.addresses import Target
from broker.outbound.connection import REUSED
from broker.sealing import Sealer, new_sealing_key
from broker.settings import KafkaSettings, Settings
from projections.agents import follow
from tests.stateful.simulated_log import Future, SimFeed, SimMembership

if TYPE_CHECKING:
    from broker.delivery.assignment import Assignment
    from tests.stateful.simulation import World

SETTINGS = Settings(kafka=KafkaSettings(bootstrap="none"), sealing_key="")
SEALER = Sealer(new_sealing_key())
SEALED = SEALER.seal("whsec_" + "a2tr" * 8)
BATCH_MAX = 3
BREAKS_OFF = 0.1  # the chance that the answer to a batch ends before its end
WORKS_OFF_MAX = 60  # steps of each
STIRS = 0.6  # the chance that anything goes on in a worker beside what else happens
CRASH_BETWEEN = 0.1  # the chance that a worker dies after a record of `outstanding` and before its cursor passes


class Connection:
    """What a dispatcher sends on. phase: idle, sent, taken (its answer is on the way). refused: the ids of a batch's
    messages that the listener does not take.
    """

    def __init__(self, owner: Attempts, worker: SimWorker, target: Target) -> None:
        self.owner, self.worker, self.target = owner, worker, target
        self.work: Any = None
        self.at = 0.0
        self.used = 0
        self.cut = False
        self.fresh = True
        self.well = False
        self.times = REUSED
        self.kept: Callable[[bytes], None] | None = None  # told the answer when it has ended
        self.phase = "idle"
        self.messages: tuple[Message, ...] = ()
        self.refused: list[str] = []
        self.crash: int | None = None  # whose worker has gone, or given its partition up, while it was under way

    def send(self, request: bytes, work: tuple[Delivery, ...], at: float) -> None:
        world, listener = self.worker.world, self.owner.dispatcher.listener
        self.work, self.at, self.phase, self.crash = work, at, "sent", None
        self.messages, self.refused = tuple(one.message for one in work), []
        if isinstance(work, DeliveryBatch):
            sent = [one["id"] for one in orjson.loads(request.partition(b"\r\n\r\n")[2])]
            if sent != [message.id.decode() for message in self.messages] or len(sent) > BATCH_MAX:
                world.found.append(f"misformed: a batch with {sent}")
        mine = [one for one in self.worker.requests if one.owner is self.owner]
        if self.worker.cut is not None:
            self.crash = self.worker.cut
            world.more_in_flight(self.crash, len(work))
        elif world.under_way(listener.id) >= max(listener.settings.max_in_flight, self.worker.share.workers):
            world.found.append("too many: more under way than max_in_flight")
        if self.worker.cut is None:
            for one in work:
                world.attempted(listener, one.message, one.number)
                world.changes.sent(self.worker, listener.name, one.stream.partition, one.message)
        keys = [one.key for one in self.messages if one.key is not None]
        keys += {
            message.key
            for one in mine
            for message, delivery in zip(one.messages, one.work, strict=True)
            if message.key is not None and delivery.state is not DROPPED
        }
        if len(set(keys)) < len(keys):
            world.found.append(f"out of order: two of a key under way, of {keys}")
        self.worker.requests.append(self)

    def take(self, refused: float = 0.0) -> None:
        """The listener takes the message, or those of a batch but for this part of them."""
        world, listener = self.worker.world, self.owner.dispatcher.listener
        self.phase = "taken"
        for message in self.messages:
            if refused and isinstance(self.work, DeliveryBatch) and world.dice.random() < refused:
                self.refused.append(message.id.decode())
            else:
                world.take(listener.name, message, self.crash)
                world.changes.took(listener.name, message, self)

    def answer(self, status: int, retry_after_s: int | None = None) -> None:
        self.worker.acts()
        self.owner.answered(self, status, retry_after_s)
        self.used += 1
        if self.kept is not None:
            kept, self.kept = self.kept, None
            body = orjson.dumps({"failed": self.refused}) if self.refused else b""
            if isinstance(self.work, DeliveryBatch) and status == 200 and self.worker.world.dice.random() < BREAKS_OFF:
                length, self.cut = b"content-length: %d\r\n" % (len(body) + 1) if self.used % 2 else b"", True
                kept(b"HTTP/1.1 200 Said\r\n%b\r\n%b" % (length, body[: len(body) // 2]))
                self._end(lost=True)
                self.owner.lost(self)
                return
            kept(b"HTTP/1.1 %d Said\r\ncontent-length: %d\r\n\r\n%b" % (status, len(body), body))
        self._end()
        self.owner.released(self)

    def keep(self, ended: Callable[[bytes], None], _bytes_max: int = 0) -> None:
        self.kept = ended

    def fail(self, error: str) -> None:
        self.worker.acts()
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
            for message in self.messages:
                self.worker.world.record.lost_answers += 1
                self.worker.world.changes.lost(self.owner.dispatcher.listener.name, message, self)
        if self in self.worker.requests:
            self.worker.requests.remove(self)
        self.work, self.phase = None, "idle"


class Loop:
    """What the parts of one worker want of the event loop."""

    create_future = Future

    def __init__(self, worker: SimWorker) -> None:
        self._worker = worker
        self._soon: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self._later: list[tuple[float, Callable[..., None], tuple[Any, ...]]] = []
        self.connecting: list[Task] = []

    def time(self) -> float:
        return self._worker.world.now_ms / 1000

    def call_soon(self, callback: Callable[..., None], *arguments: Any) -> None:
        self._soon.append((callback, arguments))

    def call_later(self, delay_s: float, callback: Callable[..., None], *arguments: Any) -> SimpleNamespace:
        timer = (self.time() + delay_s, callback, arguments)
        self._later.append(timer)
        return SimpleNamespace(cancel=lambda: self._later.remove(timer) if timer in self._later else None)

    def create_task(self, coroutine: Coroutine[Any, Any, None]) -> Task:
        self.connecting.append(Task(coroutine, self._worker))
        return self.connecting[-1]

    def settle(self) -> None:
        if self._later:
            due = [one for one in self._later if one[0] <= self.time()]
            self._later = [one for one in self._later if one not in due]
            self._soon.extend(one[1:] for one in due)
        if self._soon:
            self._worker.acts()
        while self._soon:
            callback, arguments = self._soon.popleft()
            callback(*arguments)


class Task:
    """A coroutine, stepped from one await to the next."""

    def __init__(self, coroutine: Coroutine[Any, Any, None], worker: SimWorker) -> None:
        self._coroutine = coroutine
        self._worker = worker
        self._callbacks: list[Callable[[Any], Any]] = []

    def add_done_callback(self, callback: Callable[[Any], Any]) -> None:
        self._callbacks.append(callback)

    def step(self) -> float | None:
        """How long it sleeps, at the least; None when it has ended."""
        self._worker.acts()
        try:
            return self._coroutine.send(None) or 0.0
        except StopIteration:
            for callback in self._callbacks:
                callback(self)
            return None

    def throw(self, error: type[Exception]) -> None:
        self._worker.acts()
        self._coroutine.throw(error)

    def cancel(self) -> None:
        end(self._coroutine)

    def cancelled(self) -> bool:
        return False

    def exception(self) -> None:
        return None


def end(coroutine: Coroutine[Any, Any, Any]) -> None:
    """Cancel a coroutine, as asyncio does: closing it would leave the asynchronous generators in it unfinished."""
    with contextlib.suppress(asyncio.CancelledError, StopIteration):
        coroutine.throw(asyncio.CancelledError())
    coroutine.close()


class Timeout:
    """For asyncio.timeout(): to_its_end() keeps it."""

    def __init__(self, worker: SimWorker, seconds: float) -> None:
        self._worker, self._seconds = worker, seconds

    async def __aenter__(self) -> None:
        self._worker.deadlines.append(self._worker.loop.time() + self._seconds)

    async def __aexit__(self, *_: object) -> None:
        self._worker.deadlines.pop()


class Dealt:
    """For Gate: how much the slow may begin is up to the dice."""

    def __init__(self, world: World) -> None:
        self._world = world

    def tick(self, _late_s: float, *, waited: float) -> int:
        return self._world.dice.randrange(4)


class SimWorker:
    """A worker and what is under way in it. Lives until it crashes; its partitions come and go.

    ownership: counts what was given up. gave_up: the crash that counts for what it gave up last. cut: the crash that
    counts, while its session has ended and it does not know. confirmed: it was a member a moment ago: it may commit
    once. saved_ms, all_saved_ms: when the last checkpoint that succeeded began, and the last before a hand-over.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.loop = Loop(self)
        self.requests: list[Connection] = []
        self.tasks: list[Task] = []
        self.deadlines: list[float] = []
        self.ownership = 0
        self.gave_up: int | None = None
        self.cut: int | None = None
        self.confirmed = False
        self.under_checkpoint: Any = None
        self.began_ms = self.saved_ms = self.all_saved_ms = world.now_ms
        self.acts()
        ports = world.kafka.ports(self)
        network = Network(None, Sockets(3), None, world.connect)
        self.worker = Worker(
            SETTINGS, ports, self, SEALER, tuning=world.tuning, network=network, dice=world.dice.random
        )
        self._told: list[str] = []  # ids of listeners that its agent has yet to look at
        self.membership: SimMembership = ports.membership
        self.tail: SimFeed = ports.changes
        self._loops: list[Task] = []  # what the assignment's loops would be doing
        self._serving: Task | None = None
        self._reading: Task | None = None
        self._admitting: Task | None = None
        self._hearing: Any = None
        self._pruning: Any = None
        self._ticking = self.worker.ticks.run(self.dispatchers)
        self._ticking.send(None)
        Task(self.worker.join(), self).step()

    def acts(self) -> None:
        """What the worker's parts ask of asyncio from now on, they ask in its name."""
        self.world.current = self

    @property
    def state(self) -> SimpleNamespace:
        """The directory, as the worker has folded it: all of it."""
        listeners = {one.id: one for one in self.world.listeners}
        queue = Queue(id="own", organization_id="o", name="own", created_at_ms=0, listeners=listeners)
        return SimpleNamespace(listeners=listeners, queues={"own": queue}, damage=Damage(), given_up=Damage())

    @property
    def partitions(self) -> dict[int, Partition]:
        return self.worker.assignment.partitions

    @property
    def dispatchers(self) -> Mapping[str, Dispatcher]:
        return self.worker.dispatchers

    @property
    def outstanding(self) -> Outstanding:
        return self.worker.assignment.outstanding

    @property
    def share(self) -> Share:
        return self.worker.assignment.share

    # Ownership

    def take_over(self, numbers: Collection[int], share: Share) -> None:
        """The group has given it these partitions."""
        world = self.world
        self.acts()
        self.membership.share_now = share
        backlog_max = 10_000 if world.dice.random() < 0.7 else -1  # then the tail is at the end
        self.worker.tuning = replace(self.worker.tuning, tail_backlog_max=backlog_max)
        self._end_loops()
        self.membership.gained(list(numbers))
        checkpoints = self.worker.assignment.checkpoints
        checkpoints.last = partial(self._last_of_all, checkpoints.last)
        if world.slow_reads:  # its steps come among all others
            return
        outage = world.outage

        def meanwhile(slept_s: float) -> None:
            if slept_s:
                world.outage = False  # tried again until it is over
            world.meanwhile()

        self.to_its_end(self.tasks[-1], meanwhile)
        world.outage = outage

    def started(self, assignment: Assignment) -> None:
        """For Assignment.start(): the take-over has come to its end."""
        self._hearing, self._pruning = assignment.changes.run(), assignment.changes.prune()
        for key, event in self.world.kept.items():
            found = (event.partition, event.listener_id, event.message_id)
            if key in self.world.stored_late and assignment.outstanding.state(*found) is not None:
                self.world.lasts(self.world.stored_late.pop(key))

    def give_up(self) -> None:
        """The group agrees anew, the attempts under way having ended or not."""
        world, dice = self.world, self.world.dice
        if not self.partitions:
            Task(self.membership.given_up(()), self).step()
            return
        for request in list(self.requests):
            if dice.random() < 0.7:
                world.settle(request)
        self.finish_checkpoint()

        def meanwhile(slept_s: float) -> None:
            world.now_ms += round(1000 * slept_s)
            for task in list(self.tasks):
                if task is not giving_up and dice.random() < 0.9:
                    task.step()
            if self.requests and dice.random() < 0.2:
                world.settle(dice.choice(self.requests))
            self.loop.settle()

        self.acts()
        giving_up = self.run(self.membership.given_up(list(self.partitions)))
        self.to_its_end(giving_up, meanwhile)
        world.crashed(self)
        self.ownership, self.gave_up = self.ownership + 1, len(world.record.crashes) - 1
        self.membership.positions.clear()
        self._end_loops()

    async def _last_of_all(self, last: Callable[[], Coroutine[Any, Any, None]]) -> None:
        began_ms = self._begin()
        await last()
        self.saved_ms = self.all_saved_ms = began_ms

    def to_its_end(self, task: Task, meanwhile: Callable[[float], None]) -> None:
        """Nothing else happening but this, at each await."""
        while (slept_s := task.step()) is not None:
            meanwhile(slept_s)
            if self.deadlines and self.loop.time() > self.deadlines[-1]:
                task.throw(TimeoutError)

    # The directory

    def note(self, listener_id: str) -> None:
        """The directory has folded an event of this listener."""
        self._told.append(listener_id)

    def follow(self) -> None:
        """The agent comes to the events that are folded, and the cursors of those who came are loaded."""
        told, self._told = self._told, []
        for listener_id in told:
            follow(SimpleNamespace(listener_id=listener_id), self.state, self.worker.roster)
        if not self.world.slow_reads:
            self.to_its_end(Task(self.worker.roster.admit(), self), lambda _: self.world.meanwhile())
        elif self._admitting not in self.tasks:
            self._admitting = self.run(self.worker.roster.admit())

    # What the tail and the catch-up readers do

    def feed(self) -> None:
        """The tail brings what it has read, as soon as that is known to be the worker's own."""
        if self._reading not in self.tasks and self.membership.positions:
            self._reading = self.run(self.worker.tail_loop.read_once())
        if self._reading in self.tasks:
            self._reading.step()

    def catch_up(self) -> None:
        self._loop(self.worker.assignment.catch_up.serve_next(first=self.world.dice.random() < 0.5)).step()

    @property
    def lagging(self) -> int:
        """Streams that wait for a reader."""
        return self.worker.assignment.catch_up.waiting

    # Changes of messages

    def hear(self) -> None:
        """Some that are new."""
        self.acts()
        if self._hearing is not None:
            self._hearing.send(None)

    def prune(self) -> None:
        """Forget some that are settled."""
        self.acts()
        if self._pruning is not None:
            self._pruning.send(None)

    def _end_loops(self) -> None:
        """As Assignment.drop does."""
        for one in (self._hearing, self._pruning):
            if one is not None:
                end(one)
        self._hearing = self._pruning = None
        self.tail.follow({})
        for task in self._loops:
            if task in self.tasks:
                self.tasks.remove(task)
                task.cancel()
        self._loops.clear()

    # What is under way

    def die(self) -> None:
        """Nothing of it is heard again."""
        for tasks in (self.loop.connecting, self.tasks, self.loop.connecting):  # a task that ends may connect
            while tasks:
                tasks.pop().cancel()
        for one in (self.under_checkpoint, self._hearing, self._pruning, self._ticking):
            if one is not None:
                end(one)
        self.under_checkpoint = self._hearing = self._pruning = self._ticking = None

    def stir(self) -> None:
        """A step of anything, or a few while it takes over."""
        for _ in range(1 if self.partitions else 3):
            if self.tasks and self.world.dice.random() < STIRS:
                self.world.dice.choice(self.tasks).step()

    def work(self) -> None:
        """A step or three of what is on its way to `outstanding`, or handed to dispatchers from there, and so on."""
        if self._serving not in self.tasks:
            self._serving = self._loop(self.outstanding.serve_due())
        for _ in range(self.world.dice.randint(1, 3 + len(self.tasks))):
            task = self.world.dice.choice(self.tasks)
            leaves = task in self.worker.assignment.leaving
            task.step()
            if leaves and self.world.dice.random() < CRASH_BETWEEN:
                self.world.crash(self)
            if not self.tasks:
                break

    def work_off(self) -> None:
        """Until nothing is on its way, or it waits for an attempt that is under way."""
        self._loop(self.outstanding.serve_due())
        for _ in range(WORKS_OFF_MAX):
            self.step_all()
            if not self.tasks:
                break

    def step_all(self) -> None:
        for task in list(self.tasks):
            task.step()

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Task:
        """For asyncio.create_task()."""
        task = Task(coroutine, self)
        self.tasks.append(task)
        task.add_done_callback(self.tasks.remove)
        return task

    def _loop(self, coroutine: Coroutine[Any, Any, Any]) -> Task:
        """A round of one of the assignment's loops, which ends with it."""
        self._loops = [task for task in self._loops if task in self.tasks]
        self._loops.append(self.run(coroutine))
        return self._loops[-1]

    # Checkpoints: a step at each await

    def _begin(self) -> int:
        # What is under way now may have been taken already, and is settled after this checkpoint.
        self.confirmed = False
        return min([self.world.now_ms, *(int(one.at * 1000) for one in self.requests)])

    def begin_checkpoint(self) -> None:
        self.began_ms = self._begin()
        self.under_checkpoint = self.worker.assignment.checkpoints.checkpoint()
        self.step_checkpoint()

    def step_checkpoint(self) -> None:
        self.acts()
        try:
            self.under_checkpoint.send(None)
        except StopIteration:
            self.under_checkpoint, self.saved_ms = None, self.began_ms
        except LogUnavailable:
            self.under_checkpoint = None

    def finish_checkpoint(self) -> None:
        while self.under_checkpoint is not None:
            self.step_checkpoint()

    def finish_commit(self) -> None:
        """What it was a moment ago a member for is made before its session can end: there are seconds for it."""
        while self.confirmed and self.under_checkpoint is not None:
            self.step_checkpoint()

    # Time

    def tick(self) -> None:
        """Once more than what is late: an event loop that stood still expires nothing."""
        self.acts()
        for _ in range(2):
            while not self._ticking.send(None):
                pass
