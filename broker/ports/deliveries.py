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
    """The answer of a listener to a request, with the request's URL and headers. Secrets are hidden. `body` is the
    stored body of the answer, and `cut` says that it is incomplete.
    """

    headers: tuple[tuple[str, str], ...]
    body: str
    cut: bool
    url: str
    request_headers: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """An HTTP request for a delivery. The first attempt has number 1.

    Without an answer, `status` is None and `error` names the reason, such as `timeout`.
    """

    number: int
    at_ms: int
    status: int | None
    took_ms: int
    error: str | None
    # A following field is None if it is unknown, or if this step did not take place, such as on a reused connection.
    dns_ms: int | None = None
    connect_ms: int | None = None
    tls_ms: int | None = None
    answer: Answer | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryState:
    """The state of a delivery: pending, retrying, parked, delivered or cancelled. It is `unknown` if it could not be
    found out, for example because too many records would have to be read.

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
    """The state of a delivery as in DeliveryState, without its attempts.

    `attempts` is the number of finished attempts. It is None if this number is not known, as for a delivered message.
    """

    state: str
    attempts: int | None = None
    next_attempt_at_ms: int | None = None


class QueueStates(Protocol):
    """The states of a queue's deliveries, read for one request. Each committed offset is read only once, when it is
    first needed.
    """

    async def summaries(self, messages: Sequence[PlacedMessage]) -> Sequence[Mapping[str, DeliverySummary]]:
        """Return, for each message, the states of its deliveries by listener id. Listeners that began after the message
        are left out. Raises Unavailable if Kafka does not answer.
        """

    async def narrowed(
        self, state: str, begin: Sequence[int], end: Sequence[int]
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Narrow the offsets [begin, end) of all partitions to a range that still holds all messages with a delivery in
        this state. The narrowed range may also hold other messages, and can be the whole given range. Raises
        Unavailable if Kafka does not answer.
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
        """Return the state of a message's deliveries, by listener id.

        `listeners` are all listeners of the queue; those that began after the message are left out. `at_ms` is the time
        of the message's put. Raises Unavailable if Kafka does not answer.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenerCondition:
    """The condition of a listener: live, down or paused, and how many of its messages wait.

    `lag` counts the messages that were not yet delivered, parked or cancelled. Messages in the topic `outstanding`
    whose `deliver_at` is in the future are not counted.
    """

    state: str
    lag: int
    oldest_pending_at_ms: int | None = None  # None if no message is pending
    last_error: str | None = None
    facts: Facts = field(default_factory=Facts)


class Backlog(NamedTuple):
    """The messages that wait for a listener."""

    messages: int
    # when the oldest of these messages was put; None if no message waits or the time is unknown
    oldest_at_ms: int | None


class ListenerStatus(Protocol):
    """Reads the condition of listeners."""

    async def condition(self, listener: Listener) -> ListenerCondition:
        """Return the listener's condition, as the workers have committed it. If very many messages wait, their count is
        too low. Raises LogUnavailable if Kafka does not answer, Busy if too many large reads are running.
        """

    async def backlogs(self, listeners: Sequence[Listener]) -> Mapping[str, Backlog]:
        """Return the backlog of each of these listeners of one organization, by listener id. A count is too low if very
        many messages wait.

        Raises LogUnavailable if Kafka does not answer, Busy if too many large reads are running.
        """

    async def facts(self, listeners: Sequence[Listener]) -> Mapping[str, Facts]:
        """Return the facts that decide a listener's health, by listener id. Raises LogUnavailable if Kafka does not
        answer.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class OutstandingDelivery:
    """A delivery in the topic `outstanding`: retrying, parked, or pending (not attempted yet).

    `offset` is the message's offset in `messages`. `status` and `error` are those of the newest attempt. If there was
    no attempt, `error` says why. `next_attempt_at_ms` is None if no attempt is due, or if one is due immediately after
    a redrive.
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


# Where the next page begins: a partition and an offset in the topic `outstanding`.
Position = tuple[int, int]


class Outstanding(Protocol):
    """The reader that finds and counts deliveries in the topic `outstanding`. Such a delivery waits for an attempt, or
    is parked.
    """

    async def page(
        self, listener: Listener, *, state: str | None, after: Position, limit: int
    ) -> tuple[list[OutstandingDelivery], Position | None]:
        """Return a page of a listener's deliveries in the topic `outstanding` from a position on, and the position of
        the next page, if any. With `state`, return only deliveries in this state.

        The first position is (0, 0). A page can have few deliveries, or none, although more follow. No readable
        delivery is left out, but a delivery that is attempted between two pages can be on both pages. Raises
        LogUnavailable if Kafka does not answer, Busy if too many large reads are running.
        """

    async def count(self, listener: Listener, *, redriven: bool = False) -> int:
        """Count the listener's retrying and parked deliveries in the topic `outstanding`. With `redriven`, count only
        the deliveries that a client has redriven, and that have not been attempted since.

        Retrying deliveries whose next attempt is soon are not counted, because only the memory of a worker has them.

        Raises LogUnavailable if Kafka does not answer, Busy if too many large reads are running.
        """

    async def those(self, listener: Listener, message_ids: Sequence[str]) -> list[str]:
        """Return the ids of those given messages that have a retrying or parked delivery to the listener in the topic
        `outstanding`. Each id is returned once.

        Raises LogUnavailable if Kafka does not answer, Busy if too many large reads are running.
        """


class Cursors(Protocol):
    """Reads the committed cursors of listeners."""

    async def load(self, listener_ids: Iterable[str], partitions: Iterable[int]) -> Mapping[str, Mapping[int, Cursor]]:
        """Load the committed offsets with their metadata, by listener and partition. Offsets that were never committed
        are left out. Raises LogUnavailable if Kafka does not answer.
        """


class Statistics(Protocol):
    """The reader of the statistics of queues and listeners, per minute."""

    async def read(self, organization_id: str, series: Series) -> None:
        """Add the stored counts to `series`, from the beginning of its time range on. Raises LogUnavailable if Kafka
        does not answer, Busy if too many large reads are running.
        """
