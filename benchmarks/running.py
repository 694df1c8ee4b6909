"""A running installation, and the processes around it: what every benchmark starts, requests and measures.

For: starting them, creating queues, putting messages and waiting for deliveries, memory. Not for: what is compared.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.marks import payload

PUBLISHERS = 64
SIZE = 1024
BATCH = 1000
WAIT_S = 120


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def process(*arguments: str, ready: str, nice: int = 0, checkout: str = "") -> Iterator[subprocess.Popen[str]]:
    """Start a Python process and wait for its line that begins with `ready`. End it with SIGTERM.

    `nice` is a CPU priority as for nice(1). `checkout` is the directory of another checkout, with its own .venv.
    """
    python = f"{checkout}/.venv/bin/python" if checkout else sys.executable
    command = ["nice", "-n", str(nice), python, *arguments]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=checkout or None)
    try:
        assert child.stdout is not None
        if ready:
            line = child.stdout.readline()
            assert line.startswith(ready), f"{arguments} said {line!r}"
        yield child
    finally:
        child.send_signal(signal.SIGTERM)
        child.wait(30)


def run(*arguments: str, given: str | None = None) -> Any:
    """Run a module, and return the JSON that it prints. `given` is its standard input."""
    done = subprocess.run(
        [sys.executable, "-m", *arguments], stdout=subprocess.PIPE, text=True, check=True, input=given
    )
    return json.loads(done.stdout)


def wait_for_port(port: int) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    raise TimeoutError(f"nothing listens on {port}")


def kind_of(pid: int) -> str | None:
    """Return `api`, `worker` or `kafka` for a process of an installation; None for any other process."""
    words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    name = Path(f"/proc/{pid}/comm").read_bytes().partition(b"-")[0]
    found = next((word.decode() for word in (name, *words) if word in (b"api", b"worker")), None)
    return found or ("kafka" if b"java" in words[0] else None)


def memory_mib(pid: int) -> dict[str, int]:
    """Return the resident memory in MiB of a process's children, by kind. Of several workers, count the largest."""
    found: dict[str, int] = {}
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError, IndexError):
            if int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1]) != pid:
                continue
            name = kind_of(int(entry.name))
            kib = next(line for line in (entry / "status").read_text().splitlines() if line.startswith("VmRSS"))
            if name:
                found[name] = max(found.get(name, 0), int(kib.split()[1]) // 1024)
    return found


class Site:
    """An installation, together with the sink that counts its deliveries."""

    def __init__(self, url: str, key: str, sink: str) -> None:
        self.url, self.key, self.sink = url, key, sink
        # Keep one connection to the sink, because the sink may refuse new ones when it has thousands.
        self.at_sink = httpx.Client(base_url=sink, timeout=60, limits=httpx.Limits(keepalive_expiry=None))

    def publish(
        self, queue_ids: Sequence[str], messages: int, rate: float = 0, ordering_keys: int = 0
    ) -> dict[str, Any]:
        """Put messages on these queues in turn, at a rate per second, or as fast as they are answered if
        `rate` is 0. The messages have `ordering_keys` different ordering keys, or none.
        """
        urls = ",".join(f"{self.url}/v1/queues/{queue_id}/messages" for queue_id in queue_ids)
        found: dict[str, Any] = run(
            "benchmarks.publish",
            self.key,
            str(messages),
            str(PUBLISHERS),
            str(SIZE),
            str(rate),
            str(ordering_keys),
            given=urls,
        )
        return found

    def stats(self) -> dict[str, Any]:
        found: dict[str, Any] = self.at_sink.get("/stats").json()
        return found

    def until_delivered(self, wanted: int, wait_s: float = WAIT_S) -> dict[str, Any]:
        """Return the sink's figures once it has received this many messages, or after `wait_s`."""
        deadline = time.monotonic() + wait_s
        while int(self.at_sink.get("/count").text) < wanted and time.monotonic() < deadline:
            time.sleep(0.05)
        return self.stats()

    def deliver(
        self, queue_ids: Sequence[str], listeners: int, messages: int, rate: float = 0, ordering_keys: int = 0
    ) -> dict[str, Any]:
        """Put messages on these queues, each with this many healthy listeners, and measure until the last delivery."""
        self.at_sink.get("/reset")
        start = time.perf_counter()
        put = self.publish(queue_ids, messages, rate, ordering_keys)
        wanted = put["accepted"] * listeners
        stats = self.until_delivered(wanted)
        took = time.perf_counter() - start
        return {
            "put_per_s": put["per_s"],
            "put_ms": put["ms"],
            "delivered_per_s": round(stats["unique"] / (stats["seconds"] or took)),
            "e2e_ms": stats["e2e_ms"],
            "missing": wanted - stats["unique"],
            "duplicates": stats["duplicates"],
            "errors": put["errors"],
        }

    def drained(self, messages: int, begin: Callable[[], object]) -> dict[str, Any]:
        """Measure the delivery of a backlog, which `begin` starts, while no messages are put."""
        self.at_sink.get("/reset")
        begin()
        stats = self.until_delivered(messages)
        return {
            "delivered_per_s": round(stats["unique"] / (stats["seconds"] or 1)),
            "missing": messages - stats["unique"],
            "duplicates": stats["duplicates"],
        }


class Everput(Site):
    """A running installation, used through its REST API."""

    def __init__(self, url: str, key: str, sink: str, admin: str, pid: int, ready_s: float) -> None:
        super().__init__(url, key, sink)
        self.admin, self.pid, self.ready_s = admin, pid, ready_s  # `ready_s` is the time it took to start.
        self.client = httpx.Client(base_url=url, headers={"x-api-key": key}, timeout=30)
        self.queues = 0

    def queue(self, paths: list[str], **settings: object) -> str:
        """Create a queue with a listener for each path of the sink, all with these settings."""
        self.queues += 1
        queue = self.client.put("/v1/queues", json={"name": f"bench-{self.queues}"}).raise_for_status().json()["queue"]
        for path in paths:
            self.listen(queue["id"], f"{self.sink}/{path}", **settings)
        return str(queue["id"])

    def listen(self, queue_id: str, url: str, **settings: object) -> str:
        """Create a listener of a queue, named like the URL's path."""
        settings = {"name": url.rpartition("/")[2], "notify_url": url, "liveness_url": url, **settings}
        made = self.client.put(f"/v1/queues/{queue_id}/listeners", json=settings).raise_for_status().json()
        return str(made["listener"]["id"])

    def steer(self, queue_id: str, listener_ids: Iterable[str], what: str) -> None:
        """Pause or resume these listeners of a queue. `what` is `pause` or `resume`."""
        for listener_id in listener_ids:
            self.client.post(f"/v1/queues/{queue_id}/listeners/{listener_id}/{what}").raise_for_status()

    def metric(self, name: str) -> float:
        """Return the sum of a metric over all processes."""
        text = httpx.get(f"{self.admin}/metrics", timeout=30).raise_for_status().text
        families = text_string_to_metric_families(text)
        return sum(one.value for family in families for one in family.samples if one.name == name)

    async def fill(self, queue_id: str, messages: int, size: int = SIZE, *, first: int = 0, batch: int = BATCH) -> None:
        """Put messages in batches, each marked as the publishers mark theirs, and numbered from `first` on."""
        starts = iter(range(first, first + messages, batch))
        async with httpx.AsyncClient(base_url=self.url, headers={"x-api-key": self.key}, timeout=60) as client:

            async def put() -> None:
                for start in starts:
                    numbers = range(start, min(start + batch, first + messages))
                    body = {"messages": [{"data": payload(number, time.time_ns(), size)} for number in numbers]}
                    answer = await client.post(f"/v1/queues/{queue_id}/messages/batch", json=body)
                    answer.raise_for_status()

            await asyncio.gather(*(put() for _ in range(4)))

    def drain(self, messages: int, path: str = "ok", **settings: object) -> dict[str, Any]:
        """Measure the delivery of a backlog to one listener, while no messages are put."""
        queue_id = self.queue([path], **settings)
        listeners = self.client.get(f"/v1/queues/{queue_id}/listeners").raise_for_status().json()["listeners"]
        listener_ids = [listener["id"] for listener in listeners]
        self.steer(queue_id, listener_ids, "pause")
        asyncio.run(self.fill(queue_id, messages))
        return self.drained(messages, lambda: self.steer(queue_id, listener_ids, "resume"))

    def put_and_deliver(
        self, listeners: int, messages: int, rate: float = 0, *, ordering_keys: int = 0, **settings: object
    ) -> dict[str, Any]:
        """Put messages on a new queue with this many healthy listeners, and measure their delivery."""
        queue_id = self.queue([f"ok{number}" for number in range(listeners)], **settings)
        return self.deliver([queue_id], listeners, messages, rate, ordering_keys)


@contextlib.contextmanager
def sinking(nice: int = 0) -> Iterator[str]:
    """Run a process for the listeners, and yield its URL."""
    port = free_port()
    with process("-m", "benchmarks.sink", str(port), ready="ready", nice=nice):
        yield f"http://127.0.0.1:{port}"


@contextlib.contextmanager
def serving(folder: str, sink: str, *options: str, checkout: str = "") -> Iterator[Everput]:
    """Run `everput serve` on a data directory, and yield the installation once it is ready."""
    port, admin = free_port(), free_port()
    started = time.monotonic()
    given = ["--data-dir", folder, "--port", str(port), "--admin-port", str(admin), "--allow-network", "127.0.0.0/8"]
    with process("-m", "cli.app", "serve", *given, *options, ready="ready", checkout=checkout) as serve:
        ready_s = time.monotonic() - started
        key = (Path(folder) / "api-key").read_text().strip()
        yield Everput(f"http://127.0.0.1:{port}", key, sink, f"http://127.0.0.1:{admin}", serve.pid, round(ready_s, 1))


def ratios(alone: Mapping[str, Any], beside: Mapping[str, Any]) -> dict[str, float]:
    """Return the ratios of two results of deliver()."""

    def ratio(one: float, other: float) -> float:
        return round(one / other, 3) if other else 0.0

    return {
        "delivered a second": ratio(beside["delivered_per_s"], alone["delivered_per_s"]),
        "p50": ratio(beside["e2e_ms"]["p50"], alone["e2e_ms"]["p50"]),
        "p99": ratio(beside["e2e_ms"]["p99"], alone["e2e_ms"]["p99"]),
        "accepted a second": ratio(beside["put_per_s"], alone["put_per_s"]),
    }
