"""Apache Kafka for one machine: a child process with a data directory of its own.

For: locking the directory, ports on loopback, restarting Kafka, and never leaving it running. Not for: creating the
process (process.py), deciding when to restart it (cli/processes/serve.py), topics (admin.py).
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, Final

import filelock

from broker.clock import now_ms
from broker.errors import ConfigurationError
from broker.kafka.embedded import archive, segments
from broker.kafka.embedded.access import EmbeddedAccess, made_password, password_file
from broker.kafka.embedded.jars import awaited_jars
from broker.kafka.embedded.lost import CONTROL, refuse_lost_control
from broker.kafka.embedded.process import KafkaProcess, answers
from broker.kafka.embedded.segments import DamagedBatch, LostEnd
from broker.kafka.ports import free_port, is_free
from broker.kafka.requests import KafkaRequests
from broker.kafka.restore import fill
from broker.ports import LATEST
from broker.private_files import read_secret, refuse_shared_directory, write_secret

_log = logging.getLogger(__name__)

_COMPACTED: Final = "outstanding"
_HEAP_MIB: Final = 512
_START_TRIES: Final = 3
_LOOK_S: Final = 5.0
# Kill Kafka after 12 failed checks in a row.
# Checks are counted, because a time limit would also kill a healthy Kafka after the machine was suspended.
_MISSED_MAX: Final = 12
_ORPHAN_GONE_WITHIN_S: Final = 10.0


class EmbeddedKafka:
    """An Apache Kafka that runs as a child process on 127.0.0.1, with its files below `data_dir`.

    If no `port` is given, start() chooses a free port, and restart() uses the same port. When the first member joins a
    consumer group, Kafka waits `join_delay_ms` for more members. On Linux, Kafka is killed when the thread that called
    start() ends.

    `access` has the address and the password for clients. The password is in the file data_dir/password. If there is no
    such file, start() creates a password.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        port: int | None = None,
        heap_mib: int = _HEAP_MIB,
        progress: bool = True,
        join_delay_ms: int = 0,
        make_archive: Callable[[Sequence[Path]], Coroutine[Any, Any, None]] = archive.make,
    ) -> None:
        self.data_dir = data_dir.absolute()
        self._port = port
        self._options = (f"-Xmx{heap_mib}m",)
        self._progress = progress
        self._join_delay_ms = join_delay_ms
        self._make_archive = make_archive
        self._lock = filelock.FileLock(self.data_dir / ".lock", thread_local=False)
        self._kafka: KafkaProcess | None = None
        self._password = ""
        self._making: asyncio.Task[None] | None = None

    @property
    def bootstrap(self) -> str:
        """Return the broker's address, `127.0.0.1:port`. Raises RuntimeError before the first start if no port was
        given.
        """
        if self._port is None:
            raise RuntimeError("Kafka's port is not known before start()")
        return f"127.0.0.1:{self._port}"

    @property
    def access(self) -> EmbeddedAccess:
        """Return the address of Kafka and the password for its clients. Raises RuntimeError before the first start."""
        if not self._password:
            raise RuntimeError("Kafka has not been started; call start() first")
        return EmbeddedAccess(self.bootstrap, self._password)

    @property
    def pid(self) -> int:
        """Return the process id of Java. Raises RuntimeError before start() and after stop()."""
        return self.running_process.running.pid

    async def start(self) -> None:
        """Start Kafka, and wait until it answers.

        Raises ConfigurationError if another server uses the directory, if other users can write to it, or if Kafka
        can't run there.
        """
        try:
            self.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            refuse_shared_directory(self.data_dir)
            self.data_dir.chmod(0o700)
            self._lock.acquire(timeout=0)
        except filelock.Timeout:
            raise ConfigurationError(
                f"another server uses the data directory {self.data_dir}; stop that server, or choose another "
                "directory with --data-dir"
            ) from None
        except OSError as error:
            raise ConfigurationError(
                f"the data directory {self.data_dir} can't be used: {error}; choose another directory with --data-dir"
            ) from error
        try:
            self._password = made_password(self.data_dir)
            await asyncio.to_thread(_end_orphan, self._pid_file, str(self.data_dir))
            jars = await awaited_jars(progress=self._progress)
            saved = archive.existing(jars)
            await self._start(jars, saved)
            if saved is None:
                self._making = asyncio.create_task(self._make_archive(jars))
        except BaseException:
            self._lock.release()
            raise

    async def wait(self, *, look_s: float = _LOOK_S, missed_max: int = _MISSED_MAX) -> int:
        """Wait until the current Kafka process has ended. Return its exit code, or the negative number of the signal
        that killed it.

        Meanwhile, check whether Kafka answers, with at least `look_s` seconds between two checks. After `missed_max`
        failed checks in a row, kill the Kafka process.
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
        """Start Kafka again on the same port, and stop it first if it runs. Raises ConfigurationError if Kafka can't
        run.
        """
        await self.running_process.stop()
        # restart() keeps the password. If the password file was deleted or changed, write the file again.
        if read_secret(password_file(self.data_dir)) != self._password:
            write_secret(password_file(self.data_dir), self._password)
        jars = await awaited_jars(progress=self._progress)
        await self._start(jars, archive.existing(jars))

    async def stop(self) -> None:
        """Stop Kafka, with SIGKILL if it takes more than 8 s, and unlock its directory. A second call does nothing."""
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
        """Kill Kafka with SIGKILL, as a crash would. When Kafka has ended, wait() returns. Do nothing if Kafka does not
        run.
        """
        if self._kafka is not None and self._kafka.running.returncode is None:
            self._kafka.running.kill()

    @property
    def running_process(self) -> KafkaProcess:
        if self._kafka is None:
            raise RuntimeError("Kafka has not been started, or was stopped; call start() first")
        return self._kafka

    @property
    def _pid_file(self) -> Path:
        return self.data_dir / "kafka.pid"

    async def _start(self, jars: Sequence[Path], saved: Path | None) -> None:
        """Start Kafka, with up to three tries. Try again if another program has taken one of Kafka's ports or has
        killed Kafka. If Java's class archive may be the reason for the failure, try again without the archive.

        Raises ConfigurationError if the last try fails, or if Kafka's files do not allow a safe start: they are
        damaged, or records of `control` are missing. Also raises ConfigurationError, without another try, if another
        program uses the port that was given or that Kafka used before.
        """
        started = time.monotonic()
        await asyncio.to_thread(_refuse_to_cut, self.data_dir / "kafka")
        await asyncio.to_thread(refuse_lost_control, self.data_dir / "kafka")
        lost = await asyncio.to_thread(lambda: list(segments.lost_ends(self.data_dir / "kafka")))
        suspect = None
        for number in range(1, _START_TRIES + 1):
            port, controller_port = self._port or free_port(), free_port()
            if not is_free(port):
                raise ConfigurationError(
                    f"port {port} on 127.0.0.1 is used by another program; stop that program, or choose another port "
                    "with --kafka-port"
                )
            options = (*self._options, *archive.use(saved))
            kafka = KafkaProcess(
                self.data_dir,
                jars=jars,
                port=port,
                controller_port=controller_port,
                password=self._password,
                options=options,
                join_delay_ms=self._join_delay_ms,
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
        """Append one empty record for each acknowledged record that a partition's files have lost at their end.

        Without the empty records, new messages would get the offsets of the lost records. A listener whose committed
        offset is higher would miss these new messages. In the topic `outstanding`, the empty records tell the
        partition's next worker that deliveries are missing.
        """
        settings = self.access.settings()
        requests = KafkaRequests(settings)
        await requests.start(sorted({one.topic for one in lost}))
        try:
            for one in lost:
                end = (await requests.offsets(one.topic, {one.partition: LATEST}))[one.partition]
                if end > one.last:
                    # If Kafka still has all offsets that seemed to be lost, this partition has lost nothing.
                    continue
                last = one.last
                _log.error("kafka.end_lost topic=%s partition=%d first=%d last=%d", one.topic, one.partition, end, last)
                key = f"lost:{end}".encode() if one.topic.endswith(_COMPACTED) else None
                at_ms = now_ms()
                await fill(settings, one.topic, one.partition, last + 1 - end, at_ms=at_ms, key=key)
        finally:
            await requests.stop()


def _refuse_to_cut(log_dir: Path) -> None:
    """Raise ConfigurationError if a start of Kafka could delete or overwrite records, because a batch or an index entry
    is damaged.
    """
    for name, batch in segments.cut_off(log_dir):
        raise ConfigurationError(
            f"{batch.path} is damaged at byte {batch.at} (offset {batch.first} of {name}). Kafka was not stopped "
            "cleanly, so its next start would delete all records of this partition from the damage on. Restore the "
            "damaged records from an export in DIR: everput mend --export DIR. Without an export, "
            + _without_export(name, batch)
        )
    for path in segments.lying_indexes(log_dir):
        raise ConfigurationError(
            f"the last entry of the index {path} points to no record batch: the index is damaged, or its segment was "
            "shortened. Kafka would find a wrong end of the partition, and could overwrite records. First look "
            f"for damage with `everput mend`, and restore it. Then delete the index, which Kafka rebuilds: rm {path}"
        )


def _without_export(partition: str, batch: DamagedBatch) -> str:
    """Return the commands with which an operator can give up a damaged batch, if there is no export to restore the
    batch from. In the topic `control`, only the batch's records are then lost. In other topics, all later records of
    the partition are lost, too.
    """
    if partition.endswith(f"{CONTROL}-0"):
        return f"give up only these records: everput mend --give-up {CONTROL}/0:{batch.first}-{batch.last}"
    return (
        f"give up all records from the damage on: truncate -s {batch.at} {batch.path}, and delete the files of the "
        "partition's later segments"
    )


def _end_orphan(pid_file: Path, mark: str) -> None:
    """Kill the Kafka process that an earlier server left running in this directory. `pid_file` has its process id. To
    be sure that it is this Kafka, its command line must contain `mark`. Raises ConfigurationError if the process does
    not end within 10 s, or if another user runs it.
    """
    try:
        pid = int(pid_file.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return
    deadline = time.monotonic() + _ORPHAN_GONE_WITHIN_S
    while mark in (command := _command_of(pid)) and "kafka.Kafka" in command:
        if time.monotonic() > deadline:
            raise ConfigurationError(
                f"the Kafka of an earlier server (process {pid}) was killed, but has not ended within "
                f"{_ORPHAN_GONE_WITHIN_S:.0f} s: wait until it ends, or restart the machine; then start Everput again"
            )
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            break
        except PermissionError:
            raise ConfigurationError(
                f"the Kafka of an earlier server (process {pid}) still uses this directory, and another user runs it: "
                "end that process as its user, or as root; then start Everput again"
            ) from None
        time.sleep(0.05)
    pid_file.unlink(missing_ok=True)


def _command_of(pid: int) -> str:
    """Return a process's command line. It is empty if the process does not exist and, on Linux, if it is a zombie."""
    if sys.platform == "linux":
        try:
            return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            return ""
    listing = subprocess.run(  # noqa: S603 - no shell, and a number
        ["/bin/ps", "-ww", "-o", "command=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    return listing.stdout
