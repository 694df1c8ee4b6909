"""What this installation does, beside what its parts can do, in one run: rates, latencies, ratios.

The rounds alternate: a noisy machine is noisy for all. Not for: bad listeners, size (isolation.py, back.py, scale.py).
"""

from __future__ import annotations

import contextlib
import statistics
import sys
import tempfile
from typing import Any

from benchmarks.running import PUBLISHERS, SIZE, free_port, memory_mib, process, run, serving, sinking, wait_for_port

POST_CONNECTIONS = 64


def bench(messages: int, rounds: int) -> dict[str, Any]:
    empty_port = free_port()
    rows: dict[str, list[dict[str, Any]]] = {"one": [], "ten": [], "drained": [], "light": []}
    empties: list[float] = []
    posts: list[float] = []
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="everput-bench-"))
        sink = stack.enter_context(sinking())
        stack.enter_context(process("-m", "benchmarks.limits", "empty", str(empty_port), ready=""))
        everput = stack.enter_context(serving(folder, sink))
        wait_for_port(empty_port)
        memory = memory_mib(everput.pid)
        everput.put_and_deliver(1, messages)  # until Java has compiled what it will
        empty_url = f"http://127.0.0.1:{empty_port}/v1/queues/q/messages"
        put = ("benchmarks.publish", "none", str(messages), str(PUBLISHERS), str(SIZE))
        post = ("benchmarks.limits", "post", sink.rpartition(":")[2], str(messages), str(POST_CONNECTIONS), str(SIZE))
        for number in range(rounds):
            print(f"round {number + 1} of {rounds}", file=sys.stderr)
            empties.append(run(*put, given=empty_url)["per_s"])
            posts.append(run(*post))
            rows["one"].append(everput.put_and_deliver(1, messages))
            rows["ten"].append(everput.put_and_deliver(10, messages // 4))
            rows["drained"].append(everput.drain(messages))
            rows["light"].append(everput.put_and_deliver(1, messages // 20, rate=300))
        return report(rows, empties, posts) | {"ready_s": everput.ready_s, "memory_mib_at_rest": memory}


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
        "backlog_of_one_listener": rows["drained"],
        "light_load_300_per_s": rows["light"],
        "ratios": {
            "end to end, one listener / empty PUT": round(statistics.median(both) / empty, 3),
            "deliveries, ten listeners / empty PUT": round(middle("ten", "delivered_per_s") / empty, 3),
            "deliveries from a backlog / bare post": round(middle("drained", "delivered_per_s") / post, 3),
            "deliveries, ten listeners / bare post": round(middle("ten", "delivered_per_s") / post, 3),
        },
    }
