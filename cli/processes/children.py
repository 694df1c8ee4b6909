"""One child process of the supervisor, restarted whenever it dies.

For: starting it, telling it when Kafka is ready, learning when the process is ready, restarting and stopping it. Not
for: which processes there are and in which order they stop (cli/processes/serve.py).
"""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from types import MappingProxyType
from typing import Final

from broker.errors import ConfigurationError
from broker.kafka.embedded.access import EmbeddedAccess
from cli.logs import Logger
from cli.processes import supervisor_link as link
from cli.processes.prefork import ForkedProcess, Prefork

PAUSE_S_MIN: Final = 0.1
PAUSE_S_MAX: Final = 5.0
STEADY_S: Final = 10.0  # if a process has run for 10 s, its next restart follows after PAUSE_S_MIN
EXIT_CONFIGURATION: Final = 2

_NO_DESCRIPTORS: Final[Mapping[str, int]] = MappingProxyType({})

_log = Logger(__name__)


class Pauses:
    """The pauses before a process is restarted. The first pause takes 0.1 s. Each further pause is twice as long as the
    pause before, but at most 5 s. If the process has run for ten seconds or longer, the next pause is 0.1 s again.
    """

    def __init__(self) -> None:
        self._next_s = PAUSE_S_MIN

    def after(self, lived_s: float) -> float:
        """Return how many seconds to wait before the restart of a process that ran for `lived_s` seconds."""
        if lived_s >= STEADY_S:
            self._next_s = PAUSE_S_MIN
        pause_s, self._next_s = self._next_s, min(self._next_s * 2, PAUSE_S_MAX)
        return pause_s


class Child:
    """A child process of the supervisor. The supervisor starts the process, and restarts it when it dies.

    `kafka` is a future that is done when Kafka is ready. Its result is the address and the password of the embedded
    Kafka, or None for a Kafka cluster. `environment` has the environment variables of the process.

    `descriptors` maps the names of further environment variables to open file descriptors. The process inherits each
    open file, and finds the number of its descriptor in the variable.

    If `prefork` is given, the first start uses a process that was forked in advance. Each restart starts a new Python.
    """

    def __init__(
        self,
        name: str,
        arguments: Sequence[str],
        *,
        environment: Mapping[str, str],
        kafka: asyncio.Future[EmbeddedAccess | None],
        descriptors: Mapping[str, int] = _NO_DESCRIPTORS,
        prefork: Prefork | None = None,
    ) -> None:
        self.name = name
        self.ready = asyncio.Event()
        self.admin_url: str | None = None  # the admin address of the child process that runs at present
        self._arguments = arguments
        self._environment = environment
        self._kafka = kafka
        self._descriptors = descriptors
        self._prefork = prefork
        self._process: asyncio.subprocess.Process | ForkedProcess | None = None
        self._was_ready = False
        self._stopping = asyncio.Event()
        self._ended = asyncio.Event()
        self._error: str | None = None

    async def keep(self) -> None:
        """Start the child process, and restart it whenever it dies, until `stop` is called. Raises ConfigurationError
        if the process ends because of a wrong configuration before it was ever ready.
        """
        loop = asyncio.get_running_loop()
        pauses = Pauses()
        try:
            while not self._stopping.is_set():
                started_s = loop.time()
                code = await self._run_once()
                if self._stopping.is_set():
                    _log.info("process.stopped", process=self.name, exit=code)
                    return
                if code == EXIT_CONFIGURATION and not self._was_ready:
                    raise ConfigurationError(self._error or f"{self.name} could not start")
                pause_s = pauses.after(loop.time() - started_s)
                _log.error("process.died", process=self.name, exit=code, reason=self._error, again_in_s=pause_s)
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._stopping.wait(), pause_s)
        finally:
            self._ended.set()

    async def _run_once(self) -> int | None:
        """Start the child process once, and wait until it ends. Return its exit code. Return None if the system could
        not start the process, for example because it has no memory or no process ids left.
        """
        try:
            return await self._run()
        except OSError as error:
            self._error = f"the process could not be started: {error}"
            return None

    async def _run(self) -> int:
        """Start the child process once, and wait until it ends. Return its exit code, which is negative if a signal
        ended the process.
        """
        process, ours = await self._start()
        self._process = process
        with ours:
            _log.info("process.started", process=self.name, pid=process.pid)
            if self._stopping.is_set():
                self._signal(signal.SIGTERM)
            self._error = None
            talk = asyncio.create_task(self._talk(ours))
            code = await process.wait()
            self.ready.clear()
            self.admin_url = None
            # Wait at most 1 s until `talk` has read what the process sent just before its end, such as its error.
            await asyncio.wait([talk], timeout=1)
            talk.cancel()
            with suppress(asyncio.CancelledError):
                await talk
            return code

    async def _start(self) -> tuple[asyncio.subprocess.Process | ForkedProcess, socket.socket]:
        """Start the child process. Return the process, and the supervisor's socket to the process."""
        if self._prefork is not None:
            prefork, self._prefork = self._prefork, None
            forked = await prefork.start(self._arguments, self._environment, self._descriptors)
            if forked is not None:
                return forked
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                return await self._new_python(theirs.fileno()), ours
            except BaseException:
                ours.close()
                raise

    async def _new_python(self, descriptor: int) -> asyncio.subprocess.Process:
        descriptors = {**self._descriptors, link.VARIABLE: descriptor}
        return await asyncio.create_subprocess_exec(
            sys.executable,
            # With Python's option -P, a module in the working directory can't replace one of Everput's modules.
            "-P",
            "-m",
            "cli.app",
            *self._arguments,
            env={**self._environment, **{name: str(number) for name, number in descriptors.items()}},
            pass_fds=tuple(descriptors.values()),
            stdin=asyncio.subprocess.DEVNULL,
            # Only the supervisor writes to stdout (the line `ready`). The output of its child processes goes to stderr.
            stdout=sys.stderr.fileno(),
            # Ctrl-C in a terminal must reach only the supervisor, which then stops all child processes in order.
            start_new_session=True,
        )

    async def _talk(self, ours: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        ours.setblocking(False)
        heard = b""
        go = asyncio.create_task(self._go(ours))
        try:
            while data := await loop.sock_recv(ours, 65536):
                *lines, heard = (heard + data).split(b"\n")
                for text in lines:
                    self._heard(json.loads(text))
        except ConnectionError:
            pass
        finally:
            go.cancel()

    async def _go(self, ours: socket.socket) -> None:
        access = await asyncio.shield(self._kafka)
        go = {"embedded": None if access is None else asdict(access)}
        with suppress(OSError):  # OSError: the child process has died already; keep() handles that
            await asyncio.get_running_loop().sock_sendall(ours, json.dumps(go).encode() + b"\n")

    def _heard(self, message: dict[str, object]) -> None:
        if "ready" in message:
            self._was_ready = True
            self.ready.set()
            _log.info("process.ready", process=self.name)
        elif "admin" in message:
            self.admin_url = str(message["admin"])
        else:
            self._error = str(message["error"])

    async def stop(self, *, timeout_s: float) -> None:
        """Ask the child to end, and kill it if it has not ended after `timeout_s` seconds."""
        self._stopping.set()
        self._signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(self._ended.wait(), timeout_s)
        except TimeoutError:
            _log.warning("process.killed", process=self.name, reason=f"did not stop within {timeout_s:g} s")
            self.kill()
            await self._ended.wait()

    def kill(self) -> None:
        """Kill the child at once."""
        self._stopping.set()
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.returncode is None:
            with suppress(ProcessLookupError):
                self._process.send_signal(number)
