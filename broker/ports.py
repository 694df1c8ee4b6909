"""The protocols between the parts of Everput, each as narrow as its users need.

For: the protocols; broker/kafka and projections implement them, broker/commands, broker/delivery and api use them. Not
for: any implementation.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple, Protocol

from broker.core.cursor import Cursor
from broker.core.directory import Directory
from broker.core.entities import Listener, Queue
from broker.core.events import ChangeApplied, ControlEvent, MessageChange, PutClaimed
from broker.core.health import Facts
from broker.core.statistics import Series
from broker.errors import LogUnavailable

EARLIEST: Final = -2  # This time stands for the first offset of a partition.
LATEST: Final = -1  # This time stands for the end of a partition.
SESSION_TIMEOUT_MS: Final = 10_000  # How long a killed worker's partitions stand still if no other worker replaces it.


class Record(NamedTuple):
    """A Kafka record. timestamp: milliseconds. headers: (name, value) pairs.

    The fields have the names of aiokafka's class, because that class is what reads return: copying each record would
    take longer than parsing it.
    """

    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes | None]]


class FetchResult(NamedTuple):
    """The result of one fetch.

    next_offset: where to read on.
    end_offset: the partition's end.
    size: in bytes, as Kafka sent it.
    left_out_ms: all records were skipped; the latest had this time.
    """

    records: list[Record]
    next_offset: int
    end_offset: int
    size: int = 0
    left_out_ms: int | None = None


class OffsetTooOld(LogUnavailable):
    """The error that the log no longer begins where a reader wanted to read."""

    code = "offset-too-old"


class NotStored(LogUnavailable):
    """The error that cursors may not be stored. failed: the reason by listener id; all others are stored."""

    def __init__(self, failed: Mapping[str, LogUnavailable]) -> None:
        super().__init__(str(next(iter(failed.values()))))
        self.failed = failed


class NoMember(LogUnavailable):
    """The error that this process is not a member of the group: Kafka does not know it, or other members own its
    partitions, or will own them soon.
    """


class DirectoryView(Protocol):
    """The directory as folded so far in this process."""

    @property
    def state(self) -> Directory: ...

    @property
    def position(self) -> int:
        """The next offset of `control` to fold. The state includes everything before it."""

    @property
    def complete(self) -> bool:
        """Whether this program knew every event so far. If not, something may exist that is not in the state."""

    async def seen(self, offset: int, *, timeout_s: float | None = 2.0) -> None:
        """Wait until the event at this offset of `control` is folded (ViewBehind when it takes longer; None: no
        limit).
        """

    def passed_over(self, offset: int) -> bool:
        """Return whether the event at this offset changed nothing (a lost race for a name, an id that was gone).

        Only recent offsets are known: ask right after seen().
        """

    async def caught_up(self, *, timeout_s: float = 2.0) -> None:
        """Wait until everything in `control` now is folded. Raises ViewBehind or LogUnavailable."""


class ControlLog(Protocol):
    """The `control` topic, as a writer sees it."""

    async def append(self, event: ControlEvent) -> int:
        """Append an event. Return its offset once all in-sync replicas have it. Raises LogUnavailable or InDoubt."""

    async def end_offset(self) -> int:
        """Return the end offset. Raises LogUnavailable."""

    async def check(self) -> None:
        """Read the whole topic (LogUnavailable). ConfigurationError: the state folded from it can't be trusted."""


# A function that is told how many bytes are stored for an organization.
Count = Callable[[str, int], None]

# A function from the batch's partition to the record's key, value and queue id.
BuildRecord = Callable[[int], tuple[bytes, bytes, bytes]]


class MessageLog(Protocol):
    """The `messages` topic, as a writer sees it."""

    def append(
        self, build: BuildRecord, *, ordering_key: str | None = None, size: int = 0
    ) -> Awaitable[tuple[int, int]]:
        """Append a message. Return (partition, offset) once all in-sync replicas have it.
        Raises LogUnavailable or InDoubt.

        build: called when the batch and its partition are chosen, and again if the record did not fit.
        ordering_key: decides the partition.
        size: about how many bytes the message has.
        """

    def append_together(
        self, builds: Sequence[BuildRecord], *, partition: int | None = None, size: int = 0
    ) -> Awaitable[None]:
        """Append several messages as one batch, or as few as possible if they don't fit one.
        Raises LogUnavailable or InDoubt.

        partition: theirs; None: any.
        After LogUnavailable none is stored; after InDoubt all, some or none are.
        """

    def partition_of(self, ordering_key: str) -> int:
        """Return the partition of an ordering key."""

    def some_partition(self) -> int:
        """Return a partition that can be written to, as far as is known."""

    async def end_offsets(self) -> tuple[int, ...]:
        """Return the end offset of each partition. Raises LogUnavailable."""

    async def offsets_at(self, at_ms: int) -> tuple[int, ...]:
        """Return, by partition, the first offset at or after a time, or else the end; 0 is the beginning.
        Raises LogUnavailable.
        """

    async def find(
        self, *, partition: int, at_ms: int, message_id: str, organization_id: str
    ) -> tuple[int, bytes] | None:
        """Return (offset, value) of a message, or None when there is none (Unavailable). Its partition is read from its
        time on.

        organization_id: of the requester, here and below; concurrent reads are bounded for each organization.
        """

    async def find_all(
        self, *, partition: int, at_ms: int, message_ids: Collection[str], organization_id: str
    ) -> dict[str, tuple[int, bytes]]:
        """Find several messages of one time; missing ones are left out."""

    async def count(
        self, queue_id: str, *, begin: Sequence[int], end: Sequence[int], organization_id: str
    ) -> tuple[int, bool]:
        """Count the queue's messages in [begin, end) by partition. Return also whether the count is exact.

        Of a long range a part is read, and the rest is estimated from it. Raises Unavailable.
        """

    async def newest(
        self, queue_id: str, *, begin: Sequence[int], end: Sequence[int], limit: int, organization_id: str
    ) -> tuple[list[bytes], list[int]]:
        """Return the queue's newest messages in [begin, end), up to limit values, and by partition where the rest ends.

        There may be fewer than limit, even none, while more exist. Raises Unavailable.
        """


class ClaimLog(Protocol):
    """The `claims` topic."""

    async def append(self, claim: PutClaimed) -> None:
        """Append a claim, and return once all in-sync replicas have it (ShareUsed; Unavailable: it may be stored)."""

    async def claims(self, digest: bytes) -> Sequence[PutClaimed]:
        """Return the claims of this digest up to now, at least the last day's, in log order. Raises Unavailable."""


class TooMuch(Exception):
    """Ask for less at once."""


class CountingChange(NamedTuple):
    """The change of a message that counts now. offset: its own, in its partition of `changes`."""

    offset: int
    event: MessageChange


class ChangeLog(Protocol):
    """The `changes` topic, and the owners' answers to changes."""

    async def append(self, event: MessageChange) -> tuple[int, int]:
        """Append a change. Return its offset, -1 when that is unknown, and from where to look for its answer.
        Raises LogUnavailable or InDoubt.
        """

    async def answer(
        self, partition: int, change_offset: int, message_id: str, *, answers_from: int, within_s: float
    ) -> ChangeApplied | None:
        """Return the answer of the partition's owner to a change; None when none came in time."""

    async def counted(self, event: MessageChange) -> int | None:
        """Return the offset at which an appended change came to count; None when it did not. Raises Unavailable."""

    async def latest(
        self, places: Mapping[str, tuple[int, int]], *, organization_id: str, bytes_max: int | None = None
    ) -> dict[str, CountingChange]:
        """Return the counting change of each message that was changed, by message id. Raises Unavailable.

        places: (at_ms, partition) of each message. All changes of these partitions since then are read.
        bytes_max: of all new data together, unless it is one message's; TooMuch beyond.
        """

    async def deleted(
        self, queue_id: str, *, begin: Sequence[int], end: Sequence[int], since_ms: int, organization_id: str
    ) -> tuple[int, bool]:
        """Count the queue's deleted messages in [begin, end) by partition. Return also whether the count is complete.
        Raises Unavailable.

        since_ms: when the first of them was put, or earlier.
        """


class Log(Protocol):
    """The log, as a process writes it."""

    @property
    def control(self) -> ControlLog: ...

    @property
    def messages(self) -> MessageLog: ...

    @property
    def claims(self) -> ClaimLog: ...

    @property
    def changes(self) -> ChangeLog: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """An attempt: one HTTP request. number: from 1. status: None when there was no answer; `error` then names the
    reason in a word.
    """

    number: int
    at_ms: int
    status: int | None
    took_ms: int
    error: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryState:
    """The state of a delivery.

    state: pending, retrying, parked, delivered or cancelled; unknown when too much would have to be read.
    attempts: those that are known, oldest first.
    """

    state: str
    attempts: tuple[Attempt, ...] = ()
    next_attempt_at_ms: int | None = None


class Deliveries(Protocol):
    """The states of deliveries, as read from cursors and outcomes."""

    async def states(
        self,
        message_id: str,
        partition: int,
        offset: int,
        listeners: Sequence[Listener],
        at_ms: int,
        deliver_at_ms: int = 0,
    ) -> Mapping[str, DeliveryState]:
        """Return, by listener id, the state of the delivery of the message at this place of `messages`.
        Raises Unavailable.

        listeners: all of the message's queue. One that began after the message is left out.
        at_ms: when the message was put.
        deliver_at_ms: before which it is not delivered; 0 for none.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenerCondition:
    """The condition of a listener.

    state: live, down or paused.
    lag: messages that are not settled.
    oldest_pending_at_ms: None when nothing is pending.
    facts: see facts().
    """

    state: str
    lag: int
    oldest_pending_at_ms: int | None = None
    last_error: str | None = None
    facts: Facts = field(default_factory=Facts)


class ListenerStatus(Protocol):
    """The conditions of listeners."""

    async def condition(self, listener: Listener) -> ListenerCondition:
        """Return the listener's condition now. Raises LogUnavailable."""

    async def facts(self, listeners: Sequence[Listener]) -> Mapping[str, Facts]:
        """Return what is known of each listener's deliveries, by listener id. Raises LogUnavailable."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutstandingDelivery:
    """A delivery that has left its window.

    offset: the message's, in its partition.
    state: retrying, parked, or pending before the message's `deliver_at`.
    attempts: made so far; status, error: of the last.
    next_attempt_at_ms: None when none is due, or when it is due at once after a redrive.
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


# The end of a page: the partition, and the offset in `outstanding`.
Position = tuple[int, int]


class Outstanding(Protocol):
    """The deliveries that retry later or are parked."""

    async def page(
        self, listener: Listener, *, state: str | None, after: Position, limit: int
    ) -> tuple[list[OutstandingDelivery], Position | None]:
        """Return a page of a listener's outstanding deliveries from a place on, and the place of the next page, if any.

        The first place is (0, 0). A page may be short, or empty, while there is more. None is missed while things
        change; a delivery that is attempted meanwhile may come twice. Raises LogUnavailable.
        """

    async def count(self, listener: Listener) -> int:
        """Count the listener's retrying and parked deliveries. Raises LogUnavailable."""

    async def those(self, listener: Listener, message_ids: Sequence[str]) -> list[str]:
        """Return the messages whose delivery to the listener is retrying or parked, each once.
        Raises LogUnavailable.
        """


class Cursors(Protocol):
    """The committed cursors of streams."""

    async def load(self, listener_ids: Iterable[str], partitions: Iterable[int]) -> Mapping[str, Mapping[int, Cursor]]:
        """Load cursors by listener and partition; those never committed are left out. Raises LogUnavailable."""


class Span(Protocol):
    """A span of a trace that is under way. traceparent: its place in the trace."""

    @property
    def traceparent(self) -> str: ...

    def end(self, *, status: int | None = None, error: str | None = None) -> None:
        """End the span. status: the HTTP status of an answer. error: why there was none, in a word."""


class Tracing(Protocol):
    """The tracing of one process, where there is any (cli/tracing.py)."""

    def put(self, parent: str | None, queue: Queue) -> Span:
        """Begin the span of a put. parent: the client's traceparent, if it sent one."""

    def append(self, put: Span, queue: Queue) -> Span:
        """Begin the span of the append to Kafka, below the one of the put."""

    def attempt(self, parent: str, listener: Listener, message_id: str, number: int) -> Span:
        """Begin the span of an attempt, below the message's. One of a replay has a trace of its own, with a link to the
        message's.
        """


class Statistics(Protocol):
    """The statistics of queues and listeners per minute."""

    async def read(self, organization_id: str, series: Series) -> None:
        """Add all that is counted from the series' beginning on (LogUnavailable, Busy)."""
