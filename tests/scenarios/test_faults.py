"""Faults under load, each for some seconds: every message whose put was answered 200 arrives, at every listener.

Not for: what the runs do (soak.py), the longer ones (test_soak.py, make soak)."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.scenarios import power_cut, soak
from tests.scenarios.running import everput
from tests.scenarios.soak import Server

PACE_S = 0.1
NETWORK_S = 5.0
SLEEP_S = 12.0  # longer than a worker's session


@pytest.fixture(autouse=True)
def pace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Less work beside the faults than in the longer runs: other tests share the machine."""
    monkeypatch.setattr(soak, "PACE_S", PACE_S)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("faults")) as server:
        server.until_ready()
        yield server
        verified = everput("verify", "--data-dir", str(server.now.data_dir), "--admin", server.now.admin_url)
        assert (verified.returncode, verified.stdout) == (0, ""), verified.stderr
        assert server.now.stop() == 0


async def test_kill_9_of_anything_under_load_loses_nothing(server: Server, dice: random.Random):
    victims = ("worker-1", "api-1", "kafka", "supervisor")
    await soak.kill_loop(server, dice, len(victims), victims=victims, pause_s=1.0)


async def test_a_worker_that_slept_past_its_session_neither_loses_nor_skips(server: Server, dice: random.Random):
    await soak.zombies(server, dice, "worker-1", sleep_s=SLEEP_S)


async def test_a_bad_network_to_the_listeners_only_delays(server: Server, dice: random.Random):
    assert (await soak.bad_network_to_listeners(server, dice, NETWORK_S)).total()


async def test_a_bad_network_to_kafka_loses_nothing(tmp_path: Path, dice: random.Random, monkeypatch):
    assert (await soak.bad_network_to_kafka(tmp_path, dice, monkeypatch, NETWORK_S)).total()


async def test_a_worker_that_is_cut_off_from_kafka_repeats_no_other_worker_s_deliveries(
    tmp_path: Path, dice: random.Random, monkeypatch
):
    await soak.cut_off(tmp_path, dice, monkeypatch, times=1, silence_s=SLEEP_S)


async def test_a_power_cut_takes_no_answered_put_and_others_where_batches_are_not_synced(tmp_path: Path, monkeypatch):
    await power_cut.power_cut(tmp_path, monkeypatch)
