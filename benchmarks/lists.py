"""Benchmark of the console's lists: the time of each request that a page sends, with a backlog for every listener.

Not for: reading the log (auditing.py), or how often the pages ask (tests/unit/test_console_pages.py).
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from benchmarks.cost import by_kind
from benchmarks.running import Everput, free_port, serving, sinking

SIZE = 200


def lists(*, listeners: int, messages: int, rounds: int) -> dict[str, Any]:
    """Measure lists of a queue with this many paused listeners, each of which has all messages as its backlog."""
    with (
        tempfile.TemporaryDirectory(prefix="everput-bench-") as folder,
        sinking() as sink,
        serving(str(Path(folder) / "data"), sink) as up,
    ):
        queue_id = up.client.put("/v1/queues", json={"name": "lists"}).raise_for_status().json()["queue"]["id"]
        path = f"/v1/queues/{queue_id}"
        base = f"http://127.0.0.1:{free_port()}"
        for number in range(listeners):
            body = {"name": f"listener {number}", "notify_url": f"{base}/n", "liveness_url": f"{base}/l"}
            made = up.client.put(f"{path}/listeners", json=body).raise_for_status().json()["listener"]["id"]
            up.client.post(f"{path}/listeners/{made}/pause").raise_for_status()
        asyncio.run(up.fill(queue_id, messages, SIZE))
        hour = {"from": (datetime.now(UTC) - timedelta(hours=1)).isoformat(), "step": "1m"}
        asked: dict[str, tuple[str, dict[str, Any]]] = {
            "queues": ("/v1/queues", {"health": "true", "backlog": "true", "limit": 1000}),
            "listeners": (f"{path}/listeners", {"backlog": "true", "limit": 1000}),
            "messages": (f"{path}/messages", {"limit": 50, "deliveries": "true"}),
            "statistics": (f"{path}/statistics", hour),
            "overview": ("/v1/overview", hour),
        }
        took = {name: _times(up, where, query, rounds) for name, (where, query) in asked.items()}
        return {"listeners": listeners, "messages": messages, "ms": took}


def _times(up: Everput, path: str, query: dict[str, Any], rounds: int) -> dict[str, float]:
    """Return the median and the longest time of a request, and the processor time of the API process and of Kafka for
    each, in milliseconds.
    """
    took = []
    before = by_kind(up.pid)
    for _ in range(rounds):
        began = time.perf_counter()
        up.client.get(path, params=query).raise_for_status()
        took.append((time.perf_counter() - began) * 1000)
    after = by_kind(up.pid)
    took.sort()
    spent = {kind: round((after[kind] - before[kind]) / rounds * 1000, 1) for kind in ("api", "kafka")}
    return {"median": round(took[len(took) // 2], 1), "max": round(took[-1], 1), **spent}
