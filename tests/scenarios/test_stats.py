"""Statistics of a real server: two workers count, both are killed one after the other, and each message counts once."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
from pathlib import Path

import httpx

from tests.listeners import Listeners, until
from tests.scenarios.running import Running, everput, is_running

MESSAGES = 200


async def test_each_put_counts_once_whatever_worker_is_killed(tmp_path: Path):
    async with Listeners() as listeners, contextlib.AsyncExitStack() as stack:
        with Running(tmp_path / "data", "--partitions", "4", "--workers", "2") as server:
            url = server.url
            headers = {"x-api-key": server.api_key}
            client = await stack.enter_async_context(httpx.AsyncClient(base_url=url, headers=headers, timeout=20))
            queue = (await client.put("/v1/queues", json={"name": "orders"})).json()["queue"]["id"]
            urls = {"notify_url": listeners.url("a"), "liveness_url": listeners.url("a")}
            made = await client.put(f"/v1/queues/{queue}/listeners", json={"name": "billing", **urls})
            path = f"/v1/queues/{queue}/listeners/{made.json()['listener']['id']}/statistics"

            async def put(number: int) -> None:
                for _ in range(number):
                    assert (await client.put(f"/v1/queues/{queue}/messages", json={"data": "x"})).status_code == 200

            async def sums() -> tuple[int, int]:
                points = (await client.get(path)).json()["statistics"]["points"]
                assert all(point["complete"] for point in points)
                return sum(point["put"] for point in points), sum(point["delivered"] for point in points)

            async def counted(number: int) -> bool:
                """Whether so many are counted; a delivery may repeat after a kill."""
                put, delivered = await sums()
                assert put <= number
                return put == number and delivered >= number

            await put(MESSAGES // 2)
            await until(lambda: counted(MESSAGES // 2), what="the first half is counted", within_s=150)
            for worker in ("worker-1", "worker-2"):
                pid = server.pid_of(worker)
                await put(MESSAGES // 4)
                os.kill(pid, signal.SIGKILL)
                await until(lambda pid=pid: not is_running(pid), what="it is dead")
            await until(lambda: counted(MESSAGES), what="the second half is counted", within_s=200)
            said = everput("stats", "orders", "billing", "--data-dir", str(server.data_dir), EVERPUT_URL=url)
            assert said.returncode == 0, said.stderr
            assert re.search(rf"^\s*put +{MESSAGES} .*[▁▂▃▄▅▆▇█]", said.stdout, re.MULTILINE)
            assert "counted until" in said.stdout
            as_json = ("stats", "orders", "--json", "--data-dir", str(server.data_dir))
            (told,) = everput(*as_json, EVERPUT_URL=url).stdout.splitlines()
            assert sum(point["put"] for point in json.loads(told)["points"]) == MESSAGES
            assert not server.events("statistics.failed")
