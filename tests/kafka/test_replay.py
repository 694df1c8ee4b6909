"""A range of the log delivered once more, on a real Kafka, across workers that end in the middle."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest

from broker.commands.replays import ReplayCommands, ReplayInput
from broker.core.directory import REPLAY_HEADER
from broker.core.entities import Listener, Queue
from broker.core.health import Health
from broker.core.replays import Replay
from broker.errors import NotFound
from broker.kafka.cursors import KafkaCursors
from broker.kafka.outstanding import KafkaOutstanding
from broker.kafka.read_slots import ReadSlots
from broker.kafka.topics import Topics
from broker.settings import KafkaSettings
from tests.kafka.rig import Rig, running
from tests.kafka.test_outstanding import kept
from tests.listeners import Got, Listeners, until


@pytest.fixture
async def rig(kafka_settings: KafkaSettings, ready_topics: Topics):
    async with running(kafka_settings) as made:
        yield made


def commands(rig: Rig) -> ReplayCommands:
    kafka, requests = rig.settings.kafka, rig.log.requests
    return ReplayCommands(
        rig.log,
        rig.projections.directory,
        KafkaOutstanding(kafka, requests, ReadSlots()),
        KafkaCursors(kafka, requests),
        allow_networks=rig.settings.allow_networks,
    )


async def start(rig: Rig, queue: Queue, listener: Listener, **replay_input) -> Replay:
    return await commands(rig).start(rig.context, queue.id, listener.id, ReplayInput(from_ms=0, **replay_input))


def replayed(rig: Rig, path: str = "a") -> list[Got]:
    return [got for got in rig.listeners.taken(path) if REPLAY_HEADER in got.headers]


async def ended(rig: Rig, replay: Replay) -> Replay:
    def now() -> Replay | None:
        found = rig.projections.directory.state.replays.find(rig.organization_id, replay.id)
        return found if found is not None and found.ended else None

    return await until(now, what="the replay has ended")


async def test_it_delivers_its_range_once_marked_and_then_ends(rig: Rig):
    queue, other = await rig.queue(), await rig.queue("other")
    listener = await rig.listen(queue, "a")
    await rig.work()
    ids = await rig.put(queue, *(f"m{number}" for number in range(60)))
    await rig.put(other, "not of this queue")
    await until(lambda: len(rig.listeners.taken("a")) == 60, what="all is delivered")
    replay = await start(rig, queue, listener)
    assert replay.count == 60
    late = await rig.put(queue, "put after it began")
    await ended(rig, replay)
    assert Counter(got.message_id for got in replayed(rig)) == Counter(ids)
    assert {got.headers[REPLAY_HEADER] for got in replayed(rig)} == {replay.id}
    await until(lambda: rig.listeners.ids("a")[late[0]] == 1, what="what came later is delivered as ever")
    assert await commands(rig).progress(await ended(rig, replay)) == 1.0


async def test_its_cursors_are_gone_once_it_has_ended(rig: Rig):
    queue = await rig.queue()
    listener = await rig.listen(queue, "a")
    worker = await rig.work()
    await rig.put(queue, "m1", "m2")
    replay = await start(rig, queue, listener)
    await ended(rig, replay)
    cursors = KafkaCursors(rig.settings.kafka, rig.log.requests)

    async def gone() -> bool:
        worker.assignment.ended_listeners.look()
        return replay.id not in await cursors.listeners()

    await until(gone, what="its group is deleted")
    assert replay.id not in worker.dispatchers


async def test_a_worker_that_takes_over_goes_on_where_it_was(rig: Rig):
    queue = await rig.queue()
    listener = await rig.listen(queue, "a")
    first = await rig.work()
    ids = await rig.put(queue, *(f"m{number}" for number in range(80)))
    await until(lambda: len(rig.listeners.taken("a")) == 80, what="all is delivered")
    replay = await start(rig, queue, listener, rate_per_s=40)
    await until(lambda: len(replayed(rig)) >= 20, what="some of it is delivered")
    await rig.end(first)
    before = len(replayed(rig))
    assert before < 80
    await rig.work()
    await ended(rig, replay)
    assert Counter(got.message_id for got in replayed(rig)) == Counter(ids)  # a worker that ends in order repeats none


async def test_paused_it_stands_still_and_cancelled_it_delivers_no_more(rig: Rig):
    queue = await rig.queue()
    listener = await rig.listen(queue, "a")
    await rig.work()
    await rig.put(queue, *(f"m{number}" for number in range(50)))
    await until(lambda: len(rig.listeners.taken("a")) == 50, what="all is delivered")
    replay = await start(rig, queue, listener, rate_per_s=5)
    await until(lambda: replayed(rig), what="it has begun")
    paused = await commands(rig).pause(rig.context, replay)
    (worker,) = rig.workers
    dispatcher = worker.dispatchers[replay.id]

    async def replaying() -> int:
        return (await worker.condition()).health[Health.REPLAYING]

    await until(lambda: dispatcher.listener.paused and not dispatcher.busy, what="it stands still")
    stood = len(replayed(rig))
    await asyncio.sleep(0.3)
    assert len(replayed(rig)) == stood
    assert await replaying() == 0
    resumed = await commands(rig).resume(rig.context, paused)
    await until(lambda: len(replayed(rig)) > stood, what="it goes on")
    assert await replaying() == 1
    await commands(rig).cancel(rig.context, resumed)
    await until(lambda: replay.id not in worker.dispatchers, what="it has ended")
    assert len(replayed(rig)) < 50


@pytest.mark.parametrize("send_headers", [False, True])
async def test_a_replay_to_another_origin_has_the_listeners_headers_only_if_asked(rig: Rig, send_headers: bool):
    queue = await rig.queue()
    listener = await rig.listen(queue, "a", headers={"authorization": "Bearer mine"})
    await rig.work()
    (message_id,) = await rig.put(queue, "m")
    await until(lambda: rig.listeners.taken("a"), what="it is delivered")
    assert rig.listeners.taken("a")[0].headers["authorization"] == "Bearer mine"
    same = await start(rig, queue, listener, notify_url=rig.listeners.url("b"))
    await until(lambda: rig.listeners.taken("b"), what="it is delivered to the same origin again")
    assert rig.listeners.taken("b")[0].headers["authorization"] == "Bearer mine"
    async with Listeners() as theirs:
        other = await start(rig, queue, listener, notify_url=theirs.url("c"), send_headers=send_headers)
        await until(lambda: theirs.taken("c"), what="it is delivered to another origin")
        (got,) = theirs.taken("c")
        await ended(rig, other)
    assert (got.message_id, got.headers[REPLAY_HEADER]) == (message_id, other.id)
    assert got.headers.get("authorization") == ("Bearer mine" if send_headers else None)
    await ended(rig, same)


async def test_only_what_was_put_before_the_listener_was_made_goes_to_a_url_of_its_own(rig: Rig):
    queue = await rig.queue()
    before = await rig.put(queue, "old1", "old2", "old3")
    listener = await rig.listen(queue, "a")
    worker = await rig.work()
    await rig.put(queue, "new1", "new2")
    await until(lambda: len(rig.listeners.taken("a")) == 2, what="what is new is delivered")
    await rig.noted(worker)
    replay = await start(rig, queue, listener, only="undelivered", notify_url=rig.listeners.url("elsewhere"))
    assert replay.count == 3
    await ended(rig, replay)
    assert rig.listeners.ids("elsewhere") == Counter(before)
    assert len(rig.listeners.taken("a")) == 2


async def test_what_fails_in_it_is_tried_again_and_it_ends_only_then(rig: Rig):
    queue = await rig.queue()
    listener = await rig.listen(queue, "a")
    await rig.work()
    ids = await rig.put(queue, *(f"m{number}" for number in range(10)))
    await until(lambda: len(rig.listeners.taken("a")) == 10, what="all is delivered")
    failed: Counter[str] = Counter()

    def decide(got: Got) -> int:
        failed[got.message_id] += 1
        return 422 if got.data == "m3" and failed[got.message_id] == 1 else 200

    rig.listeners.decide = decide
    replay = await start(rig, queue, listener)
    await ended(rig, replay)
    assert Counter(got.message_id for got in replayed(rig)) == Counter(ids)
    assert failed[ids[3]] == 2


async def test_it_delivers_what_was_updated_as_it_is_now_and_what_was_deleted_not_at_all(rig: Rig):
    queue = await rig.queue()
    listener = await rig.listen(queue, "a")
    worker = await rig.work()
    ids = await rig.put(queue, "old", "deleted", "kept")
    await until(lambda: len(rig.listeners.taken("a")) == 3, what="all is delivered")
    await rig.update(queue, ids[0], "new")
    await rig.delete(queue, ids[1])
    await rig.forgotten(worker)
    replay = await start(rig, queue, listener)
    assert (replay.count, replay.counted_all) == (2, True)
    await ended(rig, replay)
    assert sorted(got.data for got in replayed(rig)) == ["kept", "new"]


@pytest.mark.parametrize("what", ["listener", "queue"])
async def test_it_ends_with_its_listener_and_leaves_nothing_behind(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, what: str
):
    rig.tune(set_aside_after_ms=0)
    queue = await rig.queue()
    listener = await rig.listen(queue, "a", max_attempts=2, retry_first_ms=3_600_000)
    worker = await rig.work()
    keys = [key for key in map(str, range(1000)) if rig.log.messages.partition_of(key) == 0]
    for number in range(51):  # on one partition: they come in their order
        await rig.put(queue, "stuck" if number == 0 else f"m{number}", key=keys[number])
    await until(lambda: len(rig.listeners.taken("a")) == 51, what="all is delivered")
    rig.listeners.decide = lambda got: 500 if got.data == "stuck" else 200
    replay = await start(rig, queue, listener, rate_per_s=5)
    await until(lambda: kept(rig), what="some of it is to be tried again")
    await until(lambda: replayed(rig), what="some of it is delivered")
    if what == "listener":
        await rig.commands.delete_listener(rig.context, queue.id, listener.id)
    else:
        await rig.queue_commands.delete_queue(rig.context, queue.id)
    cursors = KafkaCursors(rig.settings.kafka, rig.log.requests)

    async def gone() -> bool:
        worker.assignment.ended_listeners.look()
        await worker.assignment.checkpoints.checkpoint()
        return not {replay.id, listener.id} & await cursors.listeners() and not await kept(rig)

    await until(gone, what="nothing is left of it")
    assert replay.id not in worker.dispatchers
    assert len(replayed(rig)) < 50
    with pytest.raises(NotFound):
        await commands(rig).find(rig.organization_id, queue.id, listener.id, replay.id)


async def test_cancelled_while_it_is_paused_it_has_ended(rig: Rig):
    queue = await rig.queue()
    listener = await rig.listen(queue, "a")
    worker = await rig.work()
    await rig.put(queue, *(f"m{number}" for number in range(50)))
    await until(lambda: len(rig.listeners.taken("a")) == 50, what="all is delivered")
    replay = await start(rig, queue, listener, rate_per_s=5)
    await until(lambda: replayed(rig), what="it has begun")
    paused = await commands(rig).pause(rig.context, replay)
    assert (await commands(rig).cancel(rig.context, paused)).state == "cancelled"
    await until(lambda: replay.id not in worker.dispatchers, what="it has ended")
    assert len(replayed(rig)) < 50


async def test_one_whose_receiver_hangs_holds_nothing_else_up(rig: Rig):
    queue = await rig.queue()
    listener = await rig.listen(queue, "a")
    worker = await rig.work()
    await rig.put(queue, *["old"] * 200)
    await until(lambda: len(rig.listeners.taken("a")) == 200, what="all is delivered")
    rig.listeners.delay_s["hangs"] = 3600.0

    def busy(replay: Replay) -> int:
        dispatcher = worker.dispatchers.get(replay.id)
        return 0 if dispatcher is None else dispatcher.busy

    replays = [await start(rig, queue, listener, notify_url=rig.listeners.url("hangs")) for _ in range(3)]
    await until(lambda: all(busy(one) for one in replays), what="all of them hang")
    new = await rig.put(queue, *["new"] * 50)
    await until(lambda: rig.listeners.ids("a").keys() >= set(new), what="what is new is delivered")
    for one in replays:
        assert (await commands(rig).cancel(rig.context, one)).state == "cancelled"


async def test_what_is_for_later_is_not_delivered_before_its_time(rig: Rig):
    queue = await rig.queue()
    listener = await rig.listen(queue, "a")
    await rig.work()
    soon, later = (datetime.now(UTC) + timedelta(seconds=seconds) for seconds in (2, 3600))
    await rig.put(queue, "soon", deliver_at=soon)
    await rig.put(queue, "later", deliver_at=later)
    await rig.put(queue, "now")
    replay = await start(rig, queue, listener)
    await until(lambda: len(replayed(rig)) == 2, what="what may be delivered is")
    assert time.time() >= soon.timestamp()
    assert sorted(got.data for got in replayed(rig)) == ["now", "soon"]
    await commands(rig).cancel(rig.context, replay)


async def test_failed_is_what_is_owed_when_it_begins_and_not_what_was_redriven_and_taken(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
):
    rig.tune(set_aside_after_ms=0)
    queue = await rig.queue()
    listener = await rig.listen(queue, "a", max_attempts=1)
    worker = await rig.work()
    rig.listeners.decide = lambda got: 500 if got.data.startswith("bad") else 200
    ids = await rig.put(queue, "m1", "bad1", "bad2", "m2")

    async def parked(count: int) -> bool:
        await worker.assignment.checkpoints.checkpoint()
        return len(await kept(rig)) == count

    await until(lambda: parked(2), what="two are parked")
    rig.listeners.decide = None
    await rig.commands.redrive_listener(rig.context, queue.id, listener.id, ids[1:2])
    await until(lambda: parked(1), what="one of them was redriven and taken")
    replay = await start(rig, queue, listener, only="failed")
    assert replay.count == 1
    await ended(rig, replay)
    assert [got.data for got in replayed(rig)] == ["bad2"]


async def test_undelivered_is_what_waits_for_a_listener_that_is_down_too(rig: Rig):
    """It goes elsewhere, by a worker that was not there when it began."""
    queue, other = await rig.queue(), await rig.queue("other")
    (before,) = await rig.put(queue, "before it was made")
    listener = await rig.listen(queue, "a", max_in_flight=2)
    first = await rig.work()
    delivered = await rig.put(queue, *(f"m{number}" for number in range(20)))
    await until(lambda: len(rig.listeners.taken("a")) == 20, what="what comes first is delivered")
    rig.listeners.down.add("a")
    waiting = await rig.put(queue, *(f"w{number}" for number in range(40)))
    await rig.put(other, *["not of this queue"] * 5)
    await rig.known_down(listener)
    await rig.end(first)
    begun = await start(rig, queue, listener, only="undelivered", notify_url=rig.listeners.url("elsewhere"))
    assert (begun.count, begun.counted_all) == (41, True)
    late = await rig.put(queue, "put after it began")
    await rig.work()
    await ended(rig, begun)
    assert rig.listeners.ids("elsewhere") == Counter([before, *waiting])
    rig.listeners.down.clear()
    owed = {*delivered, *waiting, *late}
    await until(lambda: rig.listeners.ids("a").keys() == owed, what="the listener gets it as well")


async def test_one_that_goes_elsewhere_goes_on_when_that_is_back_though_its_listener_is_not(rig: Rig):
    queue = await rig.queue()
    listener = await rig.listen(queue, "a")
    await rig.work()
    ids = await rig.put(queue, *(f"m{number}" for number in range(10)))
    await until(lambda: len(rig.listeners.taken("a")) == 10, what="all is delivered")
    rig.listeners.down |= {"a", "elsewhere"}
    replay = await start(rig, queue, listener, notify_url=rig.listeners.url("elsewhere"))
    await until(lambda: rig.listeners.probes["elsewhere"], what="it is asked")
    rig.listeners.down.remove("elsewhere")
    await ended(rig, replay)
    assert rig.listeners.ids("elsewhere") == Counter(ids)
    assert rig.listeners.probes.keys() == {"elsewhere"}
