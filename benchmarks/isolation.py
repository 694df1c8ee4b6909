"""A healthy listener alone, and beside hundreds that are dead, hang or are slow, on the same queue.

Not for: what those get. At a given rate for the latencies, and as fast as puts are answered for the rates. The bad ones
are a process of their own at the lowest priority: in the world they have machines of their own."""

from __future__ import annotations

import contextlib
import tempfile
from typing import Any

from benchmarks.running import memory_mib, ratios, serving, sinking

KINDS = ("dead", "hang", "slow")


def isolation(*, bad: int, messages: int, rate: float, rounds: int) -> dict[str, Any]:
    """bad: listeners of each kind. rate: puts a second for the latencies."""
    paths = [f"{kind}{number}" for kind in KINDS for number in range(bad)]
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="everput-bench-"))
        everput = stack.enter_context(serving(folder, stack.enter_context(sinking())))
        good = everput.queue(["ok"])
        everput.deliver([good], 1, messages // 4)  # warm
        paces = [rate] * rounds + [0.0] * rounds
        alone = [everput.deliver([good], 1, messages, pace) for pace in paces]
        crowded = everput.queue(["ok"], elsewhere=paths, sink=stack.enter_context(sinking(nice=19)))
        everput.deliver([crowded], 1, messages // 4, rate)  # the bad ones are known to be bad after this
        beside = [everput.deliver([crowded], 1, messages, pace) for pace in paces]
        return {
            "bad_listeners": len(paths),
            "alone": alone,
            "beside": beside,
            "ratios_at_the_rate": [ratios(*pair) for pair in zip(alone[:rounds], beside[:rounds], strict=True)],
            "ratios_at_full_speed": [ratios(*pair) for pair in zip(alone[rounds:], beside[rounds:], strict=True)],
            "memory_mib": memory_mib(everput.pid),
        }
