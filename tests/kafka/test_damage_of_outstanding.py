"""Records of `outstanding` that a file has lost, on a real Kafka: no delivery is forgotten, and verify names it."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial

import pytest

from broker.core.entities import Listener
from broker.core.ids import parse_message_id, partition_of
from broker.damage import DamageReports
from broker.delivery.worker import Worker
from broker.errors import LogUnavailable
from broker.kafka.admin import ensure_topics
from broker.kafka.outstanding import KafkaOutstanding
from broker.kafka.topics import topics
from tests.damage import batches, cut, flip, partition_folder, with_text
from tests.kafka.rig import Rig, running
from tests.kafka.test_damage import kafka, parked, settings
from tests.kafka.test_damage_elsewhere import wrong
from tests.kafka.test_damage_of_files import with_many_segments
from tests.listeners import until

__all__ = ["kafka", "settings"]  # fixtures

COUNT = 12


async def noted(rig: Rig, worker: Worker) -> bool:
    """Whether a checkpoint was made. A producer whose last batch is gone must begin anew, and says so first."""
    with contextlib.suppress(LogUnavailable):
        await rig.noted(worker)
        return True
    return False


@pytest.mark.parametrize("harm", [pytest.param("cut", marks=pytest.mark.slow), "removed", "flipped"])
async def test_what_was_parked_or_waited_is_known_though_a_file_has_lost_its_records(kafka, settings, harm):
    table = topics(settings)
    await ensure_topics(settings, replace(table, outstanding=with_many_segments(table.outstanding)))
    async with running(settings) as rig:
        queue = await rig.queue()
        parks = await rig.listen(queue, "parks", max_attempts=1)
        waits = await rig.listen(queue, "waits", retry_first_ms=3_600_000, retry_max_s=7_200)
        rig.listeners.status |= {"parks": 400, "waits": 400}
        worker = await rig.work()
        ids = list[str]()

        def is_known(of: Worker, message_ids: list[str]) -> bool:
            """Whether the worker has the deliveries of these messages as they were set aside."""
            states = of.assignment.outstanding.state
            return all(
                (states(place, parks.id, one), states(place, waits.id, one)) == ("parked", "retrying")
                for one in message_ids
                for place in [(parse_message_id(one) or (0, 0))[1]]
            )

        for number in range(COUNT):  # one by one, so that each partition has several batches
            ids.extend(await rig.put(queue, f"text-{number}"))
            await until(partial(is_known, worker, ids), what="it is set aside")
        await rig.noted(worker)
        await rig.end(worker)
        assert await wrong(rig) == set()
        await kafka.running_process.stop()
        for number in range(2):
            folder = partition_folder(kafka.data_dir, table.outstanding.name, number)
            found = list(batches(folder))
            assert len({batch.path for batch in found}) > 2
            if harm == "cut":
                cut(found[-1])
                for index in folder.glob("*.index"):  # else Kafka is not started, if it names the batch
                    index.unlink()
            elif harm == "flipped":  # one between others
                flip(found[len(found) // 2])
            else:
                for path in folder.glob(f"{found[1].path.stem}.*"):
                    path.unlink()
        await kafka.restart()
        assert {("outstanding", 0), ("outstanding", 1)} <= await wrong(rig)

        directory = rig.projections.directory
        reports = DamageReports(rig.log.requests, rig.log.control, directory, table)
        async with reports.running():
            rig.listeners.got.clear()
            again = await rig.work()
            assert is_known(again, ids)
            await until(
                lambda: (
                    {(one.topic, one.partition) for one in directory.state.damage}
                    == {("outstanding", 0), ("outstanding", 1)}
                ),
                what="it is told",
            )
            await until(partial(noted, rig, again), what="what the worker knows is noted")
            await reports.look_again(list(directory.state.damage))
            assert len(list(directory.state.damage)) == 2, "the records are still missing"
            await rig.end(again)
            again = await rig.work()
            assert is_known(again, ids), "the next owner finds them, too"
            rig.listeners.status.clear()
            for listener in (parks, waits):
                await rig.commands.redrive_listener(rig.context, queue.id, listener.id, [])
            for path in ("parks", "waits"):
                await until(lambda path=path: set(rig.listeners.ids(path)) == set(ids), what="all are delivered")
                assert {one.data for one in rig.listeners.taken(path)} == {f"text-{n}" for n in range(COUNT)}
                assert set(rig.listeners.ids(path).values()) == {1}
            await rig.noted(again)
            if harm == "flipped":  # an altered batch stays altered
                return

            async def mended() -> bool:
                await reports.look_again(list(directory.state.damage))
                return not directory.state.damage

            await until(mended, what="nothing is missing any more")


async def test_a_delivery_is_retried_once_all_is_mended_and_its_message_before_the_results(kafka, settings):
    table = topics(settings)
    await ensure_topics(settings, table)
    async with running(settings) as rig:
        queue = await rig.queue()
        listener = await rig.listen(queue, "it", max_attempts=1)
        rig.listeners.status["it"] = 400
        worker = await rig.work()
        ids = list[str]()
        for number in (0, 1):  # one by one and with one key, so that each has batches of its own in one partition
            ids += await rig.put(queue, f"text-{number}", key="k")
            await until(lambda before=number: len(worker.assignment.outstanding) > before, what="it is parked")
        rig.listeners.status.clear()
        directory = rig.projections.directory
        reports = DamageReports(rig.log.requests, rig.log.control, directory, table)
        async with reports.running():
            altered = [
                with_text(kafka.data_dir, topic.name, b"text-0")[1] for topic in (table.messages, table.outstanding)
            ]
            for batch in altered:
                flip(batch)
            await rig.commands.redrive_listener(rig.context, queue.id, listener.id, ids[:1])

            async def parked_again() -> bool:
                await noted(rig, worker)
                return "damaged" in {row.error for row in await parked(rig, listener)}

            await until(parked_again, what="it is parked again, because nothing has its message")
            await until(
                lambda: {"messages", "outstanding"} <= set(directory.state.damage.offsets()), what="the damage is known"
            )
            for batch in altered:
                flip(batch)

            async def mended() -> bool:
                await noted(rig, worker)  # what the worker has in `outstanding` has a sum that a checkpoint writes
                await reports.look_again(list(directory.state.damage))
                return not directory.state.damage

            await until(mended, what="nothing is damaged any more")
            await until(lambda: rig.listeners.ids("it") == {ids[0]: 1}, what="it is retried")
            assert {one.data for one in rig.listeners.taken("it")} == {"text-0"}


async def test_a_delivery_whose_record_is_damaged_is_not_shown_as_delivered(kafka, settings):
    table = topics(settings)
    await ensure_topics(settings, table)
    at = datetime.now(UTC) + timedelta(hours=1)
    async with running(settings) as rig:
        queue = await rig.queue()
        listener = await rig.listen(queue, "it")
        worker = await rig.work()

        async def shown(message_id: str) -> str:
            return (await rig.state(message_id, listener, deliver_at_ms=int(at.timestamp() * 1000))).state

        ids = list[str]()
        while len(ids) < 3:  # each in a batch of its own, all in one partition
            (one,) = await rig.put(queue, "later", deliver_at=at)
            await until(lambda one=one: stored(rig, listener, one), what="it is in outstanding")
            if partition_of(one) == 0:
                ids.append(one)
        await rig.noted(worker)
        await rig.end(worker)
        assert {await shown(one) for one in ids} == {"pending"}
        await kafka.running_process.stop()
        flip(with_text(kafka.data_dir, table.outstanding.name, ids[1].encode())[1])
        await kafka.restart()
        # The damaged record could be a newer one of the first message, too.
        assert [await shown(one) for one in ids] == ["unknown", "unknown", "pending"]


async def stored(rig: Rig, listener: Listener, message_id: str) -> bool:
    outstanding = KafkaOutstanding(rig.settings.kafka, rig.log.requests, rig.log.read_slots)
    return bool((await outstanding.kept(partition_of(message_id) or 0, message_id, [listener], reads_max=10))[0])
