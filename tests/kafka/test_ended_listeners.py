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


async def test_a_deleted_listener_s_group_goes_and_no_checkpoint_brings_it_back(rig: Rig):
    queue = await rig.queue()
    ends, stays = await rig.listen(queue, "ends"), await rig.listen(queue, "stays")
    happened: list[tuple[str, str]] = []

    async def slow_store(cursors: Mapping[str, Mapping[int, Cursor]]) -> None:
        """Each commit is long under way: time for its listener to end meanwhile."""
        await asyncio.sleep(0.3)
        await stored.real.store(cursors)
        happened.extend(("committed", listener_id) for listener_id in cursors)

    async def told_delete(listener_id: str) -> None:
        await stored.real.delete(listener_id)
        happened.append(("deleted", listener_id))

    stored = rig.with_cursors(store=slow_store, delete=told_delete)
    await rig.work()
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


async def test_a_listener_that_ended_while_it_was_down_is_asked_no_more(rig: Rig):
    queue, other = await rig.queue(), await rig.queue("other")
    gone, stays = await rig.listen(queue, "gone"), await rig.listen(other, "stays")
    rig.listeners.down |= {"gone", "stays"}
    worker = await rig.work()
    await rig.put(queue, *(f"m{number}" for number in range(20)))
    await rig.put(other, "m")
    probes = rig.listeners.probes
    await until(lambda: min(probes["gone"], probes["stays"]) > 0, what="both are asked whether they are back")
    await rig.commands.delete_listener(rig.context, queue.id, gone.id)
    await until(lambda: set(worker.dispatchers) == {stays.id}, what="it has ended")
    before = probes.copy()
    await until(lambda: probes["stays"] >= before["stays"] + 3, what="the other one is asked again and again")
    assert probes["gone"] <= before["gone"] + 1, "one may have been under way"


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


async def test_a_cursor_that_a_worker_behind_the_log_committed_once_more_is_found(rig: Rig):
    rig.tune(ended_again_s=0.2)
    queue = await rig.queue()
    listener = await rig.listen(queue, "a")
    deleted: list[str] = []

    async def commit_again(listener_id: str) -> None:
        await cursors.real.delete(listener_id)
        deleted.append(listener_id)
        if len(deleted) == 1:
            await rig.where.cursors.store({listener_id: {0: Cursor(top=1)}})

    cursors = rig.with_cursors(delete=commit_again)
    await rig.work()
    await rig.put(queue, "m")
    await until(lambda: groups(rig), what="its cursor is committed")
    await rig.commands.delete_listener(rig.context, queue.id, listener.id)

    async def none() -> bool:
        return len(deleted) > 1 and not await groups(rig)

    await until(none, what="it is gone for good")
