"""What is old and settled goes, and nothing that anybody may still need; a lost cursor skips nothing."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable

import pytest
from confluent_kafka.admin import AdminClient

from broker.changes import find_message
from broker.commands import now_ms
from broker.core.cursor import Cursor
from broker.core.directory import Queue
from broker.delivery import courier as courier_module
from broker.delivery import retention as retention_module
from broker.delivery import worker as worker_module
from broker.delivery.worker import Worker
from broker.errors import LogUnavailable, NotFound
from broker.kafka import changes as changes_module
from broker.kafka.requests import EARLIEST, LATEST
from broker.kafka.topics import Topics, listener_group
from broker.settings import KafkaSettings
from tests.kafka.rig import Rig, running
from tests.kafka.test_outstanding import kept
from tests.kafka.test_replay import ended, replayed, start
from tests.kafka_clients import librdkafka
from tests.listeners import until

LATER_MS = 60_000


@pytest.fixture
async def rig(kafka_settings: KafkaSettings, ready_topics: Topics, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(retention_module, "CLOCK_SKEW_MS", 0)
    monkeypatch.setattr(changes_module, "CLOCK_SKEW_MS", 0)
    async with running(kafka_settings) as made:
        yield made


async def begins(rig: Rig, topic: str) -> int:
    """How many records of a topic are gone."""
    name = f"{rig.settings.kafka.topic_prefix}{topic}"
    everywhere = dict.fromkeys(range(rig.settings.kafka.partitions), EARLIEST)
    return sum((await rig.log.requests.offsets(name, everywhere)).values())


async def sweep(worker: Worker) -> None:
    """As if all that is there had become old."""
    await worker._checkpoints.checkpoint()
    await worker._cursors.store(worker._checkpoints._idle(worker._couriers.values()))
    await worker._retention.sweep(now_ms() + LATER_MS)


async def swept(rig: Rig, worker: Worker, count: int) -> None:
    """So many messages go, once the worker has settled them."""

    async def gone() -> bool:
        await sweep(worker)
        return await begins(rig, "messages") >= count

    await until(gone, what=f"{count} messages are gone")
    assert await begins(rig, "messages") == count


async def find(rig: Rig, queue: Queue, message_id: str) -> bool:
    try:
        await find_message(rig.log, queue, message_id)
    except NotFound:
        return False
    return True


async def test_what_every_listener_has_settled_goes_and_what_one_lacks_stays(rig: Rig):
    queue, other = await rig.queue("orders"), await rig.queue("others")
    await rig.listen(queue, "quick")
    paused = await rig.listen(queue, "paused")
    await rig.listen(other, "other")
    worker = await rig.work()
    old = await rig.put(queue, *(f"m{number}" for number in range(20)))
    await until(lambda: len(rig.listeners.got) == 40, what="both have the first ones")
    await rig.update(queue, old[0], "changed")
    await rig.commands.pause_listener(rig.context, queue.id, paused.id, reason="test")
    await until(lambda: worker._couriers[paused.id].listener.paused, what="the worker knows of the pause")
    new = await rig.put(queue, *(f"n{number}" for number in range(20)))
    await until(lambda: len(rig.listeners.taken("quick")) == 40, what="the quick one has all")
    await worker._retention.sweep(now_ms() - LATER_MS)
    assert await begins(rig, "messages") == 0  # nothing is old
    await swept(rig, worker, 20)
    assert not await find(rig, queue, old[0])
    assert all([await find(rig, queue, message_id) for message_id in new])
    await rig.listen(queue, "from-the-beginning", begin_at_ms=0)
    await until(lambda: len(rig.listeners.taken("from-the-beginning")) >= 20, what="it begins with what is left")
    assert rig.listeners.ids("from-the-beginning") == Counter(new)
    await rig.commands.resume_listener(rig.context, queue.id, paused.id)
    await until(lambda: len(rig.listeners.taken("paused")) >= 40, what="the paused one lacks nothing")
    assert rig.listeners.ids("paused") == Counter(old + new)
    await swept(rig, worker, 40)
    assert await begins(rig, "changes") == 0  # there is no newer change or message that says it is old enough
    last = await rig.put(queue, *(f"o{number}" for number in range(8)))
    await until(lambda: len(rig.listeners.taken("paused")) >= 48, what="deliveries go on")
    assert rig.listeners.ids("paused") == Counter(old + new + last)


async def test_who_may_be_no_member_any_more_deletes_nothing(rig: Rig, monkeypatch: pytest.MonkeyPatch):
    """Its next owner keeps what it does not know of: docs/decisions/0160."""
    queue = await rig.queue()
    await rig.listen(queue, "a")
    worker = await rig.work()
    await rig.put(queue, "m1", "m2", "m3")
    await until(lambda: len(rig.listeners.taken("a")) == 3, what="all three")

    async def refuse(_offsets: object) -> None:
        raise LogUnavailable("no member any more")

    await worker._checkpoints.checkpoint()
    await worker._cursors.store(worker._checkpoints._idle(worker._couriers.values()))
    with monkeypatch.context() as patch:
        patch.setattr(worker._tail, "confirm", refuse)
        worker._ours.begin_anew()
        with pytest.raises(LogUnavailable):
            await worker._retention.sweep(now_ms() + LATER_MS)
        assert await begins(rig, "messages") == 0
    await swept(rig, worker, 3)


async def test_what_is_parked_keeps_its_message_and_those_after_it(rig: Rig, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(courier_module, "SET_ASIDE_AFTER_MS", 0)
    queue = await rig.queue()
    await rig.listen(queue, "a", max_attempts=1)
    rig.listeners.decide = lambda got: 422 if got.data == "parked" else 200
    worker = await rig.work()
    before = await rig.put(queue, "before", key="k")
    await until(lambda: len(rig.listeners.taken("a")) == 1, what="the one before")
    (parked,) = await rig.put(queue, "parked", key="k")
    after = await rig.put(queue, "after", key="k")
    await until(lambda: len(rig.listeners.taken("a")) == 2, what="the one after")
    await until(lambda: kept(rig), what="one is parked")
    await swept(rig, worker, 1)
    assert not await find(rig, queue, before[0])
    assert await find(rig, queue, parked)
    assert await find(rig, queue, after[0])
    assert await rig.delete(queue, parked)
    await swept(rig, worker, 3)
    assert not await find(rig, queue, after[0])


async def test_a_sweep_that_a_hand_over_meets_deletes_nothing(rig: Rig, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(courier_module, "SET_ASIDE_AFTER_MS", 0)
    queue = await rig.queue()
    await rig.listen(queue, "a", max_attempts=1)
    rig.listeners.decide = lambda got: 422
    worker = await rig.work()
    (parked,) = await rig.put(queue, "parked")
    await until(lambda: kept(rig), what="it is parked")
    await worker._checkpoints.checkpoint()
    load = worker._cursors.load

    async def load_and_lose(listeners: Iterable[str], partitions: Iterable[int]) -> dict[str, dict[int, Cursor]]:
        found = await load(listeners, partitions)
        await worker._given_up(list(worker._partitions))
        return found

    monkeypatch.setattr(worker._cursors, "load", load_and_lose)
    await sweep(worker)
    assert await begins(rig, "messages") == 0
    assert await find(rig, queue, parked)


async def test_what_is_being_replayed_stays_until_it_is(rig: Rig):
    queue = await rig.queue()
    listener = await rig.listen(queue, "a")
    worker = await rig.work()
    ids = await rig.put(queue, *(f"m{number}" for number in range(20)))
    await until(lambda: len(rig.listeners.taken("a")) == 20, what="all of it")
    await rig.noted(worker)
    rig.listeners.down = {"a"}
    replay = await start(rig, queue, listener)
    await until(lambda: replay.id in worker._couriers, what="the worker knows of the replay")
    await sweep(worker)
    assert await begins(rig, "messages") == 0
    rig.listeners.down = set()
    await ended(rig, replay)
    assert Counter(got.message_id for got in replayed(rig)) == Counter(ids)
    await swept(rig, worker, 20)


@pytest.mark.parametrize("tail_backlog_max", [0, 10_000], ids=["read by catch-up readers", "read by the tail"])
async def test_messages_that_are_gone_before_they_were_delivered_are_told_of(
    rig: Rig, caplog, monkeypatch: pytest.MonkeyPatch, tail_backlog_max: int
):
    monkeypatch.setattr(worker_module, "TAIL_BACKLOG_MAX", tail_backlog_max)
    queue = await rig.queue()
    await rig.listen(queue, "a")
    await rig.put(queue, *(f"m{number}" for number in range(20)))
    topic, partitions = f"{rig.settings.kafka.topic_prefix}messages", range(rig.settings.kafka.partitions)
    ends = await rig.log.requests.offsets(topic, dict.fromkeys(partitions, LATEST))
    for partition, end in ends.items():
        if end:
            await rig.log.requests.delete_before(topic, partition, end)
    left = await rig.put(queue, *(f"n{number}" for number in range(20)))
    await rig.work()
    await until(lambda: len(rig.listeners.taken("a")) >= len(left), what="what is left")
    assert rig.listeners.ids("a") == Counter(left)
    told = [text for text in caplog.messages if text.startswith("worker.messages_gone")]
    assert sorted(told) == [
        f"worker.messages_gone partition={partition} wanted=0 begins={ends[partition]}"
        for partition in partitions
        if ends[partition]
    ]


async def test_a_cursor_that_is_lost_repeats_and_skips_nothing_and_is_told_of(
    rig: Rig, caplog, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(worker_module, "NO_CURSOR_MS", 0)
    queue = await rig.queue()
    listener = await rig.listen(queue, "a")
    worker = await rig.work()
    ids = await rig.put(queue, *(f"m{number}" for number in range(20)))
    await until(lambda: len(rig.listeners.taken("a")) == 20, what="all of it")
    await rig.end(worker)
    await rig.end(await rig.work())
    assert "worker.cursors_missing" not in caplog.text
    client = AdminClient(librdkafka(rig.settings.kafka))
    group = listener_group(rig.settings.kafka, listener.id)
    await asyncio.to_thread(client.delete_consumer_groups([group])[group].result, 60)
    ids += await rig.put(queue, "while its cursor was lost")
    await rig.work()
    assert f"worker.cursors_missing listeners=1 one={listener.id} " in caplog.text
    ids += await rig.put(queue, "afterwards")
    await until(lambda: len(rig.listeners.taken("a")) >= 42, what="from its beginning, again")
    assert rig.listeners.ids("a") == Counter(ids[:20] * 2 + ids[20:])
