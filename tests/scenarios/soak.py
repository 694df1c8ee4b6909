"""The fault runs: kill -9 at random moments, zombies, bad networks; each as long as it is asked for.

The dice choose what happens and when; how far the processes have come by then is the machine's.
For: test_soak.py, where they take minutes, and test_faults.py, where they are short.
Not for: power cuts (power_cut.py)."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Self

import httpx
import pytest

from broker.kafka.embedded import process as kafka_process
from broker.kafka.embedded.kafka import EmbeddedKafka
from broker.kafka.ports import free_port
from tests.kafka_clients import sasl_variables
from tests.listeners import Got, Listeners, until
from tests.scenarios.history import AHEAD_MS_MAX, History, as_put
from tests.scenarios.proxy import Proxy
from tests.scenarios.running import Running, clean_environment, is_running, wait_until

REJOIN_S = 15.0  # after Kafka is back, until the workers have given up their partitions and got them again
FETCHED_S = 1.0  # what is put so long after a worker was cut off may still be on its way to it
BACK_WITHIN_S = 120.0
LATE_EVERY = 5  # kills
ONE_BROKER = ("--replication", "1", "--flush-each-batch", "--partitions", "8")
PACE_S = 0.035  # what each of eight publishers waits after an answer: at most 230 puts a second
TIMED_S = 2.0  # at least
TIMEOUT_S = 2.0  # of attempts in a bad network
LISTENERS = ("steady", "flaky", "slow", "picky")
ATTEMPTS = 2  # that picky gets
PROCESSES = ("api-1", "api-2", "worker-1", "worker-2", "kafka")
VICTIMS = (*PROCESSES, "supervisor")


class Server:
    """An `everput serve` that is started again, on its port and its data directory, when all of it was killed."""

    def __init__(self, data_dir: Path, *arguments: str, workers: int = 2, **environment: str) -> None:
        self._data_dir = data_dir
        self._environment = environment
        self._arguments = ("--api-processes", "2", "--workers", str(workers), "--port", str(free_port()), *arguments)
        lacking = {f"worker-{workers + 1}", "kafka" if "--kafka" in arguments else ""}
        self._processes = [name for name in PROCESSES if name not in lacking]
        self._stack = contextlib.ExitStack()
        self.now = self._start()

    def _start(self) -> Running:
        return self._stack.enter_context(Running(self._data_dir, *self._arguments, **self._environment))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def crash(self) -> None:
        """kill -9 of the supervisor, and start again once everything it had started is gone, too."""
        self.now.process.kill()
        self.now.process.wait()
        wait_until(lambda: not self.now.alive(), what="all ended with the supervisor")
        self.now = self._start()

    def runs(self, victim: str) -> bool:
        return victim == "supervisor" or self.now.running(victim) is not None

    def strike(self, victim: str) -> None:
        """kill -9, once it runs."""
        if victim == "supervisor":
            self.crash()
            return
        pid = wait_until(lambda: self.now.running(victim), what=f"{victim} runs")
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not is_running(pid), what=f"{victim} is dead")

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


class Picky:
    """What the listeners answer: `picky` refuses a tenth of its messages once, and a tenth until it relents: these are
    parked."""

    def __init__(self, history: History) -> None:
        self._history = history
        self._refused: Counter[str] = Counter()
        self.relents = False

    def answer(self, got: Got) -> int:
        if got.path in self._history.listeners.down:
            return 503
        data = as_put(got.data)
        kind = int(data[1:]) % 10
        if got.path != "picky" or self.relents or not (kind == 3 or (kind == 7 and not self._refused[data])):
            return 200
        self._refused[data] += 1
        if self._refused[data] >= ATTEMPTS:
            self._history.record.parked.add((got.path, data))
        return 422


@contextlib.asynccontextmanager
async def load(server: Server, dice: random.Random, *, lasts_s: float = 0.0) -> AsyncIterator[History]:
    """load_on() a server."""
    async with load_on(server.now.url, server.now.api_key, dice, lasts_s=lasts_s) as history:
        yield history


@contextlib.asynccontextmanager
async def load_on(
    url: str,
    api_key: str,
    dice: random.Random,
    *,
    lasts_s: float = 0.0,
    transport: httpx.AsyncBaseTransport | None = None,
) -> AsyncIterator[History]:
    """Puts to four listeners; all arrived at the end.

    A third of them have an ordering key, some others a time, and what is parked is redriven at the end: `outstanding`
    is never empty. lasts_s: how long it goes on, at least; by then the last time has come, if it is long. transport:
    instead of the network's.
    """
    async with Listeners() as listeners:
        listeners.delay_s["slow"] = 0.03  # a key's messages, 25 a second, are still taken one after the other
        history = History(url, api_key, listeners, publishers=8, keyed=4, pace_s=PACE_S, transport=transport)
        picky = Picky(history)
        listeners.decide = picky.answer
        await history.set_up("steady", "flaky", "slow")
        await history.set_up("picky", max_attempts=ATTEMPTS, retry_first_ms=100)
        history.timed_until = time.monotonic() + max(TIMED_S, lasts_s - AHEAD_MS_MAX / 1000)
        try:
            async with ups_and_downs(listeners, "flaky", random.Random(dice.random())):
                history.start()
                await history.more(200)
                yield history
                await history.more(200, within_s=BACK_WITHIN_S)
                await history.stop()
            picky.relents = True
            await history.arrived("steady", "flaky", "slow", within_s=BACK_WITHIN_S)
            await history.redrive("picky")
            await history.arrived("picky", within_s=BACK_WITHIN_S)
            timed = sum(put.due_at is not None for put in history.record.puts)
            parked, cancelled = len(history.record.parked), len(history.record.cancelled)
            assert min(timed, parked) > 0, "nothing was ever outstanding"
            renewed = sum(bool(one.update) for path in LISTENERS for one in history.taken(path))
            print(f"{len(history.accepted)} accepted, {timed} timed, {parked} parked, {cancelled} cancelled")
            print(f"{len(history.record.updates)} updates, {renewed} deliveries of one")
            assert renewed, "no update was ever delivered"
            print(f"answers {dict(history.answers)}")
        finally:
            await history.stop()
            await history.client.aclose()


def repeated(history: History) -> dict[str, int]:
    return {path: history.repeated(path) for path in LISTENERS}


async def kill_loop(
    server: Server, dice: random.Random, rounds: int, *, victims: Sequence[str] = VICTIMS, pause_s: float = 4.0
) -> None:
    """kill -9 of anything at any moment loses nothing. In as many rounds as there are victims each is killed once;
    another one has its turn before who does not run just then. pause_s: at most, before each."""
    killed: Counter[str] = Counter()
    to_kill: list[str] = []
    async with load(server, dice, lasts_s=rounds * 4.0) as history:
        for number in range(rounds):
            await asyncio.sleep(dice.uniform(0.1, pause_s))
            if not to_kill:
                to_kill = dice.sample(victims, len(victims))
            victim = next(filter(server.runs, to_kill), to_kill[0])
            to_kill.remove(victim)
            began = time.monotonic()
            with contextlib.ExitStack() as stack:
                if victim == "kafka":
                    stack.enter_context(history.crash(after_s=REJOIN_S, settles_s=None))
                elif not victim.startswith("api"):  # they repeat nothing
                    stack.enter_context(history.crash())
                await asyncio.to_thread(server.strike, victim)
                killed[victim] += 1
                if dice.random() < 0.5:  # else the next one dies while this one starts
                    await asyncio.to_thread(server.until_ready)
            print(f"{number}: {victim}, {time.monotonic() - began:.1f} s")
            if number % LATE_EVERY == 0:  # it gets nothing of before; where the put is not answered, nobody cares
                with contextlib.suppress(httpx.HTTPError):
                    await history.set_up(f"late-{number}")
                    await history.redrive("picky")  # some of it is parked once more
        await asyncio.to_thread(server.until_ready)
    print(f"killed {dict(killed)}, repeated {repeated(history)}")
    await history.check()
    if rounds >= len(victims):
        assert killed.keys() == set(victims), killed


async def zombies(server: Server, dice: random.Random, *victims: str, sleep_s: float) -> None:
    """A worker that sleeps past its session neither loses nor skips."""
    async with load(server, dice, lasts_s=sleep_s * len(victims)) as history:
        for victim in victims:
            pid = server.now.running(victim)
            assert pid is not None
            with history.crash(after_s=REJOIN_S, settles_s=FETCHED_S):
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
    await history.check()


async def bad_network_to_listeners(server: Server, dice: random.Random, seconds: float) -> Counter[str]:
    """It only delays."""
    patience_s = TIMEOUT_S / 2  # a busy machine adds to a delay
    async with (
        Listeners() as listeners,
        Proxy(listeners.port, dice, trouble=0.9, within=20_000, patience_s=patience_s) as proxy,
    ):
        history = History(server.now.url, server.now.api_key, listeners, publishers=8, keyed=4, pace_s=PACE_S)
        await history.set_up("far", port=proxy.port, timeout_ms=int(TIMEOUT_S * 1000))
        history.start()
        ends_s = time.monotonic() + seconds
        while time.monotonic() < ends_s:
            await asyncio.sleep(dice.uniform(1, 5))
            proxy.cut()
        await history.stop()
        proxy.trouble = 0.0
        await history.arrived("far", within_s=BACK_WITHIN_S)
        history.record.lost_answers = proxy.lost_answers
        print(f"{len(history.accepted)} accepted, {dict(proxy.troubles)}, {proxy.lost_answers} answers lost")
        print(f"repeated {history.repeated('far')}")
        await history.check()
        await history.client.aclose()
    return proxy.troubles


async def bad_network_to_kafka(
    tmp_path: Path, dice: random.Random, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> Counter[str]:
    """It loses nothing. Kafka's clients connect to the address that it tells them: the proxy's."""
    async with Proxy(0, dice, trouble=0.0, within=1_000_000) as proxy:
        told = "advertised.listeners={listener}://127.0.0.1:"
        monkeypatch.setattr(
            kafka_process, "PROPERTIES", kafka_process.PROPERTIES.replace(told + "{port}", f"{told}{proxy.port}")
        )
        kafka = EmbeddedKafka(tmp_path / "kafka", progress=False)
        await kafka.start()
        proxy.target = int(kafka.bootstrap.rpartition(":")[2])
        arguments = ["--kafka", f"127.0.0.1:{proxy.port}", *ONE_BROKER]
        try:
            with Server(tmp_path / "data", *arguments, **sasl_variables(kafka.access)) as server:
                await asyncio.to_thread(server.until_ready)
                async with load(server, dice, lasts_s=seconds) as history:
                    # Any checkpoint may fail at any time. What may be repeated is cut_off()'s business.
                    with history.crash(after_s=REJOIN_S, settles_s=None):
                        proxy.trouble = 0.7
                        ends_s = time.monotonic() + seconds
                        while time.monotonic() < ends_s:
                            await asyncio.sleep(dice.uniform(1, 8))
                            proxy.cut()
                        proxy.trouble = 0.0
                        proxy.cut()
                        await asyncio.to_thread(server.until_ready)
                print(f"{dict(proxy.troubles)}, repeated {repeated(history)}")
                await history.check()
        finally:
            await kafka.stop()
    return proxy.troubles


class FarWorker:
    """One more worker of a server, that reaches Kafka at an address of its own. Beside a server of one worker."""

    def __init__(self, data_dir: Path, log: Path, *arguments: str, **environment: str) -> None:
        self._log = log
        with log.open("w") as file:
            command = [sys.executable, "-P", "-m", "cli.app", "worker", "--data-dir", str(data_dir), *arguments]
            self._process = subprocess.Popen(
                [*command, "--allow-network", "127.0.0.0/8"],
                stdout=file,
                stderr=file,
                env=clean_environment(**environment),
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        print("\n".join(line for line in self._log.read_text().splitlines()[-200:] if "attempt.failed" not in line))

    def gained(self) -> int:
        """How often it was given partitions."""
        assert self._process.poll() is None, self._log.read_text()[-5000:]
        return self._log.read_text().count("worker.gained")


async def cut_off(
    tmp_path: Path, dice: random.Random, monkeypatch: pytest.MonkeyPatch, *, times: int, silence_s: float
) -> None:
    """One of two workers hears nothing of Kafka for longer than its session: only its own deliveries may be repeated.

    When it is back, the other one dies: what comes next begins from the cursors that the first may have set back.
    """
    async with Proxy(0, dice, trouble=0.0, within=1) as proxy:
        proxy.target = free_port()
        kafka = await _kafka_with_a_second_address(tmp_path / "kafka", monkeypatch, proxy.target, proxy.port)
        try:
            arguments = ("--kafka", kafka.bootstrap, *ONE_BROKER)
            with Server(tmp_path / "data", *arguments, workers=1, **sasl_variables(kafka.access)) as server:
                await asyncio.to_thread(server.until_ready)
                far_arguments = ("--kafka", f"127.0.0.1:{proxy.port}", *ONE_BROKER)
                sasl = sasl_variables(kafka.access)
                with FarWorker(tmp_path / "data", tmp_path / "far.log", *far_arguments, **sasl) as far:
                    await until(far.gained, what="the far worker has a share", within_s=BACK_WITHIN_S)
                    async with load(server, dice, lasts_s=times * silence_s) as history:
                        for _ in range(times):
                            await _cut_off_once(server, far, proxy, history, silence_s)
                            await asyncio.sleep(dice.uniform(0, 5))
                    print(f"repeated {repeated(history)}")
                    await history.check()
        finally:
            proxy.end_silence()
            await kafka.stop()


async def _cut_off_once(server: Server, far: FarWorker, proxy: Proxy, history: History, silence_s: float) -> None:
    gained = far.gained()
    with history.crash(settles_s=FETCHED_S):
        proxy.silence()
        await asyncio.sleep(silence_s)
        proxy.end_silence()
        await until(lambda: far.gained() > gained, what="it is back", within_s=BACK_WITHIN_S)
    with history.crash():
        await asyncio.to_thread(server.strike, "worker-1")
    await asyncio.to_thread(server.until_ready)


async def _kafka_with_a_second_address(
    directory: Path, monkeypatch: pytest.MonkeyPatch, port: int, told_port: int
) -> EmbeddedKafka:
    """Whoever comes by this port is told to come by the other one."""
    properties = kafka_process.PROPERTIES
    for line, more in (
        ("listeners={listener}://127.0.0.1:{port}", f",FAR://127.0.0.1:{port}"),
        ("advertised.listeners={listener}://127.0.0.1:{port}", f",FAR://127.0.0.1:{told_port}"),
        ("listener.security.protocol.map={listener}:SASL_PLAINTEXT", ",FAR:SASL_PLAINTEXT"),
    ):
        properties = properties.replace("\n" + line, "\n" + line + more)
    properties += "listener.name.far.sasl.enabled.mechanisms={mechanism}\n"
    properties += (
        "listener.name.far.{scram}.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;\n"
    )
    monkeypatch.setattr(kafka_process, "PROPERTIES", properties)
    kafka = EmbeddedKafka(directory, progress=False)
    await kafka.start()
    return kafka
