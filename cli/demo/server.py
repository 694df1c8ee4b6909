"""The two child processes of `everput demo`: the server (`everput serve`) and the listeners.

For: starting them, following what they say, killing a worker, ending them. Both end by themselves when the demo is
gone: the server by its link (cli/processes/supervisor_link.py), the listeners when their stdin ends.
Not for: when what happens (demo.py)."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import sys
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from broker.errors import ConfigurationError
from broker.private_files import read_secret
from cli import files
from cli.options import Options, variable
from cli.processes import supervisor_link as link

# The most seconds that the demo's server may take to start. The first start is slow, because it downloads Kafka.
READY_S: Final = 600.0
STOP_S: Final = 32.0
# Only our own text: this regular expression reads lines of Everput's own log, so its time need not be linear.
_STARTED: Final = re.compile(r" process\.started process=(\S+) pid=(\d+)")
# Only our own text: this regular expression reads lines of Everput's own log, so its time need not be linear.
_READY: Final = re.compile(r" process\.ready process=(\S+)")


async def _spawn(*arguments: str, environment: Mapping[str, str], **more: Any) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",
        "-m",
        *arguments,
        env=dict(environment),
        stdout=asyncio.subprocess.PIPE,
        # A child process with a Unix session of its own gets no Ctrl-C from the terminal.
        # Ctrl-C reaches only the main process of the demo, which then stops its child processes.
        start_new_session=True,
        **more,
    )


def _environment() -> dict[str, str]:
    """Return this process's environment without Everput's own variables."""
    not_for_the_demo = {variable(name) for name in Options.__dataclass_fields__}
    not_for_the_demo |= {files.SEALING_KEY_VARIABLE, f"{files.SEALING_KEY_VARIABLE}_FILE"}
    not_for_the_demo |= {"EVERPUT_API_PROCESSES", "EVERPUT_WORKERS"}
    return {name: value for name, value in os.environ.items() if name not in not_for_the_demo}


class DemoServer:
    """The server of the demo: `everput serve` as a child process.

    `url` and `api_key` are set when the server has started. `pids` maps the name of each process of the server to its
    process id. `ready` has the names of the processes that are ready.
    """

    def __init__(self, data_dir: Path) -> None:
        self.url = ""
        self.api_key = ""
        self.pids: dict[str, int] = {}
        self.ready: set[str] = set()
        self._data_dir = data_dir
        self._last_lines: deque[str] = deque(maxlen=20)
        self._process: asyncio.subprocess.Process | None = None
        self._follow: asyncio.Task[None] | None = None
        self._link: socket.socket | None = None

    async def start(self) -> None:
        """Start the server, and return when it is ready. Raises ConfigurationError with the server's last log lines if
        the start fails.
        """
        self._link, theirs = socket.socketpair()
        with theirs:
            self._process = process = await _spawn(
                *("cli.app", "serve", "--data-dir", str(self._data_dir), "--port", "0"),
                *("--allow-network", "127.0.0.0/8", "--allow-network", "::1/128"),
                # The server's temporary files are in the demo's folder, which the demo deletes when it ends.
                environment={
                    **_environment(),
                    link.VARIABLE: str(theirs.fileno()),
                    "TMPDIR": str(self._data_dir.parent),
                },
                pass_fds=(theirs.fileno(),),
                stderr=asyncio.subprocess.PIPE,
            )
        if process.stdout is None or process.stderr is None:
            raise RuntimeError("the demo's child process has no pipes for its output")
        self._follow = asyncio.create_task(self._read_log(process.stderr))
        try:
            text = (await asyncio.wait_for(process.stdout.readline(), READY_S)).decode()
        except TimeoutError:
            text = ""
        if not text.startswith("ready "):
            await asyncio.wait([self._follow], timeout=1)
            raise ConfigurationError("the server did not start. " + " / ".join(self._last_lines))
        self.url = text.removeprefix("ready ").strip()
        self.api_key = read_secret(files.api_key_file(self._data_dir)) or ""

    def kill_worker(self) -> int:
        """Kill the server's first worker with SIGKILL, and return the worker's process id."""
        pid = self.pids["worker-1"]
        self.ready.discard("worker-1")
        os.kill(pid, signal.SIGKILL)
        return pid

    async def stop(self) -> None:
        """Stop the server by SIGTERM, or kill it if it still runs after STOP_S seconds."""
        if self._process is None:
            return
        if self._process.returncode is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                await asyncio.wait_for(self._process.wait(), STOP_S)
            except TimeoutError:
                self._process.kill()
                await self._process.wait()
        if self._link is not None:
            self._link.close()

    async def _read_log(self, log: asyncio.StreamReader) -> None:
        while text := (await log.readline()).decode(errors="replace"):
            self._last_lines.append(text.rstrip())
            if started := _STARTED.search(text):
                self.pids[started[1]] = int(started[2])
            elif ready := _READY.search(text):
                self.ready.add(ready[1])


class DemoListeners:
    """The demo's listeners, which run in a process of their own.

    `ports` maps each listener's name to its port. `counts` maps each listener's name to its counters. The process of
    the listeners sends the counters every fifth of a second.
    """

    def __init__(self, secrets: Mapping[str, str]) -> None:
        self.ports: dict[str, int] = {}
        self.counts: dict[str, dict[str, Any]] = {}
        self._secrets = secrets
        self._everything: asyncio.Future[dict[str, dict[str, int]]] | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._follow: asyncio.Task[None] | None = None
        self._started = asyncio.Event()

    async def start(self) -> None:
        self._process = await _spawn(
            "cli.demo.listeners",
            environment={**os.environ, "EVERPUT_DEMO_SECRETS": json.dumps(dict(self._secrets))},
            stdin=asyncio.subprocess.PIPE,
            limit=1 << 30,  # {"everything": …} is one line
        )
        self._follow = asyncio.create_task(self._listen())
        started = asyncio.create_task(self._started.wait())
        await asyncio.wait([started, self._follow], return_when=asyncio.FIRST_COMPLETED)
        if not started.done():
            started.cancel()
            raise ConfigurationError(
                "the demo's listeners could not start, because their process ended; the lines above may say why"
            )

    def tell(self, order: dict[str, Any]) -> None:
        """Send an order to the process of the demo's listeners. For example, `{"refuse": name}` lets a listener refuse
        messages, and `{"accept": name}` lets it accept messages again.
        """
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.write(json.dumps(order).encode() + b"\n")

    async def everything(self) -> dict[str, dict[str, int]]:
        """Return how often each of the demo's listeners accepted each message, by listener name and message id."""
        self._everything = asyncio.get_running_loop().create_future()
        self.tell({"everything": True})
        return await self._everything

    async def stop(self) -> None:
        if self._process is None:
            return
        if self._process.stdin is not None:
            self._process.stdin.close()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._process.wait(), 3)
        if self._process.returncode is None:
            self._process.kill()
            await self._process.wait()

    async def _listen(self) -> None:
        if self._process is None or self._process.stdout is None:
            return
        while text := await self._process.stdout.readline():
            message = json.loads(text)
            if "ports" in message:
                self.ports = message["ports"]
            elif "counts" in message:
                self.counts = message["counts"]
                self._started.set()
            elif self._everything is not None:
                self._everything.set_result(message["everything"])
