"""Benchmark of a listener that was down and comes back: the times to its first delivery and to the end of its backlog.

Other listeners are down all the time: half of them answer 503, the port of the others refuses connections. Their
process has the lowest CPU priority, because real listeners have their own machines. In another run, the listener has
few messages, before and after very many of another queue. Not for: why a listener was down.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from benchmarks.running import Everput, Site, free_port, memory_mib, ratios, serving, sinking

FOUND_OUT = 100  # messages to the other listeners
FOUND_OUT_S = 15  # After this time, Everput knows that the other listeners are down.
FEW = 1_000  # messages before the other queue's messages, and after them
FOREIGN_SIZE = 60
RATE = 300
MEANWHILE = 1_200  # messages to a healthy listener in the same time


def back(*, backlogs: list[int], dead_s: float, others: int, foreign: int) -> dict[str, Any]:
    """Measure a listener that comes back after at least `dead_s` seconds, for each backlog in messages.

    `others` is the number of other listeners that are down all the time. `foreign` is the number of messages that
    another queue gets while the listener is down; 0 skips this measurement.
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
    time.sleep(dead_s)  # until its probe interval is longest
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
    """Measure a listener that comes back, with its few messages before and after very many of another queue. Its sink
    `away` is separate, so that its latencies are not counted with those of the healthy listener.
    """
    away.at_sink.get("/bury")
    queue_id = everput.queue([])
    everput.listen(queue_id, f"{away.sink}/back")
    healthy = [everput.queue(["ok"])]
    asyncio.run(everput.fill(queue_id, FEW, batch=FEW // 50))  # 50 batches reach every partition
    asyncio.run(everput.fill(everput.queue([]), foreign, FOREIGN_SIZE))
    asyncio.run(everput.fill(queue_id, FEW, first=FEW, batch=FEW // 50))
    everput.deliver(healthy, 1, MEANWHILE // 4)  # warm-up
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
