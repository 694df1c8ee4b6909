"""Java's ahead-of-time cache of Kafka's classes. With it, Kafka starts in a second instead of four
(docs/operations.md).

For: creating the file once with a temporary Kafka, finding it again, deleting a bad one. Every failure here only means
a slower start.

`python -m broker.kafka.embedded.archive` creates it at once, for machines that start many Kafkas, such as those of the
tests.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import secrets
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import filelock
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.errors import KafkaError

from broker.errors import BrokerError
from broker.kafka.admin import ensure_topics
from broker.kafka.client import client_options
from broker.kafka.embedded.jars import KAFKA_VERSION, cache_dir, kafka_jars
from broker.kafka.embedded.java import JAVA_OPTIONS, finished, java, java_home, spawn
from broker.kafka.embedded.process import PROPERTIES, KafkaProcess
from broker.kafka.ports import free_port
from broker.kafka.topics import topics, workers_group
from broker.settings import KafkaSettings

_log = logging.getLogger(__name__)

_UNUSED_FOR_S: Final = 30 * 86_400.0
# Wait 10 s after Kafka's start before creating Java's class archive, so that other processes can start first.
_AFTER_S: Final = 10.0
_IDLE_WITHIN_S: Final = 300.0  # If the machine stays busy for this long, create Java's class archive nevertheless.
_IDLE_LOAD: Final = 0.5  # load average per processor
_LOOK_S: Final = 10.0
_STEP_WITHIN_S: Final = 120.0
_TRAINING: Final = "2"  # the version of _use()
_SILENT: Final = "-Xlog:aot*=error"
_ALIKE: Final = ("-Xmx512m", _SILENT)


def existing(jars: Sequence[Path]) -> Path | None:
    """Return the path of Java's class archive (a cache of loaded classes) for these jars, and mark the archive as used
    now. Return None if there is no archive.
    """
    path = _path(jars)
    if not path.exists():
        return None
    with suppress(OSError):
        # Set the file's time to now, because the cleanup deletes archives that were not used for 30 days.
        os.utime(path)
    return path


async def make(jars: Sequence[Path], *, after_s: float = _AFTER_S, idle_within_s: float = _IDLE_WITHIN_S) -> None:
    """Create Java's class archive, a cache of Kafka's classes, with processes of the lowest priority. This takes about
    10 s of processor time, once.

    First wait `after_s` seconds. If the machine is then busy, wait up to `idle_within_s` seconds more, because this
    work would slow down puts.

    Do nothing if another process is creating the archive. Errors are only logged, and the caller may cancel at any
    time.
    """
    await asyncio.sleep(after_s)
    await until_idle(within_s=idle_within_s)
    path = _path(jars)
    try:
        lock = filelock.FileLock(path.with_suffix(".lock"), thread_local=False)
        lock.acquire(timeout=0)
    except (filelock.Timeout, OSError):
        return
    started = time.monotonic()
    try:
        await _make(jars, path)
        _prune(path)
        _log.info("archive.made path=%s took_ms=%d", path, round((time.monotonic() - started) * 1000))
    except (BrokerError, KafkaError, OSError, TimeoutError) as error:
        _log.info("archive.failed error=%s", error)
    finally:
        lock.release()


async def until_idle(*, within_s: float, look_s: float = _LOOK_S) -> None:
    """Wait while the machine is busy, but no longer than `within_s` seconds. The machine is busy if its load average of
    the past minute is above 0.5 for each processor.
    """
    with suppress(TimeoutError):
        async with asyncio.timeout(within_s):
            while os.getloadavg()[0] > _IDLE_LOAD * (os.cpu_count() or 1):
                await asyncio.sleep(look_s)


def use(path: Path | None) -> tuple[str, ...]:
    """Return the Java options that use a class archive (a cache of loaded classes). Java ignores an archive that does
    not match the class path.
    """
    if path is None:
        return ()
    return (f"-XX:AOTCache={path}", _SILENT)


def discard(path: Path | None) -> None:
    """Delete Java's class archive, because it may be the reason why Kafka did not start."""
    if path is not None:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def _path(jars: Sequence[Path]) -> Path:
    """Return the path of Java's class archive, a cache of Kafka's classes.

    The file's name has a hash of everything that the archive depends on: the class path, Java's modules and options,
    Kafka's settings, and the requests that Kafka answers while its classes are recorded. If one of these changes, the
    name changes, and a new archive is created.
    """
    modules = java_home() / "lib" / "modules"
    facts = [f"{path} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in (modules, *jars)]
    name = hashlib.sha256("\n".join([*facts, *JAVA_OPTIONS, PROPERTIES, _TRAINING]).encode()).hexdigest()[:16]
    return cache_dir() / f"kafka-{KAFKA_VERSION}-{name}.aot"


async def _make(jars: Sequence[Path], path: Path) -> None:
    """Create Java's class archive. Start a temporary Kafka, which records the classes that it loads. Then let Java
    write these classes to the archive.

    The file gets its final name only when the archive is complete.
    """
    made = path.with_suffix(f".{os.getpid()}.new")
    with tempfile.TemporaryDirectory(prefix="everput-kafka-", ignore_cleanup_errors=True) as name:
        directory = Path(name)
        recording = f"-XX:AOTConfiguration={directory / 'recorded'}"
        same: dict[str, Any] = {"jars": jars, "port": free_port(), "controller_port": free_port(), "idle": True}
        same["password"] = secrets.token_urlsafe(32)
        options = (*_ALIKE, "-XX:AOTMode=record", recording)
        kafka = KafkaProcess(directory, options=options, **same)
        await kafka.start()
        try:
            async with asyncio.timeout(_STEP_WITHIN_S):
                await _use(kafka.access.settings(partitions=1, flush_each_batch=True))
        finally:
            await kafka.stop(within_s=_STEP_WITHIN_S)
        try:
            creating = (*_ALIKE, "-XX:AOTMode=create", recording, f"-XX:AOTCache={made}")
            process = await spawn(java(directory, jars=jars, options=creating), directory=directory, idle=True)
            code = await finished(process, within_s=_STEP_WITHIN_S)
            if code != 0:
                raise BrokerError(
                    f"Java did not create the class archive (exit code {code}): Kafka runs without it, but takes "
                    "longer to start"
                )
            made.replace(path)
        finally:
            made.unlink(missing_ok=True)


async def _use(kafka: KafkaSettings) -> None:
    """Send the temporary Kafka the usual requests of API processes and workers. Java then records the classes that
    Kafka needs to answer these requests.
    """
    table = topics(kafka)
    # Log nothing about the topics of this temporary Kafka: they would seem to be the server's own topics.
    await ensure_topics(kafka, table, quiet=True)
    options = client_options(kafka)
    async with AIOKafkaProducer(**options, enable_idempotence=True) as producer:
        await producer.send_and_wait(table.messages.name, b"a record")
    reading = {"group_id": workers_group(kafka), "auto_offset_reset": "earliest", "enable_auto_commit": False}
    async with AIOKafkaConsumer(table.messages.name, **options, **reading) as consumer:
        await consumer.getone()
        await consumer.commit()


def _prune(kept: Path) -> None:
    """Delete Java's class archives that no start of Kafka has used for 30 days, such as the archives of an older Kafka
    or Java.
    """
    for path in kept.parent.glob("kafka-*.aot"):
        with suppress(OSError):
            if path != kept and time.time() - path.stat().st_mtime > _UNUSED_FOR_S:
                path.unlink()
                path.with_suffix(".lock").unlink(missing_ok=True)


if __name__ == "__main__":
    found = kafka_jars()
    if existing(found) is None:
        asyncio.run(make(found, after_s=0, idle_within_s=0))
