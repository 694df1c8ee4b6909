"""The fault runs: kill -9 at random moments, zombies, bad networks, power cuts; each as long as it is asked for.

The dice choose what happens and when; how far the processes have come by then is the machine's.
For: test_soak.py, where they take minutes, and test_faults.py, where they are short."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import struct
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Self

import pytest

from broker.kafka import process as kafka_process
from broker.kafka.admin import ensure_topics
from broker.kafka.embedded import EmbeddedKafka
from broker.kafka.log import KafkaLog
from broker.kafka.ports import free_port
from broker.kafka.topics import topics
from broker.settings import KafkaSettings
from tests.listeners import Listeners, until
from tests.scenarios.history import History
from tests.scenarios.proxy import Proxy
from tests.scenarios.running import Running, is_running, wait_until

PUTS = 200
NOTED_EVERY_MS = 200
REJOIN_S = 15.0  # after Kafka is back, until the workers have given up their partitions and got them again
BACK_WITHIN_S = 120.0
LISTENERS = ("steady", "flaky", "slow")
PROCESSES = ("api-1", "api-2", "worker-1", "worker-2", "kafka")
VICTIMS = (*PROCESSES, "supervisor")


class Server:
    """An `everput serve` that is started again, on its port and its data directory, when all of it was killed."""

    def __init__(self, data_dir: Path, *arguments: str) -> None:
        self._data_dir = data_dir
        self._arguments = ("--api-processes", "2", "--workers", "2", "--port", str(free_port()), *arguments)
        self._processes = [name for name in PROCESSES if name != "kafka" or "--kafka" not in arguments]
        self._stack = contextlib.ExitStack()
        self.now = self._start()

    def _start(self) -> Running:
        return self._stack.enter_context(Running(self._data_dir, *self._arguments))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        print("\n".join(line for line in self.now.stderr[-400:] if "attempt.failed" not in line))
        self._stack.close()

    def crash(self) -> None:
        """kill -9 of the supervisor, and start again once everything it had started is gone, too."""
        self.now.process.kill()
        self.now.process.wait()
        wait_until(lambda: not self.now.alive(), what="all ended with the supervisor")
        self.now = self._start()

    def strike(self, victim: str) -> bool:
        """kill -9; False when it does not run just now."""
        if victim == "supervisor":
            self.crash()
            return True
        pid = self.now.running(victim)
        if pid is None:
            return False
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not is_running(pid), what=f"{victim} is dead")
        return True

    def until_ready(self) -> None:
        """All of it runs and says that it is ready."""
        deadline = time.monotonic() + BACK_WITHIN_S
        while lacking := [name for name in self._processes if not self._is_ready(name)]:
            assert time.monotonic() < deadline, f"not back: {lacking}\n" + "\n".join(self.now.stderr[-60:])
            time.sleep(0.05)

    def _is_ready(self, process: str) -> bool:
        said = "process.started" if process == "kafka" else "process.ready"
        lines = [text for text in list(self.now.stderr) if f"process={process}" in text.split()]
        about = [text for text in lines if "process." in text]
        return self.now.running(process) is not None and bool(about) and said in about[-1].split()


@contextlib.asynccontextmanager
async def ups_and_downs(listeners: Listeners, path: str, dice: random.Random) -> AsyncIterator[None]:
    """A listener that goes down and comes back at random; it is up in the end."""

    async def swing() -> None:
        while True:
            await asyncio.sleep(dice.uniform(1, 8))
            listeners.down.add(path)
            await asyncio.sleep(dice.uniform(0.2, 6))
            listeners.down.discard(path)

    task = asyncio.create_task(swing())
    try:
        yield
    finally:
        task.cancel()
        listeners.down.discard(path)


@contextlib.asynccontextmanager
async def load(server: Server, dice: random.Random) -> AsyncIterator[History]:
    """At most 300 puts a second, a third of them with an ordering key, to three listeners; all arrived at the end."""
    async with Listeners() as listeners:
        listeners.delay_s["slow"] = 0.1
        history = History(server.now.url, server.now.api_key, listeners, publishers=8, keyed=4, pace_s=0.035)
        await history.set_up(*LISTENERS)
        try:
            async with ups_and_downs(listeners, "flaky", random.Random(dice.random())):
                history.start()
                await history.more(200)
                yield history
                await history.more(200, within_s=BACK_WITHIN_S)
                await history.stop()
            await history.arrived(*LISTENERS, within_s=BACK_WITHIN_S)
            print(f"{len(history.accepted)} accepted, answers {dict(history.answers)}")
        finally:
            await history.stop()
            await history.client.aclose()


def repeated(history: History) -> dict[str, int]:
    return {path: history.repeated(path) for path in LISTENERS}


async def kill_loop(server: Server, dice: random.Random, rounds: int) -> None:
    """kill -9 of anything at any moment loses nothing."""
    killed: Counter[str] = Counter()
    async with load(server, dice) as history:
        for number in range(rounds):
            await asyncio.sleep(dice.uniform(0.1, 4))
            victim = dice.choice(VICTIMS)
            began = time.monotonic()
            with contextlib.ExitStack() as stack:
                if not victim.startswith("api"):  # they repeat nothing
                    stack.enter_context(history.crash(after_s=REJOIN_S if victim == "kafka" else 0.0))
                killed[victim] += await asyncio.to_thread(server.strike, victim)
                if dice.random() < 0.5:  # else the next one dies while this one starts
                    await asyncio.to_thread(server.until_ready)
            print(f"{number}: {victim}, {time.monotonic() - began:.1f} s")
        await asyncio.to_thread(server.until_ready)
    print(f"killed {dict(killed)}, repeated {repeated(history)}")
    await history.check(*LISTENERS)


async def zombies(server: Server, dice: random.Random, *victims: str, sleep_s: float) -> None:
    """A worker that sleeps past its session neither loses nor skips."""
    async with load(server, dice) as history:
        for victim in victims:
            pid = server.now.running(victim)
            assert pid is not None
            with history.crash(after_s=REJOIN_S):
                os.kill(pid, signal.SIGSTOP)
                await asyncio.sleep(sleep_s)
                os.kill(pid, signal.SIGCONT)
                await asyncio.sleep(dice.uniform(0, 6))
        # What it may have committed as a zombie is what those after it begin from.
        with history.crash():
            for victim in ("worker-1", "worker-2"):
                await asyncio.to_thread(server.strike, victim)
        await asyncio.to_thread(server.until_ready)
    print(f"repeated {repeated(history)}")
    await history.check(*LISTENERS)


async def bad_network_to_listeners(server: Server, dice: random.Random, seconds: float) -> Counter[str]:
    """It only delays."""
    async with Listeners() as listeners, Proxy(listeners.port, dice, trouble=0.9, within=20_000) as proxy:
        history = History(server.now.url, server.now.api_key, listeners, publishers=8, keyed=4, pace_s=0.035)
        await history.set_up("far", port=proxy.port, timeout_ms=1000)
        history.start()
        ends_s = time.monotonic() + seconds
        while time.monotonic() < ends_s:
            await asyncio.sleep(dice.uniform(1, 5))
            proxy.cut()
        await history.stop()
        proxy.trouble = 0.0
        await history.arrived("far", within_s=BACK_WITHIN_S)
        print(f"{len(history.accepted)} accepted, {dict(proxy.troubles)}")
        history.record.lost_answers = proxy.troubles.total()  # each connection has one request under way
        await history.check("far")
        await history.client.aclose()
    return proxy.troubles


async def bad_network_to_kafka(
    tmp_path: Path, dice: random.Random, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> Counter[str]:
    """It loses nothing. Kafka's clients connect to the address that it tells them: the proxy's."""
    async with Proxy(0, dice, trouble=0.0, within=1_000_000) as proxy:
        told = "advertised.listeners=PLAINTEXT://127.0.0.1:"
        monkeypatch.setattr(
            kafka_process, "_PROPERTIES", kafka_process._PROPERTIES.replace(told + "{port}", f"{told}{proxy.port}")
        )
        kafka = EmbeddedKafka(tmp_path / "kafka", progress=False)
        await kafka.start()
        proxy.target = int(kafka.bootstrap.rpartition(":")[2])
        arguments = ["--kafka", f"127.0.0.1:{proxy.port}", "--replication", "1", "--partitions", "8"]
        try:
            with Server(tmp_path / "data", *arguments) as server:
                await asyncio.to_thread(server.until_ready)
                async with load(server, dice) as history:
                    with history.crash(after_s=REJOIN_S):  # all of it: any checkpoint may fail at any time
                        proxy.trouble = 0.7
                        ends_s = time.monotonic() + seconds
                        while time.monotonic() < ends_s:
                            await asyncio.sleep(dice.uniform(1, 8))
                            proxy.cut()
                        proxy.trouble = 0.0
                        proxy.cut()
                        await asyncio.to_thread(server.until_ready)
                print(f"{dict(proxy.troubles)}, repeated {repeated(history)}")
                await history.check(*LISTENERS)
        finally:
            await kafka.stop()
    return proxy.troubles


async def power_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, counter_proof: bool) -> None:
    """What was never synced may go, and every answered put is still there.

    Kafka itself notes up to where each partition is synced: what is behind that is cut off, as a power cut may.
    counter_proof: see, too, that the cut takes something where batches are not synced.
    """
    assert await kept_after_a_power_cut(tmp_path / "synced", monkeypatch, flush_each_batch=True) == PUTS
    if counter_proof:
        kept = await kept_after_a_power_cut(tmp_path / "not", monkeypatch, flush_each_batch=False)
        assert kept < PUTS, "the cut takes nothing: this test proves nothing"


async def kept_after_a_power_cut(directory: Path, monkeypatch: pytest.MonkeyPatch, *, flush_each_batch: bool) -> int:
    often = f"log.flush.offset.checkpoint.interval.ms={NOTED_EVERY_MS}\n"
    monkeypatch.setattr(kafka_process, "_PROPERTIES", kafka_process._PROPERTIES + often)
    kafka = EmbeddedKafka(directory, progress=False)
    await kafka.start()
    try:
        settings = KafkaSettings(
            bootstrap=kafka.bootstrap, partitions=4, replication=1, min_insync=1, flush_each_batch=flush_each_batch
        )
        await ensure_topics(settings, topics(settings))
        log = KafkaLog(settings)
        await log.start()
        puts = (log.messages.append(lambda _: (b"k", b"v" * 1000, b"q")) for _ in range(PUTS))
        await asyncio.gather(*puts)
        await log.stop()
        synced = directory / "kafka" / "recovery-point-offset-checkpoint"
        answered = time.time_ns()
        noted = 2 * NOTED_EVERY_MS * 1_000_000  # it may have begun to write before the last answer
        await until(lambda: synced.stat().st_mtime_ns > answered + noted, what="Kafka notes what is synced")
        kafka.kill()
        await kafka.wait()
        cut_back(directory / "kafka", topics(settings).messages.name, synced.read_text())
        await kafka.restart()
        log = KafkaLog(settings)
        await log.start()
        kept = sum(await log.messages.end_offsets())
        await log.stop()
        return kept
    finally:
        await kafka.stop()


def cut_back(logs: Path, topic: str, synced: str) -> None:
    """Remove from the topic's segments every batch behind what is synced. synced: lines of `topic partition offset`."""
    ends = {(name, int(number)): int(end) for name, number, end in map(str.split, synced.splitlines()[2:])}
    for segment in logs.glob(f"{topic}-*/*.log"):
        end = ends.get((topic, int(segment.parent.name.rpartition("-")[2])), 0)
        data, at = segment.read_bytes(), 0
        while at < len(data):
            offset, size = struct.unpack_from(">qi", data, at)
            if offset >= end:
                break
            at += 12 + size
        os.truncate(segment, at)
