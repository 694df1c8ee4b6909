"""A worker of the simulation: the real couriers, windows and checkpoints, with a fake network and event loop around.

For: doing one step of what a worker does, when it is told to. Not for: which step comes next (simulation.py)."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Collection, Coroutine, Generator, Mapping
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from broker.core.circuit import State
from broker.core.cursor import Cursor
from broker.core.directory import Listener
from broker.core.flow import WHOLE
from broker.core.signing import Signer
from broker.core.turns import Lines
from broker.delivery.checkpoints import Checkpoints
from broker.delivery.courier import Courier, Depot
from broker.delivery.guard import Target
from broker.delivery.message import Message
from broker.delivery.meters import Meters
from broker.delivery.readers import CatchUp, Partition
from broker.delivery.request import Opened
from broker.delivery.shares import Sockets, let_begin, share_out
from broker.delivery.stream import Delivery, Stream
from broker.delivery.worker import Worker
from broker.errors import LogUnavailable

if TYPE_CHECKING:
    from tests.stateful.simulation import World

OPENED = Opened(Signer(b"k" * 32))
CRASH_BETWEEN = 0.1  # the chance that a worker dies after a record of `outstanding` and before its cursor passes


class Pause:
    """An await at which a step ends: anything may happen before the next one."""

    def __await__(self) -> Generator[None, None, None]:
        yield


@dataclass(slots=True, eq=False)
class Kept:
    """A delivery in `outstanding`. due_ms: None when it is parked."""

    key: tuple[str, bytes]
    partition: int
    offset: int
    number: int
    due_ms: int | None
    line: tuple[str, int, str] | None
    taken: bool = False
    found: bool = False
    forgiven: int = 0
    since_ms: int = 0


class Connection:
    """What a courier sends on. phase: idle, sent, taken (its answer is on the way)."""

    def __init__(self, owner: Courier, worker: SimWorker, target: Target) -> None:
        self.owner, self.worker, self.target = owner, worker, target
        self.work: Any = None
        self.at = 0.0
        self.used = 0
        self.fresh = True
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
        key = self.message.key
        if key is not None and any(one.message.key == key and one.work.stream.alive for one in mine):
            world.found.append(f"out of order: two of the key {key} under way")
        self.worker.requests.append(self)

    def take(self) -> None:
        """The listener takes the message."""
        self.phase = "taken"
        self.worker.world.take(self.owner.listener.name, self.message, self.crash)

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
        if self in self.worker.requests:
            self.worker.requests.remove(self)
        self.work, self.phase = None, "idle"


class Loop:
    """What a courier wants of the event loop."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._soon: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self.connecting: list[Connecting] = []

    def time(self) -> float:
        return self._world.now_ms / 1000

    def call_soon(self, callback: Callable[..., None], *arguments: Any) -> None:
        self._soon.append((callback, arguments))

    def create_task(self, coroutine: Coroutine[Any, Any, None]) -> Connecting:
        self.connecting.append(Connecting(coroutine))
        return self.connecting[-1]

    def settle(self) -> None:
        while self._soon:
            callback, arguments = self._soon.popleft()
            callback(*arguments)


class Connecting:
    """A task that connects, in one step."""

    def __init__(self, coroutine: Coroutine[Any, Any, None]) -> None:
        self._coroutine = coroutine
        self._callbacks: list[Callable[[Any], Any]] = []

    def add_done_callback(self, callback: Callable[[Any], Any]) -> None:
        self._callbacks.append(callback)

    def run(self) -> None:
        with contextlib.suppress(StopIteration):
            self._coroutine.send(None)
        for callback in self._callbacks:
            callback(self)

    def cancel(self) -> None:
        self._coroutine.close()

    def cancelled(self) -> bool:
        return False


class SimWorker:
    """A worker's parts around the real couriers. Lives until it crashes; its partitions come and go."""

    _place = Worker._place

    def __init__(self, world: World) -> None:
        self.world = world
        self.loop = Loop(world)
        self.requests: list[Connection] = []
        self.lagging: list[Stream] = []
        self.owed: dict[tuple[str, bytes], Kept] = {}
        self.lines: Lines[tuple[str, int, str], Kept] = Lines()
        self.tombstones: list[tuple[str, bytes]] = []
        self.leaving: list[tuple[Delivery, int | None]] = []
        self.active: list[Courier] = []
        self.share = WHOLE
        self.cut: int | None = None  # the crash that counts, while its session has ended and it does not know
        self.under_checkpoint: Any = None
        self.confirmed = False  # it was a member a moment ago: it may commit once
        self.began_ms = self.saved_ms = world.now_ms  # of the checkpoint under way, and of the last that succeeded
        self._partitions: dict[int, Partition] = {}
        self._couriers: dict[str, Courier] = {}
        self._new_checkpoints()
        self.depot = Depot(
            resolver=None,
            sockets=Sockets(3),
            tls=None,
            touched=self.checkpoints.touched,
            lagging=self._lag,
            active=self.active.append,
            put_aside=lambda delivery, _status, _error, due_ms: self._put_aside(delivery, due_ms),
            overtakes=self._overtakes,
            is_owed=self._is_owed,
            delivered=self._delivered,
            returned=lambda delivery: setattr(delivery.owed, "taken", False),
            gone=lambda _courier: None,
            changes={},
            hold=lambda _delivery: False,
        )

    def _new_checkpoints(self) -> None:
        cursors = SimpleNamespace(store=self._store)
        deliveries = SimpleNamespace(append=self._append)
        outstanding = SimpleNamespace(flush=self._flush)
        self.checkpoints = Checkpoints(
            cursors, deliveries, outstanding, self._partitions, self._couriers, Meters(), self._confirm
        )

    # Ownership

    def take_over(self, numbers: Collection[int]) -> None:
        """As Worker._take_over."""
        world = self.world
        for number in numbers:
            tops = [one.stands_at(world.cursors(one), number).top for one in world.listeners]
            end = len(world.log[number])
            self._partitions[number] = Partition(number, min(tops) if world.dice.random() < 0.7 else end)
            kept = {key: one for key, one in world.kept.items() if one.partition == number}
            self.owed |= {key: replace(one, taken=False, found=True) for key, one in kept.items()}
            for key in kept:
                self._stand_in_line(self.owed[key])
        for one in world.listeners:
            self.employ(one, numbers)

    def employ(self, listener: Listener, numbers: Collection[int] | None = None) -> None:
        if listener.id not in self._couriers:
            self.world.current = self
            self._couriers[listener.id] = Courier(self.depot, self.world.queue, listener, OPENED, share=self.share)
        self._couriers[listener.id].update(listener, share=self.share)
        self._couriers[listener.id].sending = True
        self._place(listener, self.world.cursors(listener), self._partitions if numbers is None else numbers)

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
        while self.leaving:
            self.leave(crash_between=0.0)
        self.finish_checkpoint()
        self.begin_checkpoint(self.checkpoints.last())
        self.finish_checkpoint()
        world.crashed(self)
        for partition in self._partitions.values():
            partition.alive = False
        self._partitions.clear()
        for one in self._couriers.values():
            for stream_now in list(one.streams.values()):
                one.drop(stream_now)
        self.checkpoints.forget()
        self.owed.clear()
        self.lines.clear()
        self.tombstones.clear()
        for one in self.lagging:
            one.requested = False  # its catch-up reader comes, and finds that it is given up
        self.lagging.clear()

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

    # Deliveries that left their window

    def die(self) -> None:
        """Nothing of it is heard again."""
        for one in self.loop.connecting:
            one.cancel()
        if self.under_checkpoint is not None:
            self.under_checkpoint.close()

    def leave(self, crash_between: float = CRASH_BETWEEN) -> None:
        """Two steps: the record is written, then the delivery settled. A crash may come between."""
        delivery, due_ms = self.leaving.pop(self.world.dice.randrange(len(self.leaving)))
        message, world = delivery.message, self.world
        if message is None or not delivery.stream.alive:
            return
        key = (delivery.stream.courier.listener.id, message.id)
        kept = Kept(key, delivery.stream.partition, delivery.offset, delivery.number, due_ms, _line(delivery))
        kept.found = delivery.owed is not None and delivery.owed.found
        world.kept[key] = self.owed[key] = kept
        if self.cut is not None:  # the next owner of the partition after this one finds it: docs/decisions/0006
            world.more_in_flight(self.cut)
        self._stand_in_line(kept)
        if world.dice.random() >= crash_between:
            delivery.stream.courier.settle(delivery)
        else:
            world.crash(self)

    def serve_due(self) -> None:
        for kept in list(self.owed.values()):
            one = self._couriers[kept.key[0]]
            if kept.due_ms is None or kept.due_ms > self.world.now_ms or kept.taken or not one.room():
                continue
            if not self._may_leave(one, kept) or (kept.line is not None and not self._may_go(kept)):
                continue
            kept.taken = True
            (message,) = self.world.messages(kept.partition, kept.offset, kept.offset + 1)
            delivery = Delivery(one.stream(kept.partition), kept.offset, message)
            delivery.number, delivery.owed = kept.number, kept
            delivery.stream.owed.add(delivery)
            one.accept(delivery, message)

    def _put_aside(self, delivery: Delivery, due_ms: int | None) -> None:
        line = _line(delivery)
        if line is not None and due_ms is not None and not self.lines.holds(line, delivery.offset):
            self.lines.join(line, delivery.offset, None)
        self.leaving.append((delivery, due_ms))

    def _stand_in_line(self, kept: Kept) -> None:
        if kept.line is not None and kept.due_ms is not None:
            self.lines.join(kept.line, kept.offset, kept)
        elif kept.line is not None:
            self.lines.leave(kept.line, kept.offset)

    def _overtakes(self, delivery: Delivery) -> bool:
        line = _line(delivery)
        return line is not None and self.lines.begins_before(line, delivery.offset)

    def _may_go(self, kept: Kept) -> bool:
        for one in self.lines.head(kept.line, 3):
            if one is kept:
                return True
            if not one.taken:
                return False
        return False

    def _may_leave(self, courier: Courier, kept: Kept) -> bool:
        tail, one = self._partitions[kept.partition].tail, courier.streams.get(kept.partition)
        if kept.found and not self._passed(one, kept.offset, tail):
            return False
        return kept.line is None or not self._lacks_earlier(one, kept.offset, tail)

    def _passed(self, one: Stream | None, offset: int, tail: int) -> bool:
        return offset < tail if one is None else one.window.settled(offset, tail)

    def _lacks_earlier(self, one: Stream | None, offset: int, tail: int) -> bool:
        wanted = None if one is None else one.window.wanted()
        return min(tail, tail if wanted is None else wanted) <= offset

    def _is_owed(self, delivery: Delivery) -> bool:
        key = (delivery.stream.courier.listener.id, delivery.message.id)
        return key in self.owed

    def _delivered(self, delivery: Delivery) -> None:
        if self.owed.pop(delivery.owed.key, None) is not None:
            self.tombstones.append(delivery.owed.key)
            if delivery.owed.line is not None:
                self.lines.leave(delivery.owed.line, delivery.offset)

    # Checkpoints: the real ones, a step at each await

    def begin_checkpoint(self, checkpoint: Coroutine[Any, Any, None] | None = None) -> None:
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
        except LogUnavailable:
            self.under_checkpoint = None

    def finish_checkpoint(self) -> None:
        while self.under_checkpoint is not None:
            self.step_checkpoint()

    def finish_commit(self) -> None:
        """What it was a moment ago a member for is made before its session can end: there are seconds for it."""
        while self.confirmed and self.under_checkpoint is not None:
            self.step_checkpoint()

    async def _append(self, outcomes: dict[int, object]) -> None:
        await Pause()
        try:
            self.world.perhaps_unavailable()
        except LogUnavailable:
            for number in list(outcomes):
                if self.world.dice.random() < 0.5:
                    del outcomes[number]
            raise
        outcomes.clear()

    async def _flush(self) -> None:
        settled, self.tombstones = self.tombstones, []
        if settled:
            await Pause()
            for key in settled:
                self.world.kept.pop(key, None)

    async def _store(self, cursors: Mapping[str, Mapping[int, Cursor]]) -> None:
        await Pause()
        self.confirmed = False
        self.world.perhaps_unavailable()
        self.world.commit(cursors, by=self)

    async def _confirm(self) -> None:
        await Pause()
        if self.cut is not None:
            raise LogUnavailable("no member any more")
        self.confirmed = True

    # Time

    def tick(self) -> None:
        at_ms = self.world.now_ms
        self.active[:] = [one for one in self.active if one.tick(at_ms)]
        share_out(self.active)
        let_begin(self.active, self.world.dice.randrange(4), turn=at_ms)
        for one in self._couriers.values():
            if one.circuit.state is State.OPEN and one.circuit.probe_at_ms <= at_ms:
                alive = self.world.moods[one.listener.name] != "down"
                if one.circuit.probed(alive=alive, at_ms=at_ms, interval_ms=500):
                    one.wake()


def _line(delivery: Delivery) -> tuple[str, int, str] | None:
    key = None if delivery.message is None else delivery.message.key
    return None if key is None else (delivery.stream.courier.listener.id, delivery.stream.partition, key)
