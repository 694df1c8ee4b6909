"""`everput replay` against a real server, with a worker that is killed in the middle."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
from collections import Counter
from pathlib import Path

import httpx

from broker.core.directory import REPLAY_HEADER
from tests.listeners import Listeners, until
from tests.scenarios.running import Running, everput, is_running

MESSAGES = 120


async def test_a_replay_goes_on_after_a_worker_was_killed(tmp_path: Path):
    async with Listeners() as listeners:
        with Running(tmp_path / "data", "--partitions", "2") as server:
            url = server.url

            def run(*arguments: str) -> subprocess.CompletedProcess[str]:
                return everput(*arguments, "--data-dir", str(server.data_dir), EVERPUT_URL=url)

            headers = {"x-api-key": server.api_key}
            async with httpx.AsyncClient(base_url=url, headers=headers, timeout=20) as client:
                queue = (await client.put("/v1/queues", json={"name": "orders"})).json()["queue"]["id"]
                where = {"notify_url": listeners.url("a"), "liveness_url": listeners.url("a")}
                path = f"/v1/queues/{queue}/listeners"
                billing = (await client.put(path, json={"name": "billing", **where})).json()["listener"]["id"]
                puts = [
                    await client.put(f"/v1/queues/{queue}/messages", json={"data": f"m{number}"})
                    for number in range(MESSAGES)
                ]
            ids = {put.json()["message"]["id"] for put in puts}
            await until(lambda: len(listeners.taken("a")) == MESSAGES, what="all is delivered")

            said = await asyncio.to_thread(
                run, "replay", "orders", "billing", "--from", "beginning", "--rate", "40", "--dry-run"
            )
            assert (said.returncode, said.stdout) == (0, "120 messages, 3 s if the listener keeps up\n"), said.stderr

            watched = asyncio.create_task(
                asyncio.to_thread(run, "replay", "orders", "billing", "--from", "beginning", "--rate", "40")
            )

            def replayed() -> Counter[str]:
                return Counter(got.message_id for got in listeners.taken("a") if REPLAY_HEADER in got.headers)

            async def committed() -> int:
                """How many messages its cursors have behind them, once it is half of them."""
                async with httpx.AsyncClient(base_url=url, headers=headers, timeout=20) as client:
                    (one,) = (await client.get(f"{path}/{billing}/replays")).json()["replays"]
                    shown = (await client.get(f"{path}/{billing}/replays/{one['id']}")).json()["replay"]
                return int(shown["progress"] * MESSAGES) if shown["progress"] >= 0.5 else 0

            await until(lambda: len(replayed()) > MESSAGES * 3 // 4, what="most of it is delivered")
            listeners.hangs.add("a")  # else the kill might come too late
            behind = await until(committed, what="half of it is committed")
            pid = server.pid_of("worker-1")
            os.kill(pid, signal.SIGKILL)
            # What it had sent may still wait to be read. It is read, and counted, while the next one starts.
            await until(lambda: server.pid_of("worker-1") != pid, what="it is started again")
            assert not is_running(pid)
            listeners.let_go()
            before = replayed().total()
            said = await watched
            assert said.returncode == 0, said.stderr
            assert said.stdout == "finished: 120 messages to billing\n"
            assert set(replayed()) == ids
            # Only what the last checkpoint did not have, and what was under way, may come again.
            assert replayed().total() - MESSAGES <= before - behind

            listed = await asyncio.to_thread(run, "replays", "orders", "billing", "--json")
            (shown,) = [json.loads(line) for line in listed.stdout.splitlines()]
            assert (shown["state"], shown["progress"]) == ("finished", 1.0)

            where = ["--notify-url", listeners.url("b"), "--liveness-url", listeners.url("live"), "--only", "failed"]
            said = await asyncio.to_thread(run, "replay", "orders", "billing", "--from", "1h", *where, "--json")
            begun = json.loads(said.stdout)
            assert [begun["notify_url"], begun["liveness_url"]] == [listeners.url("b"), listeners.url("live")]
