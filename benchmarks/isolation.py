"""Benchmark of a healthy listener alone, and with hundreds of listeners that are down, hang or are slow on the same
queue.

Not for: deliveries to the bad listeners. Latencies are measured at a given rate, and rates as fast as puts are
answered. One healthy listener answers at once. Another one, on its own queue, takes 50 ms and so needs all the attempts
in flight that it may have.

The machine's speed drifts, so both cases are measured in turn, and the bad listeners are paused for the rounds without
them. A measurement before the bad listeners exist checks that pausing them is good enough. The difference between two
rounds without them shows the noise. The bad listeners' process has the lowest CPU priority, because real listeners have
their own machines. Half of the dead ones answer 503, the port of the others refuses connections.
"""

from __future__ import annotations

import contextlib
import tempfile
from statistics import median
from typing import Any

from benchmarks.running import free_port, memory_mib, ratios, serving, sinking

WARM = 20_000  # warm-up messages, because the first rounds are slower
FULL = 10  # factor of messages at full speed, for some seconds
FIRST_S = 5  # After this time, dead listeners are known to be down. Hanging ones take a timeout.
KNOWN_S = 25  # After this time, all bad listeners are known to be down.
AGAIN_S = 5  # warm-up after the bad listeners were resumed

Rows = dict[str, dict[str, Any]]  # results of one round, by measurement


def isolation(*, kinds: list[str], bad: int, messages: int, rate: float, rounds: int) -> dict[str, Any]:
    """Measure a healthy listener alone and with bad ones. `kinds` are paths of the sink with `bad` listeners each, and
    `rate` is the number of puts per second for the latencies.
    """
    refusing = f"http://127.0.0.1:{free_port()}"
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="everput-bench-"))
        everput = stack.enter_context(serving(folder, stack.enter_context(sinking())))
        good, patient = everput.queue(["ok"]), everput.queue(["fifty"])
        everput.deliver([good], 1, WARM)

        def measured(queue_id: str) -> Rows:
            return {
                "at the rate": everput.deliver([queue_id], 1, messages, rate),
                "at full speed": everput.deliver([queue_id], 1, FULL * messages),
                "at full speed, 50 ms each": everput.deliver([patient], 1, 2 * messages),
            }

        without = [measured(good) for _ in range(rounds)]
        sink = stack.enter_context(sinking(nice=19))
        urls = [
            f"{refusing if kind == 'dead' and number % 2 else sink}/{kind}{number}"
            for kind in kinds
            for number in range(bad)
        ]
        crowded = everput.queue(["ok"])
        listeners = [everput.listen(crowded, url) for url in urls]
        first = everput.deliver([crowded], 1, int(FIRST_S * rate), rate)
        everput.deliver([crowded], 1, int((KNOWN_S - FIRST_S) * rate), rate)
        alone, beside = list[Rows](), list[Rows]()
        memory: dict[str, int] = {}
        for _ in range(rounds):
            everput.deliver([crowded], 1, int(AGAIN_S * rate), rate)
            beside.append(measured(crowded))
            memory = memory_mib(everput.pid)
            everput.steer(crowded, listeners, "pause")
            alone.append(measured(good))
            everput.steer(crowded, listeners, "resume")
        return {
            "bad_listeners": len(urls),
            "without": without,
            "alone": alone,
            "beside": beside,
            "beside_in_the_first_seconds": first,
            "ratios": {name: _ratios([row[name] for row in alone], [row[name] for row in beside]) for name in alone[0]},
            "alone_to_the_next_alone": {
                name: _ratios([row[name] for row in alone[1:]], [row[name] for row in alone[:-1]]) for name in alone[0]
            },
            "alone_to_without": {
                name: ratios(_median([row[name] for row in without]), _median([row[name] for row in alone]))
                for name in alone[0]
            },
            "memory_mib": memory,
        }


def _ratios(alone: list[dict[str, Any]], beside: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the ratios of each round with bad listeners to the round without them right after it."""
    rounds = [ratios(one, other) for one, other in zip(alone, beside, strict=True)]
    names = rounds[0] if rounds else ()
    return {"median": {name: median(row[name] for row in rounds) for name in names}, "rounds": rounds}


def _median(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the median of each figure."""
    return {
        "put_per_s": median(row["put_per_s"] for row in rows),
        "delivered_per_s": median(row["delivered_per_s"] for row in rows),
        "e2e_ms": {name: median(row["e2e_ms"][name] for row in rows) for name in ("p50", "p99")},
    }
