"""A worker that ends in order: attempts finish, their outcomes are written, its partitions are free at once."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping

import pytest
from confluent_kafka.admin import AdminClient

from broker.core.cursor import Cursor
from broker.kafka.topics import Topics, workers_group
from broker.settings import KafkaSettings
from tests.kafka.rig import Rig, running
from tests.kafka_clients import librdkafka
from tests.listeners import Got, until


@pytest.fixture
async def rig(kafka_settings: KafkaSettings, ready_topics: Topics):
    async with running(kafka_settings) as made:
        yield made


async def members(rig: Rig) -> int:
    """Of the workers' group, as another client sees it."""
    client = AdminClient(librdkafka(rig.settings.kafka))
    group = workers_group(rig.settings.kafka)
    described = await asyncio.to_thread(client.describe_consumer_groups([group])[group].result, 60)
    return len(described.members)


async def test_attempts_under_way_finish_are_written_down_and_the_group_is_left(rig: Rig):
    queue = await rig.queue()
    listener = await rig.listen(queue, "slow")
    rig.listeners.delay_s["slow"] = 1.0
    ids = await rig.put(queue, *(f"m{number}" for number in range(30)))
    worker = await rig.work()
    assert await members(rig) == 1
    await until(lambda: worker.dispatchers[listener.id].busy, what="some are under way")
    before = len(rig.listeners.taken("slow"))
    await rig.end(worker)
    assert len(rig.listeners.taken("slow")) > before
    assert await members(rig) == 0
    rig.listeners.delay_s.clear()
    await rig.work()
    await until(lambda: len(rig.listeners.taken("slow")) >= 30, what="the others")
    (last,) = await rig.put(queue, "last")
    await until(lambda: last in rig.listeners.ids("slow"), what="and what comes")
    assert rig.listeners.ids("slow") == Counter([*ids, last])


async def test_a_checkpoint_that_the_end_interrupts_is_made_good_by_the_last_one(rig: Rig):
    queue = await rig.queue()
    await rig.listen(queue, "a")
    storing = asyncio.Event()

    async def hangs(_cursors: Mapping[str, Mapping[int, Cursor]]) -> None:
        cursors.store = cursors.real.store
        storing.set()
        await asyncio.Event().wait()

    cursors = rig.with_cursors(store=hangs)
    first = await rig.work()
    ids = await rig.put(queue, *(f"m{number}" for number in range(20)))
    await until(lambda: len(rig.listeners.taken("a")) == 20, what="all of it")
    await until(storing.is_set, what="a checkpoint")
    await rig.end(first)
    await rig.work()
    ids += await rig.put(queue, "last")
    await until(lambda: ids[-1] in rig.listeners.ids("a"), what="the last one")
    assert rig.listeners.ids("a") == Counter(ids)


async def test_an_attempt_that_never_ends_does_not_keep_the_worker(rig: Rig):
    rig.tune(drain_s=3600.0, hanging_s=0.1)
    queue = await rig.queue()
    listener = await rig.listen(queue, "hangs")
    asked: list[Got] = []
    rig.listeners.delay_s["hangs"] = 3600.0
    rig.listeners.decide = lambda got: asked.append(got) or 200
    worker = await rig.work()
    await rig.put(queue, "m")
    await until(lambda: worker.dispatchers[listener.id].busy, what="it is asked")
    async with asyncio.timeout(60):
        await rig.end(worker)
    assert await members(rig) == 0
    assert not asked


async def test_what_is_committed_only_once_more_may_take_too_long(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    queue = await rig.queue()
    await rig.listen(queue, "a")
    first = await rig.work()
    ids = await rig.put(queue, *(f"m{number}" for number in range(20)))
    await until(lambda: len(rig.listeners.taken("a")) == 20, what="all of it")

    async def too_long() -> None:
        raise TimeoutError

    monkeypatch.setattr(first.assignment.checkpoints, "once_more", too_long)
    await rig.end(first)
    assert "checkpoint.last_failed" not in caplog.text
    await rig.work()
    ids += await rig.put(queue, "last")
    await until(lambda: ids[-1] in rig.listeners.ids("a"), what="the last one")
    assert rig.listeners.ids("a") == Counter(ids)


async def test_a_worker_whose_last_checkpoint_goes_wrong_leaves_the_group_all_the_same(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
):
    worker = await rig.work()
    assert await members(rig) == 1

    async def wrong() -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(worker.assignment.checkpoints, "last", wrong)
    projections = rig.workers.pop(worker)
    with pytest.raises(ZeroDivisionError):
        await worker.stop()
    await projections.stop()
    assert await members(rig) == 0
