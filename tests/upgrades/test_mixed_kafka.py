"""Three brokers go from the Kafka of the version before to this one's, one by one, while messages flow (make soak)."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from broker.errors import InDoubt, Unavailable
from broker.kafka.admin import ensure_topics
from broker.kafka.embedded.jars import kafka_jars
from broker.kafka.embedded.process import answers
from broker.kafka.ports import free_port
from broker.kafka.topics import topics
from broker.settings import KafkaSettings
from tests.kafka.features import finalized_features
from tests.kafka.rig import running
from tests.kafka.test_cluster import NAMES, Broker, patient, start
from tests.kafka.test_damage_elsewhere import wrong
from tests.listeners import until
from tests.upgrades.program import NotHere, Program
from tests.upgrades.test_side_by_side import BEFORE

__all__ = ["patient"]  # a fixture

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

MORE = 40  # messages between two replacements


@pytest.fixture
def jars_before() -> list[Path]:
    """The jars of the Kafka that the version before embeds."""
    code = "from broker.kafka.jars import kafka_jars; print(*kafka_jars(progress=False), sep='\\n')"
    try:
        program = Program.at(BEFORE)
    except NotHere as error:
        pytest.skip(str(error))
    source = program.python.parents[2]
    told = subprocess.run([program.python, "-c", code], cwd=source, capture_output=True, text=True, check=True)
    return [Path(line) for line in told.stdout.split()]


async def test_brokers_of_two_versions_are_one_cluster_that_loses_nothing(tmp_path: Path, jars_before):
    assert set(jars_before) != set(kafka_jars()), "both versions embed the same Kafka"
    ports = {name: (free_port(), free_port()) for name in NAMES}
    brokers: dict[str, Broker] = {}

    async def begin(name: str, jars: Sequence[Path] | None) -> None:
        brokers[name] = await start(name, tmp_path / name, ports, jars=jars)

    async def replace(name: str, jars: Sequence[Path] | None) -> None:
        brokers[name].process.terminate()
        await asyncio.wait_for(brokers[name].process.wait(), 60)
        await begin(name, jars)
        await until(lambda: answers(brokers[name].port), what=f"{name} is back", within_s=60)

    try:
        await asyncio.gather(*(begin(name, jars_before) for name in NAMES))
        for broker in brokers.values():
            await until(lambda port=broker.port: answers(port), what="it answers", within_s=60)
        bootstrap = ",".join(f"127.0.0.1:{port}" for port, _ in ports.values())
        settings = KafkaSettings(bootstrap=bootstrap, partitions=4, min_insync=2, flush_each_batch=True)
        await ensure_topics(settings, topics(settings))
        features = await finalized_features(ports[NAMES[0]][0])
        async with running(settings) as rig:
            queue = await rig.queue()
            await rig.listen(queue, "it")
            await rig.work()
            ids = list[str]()
            texts = set[str]()

            async def more() -> None:
                """Have some more messages acknowledged; what is in doubt may be there or not."""
                wanted = len(ids) + MORE
                async with asyncio.timeout(120):
                    while len(ids) < wanted:
                        text = f"message-{len(texts)}"
                        texts.add(text)
                        with contextlib.suppress(InDoubt, Unavailable):
                            ids.extend(await rig.put(queue, text, key=f"k{len(texts) % 5}"))

            await more()
            steps: list[tuple[str, Sequence[Path] | None]] = [(name, None) for name in NAMES]
            # The first one back and forth once more: nothing is finalized that the Kafka before does not know.
            for name, jars in [steps[0], (NAMES[0], jars_before), *steps]:
                await asyncio.gather(replace(name, jars), more())
                await until(lambda: set(ids) <= set(rig.listeners.ids("it")), what="all are delivered", within_s=120)
            assert {one.data for one in rig.listeners.taken("it")} <= texts
            assert await finalized_features(ports[NAMES[0]][0]) == features
            assert await wrong(rig) == set()
    finally:
        for broker in brokers.values():
            if broker.process.returncode is None:
                broker.process.kill()
            await broker.process.wait()
