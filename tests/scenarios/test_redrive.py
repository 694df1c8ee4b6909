"""`everput parked` and `everput redrive` against a real server."""

from __future__ import annotations

import asyncio
import json
import subprocess
from datetime import UTC, datetime
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


async def test_a_retry_that_waits_in_the_workers_memory_is_redriven_by_its_message(tmp_path: Path):
    async with Listeners() as listeners:
        listeners.status["a"] = 422
        with Running(tmp_path / "data", "--partitions", "2") as server:
            async with httpx.AsyncClient(
                base_url=server.url, headers={"x-api-key": server.api_key}, timeout=20
            ) as client:
                queue = (await client.put("/v1/queues", json={"name": "orders"})).json()["queue"]["id"]
                where = {"notify_url": listeners.url("a"), "liveness_url": listeners.url("a")}
                body = {"name": "billing", "retry_first_ms": 50_000, **where}
                listener = (await client.put(f"/v1/queues/{queue}/listeners", json=body)).json()["listener"]["id"]
                puts = [await client.put(f"/v1/queues/{queue}/messages", json={"data": "x"}) for _ in range(5)]
                ids = [put.json()["message"]["id"] for put in puts]

                async def due() -> dict[str, str] | None:
                    """When each that has failed once is tried again, if all have failed."""
                    answers = [await client.get(f"/v1/queues/{queue}/messages/{one}") for one in ids]
                    states = [answer.json()["message"]["listeners"][0] for answer in answers]
                    once = {
                        one: state["next_attempt_at"]
                        for one, state in zip(ids, states, strict=True)
                        if len(state["attempts"]) == 1
                    }
                    return once if all(state["state"] == "retrying" for state in states) else None

                times = await until(due, what="all wait for another attempt")
                last = max(times, key=times.__getitem__)
                path = f"/v1/queues/{queue}/listeners/{listener}"
                kept = (await client.get(f"{path}/deliveries")).json()["deliveries"]
                assert last not in [one["message"]["id"] for one in kept], "it waits in memory"
                listeners.status.clear()
                answer = await client.post(f"{path}/redrive", json={"messages": [last]})
                assert answer.json()["count"] == 1
                await until(lambda: listeners.ids("a")[last] == 1, what="it arrives")
                assert datetime.now(UTC) < datetime.fromisoformat(times[last]), "before its time"


async def test_a_redrive_is_cancelled_and_what_it_had_not_retried_stays_parked(tmp_path: Path):
    async with Listeners() as listeners:
        listeners.status["a"] = 422
        with Running(tmp_path / "data", "--partitions", "2") as server:

            def run(*arguments: str) -> subprocess.CompletedProcess[str]:
                return everput(*arguments, "--data-dir", str(server.data_dir), EVERPUT_URL=server.url)

            async with httpx.AsyncClient(
                base_url=server.url, headers={"x-api-key": server.api_key}, timeout=20
            ) as client:
                queue = (await client.put("/v1/queues", json={"name": "orders"})).json()["queue"]["id"]
                where = {"notify_url": listeners.url("a"), "liveness_url": listeners.url("a"), "max_attempts": 1}
                body = {"name": "billing", "max_in_flight": 1, "timeout_ms": 60_000, **where}
                made = (await client.put(f"/v1/queues/{queue}/listeners", json=body)).json()["listener"]["id"]
                listener = f"/v1/queues/{queue}/listeners/{made}"
                messages = [{"data": str(number)} for number in range(60)]
                await client.post(f"/v1/queues/{queue}/messages/batch", json={"messages": messages})

                async def listed(state: str) -> int:
                    answer = await client.get(f"{listener}/deliveries?state={state}&limit=1000")
                    return len(answer.json()["deliveries"])

                async def all_parked() -> int | None:
                    """The parked deliveries as the workers count them, once the others have arrived."""
                    found = (await client.get(listener)).json()["listener"]
                    arrived = len(listeners.ids("a"))
                    return found["parked"] if not found["retrying"] and found["parked"] + arrived == 60 else None

                assert await until(all_parked, what="all are parked", within_s=120) == 60
                listeners.status.clear()
                listeners.hangs.add("a")
                said = await asyncio.to_thread(run, "redrive", "orders", "billing")
                assert said.stdout == "retrying 60 deliveries\n", said.stderr
                await until(lambda: len(listeners.hanging) >= 1, what="some are being retried")
                assert await listed("retrying") == 60
                said = await asyncio.to_thread(run, "redrive", "orders", "billing", "--cancel")
                assert said.stdout == "cancelled the retries of 60 deliveries\n", said.stderr
                assert await listed("parked") == 60

                listeners.let_go()
                left = await until(all_parked, what="only what was under way has arrived", within_s=120)
                assert 60 > left >= 50
                assert await listed("parked") == left
                said = await asyncio.to_thread(run, "redrive", "orders", "billing", "--cancel", "--json")
                assert json.loads(said.stdout) == {"count": 0}, said.stderr

                said = await asyncio.to_thread(run, "redrive", "orders", "billing")
                assert said.stdout == f"retrying {left} deliveries\n", said.stderr
                await until(lambda: len(listeners.ids("a")) == 60, what="all arrive", within_s=120)

            wrong = await asyncio.to_thread(run, "redrive", "orders", "billing", "--cancel", "0199")
            assert wrong.returncode == 2
            assert "Leave MESSAGE out" in wrong.stderr
