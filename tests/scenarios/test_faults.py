"""Faults under load, each for some seconds: every message whose put was answered 200 arrives, at every listener.

Not for: what the runs do (soak.py), the longer ones (test_soak.py, make soak)."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.listeners import Listeners
from tests.scenarios import power_cut, soak
from tests.scenarios.history import History
from tests.scenarios.running import everput
from tests.scenarios.soak import REJOIN_S, Server

NETWORK_S = 5.0
SLEEP_S = 12.0  # longer than a worker's session


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("faults")) as server:
        server.until_ready()
        yield server
        verified = everput("verify", "--data-dir", str(server.now.data_dir), "--admin", server.now.admin_url)
        assert (verified.returncode, verified.stdout) == (0, ""), verified.stderr
        assert server.now.stop() == 0


@pytest.mark.parametrize("victim", ["worker-1", "api-1", "kafka"])
async def test_nothing_accepted_is_lost_when_a_process_is_killed_under_load(server: Server, victim: str):
    async with Listeners() as listeners:
        history = History(server.now.url, server.now.api_key, listeners, keyed=3)
        await history.set_up("steady", "flaky")
        history.start()
        await history.more(200)
        listeners.down.add("flaky")
        await history.more(200)
        if victim == "api-1":  # it repeats nothing at all
            await asyncio.to_thread(server.now.kill, victim)
        else:
            with history.crash(after_s=REJOIN_S, settles_s=None) if victim == "kafka" else history.crash():
                await asyncio.to_thread(server.now.kill, victim)
        await history.more(200)
        await history.set_up("late")
        listeners.down.clear()
        await history.more(200)
        await history.stop()
        await history.check()
        await history.client.aclose()


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


async def test_a_power_cut_takes_no_answered_put(tmp_path: Path, monkeypatch):
    await power_cut.power_cut(tmp_path, monkeypatch, counter_proof=False)
