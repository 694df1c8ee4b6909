"""The jars of Apache Kafka: downloaded once by Maven coordinate, and used only if their SHA-256 is the pinned one.

For: jars.lock (a line for each jar: sha256, bytes, coordinate), the cache directory, the download with jgo. Not for:
starting Kafka (kafka.py).

`python -m broker.kafka.embedded.jars` prints a new jars.lock for an upgrade of Kafka. Only this command reads POM
files.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import queue
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Final

import filelock
import platformdirs

from broker.errors import ConfigurationError

KAFKA_VERSION: Final = "4.4.0"
_ROOTS: Final = (f"org.apache.kafka:kafka_2.13:{KAFKA_VERSION}", "org.apache.logging.log4j:log4j-slf4j-impl:2.25.5")
_DOWNLOADS_AT_ONCE: Final = 8
_TRIES: Final = 3
_TIMEOUT_S: Final = 30
_LOCK_WAIT_S: Final = 600
_STAGING: Final = ".fetch-"
_CANCELLED_WITHIN_S: Final = 0.1


@dataclass(frozen=True, slots=True)
class Pin:
    """A line of jars.lock: a jar's SHA-256, its size in bytes, and its Maven coordinate group:artifact:version."""

    sha256: str
    size: int
    coordinate: str

    @property
    def filename(self) -> str:
        _, artifact, version = self.coordinate.split(":")
        return f"{artifact}-{version}.jar"


# A function that downloads a jar (first argument) into an empty directory (second argument), and returns its path.
# Whenever the download receives bytes, the Fetch function calls its third argument with their number.
Fetch = Callable[[Pin, Path, Callable[[int], None]], Path]


def pins() -> tuple[Pin, ...]:
    """Read the pinned jars from jars.lock, in class path order."""
    text = resources.files("broker.kafka.embedded").joinpath("jars.lock").read_text(encoding="ascii")
    rows = [line.split() for line in text.splitlines() if line and not line.startswith("#")]
    return tuple(Pin(sha256, int(size), coordinate) for sha256, size, coordinate in rows)


def cache_dir() -> Path:
    """Return Everput's cache directory: $EVERPUT_CACHE_DIR, or a directory in this user's cache directory of the
    platform.
    """
    chosen = os.environ.get("EVERPUT_CACHE_DIR")
    return Path(chosen) if chosen else platformdirs.user_cache_path("everput", appauthor=False)


def kafka_jars(*, progress: bool = True, cancelled: threading.Event | None = None) -> tuple[Path, ...]:
    """Return Kafka's verified jars in class path order, and download missing or damaged ones first. The call blocks its
    thread.

    Setting `cancelled` ends the call with an error. Raises ConfigurationError if a jar can't be downloaded or stored,
    or differs from the pinned one, or if another process has been downloading jars for ten minutes.
    """
    directory = cache_dir() / f"kafka-{KAFKA_VERSION}"
    return collect(pins(), directory, fetch=_fetch, progress=progress, cancelled=cancelled)


async def awaited_jars(*, progress: bool) -> tuple[Path, ...]:
    """Call kafka_jars() in a thread, so that the event loop can go on. If the calling task is cancelled, the thread
    ends soon after.
    """
    cancelled = threading.Event()
    try:
        return await asyncio.to_thread(kafka_jars, progress=progress, cancelled=cancelled)
    finally:
        cancelled.set()


def collect(
    wanted: Sequence[Pin], directory: Path, *, fetch: Fetch, progress: bool, cancelled: threading.Event | None = None
) -> tuple[Path, ...]:
    """Return the paths of all wanted jars in the directory, after downloading missing and damaged ones.

    Only one process at a time downloads into the directory.
    """
    cancelled = cancelled or threading.Event()
    paths = tuple(directory / pin.filename for pin in wanted)
    if not _missing(wanted, directory):
        return paths
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(directory / ".lock")
        with lock.acquire(timeout=_LOCK_WAIT_S, cancel_check=cancelled.is_set):
            for left in directory.glob(f"{_STAGING}*"):  # left by a killed process
                shutil.rmtree(left, ignore_errors=True)
            # Another process can have downloaded the jars while this process waited for the lock, so look again.
            missing = _missing(wanted, directory)
            if missing:
                _download(missing, directory, fetch=fetch, progress=progress, cancelled=cancelled)
    except filelock.Timeout:
        raise ConfigurationError(
            f"another process has been downloading Kafka into {directory} for {_LOCK_WAIT_S} s; stop it and try again"
        ) from None
    except OSError as error:
        raise ConfigurationError(
            f"Kafka's jars can't be stored in {directory}: {error}; set EVERPUT_CACHE_DIR to another directory"
        ) from error
    return paths


def _missing(wanted: Sequence[Pin], directory: Path) -> list[Pin]:
    """Return the jars that are missing or differ from the pinned bytes.

    Each start of the embedded Kafka hashes all jars: 45 MB, which takes less than 0.1 s.
    """
    return [pin for pin in wanted if not _is_pinned(pin, directory / pin.filename)]


def _is_pinned(pin: Pin, path: Path) -> bool:
    try:
        if path.stat().st_size != pin.size:
            return False
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == pin.sha256
    except OSError:
        return False


def _download(
    missing: Sequence[Pin], directory: Path, *, fetch: Fetch, progress: bool, cancelled: threading.Event
) -> None:
    """Download jars in daemon threads, so that a server that hangs does not delay the end of the program."""
    given_up = threading.Event()
    todo = queue.SimpleQueue[Pin]()
    done = queue.SimpleQueue[BaseException | None]()

    def work(advance: Callable[[int], None]) -> None:
        def advance_or_end(size: int) -> None:
            if given_up.is_set():
                raise InterruptedError
            advance(size)

        with suppress(queue.Empty):
            while not given_up.is_set():
                pin = todo.get_nowait()
                try:
                    _bring(pin, directory, fetch, advance_or_end)
                    done.put(None)
                except BaseException as error:  # noqa: BLE001 - the waiting thread raises it
                    done.put(error)

    for pin in missing:
        todo.put(pin)
    try:
        with _progress_bar(sum(pin.size for pin in missing), shown=progress) as advance:
            for _ in range(_DOWNLOADS_AT_ONCE):
                threading.Thread(target=work, args=(advance,), name="jars", daemon=True).start()
            for _ in missing:
                error = _next(done, cancelled)
                if error is not None:
                    raise error
    finally:
        given_up.set()


def _next(done: queue.SimpleQueue[BaseException | None], cancelled: threading.Event) -> BaseException | None:
    while not cancelled.is_set():
        with suppress(queue.Empty):
            return done.get(timeout=_CANCELLED_WITHIN_S)
    return InterruptedError("the download was cancelled")


def _bring(pin: Pin, directory: Path, fetch: Fetch, advance: Callable[[int], None]) -> None:
    """Download one jar into a temporary directory, in at most three tries, and check its bytes. The jar is moved to its
    final place only if it is complete and correct.
    """
    for number in range(1, _TRIES + 1):
        # Each try of a download gets an empty directory: jgo would accept a file that an earlier try left incomplete.
        with tempfile.TemporaryDirectory(prefix=_STAGING, dir=directory) as staging:
            try:
                fetched = fetch(pin, Path(staging), advance)
            except InterruptedError:
                raise
            except (OSError, RuntimeError) as error:
                if number == _TRIES:
                    raise ConfigurationError(
                        f"{pin.coordinate} can't be downloaded: {error}. The embedded Kafka needs the network once, "
                        "to download Kafka; without a network, use an existing cluster with --kafka"
                    ) from error
                continue
            if not _is_pinned(pin, fetched):
                raise ConfigurationError(
                    f"{pin.coordinate} as downloaded differs from the pinned file (SHA-256 {pin.sha256}) and is "
                    "refused. Check whether a proxy or the Maven repository changes it"
                )
            fetched.replace(directory / pin.filename)
            return


def _fetch(pin: Pin, staging: Path, advance: Callable[[int], None]) -> Path:
    # Import jgo only here, because its import is slow, and only a download of Kafka's jars needs it.
    from jgo.maven import MavenContext, PythonResolver

    @contextmanager
    def report(_filename: str, _size: int) -> Iterator[Callable[[int], None]]:
        yield advance

    group, artifact, version = pin.coordinate.split(":")
    resolver = PythonResolver(progress_callback=report)
    context = MavenContext(resolver=resolver, repo_cache=staging, local_repos=[], timeout=_TIMEOUT_S)
    return Path(context.project(group, artifact).at_version(version).artifact().resolve())


@contextmanager
def _progress_bar(total: int, *, shown: bool) -> Iterator[Callable[[int], None]]:
    """Show a progress bar for a download of `total` bytes. Yield a function that adds received bytes to the bar; any
    thread may call this function.
    """
    if not shown:
        yield lambda _size: None
        return
    from rich.console import Console  # noqa: TID251 - it shows no text from outside
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(f"Apache Kafka {KAFKA_VERSION}, once", total=total)
        lock = threading.Lock()
        done = 0

        def advance(size: int) -> None:
            nonlocal done
            with lock:
                # A second try of a download adds the same bytes again. So never show more than the total.
                done = min(done + size, total)
                bar.update(task, completed=done)

        yield advance


def _new_lock() -> Iterator[str]:
    """Yield the lines of a new jars.lock, with the versions that the Maven repository resolves today."""
    import jgo
    from jgo.maven import MavenContext

    with tempfile.TemporaryDirectory() as repository:
        context = MavenContext(repo_cache=Path(repository), timeout=_TIMEOUT_S)
        found: dict[tuple[str, str], str] = {}
        # Resolve Kafka on its own, because log4j's BOM (list of versions) would change the versions of some jars.
        for root in _ROOTS:
            for one in jgo.resolve(root):
                found.setdefault((one.groupId, one.artifactId), one.version)
        yield f"# sha256, bytes, coordinate: the class path of {' and '.join(_ROOTS)}"
        for (group, artifact), version in sorted(found.items()):
            path = Path(context.project(group, artifact).at_version(version).artifact().resolve())
            yield f"{hashlib.sha256(path.read_bytes()).hexdigest()} {path.stat().st_size} {group}:{artifact}:{version}"


if __name__ == "__main__":
    sys.stdout.writelines(line + "\n" for line in _new_lock())
