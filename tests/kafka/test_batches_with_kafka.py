"""Listeners that take batches, on a real Kafka: retries, parking, redrives, replays, pauses, changes, hand-overs."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import orjson
import pytest
from msgspec import UNSET

from broker.commands.listeners import ListenerInput
from broker.core.batching import FAILED_IN_BATCH
from broker.core.directory import REPLAY_HEADER
from broker.core.entities import Listener, Queue
from broker.core.events import BatchSetting
from broker.kafka.topics import Topics
from broker.settings import KafkaSettings
from tests.kafka.rig import Rig, running
from tests.kafka.test_outstanding import kept
from tests.kafka.test_replay import ended, start
from tests.listeners import Got, until

SOON = BatchSetting(max_messages=50, wait_ms=200)


@pytest.fixture
async def rig(kafka_settings: KafkaSettings, ready_topics: Topics):
    async with running(kafka_settings) as made:
        yield made


def messages(got: Got) -> list[dict[str, Any]]:
    """The messages of a request, in order: batches, or single ones as an element would have them."""
    if "everput-batch" in got.headers:
        found: list[dict[str, Any]] = orjson.loads(got.body)
        assert len(found) == int(got.headers["everput-batch"])
        return found
    return [{"id": got.message_id, "attempt": int(got.headers["everput-attempt"]), "body": orjson.loads(got.body)}]


class Refusing:
    """What listeners answer: some data are refused, in batches by `failed`. taken: (id, data, attempt), in order."""

    def __init__(self, rig: Rig, *refused: str) -> None:
        self.refused = set(refused)
        self.taken: list[tuple[str, str, int]] = []
        rig.listeners.body = self._answer

    def _answer(self, got: Got) -> bytes:
        failed = []
        for one in messages(got):
            data = one["body"]["message"]["data"]
            if data in self.refused:
                failed.append(one["id"])
            else:
                self.taken.append((one["id"], data, one["attempt"]))
        return orjson.dumps({"failed": failed}) if failed else b""

    @property
    def ids(self) -> Counter[str]:
        return Counter(one for one, _, _ in self.taken)


async def put(rig: Rig, queue: Queue, count: int, prefix: str = "m") -> list[str]:
    """Put these messages all at once; their ids."""
    puts = await asyncio.gather(*(rig.put(queue, f"{prefix}{number}") for number in range(count)))
    return [one for ids in puts for one in ids]


async def change(rig: Rig, queue: Queue, listener: Listener, **settings: Any) -> None:
    await rig.commands.update_listener(rig.context, queue.id, listener.id, ListenerInput(settings=settings))


async def test_batches_of_several_partitions_are_delivered_once_each_across_a_hand_over(rig: Rig):
    queue, taker = await rig.queue(), Refusing(rig)
    listener = await rig.listen(queue, "a", batch=SOON)
    first = await rig.work()
    ids = await put(rig, queue, 200)
    await until(lambda: len(taker.taken) == 200, what="all are delivered")
    assert len(rig.listeners.taken("a")) < 100, "in batches"
    await rig.noted(first)
    await rig.end(first)
    second = await rig.work()
    ids += await put(rig, queue, 50, "n")
    await until(lambda: len(taker.taken) >= 250, what="those after it")
    assert taker.ids == Counter(ids)
    await rig.noted(second)
    assert (await rig.where.condition(listener)).lag == 0
    state = await rig.state(ids[0], listener)
    assert (state.state, [attempt.number for attempt in state.attempts]) == ("delivered", [1])


async def test_some_are_refused_and_retried_and_each_has_its_own_attempts(rig: Rig):
    queue, taker = await rig.queue(), Refusing(rig, "m3", "m7")
    listener = await rig.listen(queue, "a", batch=SOON, retry_first_ms=200, retry_max_s=1)
    worker = await rig.work()
    ids = await put(rig, queue, 10)
    await until(lambda: len(taker.taken) == 8, what="the others are delivered")

    async def failed_twice() -> bool:
        await worker.assignment.checkpoints.checkpoint()
        return len((await rig.state(ids[3], listener)).attempts) >= 2

    await until(failed_twice, what="a retry failed, too")
    taker.refused.clear()
    await until(lambda: len(taker.taken) == 10, what="all are delivered")
    await rig.noted(worker)
    assert taker.ids == Counter(ids)
    state = await rig.state(ids[3], listener)
    assert state.state == "delivered"
    assert [one.number for one in state.attempts] == list(range(1, len(state.attempts) + 1))
    assert {(one.status, one.error) for one in state.attempts[:-1]} == {(200, FAILED_IN_BATCH)}
    other = await rig.state(ids[4], listener)
    assert [(one.number, one.status, one.error) for one in other.attempts] == [(1, 200, None)]


async def test_a_listener_that_fails_all_of_them_parks_them_and_a_redrive_brings_them(rig: Rig):
    queue, taker = await rig.queue(), Refusing(rig)
    rig.listeners.decide = lambda _: 422
    listener = await rig.listen(queue, "a", batch=SOON, max_attempts=2, retry_first_ms=100)
    worker = await rig.work()
    ids = await put(rig, queue, 20)

    async def all_parked() -> bool:
        return [event.number for event in (await kept(rig)).values()] == [2] * 20

    await until(all_parked, what="all are parked")
    taker.taken.clear()
    rig.listeners.decide = None
    await rig.commands.redrive_listener(rig.context, queue.id, listener.id, [])
    await until(lambda: len(taker.taken) >= 20, what="all are delivered")
    assert taker.ids == Counter(ids)
    assert {attempt for _, _, attempt in taker.taken} == {3}
    assert any("everput-batch" in got.headers for got in rig.listeners.taken("a"))

    async def none_kept() -> bool:
        await worker.assignment.checkpoints.checkpoint()
        return not await kept(rig)

    await until(none_kept, what="nothing is parked any more")


async def test_messages_of_a_key_arrive_in_order_although_some_are_refused_first(rig: Rig):
    queue, taker = await rig.queue(), Refusing(rig, "k0", "k5")
    await rig.listen(queue, "a", batch=SOON, retry_first_ms=100, retry_max_s=1)
    await rig.work()
    for number in range(8):
        await rig.put(queue, f"k{number}", key="k")
        await rig.put(queue, f"m{number}", f"n{number}")
    await until(lambda: len(taker.taken) == 16, what="those without the key")
    taker.refused.remove("k0")
    await until(lambda: len(taker.taken) == 21, what="those before the other one")
    taker.refused.clear()
    await until(lambda: len(taker.taken) == 24, what="all")
    of_key = [data for _, data, _ in taker.taken if data.startswith("k")]
    assert of_key == [f"k{number}" for number in range(8)]


async def test_a_replay_goes_in_batches_and_is_marked(rig: Rig):
    queue, taker = await rig.queue(), Refusing(rig)
    listener = await rig.listen(queue, "a", batch=SOON)
    await rig.work()
    ids = await put(rig, queue, 100)
    await until(lambda: len(taker.taken) == 100, what="all are delivered")
    replay = await start(rig, queue, listener)
    await ended(rig, replay)
    replayed = [got for got in rig.listeners.taken("a") if got.headers.get(REPLAY_HEADER) == replay.id]
    assert Counter(one["id"] for got in replayed for one in messages(got)) == Counter(ids)
    assert all("everput-batch" in got.headers for got in replayed)
    assert len(replayed) < 100


async def test_a_paused_listener_gets_its_batches_after_its_resume(rig: Rig):
    queue, taker = await rig.queue(), Refusing(rig)
    listener = await rig.listen(queue, "a", batch=SOON)
    worker = await rig.work()
    await rig.commands.pause_listener(rig.context, queue.id, listener.id, reason="by hand")
    await until(lambda: worker.dispatchers[listener.id].listener.paused, what="the worker knows")
    ids = await put(rig, queue, 60)
    await rig.noted(worker)
    assert not taker.taken
    await rig.commands.resume_listener(rig.context, queue.id, listener.id)
    await until(lambda: len(taker.taken) >= 60, what="all after the resume")
    assert taker.ids == Counter(ids)


async def test_a_listener_changes_between_batches_and_single_requests_while_messages_flow(rig: Rig):
    queue, taker = await rig.queue(), Refusing(rig)
    listener = await rig.listen(queue, "a")
    worker = await rig.work()
    ids: list[str] = []
    for batch in (SOON, UNSET, BatchSetting(max_messages=3, wait_ms=0), UNSET):
        flowing = asyncio.create_task(put(rig, queue, 100))
        await change(rig, queue, listener, batch=batch)
        ids += await flowing
        wanted = None if batch is UNSET else batch
        dispatcher = worker.dispatchers[listener.id]
        await until(lambda: dispatcher.listener.batch == wanted, what="the worker knows")  # noqa: B023 - awaited here
        ids += await put(rig, queue, 10)
        await until(lambda: len(taker.taken) >= len(ids), what="all are delivered")  # noqa: B023 - awaited here
    assert taker.ids == Counter(ids)
    assert {"everput-batch" in got.headers for got in rig.listeners.taken("a")} == {True, False}


async def test_an_updated_and_a_deleted_message_that_wait_for_a_retry_are_sent_as_they_are_now(rig: Rig):
    queue, taker = await rig.queue(), Refusing(rig, "old", "gone")
    await rig.listen(queue, "a", batch=SOON, retry_first_ms=300, retry_max_s=1)
    await rig.work()
    old, gone, other = await rig.put(queue, "old", "gone", "other")
    await until(lambda: taker.ids[other], what="the other one is delivered")
    await rig.update(queue, old, "new")
    await rig.delete(queue, gone)
    taker.refused.clear()
    await until(lambda: taker.ids[old], what="the updated one is delivered")
    assert [data for one, data, _ in taker.taken if one == old] == ["new"]
    assert not taker.ids[gone]
