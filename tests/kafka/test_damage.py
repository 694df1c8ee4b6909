"""Damage to the files of a real Kafka: nothing altered is read as good, and all else is read."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from broker.core.damage import DamagedRange
from broker.core.entities import Listener
from broker.core.ids import parse_damaged_id, parse_message_id
from broker.damage import DamageReports, mended
from broker.delivery.worker import Worker
from broker.errors import ConfigurationError, LogDamaged
from broker.kafka.admin import ensure_topics
from broker.kafka.embedded.kafka import EmbeddedKafka
from broker.kafka.log import KafkaLog
from broker.kafka.outstanding import KafkaOutstanding
from broker.kafka.topics import Topic, by_name, topics
from broker.ports import EARLIEST, LATEST, OutstandingDelivery
from broker.settings import KafkaSettings
from tests.damage import Batch, batches, cut, flip, flip_within, holding, partition_folder, with_text
from tests.kafka.rig import Rig, running
from tests.listeners import until

PARTITION = 1
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
SIZE = 3_000  # of a record: Kafka's index has an entry every four KiB


@pytest.fixture
async def kafka(tmp_path: Path):
    """One of the test's own, which it may stop, damage and start again."""
    kafka = EmbeddedKafka(tmp_path / "data", heap_mib=256, progress=False)
    await kafka.start()
    yield kafka
    await kafka.stop()


@pytest.fixture
def settings(kafka: EmbeddedKafka) -> KafkaSettings:
    return kafka.access.settings(partitions=2, flush_each_batch=True)


async def written(log: KafkaLog, topic: Topic, count: int, *, size: int = 0) -> None:
    """So many batches of two records each, in one partition."""
    for number in range(0, 2 * count, 2):
        rows = [(b"key", value(topic, at, size)) for at in (number, number + 1)]
        await asyncio.gather(*log.producer.send_all(topic.name, partition_of(topic), rows))


def value(topic: Topic, offset: int, size: int = 0) -> bytes:
    return b"%s at %d" % (topic.name.encode(), offset) + b"." * size


def partition_of(topic: Topic) -> int:
    return min(PARTITION, topic.partitions - 1)


async def read_all(log: KafkaLog, topic: Topic) -> tuple[dict[int, bytes | None], list[tuple[int, int]]]:
    """The values by offset, and the ranges that can't be read, a few records a read."""
    partition = partition_of(topic)
    at = (await log.requests.offsets(topic.name, {partition: EARLIEST}))[partition]
    end = (await log.requests.offsets(topic.name, {partition: LATEST}))[partition]
    values, damaged = dict[int, bytes | None](), list[tuple[int, int]]()
    while at < end:
        try:
            fetched = await log.requests.read(topic.name, partition, at, bytes_max=200)
        except LogDamaged as error:
            damaged.append((error.first, error.last))
            at = error.last + 1
        else:
            values |= {record.offset: record.value for record in fetched.records}
            at = fetched.next_offset
    return values, damaged


async def test_what_was_damaged_while_kafka_was_down_is_never_read_as_good_and_all_else_is(kafka, settings):
    table = topics(settings)
    sizes = {table.outstanding.name: 0}  # an index entry after the cut would make Kafka begin at offset 0
    await ensure_topics(settings, table)
    log = KafkaLog(settings)
    await log.start()
    for topic in table.all():
        await written(log, topic, 20, size=sizes.get(topic.name, SIZE))
    await log.stop()
    await kafka.running_process.stop()

    def batch(topic: Topic, offset: int) -> Batch:
        return holding(partition_folder(kafka.data_dir, topic.name, partition_of(topic)), offset)

    flip(batch(table.control, 10))
    flip(batch(table.messages, 0))
    flip(batch(table.messages, 10))
    flip(batch(table.messages, 12))
    flip(batch(table.messages, 39))
    flip(batch(table.changes, 10), at=7, bit=1)  # its base offset, 8 for 10
    flip(batch(table.claims, 10), at=7, bit=6)  # 74 for 10
    flip(batch(table.deliveries, 10), at=11, bit=2)  # its length
    cut(batch(table.outstanding, 38))
    await kafka.restart()

    log = KafkaLog(settings)
    await log.start()
    try:
        lost = {
            "control": [(10, 11)],
            "messages": [(0, 1), (10, 13), (38, 39)],
            "changes": [(10, 11)],
            "claims": [(10, 11)],
            "outstanding": [],  # 38 and 39 are filled
        }
        for name, topic in by_name(table).items():
            values, damaged = await read_all(log, topic)
            filled = {offset for offset, found in values.items() if found == b""}
            assert filled == ({38, 39} if name == "outstanding" else set())
            values = {offset: found for offset, found in values.items() if found}
            assert all(
                found == value(topic, offset, sizes.get(topic.name, SIZE)) for offset, found in values.items()
            ), name
            gone = {offset for first, last in damaged for offset in range(first, last + 1)}
            assert gone.isdisjoint(values), name
            assert gone | values.keys() == set(range(38 if name == "outstanding" else 40)), name
            if name == "deliveries":  # where a length is altered Kafka finds its way again at an index entry
                assert 10 in gone
                assert gone < {8, 9, 10, 11, 12, 13}
            else:
                assert damaged == lost[name], name
    finally:
        await log.stop()


async def test_a_segment_that_is_missing_is_damage_and_not_passed_in_silence(kafka, settings):
    topic = replace(topics(settings).messages, config={"segment.bytes": str(1 << 20)})
    await ensure_topics(settings, replace(topics(settings), messages=topic))
    log = KafkaLog(settings)
    await log.start()
    await written(log, topic, 20, size=100_000)
    await log.stop()
    await kafka.running_process.stop()
    folder = partition_folder(kafka.data_dir, topic.name, PARTITION)
    segments = sorted(folder.glob("*.log"))
    first, after = (int(segment.stem) for segment in segments[1:3])
    for path in folder.glob(f"{segments[1].stem}.*"):
        path.unlink()
    await kafka.restart()

    log = KafkaLog(settings)
    await log.start()
    try:
        values, damaged = await read_all(log, topic)
        assert damaged == [(first, after - 1)]
        assert values == {
            offset: value(topic, offset, 100_000) for offset in range(40) if offset not in range(first, after)
        }
    finally:
        await log.stop()


async def places(rig: Rig, ids: list[str]) -> dict[str, tuple[int, int]]:
    """By message id, (partition, offset)."""
    found = {}
    for one in ids:
        at_ms, partition = parse_message_id(one)
        place = await rig.log.messages.find(
            partition=partition, at_ms=at_ms, message_id=one, organization_id=rig.organization_id
        )
        found[one] = partition, place[0]
    return found


async def parked(rig: Rig, listener: Listener) -> list[OutstandingDelivery]:
    outstanding = KafkaOutstanding(rig.settings.kafka, rig.log.requests, rig.log.read_slots)
    return (await outstanding.page(listener, state="parked", after=(0, 0), limit=100))[0]


async def test_altered_messages_are_parked_all_others_delivered_and_these_once_they_are_mended(kafka, settings):
    table = topics(settings)
    await ensure_topics(settings, table)
    async with running(settings) as rig:
        queue, other = await rig.queue(), await rig.queue("other")
        listener = await rig.listen(queue, "it")
        ids = await rig.put(queue, *(f"text-{number:02}" for number in range(40)), traceparent=TRACE)
        await rig.put(other, "not for it")
        where = await places(rig, ids)
        await kafka.running_process.stop()
        altered = {one: f"text-{number:02}".encode() for number, one in enumerate(ids) if number in (3, 17, 39)}
        folders = [partition_folder(kafka.data_dir, table.messages.name, number) for number in range(2)]
        flipped = []
        for one, data in altered.items():
            partition, offset = where[one]
            batch = holding(folders[partition], offset)
            flipped.append((batch, flip_within(batch, data)))
        await kafka.restart()
        worker = await rig.work()
        reports = DamageReports(rig.log.requests, rig.log.control, rig.workers[worker].directory, table)
        reports.start()
        directory = rig.workers[worker].directory
        good = [one for one in ids if one not in altered]
        damage = {where[one] for one in altered}
        try:
            await until(lambda: set(rig.listeners.ids("it")) == set(good), what="all others are delivered")

            async def all_parked() -> bool:
                return len(await parked(rig, listener)) == len(damage)

            await until(all_parked, what="they are parked")
            rows = await parked(rig, listener)
            assert {(row.state, row.error, row.attempts, row.name) for row in rows} == {("parked", "damaged", 0, "")}
            assert {parse_damaged_id(row.message_id) for row in rows} == {(p, at, at) for p, at in damage}
            await until(lambda: len(list(directory.state.damage)) == 3, what="it is told")
            assert {(one.topic, one.partition, one.first, one.last) for one in directory.state.damage} == {
                ("messages", partition, offset, offset) for partition, offset in damage
            }
            new = await rig.put(queue, "after that")
            await until(
                lambda: set(rig.listeners.ids("it")) == {*good, *new}, what="what comes after that is delivered"
            )
            given_up = next(iter(altered))
            partition, offset = where[given_up]
            one = DamagedRange("messages", partition, offset, offset)
            await rig.log.control.append(mended(one, given_up=True, actor="shell"))

            async def one_less() -> bool:
                return len(await parked(rig, listener)) == len(damage) - 1

            await rig.noted(worker)
            await until(one_less, what="nothing is parked any more for what was given up")
            with pytest.raises(LogDamaged):
                await rig.log.requests.read(table.messages.name, partition, offset)
            await directory.caught_up()
            assert len(list(directory.state.damage)) == len(damage) - 1  # nor is it told again

            await kafka.running_process.stop()
            for batch, at in flipped:
                flip(batch, at=at)
            await kafka.restart()
            await reports.look_again(list(directory.state.damage))
            rest = {*ids, *new} - {given_up}
            await until(lambda: set(rig.listeners.ids("it")) == rest, what="mended, they are delivered")
            assert not directory.state.damage
            assert set(rig.listeners.ids("it").values()) == {1}
            traced = {one.message_id for one in rig.listeners.taken("it") if "traceparent" in one.headers}
            assert traced == {*ids} - {given_up}
        finally:
            await reports.stop()


async def test_once_a_range_is_mended_only_what_waited_for_it_is_retried(kafka, settings):
    table = topics(settings)
    await ensure_topics(settings, table)
    async with running(settings) as rig:
        queue = await rig.queue()
        parks = await rig.listen(queue, "parks", max_attempts=1)
        rig.listeners.status["parks"] = 400
        worker = await rig.work()
        (altered,) = await rig.put(queue, "text-0")
        await until(lambda: len(worker.assignment.outstanding) == 1, what="it is parked, with a copy of the message")
        await rig.noted(worker)
        await rig.end(worker)  # it has the message in memory
        partition, batch = with_text(kafka.data_dir, table.messages.name, b"text-0")
        flip(batch)
        rig.listeners.status.clear()  # from now on, a listener that gets a message accepts it
        worker = await rig.work()
        directory = rig.projections.directory
        reports = DamageReports(rig.log.requests, rig.log.control, directory, table)
        async with reports.running():
            late = await rig.listen(queue, "late", begin_at_ms=0)

            async def is_parked() -> bool:
                return len(await parked(rig, late)) == 1

            await until(is_parked, what="the other listener's delivery is parked without a copy")
            await until(lambda: bool(directory.state.damage), what="the damage is known")
            flip(batch)
            await reports.look_again(list(directory.state.damage))
            await until(lambda: rig.listeners.ids("late") == {altered: 1}, what="the other listener has the message")
            await rig.noted(worker)
            assert not rig.listeners.taken("parks"), "its attempts had run out before"
            states = worker.assignment.outstanding.state
            assert (states(partition, parks.id, altered), states(partition, late.id, altered)) == ("parked", None)


async def test_a_parked_delivery_whose_message_and_copy_are_lost_is_cancelled_once_they_are_given_up(kafka, settings):
    table = topics(settings)
    await ensure_topics(settings, table)
    async with running(settings) as rig:
        queue = await rig.queue()
        listener = await rig.listen(queue, "it", max_attempts=1)
        rig.listeners.status["it"] = 400
        worker = await rig.work()
        ids = list[str]()
        for number in (0, 1):  # one by one, so that each has batches of its own
            ids += await rig.put(queue, f"text-{number}")
            await until(lambda before=number: len(worker.assignment.outstanding) > before, what="it is parked")
        directory = rig.projections.directory
        reports = DamageReports(rig.log.requests, rig.log.control, directory, table)
        async with reports.running():
            for topic in (table.messages, table.outstanding):
                partition, batch = with_text(kafka.data_dir, topic.name, b"text-0")
                flip(batch)
            await rig.commands.redrive_listener(rig.context, queue.id, listener.id, ids[:1])

            async def left() -> set[tuple[str, str | None]]:
                await rig.noted(worker)
                return {(row.message_id, row.error) for row in await parked(rig, listener)}

            async def parked_again() -> bool:
                return (ids[0], "damaged") in await left()

            await until(parked_again, what="it is parked again, because nothing has its message")
            await until(lambda: "messages" in directory.state.damage.offsets(), what="the damage is known")
            (one,) = (one for one in directory.state.damage if one.topic == "messages")
            await rig.log.control.append(mended(one, given_up=True, actor="shell"))

            async def only_the_other() -> bool:
                return {message_id for message_id, _ in await left()} == {ids[1]}

            await until(only_the_other, what="it is cancelled, and the other one stays parked")
            assert worker.assignment.outstanding.state(partition, listener.id, ids[0]) is None


async def test_once_a_part_of_a_range_is_deleted_the_rest_is_delivered_when_it_is_mended(kafka, settings):
    table = topics(settings)
    await ensure_topics(settings, table)
    async with running(settings) as rig:
        queue = await rig.queue()
        # One by one and with one key, so that each has a batch of its own in one partition.
        ids = [one for number in range(3) for one in await rig.put(queue, f"text-{number}", key="k")]
        altered = [with_text(kafka.data_dir, table.messages.name, f"text-{number}".encode()) for number in range(3)]
        for _, batch in altered:
            flip(batch)
        partition = altered[0][0]
        assert [batch.first for _, batch in altered] == [0, 1, 2]
        listener = await rig.listen(queue, "it", begin_at_ms=0)
        worker = await rig.work()
        directory = rig.projections.directory
        reports = DamageReports(rig.log.requests, rig.log.control, directory, table)
        async with reports.running():

            async def all_parked() -> bool:
                rows = await parked(rig, listener)
                return [parse_damaged_id(row.message_id) for row in rows] == [(partition, 0, 2)]

            await until(all_parked, what="one record stands for all three")
            await until(lambda: directory.state.damage.offsets() == {"messages": 3}, what="the damage is known")
            await rig.log.requests.delete_before(table.messages.name, partition, 1)
            for _, batch in altered[1:]:
                flip(batch)
            await reports.look_again(list(directory.state.damage))
            await until(lambda: set(rig.listeners.ids("it")) == set(ids[1:]), what="what is left is delivered")
            await until(lambda: not directory.state.damage, what="no damage is left")
            await rig.noted(worker)
            assert not await parked(rig, listener)


async def test_a_damaged_batch_of_which_retention_has_deleted_a_part_is_reported_once(kafka, settings):
    table = topics(settings)
    await ensure_topics(settings, table)
    async with running(settings) as rig:
        requests, name = rig.log.requests, table.deliveries.name
        await rig.log.deliveries.append({0: [(b"key", b"value %d" % number) for number in range(6)]})
        partition, batch = with_text(kafka.data_dir, name, b"value 3")
        assert (partition, batch.first) == (0, 0), "all records are in one batch"
        await rig.log.deliveries.append({0: [(b"key", b"later")]})
        flip(batch)
        state = rig.projections.directory.state
        reports = DamageReports(requests, rig.log.control, rig.projections.directory, table)

        async def end() -> int:
            return (await requests.offsets(table.control.name, {0: LATEST}))[0]

        async with reports.running():
            with pytest.raises(LogDamaged):
                await requests.read(name, 0, 0)
            await until(lambda: list(state.damage) == [DamagedRange("deliveries", 0, 0, 5)], what="it is known")
            await requests.delete_before(name, 0, 3)
            await reports.look_again(list(state.damage))
            await until(lambda: list(state.given_up) == [DamagedRange("deliveries", 0, 0, 2)], what="what is deleted")
            before = await end()
            await reports.look_again(list(state.damage))
            with pytest.raises(LogDamaged):
                await requests.read(name, 0, 4)
            # New damage is reported after all that was found before.
            flip(with_text(kafka.data_dir, name, b"later")[1])
            with pytest.raises(LogDamaged):
                await requests.read(name, 0, 6)
            await until(lambda: list(state.damage) == [DamagedRange("deliveries", 0, 3, 6)], what="the rest is known")
            assert await end() == before + 1


async def test_after_a_crash_kafka_is_not_let_cut_off_what_follows_an_altered_batch(kafka, settings):
    table = topics(settings)
    await ensure_topics(settings, table)
    log = KafkaLog(settings)
    await log.start()
    await written(log, table.messages, 20)
    await written(log, table.control, 20)
    await log.stop()
    kafka.kill()
    await kafka.wait()
    altered = holding(partition_folder(kafka.data_dir, table.control.name, 0), 10)
    flip(altered)
    with pytest.raises(ConfigurationError, match=r"offset 10 of .*mend --give-up control/0:10-11"):
        await kafka.restart()
    flip(altered)
    folder = partition_folder(kafka.data_dir, table.messages.name, PARTITION)
    altered, last = holding(folder, 10), holding(folder, 39)
    flip(altered)
    with pytest.raises(ConfigurationError, match=r"offset 10 of .*truncate -s \d+ "):
        await kafka.restart()
    flip(altered)
    with last.path.open("r+b") as file:  # this is what a crash leaves, and no refusal
        file.truncate(last.at + last.size - 5)
    await kafka.restart()

    log = KafkaLog(settings)
    await log.start()
    try:
        values, damaged = await read_all(log, table.messages)
        assert damaged == []
        assert set(values) == set(range(38))
    finally:
        await log.stop()


async def test_what_was_parked_is_known_though_its_records_are_damaged_and_delivered_as_it_was_put(kafka, settings):
    table = topics(settings)
    await ensure_topics(settings, table)
    async with running(settings) as rig:
        queue = await rig.queue()
        listener = await rig.listen(queue, "it", max_attempts=1)
        rig.listeners.status["it"] = 400
        worker = await rig.work()
        ids = await rig.put(queue, *(f"text-{number}" for number in range(6)))

        async def all_parked() -> bool:
            return len(await parked(rig, listener)) == len(ids)

        await until(all_parked, what="they are parked")
        await rig.noted(worker)
        await rig.end(worker)
        await kafka.running_process.stop()
        damaged_here = 0
        for name in (table.outstanding.name, table.claims.name):
            for number in range(2):
                for batch in list(batches(partition_folder(kafka.data_dir, name, number))):
                    flip(batch)
                    damaged_here += 1
        assert damaged_here
        await kafka.restart()
        rig.listeners.status.clear()
        rig.listeners.got.clear()
        worker = await rig.work()
        await rig.commands.redrive_listener(rig.context, queue.id, listener.id, [])
        await until(lambda: set(rig.listeners.ids("it")) == set(ids), what="all are delivered")
        assert {one.data for one in rig.listeners.taken("it")} == {f"text-{number}" for number in range(6)}


@pytest.mark.parametrize("outcomes_too", [False, True])
async def test_what_waited_for_its_time_or_behind_its_key_is_known_though_its_records_are_damaged(
    kafka, settings, outcomes_too
):
    table = topics(settings)
    await ensure_topics(settings, table)
    async with running(settings) as rig:
        queue = await rig.queue()
        listener = await rig.listen(queue, "it", retry_first_ms=3_600_000, retry_max_s=7_200)
        worker = await rig.work()
        delivered = await rig.put(queue, *(f"delivered-{number}" for number in range(4)))
        await until(lambda: set(rig.listeners.ids("it")) == set(delivered), what="these are delivered")
        rig.listeners.status["it"] = 400
        later = await rig.put(queue, "later-0", "later-1", deliver_at=datetime.now(UTC) + timedelta(hours=1))
        keyed = await rig.put(queue, "keyed-0", key="k")

        def states(of: Worker) -> dict[str, str | None]:
            places = {one: (parse_message_id(one) or (0, 0))[1] for one in (*delivered, *later, *keyed)}
            return {one: of.assignment.outstanding.state(at, listener.id, one) for one, at in places.items()}

        expected = dict.fromkeys(later, "pending") | dict.fromkeys(keyed, "retrying") | dict.fromkeys(delivered)
        await until(lambda: states(worker) == expected, what="they are set aside")
        await rig.noted(worker)
        await rig.end(worker)
        await kafka.running_process.stop()
        for name in (table.outstanding.name, *((table.deliveries.name,) if outcomes_too else ())):
            for number in range(2):
                for batch in list(batches(partition_folder(kafka.data_dir, name, number))):
                    flip(batch)
        await kafka.restart()
        rig.listeners.status.clear()
        rig.listeners.got.clear()
        worker = await rig.work()
        if outcomes_too:  # who knows which of them were delivered: all are parked, and none is lost
            await until(lambda: states(worker) == dict.fromkeys(expected, "parked"), what="all are parked")

            async def listed() -> bool:
                return {(row.message_id, row.error) for row in await parked(rig, listener)} == {
                    (one, "damaged") for one in expected
                }

            await until(listed, what="they are listed")
            await rig.commands.redrive_listener(rig.context, queue.id, listener.id, keyed)
        else:
            assert states(worker) == expected
            (found,) = (
                entry
                for one in keyed
                if (entry := worker.assignment.outstanding._index.find(parse_message_id(one)[1], listener.id, one))
            )
            assert found.ordering_key == "k"
            await rig.commands.redrive_listener(rig.context, queue.id, listener.id, [])
        await until(lambda: list(rig.listeners.ids("it")) == keyed, what="the one that failed is delivered")
        assert {one.data for one in rig.listeners.taken("it")} == {"keyed-0"}


async def test_a_long_range_that_was_mended_is_delivered_a_few_messages_at_a_time(kafka, settings):
    table = topics(settings)
    await ensure_topics(settings, table)
    async with running(settings) as rig:
        queue, other = await rig.queue(), await rig.queue("other")
        # One by one and with one key, so that each has a batch of its own in one partition.
        ids = [one for number in range(9) for one in await rig.put(queue, f"text-{number}", key="k", traceparent=TRACE)]
        await rig.put(other, "text-9", key="k")
        altered = [with_text(kafka.data_dir, table.messages.name, f"text-{number}".encode()) for number in range(10)]
        for _, batch in altered:
            flip(batch)
        listener = await rig.listen(queue, "it", begin_at_ms=0)
        rig.tune(damaged_at_once=2)
        worker = await rig.work()
        directory = rig.projections.directory
        reports = DamageReports(rig.log.requests, rig.log.control, directory, table)
        async with reports.running():

            async def one_parked() -> bool:
                return len(await parked(rig, listener)) == 1

            await until(one_parked, what="one record stands for all")
            await until(lambda: directory.state.damage.offsets() == {"messages": 10}, what="the damage is known")
            written = list[int]()
            topic = worker.assignment.outstanding._written
            append = topic.append

            async def watched(records, stored=None):
                written.extend(map(len, records.values()))
                await append(records, stored)

            topic.append = watched
            for _, batch in altered:
                flip(batch)
            await reports.look_again(list(directory.state.damage))
            await until(lambda: len(rig.listeners.ids("it")) == 9, what="all are delivered")
            assert rig.listeners.ids("it") == dict.fromkeys(ids, 1)
            assert [got.message_id for got in rig.listeners.taken("it")] == ids
            await rig.noted(worker)
            assert not await parked(rig, listener)
            assert len(written) >= 5
            assert max(written[:5]) <= 4  # two deliveries, the rest of the range, and the end of the range before
