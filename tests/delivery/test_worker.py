"""A worker, with Kafka in memory: its take-overs and hand-overs, and the listeners that come and go meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from types import SimpleNamespace

import pytest

from broker.core import events as ev
from broker.core.cursor import Cursor
from broker.delivery.dispatch.limits import Priority
from broker.delivery.dispatch.ticks import Ticks, pump
from broker.delivery.tuning import TUNED, Tuning
from broker.delivery.worker import Worker
from broker.errors import LogUnavailable
from broker.ports import NoMember, Record
from broker.sealing import Sealer, new_sealing_key
from broker.settings import KafkaSettings, Settings
from projections.agents import follow
from projections.directory import DirectoryProjection
from tests.delivery.office import until
from tests.memory_kafka import MemoryKafka, MemoryMembership

MANY = 50
SEALER = Sealer(new_sealing_key())


class Control:
    """The end of `control`, of which all is folded."""

    async def append(self, event: ev.ControlEvent) -> int:
        raise NotImplementedError

    async def end_offset(self) -> int:
        return 0

    async def check(self) -> bool:
        return True

    def records(self, end: int) -> AsyncIterator[Record]:
        raise NotImplementedError

    async def begin_group(self, group: str, offset: int) -> None: ...

    async def delete_group(self, group: str) -> None: ...


class Member(MemoryMembership):
    """Another worker's membership."""

    async def given_up(self, partitions) -> None: ...

    def gained(self, partitions) -> None: ...


class Place:
    """A worker that has not joined its group yet, its directory, and the Kafka of both."""

    def __init__(self) -> None:
        self.kafka = MemoryKafka(1)
        self.kafka.time = lambda: 1.0
        self.view = DirectoryProjection(Control())
        settings = Settings(kafka=KafkaSettings(bootstrap="none"), sealing_key="")
        tuning = Tuning(opened_at_once=10, load_pause_s=0)
        ports = self.kafka.ports()
        self.membership: MemoryMembership = ports.membership
        self.worker = Worker(settings, ports, self.view, SEALER, tuning=tuning)
        self.starting: asyncio.Task[None] | None = None
        self.fold(ev.QueueCreated(at_ms=0, organization_id="o", queue_id="q-1", name="orders"))

    def fold(self, event: ev.ControlEvent) -> Callable[[], None]:
        """The directory folds the event; what is returned is the agent of the delivery streams coming to it."""
        self.view.fold(self.view.position, event)
        return lambda: follow(event, self.view.state, self.worker.roster)

    def created(self, listener_id: str, sealed: str | None = None) -> Callable[[], None]:
        return self.fold(
            ev.ListenerCreated(
                at_ms=0,
                organization_id="o",
                listener_id=listener_id,
                queue_id="q-1",
                name=listener_id,
                notify_url="http://127.0.0.1:9/",
                liveness_url="http://127.0.0.1:9/",
                sealed_secret=sealed or SEALER.seal("whsec_" + "a2tr" * 8),
                start_offsets=(100,),
            )
        )

    def deleted(self, listener_id: str) -> Callable[[], None]:
        return self.fold(ev.ListenerDeleted(at_ms=0, organization_id="o", listener_id=listener_id))

    def paused(self, listener_id: str) -> Callable[[], None]:
        return self.fold(ev.ListenerPaused(at_ms=0, organization_id="o", listener_id=listener_id, reason="test"))

    async def join(self) -> None:
        """Start the worker, and return as soon as it has joined its group."""
        self.starting = asyncio.create_task(self.worker.start())
        while self.membership not in self.kafka.members:
            await asyncio.sleep(0)

    async def stop(self) -> None:
        if self.starting is not None:
            self.starting.cancel()
        await self.worker.stop()

    async def another_member(self) -> None:
        """Have another member own the only partition."""
        self.kafka.members.insert(0, Member(self.kafka))
        await self.kafka.rebalance()

    async def owns(self) -> None:
        await until(lambda: self.worker.assignment.partitions)

    def placed(self, listener_id: str) -> bool:
        partition, dispatcher = self.worker.assignment.partitions.get(0), self.worker.dispatchers.get(listener_id)
        return partition is not None and dispatcher is not None and partition.placed(dispatcher)

    async def hand_over(self) -> None:
        await self.kafka.rebalance()
        await self.owns()


@pytest.fixture
async def place() -> AsyncIterator[Place]:
    """One partition of 100 messages, all settled; every other one is of the queue."""
    place = Place()
    for offset in range(100):
        queue = b"q-1" if offset % 2 else b"q-2"
        place.kafka.write("messages", 0, b"m", b"{}", (("queue", queue),))
    for number in range(MANY):
        place.created(f"l-{number}")
        place.kafka.committed[f"l-{number}"] = {0: (100, Cursor(top=100).metadata())}
    yield place
    await place.stop()


@pytest.fixture
async def owner(place: Place) -> Place:
    """It has taken its partition over."""
    await place.join()
    await place.owns()
    return place


async def some_are_there(worker: Worker) -> None:
    while not worker.dispatchers:
        await asyncio.sleep(0)
    assert len(worker.dispatchers) < MANY, "others run before all of them are there"
    assert not worker.assignment.partitions, "and before anything is at its place"


@contextlib.asynccontextmanager
async def running(work) -> AsyncIterator[None]:
    task = asyncio.create_task(work)
    yield
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_listener_that_ends_while_dispatchers_are_added_is_not_placed(place):
    await place.join()
    await some_are_there(place.worker)
    place.deleted("l-0")()
    await place.owns()
    assert place.worker.dispatchers.keys() == place.view.state.listeners.keys()
    assert all(map(place.placed, place.worker.dispatchers))
    assert place.worker.kafka.membership.positions == {0: 100}


async def test_partitions_that_are_given_up_while_dispatchers_are_added_are_not_taken_over(place):
    await place.join()
    await some_are_there(place.worker)
    await place.another_member()
    for _ in range(MANY):  # more rounds than the rest of the take-over would need
        await asyncio.sleep(0)
    assert not place.worker.assignment.partitions
    assert not place.worker.roster.sending


async def test_for_a_stream_that_lags_only_messages_of_its_queue_are_made(owner):
    fetch = owner.worker.assignment.fetch
    found, next_offset = await fetch(0, 0, 1024, {"q-1"})
    assert [message.offset for message in found] == list(range(1, 100, 2))
    assert next_offset == 100
    assert await fetch(0, 0, 1024, {"q-3"}) == ([], 100)


async def test_attempts_are_begun_a_few_at_a_time():
    """All at once would hold up the others, and come back as answers all at once."""
    begun: list[int] = []
    dispatchers = [
        SimpleNamespace(limits=SimpleNamespace(permits=3), pump=lambda place=place: begun.append(place))
        for place in range(9)
    ]
    pumping = asyncio.create_task(pump(dispatchers, 8))
    seen = []
    while not pumping.done():
        await asyncio.sleep(0)
        seen.append(len(begun))
    assert seen[:3] == [3, 6, 9]


async def test_a_listener_that_is_created_starts_at_its_cursor_and_one_that_is_deleted_stops(owner):
    owner.created("l-new")()
    await until(lambda: owner.placed("l-new"))
    assert owner.worker.dispatchers["l-new"].sending
    owner.deleted("l-new")()
    assert "l-new" not in owner.worker.dispatchers


async def test_listeners_that_arrive_together_have_their_cursors_loaded_together(owner):
    cursors, loaded = owner.worker.kafka.cursors, []
    load = cursors.load

    async def told(listener_ids, partitions):
        loaded.append(list(listener_ids))
        return await load(loaded[-1], partitions)

    cursors.load = told
    for number in range(100):
        owner.created(f"l-new-{number}")()
    await until(lambda: owner.placed("l-new-99"))
    assert loaded == [[f"l-new-{number}" for number in range(100)]]


async def test_an_agent_that_is_behind_the_directory_leaves_alone_what_is_right_already(owner):
    """As after a restart: the take-over has started all listeners as they are, and the agent begins at offset 0."""
    late = [owner.created("l-gone"), owner.created("l-new"), owner.paused("l-new"), owner.deleted("l-gone")]
    await owner.hand_over()
    dispatcher = owner.worker.dispatchers["l-new"]
    assert dispatcher.listener.paused
    before = list(owner.worker.dispatchers.values())
    for comes_to_it in late:
        comes_to_it()
        assert list(owner.worker.dispatchers.values()) == before
    owner.created("l-newer")()
    await until(lambda: owner.placed("l-newer"))
    assert list(owner.worker.dispatchers.values())[:-1] == before
    assert dispatcher.listener.paused


async def test_a_listener_that_is_deleted_before_the_agent_comes_to_its_creation_is_never_started(owner):
    late = [owner.created("l-gone"), owner.deleted("l-gone")]
    for comes_to_it in (*late, owner.created("l-new")):
        comes_to_it()
    await until(lambda: owner.placed("l-new"))
    assert "l-gone" not in owner.worker.dispatchers


async def test_all_listeners_of_a_queue_that_is_deleted_stop(owner):
    owner.fold(ev.QueueDeleted(at_ms=0, organization_id="o", queue_id="q-1"))()
    assert not owner.worker.dispatchers


async def test_a_listener_that_comes_while_partitions_are_given_up_starts_with_the_next_take_over(owner):
    worker = owner.worker
    last = worker.assignment.checkpoints.last

    async def comes_meanwhile() -> None:
        owner.created("l-new")()
        await worker.roster.admit()
        await last()

    worker.assignment.checkpoints.last = comes_meanwhile
    await owner.membership.given_up([0])
    assert "l-new" not in worker.dispatchers
    owner.membership.gained([0])
    await owner.owns()
    assert worker.dispatchers["l-new"].sending
    assert owner.placed("l-new")


async def test_a_listener_whose_cursors_are_loaded_for_an_earlier_assignment_has_no_place_in_the_next(owner):
    owner.created("l-new")()
    async with running(owner.worker.roster.admit()):
        await asyncio.sleep(0)
        await owner.membership.given_up([0])
    assert "l-new" not in owner.worker.dispatchers


async def test_after_the_worker_is_no_member_any_more_a_new_listener_is_sent_nothing(owner):
    await owner.kafka.expire(owner.worker.kafka.membership)
    with pytest.raises(NoMember):
        await owner.worker.assignment.fence.confirm()
    owner.created("l-new")()
    await owner.worker.roster.admit()
    assert not any(dispatcher.sending for dispatcher in owner.worker.dispatchers.values())


async def test_work_of_an_earlier_assignment_reaches_no_later_one(owner):
    worker = owner.worker
    earlier = worker.assignment
    stream = worker.dispatchers["l-1"].stream(0)
    await owner.hand_over()
    later = worker.assignment
    assert later is not earlier
    assert not stream.current
    earlier.touched(stream)
    await later.checkpoints.checkpoint()
    assert worker.metrics.cursors == 0
    for asks in (earlier.fence.assure, earlier.fence.confirm):
        with pytest.raises(LogUnavailable):
            await asks()
    await later.fence.assure()


async def test_an_answer_that_ends_between_two_take_overs_begins_no_stream(owner):
    worker = owner.worker
    dispatcher = worker.dispatchers["l-1"]
    assert dispatcher.touch(0)
    await owner.membership.given_up([0])
    assert not dispatcher.touch(0)
    assert not dispatcher.streams
    owner.membership.gained([0])
    await owner.owns()
    assert dispatcher.touch(0)
    assert dispatcher.streams[0].assignment is worker.assignment


async def test_a_stream_of_an_earlier_assignment_is_left_to_no_listener_at_a_take_over(owner):
    worker = owner.worker
    dispatcher = worker.dispatchers["l-1"]
    await owner.membership.given_up([0])
    stale = dispatcher.stream(0)
    owner.membership.gained([0])
    await owner.owns()
    assert stale not in dispatcher.streams.values()
    assert dispatcher.stream(0).assignment is worker.assignment


async def test_records_of_a_read_that_began_before_the_take_over_are_not_left_out(place):
    worker, may_read = place.worker, asyncio.Event()
    read = worker.kafka.membership.read

    async def read_late():
        await may_read.wait()
        return await read()

    worker.kafka.membership.read = read_late
    await place.join()
    await place.owns()
    place.kafka.write("messages", 0, b"m", b"{}", (("queue", b"q-2"),))
    may_read.set()
    await until(lambda: worker.assignment.partitions[0].tail == 101)


async def test_a_worker_that_is_given_no_partition_is_ready_all_the_same(place):
    place.kafka.members.append(Member(place.kafka))
    await place.join()
    await place.starting
    assert not place.worker.dispatchers


async def test_a_listener_that_comes_while_kafka_is_away_starts_when_it_is_back(owner):
    owner.kafka.unavailable = LogUnavailable("away")
    owner.created("l-new")()
    await asyncio.sleep(0.01)
    assert "l-new" not in owner.worker.dispatchers
    owner.kafka.unavailable = None
    await until(lambda: owner.placed("l-new"))


async def test_a_listener_whose_secret_can_not_be_opened_stops_until_it_is_put_right(owner):
    worker = owner.worker
    for secret in ("none of ours", SEALER.seal("whsec_" + "a2tr" * 8)):
        owner.fold(
            ev.ListenerSecretRotated(
                at_ms=0, organization_id="o", listener_id="l-0", sealed_secret=secret, former_end_at_ms=0
            )
        )()
        if secret == "none of ours":
            assert "l-0" not in worker.dispatchers
            assert (await worker.condition()).listeners["unusable"] == 1
    await until(lambda: owner.placed("l-0"))
    assert (await worker.condition()).listeners["unusable"] == 0


class Ticked(SimpleNamespace):
    __hash__ = object.__hash__


async def test_a_dispatcher_whose_listener_ends_while_others_have_their_ticks_has_none():
    ticked: list[str] = []
    ticks = Ticks(SimpleNamespace(down=set(), tick=lambda permits: None), replace(TUNED, tick_parts=1, tick_s=0))

    def first_tick(_at_ms, *, late) -> bool:
        ticked.append("first")
        ticks.remove(ended)
        return False

    def tick(_at_ms, *, late) -> bool:
        ticked.append("ended")
        return False

    limits, circuit = SimpleNamespace(low_priority=False), SimpleNamespace(allowance=1)
    first = Ticked(tick=first_tick, limits=limits, circuit=circuit)
    ended = Ticked(tick=tick, limits=limits, circuit=circuit)
    ticks.add(first)
    ticks.add(ended)
    async with running(ticks.run({})):
        await until(lambda: ticked)
    assert ticked == ["first"]


async def test_a_dispatcher_that_ends_as_soon_as_it_has_work_leaves_the_others_their_turn():
    """The loop rests, is woken, and finds that there is nothing to do after all."""
    ticks = Ticks(SimpleNamespace(down=set(), tick=lambda permits: None), TUNED)
    tidied: list[int] = []
    one = Ticked(connections=SimpleNamespace(tidy=lambda: tidied.append(1)))
    async with running(ticks.run({"l-1": one})):
        await asyncio.sleep(0.01)
        ticks.add(one)
        ticks.remove(one)
        await until(lambda: tidied)
        assert len(tidied) == 1


async def test_nothing_ticks_while_no_dispatcher_needs_it():
    probed: list[int] = []

    def probe(*, permits: int) -> None:
        probed.append(permits)

    tuning = replace(TUNED, tick_parts=1, tick_s=0, rest_s=0.05)
    ticks = Ticks(SimpleNamespace(down=set(), tick=probe), tuning)
    tidied: list[int] = []
    connections = SimpleNamespace(tidy=lambda: tidied.append(len(probed)))
    limits, circuit = SimpleNamespace(low_priority=False), SimpleNamespace(allowance=1)
    ticked: list[int] = []
    one = Ticked(
        tick=lambda _at_ms, *, late: bool(ticked.append(1)), limits=limits, circuit=circuit, connections=connections
    )
    async with running(ticks.run({"l-1": one})):
        await until(lambda: len(tidied) >= 3)
        assert (probed, ticked) == ([], [])
        ticks.add(one)
        await until(lambda: ticked)
        await until(lambda: len(tidied) >= 6 and tidied[-1] == tidied[-3])
        assert len(ticked) == 1


async def test_partitions_are_let_go_even_if_the_last_checkpoint_breaks_down(owner):
    worker, assignment = owner.worker, owner.worker.assignment

    async def broken() -> None:
        raise ZeroDivisionError

    assignment.checkpoints.last = broken
    with pytest.raises(ZeroDivisionError):
        await owner.membership.given_up([0])
    assert worker.assignment is not assignment
    assert not assignment.outstanding._owned


@pytest.mark.parametrize(("others", "every"), [(0, 1), (40, 2), (200, 5)])
async def test_a_slow_listener_has_its_permits_in_every_tick_unless_many_listeners_have_work(others, every):
    """Otherwise, a single slow listener, such as a replay, would get a fifth of what the gate permits."""
    ticks_so_far = dealt = 0

    def count(*, permits: int) -> None:
        nonlocal ticks_so_far
        ticks_so_far += 1

    def pump() -> None:
        nonlocal dealt
        dealt += 1

    ticks = Ticks(SimpleNamespace(down=set(), tick=count), replace(TUNED, tick_s=0))
    circuit, connections = SimpleNamespace(allowance=1), SimpleNamespace(tidy=lambda: None)
    slow = {"low_priority": True, "priority": Priority.SLOW, "share": 0, "permits": 0}
    common = {"circuit": circuit, "connections": connections, "tick": lambda _at_ms, *, late: True, "busy": 0}
    memory = SimpleNamespace(held_bytes=0, bytes_share=0)
    ticks.add(Ticked(limits=SimpleNamespace(**slow), waits=True, pump=pump, wants_more=True, memory=memory, **common))
    for _ in range(others):
        ticks.add(Ticked(limits=SimpleNamespace(**slow), waits=False, wants_more=False, memory=memory, **common))
    async with running(ticks.run({})):
        await until(lambda: ticks_so_far >= 50)
    assert abs(dealt - ticks_so_far / every) <= 1
