"""The embedded Faust app of one process.

For: starting it in the running event loop, stopping it, reporting that it crashed. Each start has a new app id, and so
a new consumer group. The agents commit no offsets, so each start folds all events from the first one on. stop() deletes
the consumer group if start() has committed an offset for it.
Not for: the folds (agents.py, directory.py), creating topics. The topics must exist, because Faust finds new ones only
after minutes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from collections.abc import Callable
from typing import Any, Final
from uuid import uuid4

import faust
from faust.contrib.asgi import bind_to_running_loop
from faust.tables import TableManager

from broker.core.events import Event
from broker.errors import LogUnavailable
from broker.kafka.client import ANSWER_MS
from broker.kafka.reachability import reachable
from broker.kafka.topics import topics
from broker.ports import ControlLog, DirectoryView
from broker.settings import KafkaSettings
from projections.agents import Agent, RecordStream, fold_control
from projections.directory import DirectoryProjection

log = logging.getLogger(__name__)

CATCH_UP_S: Final = 120.0  # A process ends with an error if reading all of `control` takes longer at its start.
_STALLED_S: Final = 60.0
_STOP_S: Final = 3.0

# Drop Faust's log lines of level INFO: Faust logs about sixty of them when its services start and stop.
for _name in ("faust", "mode"):
    logging.getLogger(_name).setLevel(logging.WARNING)


class Projections:
    """The state that this process builds from the topic `control`, and keeps up to date while it runs."""

    def __init__(self, kafka: KafkaSettings, control: ControlLog) -> None:
        self._kafka = kafka
        self._control = control
        self._directory = DirectoryProjection(control)
        self._agents: dict[str, Agent] = {"control": fold_control(self._directory, self.failed)}
        self._app: Any = None
        self._assigned: asyncio.Event = asyncio.Event()
        self._ended: asyncio.Future[BaseException | None] | None = None
        self._watches: list[asyncio.Task[None]] = []
        # The name of the consumer group that stop() must delete; None if start() has committed no offset.
        self._group: str | None = None

    @property
    def directory(self) -> DirectoryView:
        return self._directory

    @property
    def position(self) -> int:
        """Return the offset in the topic `control` of the event that is applied next."""
        return self._directory.position

    def on_change(self, callback: Callable[[Event], None]) -> None:
        """Call `callback` with each event of the topic `control`, right after the event was applied to the directory.
        The callback does not get events that were applied before on_change() was called.
        """
        self._directory.on_change(callback)

    def add_agent(self, name: str, agent: Agent) -> None:
        """Add another Faust agent to this process: it reads the topic `control` from its beginning. Call this before
        start().
        """
        self._agents[name] = agent

    async def start(self, *, timeout_s: float = 30.0) -> None:
        """Begin to read the topic `control`, and return once everything in it is applied.

        Raises LogUnavailable if Kafka does not answer. Raises ViewBehind if applying takes longer than `timeout_s`
        seconds. Raises ConfigurationError if the topic was altered or has lost records.
        """
        good = await self._control.check()
        self._ended = asyncio.get_running_loop().create_future()
        group = f"{self._kafka.topic_prefix}projections.{uuid4()}"
        if not good:
            await self._fold_good_copies(group)
        self._app = app = faust_app(await reachable(self._kafka), group)
        control = app.topic(
            topics(self._kafka).control.name, key_serializer="raw", value_serializer="raw", value_type=bytes
        )
        for name, agent in self._agents.items():
            app.agent(control, name=name)(agent)
        app.on_partitions_assigned.connect(self._on_assigned)
        try:
            async with asyncio.timeout(timeout_s):
                bind_to_running_loop(app)
                app.finalize()
                await app.start()
                self._watches.append(asyncio.create_task(self._watch_app()))
                await self._first_of(self._assigned.wait())
        except TimeoutError:
            await self.stop()
            raise LogUnavailable(
                f"Kafka did not assign the topic `control` to this process within {timeout_s:g} s; without a "
                "supervisor such as `everput serve`, start the process again"
            ) from None
        except BaseException:
            await self.stop()
            raise
        await self._directory.caught_up(timeout_s=timeout_s)
        self._watches.append(asyncio.create_task(self._watch_position()))

    async def _fold_good_copies(self, group: str) -> None:
        """Apply all records that the topic `control` has now, without Faust. If the leader's copy of a record is
        damaged, this method reads the record from another broker's copy, which Faust can't do.

        Then commit the end offset of the topic for `group`, the consumer group of this process, so that Faust reads
        only later records. Raises LogUnavailable if Kafka does not answer.
        """
        end = await self._control.end_offset()
        for agent in self._agents.values():
            await agent(RecordStream(self._control.records(end)))
        self._group = group
        await self._control.begin_group(group, end)

    async def stop(self) -> None:
        """Stop reading. If start() has committed an offset for the consumer group, delete the group. Kafka itself drops
        a group without offsets.
        """
        while self._watches:
            self._watches.pop().cancel()
        app, self._app = self._app, None
        if app is not None:
            stopping = asyncio.ensure_future(app.stop())
            # wait() returns at the timeout. wait_for() would wait longer: until Faust has handled a cancellation.
            await asyncio.wait([stopping], timeout=_STOP_S)
            if not stopping.done():
                stopping.cancel()
                log.warning("projections.stop_unfinished after_s=%s", _STOP_S)
            elif stopping.exception() is not None:
                log.warning("projections.stop_failed error=%r", stopping.exception())
        group, self._group = self._group, None
        if group is not None:
            # If Kafka does not answer, do not delete the group: Kafka itself deletes unused groups later.
            with contextlib.suppress(LogUnavailable):
                await self._control.delete_group(group)
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(None)

    async def crashed(self) -> BaseException | None:
        """Wait until the projections fail, and return the error. The caller must then end the process. Return None if
        stop() was called.
        """
        if self._ended is None:
            raise RuntimeError("the projections were not started; call start() first")
        return await asyncio.shield(self._ended)

    def failed(self, reason: BaseException) -> None:
        """Record that the projections have failed because of this error. crashed() returns the first error that was
        recorded.
        """
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(reason)

    async def _watch_app(self) -> None:
        """Wait until the Faust app stops, and record that the projections have failed. Without this record, the process
        would continue without the app.
        """
        app = self._app
        await app.wait_for_stopped(asyncio.get_running_loop().create_future())
        self.failed(app.crash_reason or RuntimeError("Faust stopped by itself"))

    async def _watch_position(self) -> None:
        """Record that the projections have failed if they apply no event for _STALLED_S seconds although `control` has
        one. If two rebalances follow each other quickly, Faust's consumer may stop asking for records forever.
        """
        position, end = -1, -1
        while True:
            await asyncio.sleep(_STALLED_S)
            stalled = position == self._directory.position < end
            position = self._directory.position
            try:
                end = await self._control.end_offset()
            except LogUnavailable:  # Faust can't read now, either.
                end = -1
                continue
            if stalled:
                self.failed(
                    RuntimeError(
                        f"Faust has read nothing of the topic `control` for {_STALLED_S:g} s, although the topic has "
                        "newer events, so this process ends; a supervisor such as `everput serve` restarts it"
                    )
                )
                return

    async def _first_of(self, waiting: Any) -> None:
        """Wait until the awaitable `waiting` is done. If the projections fail or are stopped before, raise
        LogUnavailable with the reason.
        """
        task = asyncio.ensure_future(waiting)
        if self._ended is None:
            raise RuntimeError("the projections were not started; call start() first")
        await asyncio.wait([task, self._ended], return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            task.cancel()
            raise LogUnavailable(
                f"this process can't start, because it can't read the topic `control`: {self._ended.result()!r}. Check "
                "that Kafka is reachable, and start the process again; `everput serve` does so by itself"
            )

    async def _on_assigned(self, *_app_and_partitions: Any, **_more: Any) -> None:
        self._assigned.set()


class _NoTables(TableManager):  # type: ignore[misc]
    async def sleep(self, *_: Any, **_more: Any) -> None:
        """Return immediately. At each start, Faust would wait here for a second because of its tables, but Everput uses
        no tables.
        """


class _App(faust.App):  # type: ignore[misc]
    def _create_directories(self) -> None:
        """Do nothing. Faust would create a data directory for its tables, but Everput uses no tables."""


def faust_app(options: dict[str, Any], group: str, **more: Any) -> Any:
    """Return a Faust app that is not started. `options` are the connection options of Kafka clients, `group` is the
    name of the app's consumer group, and `more` are further settings of Faust.
    """
    return _App(
        group,
        broker=";".join(f"kafka://{server}" for server in options["bootstrap_servers"]),
        broker_credentials=_credentials(options),
        broker_request_timeout=ANSWER_MS / 1000,
        broker_check_crcs=True,
        broker_session_timeout=10,
        broker_heartbeat_interval=3,
        consumer_auto_offset_reset="earliest",
        autodiscover=False,
        web_enabled=False,
        # Faust must not create topics: broker/kafka/admin.py creates them with the right settings.
        topic_allow_declare=False,
        topic_disable_leader=True,
        store="memory://",
        TableManager=_NoTables,
        # Everput's agents acknowledge no records to Faust. So Faust must not wait for acknowledgements when it stops.
        stream_wait_empty=False,
        worker_redirect_stdouts=False,
        **more,
    )


def _credentials(options: dict[str, Any]) -> Any:
    context: ssl.SSLContext | None = options.get("ssl_context")
    if "sasl_mechanism" in options:
        return faust.SASLCredentials(
            username=options["sasl_plain_username"],
            password=options["sasl_plain_password"],
            ssl_context=context,
            mechanism=options["sasl_mechanism"],
        )
    return None if context is None else faust.SSLCredentials(context)


def prepare() -> None:
    """Create a Faust app and drop it. A process's first Faust app takes ten times as long as later ones, because
    modules are imported. So a process calls this function before it forks other processes.
    """

    async def agent(_stream: Any) -> None:
        pass

    async def create() -> None:
        app = faust_app({"bootstrap_servers": ["127.0.0.1:9092"]}, "unused")
        app.agent(app.topic("unused"))(agent)
        app.finalize()
        _ = app.topics, app.tables, app.assignor

    asyncio.run(create())
