"""Whose the partitions are: what changes during a take-over, and a worker whose partitions are another's by now."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable
from types import SimpleNamespace

import pytest

from broker.commands.listeners import ListenerCommands
from broker.core.cursor import Cursor
from broker.delivery.roster import Roster
from broker.delivery.worker import Worker
from broker.errors import LogUnavailable
from broker.kafka.cursors import KafkaCursors
from broker.kafka.topics import Topics, workers_group
from broker.ports import NoMember
from broker.sealing import Sealer, new_sealing_key
from broker.settings import KafkaSettings
from projections.app import Projections
from tests.kafka.rig import Rig, running
from tests.kafka.test_delivery import cursors
from tests.kafka.test_outstanding import kept
from tests.listeners import until


@pytest.fixture
async def rig(kafka_settings: KafkaSettings, ready_topics: Topics):
    async with running(kafka_settings) as made:
        yield made


async def test_what_changes_while_a_worker_takes_over_counts(rig: Rig, monkeypatch: pytest.MonkeyPatch):
    queue, doomed = await rig.queue("orders"), await rig.queue("doomed")
    await rig.listen(doomed, "doomed")
    await rig.listen(queue, "stays")
    pausing, deleted = await rig.listen(queue, "pausing"), await rig.listen(queue, "deleted")
    projections = Projections(rig.settings.kafka, rig.log.control)
    worker = rig.worker(projections)
    await projections.start()
    load = KafkaCursors.load

    async def load_slowly(self: KafkaCursors, ids: Iterable[str], numbers: Iterable[int]) -> dict:
        found = await load(self, ids, numbers)
        if self is worker.kafka.cursors and "new" not in rig.projections.directory.state.listeners:
            monkeypatch.setattr(KafkaCursors, "load", load)
            await rig.queue_commands.delete_queue(rig.context, doomed.id)
            await rig.commands.delete_listener(rig.context, queue.id, deleted.id)
            await rig.commands.pause_listener(rig.context, queue.id, pausing.id, reason="test")
            new = await rig.listen(queue, "new")
            await until(lambda: new.id in projections.directory.state.listeners, what="the worker knows of all that")
        return found

    monkeypatch.setattr(KafkaCursors, "load", load_slowly)
    rig.workers[worker] = projections
    async with asyncio.timeout(60):
        await worker.start()
    assert KafkaCursors.load is load
    ids = await rig.put(queue, *(f"m{number}" for number in range(10)))
    await until(lambda: len(rig.listeners.got) >= 20, what="both that go on have all")
    assert rig.listeners.ids("stays") == rig.listeners.ids("new") == Counter(ids)
    assert not rig.listeners.taken("pausing")
    assert not rig.listeners.taken("deleted")


async def test_a_redrive_while_a_worker_takes_over_counts(rig: Rig, monkeypatch: pytest.MonkeyPatch):
    queue = await rig.queue()
    listener = await rig.listen(queue, "a", max_attempts=1)
    rig.listeners.decide = lambda got: 422
    first = await rig.work()
    (parked,) = await rig.put(queue, "m")
    await until(lambda: kept(rig), what="it is parked")
    await rig.end(first)
    rig.listeners.decide = None
    load = KafkaCursors.load

    async def load_slowly(self: KafkaCursors, ids: Iterable[str], numbers: Iterable[int]) -> dict:
        monkeypatch.setattr(KafkaCursors, "load", load)
        found = await load(self, ids, numbers)
        await rig.commands.redrive_listener(rig.context, queue.id, listener.id, ())
        return found

    monkeypatch.setattr(KafkaCursors, "load", load_slowly)
    await rig.work()
    await until(lambda: rig.listeners.taken("a"), what="it is delivered")
    assert rig.listeners.ids("a") == Counter([parked])


async def test_a_worker_that_can_not_take_over_says_so_instead_of_waiting(rig: Rig, monkeypatch: pytest.MonkeyPatch):
    await rig.listen(await rig.queue(), "a")

    def broken(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(Roster, "place", broken)
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


async def expelled(rig: Rig, worker: Worker) -> None:
    """The worker's membership ends, which it does not hear of, and it reads nothing more."""

    async def all_is_well() -> bool:
        return True

    worker.kafka.membership._consumer._coordinator._do_heartbeat = all_is_well
    follows = next(task for task in worker._tasks if task.get_name() == "tail")
    follows.cancel()
    await rig.log.requests.groups.expel(
        workers_group(rig.settings.kafka), worker.kafka.membership._consumer._client._client_id
    )


async def test_a_worker_that_was_cut_off_sets_no_cursor_back(rig: Rig):
    queue = await rig.queue()
    listener = await rig.listen(queue, "a")
    cut_off = await rig.work()
    await rig.put(queue, *(f"m{number}" for number in range(20)))
    await until(lambda: len(rig.listeners.taken("a")) == 20, what="the first ones")
    await rig.noted(cut_off)
    await expelled(rig, cut_off)
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
    cut_off = await rig.work()
    await expelled(rig, cut_off)
    await rig.work()
    (message_id,) = await rig.put(queue, "m")
    await until(lambda: rig.listeners.taken("a"), what="the other one delivers it")
    told: list[object] = []
    cut_off.assignment.changes._answers._deliveries = SimpleNamespace(append=told.append)
    assert await rig.delete(queue, message_id) == {listener.id: "delivered"}
    await until(
        lambda: cut_off.assignment.changes.known and cut_off._background.tasks <= cut_off.assignment.loops,
        what="it has read of it, too",
    )
    assert told == []


async def test_who_is_told_that_it_is_no_member_sends_no_more_of_what_it_holds_until_it_is_one_again(rig: Rig):
    queue = await rig.queue()
    listener = await rig.listen(queue, "a", max_in_flight=1)
    rig.listeners.hangs.add("a")
    worker = await rig.work()
    ids = await rig.put(queue, *(f"m{number}" for number in range(20)))
    dispatcher = worker.dispatchers[listener.id]
    await until(lambda: rig.listeners.hanging and dispatcher.held > 1, what="one is under way, and it holds more")
    coordinator = worker.kafka.membership._consumer._coordinator

    async def all_is_well() -> bool:
        return True

    coordinator._do_heartbeat = all_is_well
    await rig.log.requests.groups.expel(
        workers_group(rig.settings.kafka), worker.kafka.membership._consumer._client._client_id
    )
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


async def test_a_hand_over_does_not_wait_for_what_hangs(rig: Rig, monkeypatch: pytest.MonkeyPatch):
    rig.tune(hand_over_s=3600.0, hanging_s=0.1)
    queue = await rig.queue()
    listener = await rig.listen(queue, "hangs")
    rig.listeners.delay_s["hangs"] = 3600.0
    first = await rig.work()
    gave_up = asyncio.Event()
    drop = first.assignment.drop

    def dropped() -> None:
        gave_up.set()
        drop()

    monkeypatch.setattr(first.assignment, "drop", dropped)
    await rig.put(queue, "m")
    await until(lambda: first.dispatchers[listener.id].busy, what="it is asked")
    joining = asyncio.create_task(rig.work())
    async with asyncio.timeout(60):
        await gave_up.wait()
        second = await joining
    half = rig.settings.kafka.partitions // 2
    await until(
        lambda: [len(one.assignment.partitions) for one in (first, second)] == [half] * 2, what="each has its share"
    )
