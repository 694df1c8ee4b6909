"""A listener that was dead and comes back: until its first delivery, and until its backlog is gone.

Others are dead all the while: half of them answer 503, the others' port refuses connections. They are a process of
their own at the lowest priority: in the world they have machines of their own. Not for: why it was dead."""

from __future__ import annotations

import contextlib
import tempfile
import time
from typing import Any

from benchmarks.running import Everput, free_port, memory_mib, serving, sinking

FOUND_OUT = 100  # messages that the others get
FOUND_OUT_S = 15  # after which all of them are known to be down


def back(*, backlogs: list[int], dead_s: float, others: int) -> dict[str, Any]:
    """backlogs: messages put while it is dead, each measured on a queue of its own. dead_s: for how long at least.

    others: listeners of another queue that are dead meanwhile, and since some time before.
    """
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="everput-bench-"))
        everput = stack.enter_context(serving(folder, stack.enter_context(sinking())))
        if others:
            _dead(everput, others, stack.enter_context(sinking(nice=19)))
        runs = [_once(everput, size, dead_s) for size in backlogs]
        return {"others_dead": others, "runs": runs, "memory_mib": memory_mib(everput.pid)}


def _dead(everput: Everput, count: int, sink: str) -> None:
    refusing = f"http://127.0.0.1:{free_port()}"
    urls = [f"{refusing if number % 2 else sink}/dead{number}" for number in range(count)]
    everput.publish([everput.queue([], elsewhere=urls)], FOUND_OUT)
    time.sleep(FOUND_OUT_S)


def _once(everput: Everput, size: int, dead_s: float) -> dict[str, Any]:
    everput.at_sink.get("/bury")
    queue_id = everput.queue(["back"])
    everput.at_sink.get("/reset")
    put = everput.publish([queue_id], size)
    time.sleep(dead_s)  # its probes are as seldom as they get
    everput.at_sink.get("/revive")
    stats = everput.until_delivered(put["accepted"], wait_s=600)
    return {
        "backlog": put["accepted"],
        "first_delivery_after_good_answer_ms": _ms(stats["first_good_answer_at"], stats["first_at"]),
        "first_delivery_after_revival_ms": _ms(stats["revived_at"], stats["first_at"]),
        "drained_after_revival_s": round(stats["last_at"] - stats["revived_at"], 2),
        "delivered_per_s": round(stats["unique"] / (stats["seconds"] or 1)),
        "missing": put["accepted"] - stats["unique"],
        "duplicates": stats["duplicates"],
    }


def _ms(since_s: float, until_s: float) -> float:
    return round((until_s - since_s) * 1000, 1)
