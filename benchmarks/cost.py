"""Benchmark of processor time per message of a whole installation, compared with an empty PUT and with another
checkout.

A noisy machine changes processor time less than rates, which also depend on publishers and listeners. The installations
are measured in turn within each round. Not for: what the parts can do at best (rates.py).
"""

from __future__ import annotations

import contextlib
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.rates import Bare
from benchmarks.running import (
    PUBLISHERS,
    SIZE,
    Everput,
    free_port,
    kind_of,
    process,
    run,
    serving,
    sinking,
    wait_for_port,
)

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
OPEN_LOOP_S = 8.0
SETTLE_S = 2.0
_BATCHES, _BATCHES_TEN = "batches, one", "batches, ten"
_BARE, _BARE_TEN = "the bare shape, one", "the bare shape, ten"


def cost(*, beside: str, messages: int, rounds: int, rates: list[int], idle_s: int, batch: int) -> dict[str, Any]:
    """Measure this checkout, and another one in the directory `beside`, which has its own .venv. Without `beside`,
    measure only this one. The bare shape is measured with the Kafka of this one.

    One and ten listeners with batches of `batch` messages are measured only in this checkout, because others may not
    know them.
    """
    with contextlib.ExitStack() as stack:
        sink = stack.enter_context(sinking())
        empty = stack.enter_context(emptying())
        installations, folder_of = {}, {}
        for name, checkout in {"this": "", "other": beside}.items():
            if name == "this" or checkout:
                folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="everput-bench-"))
                folder_of[name] = folder
                installations[name] = stack.enter_context(serving(folder, sink, checkout=checkout))
        bare = stack.enter_context(accepting(sink, installations["this"], Path(folder_of["this"]) / "kafka"))
        for everput in installations.values():
            for _ in range(2):  # until Java's compiler has finished
                everput.put_and_deliver(1, messages)
            everput.put_and_deliver(10, messages // 4)
        rows: dict[str, dict[str, list[dict[str, Any]]]] = {name: {} for name in installations}
        empties = []
        for number in range(rounds):
            print(f"round {number + 1} of {rounds}", file=sys.stderr)
            empties.append(empty_put_us(empty, messages))
            # The listeners, messages, messages per second and ordering keys of each load.
            shapes: dict[str, tuple[int, int, float, int]] = {
                "one": (1, messages, 0, 0),
                "ten": (10, messages // 4, 0, 0),
                **{f"at {rate}/s": (1, round(rate * OPEN_LOOP_S), rate, 0) for rate in rates},
                "1,000 ordering keys": (1, messages // 4, 0, 1_000),
                "1,000 ordering keys at 1,000/s": (1, round(1_000 * OPEN_LOOP_S), 1_000, 1_000),
                "one ordering key at 100/s": (1, round(100 * OPEN_LOOP_S), 100, 1),
            }
            for shape, (listeners, count, rate, ordering_keys) in shapes.items():
                names = list(installations) if number % 2 else list(reversed(installations))
                for name in names:
                    row = _measured(installations[name], listeners, count, rate, ordering_keys=ordering_keys)
                    rows[name].setdefault(shape, []).append(row)
            for listeners, shape in ((1, _BARE), (10, _BARE_TEN)):
                rows["this"].setdefault(shape, []).append(bare(listeners, messages // (1 if listeners == 1 else 4)))
            if batch:
                for name, listeners in ((_BATCHES, 1), (_BATCHES_TEN, 10)):
                    row = _measured(installations["this"], listeners, messages, 0, batch={"max_messages": batch})
                    rows["this"].setdefault(name, []).append(row)
        idle = {name: _idle(everput, idle_s) for name, everput in installations.items()} if idle_s else {}
    return _report(rows, empties) | {"idle_cores": idle}


@contextlib.contextmanager
def emptying() -> Iterator[tuple[int, int]]:
    """Run a server that answers an empty PUT, and yield its process id and port."""
    port = free_port()
    with process("-m", "benchmarks.limits", "empty", str(port), ready="") as server:
        wait_for_port(port)
        yield server.pid, port


@contextlib.contextmanager
def accepting(sink: str, everput: Everput, kafka: Path) -> Iterator[Callable[[int, int], dict[str, Any]]]:
    """Run the part of the bare shape that answers PUTs, with the Kafka of an installation. Yield a function that puts
    and delivers messages, and returns their cost like _measured(). Its arguments are the numbers of listeners and of
    messages.
    """
    port = free_port()
    with process("-m", "benchmarks.bare", "accept", str(port), str(kafka), ready="") as accept:
        wait_for_port(port)
        shape = Bare(f"http://127.0.0.1:{port}", "none", sink, str(kafka))
        shape.put_and_deliver(1, 5_000)

        def measured(listeners: int, messages: int) -> dict[str, Any]:
            with shape.delivering(listeners) as (begin, pid):
                begin()
                time.sleep(SETTLE_S)

                def used() -> dict[str, float]:
                    kafka_s = by_kind(everput.pid)["kafka"]
                    return {"accept": processor_s([accept.pid]), "deliver": processor_s([pid]), "kafka": kafka_s}

                before = used()
                found = shape.deliver(["q"], listeners, messages)
                time.sleep(SETTLE_S)
                return found | _cost(before, used(), messages)

        yield measured


def empty_put_us(server: tuple[int, int], messages: int) -> float:
    """Return the microseconds of processor time that an empty PUT costs its server, which is one of emptying()."""
    pid, port = server
    before = processor_s([pid])
    put = ("benchmarks.publish", "none", str(messages), str(PUBLISHERS), str(SIZE))
    run(*put, given=f"http://127.0.0.1:{port}/v1/queues/q/messages")
    return round((processor_s([pid]) - before) * 1e6 / messages, 1)


def _measured(everput: Everput, listeners: int, messages: int, rate: float, **settings: Any) -> dict[str, Any]:
    """Put one load, and return its cost in microseconds of processor time per message, by kind of process."""
    time.sleep(SETTLE_S)
    before = by_kind(everput.pid)
    found = everput.put_and_deliver(listeners, messages, rate, **settings)
    time.sleep(SETTLE_S)  # until the cursors are committed
    return found | _cost(before, by_kind(everput.pid), messages)


def _cost(before: dict[str, float], after: dict[str, float], messages: int) -> dict[str, Any]:
    parts = {kind: round((after[kind] - before.get(kind, 0.0)) * 1e6 / messages, 1) for kind in after}
    return {"us_per_message": round(sum(parts.values()), 1), "us_by_process": parts}


def _idle(everput: Everput, idle_s: int) -> dict[str, float]:
    before = by_kind(everput.pid)
    time.sleep(idle_s)
    after = by_kind(everput.pid)
    parts = {kind: round((after[kind] - before.get(kind, 0.0)) / idle_s, 4) for kind in after}
    return parts | {"all": round(sum(parts.values()), 4)}


def processor_s(pids: list[int]) -> float:
    """Return the user and system time of these processes, in seconds."""
    found = 0.0
    for pid in pids:
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
            found += (int(words[11]) + int(words[12])) / TICKS_PER_S
    return found


def by_kind(pid: int) -> dict[str, float]:
    """Return the processor time in seconds of an installation by kind of process: serve, api, worker, kafka. `pid` is
    that of `everput serve`.
    """
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError, IndexError):
            parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            children.setdefault(parent, []).append(int(entry.name))
    found = {"serve": processor_s([pid])}
    left = list(children.get(pid, []))
    while left:
        child = left.pop()
        left += children.get(child, [])
        with contextlib.suppress(OSError):
            kind = kind_of(child) or "kafka"
            found[kind] = found.get(kind, 0.0) + processor_s([child])
    return found


def _report(rows: dict[str, dict[str, list[dict[str, Any]]]], empties: list[float]) -> dict[str, Any]:
    def per(shape: str, name: str, what: Callable[[dict[str, Any]], float]) -> list[float]:
        return [what(row) for row in rows[name][shape]]

    def ratios(some: list[float], others: list[float]) -> dict[str, Any]:
        each = [round(one / other, 3) for one, other in zip(some, others, strict=True)]
        return {"median": round(statistics.median(each), 3), "rounds": each}

    found: dict[str, Any] = {"empty_put_us": empties, "rows": rows, "ratios": {}}
    for shape in rows["this"]:
        costs = per(shape, "this", lambda row: row["us_per_message"])
        deliveries = 10 if "ten" in shape else 1
        beside_empty = ratios([one / deliveries for one in costs], empties)
        found["ratios"][f"cost per delivery, {shape} / an empty PUT"] = beside_empty
        if shape in rows.get("other", {}):
            others = per(shape, "other", lambda row: row["us_per_message"])
            found["ratios"][f"cost, {shape} / other"] = ratios(costs, others)
            rates = [per(shape, name, lambda row: row["delivered_per_s"]) for name in ("this", "other")]
            found["ratios"][f"rate, {shape} / other"] = ratios(*rates)
    if _BATCHES in rows["this"]:
        pairs = zip(rows["this"][_BATCHES], rows["this"][_BATCHES_TEN], strict=True)
        found["us per delivery of a further listener with batches"] = [
            {
                kind: round((ten["us_by_process"][kind] - one["us_by_process"][kind]) / 9, 1)
                for kind in one["us_by_process"]
            }
            for one, ten in pairs
        ]
    return found
