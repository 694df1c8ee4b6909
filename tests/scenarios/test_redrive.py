"""`everput parked` and `everput redrive` against a real server."""

from __future__ import annotations

import asyncio
import json
import subprocess
from pathlib import Path

import httpx

from tests.listeners import Listeners, until
from tests.scenarios.running import Running, everput


async def test_what_is_parked_is_shown_and_redriven(tmp_path: Path):
    async with Listeners() as listeners:
        listeners.status["a"] = 422
        with Running(tmp_path / "data", "--partitions", "2") as server:
            url = server.url

            def run(*arguments: str) -> subprocess.CompletedProcess[str]:
                return everput(*arguments, "--data-dir", str(server.data_dir), EVERPUT_URL=url)

            async with httpx.AsyncClient(base_url=url, headers={"x-api-key": server.api_key}, timeout=20) as client:
                queue = (await client.put("/v1/queues", json={"name": "orders"})).json()["queue"]["id"]
                where = {"notify_url": listeners.url("a"), "liveness_url": listeners.url("a"), "max_attempts": 1}
                await client.put(f"/v1/queues/{queue}/listeners", json={"name": "billing", **where})
                puts = [await client.put(f"/v1/queues/{queue}/messages", json={"data": data}) for data in "xyz"]
                ids = sorted(put.json()["message"]["id"] for put in puts)

            async def parked() -> list[dict]:
                said = await asyncio.to_thread(run, "parked", "orders", "billing", "--json")
                assert said.returncode == 0, said.stderr
                return [json.loads(line) for line in said.stdout.splitlines()]

            async def all_three() -> bool:
                return len(await parked()) == 3

            await until(all_three, what="all are parked", within_s=60)
            assert sorted(one["message"]["id"] for one in await parked()) == ids
            table = await asyncio.to_thread(run, "parked", queue, "billing")
            assert "422" in table.stdout

            listeners.status.clear()
            said = await asyncio.to_thread(run, "redrive", "orders", "billing", ids[0])
            assert (said.returncode, said.stdout) == (0, "retrying 1 delivery\n"), said.stderr
            await until(lambda: listeners.ids("a")[ids[0]] == 1, what="it arrives")
            said = await asyncio.to_thread(run, "redrive", queue, "billing")
            assert (said.returncode, said.stdout) in [
                (0, "retrying 2 deliveries\n"),
                (0, "retrying 3 deliveries\n"),
            ]  # its tombstone may wait
            await until(lambda: sorted(listeners.ids("a")) == ids, what="all arrive")
            assert {got.headers["everput-attempt"] for got in listeners.got} == {"2"}

            wrong = await asyncio.to_thread(run, "redrive", "orders", "nobody")
            assert wrong.returncode == 1
            assert "no listener" in wrong.stderr
