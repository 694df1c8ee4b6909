"""Benchmark of an installation, compared with what its parts can do, in one run: rates, latencies, ratios.

The rounds alternate, so that a noisy machine is noisy for all. Not for: bad listeners, size (isolation.py, back.py,
scale.py).
"""

from __future__ import annotations

import contextlib
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.running import (
    PUBLISHERS,
    SIZE,
    Site,
    free_port,
    memory_mib,
    process,
    run,
    serving,
    sinking,
    wait_for_port,
)

POST_CONNECTIONS = 64


def bench(messages: int, rounds: int) -> dict[str, Any]:
    empty_port, bare_port = free_port(), free_port()
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in ("one", "ten", "drained", "light")}
    bare: dict[str, list[dict[str, Any]]] = {name: [] for name in ("one", "ten", "drained")}
    empties: list[float] = []
    posts: list[float] = []
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="everput-bench-"))
        sink = stack.enter_context(sinking())
        stack.enter_context(process("-m", "benchmarks.limits", "empty", str(empty_port), ready=""))
        everput = stack.enter_context(serving(folder, sink))
        kafka = str(Path(folder) / "kafka")
        stack.enter_context(process("-m", "benchmarks.bare", "accept", str(bare_port), kafka, ready=""))
        wait_for_port(empty_port)
        wait_for_port(bare_port)
        shape = Bare(f"http://127.0.0.1:{bare_port}", "none", sink, kafka)
        memory = memory_mib(everput.pid)
        everput.put_and_deliver(1, messages)  # until Java's compiler has finished
        shape.put_and_deliver(1, messages)
        empty_url = f"http://127.0.0.1:{empty_port}/v1/queues/q/messages"
        put = ("benchmarks.publish", "none", str(messages), str(PUBLISHERS), str(SIZE))
        post = ("benchmarks.limits", "post", sink.rpartition(":")[2], str(messages), str(POST_CONNECTIONS), str(SIZE))
        for number in range(rounds):
            print(f"round {number + 1} of {rounds}", file=sys.stderr)
            empties.append(run(*put, given=empty_url)["per_s"])
            posts.append(run(*post))
            for listeners, name, count in ((1, "one", messages), (10, "ten", messages // 4)):
                rows[name].append(everput.put_and_deliver(listeners, count))
                bare[name].append(shape.put_and_deliver(listeners, count))
            rows["drained"].append(everput.drain(messages))
            bare["drained"].append(shape.drain(messages))
            rows["light"].append(everput.put_and_deliver(1, messages // 20, rate=300))
        return report(rows, bare, empties, posts) | {"ready_s": everput.ready_s, "memory_mib_at_rest": memory}


class Bare(Site):
    """The minimal pipeline of benchmarks/bare.py, measured like an installation."""

    def __init__(self, url: str, key: str, sink: str, kafka: str) -> None:
        super().__init__(url, key, sink)
        self.kafka = kafka

    def put_and_deliver(self, listeners: int, messages: int) -> dict[str, Any]:
        with self.delivering(listeners) as (begin, _):
            begin()
            return self.deliver(["q"], listeners, messages)

    def drain(self, messages: int) -> dict[str, Any]:
        with self.delivering(1) as (begin, _):
            self.publish(["q"], messages)
            return self.drained(messages, begin)

    @contextlib.contextmanager
    def delivering(self, listeners: int) -> Iterator[tuple[Callable[[], None], int]]:
        """Start the process that delivers. Yield the function that makes it begin, and its process id."""
        arguments = ("-m", "benchmarks.bare", "deliver", self.kafka, self.sink, str(listeners))
        with process(*arguments, ready="ready") as child:

            def begin() -> None:
                if child.stdin is not None:
                    child.stdin.write("\n")
                    child.stdin.flush()

            yield begin, child.pid


def report(
    rows: dict[str, list[dict[str, Any]]],
    bare: dict[str, list[dict[str, Any]]],
    empties: list[float],
    posts: list[float],
) -> dict[str, Any]:
    """Return the ratios of measurements that were made next to each other, for each round, and their medians."""

    def rates(found: dict[str, list[dict[str, Any]]], name: str) -> list[float]:
        return [
            min(row.get("put_per_s", 1e9), row["delivered_per_s"]) if name == "one" else row["delivered_per_s"]
            for row in found[name]
        ]

    def ratios(some: list[float], others: list[float]) -> dict[str, Any]:
        each = [round(one / other, 2) for one, other in zip(some, others, strict=True)]
        return {"median": round(statistics.median(each), 2), "rounds": each}

    return {
        "empty_put_per_s": empties,
        "bare_post_per_s": posts,
        "one_listener": rows["one"],
        "ten_listeners": rows["ten"],
        "backlog_of_one_listener": rows["drained"],
        "light_load_300_per_s": rows["light"],
        "bare_shape": bare,
        "ratios": {
            "end to end, one listener / bare shape": ratios(rates(rows, "one"), rates(bare, "one")),
            "deliveries, ten listeners / bare shape": ratios(rates(rows, "ten"), rates(bare, "ten")),
            "deliveries from a backlog / bare shape": ratios(rates(rows, "drained"), rates(bare, "drained")),
            "end to end, one listener / empty PUT": ratios(rates(rows, "one"), empties),
            "deliveries, ten listeners / empty PUT": ratios(rates(rows, "ten"), empties),
            "deliveries from a backlog / bare post": ratios(rates(rows, "drained"), posts),
            "deliveries, ten listeners / bare post": ratios(rates(rows, "ten"), posts),
        },
    }
