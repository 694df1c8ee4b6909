"""Benchmark of a cost model: what a put, a delivery and a record batch cost in processor time, by kind of process.

The model is fitted to three loads. Then it predicts the processor time of other loads, which are measured as well.
Not for: comparing two checkouts (cost.py).
"""

from __future__ import annotations

import tempfile
import time
from typing import Any, Final, NamedTuple

from benchmarks.cost import OPEN_LOOP_S, SETTLE_S, by_kind
from benchmarks.running import Everput, serving, sinking

KINDS: Final = ("api", "worker", "kafka")
FITTED: Final = {"one": (1, 0.0), "ten": (10, 0.0), "slow": (1, 300.0)}
PREDICTED: Final = {"three": (3, 0.0), "five at 500/s": (5, 500.0), "one at 1,000/s": (1, 1_000.0)}


class Load(NamedTuple):
    """A measured load. `used` is the processor time in microseconds per message, by kind of process."""

    listeners: int
    batches: float  # record batches per message
    seconds: float  # per message
    used: dict[str, float]


class Model(NamedTuple):
    """The processor time of one kind of process: microseconds for each put, delivery and record batch, and the
    processors in use without any load.
    """

    put: float
    delivery: float
    batch: float
    idle: float

    def predict(self, load: Load) -> float:
        """Return the microseconds of processor time per message."""
        return self.put + self.delivery * load.listeners + self.batch * load.batches + self.idle * load.seconds * 1e6


def scaling(*, messages: int, rounds: int, idle_s: int) -> dict[str, Any]:
    """Fit the model, and compare its predictions with measured loads."""
    with (
        sinking() as sink,
        tempfile.TemporaryDirectory(prefix="everput-bench-") as folder,
        serving(folder, sink) as one,
    ):
        for _ in range(3):  # until Java's compiler has finished
            one.put_and_deliver(1, messages)
        one.put_and_deliver(10, messages // 4)
        time.sleep(SETTLE_S)
        idle = _idle(one, idle_s)
        loads = {name: _median([_load(one, *shape, messages) for _ in range(rounds)]) for name, shape in FITTED.items()}
        models = {kind: _fitted(kind, loads, idle[kind]) for kind in KINDS}
        compared = {}
        for name, shape in PREDICTED.items():
            load = _median([_load(one, *shape, messages) for _ in range(rounds)])
            predicted = {kind: model.predict(load) for kind, model in models.items()}
            compared[name] = {
                "measured_us": {kind: round(load.used[kind], 1) for kind in KINDS},
                "predicted_us": {kind: round(us, 1) for kind, us in predicted.items()},
                "predicted / measured": round(sum(predicted.values()) / sum(load.used[kind] for kind in KINDS), 3),
                "batches_per_message": round(load.batches, 4),
            }
    return {
        "model": {kind: {name: round(us, 4) for name, us in model._asdict().items()} for kind, model in models.items()},
        "fitted": {name: load._asdict() for name, load in loads.items()},
        "compared": compared,
    }


def _fitted(kind: str, loads: dict[str, Load], idle: float) -> Model:
    """Solve for the costs of one kind of process. The processor time at rest is subtracted first."""
    one, ten, slow = (loads[name] for name in ("one", "ten", "slow"))
    used = {name: load.used[kind] - idle * load.seconds * 1e6 for name, load in loads.items()}
    batch = max(0.0, (used["slow"] - used["one"]) / (slow.batches - one.batches))
    delivery = max(0.0, (used["ten"] - used["one"] - batch * (ten.batches - one.batches)) / (ten.listeners - 1))
    return Model(used["one"] - delivery - batch * one.batches, delivery, batch, idle)


def _load(everput: Everput, listeners: int, rate: float, messages: int) -> Load:
    count = round(rate * OPEN_LOOP_S) if rate else messages
    time.sleep(SETTLE_S)
    before, batches, began = by_kind(everput.pid), everput.metric("everput_put_batches_total"), time.perf_counter()
    found = everput.put_and_deliver(listeners, count, rate)
    assert not found["missing"], found
    time.sleep(SETTLE_S)  # until the cursors are committed
    seconds = time.perf_counter() - began
    after, stored = by_kind(everput.pid), everput.metric("everput_put_batches_total") - batches
    used = {kind: (after[kind] - before[kind]) * 1e6 / count for kind in KINDS}
    return Load(listeners, stored / count, seconds / count, used)


def _median(loads: list[Load]) -> Load:
    """Return the load with the median processor time."""
    return sorted(loads, key=lambda load: sum(load.used.values()))[(len(loads) - 1) // 2]


def _idle(everput: Everput, idle_s: int) -> dict[str, float]:
    before = by_kind(everput.pid)
    time.sleep(idle_s)
    after = by_kind(everput.pid)
    return {kind: (after[kind] - before[kind]) / idle_s for kind in KINDS}
