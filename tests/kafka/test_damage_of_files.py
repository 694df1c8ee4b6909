"""The last batch of a file cut off, or a segment gone, in the topics beside the messages, on a real Kafka."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace

import pytest

from broker.errors import InDoubt
from broker.kafka.admin import ensure_topics
from broker.kafka.topics import Topic, by_name, topics
from tests.damage import batches, cut, partition_folder
from tests.kafka.rig import running
from tests.kafka.test_damage import kafka, settings
from tests.kafka.test_damage_elsewhere import wrong
from tests.listeners import until

__all__ = ["kafka", "settings"]  # fixtures

DAMAGED = ("messages", "changes", "deliveries", pytest.param("claims", marks=pytest.mark.slow))
COUNT = 12


def with_many_segments(topic: Topic) -> Topic:
    """Have Kafka begin a new file with each batch."""
    return replace(topic, config={**topic.config, "segment.ms": "1"})


@pytest.mark.parametrize("harm", [pytest.param("cut", marks=pytest.mark.slow), "removed"])
@pytest.mark.parametrize("name", DAMAGED)
async def test_all_that_is_there_is_delivered_and_nothing_else_and_verify_names_what_is_gone(
    kafka, settings, name, harm
):
    table = topics(settings)
    harmed = by_name(table)[name]
    many = with_many_segments(harmed) if harm == "removed" else harmed
    await ensure_topics(settings, replace(table, **{name: many}))
    async with running(settings) as rig:
        queue = await rig.queue()
        await rig.listen(queue, "it")
        await rig.listen(queue, "away")
        rig.listeners.down.add("away")
        worker = await rig.work()
        ids = list[str]()
        for number in range(COUNT):  # so that each topic has several batches in both partitions
            ids.extend(await rig.put(queue, f"message-{number}"))
            await until(lambda: set(rig.listeners.ids("it")) == set(ids), what="it is delivered")
            await rig.noted(worker)
            await rig.update(queue, ids[-1], f"updated-{number}")
            await asyncio.gather(*rig.log.producer.send_all(table.claims.name, number % 2, [(b"key", b"no claim")]))
        await rig.end(worker)
        assert await wrong(rig) == set()
        await kafka.running_process.stop()
        gone = set[tuple[str, int]]()
        for number in range(2):
            folder = partition_folder(kafka.data_dir, harmed.name, number)
            if harm == "cut":
                cut(list(batches(folder))[-1])
                for index in folder.glob("*.index"):  # else Kafka is not started, if it names the batch
                    index.unlink()
            else:
                middle = sorted(path.stem for path in folder.glob("*.log") if path.stat().st_size)[1]
                for path in folder.glob(f"{middle}.*"):
                    path.unlink()
            gone.add((name, number))
        await kafka.restart()

        rig.listeners.down.clear()
        await rig.work()
        after = list[str]()

        async def put() -> bool:
            """Whether it was stored. A producer whose last batch is gone must begin anew, and says so first."""
            with contextlib.suppress(InDoubt):
                after.extend(await rig.put(queue, f"after-{len(after)}"))
            return len(after) == 6

        await until(put, what="the messages after that are stored")
        lost = COUNT if name == "messages" else 0  # at the most: those that were in the two batches that are gone

        def delivered(path: str) -> dict[str, str]:
            return {one.message_id: one.data for one in rig.listeners.taken(path)}

        await until(lambda: set(after) <= set(delivered("it")), what="what comes after that is delivered")
        await until(lambda: set(after) <= set(delivered("away")), what="also to the one that was away")
        await until(lambda: len(set(ids) - set(delivered("away"))) <= lost, what="it gets all that there is")
        assert set(delivered("it")) == {*ids, *after}
        assert set(rig.listeners.ids("it").values()) == {1}, "nothing is repeated"
        for number, one in enumerate(ids):
            allowed = {f"updated-{number}"} | ({f"message-{number}"} if name == "changes" else set())
            assert delivered("away").get(one, f"updated-{number}") in allowed
        assert gone <= await wrong(rig)
