"""Whose the partitions are: what changes during a take-over, and a worker whose partitions are another's by now."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest

from broker.commands.listeners import ListenerCommands
from broker.core.cursor import Cursor
from broker.delivery.worker import Worker
from broker.errors import LogUnavailable
from broker.kafka.tail import Tail
from broker.kafka.topics import Topics, workers_group
from broker.ports import NoMember
from broker.sealing import Sealer, new_sealing_key
from broker.settings import KafkaSettings
from projections.app import Projections
from tests.kafka.rig import Rig, StandIn, running
from tests.kafka.test_delivery import cursors
from tests.kafka.test_outstanding import kept
from tests.listeners import until


@pytest.fixture
async def rig(kafka_settings: KafkaSettings, ready_topics: Topics):
    async with running(kafka_settings) as made:
        yield made


async def test_what_changes_while_a_worker_takes_over_counts(rig: Rig):
    queue, doomed = await rig.queue("orders"), await rig.queue("doomed")
    await rig.listen(doomed, "doomed")
    await rig.listen(queue, "stays")
    pausing, deleted = await rig.listen(queue, "pausing"), await rig.listen(queue, "deleted")
    projections = Projections(rig.settings.kafka, rig.log.control)
    loaded = 0

    async def load_slowly(ids: Iterable[str], numbers: Iterable[int]) -> dict:
        nonlocal loaded
        found, loaded = await cursors.real.load(ids, numbers), loaded + 1
        if loaded == 1:
            await rig.queue_commands.delete_queue(rig.context, doomed.id)
            await rig.commands.delete_listener(rig.context, queue.id, deleted.id)
            await rig.commands.pause_listener(rig.context, queue.id, pausing.id, reason="test")
            new = await rig.listen(queue, "new")
            await until(lambda: new.id in projections.directory.state.listeners, what="the worker knows of all that")
        return found

    cursors = rig.with_cursors(load=load_slowly)
    worker = rig.worker(projections)
    await projections.start()
    rig.workers[worker] = projections
    async with asyncio.timeout(60):
        await worker.start()
    assert loaded
    ids = await rig.put(queue, *(f"m{number}" for number in range(10)))
    await until(lambda: len(rig.listeners.got) >= 20, what="both that go on have all")
    assert rig.listeners.ids("stays") == rig.listeners.ids("new") == Counter(ids)
    assert not rig.listeners.taken("pausing")
    assert not rig.listeners.taken("deleted")


async def test_a_redrive_while_a_worker_takes_over_counts(rig: Rig):
    queue = await rig.queue()
    listener = await rig.listen(queue, "a", max_attempts=1)
    rig.listeners.decide = lambda got: 422
    first = await rig.work()
    (parked,) = await rig.put(queue, "m")
    await until(lambda: kept(rig), what="it is parked")
    await rig.end(first)
    rig.listeners.decide = None

    async def load_slowly(ids: Iterable[str], numbers: Iterable[int]) -> dict:
        cursors.load = cursors.real.load
        found = await cursors.load(ids, numbers)
        await rig.commands.redrive_listener(rig.context, queue.id, listener.id, ())
        return found

    cursors = rig.with_cursors(load=load_slowly)
    await rig.work()
    await until(lambda: rig.listeners.taken("a"), what="it is delivered")
    assert rig.listeners.ids("a") == Counter([parked])


async def test_a_worker_that_can_not_take_over_says_so_instead_of_waiting(rig: Rig):
    await rig.listen(await rig.queue(), "a")

    async def broken(*_: object) -> None:
        raise RuntimeError("a bug")

    rig.with_cursors(load=broken)
    projections = Projections(rig.settings.kafka, rig.log.control)
    worker = rig.worker(projections)
    await projections.start()
    rig.workers[worker] = projections
    with pytest.raises(RuntimeError, match="a bug"):
        async with asyncio.timeout(60):
            await worker.start()


async def test_a_listener_whose_secret_can_not_be_opened_stands_still_and_no_other(rig: Rig):
    queue = await rig.queue()
    await rig.listen(queue, "well")
    commands = rig.commands
    view = rig.projections.directory
    rig.commands = ListenerCommands(
        rig.log, view, Sealer(new_sealing_key()), allow_networks=rig.settings.allow_networks
    )
    before = await rig.listen(queue, "before")
    worker = await rig.work()
    await rig.listen(queue, "later")
    rig.commands = commands

    async def unusable(count: int) -> bool:
        return (await worker.condition()).listeners["unusable"] == count

    await until(lambda: unusable(2), what="both are known as unusable")
    ids = await rig.put(queue, *(f"m{number}" for number in range(10)))
    await until(lambda: len(rig.listeners.taken("well")) == 10, what="the other one has all")
    assert len(rig.listeners.got) == 10
    assert rig.listeners.ids("well") == Counter(ids)
    await commands.delete_listener(rig.context, queue.id, before.id)
    await until(lambda: unusable(1), what="it has ended")


async def work_until_expelled(rig: Rig) -> tuple[Worker, StandIn]:
    """A worker, and its membership for expelled(). Its `refused` counts how often it was told that it is no member."""

    async def confirm(*arguments: Any) -> None:
        try:
            await membership.real.confirm(*arguments)
        except NoMember:
            membership.refused += 1
            raise

    membership = StandIn(Tail(rig.settings.kafka, rig.log.requests), confirm=confirm, refused=0)
    before, rig.ports = rig.ports, lambda ports: replace(before(ports), membership=membership)
    worker = await rig.work()
    rig.ports = before
    return worker, membership


async def expelled(membership: StandIn) -> None:
    """The worker's membership ends, which it does not hear of, and it reads nothing more."""

    async def nothing() -> dict[int, list[object]]:
        await asyncio.sleep(0.1)
        return {}

    membership.read = nothing
    await membership.real.stop()


async def test_a_worker_that_was_cut_off_sets_no_cursor_back(rig: Rig):
    queue = await rig.queue()
    listener = await rig.listen(queue, "a")
    cut_off, membership = await work_until_expelled(rig)
    await rig.put(queue, *(f"m{number}" for number in range(20)))
    await until(lambda: len(rig.listeners.taken("a")) == 20, what="the first ones")
    await rig.noted(cut_off)
    await expelled(membership)
    other = await rig.work()
    assert len(other.assignment.partitions) == len(cut_off.assignment.partitions) == rig.settings.kafka.partitions
    await rig.put(queue, *(f"n{number}" for number in range(20)))
    await until(lambda: len(rig.listeners.taken("a")) == 40, what="the other ones")
    await rig.noted(other)
    before = await cursors(rig, listener.id)
    with pytest.raises(LogUnavailable):
        await cut_off.assignment.checkpoints.last()
    await cut_off.assignment.checkpoints.once_more()
    assert await cursors(rig, listener.id) == before


async def test_a_worker_that_was_cut_off_does_not_say_who_had_a_message(rig: Rig):
    queue = await rig.queue()
    listener = await rig.listen(queue, "a")
    deliveries = StandIn(rig.log.deliveries)
    usual, rig.ports = rig.ports, lambda ports: replace(ports, log=StandIn(ports.log, deliveries=deliveries))
    cut_off, membership = await work_until_expelled(rig)
    rig.ports = usual
    await expelled(membership)
    await rig.work()
    (message_id,) = await rig.put(queue, "m")
    await until(lambda: rig.listeners.taken("a"), what="the other one delivers it")
    told: list[object] = []

    async def append(outcomes: object) -> None:
        told.append(outcomes)

    deliveries.append = append
    refused = membership.refused
    assert await rig.delete(queue, message_id) == {listener.id: "delivered"}
    await until(
        lambda: cut_off.assignment.changes.known and membership.refused > refused,
        what="it has read of it, too, and asked whether it may answer",
    )
    await rig.end(cut_off)
    assert told == []


async def test_who_is_told_that_it_is_no_member_sends_no_more_of_what_it_holds_until_it_is_one_again(rig: Rig):
    queue = await rig.queue()
    listener = await rig.listen(queue, "a", max_in_flight=1)
    rig.listeners.hangs.add("a")
    membership = Tail(rig.settings.kafka, rig.log.requests, name="expelled")
    rig.ports = lambda ports: replace(ports, membership=membership)
    worker = await rig.work()
    ids = await rig.put(queue, *(f"m{number}" for number in range(20)))
    dispatcher = worker.dispatchers[listener.id]
    await until(lambda: rig.listeners.hanging and dispatcher.held > 1, what="one is under way, and it holds more")
    coordinator = membership._consumer._coordinator

    async def all_is_well() -> bool:
        return True

    coordinator._do_heartbeat = all_is_well
    await rig.log.requests.groups.expel(workers_group(rig.settings.kafka), "expelled")
    with pytest.raises(NoMember):
        await worker.assignment.fence.confirm()
    rig.listeners.let_go()
    await until(lambda: not dispatcher.busy, what="the one under way has ended")
    assert len(rig.listeners.taken("a")) == 1
    del coordinator._do_heartbeat
    await until(lambda: rig.listeners.ids("a").keys() >= set(ids), what="all, once it is a member again")


async def test_a_commit_that_was_long_on_its_way_is_made_good_at_the_hand_over(rig: Rig):
    queue = await rig.queue()
    listener = await rig.listen(queue, "a")
    first = await rig.work()
    ids = await rig.put(queue, *(f"m{number}" for number in range(20)))
    await until(lambda: len(rig.listeners.taken("a")) == 20, what="all of it")
    await rig.noted(first)
    assert not first.dispatchers[listener.id].streams
    await rig.where.cursors.store({listener.id: dict.fromkeys(range(rig.settings.kafka.partitions), Cursor(top=0))})
    await rig.end(first)
    await rig.work()
    ids += await rig.put(queue, "last")
    await until(lambda: ids[-1] in rig.listeners.ids("a"), what="the last one")
    assert rig.listeners.ids("a") == Counter(ids)


async def test_a_hand_over_does_not_wait_for_what_hangs(rig: Rig):
    rig.tune(hand_over_s=3600.0, hanging_s=0.1)
    queue = await rig.queue()
    listener = await rig.listen(queue, "hangs")
    rig.listeners.delay_s["hangs"] = 3600.0
    first = await rig.work()
    before = first.assignment
    await rig.put(queue, "m")
    await until(lambda: first.dispatchers[listener.id].busy, what="it is asked")
    joining = asyncio.create_task(rig.work())
    async with asyncio.timeout(60):
        await until(lambda: first.assignment is not before, what="it has given its partitions up")
        second = await joining
    half = rig.settings.kafka.partitions // 2
    await until(
        lambda: [len(one.assignment.partitions) for one in (first, second)] == [half] * 2, what="each has its share"
    )
