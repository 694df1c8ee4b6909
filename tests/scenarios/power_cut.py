"""Power cuts: what was acknowledged is still there when all that Kafka never synced is taken away.

For: test_soak.py and test_faults.py. Not for: faults after which the machine runs on (soak.py)."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import struct
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from broker.core.events import MessageUpdated, QueueCreated
from broker.kafka import safety
from broker.kafka.admin import ensure_topics
from broker.kafka.embedded import process as kafka_process
from broker.kafka.embedded.kafka import EmbeddedKafka
from broker.kafka.log import KafkaLog
from broker.kafka.scan import scan
from broker.kafka.topics import Topics, by_name, topics
from broker.settings import KafkaSettings
from tests.kafka_clients import sasl_variables
from tests.listeners import until
from tests.processes import stop_still
from tests.scenarios.soak import REJOIN_S, Server, load

WRITES = 100  # to each topic
KEPT = "not-synced.control"  # without records of `control`, Kafka would not be started (test_mend_control.py)
NOTED_EVERY_MS = 200
OFTEN = f"log.flush.offset.checkpoint.interval.ms={NOTED_EVERY_MS}\nlog.initial.task.delay.ms={NOTED_EVERY_MS}\n"


async def power_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was never synced may go, and all that was acknowledged is still there, in every topic.

    Kafka itself notes up to where each partition is synced: what is behind that is cut off, as a power cut may. That
    the cut takes something is seen of the same topics once more, where batches are not synced.
    """
    monkeypatch.setattr(kafka_process, "PROPERTIES", kafka_process.PROPERTIES + OFTEN)
    monkeypatch.setattr(safety, "ACKNOWLEDGED_MIN", 1)  # a start refuses what is not synced
    kafka = EmbeddedKafka(tmp_path, progress=False)
    await kafka.start()
    try:
        common = kafka.access.settings(partitions=4)
        synced = replace(common, flush_each_batch=True)
        not_synced = replace(common, topic_prefix="not-synced.", flush_each_batch=False)
        for settings in (synced, not_synced):
            await ensure_topics(settings, topics(settings))
            log = KafkaLog(settings)
            await log.start()
            await write(log)
            await log.stop()
        await lose_what_is_not_synced(kafka, tmp_path, topics(synced), topics(not_synced), keep=KEPT)
        assert await kept(synced) == dict.fromkeys(by_name(topics(synced)).keys() - {"claims"}, WRITES)
        left = await kept(not_synced)
        del left["control"]
        assert max(left.values()) < WRITES, f"the cut takes nothing: this test proves nothing of it: {left}"
    finally:
        await kafka.stop()


async def write(log: KafkaLog) -> None:
    """To every topic so many records, one after the other in each."""

    async def one_by_one(append: Callable[[int], Awaitable[object]]) -> None:
        for number in range(WRITES):
            await append(number)

    text = "x" * 1000
    common = {"at_ms": 0, "organization_id": "o"}
    changed = {"message_id": "m", "queue_id": "q", "partition": 0}
    await asyncio.gather(
        one_by_one(lambda _: log.messages.append(lambda _: (b"k", text.encode(), b"q"))),
        one_by_one(lambda number: log.control.append(QueueCreated(queue_id=f"{number}", name=text, **common))),
        one_by_one(lambda n: log.changes.append(MessageUpdated(offset=n, data=text, **changed, **common))),
        *(
            one_by_one(lambda _, topic=topic: topic.append_one(0, b"k", text.encode()))
            for topic in (log.outstanding, log.deliveries)
        ),
    )


async def kept(settings: KafkaSettings) -> dict[str, int]:
    """By topic, how many of the written records; not of claims, which are written as messages are. The start fills lost
    offsets with empty records, if Kafka had noted how far they went: these are not counted."""
    log = KafkaLog(settings)
    await log.start()
    found = {}
    for name, topic in by_name(topics(settings)).items():
        if name != "claims":
            found[name] = 0
            for partition in range(topic.partitions):
                async for fetched in scan(log.requests, topic.name, partition, 0):
                    found[name] += sum(bool(record.value) for record in fetched.records)
    await log.stop()
    return found


async def lose_what_is_not_synced(kafka: EmbeddedKafka, directory: Path, *tables: Topics, keep: str = "") -> None:
    """Kafka is killed as if the power was cut, and started again. Nothing writes any more. keep: a topic that loses
    nothing."""
    synced = directory / "kafka" / "recovery-point-offset-checkpoint"
    answered = time.time_ns()
    noted = 2 * NOTED_EVERY_MS * 1_000_000  # it may have begun to write before the last answer
    await until(lambda: synced.stat().st_mtime_ns > answered + noted, what="Kafka notes what is synced")
    kafka.kill()
    await kafka.wait()
    for topic in (topic for table in tables for topic in table.all() if topic.name != keep):
        cut_back(directory / "kafka", topic.name, synced.read_text())
    await kafka.restart()


async def power_cut_under_load(tmp_path: Path, dice: random.Random, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was put over REST and answered 200 arrives after a power cut."""
    monkeypatch.setattr(kafka_process, "PROPERTIES", kafka_process.PROPERTIES + OFTEN)
    kafka = EmbeddedKafka(tmp_path / "kafka", progress=False)
    await kafka.start()
    arguments = ("--kafka", kafka.bootstrap, "--replication", "1", "--partitions", "4", "--flush-each-batch")
    table = topics(kafka.access.settings(partitions=4))
    try:
        with Server(tmp_path / "data", *arguments, **sasl_variables(kafka.access)) as server:
            await asyncio.to_thread(server.until_ready)
            async with load(server, dice) as history:
                history.listeners.down.add("flaky")  # something waits in every case
                await history.more(500)
                await history.stop()
                with history.crash(after_s=REJOIN_S, settles_s=None), standing_still(server, "worker-1", "worker-2"):
                    await lose_what_is_not_synced(kafka, tmp_path / "kafka", table)
                history.start()
            await history.check()
    finally:
        await kafka.stop()


@contextlib.contextmanager
def standing_still(server: Server, *processes: str) -> Iterator[None]:
    """What they had written since Kafka noted what is synced would be cut off, though it is."""
    pids = [pid for pid in map(server.now.running, processes) if pid is not None]
    assert len(pids) == len(processes)
    for pid in pids:
        stop_still(pid)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def cut_back(logs: Path, topic: str, synced: str) -> None:
    """Remove from the topic's segments every batch behind what is synced. synced: lines of `topic partition offset`."""
    ends = {(name, int(number)): int(end) for name, number, end in map(str.split, synced.splitlines()[2:])}
    for segment in logs.glob(f"{topic}-*/*.log"):
        end = ends.get((topic, int(segment.parent.name.rpartition("-")[2])), 0)
        data, at = segment.read_bytes(), 0
        while at < len(data):
            offset, size = struct.unpack_from(">qi", data, at)
            if offset >= end:
                break
            at += 12 + size
        os.truncate(segment, at)
