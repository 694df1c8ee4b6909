"""A Faust app that crashes in a real process: the process goes, another comes, and nothing is lost or different."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import httpx

from tests.listeners import Listeners, until
from tests.scenarios.running import Running

# Python runs it at the start of every process of this server, also of the one that the first processes are forked from.
# Only those with a projection heed the signal.
CRASH_ON_SIGNAL = """
import asyncio, signal

from projections.app import Projections

start = Projections.start

async def start_and_listen(self, **options):
    await start(self, **options)

    def crash():
        asyncio.ensure_future(self._app.crash(RuntimeError("crashed by a test")))

    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, crash)

Projections.start = start_and_listen
"""


async def test_a_process_whose_projection_crashes_ends_and_its_successor_folds_the_same(tmp_path: Path):
    (tmp_path / "sitecustomize.py").write_text(CRASH_ON_SIGNAL)
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    async with Listeners() as listeners:
        with Running(tmp_path / "data", "--partitions", "2", PYTHONPATH=path) as server:
            async with httpx.AsyncClient(base_url=server.url, timeout=30) as client:
                client.headers["x-api-key"] = server.api_key
                queue = (await client.put("/v1/queues", json={"name": "orders"})).json()["queue"]["id"]
                where = {"notify_url": listeners.url("a"), "liveness_url": listeners.url("a")}
                await client.put(f"/v1/queues/{queue}/listeners", json={"name": "billing", **where})
                puts: list[str] = []

                async def put() -> bool:
                    """Through whichever API process there is; a connection may be to one that is gone."""
                    try:
                        answer = await client.put(f"/v1/queues/{queue}/messages", json={"data": str(len(puts))})
                    except httpx.TransportError:
                        return False
                    if answer.status_code == 200:
                        puts.append(answer.json()["message"]["id"])
                    return answer.status_code == 200

                async def states() -> dict[str, dict]:
                    answer = await client.get(f"{server.admin_url}/state")
                    return answer.json()["states"] if answer.status_code == 200 else {}

                await until(put, what="a first message")
                await until(lambda: set(listeners.ids("a")) == set(puts), what="is delivered")

                async def agreed() -> dict[str, str] | None:
                    """What both processes have folded, once they are equally far.

                    Without organizations: a process that ends records how many bytes each of them has stored.
                    """
                    found = await states()
                    hashes = {state["sha256"] for state in found.values()}
                    if set(found) != {"api-1", "worker-1"} or len(hashes) != 1:
                        return None
                    digests = found["api-1"]["digests"]
                    return {name: one for name, one in digests.items() if not name.startswith("organization ")}

                before = await until(agreed, what="both have folded the same")

                async def crash(process: str) -> None:
                    ready = len(server.events("process.ready", process=process))
                    os.kill(server.pid_of(process), signal.SIGUSR1)
                    await until(lambda: server.events("process.died", process=process, exit="1"), what="it ends")
                    await until(lambda: len(server.events("process.ready", process=process)) > ready, what="is back")

                for process in ("api-1", "worker-1"):
                    await crash(process)
                    await until(put, what="messages can be put")
                await until(lambda: set(listeners.ids("a")) == set(puts), what="all are delivered")
                assert await until(agreed, what="both have folded the same") == before
            assert any("crashed by a test" in line for line in server.stderr)
            assert server.stop() == 0
