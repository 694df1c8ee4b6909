"""Damage beside the messages on a real Kafka: in changes, outcomes and claims, and what verify says."""

from __future__ import annotations

import asyncio

import pytest

from broker.audit.verify import Verifier
from broker.commands.changes import find_message
from broker.core.checks import Finding
from broker.core.damage import DamagedRange
from broker.damage import DamageReports, mended
from broker.errors import ConfigurationError, LogDamaged, NotFound
from broker.kafka.admin import ensure_topics
from broker.kafka.topics import by_name, topics
from tests.damage import batches, cut, flip, flip_within, partition_folder, with_text
from tests.kafka.rig import Rig, running
from tests.kafka.test_damage import PARTITION, SIZE, kafka, settings
from tests.listeners import until

__all__ = ["kafka", "settings"]  # fixtures


def verified(rig: Rig) -> Verifier:
    kafka = rig.settings.kafka
    return Verifier(kafka, rig.log.requests, topics(kafka), lambda _: None)


async def wrong(rig: Rig) -> set[tuple[str, int | None]]:
    """The topics and partitions that are not as they should be."""
    return {
        (one.topic, one.partition) async for one in verified(rig).findings() if isinstance(one, Finding) and one.wrong
    }


async def test_a_change_that_is_damaged_is_not_honoured_and_answered_again_once_it_is_given_up(kafka, settings):
    table = topics(settings)
    await ensure_topics(settings, table)
    async with running(settings) as rig:
        queue = await rig.queue()
        ids = await rig.put(queue, *(f"message-{number}" for number in range(8)))
        await rig.update(queue, ids[0], "updated-0")
        await rig.update(queue, ids[1], "updated-1")
        await rig.delete(queue, ids[2])
        await rig.listen(queue, "it", begin_at_ms=0)
        await kafka._running.stop()
        partition, batch = with_text(kafka.data_dir, table.changes.name, b"updated-0")
        flip_within(batch, b"updated-0")
        await kafka.restart()
        reports = DamageReports(rig.log.requests, rig.log.control, rig.projections.directory, table)
        reports.start()
        try:
            with pytest.raises(LogDamaged):
                await find_message(rig.log, queue, ids[0])
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
            await asyncio.gather(*rig.log._producer.send_all(table.claims.name, number, [(b"key", b"not a claim")]))
        await kafka._running.stop()
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
        await kafka._running.stop()
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
        await kafka._running.stop()
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


async def test_kafka_is_not_started_with_an_offset_index_that_lies_and_makes_one_that_is_gone(kafka, settings):
    table = topics(settings)
    await ensure_topics(settings, table)
    async with running(settings) as rig:
        queue = await rig.queue()
        data = [f"message-{number}" + "." * SIZE for number in range(40)]
        ids = await rig.put(queue, *data)
        await kafka._running.stop()
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
