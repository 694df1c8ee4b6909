"""Embedded Kafka: one owner, one port, no orphan, and what was acknowledged outlives kill -9."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import KafkaError

from broker.errors import ConfigurationError
from broker.kafka.admin import connected, ensure_topics
from broker.kafka.client import client_options
from broker.kafka.embedded import archive, process
from broker.kafka.embedded import kafka as embedded
from broker.kafka.embedded.formatting import CHECKPOINT, format_directory
from broker.kafka.embedded.jars import kafka_jars
from broker.kafka.embedded.java import finished, java, spawn
from broker.kafka.embedded.kafka import EmbeddedKafka
from broker.kafka.embedded.process import answers
from broker.kafka.topics import topics
from tests.kafka.features import finalized_features


@pytest.fixture
async def kafka(tmp_path):
    """One of the test's own, which it may kill."""
    kafka = EmbeddedKafka(tmp_path / "data", heap_mib=256, progress=False)
    await kafka.start()
    yield kafka
    await kafka.stop()


def alive(pid: int) -> bool:
    """Whether it runs: a zombie does not."""
    try:
        return b"kafka.Kafka" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except FileNotFoundError:
        return False


async def until_gone(pid: int) -> None:
    async with asyncio.timeout(60):
        while alive(pid):
            await asyncio.sleep(0.05)


async def test_what_was_acknowledged_is_there_after_kill_9_and_restart_on_the_same_port(kafka):
    settings = kafka.access.settings(partitions=2, flush_each_batch=True)
    table = topics(settings)
    await ensure_topics(settings, table)
    async with AIOKafkaProducer(**client_options(settings), acks="all") as producer:
        for number in range(100):
            await producer.send_and_wait(table.messages.name, b"%d" % number, partition=number % 2)
    before = kafka.bootstrap, kafka.pid

    kafka.kill()
    assert await kafka.wait() == -signal.SIGKILL
    await kafka.restart()

    assert kafka.bootstrap == before[0]
    assert kafka.pid != before[1]
    partitions = [TopicPartition(table.messages.name, number) for number in range(2)]
    consumer = AIOKafkaConsumer(**client_options(settings), auto_offset_reset="earliest", group_id=None)
    await consumer.start()
    try:
        consumer.assign(partitions)
        values: list[bytes] = []
        async with asyncio.timeout(60):
            while len(values) < 100:
                records = await consumer.getmany(timeout_ms=500)
                values += [record.value for batch in records.values() for record in batch]
    finally:
        await consumer.stop()
    assert sorted(values) == sorted(b"%d" % number for number in range(100))


async def test_one_that_lives_and_answers_nothing_any_more_is_ended_and_one_that_answers_is_not(kafka, monkeypatch):
    looks = 0

    async def counted(port: int, password: str) -> bool:
        nonlocal looks
        looks += 1
        return await answers(port, password)

    monkeypatch.setattr(embedded, "answers", counted)
    waiting = asyncio.create_task(kafka.wait(look_s=0.05, missed_max=3))
    async with asyncio.timeout(60):
        while looks < 10:
            await asyncio.sleep(0.05)
    assert not waiting.done()
    monkeypatch.setattr(process, "_ANSWER_WITHIN_S", 0.2)
    os.kill(kafka.pid, signal.SIGSTOP)
    assert await asyncio.wait_for(waiting, 60) == -signal.SIGKILL
    await kafka.restart()


async def test_a_second_one_on_the_same_directory_is_refused_by_name(kafka):
    with pytest.raises(ConfigurationError, match=r"another server uses the data directory .*data"):
        await EmbeddedKafka(kafka.data_dir).start()
    assert alive(kafka.pid)


async def test_it_listens_on_loopback_only_and_keeps_its_log_to_itself(kafka, capfd):
    listening = subprocess.run(["ss", "-ltnpH"], capture_output=True, text=True, check=False).stdout
    mine = [line.split()[3] for line in listening.splitlines() if f"pid={kafka.pid}," in line]
    if mine:  # `ss` may be missing
        assert all("127.0.0.1" in address for address in mine)
    assert (kafka.data_dir / "kafka.log").stat().st_size > 0
    assert capfd.readouterr() == ("", "")
    assert kafka.data_dir.stat().st_mode & 0o777 == 0o700


async def test_only_replicas_that_have_every_acknowledged_record_may_lead_in_a_new_directory(kafka):
    found = await finalized_features(int(kafka.bootstrap.rpartition(":")[2]))
    assert found["eligible.leader.replicas.version"] >= 1


async def test_stop_ends_it_and_lets_go_of_the_directory(tmp_path):
    kafka = EmbeddedKafka(tmp_path, heap_mib=256, progress=False)
    await kafka.start()
    pid, bootstrap = kafka.pid, kafka.bootstrap
    waiting = asyncio.create_task(kafka.wait())
    await kafka.stop()
    await kafka.stop()
    assert not alive(pid)
    await asyncio.wait_for(waiting, 60)
    await kafka.start()
    assert kafka.bootstrap == bootstrap
    await kafka.stop()


def start_in_another_process(directory: Path) -> subprocess.Popen[str]:
    """Prints Kafka's pid when it is up, then waits."""
    program = f"""
        import asyncio, pathlib
        from broker.kafka.embedded.kafka import EmbeddedKafka

        async def main():
            kafka = EmbeddedKafka(pathlib.Path({str(directory)!r}), heap_mib=256, progress=False)
            await kafka.start()
            print(kafka.pid, flush=True)
            await asyncio.sleep(600)

        asyncio.run(main())
    """
    return subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE, text=True)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the next start ends it")
async def test_it_dies_with_its_parent_even_by_kill_9(tmp_path):
    with start_in_another_process(tmp_path) as parent:
        try:
            pid = int(await asyncio.to_thread(parent.stdout.readline))
            assert alive(pid)
        finally:
            parent.kill()
    await until_gone(pid)


@contextlib.contextmanager
def running(*words: str) -> Iterator[subprocess.Popen[bytes]]:
    """A Python process with these words in its command line, which is empty before the process runs."""
    program = "import time; print(flush=True); time.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", program, *words], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            yield process
        finally:
            process.kill()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
async def test_the_kafka_that_an_earlier_server_left_behind_is_ended_first(tmp_path):
    with running("kafka.Kafka", str(tmp_path)) as orphan, running() as other:
        (tmp_path / "kafka.pid").write_text(f"{orphan.pid}\n")
        kafka = EmbeddedKafka(tmp_path, heap_mib=256, progress=False)
        await kafka.start()
        assert orphan.wait(60) == -signal.SIGKILL
        await kafka.stop()

        # A pid that another program has by now is none of our business.
        (tmp_path / "kafka.pid").write_text(f"{other.pid}\n")
        await kafka.start()
        await kafka.stop()
        assert other.poll() is None


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
async def test_the_kafka_of_another_user_is_left_alone_and_told_of(tmp_path, monkeypatch: pytest.MonkeyPatch):
    def kill(*_: int) -> None:
        raise PermissionError  # what the kernel says to whoever is not root

    with running("kafka.Kafka", str(tmp_path)) as others:
        (tmp_path / "kafka.pid").write_text(f"{others.pid}\n")
        with monkeypatch.context() as patch:
            patch.setattr(os, "kill", kill)
            with pytest.raises(ConfigurationError, match=rf"process {others.pid}\) still uses this directory"):
                await EmbeddedKafka(tmp_path, heap_mib=256, progress=False).start()
        assert others.poll() is None


async def test_a_start_that_was_interrupted_while_formatting_is_repeated(tmp_path):
    (tmp_path / "kafka.new").mkdir()
    (tmp_path / "kafka.new" / "meta.properties").write_text("half of")
    kafka = EmbeddedKafka(tmp_path, heap_mib=256, progress=False)
    await kafka.start()
    await kafka.stop()
    assert not (tmp_path / "kafka.new").exists()


async def test_a_log_directory_that_cannot_be_made_is_told_of(tmp_path):
    (tmp_path / "kafka.new").write_text("a file where a directory must be made")
    with pytest.raises(ConfigurationError, match=r"can't be created: .*kafka\.new"):
        await EmbeddedKafka(tmp_path, heap_mib=256, progress=False).start()


def undated(checkpoint: bytes) -> bytes:
    """The checkpoint without what differs each time: the times, and the checksums of its three batches."""
    rest = re.sub(rb"\0\0\x01[\x80-\xff].{4}", b"-time-..", checkpoint, flags=re.DOTALL)
    kept, at = bytearray(rest), 0
    for _ in range(3):
        kept[at + 17 : at + 21] = b"-crc"
        at += 12 + int.from_bytes(rest[at + 8 : at + 12])
    assert at == len(kept)
    return bytes(kept)


async def test_a_new_log_directory_is_what_kafkas_own_tool_makes(tmp_path):
    ours, tools = tmp_path / "ours", tmp_path / "tools"
    assert format_directory(ours)
    assert not format_directory(ours)
    settings = {"port": 1, "controller_port": 2, "listener": "CLIENT", "named": "client", "mechanism": "SCRAM-SHA-256"}
    rest = {"scram": "scram-sha-256", "user": "everput", "itself": "kafka", "plain": "", "join_delay_ms": 0}
    (tmp_path / "made.properties").write_text(process.PROPERTIES.format(**settings, **rest, log_dir=tools))
    command = java(tmp_path, jars=kafka_jars(), options=("-Xmx256m",))
    tool = (
        "kafka.tools.StorageTool",
        "format",
        "-t",
        "EverputFormatted000000",
        "-c",
        str(tmp_path / "made.properties"),
    )
    assert await finished(await spawn((*command, *tool), directory=tmp_path), within_s=60) == 0

    def files(directory: Path) -> list[Path]:
        return sorted(path.relative_to(directory) for path in directory.rglob("*"))

    def properties(directory: Path) -> dict[str, str]:
        lines = (directory / "meta.properties").read_text().splitlines()
        return dict(line.split("=") for line in lines if not line.startswith("#"))

    assert files(ours) == files(tools)
    written, expected = properties(ours), properties(tools)
    assert written.keys() == expected.keys()
    random = {"cluster.id", "directory.id"}
    assert {name: written[name] for name in written.keys() - random} == {
        name: expected[name] for name in expected.keys() - random
    }
    assert written["cluster.id"] != written["directory.id"]
    assert all(len(base64.urlsafe_b64decode(written[name] + "==")) == 16 for name in random)
    made = (tools / CHECKPOINT).read_bytes()
    assert undated((ours / CHECKPOINT).read_bytes()) == undated(made), (
        f"write what the tool of this Kafka writes to features.checkpoint: {made.hex()}"
    )


async def test_a_kafka_that_cannot_run_says_where_to_look_and_leaves_nothing(tmp_path):
    (tmp_path / "kafka").mkdir()
    (tmp_path / "kafka" / "meta.properties").write_text("version=1\ncluster.id=x\nnode.id=7\n")
    kafka = EmbeddedKafka(tmp_path, heap_mib=256, progress=False)
    with pytest.raises(ConfigurationError, match=r"ended with code .*kafka\.log"):
        await kafka.start()
    with contextlib.suppress(ChildProcessError):
        assert os.waitpid(-1, os.WNOHANG)[0] == 0
    await asyncio.to_thread((tmp_path / "kafka" / "meta.properties").unlink)
    (tmp_path / "kafka").rename(tmp_path / "aside")
    await kafka.start()  # the directory was let go of
    await kafka.stop()


async def test_a_damaged_archive_only_makes_the_start_slower(tmp_path, monkeypatch):
    bad = tmp_path / "bad.aot"
    bad.write_bytes(b"\0" * 100_000)
    monkeypatch.setattr(archive, "existing", lambda _jars: bad)
    kafka = EmbeddedKafka(tmp_path / "data", heap_mib=256, progress=False)
    await kafka.start()
    await kafka.stop()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
async def test_a_kafka_killed_while_it_starts_is_started_again_and_its_archive_is_not_blamed(kafka, monkeypatch):
    blamed: list[Path | None] = []
    monkeypatch.setattr(archive, "discard", blamed.append)
    kafka.kill()
    await kafka.wait()
    before = children()
    restarting = asyncio.create_task(kafka.restart())
    async with asyncio.timeout(60):
        while not (started := children() - before):
            await asyncio.sleep(0.01)
    for pid in started:
        os.kill(pid, signal.SIGKILL)
    await restarting
    assert alive(kafka.pid)
    assert blamed == [None]


async def test_a_port_that_another_program_took_meanwhile_is_said_and_used_again_when_it_is_free(kafka):
    port = int(kafka.bootstrap.rpartition(":")[2])
    kafka.kill()
    await kafka.wait()
    taken = pytest.raises(ConfigurationError, match=f"port {port} on 127.0.0.1 is used by another program")
    with socket.create_server(("127.0.0.1", port)), taken:
        await kafka.restart()
    await kafka.restart()
    assert kafka.bootstrap.endswith(f":{port}")


def children() -> set[int]:
    """Kafkas that this process has started."""
    tasks = Path("/proc/self/task").glob("*/children")
    return {int(pid) for path in tasks for pid in path.read_text().split() if alive(int(pid))}


AT_ONCE = partial(archive.make, after_s=0, idle_within_s=0)


@pytest.mark.slow  # idle priority: on a busy machine it takes its time
async def test_an_archive_that_is_missing_is_made_in_the_background_and_then_used(tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO, "broker")
    made = tmp_path / "kafka-test.aot"
    monkeypatch.setattr(archive, "_path", lambda _jars: made)
    kafka = EmbeddedKafka(tmp_path / "data", heap_mib=256, progress=False, make_archive=AT_ONCE)
    await kafka.start()
    async with asyncio.timeout(150):
        while not made.exists():
            await asyncio.sleep(0.1)
    assert not any("topic.created" in one for one in caplog.messages), "the server's own topics are not created again"
    await kafka.restart()
    assert str(made) in Path(f"/proc/{kafka.pid}/cmdline").read_text()
    await kafka.stop()


async def test_stop_gives_up_an_archive_that_is_only_half_made(tmp_path, monkeypatch):
    made = tmp_path / "cache" / "kafka-test.aot"
    made.parent.mkdir()
    monkeypatch.setattr(archive, "_path", lambda _jars: made)
    kafka = EmbeddedKafka(tmp_path / "data", heap_mib=256, progress=False, make_archive=AT_ONCE)
    await kafka.start()
    lock = made.with_suffix(".lock")
    async with asyncio.timeout(60):
        while not lock.exists():
            await asyncio.sleep(0.05)
    await asyncio.wait_for(kafka.stop(), 60)
    assert [path.name for path in made.parent.iterdir()] in ([], ["kafka-test.lock"])


async def test_members_that_join_at_about_the_same_time_get_their_partitions_in_one_rebalance(tmp_path):
    kafka = EmbeddedKafka(tmp_path / "data", heap_mib=256, progress=False, join_delay_ms=3_000)
    await kafka.start()
    try:
        settings = kafka.access.settings(partitions=2, flush_each_batch=True)
        table = topics(settings)
        await ensure_topics(settings, table)
        gained: list[int] = []

        class Listener(ConsumerRebalanceListener):
            async def on_partitions_assigned(self, assigned):
                gained.append(len(assigned))

            async def on_partitions_revoked(self, revoked):
                pass

        consumers = [AIOKafkaConsumer(**client_options(settings), group_id="together") for _ in range(2)]
        for consumer in consumers:
            consumer.subscribe([table.messages.name], listener=Listener())
        try:
            async with connected(client_options(settings)) as admin, asyncio.timeout(60), asyncio.TaskGroup() as starts:
                starts.create_task(consumers[0].start())
                members = []
                while not members:
                    with contextlib.suppress(KafkaError):  # Kafka creates the topic of the groups meanwhile
                        members = (await admin.describe_consumer_groups(["together"]))[0].groups[0][5]
                    await asyncio.sleep(0.05)
                starts.create_task(consumers[1].start())
            assert gained == [1, 1]
        finally:
            await asyncio.gather(*(consumer.stop() for consumer in consumers))
    finally:
        await kafka.stop()
