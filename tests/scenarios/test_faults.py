"""kill -9 under load: every message whose put was answered 200 arrives, at every listener.

The longer runs are in test_soak.py (make soak)."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.listeners import Listeners
from tests.scenarios.history import History
from tests.scenarios.running import Running

# What a crash may repeat: what was settled since the last checkpoint (a second) and what was in flight, per listener.
REPEATED_PER_CRASH_MAX = 3000


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory):
    with Running(tmp_path_factory.mktemp("faults"), "--api-processes", "2", "--workers", "2") as running:
        assert running.url
        try:
            yield running
        finally:
            print("\n".join(running.stderr[-80:]))
        assert running.stop() == 0


@pytest.mark.parametrize("victim", ["worker-1", "api-1", "kafka"])
async def test_nothing_accepted_is_lost_when_a_process_is_killed_under_load(
    server: Running, victim: str, tmp_path: Path
):
    async with Listeners() as listeners:
        history = History(server.url, server.api_key, listeners)
        response = await history.client.get("/v1/queues")
        for queue in response.json()["queues"]:
            (await history.client.delete(f"/v1/queues/{queue['id']}")).raise_for_status()
        await history.set_up("steady", "flaky")
        history.start()
        await history.more(200)
        listeners.down.add("flaky")
        await history.more(200)
        await asyncio.to_thread(server.kill, victim)
        await history.more(200)
        listeners.down.clear()
        await history.more(200)
        await history.stop()
        await history.check("steady", "flaky", duplicates_max=REPEATED_PER_CRASH_MAX)
        await history.client.aclose()
