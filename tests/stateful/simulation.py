"""A deterministic world for the deliveries: a clock, a log, listeners and workers that crash, all out of one seed.

For: driving the real Worker and all its parts, its take-overs and hand-overs too, from one await to the next, in any
order that a real run might take, without a socket or an event loop (simulated_worker.py, simulated_log.py). What a run
proves is judged as a soak is (tests/scenarios/verdict.py), and what changes of messages promise in
simulated_changes.py. Not for: Kafka and HTTP (tests/kafka, tests/delivery).
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import msgspec
from msgspec import UNSET, UnsetType

from broker import time_offsets
from broker.core import window
from broker.core.codec import decode, encode
from broker.core.cursor import Cursor
from broker.core.delivery import ENDED, HOLDS, TUNNEL_AWAY
from broker.core.entities import Listener
from broker.core.events import (
    BatchSetting,
    DeliveryParked,
    DeliverySetAside,
    KeptDelivery,
    ListenerSettings,
    MessagePut,
)
from broker.core.flow import Share
from broker.core.ids import message_id
from broker.delivery import assignment, background, roster
from broker.delivery import fence as ownership
from broker.delivery import worker as worker_module
from broker.delivery.assignment import Assignment
from broker.delivery.changes import answers
from broker.delivery.changes import honour as changes
from broker.delivery.checkpoint import checkpoints
from broker.delivery.checkpoint.checkpoints import Checkpoints
from broker.delivery.dispatch import admission, attempts, backlog, connections, dispatcher, liveness, stream, ticks
from broker.delivery.dispatch.attempts import Attempts
from broker.delivery.dispatch.stream import Delivery, Stream
from broker.delivery.fence import Fence
from broker.delivery.outstanding import due, records, redriving
from broker.delivery.outstanding import schedule as outstanding
from broker.delivery.outstanding.entry import entry_key
from broker.delivery.reading import catch_up, tail_loop
from broker.delivery.reading.message import Message
from broker.delivery.tuning import Tuning
from broker.outbound.addresses import Target
from broker.outbound.connection import ConnectFailed
from broker.ports import SESSION_TIMEOUT_MS
from tests.scenarios.verdict import Crash, Put, Record, Taken, violations
from tests.stateful.simulated_changes import SimChanges
from tests.stateful.simulated_log import Pause, Shared, SimKafka, in_turn
from tests.stateful.simulated_worker import BATCH_MAX, SEALED, Connection, Dealt, Loop, SimWorker, Task, Timeout

PARTITIONS = 2
QUEUES = ("own", "other")
KEYS = (None, None, "a", "b")
BEGIN_MS = 1_700_000_000_000
ROUNDS_MAX = 600
CHECKED = 0.2  # the part of all steps after which every delivery is looked at
TUNING = Tuning(
    ring_max=6,
    batches_held=2,
    rest_s=0.0,  # a run has its own ticks
    held_max=5,
    key_waiting_max=1,
    key_slow_s=0.3,
    retries_max=2,
    set_aside_together=2,
    set_aside_bytes_max=1_000,
    near_ms=1_000,
    dirty_at_once=1,
    commits_together=1,
    commit_pauses_max=99,
    outcomes_waiting_max=4,
    low_priority_s=20.0,  # a run's clock goes by leaps of up to 30 s
    slow_ms=20,
    due_at_once=3,
    due_each_at_once=2,
    key_taken_max=3,
    rows_at_once=2,
    redriven_at_once=1,
    looks_max=5,
    looks_each_max=3,
    tick_parts=1,
    share_ticks=1,
    texts_max=1,
)


@dataclass
class World:
    """One run. found: what is wrong, beside what the record shows in the end. log: what was put, by partition. kept:
    what the records of `outstanding` say, by key. stored_late: the keys of those written by who had given the partition
    up, and the number of the crash that stands for that. current: the worker whose code is running.
    """

    dice: random.Random
    now_ms: int = BEGIN_MS
    record: Record = field(default_factory=Record)
    found: list[str] = field(default_factory=list)
    log: list[list[tuple[Put, str, int]]] = field(default_factory=lambda: [[] for _ in range(PARTITIONS)])
    listeners: list[Listener] = field(default_factory=list)
    moods: dict[str, str] = field(default_factory=dict)
    kept: dict[bytes, KeptDelivery] = field(default_factory=dict)
    stored_late: dict[bytes, int] = field(default_factory=dict)
    workers: list[SimWorker] = field(default_factory=list)
    zombies: list[Connection] = field(default_factory=list)
    outage: bool = False
    ending: bool = False
    current: SimWorker | None = None

    def __post_init__(self) -> None:
        self.kafka = SimKafka(self, PARTITIONS)
        self.changes = SimChanges(self, PARTITIONS)
        self.changing = self.dice.random() < 0.5  # else more of everything else happens
        self.retaining = self.dice.random() < 0.4
        self.slow_reads = self.dice.random() < 0.5  # else a take-over is over before anything else happens

    async def connect(self, owner: Attempts, target: Target, *_: object) -> Connection:
        if self.moods[owner.dispatcher.listener.name] == "down":
            raise ConnectFailed("refused")
        worker = next(one for one in self.workers if owner.dispatcher in one.dispatchers.values())
        return Connection(owner, worker, target)

    def run(self, steps: int) -> list[str]:
        """What was wrong with it."""
        self.listen()
        self.tuning = replace(TUNING, set_aside_after_ms=self.dice.choice((2_000, 60_000)))
        self.workers = [SimWorker(self), SimWorker(self)]
        self.rebalance()
        for _ in range(steps):
            self.now_ms += 1
            self.step()
            self.settle_loops()
        self.finish()
        for one in self.workers:
            one.die()
        redrives = {one.id: one.redrives for one in self.listeners}
        self.record.waiting = {
            (self.name(kept.listener_id), self.data(kept.message_id))
            for kept in self.kept.values()
            if isinstance(kept, DeliveryParked)
            and not redrives[kept.listener_id].concern(kept.message_id, since=kept.redrives)
        }
        self.record.deleted = {
            put.data
            for number, puts in enumerate(self.log)
            for at, (put, _, _) in enumerate(puts)
            if self.changes.deleted((number, at))
        }
        self.found += [
            f"kept: {self.data(kept.message_id)} was deleted ({self.name(kept.listener_id)})"
            for kept in self.kept.values()
            if self.changes.deleted((kept.partition, kept.offset))
        ]
        self.record.taken = {one.name: self.record.taken.get(one.name, []) for one in self.listeners}
        return self.found + violations(self.record)

    def step(self) -> None:
        dice = self.dice
        for one in self.workers:
            one.stir()
        worker = dice.choice(self.workers)
        if self.changing and dice.random() < 0.15:
            self.step_of_changes(dice.choice(self.workers))
        if self.retaining and dice.random() < 0.1:
            self.retain(worker)
        match dice.randrange(22):
            case 0 | 1 | 2:
                self.put()
            case 3 | 4 | 5:
                if worker.partitions and worker.cut is None:
                    worker.feed()
            case 6 | 7 | 8 | 9 | 10:
                if worker.loop.connecting and dice.random() < 0.5:
                    worker.loop.connecting.pop(dice.randrange(len(worker.loop.connecting))).step()
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
                else:
                    worker.follow()
            case 17 | 18:
                worker.work()
            case 19:
                self.moods[dice.choice(self.listeners).name] = dice.choice(("well", "well", "flaky", "down", "busy"))
                if self.zombies:
                    self.late()
            case 20:
                self.outage = dice.random() < 0.3
                if len(self.listeners) < 3 and dice.random() < 0.1:
                    self.listen()
                if dice.random() < 0.2:
                    self.change_batch(dice.choice(self.listeners))
                if dice.random() < 0.3:
                    kept = dice.choice((None, *self.kept.values()))
                    one = dice.choice(self.listeners) if kept is None else self.listener(kept.listener_id)
                    self.redrive(one, *([] if kept is None else [kept.message_id]))
            case _:
                if dice.random() < 0.2:
                    dice.choice((self.crash, lambda _: self.rebalance(), self.cut_off))(worker)

    def step_of_changes(self, worker: SimWorker) -> None:
        if self.dice.random() < 0.4:
            self.changes.change()
        elif worker.cut is None or self.dice.random() < 0.2:
            worker.hear()
            if self.dice.random() < 0.3:
                worker.prune()

    def retain(self, worker: SimWorker) -> None:
        """Have a dispatcher set aside what retention is to take, or end that. The log itself stays as it is."""
        if worker.partitions and worker.dispatchers:
            number = self.dice.choice(list(worker.partitions))
            below = self.dice.choice((0, self.dice.randint(0, len(self.log[number])), len(self.log[number])))
            worker.acts()
            self.dice.choice(list(worker.dispatchers.values())).set_aside_before(number, below)

    # The API

    def put(self) -> None:
        dice, at_s = self.dice, self.now_ms / 1000
        number = sum(map(len, self.log))
        key = dice.choice(KEYS)
        partition = dice.randrange(PARTITIONS) if key is None else KEYS.index(key) % PARTITIONS
        own = dice.random() < 0.8
        later = key is None and dice.random() < 0.3
        deliver_at_ms = self.now_ms + dice.choice((500, 5_000, 60_000, 300_000)) if later else 0
        made = message_id(at_ms=self.now_ms, partition=partition, random_bits=number)
        put = Put(f"m{number}", key, at_s, at_s, made)
        queue = QUEUES[0] if own else QUEUES[1]
        self.log[partition].append((put, queue, deliver_at_ms))
        event = MessagePut(
            at_ms=self.now_ms,
            organization_id="o",
            message_id=made,
            queue_id=queue,
            name="n",
            data=put.data,
            key=key,
            deliver_at_ms=deliver_at_ms or UNSET,
        )
        self.kafka.write("messages", partition, made.encode(), encode(event), (("queue", queue.encode()),))
        if own:
            self.record.puts.append(put)

    def listen(self) -> None:
        dice, name = self.dice, f"l{len(self.listeners)}"
        settings = ListenerSettings(
            max_in_flight=dice.choice((1, 2, 3, 3)),  # three can't be halved
            max_attempts=dice.choice((None, None, 3)),
            timeout_ms=1_000,
            batch=self.batch(),
        )
        listener = Listener(
            id=f"id-{name}",
            organization_id="o",
            queue_id="own",
            name=name,
            notify_url=dice.choice(("http://listener/", "tunnel://listener:1/")),
            liveness_url=f"http://{name}/",
            sealed_secret=SEALED,
            start_offsets=tuple(map(len, self.log)),
            settings=settings,
            created_at_ms=self.now_ms,
        )
        self.listeners.append(listener)
        self.moods[name] = "well"
        self.record.slow.add(name)  # each is new at times
        self.record.listeners[name] = (self.now_ms / 1000, self.now_ms / 1000)
        for one in self.workers:
            one.note(listener.id)
            if one.cut is None and dice.random() < 0.7:
                one.follow()

    def batch(self) -> BatchSetting | UnsetType:
        """The setting of some listeners. max_bytes: of one message, or more than all."""
        dice = self.dice
        if dice.random() < 0.6:
            return UNSET
        return BatchSetting(
            max_messages=dice.randint(2, BATCH_MAX),
            max_bytes=dice.choice((600, 1 << 20, 1 << 20)),
            wait_ms=dice.choice((0, 20, 3_000, 10_000)),
        )

    def change_batch(self, listener: Listener) -> None:
        """The listener takes batches from now on, or other ones, or none."""
        changed = replace(listener, settings=msgspec.structs.replace(listener.settings, batch=self.batch()))
        self.listeners[self.listeners.index(listener)] = changed
        for one in self.workers:
            one.note(listener.id)

    async def read_time(self) -> None:
        """What a request takes, in awaits at which others go on."""
        for _ in range(self.dice.choice((1, 1, 2, 4)) if self.slow_reads else 1):
            await Pause()

    def meanwhile(self) -> None:
        """While a worker reads what it must know first."""
        if self.changing and not self.ending and self.dice.random() < 0.05:
            self.changes.change()

    def redrive(self, listener: Listener, *message_ids: str) -> None:
        """Each worker hears of it at a time of its own."""
        redriven = replace(listener, redrives=listener.redrives.and_of(message_ids))
        self.listeners[self.listeners.index(listener)] = redriven
        for one in self.workers:
            one.note(listener.id)

    def listener(self, listener_id: str) -> Listener:
        return next(one for one in self.listeners if one.id == listener_id)

    # The listeners

    def take(self, listener: str, message: Message, crash: int | None) -> None:
        if crash is not None:
            self.lasts(crash)
        message_id = message.id.decode()
        self.record.taken.setdefault(listener, []).append(Taken(self.data(message_id), message_id, self.now_ms / 1000))

    def attempted(self, listener: Listener, message: Message, number: int) -> None:
        """A request was sent: is it its time, and does it go on from what is in `outstanding`?"""
        key = entry_key(listener.id, message.id.decode())
        kept = None if key in self.stored_late else self.kept.get(key)
        due_ms = message.deliver_at_ms
        if isinstance(kept, DeliverySetAside) and kept.redrives == listener.redrives.count:
            due_ms = kept.next_at_ms
        if due_ms > self.now_ms:
            self.found.append(f"before its time: {self.data(message.id.decode())} ({listener.name})")
        taken = any(one.message_id == message.id.decode() for one in self.record.taken.get(listener.name, ()))
        if kept is not None and number <= kept.number and not taken:  # else its tombstone is on its way
            self.found.append(f"forgotten: attempt {number} comes after {kept.number} ({listener.name})")

    def settle(self, request: Connection) -> None:
        """One more step of a request: the listener takes or refuses it, or its answer arrives."""
        if request.phase == "taken":
            request.answer(200)
            return
        mood = self.moods[request.owner.dispatcher.listener.name]
        if mood == "well" or (mood == "flaky" and self.dice.random() < 0.5):
            request.take(refused=0.0 if mood == "well" else 0.3)
            if self.dice.random() < 0.7:
                request.answer(200)
        elif mood == "busy":
            request.answer(429, self.dice.choice((None, 1)))
        elif mood == "flaky":
            request.answer(self.dice.choice((500, 422)))
        elif request.owner.dispatcher.listener.notify_url.startswith("tunnel"):
            request.answer(TUNNEL_AWAY)
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
        self.now_ms += SESSION_TIMEOUT_MS
        self.changes.asked_for_too_long()
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
            share = Share(partitions=len(numbers) / PARTITIONS, workers=len(dealt), rank=rank)
            members[place].take_over(numbers, share)

    def under_way(self, listener_id: str) -> int:
        """Attempts of a listener, by all workers, but for those of an earlier ownership."""
        requests = (one for worker in self.workers for one in worker.requests)
        return sum(one.owner.dispatcher.listener.id == listener_id and one.crash is None for one in requests)

    def more_in_flight(self, number: int, messages: int = 1) -> None:
        crash = self.record.crashes[number]
        self.record.crashes[number] = replace(crash, in_flight=crash.in_flight + messages)
        self.lasts(number)

    def lasts(self, number: int) -> None:
        """What died may still repeat what was delivered until now."""
        self.record.crashes[number] = replace(self.record.crashes[number], ended=self.now_ms / 1000)

    def crashed(self, worker: SimWorker) -> None:
        at_s = self.now_ms / 1000
        for one in worker.requests:
            one.crash = len(self.record.crashes)
        saved_s = worker.saved_ms / 1000
        of_slow_s = max(saved_s - TUNING.low_priority_s, worker.all_saved_ms / 1000)
        in_flight = sum(len(one.messages) for one in worker.requests)
        self.record.crashes.append(Crash(at_s, at_s, saved_s, in_flight, since_of_slow=of_slow_s))

    def unavailable(self) -> bool:
        return self.outage and self.dice.random() < 0.5

    # What Kafka keeps

    def keep(self, key: bytes, value: bytes | None) -> None:
        """A record of `outstanding`."""
        if value is None:
            self.kept.pop(key, None)
            return
        event = self.kept[key] = decode(value)
        if isinstance(event, DeliveryParked):
            listener = self.listener(event.listener_id)
            self.record.parked.add((listener.name, self.data(event.message_id)))
            if event.number - event.forgiven < (listener.settings.max_attempts or 1 << 60):
                self.found.append(f"parked too early: {self.data(event.message_id)} ({listener.name})")

    def commit(self, cursors: Mapping[str, Mapping[int, Cursor]], *, by: SimWorker) -> None:
        for listener_id, rows in cursors.items():
            name = self.name(listener_id)
            delivered = {one.message_id for one in self.record.taken.get(name, ())}
            begin = self.listener(listener_id).start_offsets
            committed = self.kafka.committed.setdefault(listener_id, {})
            for number, cursor in rows.items():
                if by.cut is not None and cursor.offset < committed.get(number, (0, ""))[0]:
                    self.found.append(f"set back: the cursor of {name}")
                committed[number] = cursor.offset, cursor.metadata()
                for offset, (put, queue_id, _) in enumerate(self.log[number][: cursor.top]):
                    kept = entry_key(listener_id, put.message_id) in self.kept
                    done = put.message_id in delivered or kept or self.changes.deleted((number, offset))
                    if queue_id == "own" and offset >= begin[number] and cursor.settled(offset) and not done:
                        self.found.append(f"committed past: {put.data} ({name})")

    # The end

    def finish(self) -> None:
        """Nothing dies any more, and every listener is well: all of it must arrive."""
        self.outage, self.ending = False, True
        while self.zombies:
            self.late()
        self.moods = dict.fromkeys(self.moods, "well")
        for one in self.workers:
            if one.cut is not None:
                self.back(one)
        for listener in list(self.listeners):
            if self.dice.random() < 0.5:
                self.redrive(listener)
        for rounds in (self.dice.choice((1, 3, ROUNDS_MAX)), ROUNDS_MAX, ROUNDS_MAX):
            if not self._work_off(rounds) and rounds == ROUNDS_MAX:
                self.found.append("unsettled: something has no end")
                return
            self.rebalance()  # new owners repeat none of it

    def _work_off(self, rounds: int) -> bool:
        for _ in range(rounds):
            self.now_ms += 5_000
            for one in self.workers:
                self._let_work(one)
            if self._done():
                return True
        return False

    def _let_work(self, worker: SimWorker) -> None:
        worker.tick()
        worker.follow()
        while worker.tail.lags():
            worker.hear()
        while worker.membership.lags():
            worker.feed()
            worker.step_all()
        worker.work_off()
        for _ in range(worker.lagging):
            worker.catch_up()
        worker.work_off()
        while worker.loop.connecting or worker.requests:
            while worker.loop.connecting:
                worker.loop.connecting.pop().step()
            for request in list(worker.requests):
                self.settle(request)
            worker.loop.settle()
        worker.finish_checkpoint()
        worker.begin_checkpoint()
        worker.finish_checkpoint()
        worker.loop.settle()

    def _done(self) -> bool:
        """Every partition is owned, and every stream stands at the end of the log."""
        return sum(len(worker.partitions) for worker in self.workers) == PARTITIONS and all(
            not dispatcher_now.busy
            and not worker.tail.lags()
            and all(partition.tail == len(self.log[number]) for number, partition in worker.partitions.items())
            and all(one.window.idle(len(self.log[one.partition])) for one in dispatcher_now.streams.values())
            and not any(worker.outstanding.retrying(number, dispatcher_now.listener.id) for number in range(PARTITIONS))
            for worker in self.workers
            for dispatcher_now in worker.dispatchers.values()
        )

    def settle_loops(self) -> None:
        for one in self.workers:
            one.loop.settle()
        if self.dice.random() < CHECKED:
            self.found += [f"state: {one.state} and {one.message}" for one in self.deliveries() if not is_whole(one)]

    def deliveries(self) -> Iterator[Delivery]:
        streams = (
            stream
            for worker in self.workers
            for dispatcher_now in worker.dispatchers.values()
            for stream in dispatcher_now.streams.values()
        )
        for one in streams:
            yield from (*one.window.open.values(), *one.from_outstanding)

    def name(self, listener_id: str) -> str:
        return listener_id.removeprefix("id-")

    def data(self, found_id: str) -> str:
        return f"m{int(found_id[-12:], 16)}"


def is_whole(one: Delivery) -> bool:
    """Whether its message is there when its state says so, and only then."""
    return one.state.kind not in ENDED and (one.state.kind in HOLDS) == (one.message is not None)


@contextlib.contextmanager
def simulated() -> Iterator[Callable[[int, int], list[str]]]:
    """Give the real parts the simulation's clock, dice and network, and small limits; yields run(seed, steps)."""
    here: list[World] = []

    async def alive(url: str, *_: object, **__: object) -> bool:
        await Pause()
        return here[0].moods[url.removeprefix("http://").rstrip("/")] != "down"

    def create_task(coroutine: Coroutine[Any, Any, Any]) -> Task:
        return here[0].current.run(coroutine)

    def get_loop() -> Loop:
        return here[0].current.loop

    def started(one: Assignment) -> None:
        """Its loops are stepped, or what they do is done, one by one."""
        here[0].current.started(one)

    def run(seed: int, steps: int) -> list[str]:
        here[:] = [World(random.Random(seed))]
        return here[0].run(steps)

    with contextlib.ExitStack() as stack:

        def put_in(module: Any, **parts: Any) -> None:
            for name, part in parts.items():
                stack.enter_context(patch.object(module, name, part))

        put_in(window, OPEN_MAX=4, BEHIND_MAX=3)
        put_in(connections, asyncio=SimpleNamespace(get_running_loop=get_loop))
        shared = {"create_task": Shared, "shield": lambda one: one}
        pause = {"sleep": Pause, "gather": in_turn, "get_running_loop": get_loop}
        run_here = {
            "create_task": create_task,
            "timeout": lambda seconds: Timeout(here[0].current, seconds),
        }
        put_in(outstanding, asyncio=SimpleNamespace(**pause))
        put_in(due, asyncio=SimpleNamespace(Event=asyncio.Event, **pause))
        put_in(catch_up, asyncio=SimpleNamespace(Event=asyncio.Event, **pause))
        for module in (worker_module, roster, background):
            put_in(module, asyncio=SimpleNamespace(Event=asyncio.Event, **pause, **run_here))
        for module in (tail_loop, ticks):
            put_in(module, asyncio=SimpleNamespace(**pause))
        put_in(ticks, Gate=lambda: Dealt(here[0]), Processor=lambda: SimpleNamespace(waited=lambda: 0.0))
        put_in(Assignment, start=started)
        put_in(assignment, asyncio=SimpleNamespace(**pause))
        clock = {"monotonic": lambda: here[0].now_ms / 1000}
        put_in(assignment, Checkpoints=partial(Checkpoints, **clock), Fence=partial(Fence, **clock))
        put_in(time_offsets, asyncio=SimpleNamespace(**pause))
        put_in(ownership, asyncio=SimpleNamespace(shield=lambda one: one, **pause))
        put_in(liveness, asyncio=SimpleNamespace(**pause, **run_here))
        put_in(liveness, alive=alive)
        put_in(answers, asyncio=SimpleNamespace(**pause), time=SimpleNamespace(**clock))
        put_in(changes, asyncio=SimpleNamespace(**pause, **shared))
        put_in(changes, time=SimpleNamespace(monotonic=lambda: 0.0))  # nobody is suspended
        put_in(dispatcher, asyncio=SimpleNamespace(get_running_loop=get_loop))
        # Where an object lies in memory must not decide anything.
        put_in(Stream, __hash__=lambda one: one.partition + PARTITIONS * int(one.dispatcher.listener.name[1:]))
        put_in(Delivery, __hash__=lambda one: one.offset)
        put_in(attempts, time=SimpleNamespace(time=lambda: here[0].now_ms / 1000))
        dispatching = (admission, attempts, backlog, dispatcher, liveness, stream, ticks)
        for module in (
            *dispatching,
            changes,
            answers,
            checkpoints,
            outstanding,
            due,
            redriving,
            records,
            worker_module,
            roster,
        ):
            put_in(module, now_ms=lambda: here[0].now_ms)
        try:
            yield run
        finally:  # also of a run that was broken off
            for world in here:
                for one in world.workers:
                    one.die()
