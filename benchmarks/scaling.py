"""Benchmark of a cost model: what a put, a delivery, a record batch and a second under load cost in processor time, by
kind of process.

The model is fitted to some loads. Then it predicts the processor time of other loads, which are measured as well.
Not for: comparing two checkouts (cost.py).
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
import time
from collections.abc import Iterable
from statistics import median
from typing import Any, Final, NamedTuple

from benchmarks.cost import OPEN_LOOP_S, SETTLE_S, by_kind, empty_put_us, emptying
from benchmarks.running import Everput, serving, sinking

KINDS: Final = ("api", "worker", "kafka")
# Listeners, and messages a second; 0 is as fast as puts are answered.
FITTED: Final = {
    "one": (1, 0.0),
    "ten": (10, 0.0),
    "one at 300/s": (1, 300.0),
    "one at 1,000/s": (1, 1_000.0),
    "five at 500/s": (5, 500.0),
    "ten at 30/s": (10, 30.0),
}
PREDICTED: Final = {
    "three": (3, 0.0),
    "two at 100/s": (2, 100.0),
    "five at 200/s": (5, 200.0),
    "three at 700/s": (3, 700.0),
}
SWEEPS: Final = 10_000
BATCHES: Final = "everput_put_batches_total"


class Load(NamedTuple):
    """A measured load. `used` is the processor time in microseconds per message, by kind of process."""

    deliveries: int  # per message
    batches: float  # record batches per message
    apart: float  # 1 if each put comes apart from the others, and wakes resting processes; 0 at full speed
    load_s: float  # seconds under load, per message
    seconds: float  # the same with a rest before and after
    used: dict[str, float]

    @property
    def work(self) -> tuple[float, ...]:
        """The amounts of work for a message, in the order of the costs in a model."""
        return 1.0, float(self.deliveries), self.batches, self.apart, self.load_s


class Model(NamedTuple):
    """The processor time of one kind of process: microseconds for each put, delivery, record batch, put that comes
    apart from others, and second under load, and the processors in use without any load.
    """

    put: float
    delivery: float
    batch: float
    apart: float
    second: float
    idle: float

    def predict(self, load: Load) -> float:
        """Return the microseconds of processor time per message."""
        return _sum(self[:-1], load.work) + self.idle * load.seconds * 1e6


def scaling(*, messages: int, rounds: int, idle_s: int) -> dict[str, Any]:
    """Fit the model, and compare its predictions with measured loads.

    The machine's speed changes. So all loads are measured in each round, and their processor times are multiplied so
    that an empty PUT costs as much in each round as in the median round.
    """
    found: list[tuple[float, dict[str, Load]]] = []
    with contextlib.ExitStack() as stack:
        empty = stack.enter_context(emptying())
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="everput-bench-"))
        everput = stack.enter_context(serving(folder, stack.enter_context(sinking())))
        for _ in range(3):  # until Java's compiler has finished
            everput.put_and_deliver(1, messages)
        everput.put_and_deliver(10, messages // 4)
        time.sleep(SETTLE_S)
        idle = _idle(everput, idle_s)
        for number in range(rounds):
            print(f"round {number + 1} of {rounds}", file=sys.stderr)
            before_us = empty_put_us(empty, messages)
            loads = {name: _load(everput, *shape, messages) for name, shape in (FITTED | PREDICTED).items()}
            found.append(((before_us + empty_put_us(empty, messages)) / 2, loads))
    usual_us = median(us for us, _ in found)
    loads = {name: _median([_scaled(row[name], usual_us / us) for us, row in found]) for name in FITTED | PREDICTED}
    models = {kind: fitted(kind, [loads[name] for name in FITTED], idle[kind]) for kind in KINDS}
    return {
        "empty_put_us": [us for us, _ in found],
        "model": {kind: {name: round(us, 4) for name, us in model._asdict().items()} for kind, model in models.items()},
        "loads": {name: load._asdict() for name, load in loads.items()},
        "compared": {name: _compared(models, loads[name]) for name in loads},
    }


def fitted(kind: str, loads: list[Load], idle: float) -> Model:
    """Fit the costs of one kind of process to loads: the sum of the squares of the relative errors is least, and no
    cost is negative. The processor time at rest is subtracted first.

    One cost after the other is set to its best value, again and again (cyclic coordinate descent).
    """
    rows = [[one / load.used[kind] for one in load.work] for load in loads]
    wanted = [1 - idle * load.seconds * 1e6 / load.used[kind] for load in loads]
    costs = [0.0] * len(rows[0])
    for _ in range(SWEEPS):
        for at in range(len(costs)):
            left = [want - _sum(costs, row) + costs[at] * row[at] for want, row in zip(wanted, rows, strict=True)]
            costs[at] = max(0.0, _sum(left, [row[at] for row in rows]) / sum(row[at] ** 2 for row in rows))
    return Model(*costs, idle)


def _sum(costs: Iterable[float], amounts: Iterable[float]) -> float:
    return sum((cost * amount for cost, amount in zip(costs, amounts, strict=True)), 0.0)


def _compared(models: dict[str, Model], load: Load) -> dict[str, Any]:
    predicted = {kind: model.predict(load) for kind, model in models.items()}
    return {
        "measured_us": {kind: round(load.used[kind], 1) for kind in KINDS},
        "predicted_us": {kind: round(us, 1) for kind, us in predicted.items()},
        "predicted / measured": round(sum(predicted.values()) / sum(load.used[kind] for kind in KINDS), 3),
    }


def _load(everput: Everput, listeners: int, rate: float, messages: int) -> Load:
    count = round(rate * OPEN_LOOP_S) if rate else messages // listeners
    time.sleep(SETTLE_S)
    before, batches, began = by_kind(everput.pid), everput.metric(BATCHES), time.perf_counter()
    found = everput.put_and_deliver(listeners, count, rate)
    assert not found["missing"], found
    load_s = time.perf_counter() - began
    time.sleep(SETTLE_S)  # until the cursors are committed
    seconds = time.perf_counter() - began
    after = by_kind(everput.pid)
    batches = everput.metric(BATCHES) - batches
    used = {kind: (after[kind] - before[kind]) * 1e6 / count for kind in KINDS}
    return Load(listeners, batches / count, float(bool(rate)), load_s / count, seconds / count, used)


def _scaled(load: Load, factor: float) -> Load:
    return load._replace(used={kind: us * factor for kind, us in load.used.items()})


def _median(loads: list[Load]) -> Load:
    """Return the medians of the loads' figures."""
    return Load(
        loads[0].deliveries,
        median(load.batches for load in loads),
        loads[0].apart,
        median(load.load_s for load in loads),
        median(load.seconds for load in loads),
        {kind: median(load.used[kind] for load in loads) for kind in KINDS},
    )


def _idle(everput: Everput, idle_s: int) -> dict[str, float]:
    before = by_kind(everput.pid)
    time.sleep(idle_s)
    after = by_kind(everput.pid)
    return {kind: (after[kind] - before[kind]) / idle_s for kind in KINDS}
