"""The REST API in a test's own process, with all its parts.

For: make_app() where a test names only the parts it is about. Not for: processes of their own (tests/scenarios)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import orjson
from argon2 import PasswordHasher
from starlette.applications import Starlette

from api.app import make_app
from api.problems import problem
from api.tunnel import Tunnels
from broker.audit.reader import LogReader
from broker.core.cursor import Cursor
from broker.core.entities import Listener
from broker.core.events import StatisticsCounted
from broker.core.health import Facts
from broker.core.statistics import Series
from broker.kafka.cursors import KafkaCursors
from broker.kafka.deliveries import KafkaDeliveries
from broker.kafka.log import KafkaLog
from broker.kafka.outstanding import KafkaOutstanding
from broker.kafka.queue_states import KafkaQueueStates
from broker.kafka.read_slots import ReadSlots
from broker.kafka.statistics import KafkaStatistics
from broker.kafka.topics import topics
from broker.passwords import Passwords
from broker.ports import Backlog, DeliveryState, DirectoryView, ListenerCondition
from broker.sealing import Sealer
from broker.settings import KafkaSettings, Settings
from broker.volume import StoredBytes
from tests.outstanding_topic import OutstandingTopic


class InterruptedPasswords(Passwords):
    """Passwords that are cheap to check. after_check: awaited once, after the next check."""

    def __init__(self) -> None:
        super().__init__(PasswordHasher(1, 8, 1))
        self.after_check: Callable[[], Awaitable[None]] | None = None

    async def fits(self, password: str, password_hash: str | None) -> bool:
        fits = await super().fits(password, password_hash)
        then, self.after_check = self.after_check, None
        if then is not None:
            await then()
        return fits


def cheap_passwords() -> Passwords:
    """Argon2 at its least: what it costs is not tested where accounts are only needed."""
    return Passwords(PasswordHasher(1, 8, 1))


class NoDeliveries:
    """ports.Deliveries and ports.ListenerStatus while no worker runs: nothing was attempted, nothing is behind."""

    async def states(
        self, _message_id: str, _partition: int, _offset: int, listeners: Sequence[Listener], *_at_ms: int
    ) -> Mapping[str, DeliveryState]:
        return {one.id: DeliveryState(state="pending") for one in listeners}

    def of_queue(self, listeners: Sequence[Listener]) -> KafkaQueueStates:
        kafka = KafkaSettings(bootstrap="unused", partitions=2)
        outstanding = KafkaOutstanding(kafka, OutstandingTopic(), ReadSlots())
        return KafkaQueueStates(NoCursors(), outstanding, listeners, partitions=2)

    async def condition(self, listener: Listener) -> ListenerCondition:
        return ListenerCondition(state="live" if listener.paused is None else "paused", lag=0)

    async def backlogs(self, listeners: Sequence[Listener]) -> Mapping[str, Backlog]:
        found = {one.id: await self.condition(one) for one in listeners}
        return {one: Backlog(known.lag, known.oldest_pending_at_ms) for one, known in found.items()}

    async def facts(self, listeners: Sequence[Listener]) -> Mapping[str, Facts]:
        return {one.id: (await self.condition(one)).facts for one in listeners}


class NoCursors:
    """ports.Cursors before anything was committed."""

    async def load(self, listener_ids: Any, partitions: Any) -> dict[str, dict[int, Cursor]]:
        return {one: {} for one in listener_ids}


class NoRecords:
    """audit.records.Records of an empty log."""

    async def offsets(self, topic: str, at_ms: Mapping[int, int]) -> dict[int, int]:
        return dict.fromkeys(at_ms, 0)

    async def read(self, topic: str, *_: Any, **__: Any) -> Any:
        raise AssertionError(f"this test reads {topic}: give app_of() a reader")


class CountedStatistics:
    """ports.Statistics of these events, of which all count."""

    def __init__(self, *events: StatisticsCounted) -> None:
        self.events = list(events)

    async def read(self, organization_id: str, series: Series) -> None:
        for event in self.events:
            series.add(event)


def said_to_clients(error: Exception) -> str:
    """Return the `detail` of the API's answer to this error."""
    return str(orjson.loads(problem(error).body)["detail"])


def app_of(settings: Settings, *, log: Any, view: DirectoryView, **parts: Any) -> Starlette:
    """Make the app over a log in memory. parts: of make_app(); the others are of a log that nobody works on."""
    quiet = NoDeliveries()
    defaults: dict[str, Any] = {
        "deliveries": quiet,
        "status": quiet,
        "reader": LogReader(NoRecords(), topics(settings.kafka), view),
        "outstanding": KafkaOutstanding(settings.kafka, OutstandingTopic(), ReadSlots()),
        "cursors": NoCursors(),
        "statistics": CountedStatistics(),
    }
    return _app(settings, log, view, defaults | parts)


def kafka_app_of(settings: Settings, *, log: KafkaLog, view: DirectoryView, **parts: Any) -> Starlette:
    """Make the app as `everput api` does, over a Kafka. parts: of make_app()."""
    kafka: KafkaSettings = settings.kafka
    deliveries = KafkaDeliveries(kafka, log.requests, log.read_slots)
    defaults: dict[str, Any] = {
        "deliveries": deliveries,
        "status": deliveries,
        "reader": LogReader(log.requests, topics(kafka), view),
        "outstanding": KafkaOutstanding(kafka, log.requests, log.read_slots),
        "cursors": KafkaCursors(kafka, log.requests),
        "statistics": KafkaStatistics(kafka, log.requests, log.read_slots),
    }
    return _app(settings, log, view, defaults | parts)


def _app(settings: Settings, log: Any, view: DirectoryView, parts: dict[str, Any]) -> Starlette:
    stored = StoredBytes(
        log.control, view, bytes_max=settings.organization_bytes_max, retain_s=settings.retain_messages_s
    )
    more = {
        "sealer": Sealer(settings.sealing_key),
        "stored": stored,
        "tunnels": Tunnels("tunnel://127.0.0.1:7"),
        "passwords": cheap_passwords(),
        "tracing": None,
    }
    return make_app(settings, log=log, view=view, **(more | parts))
