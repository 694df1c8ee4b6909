"""Three real brokers with the settings of compose.yaml: they pass our check, and any one of them may die."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import pytest
import yaml
from aiokafka import AIOKafkaProducer

from broker.core.events import OrganizationCreated
from broker.errors import LogDamaged, Unavailable
from broker.kafka.admin import ensure_topics
from broker.kafka.embedded.jars import kafka_jars
from broker.kafka.embedded.java import finished, java, spawn
from broker.kafka.embedded.process import answers
from broker.kafka.log import KafkaLog
from broker.kafka.ports import free_port
from broker.kafka.requests import KafkaRequests
from broker.kafka.topics import topics
from broker.settings import KafkaSettings
from projections.app import Projections
from tests.damage import flip_within, holding, partition_folder

SERVICES = yaml.safe_load((Path(__file__).parents[2] / "compose.yaml").read_text())["services"]
NAMES = [name for name in SERVICES if name.startswith("kafka-")]


@pytest.fixture(autouse=True)
def patient() -> None:
    """Not here: these tests are about the times after which somebody is given up."""


@dataclass
class Broker:
    port: int
    process: asyncio.subprocess.Process


def properties(
    environment: dict[str, object],
    *,
    ports: dict[str, tuple[int, int]],
    name: str,
    log_dir: Path,
    more: Mapping[str, str],
) -> str:
    """server.properties as the image makes it of the environment, but on loopback and with ports of our own."""
    found = {
        key.removeprefix("KAFKA_").lower().replace("_", "."): str(value)
        for key, value in environment.items()
        if key.startswith("KAFKA_") and key != "KAFKA_HEAP_OPTS"
    }
    voters = ",".join(f"{number}@127.0.0.1:{ports[one][1]}" for number, one in enumerate(NAMES, 1))
    port, controller_port = ports[name]
    found |= {
        "listeners": f"PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}",
        "advertised.listeners": f"PLAINTEXT://127.0.0.1:{port}",
        "controller.quorum.voters": voters,
        "log.dirs": str(log_dir),
        **more,
    }
    return "".join(f"{key}={value}\n" for key, value in found.items())


async def start(
    name: str,
    directory: Path,
    ports: dict[str, tuple[int, int]],
    *,
    jars: Sequence[Path] | None = None,
    more: Mapping[str, str] = MappingProxyType({}),
) -> Broker:
    """jars: of another version of Kafka. more: properties. A directory that is there already is not formatted."""
    environment = SERVICES[name]["environment"]
    path = directory / "server.properties"
    command = java(directory, jars=jars or kafka_jars(), options=("-Xmx256m", "-XX:TieredStopAtLevel=1"))
    if not directory.exists():
        directory.mkdir()
        path.write_text(properties(environment, ports=ports, name=name, log_dir=directory / "log", more=more))
        tool = ("kafka.tools.StorageTool", "format", "-t", environment["CLUSTER_ID"], "-c", str(path))
        assert await finished(await spawn((*command, *tool), directory=directory), within_s=60) == 0
    return Broker(ports[name][0], await spawn((*command, "kafka.Kafka", str(path)), directory=directory))


@pytest.fixture
async def cluster(tmp_path):
    async with three_brokers(tmp_path) as brokers:
        yield brokers


@contextlib.asynccontextmanager
async def three_brokers(tmp_path: Path, **more: str) -> AsyncIterator[list[Broker]]:
    """more: properties."""
    ports = {name: (free_port(), free_port()) for name in NAMES}
    brokers = await asyncio.gather(*(start(name, tmp_path / name, ports, more=more) for name in NAMES))
    try:
        async with asyncio.timeout(60):
            for broker in brokers:
                while not await answers(broker.port):
                    assert broker.process.returncode is None
                    await asyncio.sleep(0.1)
        yield brokers
    finally:
        for broker in brokers:
            if broker.process.returncode is None:
                broker.process.kill()
            await broker.process.wait()


@pytest.mark.slow  # three brokers: half a minute
async def test_the_cluster_is_found_safe_and_goes_on_acknowledging_when_one_broker_of_three_dies(cluster):
    settings = KafkaSettings(
        bootstrap=",".join(f"127.0.0.1:{broker.port}" for broker in cluster),
        partitions=3,
        replication=3,
        min_insync=2,
        flush_each_batch=True,
    )
    await ensure_topics(settings, topics(settings))  # nothing to complain about
    topic = topics(settings).messages.name
    async with AIOKafkaProducer(
        bootstrap_servers=settings.bootstrap, acks="all", enable_idempotence=True, request_timeout_ms=5000
    ) as producer:
        for partition in range(3):
            await producer.send_and_wait(topic, b"three", partition=partition)
        cluster[0].process.kill()
        await cluster[0].process.wait()
        async with asyncio.timeout(60):
            for partition in range(3):
                await producer.send_and_wait(topic, b"two", partition=partition)
    await ensure_topics(settings, topics(settings))  # nor does a process that starts meanwhile


@pytest.mark.slow
async def test_a_broker_that_hangs_holds_up_the_puts_that_must_go_to_it_and_no_others(cluster):
    settings = KafkaSettings(
        bootstrap=",".join(f"127.0.0.1:{broker.port}" for broker in cluster),
        partitions=6,
        replication=1,  # with copies, all that is written waits until the cluster has given up the one that hangs
        min_insync=1,
        flush_each_batch=True,
    )
    table = topics(settings)
    await ensure_topics(settings, table)
    log = KafkaLog(settings, append_timeout_ms=2_000)
    await log.start()

    def put(key: str | None = None):
        return log.messages.append(lambda _partition: (b"id", b"value", b"queue"), ordering_key=key)

    try:
        places = await asyncio.gather(*(put() for _ in range(100)))
        led = {partition: log.requests.leader(table.messages.name, partition) for partition in range(6)}
        assert len(set(led.values())) == len(cluster)
        keys = {log.messages.partition_of(str(number)): str(number) for number in range(100)}
        os.kill(cluster[2].process.pid, signal.SIGSTOP)
        hanging = [partition for partition, leader in led.items() if leader == 3]
        lost = 0
        async with asyncio.timeout(40):
            while lost == 0 or len(places) < 1_100:
                try:
                    places.append(await put())
                except Unavailable:
                    lost += 1
        assert lost <= 2
        with pytest.raises(Unavailable):
            await put(keys[hanging[0]])
        elsewhere = next(partition for partition in range(6) if partition not in hanging)
        assert (await put(keys[elsewhere]))[0] == elsewhere
    finally:
        os.kill(cluster[2].process.pid, signal.SIGCONT)
        await log.stop()


@pytest.mark.slow
async def test_the_leader_of_control_and_of_cursors_hangs_and_another_one_is_found(cluster):
    settings = KafkaSettings(
        bootstrap=",".join(f"127.0.0.1:{broker.port}" for broker in cluster),
        partitions=3,
        replication=3,
        min_insync=2,
        flush_each_batch=True,
    )
    table = topics(settings)
    await ensure_topics(settings, table)
    log = KafkaLog(settings, append_timeout_ms=2_000)
    await log.start()
    projections = Projections(settings, log.control)
    await projections.start()
    leader = log.requests.leader(table.control.name, 0)
    groups = {
        await log.requests.groups._coordinator(name): name for name in (f"group-{number}" for number in range(30))
    }
    for group in groups.values():
        await log.requests.groups.commit(group, table.messages.name, {0: (1, "")})
    hanging = cluster[leader - 1].process.pid

    async def again(ask: Callable[[], Awaitable[object]]) -> None:
        """Until it is answered."""
        while True:
            with contextlib.suppress(Unavailable):
                await ask()
                return
            await asyncio.sleep(0.1)

    os.kill(hanging, signal.SIGSTOP)
    try:
        created = OrganizationCreated(at_ms=1, organization_id="o", name="n")
        async with asyncio.timeout(70):  # half as long is usual; without the looking again it is minutes
            await asyncio.gather(
                again(lambda: log.control.append(created)),
                again(lambda: log.requests.groups.commit(groups[leader], table.messages.name, {0: (2, "")})),
                again(projections.directory.caught_up),
            )
            await again(projections.directory.caught_up)
        assert "o" in projections.directory.state.organizations
    finally:
        os.kill(hanging, signal.SIGCONT)
        await projections.stop()
        await log.stop()


@pytest.mark.slow
async def test_what_is_altered_in_one_copy_is_read_from_another_and_named(cluster, tmp_path):
    settings = KafkaSettings(
        bootstrap=",".join(f"127.0.0.1:{broker.port}" for broker in cluster),
        partitions=1,
        replication=3,
        min_insync=2,
        flush_each_batch=True,
    )
    table = topics(settings)
    await ensure_topics(settings, table)
    topic = table.messages.name
    requests = KafkaRequests(settings)
    await requests.start([topic])
    async with AIOKafkaProducer(bootstrap_servers=settings.bootstrap, acks="all", enable_idempotence=True) as producer:
        for number in range(10):
            await producer.send_and_wait(topic, b"message-%d" % number, partition=0)
    leader = requests.leader(topic, 0)
    folder = partition_folder(tmp_path / NAMES[leader - 1], topic, 0)
    for number in (4, 5):  # the leader has its files open and serves what is in them
        flip_within(holding(folder, number), b"message-%d" % number)
    followers = [partition_folder(tmp_path / name, topic, 0) for name in NAMES if name != NAMES[leader - 1]]
    for each in followers:  # and this is in no copy whole
        flip_within(holding(each, 8), b"message-8")
    flip_within(holding(folder, 8), b"message-8")

    async def values(at: int, end: int) -> list[bytes | None]:
        return [record.value async for record in requests.walk(topic, 0, at, end)]

    async def copied() -> bool:
        """Whether the followers know that the last record is everywhere: they give no more than that."""
        with contextlib.suppress(LogDamaged):
            return len(await values(0, 8)) == 8
        return False

    try:
        async with asyncio.timeout(60):
            while not await copied():
                await asyncio.sleep(0.1)
        assert await values(0, 8) == [b"message-%d" % number for number in range(8)]
        assert {(place[0], place[1], place[3]) for place in requests.bad_copies} == {(topic, 0, leader)}
        with pytest.raises(LogDamaged) as found:
            await requests.read(topic, 0, 8)
        assert (found.value.first, found.value.last) == (8, 8)
        assert (await requests.read(topic, 0, 9)).records[0].value == b"message-9"
    finally:
        await requests.stop()
