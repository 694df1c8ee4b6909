"""Statistics on real Kafka: two workers count, one after the other loses the partitions, and all is counted once."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
from aiokafka.consumer.subscription_state import SubscriptionState
from faust.transport.consumer import Consumer

from broker.core.codec import decode
from broker.core.events import MessagePut, StatisticsCounted
from broker.core.statistics import KEPT_MS, MINUTE_MS, Counts, Coverage, Key, Lane, Series, Totals, read_row
from broker.kafka.admin import ensure_topics
from broker.kafka.counting import SOURCES
from broker.kafka.embedded.kafka import EmbeddedKafka
from broker.kafka.log import KafkaLog
from broker.kafka.statistics import KafkaStatistics, read_on
from broker.kafka.topics import Topics, by_name, topics
from broker.ports import LATEST
from broker.settings import KafkaSettings
from projections import statistics
from projections.statistics import Statistics
from tests.damage import antedate, flip_within, partition_folder, with_text
from tests.kafka.rig import Rig, running
from tests.kafka.test_damage import kafka, settings
from tests.listeners import until

__all__ = ["kafka", "settings"]  # fixtures


@pytest.fixture
async def rig(kafka_settings: KafkaSettings, ready_topics: Topics):
    async with running(kafka_settings) as made:
        yield made


async def counted(kafka: KafkaSettings, log: KafkaLog) -> tuple[dict[Key, Counts], Coverage, int]:
    """What the records of `statistics` that count come to, how far, and how many count for nothing."""
    sums, coverage, void, at = dict[Key, Counts](), Coverage(), 0, 0
    while True:
        records, end = await read_on(log.requests, topics(kafka).statistics.name, 0, at)
        for record in records:
            event = decode(record.value)
            assert isinstance(event, StatisticsCounted)
            if not coverage.accept(record.offset, event):
                void += 1
                continue
            for key, counts in map(read_row, event.minutes):
                sums.setdefault(key, Counts()).add(counts)
        if end <= at:
            return sums, coverage, void
        at = end


async def folded(kafka: KafkaSettings, log: KafkaLog) -> tuple[dict[Key, Counts], dict[Lane, int]]:
    """The same as folded from the log itself, by a plain loop over every record."""
    totals = Totals()
    ends: dict[Lane, int] = {}
    for source in SOURCES:
        topic = by_name(topics(kafka))[source]
        for number in range(topic.partitions):
            lane = Lane(source, number)
            ends[lane] = 0
            while True:
                records, end = await read_on(log.requests, topic.name, number, ends[lane])
                for record in records:
                    event = decode(record.value)
                    if isinstance(event, MessagePut):
                        totals.put(record.timestamp // MINUTE_MS, event.queue_id)
                    else:
                        totals.event(event)
                if end <= ends[lane]:
                    break
                ends[lane] = end
    return totals.rows, ends


@contextlib.asynccontextmanager
async def counting(rig: Rig) -> AsyncIterator[Statistics]:
    statistics = Statistics(rig.settings.kafka, rig.log)
    statistics.start()
    try:
        yield statistics
    finally:
        await statistics.stop()


async def all_counted(rig: Rig, *counters: Statistics) -> dict[Key, Counts]:
    """Wait until all of the log is counted, and return it."""

    async def equal() -> bool:
        for one in counters:
            await one.counting.write()
        (_, coverage, _), (_, ends) = (
            await counted(rig.settings.kafka, rig.log),
            await folded(rig.settings.kafka, rig.log),
        )
        return {lane: at.offset for lane, at in coverage.positions.items()} == ends

    await until(equal, what="all of the log is counted")
    return (await counted(rig.settings.kafka, rig.log))[0]


async def test_two_processes_count_a_share_each_and_one_takes_over_from_one_that_dies(rig: Rig):
    worker = await rig.work()
    queue = await rig.queue()
    good = await rig.listen(queue, "good")
    rig.listeners.status["bad"] = 422
    bad = await rig.listen(queue, "bad", max_attempts=1)
    async with counting(rig) as first:
        second = Statistics(rig.settings.kafka, rig.log)
        second.start()
        await until(lambda: shared(rig, first, second), what="each has a share of the partitions")
        await rig.put(queue, *(str(number) for number in range(12)))
        await until(lambda: len(rig.listeners.taken("good")) == 12, what="all are delivered")
        await rig.noted(worker)
        await all_counted(rig, first, second)
        assert {lane for lane, at in second.counting.positions.items() if at.offset}  # it has counted some
        before = second.counting.positions
        await rig.put(queue, *(str(number) for number in range(8)))
        await until(lambda: len(rig.listeners.taken("good")) == 20, what="all are delivered")
        await until(lambda: second.counting.positions != before, what="the second has folded some of it")
        second._task.cancel()  # what it has folded is lost
        await until(lambda: refused(rig, "bad") == 20, what="all are refused")
        await rig.noted(worker)
        sums = await all_counted(rig, first)
    assert sums == (await folded(rig.settings.kafka, rig.log))[0]
    series = Series(min(key.minute for key in sums) * MINUTE_MS, MINUTE_MS, 10, queue.id, good.id)
    reader = KafkaStatistics(rig.settings.kafka, rig.log.requests, rig.log.read_slots)
    await reader.read(queue.organization_id, series)
    assert sum(point.put for point in series.points) == 20
    assert sum(point.delivered for point in series.points) == 20
    assert sum(sum(point.waited.values()) for point in series.points) == 20
    series = Series(series.from_ms, 10 * MINUTE_MS, 1, queue.id, bad.id)
    await reader.read(queue.organization_id, series)
    assert (series.points[0].failed, series.points[0].parked, series.points[0].delivered) == ({"422": 20}, 20, 0)
    assert series.complete == [True]
    topic = topics(rig.settings.kafka).statistics.name
    end = (await rig.log.requests.offsets(topic, {0: LATEST}))[0]
    await rig.log.requests.delete_before(topic, 0, end)
    assert (await counted(rig.settings.kafka, rig.log))[0] == {}
    async with counting(rig) as anew:
        assert await all_counted(rig, anew) == sums


def refused(rig: Rig, path: str) -> int:
    return sum(got.path == path for got, _ in rig.listeners.ended)


def shared(rig: Rig, *counters: Statistics) -> bool:
    lanes = [one.counting.lanes for one in counters]
    return all(lanes) and sum(map(len, lanes)) == 2 * rig.settings.kafka.partitions


async def test_records_that_can_t_be_read_are_passed_and_their_minute_is_incomplete(
    kafka: EmbeddedKafka, settings: KafkaSettings
):
    table = topics(settings)
    await ensure_topics(settings, table)
    async with running(settings) as rig:
        queue = await rig.queue()
        for number in range(8):  # one after the other, so that each is a batch of its own
            await rig.put(queue, f"<text {number}>", key="of one partition")
        await kafka.running_process.stop()
        _, batch = with_text(kafka.data_dir, table.messages.name, b"<text 3>")
        flip_within(batch, b"<text 3>")
        await kafka.restart()
        async with counting(rig) as statistics:
            await until(lambda: bool(statistics.counting.lanes), what="it has its lanes")
            ends = dict(enumerate(await rig.log.messages.end_offsets()))

            async def counted_all() -> bool:
                await statistics.counting.write()
                positions = (await counted(settings, rig.log))[1].positions
                return {lane.partition: at.offset for lane, at in positions.items() if lane.topic == "messages"} == ends

            await until(counted_all, what="all messages are counted")
        sums, _, _ = await counted(settings, rig.log)
        series = Series(min(key.minute for key in sums) * MINUTE_MS, 10 * MINUTE_MS, 1, queue.id)
        await KafkaStatistics(settings, rig.log.requests, rig.log.read_slots).read(queue.organization_id, series)
        assert (series.points[0].put, series.complete) == (7, [False])


async def test_a_process_stays_in_the_group_though_nobody_polls_its_consumer(rig: Rig, monkeypatch: pytest.MonkeyPatch):
    kafka = rig.settings.kafka
    looked, idle_s = 0, SubscriptionState.fetcher_idle_time.fget

    def unpolled_for_hours(state: SubscriptionState) -> float:
        nonlocal looked
        if state.subscription is None or topics(kafka).messages.name not in state.subscription.topics:
            return float(idle_s(state))
        looked += 1
        return 10_000.0

    async def has_all() -> bool:
        owned = await rig.log.requests.groups.assignments(
            f"{kafka.topic_prefix}statistics", topics(kafka).messages.name
        )
        return owned == [set(range(topics(kafka).messages.partitions))]

    async with counting(rig):
        await until(has_all, what="it is a member")
        monkeypatch.setattr(SubscriptionState, "fetcher_idle_time", property(unpolled_for_hours))
        await until(lambda: looked >= 3, what="it has looked whether it is idle")
        assert await has_all()


async def test_a_faust_that_asks_for_no_records_any_more_is_started_again(rig: Rig, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(statistics, "_STALLED_S", 5.0)
    ask, stalled = Consumer._wait_next_records, list[Consumer]()

    async def ask_once(consumer: Consumer, *how: float):
        """As the first consumer of statistics does after rebalances that came too close: it waits for ever."""
        if type(consumer).__module__ == statistics.__name__ and counter.counting.lanes:
            stalled.append(consumer) if not stalled else None
            if consumer is stalled[0]:
                await asyncio.Event().wait()
        return await ask(consumer, *how)

    monkeypatch.setattr(Consumer, "_wait_next_records", ask_once)
    worker = await rig.work()
    queue = await rig.queue()
    await rig.listen(queue, "it")
    async with counting(rig) as counter:
        await until(lambda: stalled, what="it has stalled")
        await rig.put(queue, "a", "b", "c")
        await until(lambda: len(rig.listeners.taken("it")) == 3, what="all are delivered")
        await rig.noted(worker)
        sums = await all_counted(rig, counter)
    assert sum(counts.put for counts in sums.values()) == 3


async def test_an_error_in_the_middle_of_a_batch_counts_no_record_twice(rig: Rig, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(statistics, "_AGAIN_S", 0.5)
    passed, failed = Totals.passed, list[Lane]()

    def failing_once(totals: Totals, lane: Lane, *more: int) -> None:
        if not failed and lane.topic == "deliveries" and totals.rows:
            failed.append(lane)
            raise ZeroDivisionError("the event is counted, and its offset is not noted")
        passed(totals, lane, *more)

    monkeypatch.setattr(Totals, "passed", failing_once)
    worker = await rig.work()
    queue = await rig.queue()
    await rig.listen(queue, "it")
    await rig.put(queue, "a", "b", "c")
    await until(lambda: len(rig.listeners.taken("it")) == 3, what="all are delivered")
    await rig.noted(worker)
    async with counting(rig) as counter:
        await until(lambda: failed, what="it has failed")
        sums = await all_counted(rig, counter)
    assert sum(counts.put for counts in sums.values()) == 3
    assert sum(counts.delivered for counts in sums.values()) == 3


async def test_an_index_of_times_that_lies_hides_no_count(kafka: EmbeddedKafka, settings: KafkaSettings):
    table = topics(settings)
    await ensure_topics(settings, table)
    async with running(settings) as rig:
        queue = await rig.queue()
        await rig.put(queue, *(str(number) for number in range(12)))
        async with counting(rig) as counter:
            sums = await all_counted(rig, counter)
        await kafka.running_process.stop()
        for topic in (table.messages, table.statistics):
            folders = [partition_folder(kafka.data_dir, topic.name, number) for number in range(topic.partitions)]
            assert sum(antedate(folder, KEPT_MS + 3_600_000) for folder in folders)
        await kafka.restart()
        series = Series(min(key.minute for key in sums) * MINUTE_MS, MINUTE_MS, 10, queue.id)
        await KafkaStatistics(settings, rig.log.requests, rig.log.read_slots).read(queue.organization_id, series)
        assert sum(point.put for point in series.points) == 12
        end = (await rig.log.requests.offsets(table.statistics.name, {0: LATEST}))[0]
        await rig.log.requests.delete_before(table.statistics.name, 0, end)
        async with counting(rig) as anew:
            assert await all_counted(rig, anew) == sums
