"""The protocols between the parts of Everput, each with only the methods that its users need.

For: broker/kafka and projections implement them; broker/commands, broker/delivery and api use them. Not for: any
implementation.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, Protocol

from broker.core.cursor import Cursor
from broker.core.directory import Directory
from broker.core.entities import Listener, Queue
from broker.core.events import ChangeApplied, ControlEvent, MessageChange, PutClaimed
from broker.core.health import Facts
from broker.core.statistics import Series
from broker.errors import LogUnavailable

EARLIEST: Final = -2  # time that means the first offset
LATEST: Final = -1  # time that means the end offset
# If a worker is killed and no worker replaces it, nobody serves its partitions for ten seconds.
SESSION_TIMEOUT_MS: Final = 10_000


class Record(NamedTuple):
    """A Kafka record. `timestamp` is in milliseconds. `headers` are (name, value) pairs.

    The fields have the names of aiokafka's class, because reads return objects of that class: copying them would take
    longer than parsing.
    """

    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes | None]]


class FetchResult(NamedTuple):
    """The result of one fetch from a partition.

    The next fetch begins at `next_offset`. `end_offset` is the end of the partition. `size` is in bytes as Kafka sent
    them. `left_out_ms` is set if all records were skipped, and is the time of the newest of them.
    """

    records: list[Record]
    next_offset: int
    end_offset: int
    size: int = 0
    left_out_ms: int | None = None


class OffsetTooOld(LogUnavailable):
    """The log no longer has the offset from which records were to be read."""

    code = "offset-too-old"


class NotStored(LogUnavailable):
    """Some cursors may not be stored. `failed` has the reason for each listener id; the cursors of all other listeners
    are stored.
    """

    def __init__(self, failed: Mapping[str, LogUnavailable]) -> None:
        super().__init__(str(next(iter(failed.values()))))
        self.failed = failed


class NoMember(LogUnavailable):
    """The error that this process is not a member of the consumer group, so other members own its partitions or
    will own them soon.
    """


class DirectoryView(Protocol):
    """The accounts, queues and listeners as this process has read them from the topic `control` so far."""

    @property
    def state(self) -> Directory: ...

    @property
    def position(self) -> int:
        """Next offset of the topic `control` to apply. The state includes every event before it."""

    @property
    def complete(self) -> bool:
        """Whether this program knew every event of `control` so far. If not, the state may lack something."""

    async def seen(self, offset: int, *, timeout_s: float | None = 2.0) -> None:
        """Wait until this process has applied the event at this offset of `control`. `timeout_s` may be None for no
        limit.

        Raises ViewBehind if it takes longer.
        """

    def passed_over(self, offset: int) -> bool:
        """Return whether the event at this offset of `control` changed nothing, such as one with a name that another
        event took first.

        Only recent offsets are known: call this right after seen().
        """

    async def caught_up(self, *, timeout_s: float = 2.0) -> None:
        """Wait until this process has applied every event that is in `control` now.

        Raises ViewBehind if it takes longer than `timeout_s`, LogUnavailable if Kafka does not answer.
        """


class ControlLog(Protocol):
    """Appends to the topic `control`, which holds accounts, queues and listeners."""

    async def append(self, event: ControlEvent) -> int:
        """Append an event. Return its offset once all in-sync replicas have stored it.

        Raises LogUnavailable if nothing was stored, InDoubt if the event may have been stored.
        """

    async def end_offset(self) -> int:
        """Return the end offset of the topic `control`. Raises LogUnavailable if Kafka does not answer."""

    async def check(self) -> bool:
        """Read the whole topic `control`. Return whether a consumer can read it: its leader's copy may be damaged while
        another broker's copy is good.

        Raises ConfigurationError if no copy is good, LogUnavailable if Kafka does not answer.
        """

    def records(self, end: int) -> AsyncIterator[Record]:
        """Yield the records of the topic `control` before the offset `end`, from any intact copy.

        Raises LogUnavailable if Kafka does not answer, LogDamaged if no copy is intact.
        """

    async def begin_group(self, group: str, offset: int) -> None:
        """Commit this offset of the topic `control` for a consumer group that has no members.

        Raises LogUnavailable if Kafka does not answer.
        """

    async def delete_group(self, group: str) -> None:
        """Delete a consumer group that has no members. Raises LogUnavailable if Kafka does not answer."""


# This function is called with an organization id and the number of bytes that are stored for it.
Count = Callable[[str, int], None]

# Builds a Kafka record for the given partition. Returns its key, its value and the queue id.
BuildRecord = Callable[[int], tuple[bytes, bytes, bytes]]


class Acknowledged(Protocol):
    """The caller of an append that is told the result. It is told once, like a future, and must not raise."""

    def done(self) -> bool:
        """Return whether the caller was told the result, or no longer waits."""

    def set_result(self, place: Any, /) -> None:
        """Receive (partition, offset) of the message, which all in-sync replicas have stored."""

    def set_exception(self, error: BaseException, /) -> None:
        """Receive the reason why the append failed."""


class MessageLog(Protocol):
    """Appends messages to the topic `messages`, and finds them again."""

    def append(
        self, build: BuildRecord, *, ordering_key: str | None = None, size: int = 0
    ) -> Awaitable[tuple[int, int]]:
        """Append a message. The awaitable returns (partition, offset) once all in-sync replicas have stored it.

        `build` makes the record when its partition is known. It is called again if the record did not fit into the
        batch. An ordering key decides the partition.

        Raises LogUnavailable if nothing was stored, InDoubt if the message may have been stored.
        """

    def append_for(
        self, writer: Acknowledged, build: BuildRecord, *, ordering_key: str | None = None, size: int = 0
    ) -> None:
        """Append a message like append(), but tell the result to `writer`. A future would take two more turns of the
        event loop.

        If LogUnavailable is raised at once, `writer` is not told.
        """

    def append_together(
        self, builds: Sequence[BuildRecord], *, partition: int | None = None, size: int = 0
    ) -> Awaitable[None]:
        """Append messages as one record batch, or as few batches as possible if they don't fit. They go into
        `partition`, if it is given.

        Raises LogUnavailable if none is stored. After InDoubt all, some or none may be stored.
        """

    def partition_of(self, ordering_key: str) -> int:
        """Return the partition for messages with this ordering key."""

    def some_partition(self) -> int:
        """Return a partition whose leader acknowledges writes, as far as is known."""

    async def end_offsets(self) -> tuple[int, ...]:
        """Return the end offset of each partition of `messages`. Raises LogUnavailable if Kafka does not answer."""

    async def offsets_at(self, at_ms: int) -> tuple[int, ...]:
        """Return the first offset at or after a time, for each partition, or the end offset if there is none. Time 0 is
        the beginning.

        Raises LogUnavailable if Kafka does not answer.
        """

    async def find(
        self, *, partition: int, at_ms: int, message_id: str, organization_id: str
    ) -> tuple[int, bytes] | None:
        """Return (offset, value) of a message, or None if there is no such message.

        The partition is read from the time in the message's id on. Large reads are limited for each organization, here
        and in the other methods. Raises Unavailable if Kafka does not answer.
        """

    async def find_all(
        self, *, partition: int, at_ms: int, message_ids: Collection[str], organization_id: str
    ) -> dict[str, tuple[int, bytes]]:
        """Return (offset, value) of several messages with the same time in their ids, by message id. Missing messages
        are left out.
        """

    async def count(
        self, queue_id: str, *, begin: Sequence[int], end: Sequence[int], organization_id: str
    ) -> tuple[int, bool]:
        """Count the queue's messages in the ranges [begin, end) of all partitions. Return the count, and whether it is
        exact.

        Only a part of a long range is read, and the rest is estimated. Raises Unavailable if Kafka does not answer.
        """

    async def newest(
        self, queue_id: str, *, begin: Sequence[int], end: Sequence[int], limit: int, organization_id: str
    ) -> tuple[list[bytes], list[int]]:
        """Return up to `limit` of the queue's newest messages in [begin, end), and for each partition where the older
        ones end.

        There may be fewer than `limit`, or none, although more exist. Raises Unavailable if Kafka does not answer.
        """


class ClaimLog(Protocol):
    """Appends to the topic `claims`, which holds the Idempotency-Keys in use, and reads it."""

    async def append(self, claim: PutClaimed) -> None:
        """Append a claim of an Idempotency-Key. Return once all in-sync replicas have stored it.

        Raises ShareUsed if the organization has too many keys in use, Unavailable if the claim may not be stored.
        """

    async def claims(self, digest: bytes) -> Sequence[PutClaimed]:
        """Return the claims of an Idempotency-Key, given by its hash, in the order of the log: those of the last 24
        hours at least.

        Raises Unavailable if Kafka does not answer.
        """


class TooMuch(Exception):
    """The requested items are too large together. Ask for fewer of them."""


class CountingChange(NamedTuple):
    """The change of a message that counts now, with its offset in the topic `changes`."""

    offset: int
    event: MessageChange


class ChangeLog(Protocol):
    """Appends updates and deletions of messages to the topic `changes`, and reads the workers' answers."""

    async def append(self, event: MessageChange) -> tuple[int, int]:
        """Append a change of a message. Return its offset (-1 if unknown), and the offset of `deliveries` from which to
        look for the answer.

        Raises LogUnavailable if nothing was stored, InDoubt if the change may have been stored.
        """

    async def answer(
        self, partition: int, change_offset: int, message_id: str, *, answers_from: int, within_s: float
    ) -> ChangeApplied | None:
        """Wait for the answer to a change from the worker that owns the message's partition. Return None if none comes
        in time.
        """

    async def counted(self, event: MessageChange) -> int | None:
        """Return the offset at which an appended change of a message took effect. Return None if it had no effect.

        Raises Unavailable if Kafka does not answer.
        """

    async def latest(
        self, places: Mapping[str, tuple[int, int]], *, organization_id: str, bytes_max: int | None = None
    ) -> dict[str, CountingChange]:
        """Return the change that counts for each of these messages, by message id. Messages without a change are left
        out.

        `places` maps a message id to (time, partition); the changes since then are read. Raises TooMuch if the new data
        of several messages has more than `bytes_max` bytes, Unavailable if Kafka does not answer.
        """

    async def deleted(
        self, queue_id: str, *, begin: Sequence[int], end: Sequence[int], since_ms: int, organization_id: str
    ) -> tuple[int, bool]:
        """Count the queue's deleted messages in the ranges [begin, end) of all partitions. Return the count, and
        whether it is exact.

        `since_ms` is a time at or before the put of the first of these messages. Raises Unavailable if Kafka does not
        answer.
        """


class Log(Protocol):
    """Everything that a process may write to the log, by topic."""

    @property
    def control(self) -> ControlLog: ...

    @property
    def messages(self) -> MessageLog: ...

    @property
    def claims(self) -> ClaimLog: ...

    @property
    def changes(self) -> ChangeLog: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The answer of a listener to a request, and the request itself. Secrets are hidden. `cut` says that `body` is
    incomplete.
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
    # The durations of a failed attempt's steps and the listener's answer are None if they are not known.
    dns_ms: int | None = None
    connect_ms: int | None = None
    tls_ms: int | None = None
    answer: Answer | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryState:
    """The state of a delivery: pending, retrying, parked, delivered or cancelled. It is unknown if too many records
    would have to be read.

    `attempts` holds the known attempts, oldest first.
    """

    state: str
    attempts: tuple[Attempt, ...] = ()
    next_attempt_at_ms: int | None = None


class Deliveries(Protocol):
    """Reads the states of deliveries from cursors and recorded attempts."""

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

        `listeners` are all listeners of the queue; those that began after the message are left out. `at_ms` is when the
        message was put. Raises Unavailable if Kafka does not answer.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenerCondition:
    """The condition of a listener: live, down or paused, with its lag. `lag` counts the messages that are not
    settled.
    """

    state: str
    lag: int
    oldest_pending_at_ms: int | None = None  # None if no message is pending
    last_error: str | None = None
    facts: Facts = field(default_factory=Facts)


class ListenerStatus(Protocol):
    """Reads the condition of listeners."""

    async def condition(self, listener: Listener) -> ListenerCondition:
        """Return the listener's condition now. Raises LogUnavailable if Kafka does not answer."""

    async def lags(self, listeners: Sequence[Listener]) -> Mapping[str, int]:
        """Return the number of messages that wait for each of these listeners of one organization, by listener id.

        Raises LogUnavailable if Kafka does not answer, Busy if too many large reads are running.
        """

    async def facts(self, listeners: Sequence[Listener]) -> Mapping[str, Facts]:
        """Return the facts that decide a listener's health, by listener id. Raises LogUnavailable if Kafka does not
        answer.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class OutstandingDelivery:
    """A delivery in the topic `outstanding`: retrying, parked, or pending until the message's `deliver_at`.

    `offset` is the message's offset in `messages`. `status` and `error` are those of the last attempt.
    `next_attempt_at_ms` is None if no attempt is due, or if one is due at once after a redrive.
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


# The position after a page: the partition, and the offset in the topic `outstanding`.
Position = tuple[int, int]


class Outstanding(Protocol):
    """Finds deliveries that wait for a later retry or are parked."""

    async def page(
        self, listener: Listener, *, state: str | None, after: Position, limit: int
    ) -> tuple[list[OutstandingDelivery], Position | None]:
        """Return a page of a listener's outstanding deliveries from a position on, and the position of the next page,
        if any.

        The first position is (0, 0). A page may have few deliveries, or none, although more follow. No delivery is left
        out, but one that is attempted meanwhile may appear twice. Raises LogUnavailable if Kafka does not answer.
        """

    async def count(self, listener: Listener) -> int:
        """Count the listener's retrying and parked deliveries. Raises LogUnavailable if Kafka does not answer."""

    async def those(self, listener: Listener, message_ids: Sequence[str]) -> list[str]:
        """Return those of the messages whose delivery to the listener is retrying or parked, each once.

        Raises LogUnavailable if Kafka does not answer.
        """


class Cursors(Protocol):
    """Reads the committed cursors of listeners."""

    async def load(self, listener_ids: Iterable[str], partitions: Iterable[int]) -> Mapping[str, Mapping[int, Cursor]]:
        """Load the cursors by listener and partition. Leave out cursors that were never committed.

        Raises LogUnavailable if Kafka does not answer.
        """


class Span(Protocol):
    """A span of a trace that has begun and not ended. `traceparent` identifies it for other services."""

    @property
    def traceparent(self) -> str: ...

    def end(self, *, status: int | None = None, error: str | None = None) -> None:
        """End the span. `status` is the HTTP status of an answer; without an answer, `error` is the reason."""


class Tracing(Protocol):
    """Starts the spans of one process, if tracing is configured."""

    def put(self, parent: str | None, queue: Queue) -> Span:
        """Begin the span of a put. `parent` is the client's `traceparent`, if it sent one."""

    def append(self, put: Span, queue: Queue) -> Span:
        """Begin the span of the append to Kafka, as a child of the put's span."""

    def attempt(self, parent: str, listener: Listener, message_id: str, number: int) -> Span:
        """Begin the span of an attempt, as a child of the message's span. An attempt of a replay begins a trace of its
        own, with a link to the message's span.
        """


class Statistics(Protocol):
    """Reads the statistics of queues and listeners, per minute."""

    async def read(self, organization_id: str, series: Series) -> None:
        """Add all counts since the beginning of the series to it.

        Raises LogUnavailable if Kafka does not answer, Busy if too many large reads are running.
        """
