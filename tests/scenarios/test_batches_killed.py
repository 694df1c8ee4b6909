"""Batches of a real server whose worker is killed while they are in flight: nothing is lost."""

from __future__ import annotations

import os
import signal
from collections import Counter
from pathlib import Path

import httpx
import orjson

from everput import verify_batch
from tests.listeners import Got, Listeners, until
from tests.scenarios.running import Running, is_running

MESSAGES = 300


async def test_a_killed_worker_loses_no_message_of_a_batch(tmp_path: Path):
    async with Listeners() as listeners:
        taken: Counter[str] = Counter()
        refused: set[str] = set()
        secret = ""

        def answer(got: Got) -> bytes:
            """Refuse every seventh message at its first attempt."""
            batch = verify_batch(secret, got.headers, got.body)
            failed = [
                one.id for one in batch if one.attempt == 1 and int(one.id[-4:], 16) % 7 == 0 and one.id not in refused
            ]
            refused.update(failed)
            taken.update(one.id for one in batch if one.id not in failed)
            return orjson.dumps({"failed": failed}) if failed else b""

        listeners.body = answer
        with Running(tmp_path / "data", "--partitions", "2") as server:
            url = server.url
            headers = {"x-api-key": server.api_key}
            async with httpx.AsyncClient(base_url=url, headers=headers, timeout=60) as client:
                queue = (await client.put("/v1/queues", json={"name": "orders"})).json()["queue"]["id"]
                made = await client.put(
                    f"/v1/queues/{queue}/listeners",
                    json={
                        "name": "billing",
                        "notify_url": listeners.url("a"),
                        "liveness_url": listeners.url("a"),
                        "batch": {"max_messages": 20, "wait_ms": 50},
                        "retry_first_ms": 200,
                    },
                )
                assert made.status_code == 200, made.text
                secret = made.json()["listener"]["secret"]

                async def put(count: int) -> set[str]:
                    puts = [
                        await client.put(f"/v1/queues/{queue}/messages", json={"data": f"m{number}"})
                        for number in range(count)
                    ]
                    return {one.json()["message"]["id"] for one in puts}

                ids = await put(MESSAGES)
                await until(lambda: taken, what="some are delivered")
                listeners.hangs.add("a")
                ids |= await put(MESSAGES)
                await until(lambda: listeners.hanging, what="a batch is in flight")
                pid = server.pid_of("worker-1")
                os.kill(pid, signal.SIGKILL)
                await until(lambda: not is_running(pid), what="the worker is dead")
                listeners.let_go()
                await until(lambda: set(taken) >= ids, what="all are delivered")
        assert set(taken) == ids
        assert any("everput-batch" in got.headers for got in listeners.taken("a"))
        assert refused
