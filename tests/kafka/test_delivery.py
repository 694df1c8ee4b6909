"""Delivery on a real Kafka to real HTTP listeners, in one process. Not here: processes that die (tests/scenarios)."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
from confluent_kafka import ConsumerGroupTopicPartitions, TopicPartition
from confluent_kafka.admin import AdminClient

from broker.core.cursor import Cursor
from broker.core.events import ControlEvent, ListenerPaused
from broker.errors import LogUnavailable, Suspended
from broker.kafka.topics import Topics
from broker.settings import KafkaSettings
from tests.kafka.rig import Rig, running
from tests.kafka_clients import librdkafka
from tests.listeners import Got, until


@pytest.fixture
async def rig(kafka_settings: KafkaSettings, ready_topics: Topics):
    async with running(kafka_settings) as made:
        yield made


async def cursors(rig: Rig, listener_id: str) -> dict[int, Cursor]:
    return (await rig.where.cursors.load([listener_id], range(rig.settings.kafka.partitions)))[listener_id]


async def test_every_listener_of_a_queue_gets_every_message_once_and_no_other_queue_s(rig: Rig):
    orders, others = await rig.queue("orders"), await rig.queue("others")
    for path in ("a", "b"):
        await rig.listen(orders, path)
    await rig.listen(others, "c")
    await rig.work()
    ids = await rig.put(orders, *(f"m{number}" for number in range(200)))
    await until(lambda: len(rig.listeners.got) >= 400, what="all 400 deliveries")
    assert rig.listeners.ids("a") == rig.listeners.ids("b") == Counter(ids)
    assert not rig.listeners.taken("c")


async def test_what_a_listener_receives_is_signed_and_complete(rig: Rig):
    queue = await rig.queue()
    await rig.listen(queue, "a")
    await rig.work()
    data = 'any "Unicode" \u0000 \U0001f600 \u2028 text'
    (message_id,) = await rig.put(queue, data)
    (got,) = await until(lambda: rig.listeners.taken("a"), what="the delivery")
    assert got.data == data
    assert got.message_id == message_id
    assert got.headers["content-type"] == "application/json"
    assert got.headers["everput-attempt"] == "1"
    assert got.headers["webhook-signature"].startswith("v1,")
    assert abs(int(got.headers["webhook-timestamp"]) - rig.context.at_ms / 1000) < 60


async def test_a_message_refused_at_first_is_delivered_by_a_later_attempt(rig: Rig):
    queue = await rig.queue()
    listener = await rig.listen(queue, "a")
    attempts: list[str] = []

    def refuse_twice(got: Got) -> int:
        attempts.append(got.headers["everput-attempt"])
        return 500 if len(attempts) <= 2 else 200

    rig.listeners.decide = refuse_twice
    worker = await rig.work()
    (message_id,) = await rig.put(queue, "m")
    await until(lambda: rig.listeners.taken("a"), what="the delivery")
    assert attempts == ["1", "2", "3"]
    await rig.noted(worker)
    state = await rig.state(message_id, listener)
    assert state.state == "delivered"
    assert [(one.number, one.status) for one in state.attempts] == [(1, 500), (2, 500), (3, 200)]


async def test_a_listener_that_was_down_gets_everything_when_it_is_back(rig: Rig):
    queue = await rig.queue()
    listener = await rig.listen(queue, "a")
    await rig.listen(queue, "b")
    worker = await rig.work()
    rig.listeners.down.add("a")
    ids = await rig.put(queue, *(f"m{number}" for number in range(300)))
    await until(lambda: len(rig.listeners.taken("b")) == 300, what="the healthy listener has all")
    await until(lambda: rig.listeners.probes["a"] >= 2, what="the dead one is probed")
    await rig.noted(worker)
    condition = await rig.where.condition(listener)
    assert (condition.state, condition.lag) == ("down", 300)
    attempts_while_down = sum(worker.dispatchers[listener.id].circuit.faults for _ in "1")
    assert attempts_while_down < 100
    assert not rig.listeners.taken("a")
    rig.listeners.down.clear()
    await until(lambda: len(rig.listeners.taken("a")) >= 300, what="all 300 after the return")
    assert rig.listeners.ids("a") == Counter(ids)


async def test_a_worker_that_restarts_repeats_only_what_was_open(rig: Rig):
    queue = await rig.queue()
    listener = await rig.listen(queue, "a")
    refused: set[str] = set()
    rig.listeners.decide = lambda got: 400 if got.message_id in refused or got.data == "stuck" else 200
    first = await rig.work()
    ids = await rig.put(queue, "m1", "m2", "stuck", "m3", *(f"n{number}" for number in range(50)))
    await until(lambda: len(rig.listeners.taken("a")) == 53, what="all but the stuck one")
    await rig.end(first)
    stands = await cursors(rig, listener.id)
    assert sum(len(cursor.open) for cursor in stands.values()) == 1
    rig.listeners.decide = None
    await rig.work()
    await until(lambda: len(rig.listeners.taken("a")) == 54, what="the stuck one")
    assert rig.listeners.ids("a") == Counter(ids)


async def test_the_cursor_is_the_group_s_offset_for_any_kafka_client(rig: Rig):
    queue = await rig.queue()
    listener = await rig.listen(queue, "a")
    worker = await rig.work()
    await rig.put(queue, *(f"m{number}" for number in range(100)))
    await until(lambda: len(rig.listeners.taken("a")) == 100, what="all delivered")
    await rig.noted(worker)
    topic = f"{rig.settings.kafka.topic_prefix}messages"
    group = f"{rig.settings.kafka.topic_prefix}listener.{listener.id}"
    ends = await rig.log.messages.end_offsets()
    admin = AdminClient(librdkafka(rig.settings.kafka))
    wanted = [TopicPartition(topic, number) for number in range(len(ends))]
    (answer,) = admin.list_consumer_group_offsets([ConsumerGroupTopicPartitions(group, wanted)]).values()
    offsets = {one.partition: one.offset for one in answer.result(60).topic_partitions}
    assert {number: end for number, end in enumerate(ends) if end} == {
        number: offset for number, offset in offsets.items() if offset > 0
    }


async def test_a_new_listener_gets_what_comes_after_it_and_one_from_the_beginning_gets_all(rig: Rig):
    queue = await rig.queue()
    await rig.work()
    before = await rig.put(queue, *(f"m{number}" for number in range(60)))
    await rig.listen(queue, "now")
    await rig.listen(queue, "all", begin_at_ms=0)
    after = await rig.put(queue, *(f"n{number}" for number in range(60)))
    await until(lambda: len(rig.listeners.taken("all")) >= 120, what="the whole log")
    await until(lambda: len(rig.listeners.taken("now")) >= 60, what="the later half")
    assert rig.listeners.ids("all") == Counter(before + after)
    assert rig.listeners.ids("now") == Counter(after)


async def test_the_backlog_of_a_listener_is_counted_although_another_one_is_far_behind(rig: Rig):
    far, near = await rig.queue("far"), await rig.queue("near")
    behind = await rig.listen(far, "behind")
    await rig.put(far, *("x" * 900_000 for _ in range(9)), key="k")  # more than the reads of one listener reach
    current = await rig.listen(near, "current")
    await rig.put(near, "a", "b", key="k")
    await rig.put(far, "c", key="k")
    newest = await rig.listen(near, "newest")
    backlogs = await rig.where.backlogs([behind, current, newest])
    assert 3 <= backlogs[behind.id].messages < 10, "at least these"
    conditions = {one.id: await rig.where.condition(one) for one in (behind, current, newest)}
    assert backlogs == {one: (known.lag, known.oldest_pending_at_ms) for one, known in conditions.items()}
    assert (conditions[current.id].lag, conditions[newest.id].lag) == (2, 0)


async def test_a_paused_listener_gets_nothing_and_after_its_resume_everything(rig: Rig):
    queue = await rig.queue()
    listener = await rig.listen(queue, "a")
    other = await rig.listen(queue, "b")
    worker = await rig.work()
    await rig.commands.pause_listener(rig.context, queue.id, listener.id, reason="by hand")
    await until(lambda: worker.dispatchers[listener.id].listener.paused, what="the worker knows")
    ids = await rig.put(queue, *(f"m{number}" for number in range(40)))
    await until(lambda: len(rig.listeners.taken("b")) == 40, what="the other one has all")
    assert not rig.listeners.taken("a")
    assert (await rig.where.condition(listener)).lag == 40
    await rig.noted(worker)
    oldest_at_ms = (await rig.where.condition(listener)).oldest_pending_at_ms
    assert oldest_at_ms is not None
    assert await rig.where.backlogs([listener, other]) == {listener.id: (40, oldest_at_ms), other.id: (0, None)}
    await rig.commands.resume_listener(rig.context, queue.id, listener.id)
    await until(lambda: len(rig.listeners.taken("a")) >= 40, what="all after the resume")
    assert rig.listeners.ids("a") == Counter(ids)


async def test_a_listener_that_answers_410_is_paused_and_says_so(rig: Rig):
    queue = await rig.queue()
    listener = await rig.listen(queue, "a")
    rig.listeners.status["a"] = 410
    await rig.work()
    await rig.put(queue, "m")
    directory = rig.projections.directory.state
    await until(lambda: directory.listeners[listener.id].paused, what="the pause")
    assert "410" in (directory.listeners[listener.id].paused or "")
    rig.listeners.status.clear()
    await rig.commands.resume_listener(rig.context, queue.id, listener.id)
    await until(lambda: rig.listeners.taken("a"), what="the message after the resume")


async def test_a_pause_after_a_410_that_kafka_did_not_take_is_tried_again_at_the_next(rig: Rig, monkeypatch):
    queue = await rig.queue()
    listener = await rig.listen(queue, "a", retry_first_ms=100)
    rig.listeners.status["a"] = 410
    append, refused = rig.log.control.append, 0

    async def at_first_unavailable(event: ControlEvent) -> None:
        nonlocal refused
        if isinstance(event, ListenerPaused) and not refused:
            refused += 1
            raise LogUnavailable
        await append(event)

    monkeypatch.setattr(rig.log.control, "append", at_first_unavailable)
    await rig.work()
    await rig.put(queue, "m")
    directory = rig.projections.directory.state
    await until(lambda: directory.listeners[listener.id].paused, what="the pause")
    assert refused == 1


async def test_a_deleted_listener_gets_nothing_more_and_its_siblings_do(rig: Rig):
    queue = await rig.queue()
    listener = await rig.listen(queue, "a")
    await rig.listen(queue, "b")
    worker = await rig.work()
    await rig.put(queue, "m1")
    await until(lambda: len(rig.listeners.got) == 2, what="both got the first")
    await rig.commands.delete_listener(rig.context, queue.id, listener.id)
    await until(lambda: listener.id not in worker.dispatchers, what="the worker knows")
    await rig.put(queue, "m2")
    await until(lambda: len(rig.listeners.taken("b")) == 2, what="the other one goes on")
    assert len(rig.listeners.taken("a")) == 1


async def test_pending_deliveries_go_to_the_new_url(rig: Rig):
    from broker.commands.listeners import ListenerInput

    queue = await rig.queue()
    listener = await rig.listen(queue, "old")
    rig.listeners.down.add("old")
    await rig.work()
    ids = await rig.put(queue, *(f"m{number}" for number in range(20)))
    await until(lambda: rig.listeners.probes["old"], what="the old one is down")
    listener_input = ListenerInput(notify_url=rig.listeners.url("new"), liveness_url=rig.listeners.url("new"))
    await rig.commands.update_listener(rig.context, queue.id, listener.id, listener_input)
    await until(lambda: len(rig.listeners.taken("new")) >= 20, what="all at the new URL")
    assert rig.listeners.ids("new") == Counter(ids)


async def test_messages_of_one_ordering_key_arrive_one_at_a_time_in_order_and_only_they_wait(rig: Rig):
    queue = await rig.queue()
    await rig.listen(queue, "a")
    await rig.work()
    refused: Counter[str] = Counter()

    def refuse_the_second_once(got: Got) -> int:
        if got.data == "k1" and not refused["k1"]:
            refused["k1"] += 1
            return 500
        return 200

    rig.listeners.decide = refuse_the_second_once
    await rig.put(queue, *(f"k{number}" for number in range(20)), key="customer-7")
    await rig.put(queue, *(f"free{number}" for number in range(20)))
    await until(lambda: len(rig.listeners.taken("a")) >= 40, what="all of them")
    keyed = [got.data for got in rig.listeners.taken("a") if got.data.startswith("k")]
    assert keyed == [f"k{number}" for number in range(20)]
    assert refused["k1"] == 1


async def test_two_workers_share_the_partitions_and_one_that_stops_hands_its_share_on(rig: Rig):
    queue = await rig.queue()
    await rig.listen(queue, "a")
    first = await rig.work()
    second = await rig.work()
    await until(
        lambda: (
            first.assignment.partitions
            and second.assignment.partitions
            and len(first.assignment.partitions) + len(second.assignment.partitions) == 4
        ),
        what="each has a share",
    )
    ids = await rig.put(queue, *(f"m{number}" for number in range(100)))
    await until(lambda: len(rig.listeners.taken("a")) >= 100, what="all from both")
    await rig.end(first)
    await until(lambda: len(second.assignment.partitions) == 4, what="the second has them all")
    ids += await rig.put(queue, *(f"n{number}" for number in range(100)))
    await until(lambda: len(rig.listeners.taken("a")) >= 200, what="all from the second")
    assert rig.listeners.ids("a") == Counter(ids)


async def test_a_listener_far_behind_is_caught_up_from_the_log_in_order_of_offsets_without_gaps(rig: Rig):
    queue = await rig.queue()
    await rig.listen(queue, "quick")
    listener = await rig.listen(queue, "behind")
    rig.listeners.down.add("behind")
    worker = await rig.work()
    ids: list[str] = []
    for _ in range(6):
        puts = await asyncio.gather(*(rig.put(queue, "x" * 4000) for _ in range(1000)))
        ids += [one for (one,) in puts]
    await until(lambda: len(rig.listeners.taken("quick")) == 6000, what="the quick one has all")
    held = worker.dispatchers[listener.id].held
    assert held <= 64
    rig.listeners.down.clear()
    await until(lambda: len(rig.listeners.taken("behind")) >= 6000, what="the other one has caught up")
    assert rig.listeners.ids("behind") == Counter(ids)


async def test_who_has_heard_nothing_for_a_session_delivers_nothing_new_before_it_is_known_to_be_a_member(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """What Kafka has for it then, others have delivered: docs/decisions/0160."""
    queue = await rig.queue()
    await rig.listen(queue, "a")
    worker = await rig.work()
    ids = await rig.put(queue, "m")
    await until(lambda: rig.listeners.taken("a"), what="the first")

    async def refuse(*_: object) -> None:
        raise LogUnavailable("no answer")

    with monkeypatch.context() as patch:
        patch.setattr(worker.kafka.membership, "confirm", refuse)
        patch.setattr(worker.assignment.fence, "_asked_at", float("-inf"))  # as after a session
        ids += await rig.put(queue, *(f"n{number}" for number in range(20)))
        await until(lambda: "tail.waits" in caplog.text, what="the tail has brought something")
        with pytest.raises(LogUnavailable):
            await worker.assignment.fetch(0, 0, 1, [])
        assert len(rig.listeners.taken("a")) == 1
    await until(lambda: len(rig.listeners.taken("a")) >= 21, what="all, once it is known to be a member")
    assert rig.listeners.ids("a") == Counter(ids)


async def test_a_worker_that_stood_still_for_a_session_ends_without_moving_a_cursor(rig: Rig):
    rig.tune(suspended_s=-1.0)  # any pause is too long
    queue = await rig.queue()
    listener = await rig.listen(queue, "a")
    worker = await rig.work()
    await rig.put(queue, "m")
    with pytest.raises(Suspended):
        await worker.failed()
    before = await cursors(rig, listener.id)
    await until(lambda: rig.listeners.taken("a"), what="the delivery")
    await rig.end(worker)
    assert await cursors(rig, listener.id) == before


def _place(message_id: str) -> dict[str, int]:
    from broker.core.ids import parse_message_id

    parts = parse_message_id(message_id)
    assert parts is not None
    return {"at_ms": parts[0], "partition": parts[1]}


async def test_attempts_are_numbered_on_after_a_restart(rig: Rig):
    queue = await rig.queue()
    listener = await rig.listen(queue, "a", retry_first_ms=100)
    first = await rig.work()
    attempts: list[str] = []

    def refuse(got: Got) -> int:
        attempts.append(got.headers["everput-attempt"])
        return 422

    rig.listeners.decide = refuse
    await rig.put(queue, "m")
    await until(lambda: len(attempts) >= 3, what="three attempts")
    await rig.end(first)
    before = len(attempts)
    assert [cursor.attempts for cursor in (await cursors(rig, listener.id)).values() if cursor.open] == [(before,)]
    await rig.work()
    await until(lambda: len(attempts) > before, what="one more")
    assert attempts == [str(number + 1) for number in range(len(attempts))]
