"""Alerts of a real server, which looks by itself, and whose worker is killed in the middle of an episode."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from pathlib import Path

import httpx
import orjson

from tests.listeners import Listeners, until
from tests.scenarios.running import Running, everput, is_running


async def test_an_episode_is_told_once_although_the_worker_is_killed_and_its_end_once(tmp_path: Path):
    async with Listeners() as listeners, contextlib.AsyncExitStack() as stack:
        server = stack.enter_context(Running(tmp_path / "data", "--partitions", "2"))
        base_url = await asyncio.to_thread(lambda: server.url)
        headers = {"x-api-key": server.api_key}
        client = await stack.enter_async_context(httpx.AsyncClient(base_url=base_url, headers=headers, timeout=20))

        async def listener(queue: str, name: str, **more: object) -> None:
            queue_id = (await client.put("/v1/queues", json={"name": queue})).json()["queue"]["id"]
            urls = {"notify_url": listeners.url(name), "liveness_url": listeners.url(name)}
            made = await client.put(f"/v1/queues/{queue_id}/listeners", json={"name": name, **urls, **more})
            assert made.status_code == 200
            paths[queue] = f"/v1/queues/{queue_id}/messages"

        def told() -> list[str]:
            return [orjson.loads(got.data)["type"] for got in listeners.taken("pager")]

        paths: dict[str, str] = {}
        listeners.down.add("billing")
        await listener("everput.alerts", "pager")
        await listener("orders", "billing", alerts={"down_s": 1})
        await client.put(paths["orders"], json={"data": "x"})
        await until(lambda: told() == ["listener.down"], what="the alert is delivered", within_s=120)
        killed = server.pid_of("worker-1")
        os.kill(killed, signal.SIGKILL)
        await until(lambda: not is_running(killed), what="the worker is dead")
        listeners.down.clear()
        await until(lambda: listeners.taken("billing"), what="the message is delivered", within_s=120)
        await until(lambda: "listener.back" in told(), what="the end is delivered", within_s=180)
        ids = {got.message_id for got in listeners.taken("pager")}
        assert len(ids) == 2  # a delivery may repeat after the kill, with its id
        checked = everput("verify", "--data-dir", str(server.data_dir))
        assert checked.returncode == 0, checked.stdout
