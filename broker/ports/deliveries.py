"""The protocols that tell what became of messages: states of deliveries, conditions of listeners, cursors, statistics.

For: broker/kafka implements them; broker/commands and api use them. Not for: appending to the log (log.py), any
implementation.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from broker.core.cursor import Cursor
from broker.core.entities import Listener
from broker.core.health import Facts
from broker.core.statistics import Series


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The answer of a listener to a request, with the request's URL and headers. Secrets are hidden.

    `body` is the stored part of the answer's body. `cut` is True if this part is not the whole body.
    """

    headers: tuple[tuple[str, str], ...]
    body: str
    cut: bool
    url: str
    request_headers: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """An HTTP request for a delivery. `number` is 1 for the delivery's first attempt.

    If no answer came, `status` is None, and `error` names the reason, such as `timeout`.
    """

    number: int
    at_ms: int
    status: int | None
    took_ms: int
    error: str | None
    # Durations of DNS look-up, TCP connect and TLS handshake; None if unknown, or if the step did not take place.
    dns_ms: int | None = None
    connect_ms: int | None = None
    tls_ms: int | None = None
    answer: Answer | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryState:
    """The state of a delivery: pending, retrying, parked, delivered, cancelled or unknown. It is `unknown` if, for
    example, too many records would have to be read to find it.

    `attempts` holds the known attempts, oldest first.
    """

    state: str
    attempts: tuple[Attempt, ...] = ()
    next_attempt_at_ms: int | None = None


class PlacedMessage(NamedTuple):
    """The id of a message, its position in the topic `messages`, and the time of its put."""

    message_id: str
    partition: int
    offset: int
    at_ms: int  # time of the put


class DeliverySummary(NamedTuple):
    """The state of a delivery, such as `retrying`, and the number of its finished attempts.

    `attempts` is None if this number is not known, as for a delivered message.
    """

    state: str
    attempts: int | None = None
    next_attempt_at_ms: int | None = None


class QueueStates(Protocol):
    """The reader of the states of a queue's deliveries, for one request of the API. It reads each committed offset from
    Kafka only once.
    """

    async def summaries(self, messages: Sequence[PlacedMessage]) -> Sequence[Mapping[str, DeliverySummary]]:
        """Return, for each message, the states of its deliveries by listener id. A listener that begins with a later
        message is left out. Raises Unavailable if Kafka does not answer.
        """

    async def narrowed(
        self, state: str, begin: Sequence[int], end: Sequence[int]
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Narrow each partition's range of offsets [begin, end) to the part that can have messages with a delivery in
        this state. Return the begins and the ends of the narrowed ranges.

        A narrowed range has all such messages of the old range, but may have other messages, too. It may be as large as
        the old range. Raises Unavailable if Kafka does not answer.
        """


class Deliveries(Protocol):
    """The reader of the states of deliveries, which are computed from committed offsets, recorded attempts and the
    topic `outstanding`.
    """

    def of_queue(self, listeners: Sequence[Listener]) -> QueueStates:
        """Return an object with which one request reads the states of the deliveries to these listeners of a queue."""

    async def states(
        self,
        message_id: str,
        partition: int,
        offset: int,
        listeners: Sequence[Listener],
        at_ms: int,
        deliver_at_ms: int = 0,
    ) -> Mapping[str, DeliveryState]:
        """Return the state of each of a message's deliveries, by listener id.

        `listeners` are all listeners of the queue. Listeners that begin with a later message are left out of the
        result. `at_ms` is the time of the message's put. Raises Unavailable if Kafka does not answer.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenerCondition:
    """The condition of a listener: live, down or paused, and how many messages wait for it.

    `lag` is the number of messages that wait for the listener: they were not yet delivered, parked or cancelled.
    Messages in the topic `outstanding` that wait for their `deliver_at` do not count.
    """

    state: str
    lag: int
    oldest_pending_at_ms: int | None = None  # None if no message is pending
    last_error: str | None = None
    facts: Facts = field(default_factory=Facts)


class Backlog(NamedTuple):
    """The messages that wait for a listener."""

    messages: int
    # when the oldest of the waiting messages was put; None if no message waits, or if the time is unknown
    oldest_at_ms: int | None


class ListenerStatus(Protocol):
    """Reads the condition of listeners."""

    async def condition(self, listener: Listener) -> ListenerCondition:
        """Return the listener's condition, as of the workers' newest commits to Kafka. If very many messages wait, the
        returned `lag` is too low.

        Raises LogUnavailable if Kafka does not answer, Busy if too many large reads are running.
        """

    async def backlogs(self, listeners: Sequence[Listener]) -> Mapping[str, Backlog]:
        """Return the backlog of each given listener, by listener id. All listeners must belong to one organization. If
        very many messages wait for a listener, its count is too low.

        Raises LogUnavailable if Kafka does not answer, Busy if too many large reads are running.
        """

    async def facts(self, listeners: Sequence[Listener]) -> Mapping[str, Facts]:
        """Return the facts that decide a listener's health, by listener id. Raises LogUnavailable if Kafka does not
        answer.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class OutstandingDelivery:
    """A delivery in the topic `outstanding`: retrying, parked, or pending (not attempted yet).

    `offset` is the message's offset in `messages`. `status` and `error` are the results of the newest attempt. If there
    was no attempt, `error` says why there was none. `next_attempt_at_ms` is None for a parked delivery, and for a
    delivery whose next attempt is due immediately because of a redrive.
    """

    message_id: str
    offset: int
    name: str
    put_at_ms: int
    state: str
    attempts: int
    status: int | None
    error: str | None
    last_attempt_at_ms: int | None
    next_attempt_at_ms: int | None

    @property
    def redriven(self) -> bool:
        """Return whether the delivery is due immediately because of a redrive (a request to retry now), and was not
        attempted since the redrive.
        """
        return self.state == "retrying" and self.next_attempt_at_ms is None


# The place where the next page of deliveries begins: a partition and an offset of the topic `outstanding`.
Position = tuple[int, int]


class Outstanding(Protocol):
    """The reader of the topic `outstanding`, which finds and counts deliveries. Deliveries in this topic are parked, or
    wait for their next attempt.
    """

    async def page(
        self, listener: Listener, *, state: str | None, after: Position, limit: int
    ) -> tuple[list[OutstandingDelivery], Position | None]:
        """Return a page of a listener's deliveries from the topic `outstanding`. Also return the position of the next
        page; None after the last page. The first page begins at `after=(0, 0)`. If `state` is given, return only
        deliveries in this state.

        A page can have few deliveries, or none, although more pages follow. No readable delivery is left out. A
        delivery that is attempted while a client reads the pages can be on two pages. Raises LogUnavailable if Kafka
        does not answer, Busy if too many large reads are running.
        """

    async def count(self, listener: Listener, *, redriven: bool = False) -> int:
        """Count the listener's retrying and parked deliveries in the topic `outstanding`. With `redriven`, count only
        deliveries that still wait for their first attempt after a redrive (a request to retry now).

        Deliveries that only a worker's memory holds are not counted: their next attempt comes soon.

        Raises LogUnavailable if Kafka does not answer, Busy if too many large reads are running.
        """

    async def those(self, listener: Listener, message_ids: Sequence[str]) -> list[str]:
        """Return those of the given message ids, without repetition, whose message has a retrying or parked delivery to
        the listener in the topic `outstanding`.

        Raises LogUnavailable if Kafka does not answer, Busy if too many large reads are running.
        """


class Cursors(Protocol):
    """Reads the committed cursors of listeners."""

    async def load(self, listener_ids: Iterable[str], partitions: Iterable[int]) -> Mapping[str, Mapping[int, Cursor]]:
        """Load the committed offsets with their metadata, by listener and partition. If a listener has no committed
        offset in a partition, this partition is left out. Raises LogUnavailable if Kafka does not answer.
        """


class Statistics(Protocol):
    """The reader of the statistics of queues and listeners, per minute."""

    async def read(self, organization_id: str, series: Series) -> None:
        """Read stored counts of this organization, and add them to `series`: the statistics of one listener, or of one
        or more queues, over time. Leave out counts before the beginning of `series`.

        Raises LogUnavailable if Kafka does not answer, Busy if too many large reads are running.
        """
