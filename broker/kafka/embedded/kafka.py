"""Apache Kafka for one machine: a child process with a data directory of its own.

For: one owner to a directory, ports on loopback, starting it again, never leaving it behind.
Not for: how the process is made (process.py), deciding when to start it again (cli/processes/serve.py), topics
(admin.py)."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import filelock

from broker.errors import ConfigurationError
from broker.kafka.embedded import archive, segments
from broker.kafka.embedded.access import EmbeddedAccess, made_password, password_file
from broker.kafka.embedded.jars import awaited_jars
from broker.kafka.embedded.process import KafkaProcess, answers
from broker.kafka.embedded.segments import LostEnd
from broker.kafka.ports import free_port, is_free
from broker.kafka.requests import LATEST, KafkaRequests
from broker.kafka.restore import fill
from broker.private_files import read_secret, refuse_shared_directory, write_secret

_log = logging.getLogger(__name__)

_COMPACTED: Final = "outstanding"
_HEAP_MIB: Final = 512
_START_TRIES: Final = 3
_LOOK_S: Final = 5.0
_MISSED_MAX: Final = (
    12  # checks in a row, each up to 5 s longer; they are counted, because this process may be suspended, too
)
_ORPHAN_GONE_WITHIN_S: Final = 10.0


class EmbeddedKafka:
    """A Kafka on 127.0.0.1 with its log below data_dir.

    port: of the broker; None: a free one is picked and kept for this object's life.
    heap_mib: Java's heap.
    progress: show on stderr what takes long at the first start.

    On Linux it ends with the thread that called start(). Clients connect as `access` says. The password is in
    data_dir/password; the first start makes it. Only start() reads it again, so running clients keep theirs when Kafka
    restarts.
    """

    def __init__(
        self, data_dir: Path, *, port: int | None = None, heap_mib: int = _HEAP_MIB, progress: bool = True
    ) -> None:
        self.data_dir = data_dir.absolute()
        self._port = port
        self._options = (f"-Xmx{heap_mib}m",)
        self._progress = progress
        self._lock = filelock.FileLock(self.data_dir / ".lock", thread_local=False)
        self._kafka: KafkaProcess | None = None
        self._password = ""
        self._making: asyncio.Task[None] | None = None

    @property
    def bootstrap(self) -> str:
        """The broker's `127.0.0.1:port` (RuntimeError before the first start when no port was given)."""
        if self._port is None:
            raise RuntimeError("Kafka's port is picked when it starts")
        return f"127.0.0.1:{self._port}"

    @property
    def access(self) -> EmbeddedAccess:
        """The address and password for clients (RuntimeError before the first start)."""
        if not self._password:
            raise RuntimeError("Kafka has not been started")
        return EmbeddedAccess(self.bootstrap, self._password)

    @property
    def pid(self) -> int:
        """The process id of Java (RuntimeError before start)."""
        return self.running_process.running.pid

    async def start(self) -> None:
        """Start Kafka, and return when it answers.

        ConfigurationError: the directory is in use, others can write to it, or Kafka can't run there.
        """
        try:
            self.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            refuse_shared_directory(self.data_dir)
            self.data_dir.chmod(0o700)
            self._lock.acquire(timeout=0)
        except filelock.Timeout:
            raise ConfigurationError(
                f"another server uses the data directory {self.data_dir}; stop it, or choose another with --data-dir"
            ) from None
        except OSError as error:
            raise ConfigurationError(f"the data directory {self.data_dir} can't be used: {error}") from error
        try:
            self._password = made_password(self.data_dir)
            await asyncio.to_thread(_end_orphan, self._pid_file, str(self.data_dir))
            jars = await awaited_jars(progress=self._progress)
            saved = archive.existing(jars)
            await self._start(jars, saved)
            if saved is None:
                self._making = asyncio.create_task(archive.make(jars))
        except BaseException:
            self._lock.release()
            raise

    async def wait(self, *, look_s: float = _LOOK_S, missed_max: int = _MISSED_MAX) -> int:
        """Wait until the current process has died, and return its exit code (negative: the signal's number).

        A process that has answered nothing for minutes is killed: missed_max looks in a row, look_s apart.
        """
        kafka = self.running_process
        died = asyncio.ensure_future(kafka.running.wait())
        missed = 0
        try:
            while not died.done():
                await asyncio.wait([died], timeout=look_s)
                missed = 0 if died.done() or await answers(kafka.port, self._password) else missed + 1
                if missed == missed_max:
                    _log.error("kafka.hangs pid=%d", kafka.running.pid)
                    self.kill()
            return died.result()
        finally:
            died.cancel()

    async def restart(self) -> None:
        """Start Kafka again on the same port, after stopping it if it is alive. ConfigurationError as for start()."""
        await self.running_process.stop()
        if read_secret(password_file(self.data_dir)) != self._password:  # deleted: another one begins with start()
            write_secret(password_file(self.data_dir), self._password)
        jars = await awaited_jars(progress=self._progress)
        await self._start(jars, archive.existing(jars))

    async def stop(self) -> None:
        """Stop Kafka, by force after 8 s, and release the directory. A repeat does nothing."""
        try:
            if self._making is not None:
                self._making.cancel()
                await asyncio.wait([self._making])
                self._making = None
            if self._kafka is not None:
                await self._kafka.stop()
                self._pid_file.unlink(missing_ok=True)
        finally:
            self._kafka = None
            self._lock.release()

    def kill(self) -> None:
        """Kill Kafka as a crash would. wait() tells when it is dead. Do nothing when it does not run."""
        if self._kafka is not None and self._kafka.running.returncode is None:
            self._kafka.running.kill()

    @property
    def running_process(self) -> KafkaProcess:
        if self._kafka is None:
            raise RuntimeError("Kafka has not been started")
        return self._kafka

    @property
    def _pid_file(self) -> Path:
        return self.data_dir / "kafka.pid"

    async def _start(self, jars: Sequence[Path], saved: Path | None) -> None:
        """Start Kafka, trying again on another port if this one is taken, and without the archive if that is bad."""
        started = time.monotonic()
        await asyncio.to_thread(_refuse_to_cut, self.data_dir / "kafka")
        lost = await asyncio.to_thread(lambda: list(segments.lost_ends(self.data_dir / "kafka")))
        suspect = None
        for number in range(1, _START_TRIES + 1):
            port, controller_port = self._port or free_port(), free_port()
            if not is_free(port):
                raise ConfigurationError(
                    f"port {port} on 127.0.0.1 is used by another program; choose another with --kafka-port"
                )
            options = (*self._options, *archive.use(saved))
            kafka = KafkaProcess(
                self.data_dir,
                jars=jars,
                port=port,
                controller_port=controller_port,
                password=self._password,
                options=options,
            )
            try:
                await kafka.start()
            except ConfigurationError as error:
                bad_luck = kafka.was_killed or not (is_free(port) and is_free(controller_port))
                if number == _START_TRIES or (saved is None and not bad_luck):
                    raise
                _log.warning("kafka.start-failed number=%d error=%s", number, error)
                if not bad_luck:
                    suspect, saved = saved, None
                continue
            archive.discard(suspect)
            self._kafka, self._port = kafka, port
            self._pid_file.write_text(f"{self.pid}\n", encoding="ascii")
            if lost:
                await self._fill(lost)
            took_ms = round((time.monotonic() - started) * 1000)
            _log.info("kafka.started pid=%d port=%d took_ms=%d", self.pid, port, took_ms)
            return

    async def _fill(self, lost: Sequence[LostEnd]) -> None:
        """Put records of nothing where the files have lost acknowledged records.

        Otherwise the next records would get the same offsets, which cursors have passed. `outstanding` needs no such
        records: no cursor stands there, and a compacted topic takes none without a key.
        """
        settings = self.access.settings()
        requests = KafkaRequests(settings)
        await requests.start(sorted({one.topic for one in lost}))
        try:
            for one in lost:
                end = (await requests.offsets(one.topic, {one.partition: LATEST}))[one.partition]
                if end > one.last:
                    continue  # the files are longer than they look
                last = one.last
                _log.error("kafka.end_lost topic=%s partition=%d first=%d last=%d", one.topic, one.partition, end, last)
                if not one.topic.endswith(_COMPACTED):
                    at_ms = time.time_ns() // 1_000_000
                    await fill(settings, one.topic, one.partition, one.last + 1 - end, at_ms=at_ms)
        finally:
            await requests.stop()


def _refuse_to_cut(log_dir: Path) -> None:
    """Raise ConfigurationError if Kafka would truncate a partition at an altered batch or a wrong index entry."""
    for name, batch in segments.cut_off(log_dir):
        raise ConfigurationError(
            f"{batch.path} is damaged at byte {batch.at} (offset {batch.first} of {name}). Kafka was killed, "
            "and would delete everything behind the damage. Restore it with `everput mend --export DIR`, or give up "
            f"what follows: truncate -s {batch.at} {batch.path}"
        )
    for path in segments.lying_indexes(log_dir):
        raise ConfigurationError(
            f"{path} is a damaged index, or its segment was shortened: Kafka would take the partition for shorter than "
            "it is, and overwrite the rest. Look for damage with `everput mend`. Then delete the index, "
            f"which Kafka makes again: rm {path}"
        )


def _end_orphan(pid_file: Path, mark: str) -> None:
    """Kill the Kafka that an earlier owner of the directory left running. mark: a text in its command line."""
    try:
        pid = int(pid_file.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return
    deadline = time.monotonic() + _ORPHAN_GONE_WITHIN_S
    while mark in (command := _command_of(pid)) and "kafka.Kafka" in command:
        if time.monotonic() > deadline:
            raise ConfigurationError(
                f"the Kafka of an earlier server (process {pid}) does not end; end it yourself: kill -9 {pid}"
            )
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            break
        time.sleep(0.05)
    pid_file.unlink(missing_ok=True)


def _command_of(pid: int) -> str:
    """Return the command line of a process; empty if there is none, or only a zombie."""
    if sys.platform == "linux":
        try:
            return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            return ""
    listing = subprocess.run(  # noqa: S603 - no shell, and a number
        ["/bin/ps", "-ww", "-o", "command=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    return listing.stdout
