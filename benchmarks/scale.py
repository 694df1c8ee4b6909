"""Benchmark of more workers, more listeners and a longer log.

Not for: bad listeners (isolation.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import time
from typing import Any

import httpx

from benchmarks.running import Everput, memory_mib, serving, sinking

AT_ONCE = 32
MARK_BYTES = 1  # no padding after the marks
IN_FLIGHT = 256  # With only 64, a listener that takes 5 ms would limit the rate to 12,800 per second.


def scale(*, workers: list[int], backlog: int, messages: int, listeners: int, queues: int, log: int) -> dict[str, Any]:
    """Measure more workers with a `backlog` of messages, more listeners, and a `log` of this many messages. A value of
    0 skips the measurement.
    """
    with sinking() as sink:
        return {
            "workers": _workers(sink, workers, backlog) if backlog else None,
            "listeners": _listeners(sink, listeners, queues, messages) if listeners else None,
            "log": _log(sink, log) if log else None,
        }


def _workers(sink: str, counts: list[int], backlog: int) -> dict[str, Any]:
    """Measure the delivery of a backlog to one listener that takes 5 ms for a message. No messages are put, so the API
    does not matter.
    """
    rows = {}
    for count in counts:
        with contextlib.ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="everput-bench-"))
            everput = stack.enter_context(serving(folder, sink, "--workers", str(count)))
            everput.drain(backlog // 10, "five", max_in_flight=IN_FLIGHT)
            rows[count] = everput.drain(backlog, "five", max_in_flight=IN_FLIGHT)
    first = rows[counts[0]]["delivered_per_s"] or 1
    return {"runs": rows, "ratios": {count: round(row["delivered_per_s"] / first, 3) for count, row in rows.items()}}


def _listeners(sink: str, listeners: int, queues: int, messages: int) -> dict[str, Any]:
    """Measure the start, the memory and a load with this many listeners on this many queues."""
    each = max(1, listeners // queues)
    with tempfile.TemporaryDirectory(prefix="everput-bench-") as folder:
        with serving(folder, sink) as everput:
            began = time.monotonic()
            queue_ids = asyncio.run(_make(everput, queues, each))
            made_s = time.monotonic() - began
        with serving(folder, sink) as everput:
            rest = memory_mib(everput.pid)
            commits, since = everput.metric("everput_cursors_committed_total"), time.monotonic()
            loaded = everput.deliver(queue_ids, each, messages)
            took_s = time.monotonic() - since
            commits = everput.metric("everput_cursors_committed_total") - commits
            return {
                "listeners": each * queues,
                "queues": queues,
                "made_s": round(made_s, 1),
                "ready_s": everput.ready_s,
                "memory_mib_at_rest": rest,
                "memory_mib_loaded": memory_mib(everput.pid),
                "cursors_committed_per_s": round(commits / took_s),
                "loaded": loaded,
            }


async def _make(everput: Everput, queues: int, each: int) -> list[str]:
    """Create queues with this many listeners each."""
    turns = asyncio.Semaphore(AT_ONCE)
    limits = httpx.Limits(max_connections=AT_ONCE)
    headers = {"x-api-key": everput.key}
    async with httpx.AsyncClient(base_url=everput.url, headers=headers, timeout=60, limits=limits) as client:

        async def one(number: int) -> str:
            async with turns:
                answer = await client.put("/v1/queues", json={"name": f"scale-{number}"})
                queue_id = str(answer.raise_for_status().json()["queue"]["id"])
                for place in range(each):
                    url = f"{everput.sink}/ok{number}-{place}"
                    body = {"name": f"l{place}", "notify_url": url, "liveness_url": url}
                    (await client.put(f"/v1/queues/{queue_id}/listeners", json=body)).raise_for_status()
                return queue_id

        return list(await asyncio.gather(*(one(number) for number in range(queues))))


def _log(sink: str, messages: int) -> dict[str, Any]:
    """Measure a start on an empty log, and one on a log of this many messages."""
    with tempfile.TemporaryDirectory(prefix="everput-bench-") as folder:
        with serving(folder, sink) as everput:
            empty = {"ready_s": everput.ready_s, "memory_mib": memory_mib(everput.pid)}
            queue_id = everput.queue(["ok"])
            everput.at_sink.get("/reset")
            began = time.monotonic()
            asyncio.run(everput.fill(queue_id, messages, MARK_BYTES))
            filled_s = time.monotonic() - began
            stats = everput.until_delivered(messages, wait_s=3600)
        with serving(folder, sink) as everput:
            full = {"ready_s": everput.ready_s, "memory_mib": memory_mib(everput.pid)}
            after = everput.deliver([queue_id], 1, 100)
    ratios = {
        "ready": round(full["ready_s"] / empty["ready_s"], 3),
        "worker's memory": round(full["memory_mib"]["worker"] / empty["memory_mib"]["worker"], 3),
        "API's memory": round(full["memory_mib"]["api"] / empty["memory_mib"]["api"], 3),
    }
    return {
        "messages": messages,
        "put_per_s_in_batches": round(messages / filled_s),
        "missing": messages - stats["unique"],
        "empty": empty,
        "full": full,
        "ratios": ratios,
        "then": after,
    }
