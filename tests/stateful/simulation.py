"""A deterministic world for the deliveries: a clock, a log, listeners and workers that crash, all out of one seed.

For: driving the real Courier, Window, Cursor, Turns, Flow, Circuit, retries, Partition and Checkpoints step by step, in
any order that a real run might take, without a socket or an event loop (simulated_worker.py). What a run proves is
judged as a soak is (tests/scenarios/verdict.py). Not for: Kafka and HTTP (tests/kafka, tests/delivery), the worker's
loops, broker/delivery/outstanding.py, for which a few lines stand in.
"""

from __future__ import annotations

import contextlib
import itertools
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from broker.core import window
from broker.core.cursor import Cursor
from broker.core.directory import Listener, Queue
from broker.core.events import ListenerSettings, MessagePut, encode
from broker.core.flow import Share
from broker.core.ids import message_id
from broker.delivery import checkpoints, courier, readers, stream
from broker.delivery.courier import Courier
from broker.delivery.guard import AWAY, Target
from broker.delivery.http import ConnectFailed
from broker.delivery.message import Message
from broker.delivery.stream import Delivery, Stream
from broker.errors import LogUnavailable
from tests.scenarios.verdict import Crash, Put, Record, Taken, violations
from tests.stateful.simulated_worker import Connection, Kept, Loop, SimWorker

PARTITIONS = 2
QUEUES = ("own", "other")
KEYS = (None, None, "a", "b")
BEGIN_MS = 1_700_000_000_000
ROUNDS_MAX = 600


@dataclass
class World:
    """One run. found: what is wrong, beside what the record shows in the end."""

    dice: random.Random
    now_ms: int = BEGIN_MS
    record: Record = field(default_factory=Record)
    found: list[str] = field(default_factory=list)
    log: list[list[tuple[Put, str]]] = field(default_factory=lambda: [[] for _ in range(PARTITIONS)])
    listeners: list[Listener] = field(default_factory=list)
    moods: dict[str, str] = field(default_factory=dict)
    committed: dict[tuple[str, int], tuple[int, str]] = field(default_factory=dict)
    kept: dict[tuple[str, bytes], Kept] = field(default_factory=dict)
    workers: list[SimWorker] = field(default_factory=list)
    zombies: list[Connection] = field(default_factory=list)
    outage: bool = False
    current: SimWorker | None = None

    def __post_init__(self) -> None:
        self.queue = Queue(id="own", organization_id="o", name="own", created_at_ms=0)

    def run(self, steps: int) -> list[str]:
        """What was wrong with it."""
        self.listen()
        self.workers = [SimWorker(self), SimWorker(self)]
        self.rebalance()
        for _ in range(steps):
            self.now_ms += 1
            self.step()
            self.settle_loops()
        self.finish()
        for one in self.workers:
            one.die()
        self.record.waiting = {
            (self.name(key[0]), self.data(key[1])) for key, kept in self.kept.items() if kept.due_ms is None
        }
        self.record.taken = {one.name: self.record.taken.get(one.name, []) for one in self.listeners}
        return self.found + violations(self.record)

    def step(self) -> None:
        dice = self.dice
        worker = dice.choice(self.workers)
        match dice.randrange(20):
            case 0 | 1 | 2:
                self.put()
            case 3 | 4 | 5:
                if worker._partitions and worker.cut is None:
                    worker.feed()
            case 6 | 7 | 8 | 9 | 10:
                if worker.loop.connecting and dice.random() < 0.5:
                    worker.loop.connecting.pop(dice.randrange(len(worker.loop.connecting))).run()
                elif worker.requests:
                    self.settle(dice.choice(worker.requests))
            case 11:
                if worker.lagging and worker.cut is None:
                    worker.catch_up()
            case 12 | 13:
                self.now_ms += dice.choice((20, 300, 2_000, 30_000))
                for one in list(self.workers):
                    one.tick()
            case 14 | 15:
                if worker.under_checkpoint is None:
                    worker.begin_checkpoint()
                elif worker.cut is None or dice.random() < 0.2:
                    worker.step_checkpoint()
            case 16:
                if worker.cut is not None:
                    if dice.random() < 0.2:
                        self.back(worker)
                elif worker.leaving:
                    worker.leave()
                else:
                    worker.serve_due()
            case 17:
                self.moods[dice.choice(self.listeners).name] = dice.choice(("well", "well", "flaky", "down", "busy"))
                if self.zombies:
                    self.late()
            case 18:
                self.outage = dice.random() < 0.3
                if len(self.listeners) < 3 and dice.random() < 0.1:
                    self.listen()
            case _:
                if dice.random() < 0.2:
                    dice.choice((self.crash, lambda _: self.rebalance(), self.cut_off))(worker)

    # The API

    def put(self) -> None:
        dice, at_s = self.dice, self.now_ms / 1000
        number = sum(map(len, self.log))
        key = dice.choice(KEYS)
        partition = dice.randrange(PARTITIONS) if key is None else KEYS.index(key) % PARTITIONS
        own = dice.random() < 0.8
        made = message_id(at_ms=self.now_ms, partition=partition, random_bits=number)
        put = Put(f"m{number}", key, at_s, at_s, made)
        self.log[partition].append((put, QUEUES[0] if own else QUEUES[1]))
        if own:
            self.record.puts.append(put)

    def listen(self) -> None:
        dice, name = self.dice, f"l{len(self.listeners)}"
        settings = ListenerSettings(
            max_in_flight=dice.randint(1, 4), max_attempts=dice.choice((None, None, 3)), timeout_ms=1_000
        )
        listener = Listener(
            id=f"id-{name}",
            organization_id="o",
            queue_id="own",
            name=name,
            notify_url=dice.choice(("http://listener/", "tunnel://listener:1/")),
            liveness_url="http://listener/",
            sealed_secret="",
            start_offsets=tuple(map(len, self.log)),
            settings=settings,
            created_at_ms=self.now_ms,
        )
        self.listeners.append(listener)
        self.moods[name] = "well"
        self.record.listeners[name] = (self.now_ms / 1000, self.now_ms / 1000)
        for one in self.workers:
            one.employ(listener)

    def messages(self, partition: int, start: int, end: int) -> list[Message]:
        found = []
        for offset, (put, queue_id) in enumerate(self.log[partition][start:end], start):
            event = MessagePut(
                at_ms=round(put.sent_at * 1000),
                organization_id="o",
                message_id=put.message_id,
                queue_id=queue_id,
                name="n",
                data=put.data,
                key=put.key,
            )
            found.append(Message(offset, put.message_id.encode(), queue_id, event.at_ms, encode(event)))
        return found

    # The listeners

    def take(self, listener: str, message: Message, crash: int | None) -> None:
        if crash is not None:
            self.record.crashes[crash] = replace(self.record.crashes[crash], ended=self.now_ms / 1000)
        self.record.taken.setdefault(listener, []).append(
            Taken(self.data(message.id), message.id.decode(), self.now_ms / 1000)
        )

    def settle(self, request: Connection) -> None:
        """One more step of a request: the listener takes or refuses it, or its answer arrives."""
        if request.phase == "taken":
            request.answer(200)
            return
        mood = self.moods[request.owner.listener.name]
        if mood == "well" or (mood == "flaky" and self.dice.random() < 0.5):
            request.take()
            if self.dice.random() < 0.7:
                request.answer(200)
        elif mood == "busy":
            request.answer(429, self.dice.choice((None, 1)))
        elif mood == "flaky":
            request.answer(self.dice.choice((500, 422)))
        elif request.owner.listener.notify_url.startswith("tunnel"):
            request.answer(AWAY)
        else:
            request.fail("closed")

    def late(self) -> None:
        """A request of a worker that is gone reaches its listener after all."""
        self.zombies.pop(self.dice.randrange(len(self.zombies))).take()

    # What dies

    def crash(self, worker: SimWorker) -> None:
        """kill -9, and another one takes its place."""
        if worker.under_checkpoint is not None and self.dice.random() < 0.5:
            worker.step_checkpoint()  # Kafka had it already
        self.crashed(worker)
        self.zombies += [one for one in worker.requests if one.phase == "sent" and self.dice.random() < 0.3]
        worker.die()
        self.workers[self.workers.index(worker)] = SimWorker(self)
        self.rebalance()

    def cut_off(self, worker: SimWorker) -> None:
        """Its session ends, and it does not know: it goes on with what it holds, while others have its partitions."""
        if self.members() in ([worker], []) or worker.cut is not None:
            return
        worker.finish_commit()
        self.crashed(worker)
        worker.cut = len(self.record.crashes) - 1
        self.rebalance()

    def back(self, worker: SimWorker) -> None:
        """It hears of it."""
        worker.give_up()
        worker.cut = None
        self.rebalance()

    def members(self) -> list[SimWorker]:
        return [one for one in self.workers if one.cut is None]

    def rebalance(self) -> None:
        """All give up what they have, and the dice say who gets what."""
        members = self.members()
        for one in members:
            one.give_up()
        dealt: dict[int, list[int]] = {}
        for number in range(PARTITIONS):
            dealt.setdefault(self.dice.randrange(len(members)), []).append(number)
        for rank, (place, numbers) in enumerate(dealt.items()):  # by their lowest partition
            members[place].share = Share(partitions=len(numbers) / PARTITIONS, workers=len(dealt), rank=rank)
            members[place].take_over(numbers)

    def under_way(self, listener_id: str) -> int:
        """Attempts of a listener, by all workers, but for those of an earlier ownership."""
        requests = (one for worker in self.workers for one in worker.requests)
        return sum(one.owner.listener.id == listener_id and one.crash is None for one in requests)

    def more_in_flight(self, number: int) -> None:
        crash = self.record.crashes[number]
        self.record.crashes[number] = replace(crash, in_flight=crash.in_flight + 1, ended=self.now_ms / 1000)

    def crashed(self, worker: SimWorker) -> None:
        at_s = self.now_ms / 1000
        for one in worker.requests:
            one.crash = len(self.record.crashes)
        self.record.crashes.append(Crash(at_s, at_s, worker.saved_ms / 1000, len(worker.requests)))

    def perhaps_unavailable(self) -> None:
        if self.outage and self.dice.random() < 0.5:
            raise LogUnavailable("an outage")

    # Kafka's committed offsets

    def commit(self, cursors: Mapping[str, Mapping[int, Cursor]], *, by: SimWorker) -> None:
        for listener_id, rows in cursors.items():
            name = self.name(listener_id)
            delivered = {one.message_id for one in self.record.taken.get(name, ())}
            begin = next(one.start_offsets for one in self.listeners if one.id == listener_id)
            for number, cursor in rows.items():
                if by.cut is not None and cursor.offset < self.committed.get((listener_id, number), (0, ""))[0]:
                    self.found.append(f"set back: the cursor of {name}")
                self.committed[listener_id, number] = cursor.offset, cursor.metadata()
                for offset, (put, queue_id) in enumerate(self.log[number][: cursor.top]):
                    kept = (listener_id, put.message_id.encode()) in self.kept
                    done = put.message_id in delivered or kept
                    if queue_id == "own" and offset >= begin[number] and cursor.settled(offset) and not done:
                        self.found.append(f"committed past: {put.data} ({name})")

    def cursors(self, listener: Listener) -> dict[int, Cursor]:
        return {
            number: Cursor.from_metadata(*self.committed[listener.id, number])
            for number in range(PARTITIONS)
            if (listener.id, number) in self.committed
        }

    # The end

    def finish(self) -> None:
        """Nothing dies any more, and every listener is well: all of it must arrive."""
        self.outage = False
        while self.zombies:
            self.late()
        self.moods = dict.fromkeys(self.moods, "well")
        for one in self.workers:
            if one.cut is not None:
                self.back(one)
        for number in range(ROUNDS_MAX):
            self.now_ms += 1_000 if number < ROUNDS_MAX // 2 else 60_000
            for one in self.workers:
                self._let_work(one)
            if self._done():
                break

    def _let_work(self, worker: SimWorker) -> None:
        worker.tick()
        for number, partition in worker._partitions.items():
            partition.feed(self.messages(number, partition.tail, len(self.log[number])))
        while worker.loop.connecting:
            worker.loop.connecting.pop().run()
        for request in list(worker.requests):
            self.settle(request)
        for _ in range(len(worker.lagging)):
            worker.catch_up()
        while worker.leaving:
            worker.leave(crash_between=0.0)
        worker.serve_due()
        worker.finish_checkpoint()
        worker.begin_checkpoint()
        worker.finish_checkpoint()
        worker.loop.settle()

    def _done(self) -> bool:
        """Every stream stands at the end of the log."""
        return all(
            not courier_now.busy
            and all(partition.tail == len(self.log[number]) for number, partition in worker._partitions.items())
            and all(one.window.idle(len(self.log[one.partition])) for one in courier_now.streams.values())
            and all(kept.due_ms is None for kept in worker.owed.values())
            for worker in self.workers
            for courier_now in worker._couriers.values()
        )

    def settle_loops(self) -> None:
        for one in self.workers:
            one.loop.settle()

    def name(self, listener_id: str) -> str:
        return listener_id.removeprefix("id-")

    def data(self, found_id: bytes) -> str:
        return f"m{int(found_id[-12:], 16)}"


@contextlib.contextmanager
def simulated() -> Iterator[Callable[[int, int], list[str]]]:
    """Give the real parts the simulation's clock, dice and network, and small limits; yields run(seed, steps)."""
    here: list[World] = []

    async def connect(owner: Courier, target: Target, *_: object) -> Connection:
        if here[0].moods[owner.listener.name] == "down":
            raise ConnectFailed("refused")
        worker = next(one for one in here[0].workers if owner in one._couriers.values())
        return Connection(owner, worker, target)

    def draw() -> float:
        return here[0].dice.random()

    numbers = itertools.count()

    def get_loop() -> Loop:
        return here[0].current.loop

    def run(seed: int, steps: int) -> list[str]:
        here[:] = [World(random.Random(seed))]
        return here[0].run(steps)

    with contextlib.ExitStack() as stack:

        def put_in(module: Any, **parts: Any) -> None:
            for name, part in parts.items():
                stack.enter_context(patch.object(module, name, part))

        put_in(window, OPEN_MAX=4, BEHIND_MAX=3)
        put_in(readers, RING_MAX=6)
        put_in(courier, HELD_MAX=5, WAITING_MAX=1, CROWDED_AFTER_S=0.3, RETRIES_MAX=2, connect=connect, random=draw)
        put_in(checkpoints, _AT_ONCE=1, _TOGETHER=1, _PAUSES_MAX=99)
        put_in(courier, asyncio=SimpleNamespace(get_running_loop=get_loop))
        # Where an object lies in memory must not decide anything.
        stack.enter_context(patch.object(courier, "id", lambda _one: next(numbers), create=True))
        put_in(Stream, __hash__=lambda one: one.partition + PARTITIONS * int(one.courier.listener.name[1:]))
        put_in(Delivery, __hash__=lambda one: one.offset)
        put_in(courier, time=SimpleNamespace(time=lambda: here[0].now_ms / 1000))
        for module in (courier, stream, checkpoints):
            put_in(module, now_ms=lambda: here[0].now_ms)
        yield run
