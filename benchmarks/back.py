"""A listener that was dead and comes back: until its first delivery, and until its backlog is gone.

Others are dead all the while: half of them answer 503, the others' port refuses connections. They are a process of
their own at the lowest priority: in the world they have machines of their own. And one comes back whose few messages
are before and after very many of another queue. Not for: why it was dead."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from benchmarks.running import Everput, Site, free_port, memory_mib, ratios, serving, sinking

FOUND_OUT = 100  # messages that the others get
FOUND_OUT_S = 15  # after which all of them are known to be down
FEW = 1_000  # messages of its own on either side of the many
FOREIGN_SIZE = 60
RATE = 300
MEANWHILE = 1_200  # messages that a healthy listener gets at this rate, while it comes back


def back(*, backlogs: list[int], dead_s: float, others: int, foreign: int) -> dict[str, Any]:
    """backlogs: messages put while it is dead, each measured on a queue of its own. dead_s: for how long at least.

    others: listeners of another queue that are dead meanwhile, and since some time before.
    foreign: messages of another queue, put while it is dead; 0: this is left out.
    """
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="everput-bench-"))
        everput = stack.enter_context(serving(folder, stack.enter_context(sinking())))
        if others:
            _dead(everput, others, stack.enter_context(sinking(nice=19)))
        found = {"others_dead": others, "runs": [_once(everput, size, dead_s) for size in backlogs]}
        found["memory_mib"] = memory_mib(everput.pid)
        if foreign:
            away = Site(everput.url, everput.key, stack.enter_context(sinking()))
            found["foreign"] = _among_foreign(everput, away, foreign)
        return found


def _dead(everput: Everput, count: int, sink: str) -> None:
    refusing = f"http://127.0.0.1:{free_port()}"
    urls = [f"{refusing if number % 2 else sink}/dead{number}" for number in range(count)]
    queue_id = everput.queue([])
    for url in urls:
        everput.listen(queue_id, url)
    everput.publish([queue_id], FOUND_OUT)
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


def _among_foreign(everput: Everput, away: Site, foreign: int) -> dict[str, Any]:
    """away: where the one that comes back is, that its latencies are not counted among the healthy one's."""
    away.at_sink.get("/bury")
    queue_id = everput.queue([])
    everput.listen(queue_id, f"{away.sink}/back")
    healthy = [everput.queue(["ok"])]
    asyncio.run(everput.fill(queue_id, FEW, batch=FEW // 50))  # of so many batches some are in every partition
    asyncio.run(everput.fill(everput.queue([]), foreign, FOREIGN_SIZE))
    asyncio.run(everput.fill(queue_id, FEW, first=FEW, batch=FEW // 50))
    everput.deliver(healthy, 1, MEANWHILE // 4)  # warm
    alone = everput.deliver(healthy, 1, MEANWHILE, RATE)
    everput.at_sink.get("/reset")
    before = memory_mib(everput.pid)
    with ThreadPoolExecutor() as thread:
        meanwhile = thread.submit(everput.deliver, healthy, 1, MEANWHILE, RATE)
        while everput.at_sink.get("/count").text == "0":
            time.sleep(0.01)
        away.at_sink.get("/revive")
        stats = away.until_delivered(2 * FEW)
        after = memory_mib(everput.pid)
        beside = meanwhile.result()
    return {
        "foreign": foreign,
        "first_delivery_after_revival_ms": _ms(stats["revived_at"], stats["first_at"]),
        "drained_after_revival_s": round(stats["last_at"] - stats["revived_at"], 2),
        "missing": 2 * FEW - stats["unique"],
        "duplicates": stats["duplicates"],
        "memory_mib": {"before": before, "after": after},
        "healthy": {"alone": alone, "beside": beside, "ratios": ratios(alone, beside)},
    }


def _ms(since_s: float, until_s: float) -> float:
    return round((until_s - since_s) * 1000, 1)
