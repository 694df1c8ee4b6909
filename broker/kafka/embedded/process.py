"""Apache Kafka as a child process: its files, its start and its end.

For: server.properties, log4j2, and detecting when the broker answers. Not for: the first files of the log directory
(formatting.py), who may connect (access.py), the Java command line (java.py), locking the directory, ports and restarts
(kafka.py).
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import signal
from collections.abc import Sequence
from contextlib import suppress
from enum import Enum
from pathlib import Path
from typing import Any, Final

from aiokafka import errors as kafka_errors

from broker.errors import ConfigurationError, LogUnavailable
from broker.kafka.client import client_options
from broker.kafka.embedded.access import (
    LISTENER,
    MECHANISM,
    NO_ANSWER,
    USER,
    EmbeddedAccess,
    ask,
    sasl,
    tell_password,
    write_client_properties,
)
from broker.kafka.embedded.formatting import format_directory
from broker.kafka.embedded.java import finished, java, spawn
from broker.kafka.ports import listens_as_us
from broker.private_files import write_private
from broker.settings import KafkaSettings

_log = logging.getLogger(__name__)

# A start after a crash can take a minute: Kafka first reads all records since its last flush, maybe gigabytes.
READY_WITHIN_S: Final = 120.0
# If Kafka does not stop within 8 s, it is killed. Acknowledged records are safe; only the next start is slower.
STOP_WITHIN_S: Final = 8.0
_POLL_S: Final = 0.02
_ANSWER_WITHIN_S: Final = 5.0

# The Kafka broker also connects to itself. For this, it uses SASL PLAIN with a new password for each start.
_ITSELF: Final = "kafka"
_PLAIN: Final = (
    f'org.apache.kafka.common.security.plain.PlainLoginModule required username="{_ITSELF}" '
    f'password="{{once}}" user_{_ITSELF}="{{once}}";'
)

PROPERTIES: Final = """\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller_port}
listeners={listener}://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}
advertised.listeners={listener}://127.0.0.1:{port}
listener.security.protocol.map={listener}:SASL_PLAINTEXT,CONTROLLER:SASL_PLAINTEXT
controller.listener.names=CONTROLLER
inter.broker.listener.name={listener}
sasl.enabled.mechanisms=PLAIN
listener.name.{named}.sasl.enabled.mechanisms=PLAIN,{mechanism}
sasl.mechanism.inter.broker.protocol=PLAIN
sasl.mechanism.controller.protocol=PLAIN
listener.name.{named}.plain.sasl.jaas.config={plain}
listener.name.controller.plain.sasl.jaas.config={plain}
listener.name.{named}.{scram}.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
super.users=User:{user};User:{itself}
log.dirs={log_dir}
auto.create.topics.enable=false
min.insync.replicas=1
default.replication.factor=1
unclean.leader.election.enable=false
offsets.topic.replication.factor=1
offsets.topic.num.partitions=8
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
offsets.retention.minutes=2147483647
log.retention.ms=-1
log.retention.bytes=-1
message.max.bytes=8388608
queued.max.request.bytes=134217728
log.cleaner.dedupe.buffer.size=33554432
group.initial.rebalance.delay.ms={join_delay_ms}
metadata.max.idle.interval.ms=30000
broker.session.timeout.ms=1500
broker.heartbeat.interval.ms=500
num.network.threads=2
num.io.threads=4
background.threads=4
"""

_LOGGING: Final = """\
status=error
appender.file.type=RollingFile
appender.file.name=file
appender.file.fileName=${sys:everput.log}
appender.file.filePattern=${sys:everput.log}.%i
appender.file.layout.type=PatternLayout
appender.file.layout.pattern=%d{yyyy-MM-dd'T'HH:mm:ss.SSSXXX} %p %c{1} %m%n
appender.file.policies.type=Policies
appender.file.policies.size.type=SizeBasedTriggeringPolicy
appender.file.policies.size.size=10MB
appender.file.strategy.type=DefaultRolloverStrategy
appender.file.strategy.max=2
rootLogger.level=info
rootLogger.appenderRef.file.ref=file
"""


class KafkaProcess:
    """A Kafka broker and controller in one Java process, with all files in one directory. The directory must exist, and
    other users must not be able to enter it.

    Among the files are kafka/ (the log), kafka.log, kafka.out (Java's output), kafka.properties, and client.properties
    for Kafka's own tools. `was_killed` is True if another program killed Kafka during its start.
    """

    def __init__(
        self,
        directory: Path,
        *,
        jars: Sequence[Path],
        port: int,
        controller_port: int,
        password: str,
        options: Sequence[str],
        idle: bool = False,
        join_delay_ms: int = 0,
    ) -> None:
        self.directory = directory
        self.port = port
        self._password = password
        self._once = secrets.token_urlsafe(32)
        self._controller_port = controller_port
        self._idle = idle
        self._join_delay_ms = join_delay_ms
        self._java = java(directory, jars=jars, options=options)
        self._process: asyncio.subprocess.Process | None = None
        self.was_killed = False

    @property
    def access(self) -> EmbeddedAccess:
        """Address and password for clients."""
        return EmbeddedAccess(f"127.0.0.1:{self.port}", self._password)

    @property
    def running(self) -> asyncio.subprocess.Process:
        """Return the child process in which Kafka runs, or ran until it ended. Raises RuntimeError if start() was not
        called before.
        """
        if self._process is None:
            raise RuntimeError("Kafka has not been started; call start() first")
        return self._process

    async def start(self) -> None:
        """Format Kafka's log directory if it is new, start Kafka, and wait until it answers.

        Raises ConfigurationError if Kafka ends or does not answer in time. After this error, no process is left
        running.
        """
        log_dir = self.directory / "kafka"
        properties = self._write_properties(log_dir)
        (self.directory / "kafka-log4j2.properties").write_text(_LOGGING, encoding="utf-8")
        # Not in a thread: after a cancelled start, the thread would write on, beside the next start.
        new = format_directory(log_dir)
        write_client_properties(self.directory, self.access)
        self._process = await spawn(
            (*self._java, "kafka.Kafka", str(properties)), directory=self.directory, idle=self._idle
        )
        try:
            async with asyncio.timeout(READY_WITHIN_S):
                await self._until_it_answers(self._process, new=new)
        except BaseException as error:
            await self.kill()
            if isinstance(error, TimeoutError):
                raise self._failure(f"the embedded Kafka did not answer within {READY_WITHIN_S:.0f} s") from None
            raise

    async def stop(self, *, within_s: float = STOP_WITHIN_S) -> None:
        """Stop Kafka with SIGTERM, or with SIGKILL after `within_s`."""
        self._signal(signal.SIGTERM)
        with suppress(TimeoutError):
            await finished(self.running, within_s=within_s)

    async def kill(self) -> None:
        """Kill Kafka with SIGKILL, and wait for its end."""
        self._signal(signal.SIGKILL)
        await self.running.wait()

    def _signal(self, number: signal.Signals) -> None:
        if self.running.returncode is None:
            self.running.send_signal(number)

    async def _until_it_answers(self, process: asyncio.subprocess.Process, *, new: bool) -> None:
        """Wait until Kafka answers. If its log directory is `new`, or if Kafka refuses the password, store the password
        first. Raises ConfigurationError if Kafka ends.
        """
        answer, sent = Answer.WRONG_PASSWORD if new else Answer.NONE, False
        while answer is not Answer.YES:
            if process.returncode is not None:
                self.was_killed = process.returncode == -signal.SIGKILL
                raise self._failure(f"the embedded Kafka ended with code {process.returncode} while it was starting")
            if answer is Answer.WRONG_PASSWORD and not sent:
                sent = await self._tell_password()
            if sent or answer is Answer.NONE:
                answer = await _answer(self.port, self._password)
            await asyncio.sleep(_POLL_S)

    async def _tell_password(self) -> bool:
        """Store the password of the user `everput` in Kafka, because Kafka does not know it. Return whether Kafka
        has stored the password.
        """
        # Until our Kafka listens on its port, another user's program can take the port, and would get the temporary
        # password. Then do not connect.
        if not listens_as_us(self.port):
            return False
        itself = _options(self.port, "PLAIN", _ITSELF, self._once)
        try:
            await tell_password(itself, self._password, timeout_s=_ANSWER_WITHIN_S)
        except ConnectionRefusedError:  # No program listens yet. Only Linux says so before.
            return False
        except (*NO_ANSWER, LogUnavailable) as error:
            _log.info("kafka.password-not-told error=%s", error)
            return False
        return True

    def _write_properties(self, log_dir: Path) -> Path:
        path = self.directory / "kafka.properties"
        text = PROPERTIES.format(
            port=self.port,
            controller_port=self._controller_port,
            listener=LISTENER,
            named=LISTENER.lower(),
            mechanism=MECHANISM,
            scram=MECHANISM.lower(),
            user=USER,
            itself=_ITSELF,
            plain=_PLAIN.format(once=self._once),
            log_dir=_escaped(log_dir),
            join_delay_ms=self._join_delay_ms,
        )
        write_private(path, text)
        return path

    def _failure(self, what: str) -> ConfigurationError:
        said = " ".join(_last_words(self.directory / name) for name in ("kafka.out", "kafka.log"))
        return ConfigurationError(f"{what}; see {self.directory / 'kafka.log'}. {said}".strip())


def _last_words(path: Path) -> str:
    """Return the last line of a log file that mentions an error, cut to 500 characters. Search only the last 64 KiB of
    the file. Return an empty text if no line mentions an error.
    """
    try:
        text = path.read_bytes()[-65536:].decode(errors="replace")
    except OSError:
        return ""
    lines = [
        line for line in text.splitlines() if any(word in line for word in ("ERROR", "FATAL", "Exception", "Error"))
    ]
    return lines[-1][:500] if lines else ""


def _escaped(path: Path) -> str:
    """Escape a path for Java's properties file.

    Raises ConfigurationError if the path has a comma, which would begin a second log directory.
    """
    if "," in str(path):
        raise ConfigurationError(
            f"Kafka can't use the directory {path}, because this path has a comma: choose another with --data-dir"
        )
    return str(path).replace("\\", "\\\\")


class Answer(Enum):
    """The possible answers of a Kafka broker."""

    YES = "it knows us, we know it, and it names at least one broker"
    WRONG_PASSWORD = "it knows no such user or password"  # noqa: S105 - a sentence
    NONE = "it does not answer, or not as Kafka does"


async def answers(port: int, password: str | None = None) -> bool:
    """Return whether a Kafka broker answers on a port of 127.0.0.1. If `password` is given, return True only for the
    embedded Kafka that has this password.
    """
    return await _answer(port, password) is Answer.YES


async def _answer(port: int, password: str | None) -> Answer:
    options = {"host": "127.0.0.1", "port": port} if password is None else _options(port, MECHANISM, USER, password)
    try:
        async with asyncio.timeout(_ANSWER_WITHIN_S):
            return Answer.YES if await ask(options, timeout_s=_ANSWER_WITHIN_S) else Answer.NONE
    except kafka_errors.SaslAuthenticationFailed:
        return Answer.WRONG_PASSWORD
    except NO_ANSWER:
        return Answer.NONE


def _options(port: int, mechanism: str, user: str, password: str) -> dict[str, Any]:
    """Return the arguments of create_conn() for this user."""
    settings = KafkaSettings(bootstrap=f"127.0.0.1:{port}", **sasl(mechanism, user, password))
    options = client_options(settings)
    del options["bootstrap_servers"]
    return {"host": "127.0.0.1", "port": port, **options}
