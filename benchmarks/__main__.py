"""`make bench`: what this installation does, beside what its parts can do, in one run.

It starts `everput serve` on a temporary folder (embedded Kafka, fsync before each answer), a sink and publishers in
processes of their own, all on this machine, and prints rates, latencies and the ratios that can be compared between
machines. `python -m benchmarks [--messages N] [--rounds N]`. The rounds alternate: a noisy machine is noisy for all.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

PUBLISHERS = 64
SIZE = 1024
POST_CONNECTIONS = 64
WAIT_S = 120


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def process(*arguments: str, ready: str) -> Iterator[subprocess.Popen[str]]:
    """A Python process of ours, from its ready line on; ended by SIGTERM."""
    child = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        if ready:
            line = child.stdout.readline()
            assert line.startswith(ready), f"{arguments} said {line!r}"
        yield child
    finally:
        child.send_signal(signal.SIGTERM)
        child.wait(30)


def run(*arguments: str) -> Any:
    done = subprocess.run([sys.executable, "-m", *arguments], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def wait_for_port(port: int) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    raise TimeoutError(f"nothing listens on {port}")


def memory_mib(pid: int) -> dict[str, int]:
    """Resident memory of a process's children, by what they are."""
    found = {}
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError, IndexError):
            if int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1]) != pid:
                continue
            words = (entry / "cmdline").read_bytes().split(b"\0")
            name = next((w.decode() for w in words if w in (b"api", b"worker")), "kafka" if b"java" in words[0] else "")
            kib = next(line for line in (entry / "status").read_text().splitlines() if line.startswith("VmRSS"))
            if name:
                found[name] = int(kib.split()[1]) // 1024
    return found


class Everput:
    """A running installation, through its REST API."""

    def __init__(self, url: str, key: str, sink: str) -> None:
        self.url, self.key, self.sink = url, key, sink
        self.client = httpx.Client(base_url=url, headers={"x-api-key": key}, timeout=30)
        self.queues = 0

    def queue(self, paths: list[str]) -> str:
        """A new queue with a listener per path of the sink."""
        self.queues += 1
        queue = self.client.put("/v1/queues", json={"name": f"bench-{self.queues}"}).raise_for_status().json()["queue"]
        for path in paths:
            listener = {
                "name": path,
                "notify_url": f"{self.sink}/{path}",
                "liveness_url": f"{self.sink}/{path}",
            }
            self.client.put(f"/v1/queues/{queue['id']}/listeners", json=listener).raise_for_status()
        return str(queue["id"])

    def put_and_deliver(self, listeners: int, messages: int, rate: float = 0) -> dict[str, Any]:
        """Put messages to a new queue; the end-to-end rate is until the last delivery."""
        queue_id = self.queue([f"ok{number}" for number in range(listeners)])
        httpx.get(f"{self.sink}/reset")
        start = time.perf_counter()
        url = f"{self.url}/v1/queues/{queue_id}/messages"
        put = run("benchmarks.publish", url, self.key, str(messages), str(PUBLISHERS), str(SIZE), str(rate))
        wanted = put["accepted"] * listeners
        deadline = time.monotonic() + WAIT_S
        while (stats := httpx.get(f"{self.sink}/stats").json())["unique"] < wanted and time.monotonic() < deadline:
            time.sleep(0.05)
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


def bench(messages: int, rounds: int) -> dict[str, Any]:
    sink_port, empty_port, port = free_port(), free_port(), free_port()
    sink = f"http://127.0.0.1:{sink_port}"
    rows: dict[str, list[dict[str, Any]]] = {"one": [], "ten": [], "light": []}
    empties: list[float] = []
    posts: list[float] = []
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="everput-bench-"))
        stack.enter_context(process("-m", "benchmarks.sink", str(sink_port), ready="ready"))
        stack.enter_context(process("-m", "benchmarks.limits", "empty", str(empty_port), ready=""))
        started = time.monotonic()
        options = ["--data-dir", folder, "--port", str(port), "--allow-network", "127.0.0.0/8"]
        serve = stack.enter_context(process("-m", "cli.app", "serve", *options, ready="ready"))
        ready_s = time.monotonic() - started
        wait_for_port(empty_port)
        everput = Everput(f"http://127.0.0.1:{port}", (Path(folder) / "api-key").read_text().strip(), sink)
        memory = memory_mib(serve.pid)
        everput.put_and_deliver(1, messages // 4)  # everything is warm after this
        empty_url = f"http://127.0.0.1:{empty_port}/v1/queues/q/messages"
        for number in range(rounds):
            print(f"round {number + 1} of {rounds}", file=sys.stderr)
            put = run("benchmarks.publish", empty_url, "none", str(messages), str(PUBLISHERS), str(SIZE))
            empties.append(put["per_s"])
            posts.append(
                run("benchmarks.limits", "post", str(sink_port), str(messages), str(POST_CONNECTIONS), str(SIZE))
            )
            rows["one"].append(everput.put_and_deliver(1, messages))
            rows["ten"].append(everput.put_and_deliver(10, messages // 4))
            rows["light"].append(everput.put_and_deliver(1, messages // 20, rate=300))
    return report(rows, empties, posts) | {"ready_s": round(ready_s, 1), "memory_mib_at_rest": memory}


def report(rows: dict[str, list[dict[str, Any]]], empties: list[float], posts: list[float]) -> dict[str, Any]:
    """Medians over the rounds."""

    def middle(name: str, field: str) -> float:
        return statistics.median(row[field] for row in rows[name])

    empty, post = statistics.median(empties), statistics.median(posts)
    both = [min(row["put_per_s"], row["delivered_per_s"]) for row in rows["one"]]
    return {
        "empty_put_per_s": empty,
        "bare_post_per_s": post,
        "one_listener": rows["one"],
        "ten_listeners": rows["ten"],
        "light_load_300_per_s": rows["light"],
        "ratios": {
            "end to end, one listener / empty PUT": round(statistics.median(both) / empty, 3),
            "deliveries, ten listeners / empty PUT": round(middle("ten", "delivered_per_s") / empty, 3),
            "deliveries, ten listeners / bare post": round(middle("ten", "delivered_per_s") / post, 3),
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    print(json.dumps(bench(options.messages, options.rounds), indent=1))


if __name__ == "__main__":
    main()
