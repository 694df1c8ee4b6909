"""A healthy listener alone, and beside hundreds that are dead, hang or are slow, on the same queue.

Not for: what those get. At a given rate for the latencies, and as fast as puts are answered for the rates. It is alone
before and after, for the machine's speed drifts: each round beside the others is compared with the median of all alone.
The bad ones are a process of their own at the lowest priority: in the world they have machines of their own. Half of
the dead answer 503, the others' port refuses connections."""

from __future__ import annotations

import contextlib
import tempfile
from statistics import median
from typing import Any

from benchmarks.running import free_port, memory_mib, ratios, serving, sinking

KINDS = ("dead", "hang", "slow")
WARM = 20_000  # messages before anything is measured: until then it gets quicker with each round
FIRST_S = 5  # in which the dead are found out; of the hanging it takes a time-out
KNOWN_S = 25  # after which all are


def isolation(*, bad: int, messages: int, rate: float, rounds: int) -> dict[str, Any]:
    """bad: listeners of each kind. rate: puts a second for the latencies."""
    refusing = f"http://127.0.0.1:{free_port()}"
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="everput-bench-"))
        everput = stack.enter_context(serving(folder, stack.enter_context(sinking())))
        paces = {"at the rate": rate, "at full speed": 0.0}

        def measured(queue_id: str) -> dict[str, list[dict[str, Any]]]:
            return {
                name: [everput.deliver([queue_id], 1, messages, pace) for _ in range(rounds)]
                for name, pace in paces.items()
            }

        good = everput.queue(["ok"])
        everput.deliver([good], 1, WARM)
        before = measured(good)
        sink = stack.enter_context(sinking(nice=19))
        urls = [
            f"{refusing if kind == 'dead' and number % 2 else sink}/{kind}{number}"
            for kind in KINDS
            for number in range(bad)
        ]
        crowded = everput.queue(["ok"], elsewhere=urls)
        first = everput.deliver([crowded], 1, int(FIRST_S * rate), rate)
        everput.deliver([crowded], 1, int((KNOWN_S - FIRST_S) * rate), rate)
        beside = measured(crowded)
        memory = memory_mib(everput.pid)
        everput.client.delete(f"/v1/queues/{crowded}").raise_for_status()
        alone = {name: before[name] + rows for name, rows in measured(good).items()}
        middle = {name: _median(rows) for name, rows in alone.items()}
        each = {name: [ratios(middle[name], row) for row in rows] for name, rows in beside.items()}
        return {
            "bad_listeners": len(urls),
            "alone": alone,
            "beside": beside,
            "beside_in_the_first_seconds": first,
            "ratios": {
                name: {"median": ratios(middle[name], _median(beside[name])), "rounds": each[name]} for name in each
            },
            "ratios_of_alone": {name: [ratios(middle[name], row) for row in rows] for name, rows in alone.items()},
            "memory_mib": memory,
        }


def _median(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Of each figure by itself."""
    return {
        "put_per_s": median(row["put_per_s"] for row in rows),
        "delivered_per_s": median(row["delivered_per_s"] for row in rows),
        "e2e_ms": {name: median(row["e2e_ms"][name] for row in rows) for name in ("p50", "p99")},
    }
