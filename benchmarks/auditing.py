"""Benchmark of reading the log: one message's story, `everput verify`, and exports, compared with a bare Kafka read.

Not for: delivering (rates.py) or starting on a long log (scale.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any, TypeVar

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, TopicPartition

from benchmarks.running import Everput, serving, sinking
from benchmarks.scale import MARK_BYTES
from broker.kafka.embedded.access import MECHANISM, USER, EmbeddedAccess, written_access

T = TypeVar("T")
TOPICS = [f"everput.{name}" for name in ("control", "messages", "changes", "deliveries")]
STORIES = 20
PUTS = 3000
PUTS_PER_S = 300.0
READ_S_MAX = 300.0
DELIVERED_S_MAX = 1800.0
MADE = "made.json"  # describes the contents of a kept folder


def auditing(*, events: int, listeners: int, folder: str | None) -> dict[str, Any]:
    """Measure reads of a log with this many messages, put on a queue with this many listeners. `folder` is kept, and
    not filled again if it exists.
    """
    with contextlib.ExitStack() as stack:
        kept = folder or stack.enter_context(tempfile.TemporaryDirectory(prefix="everput-bench-"))
        sink = stack.enter_context(sinking())
        up = stack.enter_context(serving(str(Path(kept) / "data"), sink))
        made = _filled(up, Path(kept) / MADE, events, listeners)
        access = written_access(Path(kept) / "data" / "kafka")
        assert access is not None
        with tempfile.TemporaryDirectory(prefix="everput-bench-") as out:
            commands = {
                "verify": ["verify"],
                "export-all": ["export-all", f"{out}/all"],
                "export": ["export", f"{out}/jsonl"],
                "export --format parquet": ["export", f"{out}/parquet", "--format", "parquet"],
            }
            compared = _compared(access, f"{kept}/data", up.url, commands)
        return made | compared | {"story_ms": _stories(up, made), "puts": _puts(up, made["queue_id"], f"{kept}/data")}


def _filled(up: Everput, record: Path, events: int, listeners: int) -> dict[str, Any]:
    if record.exists():
        found: dict[str, Any] = json.loads(record.read_text())
        return found
    queue_id = up.queue([f"ok{number}" for number in range(listeners)])
    began = datetime.now(UTC)
    took_s, _ = _timed(lambda: asyncio.run(up.fill(queue_id, events, MARK_BYTES)))
    if listeners:
        missing = events * listeners - up.until_delivered(events * listeners, wait_s=DELIVERED_S_MAX)["unique"]
        assert not missing, f"{missing} deliveries have not come"
    made = {
        "messages": events,
        "listeners": listeners,
        "queue_id": queue_id,
        "put_per_s_in_batches": round(events / took_s),
        "early": (began + timedelta(seconds=took_s / 10)).isoformat(),
    }
    record.write_text(json.dumps(made))
    return made


def _compared(access: EmbeddedAccess, folder: str, url: str, commands: dict[str, list[str]]) -> dict[str, Any]:
    """Run each command between two bare reads of the log, because the machine's speed may change."""
    rates, ratios = {}, {}
    before, records = _timed(lambda: _read(access))
    bare = [before]
    for name, arguments in commands.items():
        took_s, _ = _timed(partial(_everput, *arguments, "--data-dir", folder, EVERPUT_URL=url))
        after, records = _timed(lambda: _read(access))
        ratios[name], rates[name] = round((before + after) / 2 / took_s, 3), round(records / took_s)
        before = after
        bare.append(after)
    return {
        "records": records,
        "bare_read_per_s": [round(records / one) for one in bare],
        "per_s": rates,
        "ratios": {f"{name} / bare read": ratio for name, ratio in ratios.items()},
    }


def _timed(work: Callable[[], T]) -> tuple[float, T]:
    """Return the seconds that the call took, and its result."""
    began = time.monotonic()
    given = work()
    return time.monotonic() - began, given


def _read(access: EmbeddedAccess) -> int:
    """Read all records of the log with an independent Kafka client, without decoding them. Return how many
    there are.
    """
    options = {
        "bootstrap.servers": access.bootstrap,
        "security.protocol": "SASL_PLAINTEXT",
        "sasl.mechanism": MECHANISM,
        "sasl.username": USER,
        "sasl.password": access.password,
    }
    consumer = Consumer({**options, "group.id": "bench", "enable.auto.commit": False})
    found = consumer.list_topics(timeout=10).topics
    places = [TopicPartition(name, number, OFFSET_BEGINNING) for name in TOPICS for number in found[name].partitions]
    ends = [consumer.get_watermark_offsets(place, timeout=10) for place in places]
    records = left = sum(high - low for low, high in ends)
    consumer.assign(places)
    deadline = time.monotonic() + READ_S_MAX
    while left > 0 and time.monotonic() < deadline:
        for record in consumer.consume(min(left, 10_000), timeout=1):  # waits until it has this many
            error: KafkaError | None = record.error()
            assert error is None, error
            left -= 1
    consumer.close()
    assert left <= 0, f"{left} records were not read"
    return int(records)


def _everput(*arguments: str, **environment: str) -> None:
    subprocess.run(
        [sys.executable, "-m", "cli.app", *arguments],
        env={**os.environ, **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        check=True,
    )


def _puts(up: Everput, queue_id: str, folder: str) -> dict[str, Any]:
    """Measure puts alone, and while events are exported."""
    found: dict[str, Any] = {}
    for what, pace in (("at_the_rate", PUTS_PER_S), ("at_full_speed", 0)):
        alone = up.publish([queue_id], PUTS, pace)
        done = Event()
        with ThreadPoolExecutor(1) as pool:
            exporting = pool.submit(_export_until, done, folder, up.url)
            time.sleep(1)  # until the export has started
            beside = up.publish([queue_id], PUTS, pace)
            done.set()
            exporting.result()
        found[what] = {"alone": alone, "beside_an_export": beside}
    return found


def _export_until(done: Event, folder: str, url: str) -> None:
    while not done.is_set():
        with tempfile.TemporaryDirectory(prefix="everput-bench-") as out:
            _everput("export", f"{out}/jsonl", "--data-dir", folder, EVERPUT_URL=url)


def _stories(up: Everput, made: dict[str, Any]) -> dict[str, float]:
    """Measure the milliseconds to read a message's story from the log, for the newest messages and for early ones."""
    path = f"/v1/queues/{made['queue_id']}/messages"
    newest = up.client.get(path, params={"limit": STORIES}).raise_for_status().json()["messages"]
    before = {"to": made["early"], "limit": STORIES}
    oldest = up.client.get(path, params=before).raise_for_status().json()["messages"]
    took = []
    for message in [*newest, *oldest]:
        start = time.perf_counter()
        answer = up.client.get("/v1/log", params={"message": message["id"]}).raise_for_status()
        took.append((time.perf_counter() - start) * 1000)
        assert answer.text.strip(), "the log has nothing of a message that is there"
    took.sort()
    return {"median": round(took[len(took) // 2], 1), "max": round(took[-1], 1)}
