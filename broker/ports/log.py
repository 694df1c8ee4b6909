"""The protocols of the log: what a process appends to Kafka's topics and reads from them, and their records and errors.

For: broker/kafka and projections implement them; broker/commands, broker/delivery and api use them. Not for: the states
of deliveries (deliveries.py), any implementation.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any, Final, NamedTuple, Protocol

from broker.core.directory import Directory
from broker.core.events import ChangeApplied, ControlEvent, ListenerTested, MessageChange, PutClaimed
from broker.errors import LogUnavailable

EARLIEST: Final = -2  # time that means the first offset
LATEST: Final = -1  # time that means the end offset
# If a worker is killed and not restarted, other workers take over its partitions after about ten seconds.
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
    them. `left_out_ms` is the time of the newest record if all records were skipped, else None.
    """

    records: list[Record]
    next_offset: int
    end_offset: int
    size: int = 0
    left_out_ms: int | None = None


class StoredRecord(NamedTuple):
    """The record of a message in the topic `messages`, and its position."""

    partition: int
    offset: int
    value: bytes


class OffsetTooOld(LogUnavailable):
    """Kafka does not have the offset from which records were to be read.

    Its record was deleted, or the partition ends before this offset.
    """

    code = "offset-too-old"
    public = "The log no longer has the records that were to be read. Repeat the request."


class NotStored(LogUnavailable):
    """The error of a commit of several listeners' offsets that failed, or may have failed, for some of the listeners.

    `failed` has the reason for each of these listeners. The offsets of all other listeners are stored.
    """

    def __init__(self, failed: Mapping[str, LogUnavailable]) -> None:
        super().__init__(str(next(iter(failed.values()))))
        self.failed = failed


class NoMember(LogUnavailable):
    """The error of a process that is not a member of its consumer group any more.

    The process's partitions belong to other members, or will be assigned anew.
    """


class DirectoryView(Protocol):
    """The directory (such as accounts, queues and listeners) as this process has read it from the topic `control` so
    far.
    """

    @property
    def state(self) -> Directory: ...

    @property
    def position(self) -> int:
        """Return the offset of the topic `control` that this process applies next. The state includes every event
        before this offset that this program can decode.
        """

    @property
    def complete(self) -> bool:
        """Return whether this program could decode every event of `control` so far. If not, `state` may be
        incomplete.
        """

    async def seen(self, offset: int, *, timeout_s: float | None = 2.0) -> None:
        """Wait until this process has applied the event at this offset of `control`. `timeout_s` may be None for no
        limit.

        Raises ViewBehind if the wait takes longer.
        """

    def passed_over(self, offset: int) -> bool:
        """Return whether the event at this offset of `control` had no effect, for example because it creates a queue
        with a name that was taken. Call this right after seen() has returned for the same offset, because the process
        remembers only recent offsets.
        """

    async def caught_up(self, *, timeout_s: float = 2.0) -> None:
        """Wait until this process has applied every event that is in `control` now.

        First, Kafka is asked for the end of `control`. Raises ViewBehind if this request or the wait after it takes
        longer than `timeout_s`, LogUnavailable if Kafka does not answer.
        """


class ControlLog(Protocol):
    """The access to the topic `control`, for appending events and for checks. The directory (such as accounts, queues
    and listeners) is computed from the events of this topic.
    """

    async def append(self, event: ControlEvent) -> int:
        """Append an event. Return its offset once all in-sync replicas have stored it.

        Raises InDoubt if the event may have been stored, and any other Unavailable if it was not stored.
        """

    async def end_offset(self) -> int:
        """Return the end offset of the topic `control`. Raises LogUnavailable if Kafka does not answer."""

    async def check(self) -> bool:
        """Read the whole topic `control`. Return whether an ordinary Kafka consumer can read the topic. If not, the
        leader's copy is damaged, but another broker's copy is good.

        Raises ConfigurationError if no copy is good or the first events are lost, LogUnavailable if Kafka does not
        answer.
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


# A function of (organization id, bytes). It adds the bytes to the count of the organization's stored bytes.
Count = Callable[[str, int], None]

# A function of a partition's number. It builds a record for this partition, and returns (key, value, queue id).
BuildRecord = Callable[[int], tuple[bytes, bytes, bytes]]


class Acknowledged(Protocol):
    """A receiver of the result of an append to Kafka, which takes less time than a future. If done() returns False,
    either set_result() or set_exception() is called, once. None of these methods may raise.
    """

    def done(self) -> bool:
        """Return whether the caller already has the result, or no longer waits for it."""

    def set_result(self, place: Any, /) -> None:
        """Receive (partition, offset) of the message, which all in-sync replicas have stored."""

    def set_exception(self, error: BaseException, /) -> None:
        """Receive the reason why the append failed."""


class MessageLog(Protocol):
    """The topic `messages`, for appending messages and finding them again."""

    def append(
        self, build: BuildRecord, *, ordering_key: str | None = None, size: int = 0
    ) -> Awaitable[tuple[int, int]]:
        """Append a message. The awaitable returns (partition, offset) once all in-sync replicas have stored it.

        `build` makes the record when its partition is known, and is called again if the record did not fit into the
        batch. An ordering key decides the partition.

        Raises InDoubt if the message may have been stored, and any other Unavailable if it was not stored.
        """

    def append_for(
        self, writer: Acknowledged, build: BuildRecord, *, ordering_key: str | None = None, size: int = 0
    ) -> None:
        """Append a message like append(), but pass the result to set_result() or set_exception() of `writer`. A future
        would take two more turns of the event loop.

        If this method itself raises Unavailable, nothing is stored and `writer` gets no result.
        """

    def append_together(
        self, builds: Sequence[BuildRecord], *, partition: int | None = None, size: int = 0
    ) -> Awaitable[None]:
        """Append messages as one record batch, or as few batches as possible if they don't fit.

        The messages go into `partition`, if it is given. If InDoubt is raised, all, some or none of the messages are
        stored. Any other Unavailable means that no message is stored.
        """

    def partition_of(self, ordering_key: str) -> int:
        """Return the partition for messages with this ordering key."""

    def some_partition(self) -> int:
        """Return a partition for a message without an ordering key: if possible, one whose leader acknowledges
        writes."""

    async def end_offsets(self) -> tuple[int, ...]:
        """Return the end offset of each partition of `messages`. Raises LogUnavailable if Kafka does not answer."""

    async def offsets_at(self, at_ms: int) -> tuple[int, ...]:
        """Return, for each partition, the first offset at or after a time. If a partition has no record since this
        time, return its end offset. Time 0 stands for the beginning of the log.

        Raises LogUnavailable if Kafka does not answer.
        """

    async def find(
        self, *, partition: int, at_ms: int, message_id: str, organization_id: str
    ) -> tuple[int, bytes] | None:
        """Return (offset, record value) of a message, or None if there is no such message.

        The partition is read from the time in the message's id on. In one process, all organizations of one account
        together may run two large reads at a time. Raises Unavailable if Kafka does not answer, or if the message may
        be in an unreadable range.
        """

    async def find_all(
        self, *, partition: int, at_ms: int, message_ids: Collection[str], organization_id: str
    ) -> dict[str, tuple[int, bytes]]:
        """Return (offset, record value) of several messages, by message id. All their ids must have the same time.
        Missing messages are left out. Raises Unavailable if Kafka does not answer, or if a missing message may be in an
        unreadable range.
        """

    async def count(
        self, queue_id: str, *, begin: Sequence[int], end: Sequence[int], organization_id: str
    ) -> tuple[int, bool]:
        """Count the queue's messages in the ranges [begin, end) of all partitions. Return the count, and whether it is
        exact.

        In each partition, at most 16 MiB of the range are read, and the rest is estimated from them. The count is not
        exact if something was estimated, or if records are damaged. Raises Unavailable if Kafka does not answer.
        """

    async def newest(
        self,
        queue_id: str,
        *,
        begin: Sequence[int],
        end: Sequence[int],
        limit: int,
        organization_id: str,
        wanted: Callable[[bytes], bool] | None = None,
    ) -> tuple[list[StoredRecord], list[int]]:
        """Return up to `limit` of the queue's newest messages in the offsets [begin, end) of all partitions.

        With `wanted`, leave out records for whose value it returns False. Also return, for each partition, the offset
        before which the older messages lie. There may be fewer messages than `limit`, or none, although more exist.
        Raises Unavailable if Kafka does not answer.
        """


class ClaimLog(Protocol):
    """The access to the topic `claims`, for appending and reading. The topic holds the Idempotency-Keys that were used
    recently.
    """

    async def append(self, claim: PutClaimed) -> None:
        """Append a claim of an Idempotency-Key: an event that says that this process is about to put the key's
        messages. Return once all in-sync replicas have stored the claim.

        Raises ShareUsed if the organization has too many keys in use, Unavailable if it is not certain that the claim
        is stored.
        """

    async def claims(self, digest: bytes) -> Sequence[PutClaimed]:
        """Return the claims of an Idempotency-Key in the order of the log, at least those of the last 24 hours.
        `digest` is the hash of the key.

        Raises Unavailable if Kafka does not answer.
        """


class TooMuch(Exception):
    """The requested items are too large together. Ask for fewer of them."""


class CountingChange(NamedTuple):
    """The change of a message that has an effect: the deletion of the message, or else its newest valid update.
    `offset` is the offset of the change in the topic `changes`.
    """

    offset: int
    event: MessageChange


class ChangeLog(Protocol):
    """The access to the topic `changes`, for appending updates and deletions of messages, and for reading the workers'
    answers to them.
    """

    async def append(self, event: MessageChange) -> tuple[int, int]:
        """Append a change of a message to `changes`. Return the offset of the change in `changes` (-1 if unknown), and
        the offset in `deliveries` at which to begin to look for the worker's answer.

        Raises InDoubt if the change may have been stored, and any other Unavailable if it was not stored.
        """

    async def answer(
        self, partition: int, change_offset: int, message_id: str, *, answers_from: int, within_s: float
    ) -> ChangeApplied | None:
        """Wait for the worker's answer to a change of a message. The answer comes from the worker that owns the
        message's partition. Return None if no answer comes within `within_s` seconds, or if Kafka does not answer.
        """

    async def counted(self, event: MessageChange) -> int | None:
        """Find an appended change of a message in the topic `changes`, and return its offset. Return None if the change
        has no effect.

        Raises Unavailable if Kafka does not answer.
        """

    async def latest(
        self, places: Mapping[str, tuple[int, int]], *, organization_id: str, bytes_max: int | None = None
    ) -> dict[str, CountingChange]:
        """Return the change that decides the present state of each of these messages, by message id. It is the
        message's deletion, or else its newest valid update. Messages without a change are left out. `places` maps a
        message id to the message's time and partition. Changes since that time are read. Raises TooMuch if the new data
        of several messages has more than `bytes_max` bytes, Unavailable if Kafka does not answer.
        """

    async def deleted(
        self, queue_id: str, *, begin: Sequence[int], end: Sequence[int], since_ms: int, organization_id: str
    ) -> tuple[int, bool]:
        """Count the queue's deleted messages among those at the offsets from `begin` up to, but not including, `end`.
        `begin` and `end` have one offset for each partition of `messages`. `since_ms` is a time at or before the put of
        the first of these messages.

        Return the count, and whether it is exact. The count is too low if there are more changes than one request may
        read. Raises Unavailable if Kafka does not answer.
        """


class ListenerTestLog(Protocol):
    """The part of the log that stores the results of listener tests. A test sends one message to a listener, bypassing
    its queue.
    """

    async def append(self, event: ListenerTested) -> None:
        """Append the event with the result of a listener test. Raises InDoubt if Kafka does not acknowledge the event,
        because the event may be stored. Raises DiskNearlyFull if the disk is nearly full.
        """


class Log(Protocol):
    """The topics of the log that requests of the API use. The requests write to these topics, and find messages and
    changes in them.
    """

    @property
    def control(self) -> ControlLog: ...

    @property
    def messages(self) -> MessageLog: ...

    @property
    def claims(self) -> ClaimLog: ...

    @property
    def changes(self) -> ChangeLog: ...

    @property
    def tests(self) -> ListenerTestLog: ...
