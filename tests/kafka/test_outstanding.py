"""Deliveries that leave their window: kept in `outstanding`, tried from there, parked there, found after a crash."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from broker.commands.puts import DATA_BYTES_MAX
from broker.core.codec import decode
from broker.core.events import DeliveryParked, DeliverySetAside
from broker.core.ids import parse_message_id
from broker.delivery.worker import Worker
from broker.kafka.outstanding import KafkaOutstanding
from broker.kafka.topics import Topics
from broker.ports import DeliveryState
from broker.settings import KafkaSettings
from tests.kafka.rig import Rig, StandIn, running
from tests.listeners import Got, until


@pytest.fixture
async def rig(kafka_settings: KafkaSettings, ready_topics: Topics):
    async with running(kafka_settings) as made:
        made.tune(set_aside_after_ms=0)  # the first failure is long enough
        yield made


async def written(rig: Rig) -> list[tuple[bytes, DeliverySetAside | DeliveryParked | None]]:
    """All that `outstanding` has, in order by key; None: a tombstone."""
    topic = f"{rig.settings.kafka.topic_prefix}outstanding"
    found: list[tuple[bytes, DeliverySetAside | DeliveryParked | None]] = []
    for partition in range(rig.settings.kafka.partitions):
        for record in (await rig.log.requests.read(topic, partition, 0)).records:
            assert record.key is not None
            event = None if record.value is None else decode(record.value)
            assert isinstance(event, DeliverySetAside | DeliveryParked | None)
            found.append((record.key, event))
    return found


async def kept(rig: Rig) -> dict[bytes, DeliverySetAside | DeliveryParked]:
    """What `outstanding` holds, by key, tombstones taken off."""
    return {key: event for key, event in dict(await written(rig)).items() if event is not None}


def refusing(rig: Rig, *stuck: str) -> None:
    rig.listeners.decide = lambda got: 422 if got.data in stuck else 200


async def gone_on(rig: Rig, worker: Worker) -> bool:
    await worker.assignment.checkpoints.checkpoint()
    (dispatcher,) = worker.dispatchers.values()
    return not any(stream.window.open for stream in dispatcher.streams.values())


async def test_what_fails_for_long_lets_the_cursor_pass_and_arrives_in_the_end(rig: Rig):
    queue = await rig.queue()
    await rig.listen(queue, "a")
    worker = await rig.work()
    refusing(rig, "stuck")
    ids = await rig.put(queue, "m1", "stuck", "m2")
    await until(lambda: kept(rig), what="it is kept in outstanding")
    await until(lambda: gone_on(rig, worker), what="the cursor has passed it")
    _, event = (await written(rig))[0]
    assert isinstance(event, DeliverySetAside)
    assert (event.data, event.status, event.number) == ("stuck", 422, 1)
    rig.listeners.decide = None
    await until(lambda: len(rig.listeners.taken("a")) == 3, what="it arrives")
    assert rig.listeners.ids("a") == Counter(ids)
    assert [got.headers["everput-attempt"] for got in rig.listeners.taken("a") if got.data == "stuck"] != ["1"]

    async def cleared() -> bool:
        await worker.assignment.checkpoints.checkpoint()
        return not await kept(rig)

    await until(cleared, what="nothing is kept any more")


async def test_a_worker_that_takes_over_goes_on_with_what_is_kept(rig: Rig):
    queue = await rig.queue()
    await rig.listen(queue, "a")
    first = await rig.work()
    refusing(rig, "stuck")
    ids = await rig.put(queue, "m1", "stuck", "m2")
    await until(lambda: kept(rig), what="it is kept in outstanding")
    await until(lambda: gone_on(rig, first), what="the cursor has passed it")
    await rig.end(first)
    rig.listeners.decide = None
    await rig.work()
    await until(lambda: len(rig.listeners.taken("a")) == 3, what="it arrives")
    assert rig.listeners.ids("a") == Counter(ids)


async def test_while_a_message_fails_only_those_of_its_key_wait_and_they_come_in_order(rig: Rig):
    queue = await rig.queue()
    await rig.listen(queue, "a")
    first = await rig.work()
    refusing(rig, "k2")
    await rig.put(queue, *(f"k{number}" for number in range(6)), key="customer-7")
    await rig.put(queue, *(f"free{number}" for number in range(6)))
    await until(lambda: len(rig.listeners.taken("a")) == 8, what="what does not wait")

    async def passed() -> bool:
        return await gone_on(rig, first) and len(await kept(rig)) >= 4

    await until(passed, what="the cursor has passed those that wait")
    assert sorted(event.data for event in (await kept(rig)).values()) == ["k2", "k3", "k4", "k5"]
    await rig.put(queue, "k6", key="customer-7")
    await rig.end(first)
    second = await rig.work()
    await rig.put(queue, "k7", key="customer-7")
    await until(lambda: gone_on(rig, second), what="the cursor of its next owner has, too")
    rig.listeners.decide = None
    await until(lambda: len(rig.listeners.taken("a")) >= 14, what="they arrive")
    keyed = [got.data for got in rig.listeners.taken("a") if got.data.startswith("k")]
    assert keyed == [f"k{number}" for number in range(8)]
    assert [got.headers["everput-attempt"] for got in rig.listeners.taken("a") if got.data == "k5"] == ["1"]


async def test_a_crash_between_the_record_and_the_cursor_delivers_once(rig: Rig):
    queue = await rig.queue()
    await rig.listen(queue, "a")
    cursors = rig.with_cursors()
    first = await rig.work()
    refusing(rig, "stuck")
    await rig.put(queue, "stuck")

    async def never(*_: object) -> None:
        """The worker dies before it has committed anything."""

    cursors.store = never
    await until(lambda: kept(rig), what="it is kept in outstanding")
    await rig.end(first)
    cursors.store = cursors.real.store
    attempts: Counter[str] = Counter()

    def count(got: Got) -> int:
        attempts[got.headers["everput-attempt"]] += 1
        return 200

    rig.listeners.decide = count
    await rig.work()
    await until(lambda: rig.listeners.taken("a"), what="it arrives")
    await rig.put(queue, "after")
    await until(lambda: len(rig.listeners.taken("a")) == 2, what="what comes after it, too")
    assert sum(attempts.values()) == 2


async def test_a_hand_over_waits_for_what_is_being_written(rig: Rig):
    queue = await rig.queue()
    listener = await rig.listen(queue, "a")
    refusing(rig, "stuck")
    begun, free = asyncio.Event(), asyncio.Event()

    async def slow(partition: int, key: bytes, value: bytes) -> int:
        begun.set()
        await free.wait()
        return await rig.log.outstanding.append_one(partition, key, value)

    outstanding = StandIn(rig.log.outstanding, append_one=slow)
    rig.ports = lambda ports: replace(ports, log=StandIn(ports.log, outstanding=outstanding))
    first = await rig.work()
    await rig.put(queue, "stuck")
    await begun.wait()
    (dispatcher,) = first.dispatchers.values()
    ending = asyncio.create_task(rig.end(first))
    await until(lambda: not dispatcher.sending, what="the hand-over has begun")
    free.set()
    await ending
    cursors = (await rig.where.cursors.load([listener.id], range(rig.settings.kafka.partitions)))[listener.id]
    assert len(await kept(rig)) == 1
    assert [cursor.open for cursor in cursors.values() if cursor.open] == []


async def test_after_the_last_attempt_it_is_parked_with_its_message_and_its_error(rig: Rig, caplog):
    caplog.set_level("INFO")
    queue = await rig.queue()
    await rig.listen(queue, "a", max_attempts=2)
    worker = await rig.work()
    refusing(rig, "stuck")
    await rig.put(queue, "m1", "stuck", "m2")

    async def parked() -> list[DeliveryParked]:
        return [event for event in (await kept(rig)).values() if isinstance(event, DeliveryParked)]

    (event,) = await until(parked, what="it is parked")
    await until(lambda: "delivery.parked" in caplog.text, what="and this is said")
    assert (event.data, event.number, event.status) == ("stuck", 2, 422)
    about = [text for text in caplog.messages if f"message={event.message_id} listener={event.listener_id}" in text]
    said = [text.partition(" ")[0] for text in about]
    assert said == ["attempt.failed", "attempt.failed", "delivery.parked"], "one line for each, and one for all of it"
    assert "attempts=2 status=422" in about[-1]
    await until(lambda: gone_on(rig, worker), what="the cursor has passed it")
    await until(lambda: len(rig.listeners.taken("a")) == 2, what="the others arrive")
    assert {got.data for got in rig.listeners.taken("a")} == {"m1", "m2"}


async def test_a_listener_that_is_down_spends_no_attempt_on_what_is_kept(rig: Rig):
    queue = await rig.queue()
    listener = await rig.listen(queue, "a")
    worker = await rig.work()
    refusing(rig, "stuck")
    ids = await rig.put(queue, "stuck")
    await until(lambda: kept(rig), what="it is kept in outstanding")
    rig.listeners.decide = None
    rig.listeners.down.add("a")
    ids += await rig.put(queue, *(f"m{number}" for number in range(20)))
    await until(lambda: rig.listeners.probes["a"], what="the listener is down")
    rig.listeners.down.clear()
    await until(lambda: len(rig.listeners.taken("a")) >= 21, what="all of it")
    assert rig.listeners.ids("a") == Counter(ids)
    await until(lambda: not worker.dispatchers[listener.id].held, what="nothing is held any more")


async def test_what_is_redriven_while_no_worker_runs_is_tried_when_one_does_and_only_once(rig: Rig):
    queue = await rig.queue()
    listener = await rig.listen(queue, "a", max_attempts=1)
    first = await rig.work()
    refusing(rig, "one", "two")
    one, two = await rig.put(queue, "one", "two")

    async def both() -> bool:
        return len(await kept(rig)) == 2

    await until(both, what="both are parked")
    await until(lambda: gone_on(rig, first), what="the cursor has passed them")
    await rig.end(first)

    outstanding = KafkaOutstanding(rig.settings.kafka, rig.log.requests, rig.log.read_slots)
    rows, _ = await outstanding.page(listener, state="parked", after=(0, 0), limit=10)
    assert {row.message_id: (row.attempts, row.status) for row in rows} == {one: (1, 422), two: (1, 422)}
    assert await outstanding.those(listener, [one, one]) == [one]
    await rig.commands.redrive_listener(rig.context, queue.id, listener.id, [one])
    await rig.commands.redrive_listener(rig.context, queue.id, listener.id, [two])
    refusing(rig, "two")
    second = await rig.work()
    await until(lambda: rig.listeners.taken("a"), what="the one arrives")
    assert rig.listeners.taken("a")[0].headers["everput-attempt"] == "2"

    async def parked_again() -> bool:
        return [event.number for event in (await kept(rig)).values()] == [2]

    async def cleared() -> bool:
        await second.assignment.checkpoints.checkpoint()
        return await parked_again()

    await until(cleared, what="the other is parked again")
    await second.assignment.checkpoints.checkpoint()  # with its outcome, should it have come after the last one
    listener = rig.projections.directory.state.listeners[listener.id]
    state = await rig.state(two, listener)
    assert (state.state, [attempt.number for attempt in state.attempts]) == ("parked", [1, 2])
    await rig.end(second)
    third = await rig.work()
    states = [
        third.assignment.outstanding.state(number, listener.id, two) for number in range(rig.settings.kafka.partitions)
    ]
    assert [one for one in states if one is not None] == ["parked"]


async def test_a_message_with_a_time_comes_then_whoever_owns_it_and_is_pending_until(
    rig: Rig,
):
    rig.tune(near_ms=0)
    queue = await rig.queue()
    listener = await rig.listen(queue, "a")
    first = await rig.work()
    deliver_at = datetime.now(UTC) + timedelta(seconds=10)
    (later,) = await rig.put(queue, "later", deliver_at=deliver_at)
    (now,) = await rig.put(queue, "now")
    await until(lambda: kept(rig), what="it is kept in outstanding")
    await until(lambda: gone_on(rig, first), what="the cursor has passed it")

    async def state(message_id: str) -> DeliveryState:
        due_ms = int(deliver_at.timestamp() * 1000) if message_id == later else 0
        return await rig.state(message_id, listener, deliver_at_ms=due_ms)

    pending = await state(later)
    assert (pending.state, pending.next_attempt_at_ms) == ("pending", int(deliver_at.timestamp() * 1000))
    await until(lambda: rig.listeners.taken("a"), what="the other comes at once")
    await rig.noted(first)
    assert (await rig.where.condition(listener)).lag == 0, "it waits for its time, not for its listener"
    await rig.end(first)
    second = await rig.work()
    await until(lambda: len(rig.listeners.taken("a")) == 2, what="it comes")
    assert datetime.now(UTC) >= deliver_at
    assert rig.listeners.ids("a") == Counter([later, now])
    await rig.noted(second)
    delivered = await state(later)
    assert (delivered.state, [attempt.number for attempt in delivered.attempts]) == ("delivered", [1])


async def test_what_is_set_aside_is_shown_as_retrying_though_the_cursor_has_passed_it(rig: Rig):
    queue = await rig.queue()
    listener = await rig.listen(queue, "a", retry_first_ms=3_600_000)
    worker = await rig.work()
    refusing(rig, "stuck")
    (stuck,) = await rig.put(queue, "stuck")
    await until(lambda: kept(rig), what="it is kept in outstanding")
    await until(lambda: gone_on(rig, worker), what="the cursor has passed it")
    state = await rig.state(stuck, listener)
    assert state.state == "retrying"
    assert state.next_attempt_at_ms is not None
    await rig.noted(worker)
    condition, (lag,) = await rig.where.condition(listener), (await worker.condition()).lags
    assert (condition.lag, lag.messages) == (1, 1)
    assert condition.oldest_pending_at_ms == lag.oldest_at_ms == parse_message_id(stuck)[0]


async def test_what_became_of_a_delivery_is_known_from_outstanding_where_too_many_outcomes_came_since(rig: Rig):
    queue = await rig.queue()
    listener = await rig.listen(queue, "a", max_attempts=1)
    again = await rig.listen(queue, "b", retry_first_ms=3_600_000)
    worker = await rig.work()
    refusing(rig, "stuck")
    stuck, good = await rig.put(queue, "stuck", "good")

    async def both() -> bool:
        return len(await kept(rig)) == 2

    await until(both, what="one is parked, one set aside")
    await until(lambda: len(rig.listeners.taken("b")) == 1, what="the other message arrives")

    async def settled() -> bool:
        await worker.assignment.checkpoints.checkpoint()
        states = [await rig.state(good, one) for one in (listener, again)]
        return [one.state for one in states] == ["delivered", "delivered"]

    await until(settled, what="the other message is delivered")
    rig.reads_max["outcome_reads_max"] = 0
    assert (await rig.state(stuck, listener)).state == "parked"
    retrying = await rig.state(stuck, again)
    assert (retrying.state, retrying.next_attempt_at_ms is not None) == ("retrying", True)
    assert (await rig.state(good, listener)).state == "delivered"
    rig.reads_max["outstanding_reads_max"] = 0
    for message_id in (stuck, good):
        assert (await rig.state(message_id, listener)).state == "unknown"


async def test_the_largest_message_is_kept_whole(rig: Rig):
    queue = await rig.queue()
    await rig.listen(queue, "a")
    await rig.work()
    largest = "\0" * DATA_BYTES_MAX  # six bytes each as JSON
    refusing(rig, largest)
    (message_id,) = await rig.put(queue, largest)
    await until(lambda: kept(rig), what="it is kept in outstanding")
    rig.listeners.decide = None
    (got,) = await until(lambda: rig.listeners.taken("a"), what="it arrives")
    assert (got.message_id, got.data == largest) == (message_id, True)
