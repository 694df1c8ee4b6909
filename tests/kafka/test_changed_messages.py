"""Updated and deleted messages on a real Kafka: honoured wherever they wait, and who had them is told truly."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from broker.clock import now_ms
from broker.commands import changes as commands_module
from broker.commands.changes import delete_message, update_message
from broker.core.events import ListenerTested
from broker.core.ids import parse_message_id
from broker.delivery.worker import Worker
from broker.errors import Changed, NotFound
from broker.kafka.log import KafkaLog
from broker.kafka.topics import Topics
from broker.settings import KafkaSettings
from tests.kafka.rig import Rig, running
from tests.kafka.test_outstanding import kept
from tests.listeners import Got, until


@pytest.fixture
async def rig(kafka_settings: KafkaSettings, ready_topics: Topics):
    async with running(kafka_settings) as made:
        yield made


def data(rig: Rig, path: str) -> list[str]:
    return [got.data for got in rig.listeners.taken(path)]


async def change_two(rig: Rig, queue, updated: str, deleted: str) -> list[dict[str, str]]:
    return [await rig.update(queue, updated, "new"), await rig.delete(queue, deleted)]


async def changes(rig: Rig) -> int:
    """How many the log has."""
    return sum((await rig.log.changes.end_offsets(list(range(rig.settings.kafka.partitions)))).values())


async def test_listener_tests_after_an_owner_has_ended_leave_nothing_in_doubt(rig: Rig):
    queue = await rig.queue()
    listener = await rig.listen(queue, "it")
    rig.listeners.down.add("it")
    worker = await rig.work()
    (message_id,) = await rig.put(queue, "old")
    await rig.known_down(listener)
    await rig.end(worker)
    partition = (parse_message_id(message_id) or (0, 0))[1]
    tested = ListenerTested(
        at_ms=now_ms(),
        organization_id=rig.organization_id,
        actor="key:test",
        listener_id=listener.id,
        queue_id=queue.id,
        message_id="test",
        partition=partition,
        status=200,
        error=None,
        took_ms=1,
        dns_ms=None,
        connect_ms=None,
        tls_ms=None,
        answers=(),
    )
    for _ in range(3):
        await rig.log.tests.append(tested)
    await rig.work()
    assert await rig.update(queue, message_id, "new") == {listener.id: "pending"}, "it was surely not delivered"


async def test_what_waits_for_a_listener_that_is_down_is_sent_with_the_new_data_or_not_at_all(rig: Rig):
    queue = await rig.queue()
    down, up = await rig.listen(queue, "down", retry_first_ms=100), await rig.listen(queue, "up")
    rig.listeners.down.add("down")
    await rig.work()
    first, second, _ = ids = await rig.put(queue, "old", "deleted", "as it was")
    await until(lambda: len(data(rig, "up")) == 3, what="one has all")
    await rig.known_down(down)
    assert await change_two(rig, queue, first, second) == [
        {down.id: "pending", up.id: "delivered"},
        {down.id: "cancelled", up.id: "delivered"},
    ]
    rig.listeners.down.clear()
    (last,) = await rig.put(queue, "last")
    await until(lambda: len(data(rig, "down")) >= 3, what="what is left")
    await until(lambda: last in rig.listeners.ids("up"), what="the last one")
    assert rig.listeners.ids("down") == Counter([first, ids[2], last])
    assert sorted(data(rig, "down")) == ["as it was", "last", "new"]
    assert sorted(data(rig, "up")) == ["as it was", "deleted", "last", "old"]


async def test_a_delivery_whose_update_kafka_has_deleted_is_parked_and_its_old_data_is_not_sent(rig: Rig, caplog):
    queue = await rig.queue()
    down = await rig.listen(queue, "down", retry_first_ms=100)
    rig.listeners.down.add("down")
    worker = await rig.work()
    updated, other = await rig.put(queue, "old", "other")
    await rig.known_down(down)
    await rig.update(queue, updated, "new")
    place = (parse_message_id(updated) or (0, 0))[1]
    (end,) = (await rig.log.changes.end_offsets([place])).values()
    await rig.log.requests.delete_before(rig.log.changes.name, place, end)
    rig.listeners.down.clear()
    await until(lambda: other in rig.listeners.ids("down"), what="the other one is delivered")
    states = worker.assignment.outstanding.state
    await until(lambda: states(place, down.id, updated) == "parked", what="it is parked")
    await rig.noted(worker)
    assert data(rig, "down") == ["other"]
    assert f"change.gone partition={place} offset={end - 1}" in caplog.text


async def test_changes_hold_across_a_restart_of_the_worker_and_of_every_wait(rig: Rig):
    queue = await rig.queue()
    listener = await rig.listen(queue, "a")
    rig.listeners.down.add("a")
    worker = await rig.work()
    ids = await rig.put(queue, *(f"m{number}" for number in range(40)))
    await rig.known_down(listener)
    assert await rig.update(queue, ids[0], "while it ran") == {listener.id: "pending"}
    await rig.end(worker)
    assert await changes(rig) == 1
    commands = asyncio.gather(rig.update(queue, ids[1], "while none ran"), rig.delete(queue, ids[2]))

    async def written() -> bool:
        return await changes(rig) == 3

    await until(written, what="both are in the log")
    worker = await rig.work()
    assert await commands == [{listener.id: "pending"}, {listener.id: "cancelled"}]
    await rig.end(worker)
    await rig.work()
    rig.listeners.down.clear()
    await until(lambda: len(data(rig, "a")) >= 39, what="all but the deleted one")
    assert rig.listeners.ids("a") == Counter(ids[:2] + ids[3:])
    by_id = {got.message_id: got.data for got in rig.listeners.taken("a")}
    assert (by_id[ids[0]], by_id[ids[1]], by_id[ids[3]]) == ("while it ran", "while none ran", "m3")


async def test_nobody_who_answers_is_unknown_and_the_change_is_honoured_later(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(commands_module, "ANSWER_S", 0.2)
    queue = await rig.queue()
    listener = await rig.listen(queue, "a")
    first, second, third = await rig.put(queue, "old", "deleted", "kept")
    assert await change_two(rig, queue, first, second) == [{listener.id: "unknown"}] * 2
    await rig.work()
    await until(lambda: len(data(rig, "a")) >= 2, what="both that are left")
    assert rig.listeners.ids("a") == Counter([first, third])
    assert sorted(data(rig, "a")) == ["kept", "new"]


async def test_a_retry_in_the_window_has_the_new_data_and_a_deleted_one_is_not_made(rig: Rig):
    queue = await rig.queue()
    listener = await rig.listen(queue, "a")
    attempts: Counter[str] = Counter()

    def refuse_the_old(got: Got) -> int:
        attempts[got.message_id] += 1
        return 422 if got.data in ("old", "deleted") else 200

    rig.listeners.decide = refuse_the_old
    await rig.work()
    first, second = await rig.put(queue, "old", "deleted")
    await until(lambda: attempts[first] and attempts[second], what="both are refused")
    states = await change_two(rig, queue, first, second)
    assert states == [{listener.id: states[0][listener.id]}, {listener.id: "cancelled"}]
    assert states[0][listener.id] in ("pending", "retrying")
    await until(lambda: data(rig, "a") == ["new"], what="the new data")
    made = attempts[second]
    assert int(rig.listeners.taken("a")[0].headers["everput-attempt"]) > 1
    stream_is_settled = lambda: all(  # noqa: E731
        not stream.window.open
        for worker in rig.workers
        for c in worker.dispatchers.values()
        for stream in c.streams.values()
    )
    await until(stream_is_settled, what="the deleted one is settled")
    assert attempts[second] <= made + 1


async def test_an_attempt_under_way_is_waited_for_and_decides_who_had_the_message(rig: Rig):
    queue = await rig.queue()
    takes, refuses = await rig.listen(queue, "takes"), await rig.listen(queue, "refuses")
    rig.listeners.hangs |= {"takes", "refuses"}
    begun: list[str] = []
    rig.listeners.decide = lambda got: begun.append(got.path) or (422 if got.path == "refuses" else 200)
    worker = await rig.work()
    (first,) = await rig.put(queue, "old")
    await until(lambda: len(rig.listeners.hanging) == 2, what="both are asked")
    deleting = asyncio.create_task(rig.delete(queue, first))
    await until(lambda: worker.assignment.changes.known, what="the worker knows of it")
    assert not begun
    assert not deleting.done()
    rig.listeners.let_go()
    assert await deleting == {takes.id: "delivered", refuses.id: "cancelled"}
    assert Counter(begun) == {"takes": 1, "refuses": 1}
    (last,) = await rig.put(queue, "last")
    await until(lambda: min(Counter(begun)[path] for path in ("takes", "refuses")) >= 2, what="the next message")
    await until(lambda: rig.listeners.ids("takes") == Counter([first, last]), what="both messages, each once")


async def test_an_attempt_that_takes_too_long_is_unknown(rig: Rig, monkeypatch: pytest.MonkeyPatch):
    rig.tune(answer_s=0.2)
    queue = await rig.queue()
    listener = await rig.listen(queue, "a")
    rig.listeners.hangs.add("a")
    await rig.work()
    (first,) = await rig.put(queue, "old")
    await until(lambda: rig.listeners.hanging, what="it is asked")
    assert await rig.update(queue, first, "new") == {listener.id: "unknown"}


async def test_what_is_kept_in_outstanding_is_changed_too(rig: Rig, monkeypatch: pytest.MonkeyPatch):
    rig.tune(set_aside_after_ms=0)
    queue = await rig.queue()
    parks, retries = await rig.listen(queue, "parks", max_attempts=1), await rig.listen(queue, "retries")
    rig.listeners.decide = lambda got: 422 if got.data in ("old", "deleted") else 200
    worker = await rig.work()
    first, second = await rig.put(queue, "old", "deleted")

    async def all_kept() -> bool:
        return len(await kept(rig)) == 4

    await until(all_kept, what="all four deliveries are kept")
    await until(lambda: cursors_passed(worker), what="the cursors have passed")
    updated, deleted = await change_two(rig, queue, first, second)
    assert (updated[parks.id], deleted[parks.id], deleted[retries.id]) == ("parked", "cancelled", "cancelled")
    assert updated[retries.id] == "retrying"
    await until(lambda: data(rig, "retries") == ["new"], what="the retry has the new data")

    async def only_the_parked_one() -> bool:
        await worker.assignment.checkpoints.checkpoint()
        return [(one.message_id, one.listener_id) for one in (await kept(rig)).values()] == [(first, parks.id)]

    await until(only_the_parked_one, what="what was deleted is kept no more")
    await rig.end(worker)
    third = await rig.work()
    assert third.assignment.changes.known  # for the parked one, whose message is below every cursor


async def test_what_is_deleted_during_its_attempt_from_outstanding_does_not_come_back(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
):
    """The attempt takes so long that nothing else needs the change any more when it fails."""
    rig.tune(set_aside_after_ms=0)
    queue = await rig.queue()
    await rig.listen(queue, "a", retry_first_ms=100)
    rig.listeners.status["a"] = 422
    worker = await rig.work()
    (first,) = await rig.put(queue, "deleted")

    async def is_kept() -> bool:
        return bool(await kept(rig))

    await until(is_kept, what="the delivery has left its window")
    await until(lambda: cursors_passed(worker), what="the cursor has passed")
    rig.listeners.hangs.add("a")
    await until(lambda: rig.listeners.hanging, what="it is tried again")
    deleting = asyncio.create_task(rig.delete(queue, first))
    await until(lambda: worker.assignment.changes.known, what="the worker knows that it is deleted")
    for partition in range(rig.settings.kafka.partitions):
        worker.assignment.changes.forget_settled(partition)
    rig.listeners.let_go()
    assert list((await deleting).values()) == ["cancelled"]
    await rig.noted(worker)
    await until(lambda: not worker.assignment.leaving, what="nothing is on its way to be kept")
    assert not len(worker.assignment.outstanding)
    await rig.forgotten(worker)
    assert not await kept(rig)


async def cursors_passed(worker: Worker) -> bool:
    await worker.assignment.checkpoints.checkpoint()
    return not any(stream.window.open for c in worker.dispatchers.values() for stream in c.streams.values())


async def test_changes_of_what_everybody_has_settled_are_forgotten_and_found_again_for_who_begins_earlier(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
):
    rig.tune(prune_s=3600.0)  # not before the test wants it
    queue = await rig.queue()
    await rig.listen(queue, "a")
    worker = await rig.work()
    first, second, third = await rig.put(queue, "old", "deleted", "kept")
    await until(lambda: len(data(rig, "a")) == 3, what="the first listener has all")
    await change_two(rig, queue, first, second)
    assert len(worker.assignment.changes.known) == 2
    await rig.forgotten(worker)
    await rig.listen(queue, "b", begin_at_ms=0)
    await until(lambda: len(data(rig, "b")) >= 2, what="a listener from the beginning has what there is")
    (last,) = await rig.put(queue, "last")
    await until(lambda: last in rig.listeners.ids("b"), what="and what comes")
    assert rig.listeners.ids("b") == Counter([first, third, last])
    assert sorted(data(rig, "b")) == ["kept", "last", "new"]


async def test_after_a_crash_what_may_have_been_sent_is_unknown_and_after_an_orderly_end_it_is_known(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
):
    queue = await rig.queue()
    listener = await rig.listen(queue, "a", retry_first_ms=100)
    rig.listeners.down.add("a")
    worker = await rig.work()
    before, crashed = await rig.put(queue, "before", "when it crashed")
    await rig.known_down(listener)
    await rig.end(worker)
    worker = await rig.work()
    await rig.known_down(listener)
    assert await rig.update(queue, before, "new") == {listener.id: "pending"}

    async def nothing_is_written(*_: object) -> None:
        """As if it had been killed."""

    monkeypatch.setattr(worker.assignment.changes, "hand_over", nothing_is_written)
    await rig.end(worker)
    monkeypatch.undo()
    worker = await rig.work()
    assert await rig.delete(queue, crashed) == {listener.id: "unknown"}
    (after,) = await rig.put(queue, "after the crash", key=None)
    await rig.end(worker)
    await rig.work()
    assert await rig.delete(queue, after) == {listener.id: "cancelled"}
    assert await rig.delete(queue, before) == {listener.id: "unknown"}
    with pytest.raises(NotFound):
        await rig.delete(queue, before)


async def test_of_changes_for_one_version_through_two_processes_one_is_made_and_is_what_everybody_gets(
    rig: Rig, kafka_settings: KafkaSettings
):
    queue = await rig.queue()
    await rig.listen(queue, "a")
    rig.listeners.down.add("a")
    worker = await rig.work()
    ids = await rig.put(queue, *["old"] * 12)
    other = KafkaLog(kafka_settings)
    await other.start()
    queue = rig.projections.directory.state.queues[queue.id]

    async def change(log: KafkaLog, message_id: str, data: str | None) -> str | None:
        """What there is then; "lost" when another came first."""
        by = log, rig.context, queue, message_id
        try:
            if data is None:
                await delete_message(*by, if_match={1})
            else:
                await update_message(*by, data=data, if_match={1})
        except Changed:
            return "lost"
        return data

    wanted: dict[str, str] = {}
    try:
        for number, message_id in enumerate(ids):
            ours, theirs = f"ours {number}", f"theirs {number}" if number % 3 else None
            made = await asyncio.gather(change(rig.log, message_id, ours), change(other, message_id, theirs))
            assert made.count("lost") == 1
            (winner,) = [one for one in made if one != "lost"]
            if winner is not None:
                wanted[message_id] = winner
    finally:
        await other.stop()
    rig.listeners.down.clear()
    await until(lambda: len(data(rig, "a")) >= len(wanted), what="all that are left")
    assert {got.message_id: got.data for got in rig.listeners.taken("a")} == wanted
    await rig.forgotten(worker)
    await rig.listen(queue, "b", begin_at_ms=0)
    await until(lambda: len(data(rig, "b")) >= len(wanted), what="a listener from the beginning has what there is")
    (last,) = await rig.put(queue, "last")
    await until(lambda: last in rig.listeners.ids("b"), what="and what comes")
    assert {got.message_id: got.data for got in rig.listeners.taken("b")} == wanted | {last: "last"}


async def test_of_one_ordering_key_an_updated_message_keeps_its_place(rig: Rig):
    queue = await rig.queue()
    await rig.listen(queue, "a", retry_first_ms=100)
    rig.listeners.down.add("a")
    await rig.work()
    ids = await rig.put(queue, *(f"k{number}" for number in range(10)), key="customer-7")
    assert len({parse_message_id(one)[1] for one in ids}) == 1
    await until(lambda: rig.listeners.probes["a"], what="the listener is down")
    for number in (0, 3, 4):
        await rig.update(queue, ids[number], f"new{number}")
    await rig.delete(queue, ids[6])
    rig.listeners.down.clear()
    await until(lambda: len(data(rig, "a")) >= 9, what="all but the deleted one")
    assert data(rig, "a") == ["new0", "k1", "k2", "new3", "new4", "k5", "k7", "k8", "k9"]


async def test_workers_that_come_and_go_answer_for_the_partitions_that_they_own(rig: Rig):
    queue = await rig.queue()
    listener = await rig.listen(queue, "a", retry_first_ms=100)
    rig.listeners.down.add("a")
    first = await rig.work()
    ids = await rig.put(queue, *(f"m{number}" for number in range(12)))
    await until(lambda: rig.listeners.probes["a"], what="the listener is down")
    second = await rig.work()
    await until(
        lambda: (
            first.assignment.partitions
            and second.assignment.partitions
            and len(first.assignment.partitions) + len(second.assignment.partitions) == 4
        ),
        what="each has a share",
    )
    await rig.known_down(listener)
    for number in range(4):  # in all partitions
        assert await rig.update(queue, ids[number], f"new{number}") == {listener.id: "pending"}
    await rig.end(second)
    await until(lambda: len(first.assignment.partitions) == 4, what="the first has them all again")
    for number in range(4, 8):
        assert await rig.delete(queue, ids[number]) == {listener.id: "cancelled"}
    rig.listeners.down.clear()
    await until(lambda: len(data(rig, "a")) >= 8, what="all that are left")
    assert rig.listeners.ids("a") == Counter(ids[:4] + ids[8:])
    assert sorted(data(rig, "a")) == ["m10", "m11", "m8", "m9", "new0", "new1", "new2", "new3"]
