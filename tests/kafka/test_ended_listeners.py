"""A listener's end on a real Kafka: its group and its records go, and no late checkpoint brings the group back."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import pytest
from confluent_kafka.admin import AdminClient

from broker.core.cursor import Cursor
from broker.delivery.tuning import TUNED
from broker.kafka.topics import Topics, listener_group
from broker.settings import KafkaSettings
from tests.kafka.rig import Rig, running
from tests.kafka.test_outstanding import kept
from tests.kafka_clients import librdkafka
from tests.listeners import until


@pytest.fixture
async def rig(kafka_settings: KafkaSettings, ready_topics: Topics):
    async with running(kafka_settings) as made:
        made.tune(idle_checkpoint_s=TUNED.checkpoint_s)
        yield made


async def groups(rig: Rig) -> set[str]:
    """The listeners' groups, as another client sees them."""
    client = AdminClient(librdkafka(rig.settings.kafka))
    listed = await asyncio.to_thread(client.list_consumer_groups().result, 60)
    return {one.group_id for one in listed.valid if one.group_id.startswith(listener_group(rig.settings.kafka, ""))}


async def test_a_deleted_listener_s_group_goes_and_no_checkpoint_brings_it_back(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
):
    queue = await rig.queue()
    ends, stays = await rig.listen(queue, "ends"), await rig.listen(queue, "stays")
    worker = await rig.work()
    happened: list[tuple[str, str]] = []
    store, delete = worker.kafka.cursors.store, worker.kafka.cursors.delete

    async def slow_store(cursors: Mapping[str, Mapping[int, Cursor]]) -> None:
        """Each commit is long under way: time for its listener to end meanwhile."""
        await asyncio.sleep(0.3)
        await store(cursors)
        happened.extend(("committed", listener_id) for listener_id in cursors)

    async def told_delete(listener_id: str) -> None:
        await delete(listener_id)
        happened.append(("deleted", listener_id))

    monkeypatch.setattr(worker.kafka.cursors, "store", slow_store)
    monkeypatch.setattr(worker.kafka.cursors, "delete", told_delete)
    await rig.put(queue, *(f"m{number}" for number in range(20)))
    await until(lambda: ("committed", ends.id) in happened, what="both have cursors")
    deleting = asyncio.create_task(rig.commands.delete_listener(rig.context, queue.id, ends.id))
    await rig.put(queue, *(f"n{number}" for number in range(20)))
    await deleting
    await until(lambda: ("deleted", ends.id) in happened, what="its group is deleted")
    after = len(happened)
    await rig.put(queue, "last")
    await until(lambda: happened[after:].count(("committed", stays.id)) >= 3, what="the other one's checkpoints go on")
    assert ("committed", ends.id) not in happened[happened.index(("deleted", ends.id)) :]
    assert await groups(rig) == {listener_group(rig.settings.kafka, stays.id)}


async def test_a_listener_that_ended_while_it_was_down_is_asked_no_more(rig: Rig, monkeypatch: pytest.MonkeyPatch):
    queue = await rig.queue()
    listener = await rig.listen(queue, "gone")
    rig.listeners.down.add("gone")
    worker = await rig.work()
    await rig.put(queue, *(f"m{number}" for number in range(20)))
    await until(lambda: worker._liveness.down, what="it is down")
    await rig.commands.delete_listener(rig.context, queue.id, listener.id)
    await until(lambda: not worker.dispatchers, what="it has ended")
    down: list[int] = []
    tick = worker._liveness.tick

    def told_tick(*, permits: int) -> None:
        down.append(len(worker._liveness.down))
        tick(permits=permits)

    monkeypatch.setattr(worker._liveness, "tick", told_tick)
    await until(lambda: len(down) >= 10, what="some ticks more")
    assert down == [0] * len(down)
    assert not len(worker.ticks)


async def test_what_ended_while_no_worker_ran_is_found_by_the_next_one(rig: Rig):
    rig.tune(set_aside_after_ms=0)
    queue, other = await rig.queue("ends"), await rig.queue("stays")
    await rig.listen(queue, "a", max_attempts=1)
    await rig.listen(queue, "b")
    stays = await rig.listen(other, "c", max_attempts=1)
    first = await rig.work()
    rig.listeners.decide = lambda got: 422
    await rig.put(queue, "parked at a, set aside at b")
    await rig.put(other, "parked")

    async def all_kept() -> bool:
        return len(await kept(rig)) == 3

    await until(all_kept, what="all three are in outstanding")
    await rig.end(first)
    assert len(await groups(rig)) == 3
    await rig.queue_commands.delete_queue(rig.context, queue.id)
    assert len(await groups(rig)) == 3
    second = await rig.work()

    async def cleared() -> bool:
        return await groups(rig) == {listener_group(rig.settings.kafka, stays.id)}

    await until(cleared, what="the groups of the queue's listeners are gone")

    async def buried() -> bool:
        await second.assignment.checkpoints.checkpoint()
        return [event.listener_id for event in (await kept(rig)).values()] == [stays.id]

    await until(buried, what="their records are gone, the other listener's is not")


async def test_a_cursor_that_a_worker_behind_the_log_committed_once_more_is_found(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
):
    rig.tune(ended_again_s=0.2)
    queue = await rig.queue()
    listener = await rig.listen(queue, "a")
    worker = await rig.work()
    await rig.put(queue, "m")
    await until(lambda: groups(rig), what="its cursor is committed")
    delete = worker.kafka.cursors.delete

    async def commit_again(listener_id: str) -> None:
        monkeypatch.setattr(worker.kafka.cursors, "delete", delete)
        await delete(listener_id)
        await rig.where.cursors.store({listener_id: {0: Cursor(top=1)}})

    monkeypatch.setattr(worker.kafka.cursors, "delete", commit_again)
    await rig.commands.delete_listener(rig.context, queue.id, listener.id)

    async def none() -> bool:
        return worker.kafka.cursors.delete is delete and not await groups(rig)

    await until(none, what="it is gone for good")
