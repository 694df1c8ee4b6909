"""A cluster that is not there: while the processes start, while they run, when they start again, and at their end."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx

from broker.kafka.embedded.access import EmbeddedAccess, made_password
from broker.kafka.embedded.kafka import EmbeddedKafka
from broker.kafka.ports import free_port
from broker.sealing import new_sealing_key
from tests.kafka_clients import sasl_variables
from tests.listeners import Listeners, nobody, until
from tests.scenarios.running import Running, clean_environment, wait_until

ANSWERED_WITHIN_S = 60.0  # the time that an append may take, and reads besides; that of a start, too

UNKNOWN = "0197d3f0-0000-7000-8000-000000000000"


async def refused(client: httpx.AsyncClient, method: str, path: str, **request) -> None:
    """A 503 that says when to come again, soon."""
    answer = await client.request(method, path, **request)
    assert answer.status_code == 503, (method, path, answer.text)
    assert int(answer.headers["retry-after"]) >= 1
    assert answer.headers["content-type"] == "application/problem+json"


async def test_all_of_it_waits_for_kafka_answers_meanwhile_and_comes_back_with_it(tmp_path: Path):
    kafka = EmbeddedKafka(tmp_path / "kafka", port=free_port(), heap_mib=256, progress=False)
    kafka.data_dir.mkdir(mode=0o700)
    sasl = sasl_variables(EmbeddedAccess(kafka.bootstrap, made_password(kafka.data_dir)))
    # A new one answers for a moment before it has been told of its user: a wrong password, which ends `serve`.
    await kafka.start()
    await kafka.stop()
    port = free_port()
    options = ["--kafka", kafka.bootstrap, "--replication", "1", "--flush-each-batch", "--partitions", "2"]
    url = f"http://127.0.0.1:{port}"
    async with Listeners() as listeners, httpx.AsyncClient(base_url=url, timeout=ANSWERED_WITHIN_S) as client:
        with Running(tmp_path / "data", *options, "--port", str(port), "--append-timeout-ms", "2000", **sasl) as server:

            def started(process: str) -> int:
                return len(server.events("process.started", process=process))

            # It starts before Kafka does.
            await until(lambda: server.events("kafka.awaited"), what="says that it waits", within_s=60)
            assert all("refused" in line for line in server.events("kafka.awaited"))
            await refused(client, "GET", "/v1/queues")
            await refused(client, "PUT", "/v1/queues", json={"name": "early"})
            assert not server.stdout
            await kafka.start()
            try:
                await until(lambda: server.stdout, what="ready", within_s=60)
                client.headers["x-api-key"] = server.api_key
                queue = (await client.put("/v1/queues", json={"name": "orders"})).json()["queue"]["id"]
                where = {"notify_url": listeners.url("a"), "liveness_url": listeners.url("a")}
                made = await client.put(f"/v1/queues/{queue}/listeners", json={"name": "billing", **where})
                listener = made.json()["listener"]["id"]
                put = await client.put(f"/v1/queues/{queue}/messages", json={"data": "before"})
                message = put.json()["message"]["id"]
                await until(lambda: message in listeners.ids("a"), what="delivered")

                # It dies, and stays dead.
                kafka.kill()
                await kafka.wait()
                messages, lost = f"/v1/queues/{queue}/messages", {"json": {"data": "lost"}}
                await asyncio.gather(
                    refused(client, "PUT", "/v1/queues", json={"name": "another"}),
                    refused(client, "DELETE", f"/v1/queues/{queue}"),
                    refused(client, "PUT", messages, **lost),
                    refused(client, "PUT", messages, json={"data": "lost", "key": "k"}),
                    refused(client, "PUT", messages, **lost, headers={"idempotency-key": "once"}),
                    refused(client, "POST", f"{messages}/batch", json={"messages": [{"data": "lost"}]}),
                    refused(client, "GET", messages),
                    refused(client, "GET", f"{messages}/{message}"),
                    refused(client, "GET", f"/v1/queues/{queue}/listeners/{listener}/deliveries"),
                    refused(client, "GET", f"/v1/queues/{UNKNOWN}"),  # it may be new
                    refused(client, "GET", f"/v1/queues/{queue}?at=2026-01-01T00:00:00Z"),
                    refused(client, "GET", "/v1/log"),
                )
                assert (await client.get("/v1/queues", headers={"x-api-key": "no such key"})).status_code in (401, 503)

                # What is started anew meanwhile waits again.
                before = started("api-1")
                os.kill(server.pid_of("api-1"), signal.SIGKILL)
                await until(lambda: started("api-1") > before, what="another API process", within_s=60)
                await refused(client, "GET", f"/v1/queues/{queue}")
                await refused(client, "PUT", messages, **lost)
                ready = len(server.events("process.ready", process="api-1"))
                await kafka.restart()
                await until(lambda: len(server.events("process.ready", process="api-1")) > ready, what="ready again")

                async def puts() -> bool:
                    return (await client.put(messages, json={"data": "after"})).status_code == 200

                await until(puts, what="messages can be put")
                await until(lambda: "after" in {got.data for got in listeners.got}, what="delivered", within_s=60)

                # It ends without Kafka as well.
                kafka.kill()
                await kafka.wait()
                assert await asyncio.to_thread(server.stop) == 0
                assert not server.alive()
            finally:
                await kafka.stop()
            assert not [line for line in server.stderr if "Traceback" in line or "CRITICAL" in line]


def test_sigterm_while_it_waits_for_kafka_ends_it_at_once(tmp_path: Path):
    with nobody() as port, Running(tmp_path / "data", "--kafka", f"127.0.0.1:{port}") as server:
        wait_until(lambda: len(server.events("kafka.awaited")) >= 2, what="API and worker wait")
        assert server.stop() == 0
        assert not server.events("process.killed")  # as who does not heed it is
        assert not server.alive()
        assert not server.stdout
        assert not [line for line in server.stderr if "Traceback" in line]


def test_sigterm_while_kafka_is_downloaded_from_a_silent_repository_ends_it_at_once(tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as silent:  # the kernel takes the connections, nobody answers
        proxy = f"http://127.0.0.1:{silent.getsockname()[1]}"
        elsewhere = {"EVERPUT_CACHE_DIR": str(tmp_path / "cache"), "HTTPS_PROXY": proxy, "https_proxy": proxy}
        with Running(tmp_path / "data", **elsewhere) as server:
            silent.settimeout(60)
            silent.accept()[0].close()
            assert server.stop() == 0
            assert not server.events("process.killed")
            assert not server.alive()
            assert not [line for line in server.stderr if "Traceback" in line]


def test_a_process_that_loses_kafka_while_it_starts_says_so_in_a_line(tmp_path: Path):
    program = """
import cli.processes.worker
from broker.errors import LogUnavailable
from cli.app import main

async def work(*_, **__):
    raise LogUnavailable("Kafka went")

cli.processes.worker._work = work
main()
"""
    command = [sys.executable, "-c", program, "worker", "--kafka", "127.0.0.1:1", "--data-dir", str(tmp_path)]
    environment = clean_environment(EVERPUT_SEALING_KEY=new_sealing_key())
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    assert 'process.failed reason="Kafka went"' in ended.stderr
    assert "Traceback" not in ended.stderr
