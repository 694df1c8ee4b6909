"""What is old and settled goes, and nothing that anybody may still need; a lost cursor skips nothing."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from confluent_kafka.admin import AdminClient

from broker.clock import now_ms
from broker.commands.changes import find_message
from broker.commands.listeners import ListenerInput
from broker.commands.organizations import create_organization
from broker.commands.puts import new_put
from broker.core.cursor import Cursor
from broker.core.entities import Listener, Queue
from broker.delivery.worker import Worker
from broker.errors import LogUnavailable, NotFound
from broker.kafka.tail import Tail
from broker.kafka.topics import Topics, listener_group
from broker.ports import EARLIEST, LATEST
from broker.settings import KafkaSettings
from broker.time_offsets import offsets_since
from tests.kafka.rig import Rig, StandIn, running
from tests.kafka.test_outstanding import kept
from tests.kafka.test_replay import ended, replayed, start
from tests.kafka_clients import librdkafka
from tests.listeners import until

LATER_MS = 60_000


@pytest.fixture
async def rig(kafka_settings: KafkaSettings, ready_topics: Topics):
    async with running(kafka_settings, clock_skew_ms=0) as made:
        yield made


async def begins(rig: Rig, topic: str) -> int:
    """How many records of a topic are gone."""
    name = f"{rig.settings.kafka.topic_prefix}{topic}"
    everywhere = dict.fromkeys(range(rig.settings.kafka.partitions), EARLIEST)
    return sum((await rig.log.requests.offsets(name, everywhere)).values())


async def sweep(worker: Worker) -> None:
    """As if all that is there had become old."""
    await worker.assignment.checkpoints.checkpoint()
    await worker.kafka.cursors.store(worker.assignment.checkpoints._idle(worker.dispatchers.values()))
    await worker.assignment.retention.sweep(now_ms() + LATER_MS)


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


async def test_what_every_listener_has_settled_goes_and_what_one_lacks_is_set_aside(rig: Rig):
    queue, other = await rig.queue("orders"), await rig.queue("others")
    await rig.listen(queue, "quick")
    paused = await rig.listen(queue, "paused")
    await rig.listen(other, "other")
    worker = await rig.work()
    old = await rig.put(queue, *(f"m{number}" for number in range(20)))
    await until(lambda: len(rig.listeners.got) == 40, what="both have the first ones")
    await rig.update(queue, old[0], "changed")
    await paused_now(rig, worker, paused)
    await worker.assignment.retention.sweep(now_ms() - LATER_MS)
    assert await begins(rig, "messages") == 0  # nothing is old
    await swept(rig, worker, 20)
    assert not await find(rig, queue, old[0])
    new = await rig.put(queue, *(f"n{number}" for number in range(20)))
    await until(lambda: len(rig.listeners.taken("quick")) == 40, what="the quick one has all")
    await rig.listen(queue, "from-the-beginning", begin_at_ms=0)
    await until(lambda: len(rig.listeners.taken("from-the-beginning")) >= 20, what="it begins with what is left")
    assert rig.listeners.ids("from-the-beginning") == Counter(new)
    await swept(rig, worker, 40)
    assert all([await find(rig, queue, message_id) for message_id in new])
    await rig.commands.resume_listener(rig.context, queue.id, paused.id)
    await until(lambda: len(rig.listeners.taken("paused")) >= 40, what="the paused one lacks nothing")
    assert rig.listeners.ids("paused") == Counter(old + new)
    last = await rig.put(queue, *(f"o{number}" for number in range(8)))
    await until(lambda: len(rig.listeners.taken("paused")) >= 48, what="deliveries go on")
    assert rig.listeners.ids("paused") == Counter(old + new + last)
    await swept(rig, worker, 48)
    assert not await find(rig, queue, new[0])


async def paused_now(rig: Rig, worker: Worker, listener: Listener) -> None:
    context = replace(rig.context, organization_id=listener.organization_id)
    await rig.commands.pause_listener(context, listener.queue_id, listener.id, reason="test")
    await until(lambda: worker.dispatchers[listener.id].listener.paused, what="the worker knows of the pause")


async def of_another(rig: Rig) -> Queue:
    """A queue of another organization."""
    other = await create_organization(rig.log.control, rig.projections.directory, name="other")
    return await rig.queue_commands.create_queue(replace(rig.context, organization_id=other.id), name="theirs")


async def listen_to(rig: Rig, queue: Queue, path: str, **settings: object) -> Listener:
    url = rig.listeners.url(path)
    listener_input = ListenerInput(name=path, notify_url=url, liveness_url=url, settings=settings)
    context = replace(rig.context, organization_id=queue.organization_id)
    return (await rig.commands.create_listener(context, queue.id, listener_input))[0]


@pytest.mark.parametrize("how", ["paused", "down", "slow"])
async def test_what_one_organization_does_not_take_holds_nothing_of_another(rig: Rig, how: str):
    """And it is delivered, changed and deleted as if it were in the log still."""
    mine, theirs = await rig.queue(), await of_another(rig)
    lagging = await rig.listen(mine, "lagging", **({"rate_per_s": 0.001} if how == "slow" else {}))
    await listen_to(rig, theirs, "quick")
    worker = await rig.work()
    if how == "paused":
        await paused_now(rig, worker, lagging)
    elif how == "down":
        rig.listeners.down = {"lagging"}
    ids, keyed = list[str](), list[str]()
    for number in range(40):
        ids += await rig.put(mine, f"m{number}")
        keyed += await rig.put(mine, f"k{number}", key="k")
        await rig.put(theirs, f"t{number}")
    await until(lambda: len(rig.listeners.taken("quick")) == 40, what="the other organization has all of its own")
    await swept(rig, worker, 120)
    first = set(rig.listeners.ids("lagging"))
    assert len(first) <= (4 if how == "slow" else 0)  # before its rate held it back
    await rig.noted(worker)
    assert (await rig.where.condition(lagging)).lag == 80 - len(first)  # all that is set aside waits still
    assert [one for one in ids + keyed if not await find(rig, mine, one)] == [
        one for one in ids + keyed if one in first
    ]
    await rig.update(mine, ids[30], "changed")
    await rig.delete(mine, ids[31])
    assert not await find(rig, mine, ids[31])
    await rig.end(worker)
    await rig.work()
    rig.listeners.down = set()
    if how == "paused":
        await rig.commands.resume_listener(rig.context, mine.id, lagging.id)
    elif how == "slow":
        await rig.commands.update_listener(
            rig.context, mine.id, lagging.id, ListenerInput(settings={"rate_per_s": None})
        )
    expected = {*ids, *keyed} - {ids[31]}
    await until(lambda: set(rig.listeners.ids("lagging")) == expected, what="all that was set aside is delivered")
    assert set(rig.listeners.ids("lagging").values()) == {1}
    assert [got.message_id for got in rig.listeners.taken("lagging") if got.message_id in set(keyed)] == keyed
    got = {one.message_id: one.data for one in rig.listeners.taken("lagging")}
    assert got[ids[30]] == "changed"
    assert [got[one] for one in keyed] == [f"k{number}" for number in range(40)]


async def test_what_waits_for_its_time_holds_nothing_of_another_organization(rig: Rig):
    mine, theirs = await rig.queue(), await of_another(rig)
    await rig.listen(mine, "later")
    await listen_to(rig, theirs, "quick")
    worker = await rig.work()
    at = datetime.now(UTC) + timedelta(days=9)
    ids = await rig.put(mine, *(f"m{number}" for number in range(8)), deliver_at=at)
    await rig.put(theirs, *(f"t{number}" for number in range(8)))
    await until(lambda: len(rig.listeners.taken("quick")) == 8, what="the other organization has its own")
    await swept(rig, worker, 16)
    assert all([await find(rig, mine, message_id) for message_id in ids])
    assert rig.listeners.taken("later") == []


async def test_who_may_be_no_member_any_more_deletes_nothing(rig: Rig):
    """Its next owner keeps what it does not know of: docs/decisions/0160."""
    queue = await rig.queue()
    await rig.listen(queue, "a")
    membership = StandIn(Tail(rig.settings.kafka, rig.log.requests))
    rig.ports = lambda ports: replace(ports, membership=membership)
    worker = await rig.work()
    await rig.put(queue, "m1", "m2", "m3")
    await until(lambda: len(rig.listeners.taken("a")) == 3, what="all three")

    async def refuse(*_: object) -> None:
        raise LogUnavailable("no member any more")

    await worker.assignment.checkpoints.checkpoint()
    await worker.kafka.cursors.store(worker.assignment.checkpoints._idle(worker.dispatchers.values()))
    membership.confirm = refuse

    async def refused() -> bool:
        """Whether the worker's last confirmation is too old, so that it asks."""
        try:
            await worker.assignment.fence.assure()
        except LogUnavailable:
            return True
        return False

    await until(refused, what="it may be no member any more")
    with pytest.raises(LogUnavailable):
        await worker.assignment.retention.sweep(now_ms() + LATER_MS)
    assert await begins(rig, "messages") == 0
    membership.confirm = membership.real.confirm
    await swept(rig, worker, 3)


async def test_what_is_parked_is_found_and_redriven_when_its_message_is_gone(rig: Rig):
    rig.tune(set_aside_after_ms=0)
    queue = await rig.queue()
    listener = await rig.listen(queue, "a", max_attempts=1)
    rig.listeners.decide = lambda got: 422 if got.data == "parked" else 200
    worker = await rig.work()
    before = await rig.put(queue, "before", key="k")
    await until(lambda: len(rig.listeners.taken("a")) == 1, what="the one before")
    (parked,) = await rig.put(queue, "parked", key="k")
    (deleted,) = await rig.put(queue, "parked", key="k")
    after = await rig.put(queue, "after", key="k")
    await until(lambda: len(rig.listeners.taken("a")) == 2, what="the one after")

    async def both() -> bool:
        return len(await kept(rig)) == 2

    await until(both, what="two are parked")
    await swept(rig, worker, 4)
    assert not await find(rig, queue, before[0])
    assert not await find(rig, queue, after[0])
    assert await find(rig, queue, parked)
    assert await rig.delete(queue, deleted) == {listener.id: "cancelled"}
    assert not await find(rig, queue, deleted)
    rig.listeners.decide = None
    await rig.commands.redrive_listener(rig.context, queue.id, listener.id, [])
    await until(lambda: len(rig.listeners.taken("a")) == 3, what="it is redriven")
    assert rig.listeners.taken("a")[2].message_id == parked

    async def gone() -> bool:
        await worker.assignment.checkpoints.checkpoint()
        return not await find(rig, queue, parked)

    await until(gone, what="nothing is left of it")


async def test_what_only_a_newer_program_reads_keeps_its_message(rig: Rig):
    """Its record in `outstanding` has no payload."""
    queue = await rig.queue()
    await rig.listen(queue, "a")
    worker = await rig.work()
    await rig.put(queue, "before")
    await until(lambda: rig.listeners.taken("a"), what="the one before")
    put = new_put(queue, "newer", None, "k", "key:test", "r")

    def build(partition: int) -> tuple[bytes, bytes, bytes]:
        key, value, queue_id = put.build(partition)
        assert b'"v":1' in value
        return key, value.replace(b'"v":1', b'"v":99'), queue_id

    partition, offset = await rig.log.messages.append(build, ordering_key="k")
    await until(lambda: kept(rig), what="it is parked")
    await rig.put(queue, "after", key="k")
    await until(lambda: len(rig.listeners.taken("a")) == 2, what="the one after")
    name = f"{rig.settings.kafka.topic_prefix}messages"
    for _ in range(3):
        await sweep(worker)
        assert (await rig.log.requests.offsets(name, {partition: EARLIEST}))[partition] <= offset


async def test_a_sweep_that_a_hand_over_meets_deletes_nothing(rig: Rig):
    rig.tune(set_aside_after_ms=0)
    queue = await rig.queue()
    await rig.listen(queue, "a", max_attempts=1)
    rig.listeners.decide = lambda got: 422
    cursors = rig.with_cursors()
    worker = await rig.work()
    (parked,) = await rig.put(queue, "parked")
    await until(lambda: kept(rig), what="it is parked")
    await worker.assignment.checkpoints.checkpoint()

    async def load_and_lose(listeners: Iterable[str], partitions: Iterable[int]) -> dict[str, dict[int, Cursor]]:
        found = await cursors.real.load(listeners, partitions)
        await worker._given_up(list(worker.assignment.partitions))
        return found

    cursors.load = load_and_lose
    with pytest.raises(LogUnavailable, match="their next owner"):
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
    await until(lambda: replay.id in worker.dispatchers, what="the worker knows of the replay")
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
    rig.tune(tail_backlog_max=tail_backlog_max)
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
    rig.tune(no_cursor_ms=0)
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


async def test_a_time_before_1970_is_the_beginning_of_the_log(rig: Rig):
    await rig.put(await rig.queue("orders"), "m")
    everywhere = dict.fromkeys(range(rig.settings.kafka.partitions), -600_000)
    name = f"{rig.settings.kafka.topic_prefix}messages"
    found = await offsets_since(rig.log.requests, name, everywhere)
    assert found == await rig.log.requests.offsets(name, dict.fromkeys(everywhere, EARLIEST))
