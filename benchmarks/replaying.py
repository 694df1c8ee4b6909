"""Benchmark of a healthy listener alone, and during a big replay of another queue to a listener that is as fast.

Not for: what a replay delivers (tests/kafka/test_replay.py). Latencies are measured at a given rate, and rates as fast
as puts are answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import time
from collections.abc import Iterator
from typing import Any

from benchmarks.running import Everput, ratios, serving, sinking

ALONE_S = 20.0


def replaying(*, replayed: int, messages: int, rate: float, rounds: int) -> dict[str, Any]:
    """Measure a healthy listener alone and during a replay of `replayed` messages. `rate` is the number of puts per
    second for the latencies.
    """
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="everput-bench-"))
        everput = stack.enter_context(serving(folder, stack.enter_context(sinking())))
        past = everput.queue([])
        asyncio.run(everput.fill(past, replayed))
        listener = f"/v1/queues/{past}/listeners/{everput.listen(past, everput.sink + '/aside')}"
        good = everput.queue(["ok"])
        everput.deliver([good], 1, messages // 4)  # warm-up
        found: dict[str, Any] = {"replayed_per_s_alone": [], "replayed_per_s_beside": []}
        with _replay(everput, listener, found["replayed_per_s_alone"]):
            time.sleep(ALONE_S)
        for what, pace in (("at_the_rate", rate), ("at_full_speed", 0.0)):
            alone, beside = [], []
            for _ in range(rounds):
                alone.append(everput.deliver([good], 1, messages, pace))
                with _replay(everput, listener, found["replayed_per_s_beside"]):
                    beside.append(everput.deliver([good], 1, messages, pace))
            found[what] = {
                "alone": alone,
                "beside": beside,
                "ratios": [ratios(*pair) for pair in zip(alone, beside, strict=True)],
            }
        return found


@contextlib.contextmanager
def _replay(everput: Everput, listener: str, per_s: list[int]) -> Iterator[None]:
    """Run a replay from its first delivery on, and cancel it at the end. Add its deliveries per second to `per_s`."""
    begun = everput.client.post(f"{listener}/replay", json={"from": "beginning"}).raise_for_status().json()
    replay = begun["_links"]["self"]["href"]
    before = everput.stats()["aside"]
    while everput.stats()["aside"] == before:
        time.sleep(0.05)
    before, began = everput.stats()["aside"], time.monotonic()
    yield
    per_s.append(round((everput.stats()["aside"] - before) / (time.monotonic() - began)))
    ended = everput.client.delete(replay).raise_for_status().json()["replay"]
    assert ended["state"] == "cancelled", f"the replay was over too early: {ended}"
