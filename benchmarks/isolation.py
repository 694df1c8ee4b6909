"""A healthy listener alone, and beside hundreds that are dead, hang or are slow, on the same queue.

Not for: what those get. At a given rate for the latencies, and as fast as puts are answered for the rates: one that
answers at once and, on a queue of its own, one that takes 50 ms and so needs all the attempts under way that it may
have.

The machine's speed drifts, so alone and beside take turns: while it is alone the others are paused. That this is as
good as their not being there is checked by what is measured before there are any; how much two rounds differ that
should not, by one alone and the next. The bad ones are a process of their
own at the lowest priority: in the world they have machines of their own. Half of the dead answer 503, the others' port
refuses connections."""

from __future__ import annotations

import contextlib
import tempfile
from statistics import median
from typing import Any

from benchmarks.running import free_port, memory_mib, ratios, serving, sinking

WARM = 20_000  # messages before anything is measured: until then it gets quicker with each round
FULL = 10  # times as many messages at full speed: some seconds
FIRST_S = 5  # in which the dead are found out; of the hanging it takes a time-out
KNOWN_S = 25  # after which all are
AGAIN_S = 5  # before each round beside: they have just been resumed

Rows = dict[str, dict[str, Any]]  # of a round, by what is measured


def isolation(*, kinds: list[str], bad: int, messages: int, rate: float, rounds: int) -> dict[str, Any]:
    """kinds: paths of the sink. bad: listeners of each. rate: puts a second for the latencies."""
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
    """Of each round beside to the one alone right after it."""
    rounds = [ratios(one, other) for one, other in zip(alone, beside, strict=True)]
    names = rounds[0] if rounds else ()
    return {"median": {name: median(row[name] for row in rounds) for name in names}, "rounds": rounds}


def _median(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Of each figure by itself."""
    return {
        "put_per_s": median(row["put_per_s"] for row in rows),
        "delivered_per_s": median(row["delivered_per_s"] for row in rows),
        "e2e_ms": {name: median(row["e2e_ms"][name] for row in rows) for name in ("p50", "p99")},
    }
