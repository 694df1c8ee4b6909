"""The log read in order from a real Kafka: many partitions, several topics, while it is written to."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from confluent_kafka import Producer

from broker.audit.reader import Entry, LogReader, Range, ReaderTuning
from broker.audit.verify import State, Verifier
from broker.clock import now_ms
from broker.core.catalogue import TOPICS
from broker.core.checks import Finding
from broker.core.digests import state_hash
from broker.core.events import AnswersKept, DeliveriesSettled, DeliveryAttempted, MessagePut
from broker.core.ids import parse_message_id
from broker.core.logorder import PageToken
from broker.core.selection import MessagePosition, Selection
from broker.kafka.requests import KafkaRequests
from broker.kafka.topics import Topics
from broker.ports import LATEST
from broker.settings import KafkaSettings
from tests.kafka.rig import running
from tests.kafka_clients import librdkafka
from tests.listeners import until


async def all_of(reader: LogReader, wanted: Selection, span: Range) -> tuple[list[Entry], PageToken]:
    entries: list[Entry] = []
    async for one in reader.read(wanted, span):
        entries += one.entries
        page_token = one.page_token
    return entries, page_token


def places(entries: Sequence[Entry]) -> list[tuple[str, int, int]]:
    return [(entry.topic, entry.partition, entry.offset) for entry in entries]


async def test_every_event_is_read_once_in_one_order_while_others_are_written(
    kafka_settings: KafkaSettings, ready_topics: Topics
):
    async with running(kafka_settings) as rig:
        queue = await rig.queue("orders")
        # less than a fetch: some is read again
        # and some is too large to be held
        tuning = ReaderTuning(held_bytes_max=64 << 10, share_bytes_min=4 << 10, settle_ms=1_000)
        reader = LogReader(rig.log.requests, ready_topics, rig.projections.directory, tuning)
        ours = Selection(organization_id=rig.organization_id)

        async def put_many() -> list[str]:
            ids = []
            for number in range(40):
                size = 9_000 if number % 10 == 0 else 10
                ids += await rig.put(queue, "x" * size)
            return ids

        async def follow(count: int) -> list[Entry]:
            found, page_token = await all_of(reader, ours, Range())
            while len(found) < count:
                more, page_token = await all_of(reader, ours, Range(page_token=page_token))
                found += more
            return found

        writers = asyncio.gather(*(put_many() for _ in range(5)))
        followed = await follow(202)
        ids = {made for some in await writers for made in some}
        again, _ = await all_of(reader, ours, Range())
        assert len(again) == 202  # the organization, the queue, the messages
        assert {getattr(entry.event, "message_id", None) for entry in again[2:]} == ids
        order = [(entry.log_ms, TOPICS.index(entry.topic), entry.partition, entry.offset) for entry in again]
        assert order == sorted(order)
        assert places(followed) == places(again)


async def test_the_story_of_a_message_is_read_from_its_own_partition_and_time(
    kafka_settings: KafkaSettings, ready_topics: Topics
):
    async with running(kafka_settings) as rig:
        queue = await rig.queue("orders")
        good, bad = await rig.listen(queue, "good"), await rig.listen(queue, "bad")
        rig.listeners.decide = lambda got: 422 if got.path == "bad" and got.headers["everput-attempt"] == "1" else 200
        await rig.work()
        await rig.put(queue, *["other"] * 20)
        (message_id,) = await rig.put(queue, "told of")
        at_ms, partition = parse_message_id(message_id) or (0, 0)
        found = await rig.log.messages.find(
            partition=partition, at_ms=at_ms, message_id=message_id, organization_id=rig.organization_id
        )
        assert found is not None
        story = Selection(
            organization_id=rig.organization_id,
            message=MessagePosition(
                id=message_id, queue_id=queue.id, at_ms=at_ms, partition=partition, offset=found[0]
            ),
        )
        tuning = ReaderTuning(settle_ms=0)
        reader = LogReader(rig.log.requests, ready_topics, rig.projections.directory, tuning)

        async def told() -> list[Entry] | None:
            entries, _ = await all_of(reader, story, Range(begin_ms=at_ms - 1000))
            outcomes = [entry for entry in entries if not isinstance(entry.event, AnswersKept)]
            return outcomes if len(outcomes) >= 4 else None

        put, *attempts = await until(told, what="all of the story")
        assert isinstance(put.event, MessagePut)
        assert put.event.data == "told of"
        gathered = [entry.event for entry in attempts if isinstance(entry.event, DeliveriesSettled)]
        assert [(event.listener_id, [row[0] for row in event.rows]) for event in gathered] == [(good.id, [found[0]])]
        single = [entry.event for entry in attempts if isinstance(entry.event, DeliveryAttempted)]
        assert [(event.listener_id, event.number, event.outcome) for event in single] == [
            (bad.id, 1, "failed"),
            (bad.id, 2, "delivered"),
        ]


async def test_a_log_that_is_written_to_is_whole_at_every_moment(kafka_settings: KafkaSettings, ready_topics: Topics):
    async with running(kafka_settings) as rig:
        queue = await rig.queue("orders")
        rig.listeners.decide = lambda got: 422 if got.path == "bad" and got.headers["everput-attempt"] == "1" else 200
        for path in ("good", "bad"):
            await rig.listen(queue, path)
        await rig.work()

        async def findings() -> list[Finding | State]:
            verifier = Verifier(kafka_settings, rig.log.requests, ready_topics, lambda _: None)
            return [one async for one in verifier.findings({rig.projections.position})]

        async def put_many() -> None:
            for _ in range(10):
                await rig.put(queue, *["m"] * 20)
                await rig.listen(await rig.queue(f"another {now_ms()}"), "good")

        putting = asyncio.create_task(put_many())
        while not putting.done():
            assert [one for one in await findings() if isinstance(one, Finding)] == []
        await putting
        await until(lambda: len(rig.listeners.got) >= 400, what="all deliveries")
        (state,) = await findings()
        assert isinstance(state, State)
        assert state.sha256 == state_hash(rig.projections.directory.state)


async def test_a_reading_goes_on_behind_what_was_removed_meanwhile(kafka_settings: KafkaSettings, ready_topics: Topics):
    async with running(kafka_settings) as rig:
        queue = await rig.queue("orders")
        for number in range(60):
            await rig.put(queue, f"{number}")
        tuning = ReaderTuning(settle_ms=0)
        reader = LogReader(rig.log.requests, ready_topics, rig.projections.directory, tuning)
        ours = Selection(organization_id=rig.organization_id, types=frozenset({"message.put"}))
        whole, _ = await all_of(reader, ours, Range())
        first, page_token = await all_of(reader, ours, Range(limit=20))
        name = ready_topics.messages.name
        ends = await rig.log.requests.offsets(name, dict.fromkeys(range(ready_topics.messages.partitions), LATEST))
        begins = {partition: max(0, end - 2) for partition, end in ends.items()}
        for partition, begin in begins.items():
            await rig.log.requests.delete_before(name, partition, begin)
        rest, _ = await all_of(reader, ours, Range(page_token=page_token))
        kept = [entry for entry in whole[20:] if entry.offset >= begins[entry.partition]]
        assert len(kept) < 40
        assert places(first) == places(whole[:20])
        assert places(rest) == places(kept)


async def test_what_is_not_worth_it_is_left_out_but_for_its_place_and_time(
    kafka_settings: KafkaSettings, ready_topics: Topics
):
    name = ready_topics.messages.name
    for compression in ("none", "gzip"):
        producer = Producer({**librdkafka(kafka_settings), "compression.type": compression})
        for number in range(20):
            producer.produce(name, b"v" * 100, partition=0, timestamp=1_700_000_000_000 + number % 15)
        assert producer.flush(20) == 0
    requests = KafkaRequests(kafka_settings)
    await requests.start([name])
    try:
        plain = (await requests.read(name, 0, 0, bytes_max=1)).records  # the first batch, not compressed
        asked: list[bytes] = []
        left_out = await requests.read(name, 0, 0, bytes_max=1, worth=lambda raw: bool(asked.append(raw)))
        assert asked[0].count(b"v" * 100) == len(plain) == left_out.next_offset
        assert (left_out.records, left_out.left_out_ms) == ([], max(record.timestamp for record in plain))
        wanted = await requests.read(name, 0, 0, bytes_max=1, worth=lambda raw: b"v" in raw)
        assert [record.offset for record in wanted.records] == [record.offset for record in plain]
        packed = await requests.read(name, 0, 30, worth=lambda _: False)
        assert [record.offset for record in packed.records] == list(range(30, 40))
        assert packed.left_out_ms is None
    finally:
        await requests.stop()
