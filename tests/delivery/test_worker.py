"""A worker, with Kafka in memory: what may happen while it takes partitions over, and what it reads for who lags."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from types import SimpleNamespace

import pytest

from broker.core.cursor import Cursor
from broker.core.damage import Damage
from broker.core.directory import Listener, Queue
from broker.core.events import ListenerSettings
from broker.delivery.tuning import Tuning
from broker.delivery.worker import Worker
from broker.errors import LogUnavailable
from broker.ports import NoMember
from broker.sealing import Sealer, new_sealing_key
from broker.settings import KafkaSettings, Settings
from tests.delivery.office import until
from tests.memory_kafka import MemoryKafka

MANY = 50


@pytest.fixture
def sealer() -> Sealer:
    return Sealer(new_sealing_key())


@pytest.fixture
def directory(sealer: Sealer) -> SimpleNamespace:
    sealed = sealer.seal("whsec_" + "a2tr" * 8)
    listeners = {f"l-{n}": listener(f"l-{n}", sealed) for n in range(MANY)}
    queue = Queue(id="q-1", organization_id="o", name="orders", created_at_ms=0, listeners=listeners)
    return SimpleNamespace(queues={"q-1": queue}, listeners=listeners, damage=Damage(), given_up=Damage())


def listener(listener_id: str, sealed: str) -> Listener:
    return Listener(
        id=listener_id,
        organization_id="o",
        queue_id="q-1",
        name=listener_id,
        notify_url="http://127.0.0.1:9/",
        liveness_url="http://127.0.0.1:9/",
        sealed_secret=sealed,
        start_offsets=(100,),
        settings=ListenerSettings(),
        created_at_ms=0,
    )


class View(SimpleNamespace):
    """The directory, of which all is folded."""

    complete = True

    async def caught_up(self) -> None: ...


@pytest.fixture
def kafka(directory: SimpleNamespace) -> MemoryKafka:
    """One partition of 100 messages, all settled; every other one is of the queue."""
    kafka = MemoryKafka(1)
    kafka.time = lambda: 1.0
    for offset in range(100):
        queue = b"q-1" if offset % 2 else b"q-2"
        kafka.write("messages", 0, b"m", b"{}", (("queue", queue),))
    for one in directory.listeners:
        kafka.committed[one] = {0: (100, Cursor(top=100).metadata())}
    return kafka


@pytest.fixture
async def worker(kafka: MemoryKafka, sealer: Sealer, directory: SimpleNamespace) -> AsyncIterator[Worker]:
    """It has not joined the group yet."""
    feed = SimpleNamespace(directory=View(state=directory), on_change=lambda _: None)
    settings = Settings(kafka=KafkaSettings(bootstrap="none"), sealing_key="")
    worker = Worker(settings, kafka.ports(), feed, sealer, tuning=Tuning(opened_at_once=10, load_pause_s=0))
    yield worker
    await worker.stop()


async def join(worker: Worker) -> None:
    await worker._tail.start(worker._gained, worker._given_up)


async def owns(worker: Worker) -> None:
    await until(lambda: worker.assignment.partitions)


@pytest.fixture
async def owner(worker: Worker) -> Worker:
    """It has taken its partition over."""
    await join(worker)
    await owns(worker)
    return worker


async def some_employed(worker: Worker) -> None:
    while not worker._dispatchers:
        await asyncio.sleep(0)
    assert len(worker._dispatchers) < MANY, "others run before all of them are employed"
    assert not worker.assignment.partitions, "and before anything is at its place"


async def test_others_run_while_the_dispatchers_are_employed_and_what_ends_meanwhile_is_not_placed(worker, directory):
    await join(worker)
    await some_employed(worker)
    del directory.listeners["l-0"]
    await worker._reconcile(["l-0"])
    await owns(worker)
    assert worker._dispatchers.keys() == directory.listeners.keys()
    assert all(worker.assignment.partitions[0].placed(dispatcher) for dispatcher in worker._dispatchers.values())
    assert worker._tail.positions == {0: 100}


async def test_partitions_that_are_given_up_while_the_dispatchers_are_employed_are_not_taken_over(worker):
    await join(worker)
    await some_employed(worker)
    await worker._given_up([0])
    await until(lambda: not worker._background)
    assert not worker.assignment.partitions
    assert not worker._tail.positions


async def test_for_who_lags_only_what_his_queue_may_be_in_is_parsed_and_only_his_messages_are_made(owner):
    found, next_offset = await owner.assignment.stretch(0, 0, 1024, {"q-1"})
    assert [message.offset for message in found] == list(range(1, 100, 2))
    assert next_offset == 100
    assert await owner.assignment.stretch(0, 0, 1024, {"q-3"}) == ([], 100)


async def test_what_may_begin_is_begun_a_few_attempts_at_a_time():
    """All at once would hold up the others, and come back as answers all at once."""
    begun: list[int] = []
    dispatchers = [
        SimpleNamespace(limits=SimpleNamespace(begins=3), pump=lambda place=place: begun.append(place))
        for place in range(9)
    ]
    pumping = asyncio.create_task(Worker._pump(dispatchers, 8))
    seen = []
    while not pumping.done():
        await asyncio.sleep(0)
        seen.append(len(begun))
    assert seen[:3] == [3, 6, 9]


async def test_who_comes_while_partitions_are_given_up_is_not_employed_before_the_next_take_over(
    owner, directory, sealer, monkeypatch
):
    directory.listeners["l-new"] = listener("l-new", sealer.seal("whsec_" + "a2tr" * 8))
    monkeypatch.setattr(owner.assignment.checkpoints, "last", partial(owner._reconcile, ["l-new"]))
    await owner._given_up([0])
    assert "l-new" not in owner._dispatchers
    owner._gained([0])
    await owns(owner)
    assert owner._dispatchers["l-new"].sending
    assert owner.assignment.partitions[0].placed(owner._dispatchers["l-new"])


async def test_who_came_before_partitions_are_given_up_has_no_place_on_them_after(
    owner, directory, sealer, monkeypatch
):
    directory.listeners["l-new"] = listener("l-new", sealer.seal("whsec_" + "a2tr" * 8))
    read = asyncio.Event()

    async def load(*_):
        await read.wait()
        return {}

    with monkeypatch.context() as patch:
        patch.setattr(owner._cursors, "load", load)
        reconciling = asyncio.create_task(owner._reconcile(["l-new"]))
        await asyncio.sleep(0)
        await owner._given_up([0])
        read.set()
        await reconciling
    assert "l-new" not in owner._dispatchers


async def test_who_comes_after_it_is_no_member_any_more_is_sent_nothing(owner, kafka, directory, sealer):
    await kafka.expire(owner._tail)
    with pytest.raises(NoMember):
        await owner.assignment.fence.confirm()
    directory.listeners["l-new"] = listener("l-new", sealer.seal("whsec_" + "a2tr" * 8))
    await owner._reconcile(["l-new"])
    assert not any(dispatcher.sending for dispatcher in owner._dispatchers.values())


async def test_what_was_begun_for_an_earlier_assignment_reaches_no_later_one(owner):
    earlier = owner.assignment
    stream = owner._dispatchers["l-1"].stream(0)
    await owner._given_up([0])
    owner._gained([0])
    await owns(owner)
    later = owner.assignment
    assert later is not earlier
    assert not stream.current
    earlier.touched(stream)
    assert not later.checkpoints._dirty
    for asks in (earlier.fence.assure, earlier.fence.confirm):
        with pytest.raises(LogUnavailable):
            await asks()
    await later.fence.assure()


async def test_what_is_brought_by_a_read_that_began_before_the_take_over_is_not_left_out(worker, kafka, monkeypatch):
    read, may_read = worker._tail.read, asyncio.Event()

    async def read_late():
        await may_read.wait()
        return await read()

    monkeypatch.setattr(worker._tail, "read", read_late)
    following = asyncio.create_task(worker._follow_tail())
    await asyncio.sleep(0)
    await join(worker)
    await owns(worker)
    kafka.write("messages", 0, b"m", b"{}", (("queue", b"q-2"),))
    may_read.set()
    await until(lambda: worker.assignment.partitions[0].tail == 101)
    following.cancel()


async def test_one_that_is_given_no_partition_is_ready_all_the_same(worker):
    worker._gained([])
    assert worker._loaded.is_set()
    assert not worker._background


async def test_who_comes_while_kafka_is_away_is_employed_when_it_is_back(owner, directory, sealer, monkeypatch):
    directory.listeners["l-new"] = listener("l-new", sealer.seal("whsec_" + "a2tr" * 8))
    load, away = owner._cursors.load, [LogUnavailable("away")]

    async def load_later(*which):
        if away:
            raise away.pop()
        return await load(*which)

    monkeypatch.setattr(owner._cursors, "load", load_later)
    following = asyncio.create_task(owner._follow_directory())
    owner._note_change(SimpleNamespace(listener_id="l-new"))
    await until(lambda: "l-new" in owner._dispatchers)
    following.cancel()


class Ended(SimpleNamespace):
    __hash__ = object.__hash__


async def test_one_whose_listener_ends_while_others_have_their_ticks_has_none(worker):
    ticked: list[object] = []
    ended = Ended(tick=ticked.append)
    assert list(worker._tick_some([ended], 0, late=False)) == []
    assert not ticked
