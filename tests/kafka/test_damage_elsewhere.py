"""Damage beside the messages on a real Kafka: in changes, outcomes and claims, and what verify says."""

from __future__ import annotations

import asyncio
import re
from contextlib import aclosing
from dataclasses import replace

import httpx
import pytest

from broker.audit.reader import LogReader, Range
from broker.audit.verify import Verifier
from broker.commands.changes import find_message
from broker.commands.organizations import create_key
from broker.core.checks import Finding
from broker.core.damage import DamagedRange
from broker.core.events import MessagePut, MessageUpdated
from broker.core.ids import parse_message_id
from broker.core.selection import Selection
from broker.damage import DamageReports, mended
from broker.errors import ConfigurationError, LogDamaged, NotFound
from broker.kafka.admin import ensure_topics
from broker.kafka.embedded.indexes import wrong_indexes
from broker.kafka.embedded.kafka import EmbeddedKafka
from broker.kafka.log import KafkaLog
from broker.kafka.topics import by_name, topics
from broker.sealing import new_sealing_key
from tests.apps import kafka_app_of
from tests.damage import Batch, antedate, batches, cut, flip, flip_within, partition_folder, with_text
from tests.kafka.rig import Rig, running
from tests.kafka.test_damage import PARTITION, SIZE, kafka, parked, settings, written
from tests.listeners import until

__all__ = ["kafka", "settings"]  # fixtures


def verified(rig: Rig) -> Verifier:
    kafka = rig.settings.kafka
    return Verifier(kafka, rig.log.requests, topics(kafka), lambda _: None)


def index_lies(kafka: EmbeddedKafka) -> set[tuple[str, int]]:
    """The partitions whose index files `everput verify` names."""
    return {
        (name, one.partition)
        for name, topic in by_name(topics(kafka.access.settings())).items()
        for one in wrong_indexes(kafka.data_dir / "kafka", topic.name, compacted=name == "outstanding")
    }


async def wrong(rig: Rig) -> set[tuple[str, int | None]]:
    """The topics and partitions that are not as they should be."""
    return {
        (one.topic, one.partition) async for one in verified(rig).findings() if isinstance(one, Finding) and one.wrong
    }


async def shown(rig: Rig, path: str) -> httpx.Response:
    """Ask the API as the owner of the rig's queues, and return its answer."""
    view = rig.projections.directory
    _, secret = await create_key(rig.log.control, view, organization_id=rig.context.organization_id, name="mine")
    settings = replace(rig.settings, sealing_key=new_sealing_key())
    app = httpx.ASGITransport(kafka_app_of(settings, log=rig.log, view=view))
    async with httpx.AsyncClient(transport=app, base_url="http://api.example.com") as client:
        return await client.get(path, headers={"x-api-key": secret})


async def test_a_change_that_is_damaged_is_not_honoured_and_answered_again_once_it_is_given_up(kafka, settings, caplog):
    table = topics(settings)
    await ensure_topics(settings, table)
    async with running(settings) as rig:
        queue = await rig.queue()
        ids = await rig.put(queue, *(f"message-{number}" for number in range(8)))
        await rig.update(queue, ids[0], "updated-0")
        await rig.update(queue, ids[1], "updated-1")
        await rig.delete(queue, ids[2])
        await rig.listen(queue, "it", begin_at_ms=0)
        await kafka.running_process.stop()
        partition, batch = with_text(kafka.data_dir, table.changes.name, b"updated-0")
        flip_within(batch, b"updated-0")
        await kafka.restart()
        reports = DamageReports(rig.log.requests, rig.log.control, rig.projections.directory, table)
        reports.start()
        try:
            with pytest.raises(LogDamaged):
                await find_message(rig.log, queue, ids[0])
            answer = await shown(rig, f"/v1/queues/{queue.id}/messages/{ids[0]}")
            assert (answer.status_code, answer.json()["type"]) == (503, "/problems/log-damaged")
            said = answer.json()["detail"]  # all organizations share the partitions, so none may learn the offsets
            assert "a part of the log that this request needs is damaged" in said.lower()
            assert not re.search(r"\d|changes", said)
            assert f"{table.changes.name}/{partition} can't be read from offset {batch.first} to" in caplog.text
            await rig.work()
            await until(lambda: set(rig.listeners.ids("it")) >= set(ids) - {ids[2]}, what="they are delivered")
            data = {one.message_id: one.data for one in rig.listeners.taken("it")}
            assert data == {
                one: "updated-1" if one == ids[1] else f"message-{number}"
                for number, one in enumerate(ids)
                if one != ids[2]
            }
            assert await wrong(rig) == {("changes", partition)}
            directory = rig.projections.directory
            await until(lambda: bool(directory.state.damage), what="it is told")
            (one,) = directory.state.damage
            assert one == DamagedRange("changes", partition, batch.first, batch.last)
            await rig.log.control.append(mended(one, given_up=True, actor="shell"))
            await until(lambda: not directory.state.damage, what="it is given up")
            assert (await find_message(rig.log, queue, ids[0])).data == "message-0"
            assert (await find_message(rig.log, queue, ids[1])).data == "updated-1"
            with pytest.raises(NotFound):
                await find_message(rig.log, queue, ids[2])
            assert (await rig.update(queue, ids[0], "again")).keys()
            assert (await find_message(rig.log, queue, ids[0])).data == "again"
        finally:
            await reports.stop()


async def test_what_waits_for_a_damaged_change_is_delivered_with_it_as_soon_as_it_can_be_read(kafka, settings):
    table = topics(settings)
    await ensure_topics(settings, table)
    async with running(settings) as rig:
        queue = await rig.queue()
        listener = await rig.listen(queue, "it")
        worker = await rig.work()
        directory = rig.projections.directory
        reports = DamageReports(rig.log.requests, rig.log.control, directory, table)
        reports.start()
        rig.listeners.down.add("it")
        ids = await rig.put(queue, *(f"message-{number}" for number in range(4)))
        await rig.known_down(listener)
        await rig.update(queue, ids[0], "updated-0")
        await rig.delete(queue, ids[1])

        def delivered() -> dict[str, str]:
            return {one.message_id: one.data for one in rig.listeners.taken("it")}

        async def is_parked() -> bool:
            return [(row.message_id, row.error) for row in await parked(rig, listener)] == [(ids[0], "damaged")]

        async def mend(*batches: Batch) -> None:
            await until(lambda: directory.state.damage.offsets() == {"changes": len(batches)}, what="each is told")
            for batch in batches:
                flip(batch)
            await reports.look_again(list(directory.state.damage))
            await until(lambda: not directory.state.damage, what="it is mended")

        try:
            _, update = with_text(kafka.data_dir, table.changes.name, b"updated-0")
            flip(update)  # Kafka serves what is in its files
            rig.listeners.down.clear()
            await until(
                lambda: delivered() == {one: f"message-{n + 2}" for n, one in enumerate(ids[2:])}, what="others"
            )
            await until(is_parked, what="the one that was updated is parked")
            await mend(update)
            await until(lambda: delivered().get(ids[0]) == "updated-0", what="it is delivered as it was updated")

            rig.listeners.down.add("it")
            ids += await rig.put(queue, "message-4", "message-5")
            await rig.known_down(listener)
            await rig.update(queue, ids[4], "updated-4")
            await rig.delete(queue, ids[5])
            await rig.end(worker)
            await kafka.running_process.stop()
            damaged = [with_text(kafka.data_dir, table.changes.name, one)[1] for one in (b"updated-4", ids[5].encode())]
            for batch in damaged:
                flip(batch)
            await kafka.restart()
            worker = await rig.work()  # which reads the changes that count, and not these
            await rig.known_down(listener)
            await mend(*damaged)
            honored = worker.assignment.changes.known.values
            await until(lambda: [one.deleted for one in honored()].count(True) == 1, what="it knows them")
            rig.listeners.down.clear()
            await until(lambda: delivered().get(ids[4]) == "updated-4", what="it is delivered as it was updated")
            assert delivered().keys() == set(ids) - {ids[1], ids[5]}
        finally:
            await reports.stop()


async def test_damage_in_outcomes_and_claims_repeats_nothing_and_verify_names_it(kafka, settings):
    table = topics(settings)
    await ensure_topics(settings, table)
    async with running(settings) as rig:
        queue = await rig.queue()
        await rig.listen(queue, "it")
        worker = await rig.work()
        ids = await rig.put(queue, *(f"message-{number}" for number in range(8)))
        await until(lambda: set(rig.listeners.ids("it")) == set(ids), what="they are delivered")
        await rig.noted(worker)
        await rig.end(worker)
        for number in range(2):  # the claims need a batch to damage
            await asyncio.gather(*rig.log.producer.send_all(table.claims.name, number, [(b"key", b"not a claim")]))
        await kafka.running_process.stop()
        flipped = set()
        for name in ("deliveries", "claims"):
            for number in range(2):
                for batch in batches(partition_folder(kafka.data_dir, by_name(table)[name].name, number)):
                    flip(batch)
                    flipped.add((name, number))
        assert len(flipped) == 4
        await kafka.restart()
        assert flipped <= await wrong(rig)
        await rig.work()
        ids += await rig.put(queue, "after that")
        await until(lambda: set(rig.listeners.ids("it")) == set(ids), what="what comes after that is delivered, too")
        assert set(rig.listeners.ids("it").values()) == {1}


async def test_verify_names_a_partition_whose_last_batch_was_cut_off(kafka, settings):
    table = topics(settings)
    await ensure_topics(settings, table)
    async with running(settings) as rig:
        queue = await rig.queue()
        await rig.listen(queue, "it")
        worker = await rig.work()
        ids = await rig.put(queue, *(f"message-{number}" for number in range(20)))
        await until(lambda: set(rig.listeners.ids("it")) == set(ids), what="they are delivered")
        await rig.noted(worker)
        await rig.end(worker)
        assert await wrong(rig) == set()
        await kafka.running_process.stop()
        folder = partition_folder(kafka.data_dir, table.messages.name, PARTITION)
        cut(list(batches(folder))[-1])
        for index in folder.glob("*.index"):  # else Kafka is not started, if it names the batch
            index.unlink()
        await kafka.restart()
        assert ("messages", PARTITION) in await wrong(rig)


async def test_an_index_of_times_that_lies_hides_no_message(kafka, settings):
    """Kafka trusts its index files after an orderly stop; they have no checksum."""
    table = topics(settings)
    await ensure_topics(settings, table)
    async with running(settings) as rig:
        queue = await rig.queue()
        data = [f"message-{number}" + "." * SIZE for number in range(40)]
        ids = await rig.put(queue, *data)
        await kafka.running_process.stop()
        entries = 0
        for number in range(2):
            for path in partition_folder(kafka.data_dir, table.messages.name, number).glob("*.timeindex"):
                raw = bytearray(path.read_bytes())
                for at in range(0, len(raw) - 11, 12):  # a time in eight bytes, an offset in four
                    if any(raw[at : at + 12]):
                        raw[at + 11] ^= 1 << 3
                        entries += 1
                path.write_bytes(raw)
        assert entries > 4
        await kafka.restart()
        for one, text in zip(ids, data, strict=True):
            assert (await find_message(rig.log, queue, one)).data == text


async def test_an_index_of_times_that_lies_hides_no_change_no_outcome_and_no_event(kafka, settings):
    table = topics(settings)
    await ensure_topics(settings, table)
    async with running(settings) as rig:
        queue = await rig.queue()
        listener = await rig.listen(queue, "it")
        worker = await rig.work()
        ids = await rig.put(queue, *(f"message-{number}" for number in range(8)))
        await until(lambda: set(rig.listeners.ids("it")) == set(ids), what="they are delivered")
        await rig.noted(worker)
        for one in ids:
            await rig.update(queue, one, f"update of {one}")
        await rig.end(worker)
        assert index_lies(kafka) == set()
        begin_ms = parse_message_id(ids[0])[0]
        await kafka.running_process.stop()
        lying = set()
        for name in ("messages", "changes", "deliveries"):
            for number in range(2):
                folder = partition_folder(kafka.data_dir, by_name(table)[name].name, number)
                if antedate(folder, 3_600_000):  # an hour: Kafka begins after all that is younger
                    lying.add((name, number))
        assert {name for name, _ in lying} == {"messages", "changes", "deliveries"}
        await kafka.restart()
        assert index_lies(kafka) == lying
        for one in ids:
            assert (await find_message(rig.log, queue, one)).data == f"update of {one}"
            state = await rig.state(one, listener)
            assert (state.state, len(state.attempts)) == ("delivered", 1)
        reader = LogReader(rig.log.requests, table, rig.projections.directory)
        wanted = Selection(organization_id=rig.organization_id, types={"message.put", "message.updated"})
        async with aclosing(reader.read(wanted, Range(begin_ms=begin_ms))) as slices:
            events = [entry.event async for one in slices for entry in one.entries]
        assert {one.message_id for one in events if isinstance(one, MessagePut)} == set(ids)
        assert {one.message_id for one in events if isinstance(one, MessageUpdated)} == set(ids)


async def test_verify_names_every_entry_of_an_offset_index_that_lies(kafka, settings):
    table = topics(settings)
    await ensure_topics(settings, table)
    log = KafkaLog(settings)
    await log.start()
    await written(log, table.messages, 20, size=SIZE)
    await log.stop()
    assert index_lies(kafka) == set()
    (index,) = partition_folder(kafka.data_dir, table.messages.name, PARTITION).glob("*.index")
    await kafka.running_process.stop()
    whole = index.read_bytes()
    for at in (3, 7):  # of the first entry the offset, and the place of its batch
        index.write_bytes(bytes(byte ^ 4 * (number == at) for number, byte in enumerate(whole)))
        await kafka.restart()
        assert index_lies(kafka) == {("messages", PARTITION)}
        await kafka.running_process.stop()


async def test_kafka_is_not_started_with_an_offset_index_that_lies_and_makes_one_that_is_gone(kafka, settings):
    table = topics(settings)
    await ensure_topics(settings, table)
    async with running(settings) as rig:
        queue = await rig.queue()
        data = [f"message-{number}" + "." * SIZE for number in range(40)]
        ids = await rig.put(queue, *data)
        await kafka.running_process.stop()
        (index,) = partition_folder(kafka.data_dir, table.messages.name, PARTITION).glob("*.index")
        raw = bytearray(index.read_bytes())
        raw[-1] ^= 1  # the place of the last entry's batch: Kafka would begin at offset 0 again
        index.write_bytes(raw)
        with pytest.raises(ConfigurationError, match=rf"rm .*{index.name}"):
            await kafka.restart()
        index.unlink()
        await kafka.restart()
        for one, text in zip(ids, data, strict=True):
            assert (await find_message(rig.log, queue, one)).data == text
