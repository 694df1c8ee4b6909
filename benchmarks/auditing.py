"""What the log costs to read: one message's story, the check of all of it, exports, beside a bare Kafka read.

Not for: delivering (rates.py) or starting on a long log (scale.py)."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, TopicPartition

from benchmarks.running import Everput, serving, sinking
from benchmarks.scale import MARK_BYTES
from broker.kafka.process import written_bootstrap

TOPIC = "everput.messages"
STORIES = 20
READ_S_MAX = 60.0


def auditing(*, events: int) -> dict[str, Any]:
    """events: messages put, to a queue without listeners."""
    with tempfile.TemporaryDirectory(prefix="everput-bench-") as folder, sinking() as sink, serving(folder, sink) as up:
        queue_id = up.queue([])
        began = datetime.now(UTC)
        filled = _rate(lambda: asyncio.run(up.fill(queue_id, events, MARK_BYTES)), events)
        bootstrap = written_bootstrap(Path(folder) / "kafka") or ""
        bare = _rate(lambda: _read(bootstrap, events), events)
        rates = {
            "verify": _rate(lambda: _everput("verify", folder), events),
            "export-all": _rate(lambda: _everput("export-all", folder, f"{folder}/all"), events),
            "export": _rate(lambda: _everput("export", folder, f"{folder}/own", EVERPUT_URL=up.url), events),
        }
        return {
            "messages": events,
            "put_per_s_in_batches": filled,
            "bare_read_per_s": bare,
            "per_s": rates,
            "ratios": {f"{name} / bare read": round(rate / bare, 3) for name, rate in rates.items()},
            "story_ms": _stories(up, queue_id, early=began + timedelta(seconds=events / filled / 10)),
        }


def _rate(work: Callable[[], object], events: int) -> int:
    began = time.monotonic()
    work()
    return round(events / (time.monotonic() - began))


def _read(bootstrap: str, events: int) -> None:
    """All messages through an independent client, their bytes not looked at."""
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "bench", "enable.auto.commit": False})
    partitions = consumer.list_topics(TOPIC, timeout=10).topics[TOPIC].partitions
    consumer.assign([TopicPartition(TOPIC, number, OFFSET_BEGINNING) for number in partitions])
    left, deadline = events, time.monotonic() + READ_S_MAX
    while left > 0 and time.monotonic() < deadline:
        for record in consumer.consume(10_000, timeout=1):
            error: KafkaError | None = record.error()
            assert error is None, error
            left -= 1
    consumer.close()
    assert left <= 0, f"{left} messages were not read"


def _everput(command: str, folder: str, *arguments: str, **environment: str) -> None:
    subprocess.run(
        [sys.executable, "-m", "cli.app", command, "--data-dir", folder, *arguments],
        env={**os.environ, **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        check=True,
    )


def _stories(up: Everput, queue_id: str, *, early: datetime) -> dict[str, float]:
    """Milliseconds until a message's story is told, of the newest messages and of early ones."""
    path = f"/v1/queues/{queue_id}/messages"
    newest = up.client.get(path, params={"limit": STORIES}).raise_for_status().json()["messages"]
    before = {"to": early.isoformat(), "limit": STORIES}
    oldest = up.client.get(path, params=before).raise_for_status().json()["messages"]
    took = []
    for message in [*newest, *oldest]:
        start = time.perf_counter()
        told = up.client.get("/v1/log", params={"message": message["id"]}).raise_for_status()
        took.append((time.perf_counter() - start) * 1000)
        assert told.text.strip(), "the log has nothing of a message that is there"
    took.sort()
    return {"median": round(took[len(took) // 2], 1), "max": round(took[-1], 1)}
