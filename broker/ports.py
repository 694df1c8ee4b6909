"""What the parts of Everput ask of each other, as narrow as each asker can do with.

For: the protocols; broker/kafka and projections implement them, broker/commands, broker/delivery and api use them.
Not for: any implementation."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

from broker.core.cursor import Cursor
from broker.core.directory import Directory, Listener
from broker.core.events import ChangeApplied, ControlEvent, MessageChange, PutClaimed
from broker.errors import LogUnavailable

EARLIEST: Final = -2  # as a time: the first offset of a partition
LATEST: Final = -1  # as a time: one past the newest record
SESSION_TIMEOUT_MS: Final = 10_000  # how long a killed worker's partitions stand still, if none takes its place


class Record(NamedTuple):
    """One record. timestamp: milliseconds. headers: (name, value) pairs.

    Its fields are named as those of aiokafka's own class, for what is read are records of that one: to copy each would
    take longer than to parse it.
    """

    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes | None]]


class Stretch(NamedTuple):
    """What one fetch brought. next_offset: where to read on; end_offset: one past the newest record there is.

    size: in bytes, as Kafka sent it. left_out_ms: all records were left out, the latest of this time.
    """

    records: list[Record]
    next_offset: int
    end_offset: int
    size: int = 0
    left_out_ms: int | None = None


class OffsetTooOld(LogUnavailable):
    """The log no longer begins where a reader wanted to read."""

    code = "offset-too-old"


class NotStored(LogUnavailable):
    """Cursors were not, or are not known to be, stored. failed: by listener id, why; all others' are."""

    def __init__(self, failed: Mapping[str, LogUnavailable]) -> None:
        super().__init__(str(next(iter(failed.values()))))
        self.failed = failed


class NoMember(LogUnavailable):
    """Kafka knows no such member, or the group has agreed anew without it: others own its partitions, or will soon."""


class DirectoryView(Protocol):
    """The directory as folded so far in this process."""

    @property
    def state(self) -> Directory: ...

    @property
    def position(self) -> int:
        """The next offset of `control` to fold: the state is that of all before it."""

    @property
    def complete(self) -> bool:
        """Whether this program knew every event so far; else something may exist that is not in the state."""

    async def seen(self, offset: int, *, timeout_s: float = 2.0) -> None:
        """Wait until the event at this offset of `control` is folded (ViewBehind when it takes longer)."""

    def passed_over(self, offset: int) -> bool:
        """Whether the fold changed nothing at this offset (a lost race for a name, an id that was gone).

        Only offsets seen lately are known; ask right after seen().
        """

    async def caught_up(self, *, timeout_s: float = 2.0) -> None:
        """Wait until everything that is in `control` now is folded (ViewBehind, LogUnavailable)."""


class ControlLog(Protocol):
    """The `control` topic, as a writer sees it."""

    async def append(self, event: ControlEvent) -> int:
        """Its offset, once all in-sync replicas have it (LogUnavailable, InDoubt)."""

    async def end_offset(self) -> int:
        """One past the newest event (LogUnavailable)."""

    async def check(self) -> None:
        """Read all of it. ConfigurationError: the state that is folded from it can't be trusted (LogUnavailable)."""


# Told that so many bytes are stored for an organization.
Count = Callable[[str, int], None]

# Given the partition of the batch it goes into: the record's key, value and queue id.
BuildRecord = Callable[[int], tuple[bytes, bytes, bytes]]


class MessageLog(Protocol):
    """The `messages` topic, as a writer sees it."""

    def append(self, build: BuildRecord, *, key: str | None = None, size: int = 0) -> Awaitable[tuple[int, int]]:
        """(partition, offset), once all in-sync replicas have it (LogUnavailable, InDoubt).

        build: called when the batch, and with it the partition, is chosen; again if it did not fit.
        key: an ordering key, fixes the partition. size: about what it carries, bytes.
        """

    def append_together(
        self, builds: Sequence[BuildRecord], *, partition: int | None = None, size: int = 0
    ) -> Awaitable[None]:
        """Several messages as one batch, as few as possible where they don't fit one (LogUnavailable, InDoubt).

        partition: theirs; None: any. Of LogUnavailable nothing is stored, of InDoubt all, some, or nothing.
        """

    def partition_of(self, key: str) -> int:
        """Where the messages of an ordering key are."""

    def some_partition(self) -> int:
        """One that can be written to, as far as is known."""

    async def end_offsets(self) -> tuple[int, ...]:
        """By partition, one past the newest message (LogUnavailable)."""

    async def offsets_at(self, at_ms: int) -> tuple[int, ...]:
        """By partition, the first offset at or after a time, else the end; 0 is the beginning (LogUnavailable)."""

    async def find(
        self, *, partition: int, at_ms: int, message_id: str, organization_id: str
    ) -> tuple[int, bytes] | None:
        """(offset, value) of a message, read from its partition and time; None when there is none (Unavailable).

        organization_id: who asks, here and below: what one organization has read at once is bounded.
        """

    async def find_all(
        self, *, partition: int, at_ms: int, message_ids: Collection[str], organization_id: str
    ) -> dict[str, tuple[int, bytes]]:
        """find() for several messages of one time; nothing for those that are not there."""

    async def count(
        self, queue_id: str, *, begin: Sequence[int], end: Sequence[int], organization_id: str
    ) -> tuple[int, bool]:
        """How many messages of a queue are in [begin, end) by partition, and whether that is exact.

        A long stretch is looked at in part, and the rest is taken to be like it (Unavailable).
        """

    async def newest(
        self, queue_id: str, *, begin: Sequence[int], end: Sequence[int], limit: int, organization_id: str
    ) -> tuple[list[bytes], list[int]]:
        """A queue's messages in [begin, end) by partition: up to limit values, newest first, and where the rest ends.

        There may be fewer than limit, even none, while there is more (Unavailable).
        """


class ClaimLog(Protocol):
    """The `claims` topic."""

    async def append(self, claim: PutClaimed) -> None:
        """Returns once all in-sync replicas have it (ShareUsed; Unavailable: it may be stored all the same)."""

    async def claims(self, digest: bytes) -> Sequence[PutClaimed]:
        """Those of this digest, of the last day at least, in log order, up to now (Unavailable)."""


class TooMuch(Exception):
    """Ask for less at once."""


class CountingChange(NamedTuple):
    """The change that counts now. offset: its own, in its partition of `changes`."""

    offset: int
    event: MessageChange


class ChangeLog(Protocol):
    """The `changes` topic, and what became of a change."""

    async def append(self, event: MessageChange) -> tuple[int, int]:
        """Its offset, -1 when that is not known, and where to look for its answer from (LogUnavailable, InDoubt)."""

    async def answer(
        self, partition: int, change_offset: int, message_id: str, *, answers_from: int, within_s: float
    ) -> ChangeApplied | None:
        """What the owner of the partition said of a change; None when it said nothing in time."""

    async def counted(self, event: MessageChange) -> int | None:
        """The offset at which an appended change came to count; None when it did not (Unavailable)."""

    async def latest(
        self, places: Mapping[str, tuple[int, int]], *, organization_id: str, bytes_max: int | None = None
    ) -> dict[str, CountingChange]:
        """By message id, the change that counts, of those that were changed (Unavailable).

        places: (at_ms, partition) of each message. Reads all changes of these partitions since then.
        bytes_max: of all new data together, unless it is one message's; TooMuch beyond.
        """

    async def deleted(
        self, queue_id: str, *, begin: Sequence[int], end: Sequence[int], since_ms: int, organization_id: str
    ) -> tuple[int, bool]:
        """How many messages of a queue in [begin, end) by partition are deleted, and whether that is all (Unavailable).

        since_ms: when the first of them was put, or before.
        """


class Log(Protocol):
    """What a process writes to."""

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
    """One HTTP request. number: from 1. status: None when there was no answer; error: then why, in a word."""

    number: int
    at_ms: int
    status: int | None
    took_ms: int
    error: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryState:
    """state: pending, retrying, parked, delivered or cancelled; unknown when more would have to be read than may be.

    attempts: as far as they are known, oldest first.
    """

    state: str
    attempts: tuple[Attempt, ...] = ()
    next_attempt_at_ms: int | None = None


class Deliveries(Protocol):
    """Where a message is, as read from the cursors and the outcomes."""

    async def states(
        self,
        message_id: str,
        partition: int,
        offset: int,
        listeners: Sequence[Listener],
        at_ms: int,
        deliver_at_ms: int = 0,
    ) -> Mapping[str, DeliveryState]:
        """By listener id, for the message at this place of `messages`; all listeners are its queue's (Unavailable).

        at_ms: when it was put. deliver_at_ms: before which it is not delivered; 0 for none. A listener that
        began after the message is not in the answer.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenerCondition:
    """state: live, down or paused. lag: messages not settled. oldest_pending_at_ms: None when nothing is pending."""

    state: str
    lag: int
    oldest_pending_at_ms: int | None = None
    last_error: str | None = None


class ListenerStatus(Protocol):
    """How a listener is doing."""

    async def condition(self, listener: Listener) -> ListenerCondition:
        """As of now (LogUnavailable)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutstandingDelivery:
    """One that has left its window. offset: the message's, in its partition.

    state: retrying, parked, or pending when its message is not to be delivered yet.
    attempts: made so far; status, error: of the last.
    next_attempt_at_ms: None when none is due, or at once: it was redriven.
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


# Where a page ends: the partition, and the offset in `outstanding`.
Place = tuple[int, int]


class Outstanding(Protocol):
    """The deliveries that retry later or are parked."""

    async def page(
        self, listener: Listener, *, state: str | None, after: Place, limit: int
    ) -> tuple[list[OutstandingDelivery], Place | None]:
        """Those of a listener from a place on, (0, 0) being the first; and where the next page begins, if there is one.

        A page may be short, or empty, while there is more. None is missed while things change; one that is tried
        meanwhile may come twice (LogUnavailable).
        """

    async def count(self, listener: Listener) -> int:
        """How many of a listener's deliveries retry or are parked (LogUnavailable)."""

    async def those(self, listener: Listener, message_ids: Sequence[str]) -> list[str]:
        """Those of the messages whose delivery to the listener retries or is parked, each once (LogUnavailable)."""


class Cursors(Protocol):
    """Where streams stand, as committed."""

    async def load(self, listener_ids: Iterable[str], partitions: Iterable[int]) -> Mapping[str, Mapping[int, Cursor]]:
        """By listener and partition; nothing where nothing was committed (LogUnavailable)."""
