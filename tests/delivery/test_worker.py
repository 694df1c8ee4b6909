"""A worker, its Kafka made up: what may happen while it takes partitions over, and what it reads for who lags."""

from __future__ import annotations

import asyncio
from functools import partial
from types import SimpleNamespace
from unittest.mock import AsyncMock, MagicMock

import pytest

from broker.core.cursor import Cursor
from broker.core.directory import Listener, Queue
from broker.core.events import ListenerSettings
from broker.core.flow import WHOLE
from broker.delivery import worker as worker_module
from broker.delivery.ports import Ports
from broker.delivery.worker import Worker
from broker.errors import LogUnavailable
from broker.ports import NoMember, Record, Stretch
from broker.sealing import Sealer, new_sealing_key
from broker.settings import KafkaSettings, Settings
from tests.delivery.office import until

MANY = 50


@pytest.fixture
def sealer() -> Sealer:
    return Sealer(new_sealing_key())


@pytest.fixture
def directory(sealer: Sealer) -> SimpleNamespace:
    queue = Queue(id="q-1", organization_id="o", name="orders", created_at_ms=0)
    sealed = sealer.seal("whsec_" + "a2tr" * 8)
    return SimpleNamespace(queues={"q-1": queue}, listeners={f"l-{n}": listener(f"l-{n}", sealed) for n in range(MANY)})


def listener(listener_id: str, sealed: str) -> Listener:
    return Listener(
        id=listener_id,
        organization_id="o",
        queue_id="q-1",
        name=listener_id,
        notify_url="http://127.0.0.1:9/",
        liveness_url="http://127.0.0.1:9/",
        sealed_secret=sealed,
        start_offsets=(0,),
        settings=ListenerSettings(),
        created_at_ms=0,
    )


@pytest.fixture
async def worker(sealer: Sealer, directory: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> Worker:
    """It has one partition to take over, of 100 messages, all settled."""
    log = MagicMock()
    log.messages.end_offsets = AsyncMock(return_value=(100,))
    log.requests.offsets = AsyncMock(return_value={0: 0})
    feed = SimpleNamespace(directory=SimpleNamespace(state=directory), on_change=lambda _: None)
    ports = Ports(
        log=log, membership=MagicMock(share=AsyncMock(return_value=WHOLE)), cursors=MagicMock(), changes=MagicMock()
    )
    worker = Worker(Settings(kafka=KafkaSettings(bootstrap="none"), sealing_key=""), ports, feed, sealer)
    stored = {listener_id: {0: Cursor(top=100)} for listener_id in directory.listeners}
    worker._cursors = SimpleNamespace(load=AsyncMock(return_value=stored))
    worker._changes = MagicMock(read=AsyncMock(return_value={}), say_taken=AsyncMock())
    worker._outstanding = MagicMock(read=AsyncMock(return_value={}))
    monkeypatch.setattr(worker_module, "_AT_ONCE", 10)
    return worker


async def some_employed(worker: Worker) -> None:
    while not worker._couriers:
        await asyncio.sleep(0)
    assert len(worker._couriers) < MANY, "others run before all of them are employed"
    assert not worker._partitions, "and before anything is at its place"


async def test_others_run_while_the_couriers_are_employed_and_what_ends_meanwhile_is_not_placed(worker, directory):
    taking_over = asyncio.create_task(worker._take_over([0], worker._ownership))
    await some_employed(worker)
    del directory.listeners["l-0"]
    await worker._reconcile(["l-0"])
    await taking_over
    assert {courier.listener.id for courier in worker._couriers.values()} == directory.listeners.keys()
    assert all(worker._partitions[0].placed(courier) for courier in worker._couriers.values())
    worker._tail.begin.assert_called_once_with({0: 100})


async def test_partitions_that_are_given_up_while_the_couriers_are_employed_are_not_taken_over(worker):
    taking_over = asyncio.create_task(worker._take_over([0], worker._ownership))
    await some_employed(worker)
    await worker._let_go([])
    await taking_over
    assert not worker._partitions
    worker._tail.begin.assert_not_called()


async def test_for_who_lags_only_what_his_queue_may_be_in_is_parsed_and_only_his_messages_are_made(worker, monkeypatch):
    monkeypatch.setattr(worker_module, "_MESSAGES_AT_ONCE", 10)
    queues = [b"q-1" if offset % 2 else b"q-2" for offset in range(100)]
    records = [Record(offset, 1, b"m", b"{}", (("queue", queue),)) for offset, queue in enumerate(queues)]
    worker._ours = AsyncMock()
    worker._log.requests.read = read = AsyncMock(return_value=Stretch(records, 100, 100))
    found, next_offset = await worker.stretch(0, 0, 1024, {"q-1"})
    assert [message.offset for message in found] == list(range(1, 100, 2))
    assert next_offset == 100
    worth = read.call_args.kwargs["worth"]
    assert (worth(b"... q-1 ..."), worth(b"... q-2 ...")) == (True, False)


async def test_what_may_begin_is_begun_a_few_attempts_at_a_time():
    """All at once would hold up the others, and come back as answers all at once."""
    begun: list[int] = []
    couriers = [
        SimpleNamespace(limits=SimpleNamespace(begins=3), pump=lambda place=place: begun.append(place))
        for place in range(9)
    ]
    pumping = asyncio.create_task(Worker._pump(couriers))
    seen = []
    while not pumping.done():
        await asyncio.sleep(0)
        seen.append(len(begun))
    assert seen[:3] == [3, 6, 9]


@pytest.fixture
async def owner(worker: Worker) -> Worker:
    """It has taken its partition over, and can give it up."""
    worker._ours = AsyncMock()
    worker._checkpoints = MagicMock(last=AsyncMock(), once_more=AsyncMock(), suspended=False)
    worker._changes.hand_over = worker._changes.cover = AsyncMock()
    await worker._take_over([0], worker._ownership)
    return worker


async def test_who_comes_while_partitions_are_given_up_is_not_employed_before_the_next_take_over(
    owner, directory, sealer
):
    directory.listeners["l-new"] = listener("l-new", sealer.seal("whsec_" + "a2tr" * 8))
    owner._checkpoints.last = partial(owner._reconcile, ["l-new"])
    await owner._let_go([0])
    assert "l-new" not in owner._couriers
    await owner._take_over([0], owner._ownership)
    assert owner._couriers["l-new"].sending
    assert owner._partitions[0].placed(owner._couriers["l-new"])


async def test_who_came_before_partitions_are_given_up_has_no_place_on_them_after(owner, directory, sealer):
    directory.listeners["l-new"] = listener("l-new", sealer.seal("whsec_" + "a2tr" * 8))
    read = asyncio.Event()

    async def load(*_):
        await read.wait()
        return {}

    owner._cursors.load = load
    reconciling = asyncio.create_task(owner._reconcile(["l-new"]))
    await asyncio.sleep(0)
    await owner._let_go([0])
    read.set()
    await reconciling
    assert "l-new" not in owner._couriers


async def test_who_comes_after_it_is_no_member_any_more_is_sent_nothing(owner, directory, sealer):
    owner._tail.confirm = AsyncMock(side_effect=NoMember("gone"))
    with pytest.raises(NoMember):
        await owner._ask_whether_ours()
    directory.listeners["l-new"] = listener("l-new", sealer.seal("whsec_" + "a2tr" * 8))
    await owner._reconcile(["l-new"])
    assert not any(courier.sending for courier in owner._couriers.values())


async def test_one_that_is_given_no_partition_is_ready_all_the_same(worker):
    worker._gained([])
    assert worker._loaded.is_set()
    assert not worker._background


async def test_who_comes_while_kafka_is_away_is_employed_when_it_is_back(owner, directory, sealer, monkeypatch):
    monkeypatch.setattr(worker_module, "_LOAD_PAUSE_S", 0)
    directory.listeners["l-new"] = listener("l-new", sealer.seal("whsec_" + "a2tr" * 8))
    owner._cursors.load = AsyncMock(side_effect=[LogUnavailable("away"), {}])
    following = asyncio.create_task(owner._follow_directory())
    owner._note_change(SimpleNamespace(listener_id="l-new"))
    await until(lambda: "l-new" in owner._couriers)
    following.cancel()


async def test_one_whose_listener_ends_while_others_have_their_ticks_has_none(worker):
    ended = MagicMock()
    assert list(worker._tick_some([ended], 0, late=False)) == []
    assert not ended.tick.called
