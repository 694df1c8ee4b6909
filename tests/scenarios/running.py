"""An `everput serve` as users start it: a process of its own, known by what it prints and by what runs.

For: scenarios that need a whole server. Not for: what they check."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar, Self, TypeVar

from broker.kafka.embedded.access import EmbeddedAccess, written_access

WAIT_S = 120.0  # Kafka without its archive has needed 30 s on a machine with five times the work it can do
STOPS_WITHIN_S = 30.0  # what `serve` promises
T = TypeVar("T")


def wait_until(condition: Callable[[], T], *, what: str, within_s: float = WAIT_S) -> T:
    deadline = time.monotonic() + within_s
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {within_s:g} s: {what}"
        time.sleep(0.05)
    return found


def is_running(pid: int, *, parent: int | None = None) -> bool:
    """Whether there is such a process, and it is no zombie. parent: and whether this one has started it."""
    try:
        state, started_by, *_ = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return False
    return state != "Z" and parent in (None, int(started_by))


def clean_environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("EVERPUT_")}
    if "EVERPUT_CACHE_DIR" in os.environ:
        kept["EVERPUT_CACHE_DIR"] = os.environ["EVERPUT_CACHE_DIR"]
    return {**kept, **more}


def everput(
    *arguments: str, python: Path = Path(sys.executable), **environment: str
) -> subprocess.CompletedProcess[str]:
    """A command that ends by itself. python: as in Running."""
    return subprocess.run(
        [str(python), "-P", "-m", "cli.app", *arguments],
        capture_output=True,
        text=True,
        env=clean_environment(**environment),
        timeout=240,
        check=False,
    )


@contextmanager
def alone(*arguments: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """A process that runs until the end of the block."""
    command = [sys.executable, "-P", "-m", "cli.app", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=clean_environment(**environment))
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def said(process: subprocess.Popen[str]) -> str:
    """Its next line."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


class Running:
    """One server. Use it as a context manager: nothing of it is left behind."""

    now: ClassVar[list[Self]] = []  # those that run

    def __init__(
        self,
        data_dir: Path,
        *arguments: str,
        python: Path = Path(sys.executable),
        allow: Sequence[str] = ("127.0.0.0/8",),
        **environment: str,
    ) -> None:
        """python: an interpreter that has another version of the program. allow: networks for --allow-network."""
        self.data_dir = data_dir
        self.stderr: list[str] = []
        self.stdout: list[str] = []
        command = [str(python), "-P", "-m", "cli.app", "serve", "--data-dir", str(data_dir), "--port", "0"]
        self.process = subprocess.Popen(
            [*command, *(f"--allow-network={one}" for one in allow), "--workers", "1", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=clean_environment(**environment),
            start_new_session=True,
        )
        self._threads = [
            threading.Thread(target=self._read, args=pair, daemon=True)
            for pair in ((self.process.stdout, self.stdout), (self.process.stderr, self.stderr))
        ]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> Self:
        self.now.append(self)
        return self

    def tell(self, since: int = 0) -> None:
        """Print what it said, from this line of stderr on: pytest shows it of a test that fails."""
        print("\n".join(line for line in self.stderr[since:][-400:] if "attempt.failed" not in line))

    def __exit__(self, *_: object) -> None:
        self.tell()
        self.now.remove(self)
        self.process.kill()
        self.process.wait()
        try:
            wait_until(lambda: not self.alive(), what="its processes are gone")
        finally:
            for pid in self.alive():  # else reading what they say would never end
                os.kill(pid, signal.SIGKILL)
            for thread in self._threads:
                thread.join(10)
            for pipe in (self.process.stdout, self.process.stderr):
                assert pipe is not None
                pipe.close()

    @staticmethod
    def _read(pipe, lines: list[str]) -> None:
        for text in pipe:
            lines.append(text.rstrip("\n"))  # noqa: PERF401 - others look at it meanwhile

    @property
    def url(self) -> str:
        """Once it is ready."""

        def ready() -> str | None:
            assert self.process.poll() is None, "\n".join(self.stderr)
            return next((text.removeprefix("ready ") for text in self.stdout if text.startswith("ready ")), None)

        return wait_until(ready, what="ready\n" + "\n".join(self.stderr))

    @property
    def admin_url(self) -> str:
        return self.said("admin.listening").rpartition("url=")[2]

    @property
    def kafka_address(self) -> str:
        return self.said("process.started", process="kafka").rpartition("address=")[2]

    @property
    def kafka(self) -> EmbeddedAccess:
        """How its embedded Kafka is reached."""
        access = written_access(self.data_dir / "kafka", bootstrap=self.kafka_address)
        assert access is not None
        return access

    @property
    def api_key(self) -> str:
        return (self.data_dir / "api-key").read_text().strip()

    def events(self, name: str, **fields: str) -> list[str]:
        """The lines of stderr about an event with these fields."""
        wanted = [f"{key}={value}" for key, value in fields.items()]
        return [text for text in self.stderr if name in text.split() and all(one in text.split() for one in wanted)]

    def said(self, name: str, **fields: str) -> str:
        """The newest line about an event with these fields, once there is one."""
        return wait_until(lambda: self.events(name, **fields), what=f"{name} {fields}")[-1]

    def pid_of(self, process: str) -> int:
        """Of its newest incarnation."""
        found = re.search(r"pid=(\d+)", self.said("process.started", process=process))
        assert found is not None
        return int(found[1])

    def alive(self) -> list[int]:
        """Those of all processes it ever started that still run."""
        pids = [int(pid) for text in self.stderr for pid in re.findall(r"process\.started .*pid=(\d+)", text)]
        return [pid for pid in pids if is_running(pid)]

    def running(self, process: str) -> int | None:
        """The pid of its newest incarnation, if that runs now."""
        if not self.events("process.started", process=process):
            return None
        pid = self.pid_of(process)
        return pid if is_running(pid, parent=self.process.pid) else None

    def kill(self, process: str) -> None:
        """SIGKILL, and wait until another one is ready (Kafka: started)."""
        again = "process.started" if process == "kafka" else "process.ready"
        before = len(self.events(again, process=process))
        os.kill(self.pid_of(process), signal.SIGKILL)

        wait_until(lambda: len(self.events(again, process=process)) > before, what=f"{process} is back")

    def stop(self) -> int:
        """SIGTERM; its exit code."""
        self.process.terminate()
        return self.stopped()

    def stopped(self) -> int:
        """The exit code of one that was told to stop; it keeps its promise of how soon."""
        return self.process.wait(STOPS_WITHIN_S)
