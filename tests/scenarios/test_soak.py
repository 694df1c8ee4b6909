"""The fault runs of minutes (make soak).

EVERPUT_SOAK_SEED repeats a run's dice (it is printed), EVERPUT_SOAK_ROUNDS says how many kills. Not for: what the runs
do (soak.py), short versions (test_faults.py)."""

from __future__ import annotations

import os
import random
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka.admin import AdminClient, ConfigResource

from broker.kafka.topics import topics
from tests.kafka_clients import librdkafka
from tests.scenarios import power_cut, soak
from tests.scenarios.running import Running
from tests.scenarios.soak import Server

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

ROUNDS = int(os.environ.get("EVERPUT_SOAK_ROUNDS", "50"))
NETWORK_S = ROUNDS * 2.0
TROUBLES = {"delay", "swallow", "reset", "half", "cut"}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with Server(tmp_path / "data") as server:
        server.until_ready()
        yield server


async def test_kill_9_of_anything_at_any_moment_loses_nothing(server: Server, dice: random.Random):
    await soak.kill_loop(server, dice, ROUNDS)


async def test_a_worker_that_sleeps_past_its_session_neither_loses_nor_skips(server: Server, dice: random.Random):
    await soak.zombies(server, dice, "worker-1", "worker-2", sleep_s=15)


async def test_a_bad_network_to_the_listeners_only_delays(server: Server, dice: random.Random):
    assert (await soak.bad_network_to_listeners(server, dice, NETWORK_S)).keys() >= TROUBLES


async def test_a_bad_network_to_kafka_loses_nothing(tmp_path: Path, dice: random.Random, monkeypatch):
    assert (await soak.bad_network_to_kafka(tmp_path, dice, monkeypatch, NETWORK_S)).keys() >= TROUBLES


async def test_a_worker_that_is_cut_off_from_kafka_repeats_no_other_worker_s_deliveries(
    tmp_path: Path, dice: random.Random, monkeypatch
):
    await soak.cut_off(tmp_path, dice, monkeypatch, times=max(1, ROUNDS // 10), silence_s=25.0)


async def test_what_was_put_over_rest_arrives_after_a_power_cut(tmp_path: Path, dice: random.Random, monkeypatch):
    await power_cut.power_cut_under_load(tmp_path, dice, monkeypatch)


def test_sigterm_ends_a_server_in_time_though_everything_in_it_hangs(tmp_path: Path):
    with Running(tmp_path / "data") as server:
        assert server.url
        host, _, port = server.admin_url.removeprefix("http://").rpartition(":")
        for process in ("api-1", "worker-1", "kafka"):
            os.kill(server.pid_of(process), signal.SIGSTOP)
        with socket.create_connection((host, int(port))) as asking:
            asking.sendall(b"GET /health/ready HTTP/1.1\r\nhost: it\r\n\r\n")  # it waits for those that hang
            assert server.stop() == 0
        assert len(server.events("process.killed")) == 2  # Kafka is killed by its own end


def test_every_topic_of_a_server_has_kafka_sync_each_batch(server: Server):
    kafka = server.now.kafka.settings()
    admin = AdminClient(librdkafka(kafka))
    names = [name for name in admin.list_topics(timeout=20).topics if name.startswith("everput.")]
    found = admin.describe_configs([ConfigResource(ConfigResource.Type.TOPIC, name) for name in names])
    assert {resource.name: future.result(20)["flush.messages"].value for resource, future in found.items()} == (
        dict.fromkeys(names, "1")
    )
    assert set(names) == {topic.name for topic in topics(kafka).all()}
