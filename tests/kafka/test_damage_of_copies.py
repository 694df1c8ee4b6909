"""One broker's copy of three is damaged: everything is read from the others, and verify names the copy (slow)."""

from __future__ import annotations

import asyncio
import contextlib
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import pytest
from aiokafka.errors import KafkaError

from broker.audit.reader import LogReader, Range
from broker.commands.changes import find_message
from broker.core.events import MessagePut, MessageUpdated
from broker.core.ids import parse_message_id
from broker.core.selection import Selection
from broker.kafka.admin import ensure_topics
from broker.kafka.embedded.process import answers
from broker.kafka.topics import by_name, topics
from broker.ports import LATEST, OffsetTooOld
from broker.settings import KafkaSettings
from tests.damage import Batch, batches, cut, flip, partition_folder
from tests.kafka.rig import Rig, running
from tests.kafka.test_cluster import NAMES, cluster, patient, start, three_brokers
from tests.kafka.test_damage_elsewhere import wrong
from tests.kafka.test_damage_of_files import with_many_segments
from tests.listeners import until
from tests.scenarios.running import everput

__all__ = ["cluster", "patient"]  # fixtures

COUNT = 8
TOPICS = ("messages", "changes", "deliveries", "claims", "control", "outstanding")


@pytest.fixture
def settings(cluster) -> KafkaSettings:
    bootstrap = ",".join(f"127.0.0.1:{broker.port}" for broker in cluster)
    return KafkaSettings(bootstrap=bootstrap, partitions=2, replication=3, min_insync=2, flush_each_batch=True)


def leaders_copies(rig: Rig, tmp_path: Path, name: str) -> list[tuple[int, list[Batch]]]:
    """By partition, the batches that the leader has of a topic."""
    topic = by_name(topics(rig.settings.kafka))[name]
    found = []
    for number in range(topic.partitions):
        leader = rig.log.requests.leader(topic.name, number)
        found.append((number, list(batches(partition_folder(tmp_path / NAMES[leader - 1], topic.name, number)))))
    return found


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_a_leader_s_damaged_copy_is_read_from_a_follower_by_everything_and_named(cluster, settings, tmp_path):
    table = topics(settings)
    await ensure_topics(settings, table)
    async with running(settings) as rig:
        queue = await rig.queue()
        first = await rig.listen(queue, "first")
        parks = await rig.listen(queue, "parks", max_attempts=1)
        rig.listeners.status["parks"] = 400
        worker = await rig.work()
        ids = list[str]()
        for number in range(COUNT):
            ids.extend(await rig.put(queue, f"message-{number}"))
            await rig.update(queue, ids[-1], f"updated-{number}")
            await until(lambda: set(rig.listeners.ids("first")) == set(ids), what="they are delivered")
            await asyncio.gather(*rig.log.producer.send_all(table.claims.name, number % 2, [(b"key", b"no claim")]))
        await until(lambda: len(worker.assignment.outstanding) == COUNT, what="they are parked")
        await rig.noted(worker)
        await rig.end(worker)
        rig.listeners.status.clear()
        ids.extend(await rig.put(queue, "for the tail", "and this one", "and that one"))
        assert await wrong(rig) == set()

        async def copied() -> bool:
            """Whether the followers give all that the leaders have."""
            requests = rig.log.requests
            for topic in table.all():
                for number in range(topic.partitions):
                    end = (await requests.offsets(topic.name, {number: -1}))[number]
                    for node in (1, 2, 3):
                        _, known = await requests._fetch(node, topic.name, number, max(0, end - 1), 1)
                        if known < end:
                            return False
            return True

        await until(copied, what="the followers have all", within_s=60)
        harmed = set[tuple[str, int]]()
        for name in TOPICS:
            for number, found in leaders_copies(rig, tmp_path, name):
                if found:
                    harmed.add((name, number))
                for batch in found:  # the leader has its files open and serves what is in them
                    flip(batch)

        late = await rig.listen(queue, "late", begin_at_ms=0)
        worker = await rig.work()  # its tail begins where the first listener stands, "late" catches up
        await until(lambda: set(rig.listeners.ids("first")) == set(ids), what="the tail brings what is new")
        await until(lambda: set(rig.listeners.ids("late")) == set(ids), what="the other one catches up")
        texts = [*(f"updated-{number}" for number in range(COUNT)), "for the tail", "and this one", "and that one"]
        expected = dict(zip(ids, texts, strict=True))
        assert {one.message_id: one.data for one in rig.listeners.taken("late")} == expected
        for one, text in expected.items():
            assert (await find_message(rig.log, queue, one)).data == text
        await rig.noted(worker)
        assert (await rig.state(ids[0], first)).state == "delivered"
        assert (await rig.state(ids[-1], late)).state == "delivered"
        states = [worker.assignment.outstanding.state(parse_message_id(one)[1], parks.id, one) for one in ids[:COUNT]]
        assert states == ["parked"] * COUNT
        await rig.listen(queue, "new")  # which `control` tells after what is damaged
        new = await rig.put(queue, "for all")
        await until(lambda: new[0] in rig.listeners.ids("new"), what="the new listener gets what comes now")
        reader = LogReader(rig.log.requests, table, rig.projections.directory)
        wanted = Selection(organization_id=rig.organization_id, types={"message.put", "message.updated"})
        async with aclosing(reader.read(wanted, Range())) as slices:
            events = [entry.event async for one in slices for entry in one.entries]
        assert {one.message_id for one in events if isinstance(one, MessagePut)} == {*ids, *new}
        assert {one.message_id for one in events if isinstance(one, MessageUpdated)} == set(ids[:COUNT])
        assert not rig.projections.directory.state.damage
        assert harmed <= {(topic.removeprefix("everput."), number) for topic, number in await wrong(rig)}
        exported = await asyncio.to_thread(
            everput,
            "export-all",
            str(tmp_path / "export"),
            "--kafka",
            settings.bootstrap,
            "--data-dir",
            str(tmp_path / "d"),
        )
        assert exported.returncode == 0, exported.stderr


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("harm", ["cut", "removed"])
async def test_files_that_one_broker_has_lost_cost_nothing(cluster, settings, tmp_path, harm):
    table = topics(settings)
    many = {name: with_many_segments(by_name(table)[name]) for name in TOPICS}
    await ensure_topics(settings, replace(table, **many))
    async with running(settings) as rig:
        queue = await rig.queue()
        await rig.listen(queue, "it")
        await rig.listen(queue, "parks", max_attempts=1)
        rig.listeners.down.add("it")
        rig.listeners.status["parks"] = 400
        worker = await rig.work()
        ids = list[str]()
        for number in range(COUNT):
            ids.extend(await rig.put(queue, f"message-{number}"))
            await rig.update(queue, ids[-1], f"updated-{number}")
            await asyncio.gather(*rig.log.producer.send_all(table.claims.name, number % 2, [(b"key", b"no claim")]))
            await until(lambda: len(worker.assignment.outstanding) == len(ids), what="it is parked")
        await rig.noted(worker)
        cluster[0].process.terminate()
        await cluster[0].process.wait()
        gone = set[tuple[str, int]]()
        for name in TOPICS:
            for number in range(by_name(table)[name].partitions):
                folder = partition_folder(tmp_path / NAMES[0], by_name(table)[name].name, number)
                found = list(batches(folder))
                if harm == "cut" and found:
                    cut(found[-1])
                    found[-1].path.with_suffix(".index").unlink()
                elif len({batch.path for batch in found}) > 2:
                    for path in folder.glob(f"{found[1].path.stem}.*"):
                        path.unlink()
                    gone.add((name, number))
        assert (harm == "cut") is not bool(gone)
        cluster[0] = await start(NAMES[0], tmp_path / NAMES[0], {NAMES[0]: (cluster[0].port, 0)})
        await until(lambda: answers(cluster[0].port), what="it is back")

        async def copied() -> bool:
            """Whether it has all again that the leaders have."""
            requests, name = rig.log.requests, table.messages.name
            ends = await requests.offsets(name, {0: LATEST, 1: LATEST})
            with contextlib.suppress(KafkaError, OSError, OffsetTooOld):
                known = [
                    (await requests._fetch(1, name, number, max(0, end - 1), 1))[1] for number, end in ends.items()
                ]
                return known == list(ends.values())
            return False

        await until(copied, what="it follows the leaders")
        rig.listeners.down.clear()
        await until(lambda: set(rig.listeners.ids("it")) == set(ids), what="all are delivered")
        texts = {f"updated-{number}" for number in range(COUNT)}
        assert {one.data for one in rig.listeners.taken("it")} == texts
        assert not rig.projections.directory.state.damage
        named = {(topic.removeprefix("everput."), number) for topic, number in await wrong(rig)}
        assert gone <= named if gone else not named


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_what_is_parked_is_known_though_the_leader_has_lost_its_records(tmp_path):
    soon = {"leader.imbalance.check.interval.seconds": "1"}  # a broker that is back leads again
    async with three_brokers(tmp_path, **soon) as brokers:
        bootstrap = ",".join(f"127.0.0.1:{broker.port}" for broker in brokers)
        settings = KafkaSettings(bootstrap=bootstrap, partitions=2, replication=3, min_insync=2, flush_each_batch=True)
        table = topics(settings)
        await ensure_topics(settings, replace(table, outstanding=with_many_segments(table.outstanding)))
        async with running(settings) as rig:
            queue = await rig.queue()
            parks = await rig.listen(queue, "parks", max_attempts=1)
            rig.listeners.status["parks"] = 400
            worker = await rig.work()
            ids = list[str]()
            for number in range(COUNT):
                ids.extend(await rig.put(queue, f"message-{number}"))
                await until(lambda: len(worker.assignment.outstanding) == len(ids), what="it is parked")
            await rig.noted(worker)
            name = table.outstanding.name
            leader = rig.log.requests.leader(name, 0)
            at = NAMES[leader - 1]
            brokers[leader - 1].process.terminate()
            await brokers[leader - 1].process.wait()
            folder = partition_folder(tmp_path / at, name, 0)
            middle = list(batches(folder))[1]
            for path in folder.glob(f"{middle.path.stem}.*"):
                path.unlink()
            brokers[leader - 1] = await start(at, tmp_path / at, {at: (brokers[leader - 1].port, 0)})

            def leads() -> bool:
                rig.log.requests.look_again()
                return rig.log.requests.leader(name, 0) == leader

            await until(leads, what="it leads again", within_s=120)
            await rig.noted(worker)
            assert ("outstanding", 0) in await wrong(rig)
            await rig.end(worker)
            worker = await rig.work()
            states = [worker.assignment.outstanding.state(parse_message_id(one)[1], parks.id, one) for one in ids]
            assert states == ["parked"] * COUNT
            rig.listeners.status.clear()
            rig.listeners.got.clear()
            await rig.commands.redrive_listener(rig.context, queue.id, parks.id, [])
            await until(lambda: set(rig.listeners.ids("parks")) == set(ids), what="all are delivered")
