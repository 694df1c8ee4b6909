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
# If Kafka hears nothing from a worker for ten seconds, other workers take over its partitions.
SESSION_TIMEOUT_MS: Final = 10_000


class Record(NamedTuple):
    """A Kafka record. `timestamp` is in milliseconds. `headers` are (name, value) pairs.

    The fields have the same names as in aiokafka's class of records. So reads can return aiokafka's objects, without
    the time for copying them.
    """

    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes | None]]


class FetchResult(NamedTuple):
    """The result of one fetch from a partition.

    The next fetch of the partition begins at `next_offset`. `end_offset` is the partition's end offset. `size` is the
    number of bytes that Kafka has sent. If the reader skipped all fetched records, `records` is empty, and
    `left_out_ms` is the time of the newest skipped record. Otherwise `left_out_ms` is None.
    """

    records: list[Record]
    next_offset: int
    end_offset: int
    size: int = 0
    left_out_ms: int | None = None


class StoredRecord(NamedTuple):
    """The record of a message in the topic `messages`, with its partition and offset."""

    partition: int
    offset: int
    value: bytes


class OffsetTooOld(LogUnavailable):
    """The error of a read from an offset that Kafka does not have. Kafka has deleted the record at this offset, or the
    partition ends before it.
    """

    code = "offset-too-old"
    public = "The log no longer has the records that were to be read. Repeat the request."


class NotStored(LogUnavailable):
    """The error of a commit of several listeners' offsets. For some of the listeners, the commit failed or may have
    failed.

    `failed` maps the id of each of these listeners to the error. The offsets of all other listeners are stored.
    """

    def __init__(self, failed: Mapping[str, LogUnavailable]) -> None:
        super().__init__(str(next(iter(failed.values()))))
        self.failed = failed


class NoMember(LogUnavailable):
    """The error of a process that is not a member of its consumer group any more.

    Other members own the process's partitions now, or the group will assign the partitions again.
    """


class DirectoryView(Protocol):
    """The directory (such as accounts, queues and listeners) as this process has read it from the topic `control` so
    far.
    """

    @property
    def state(self) -> Directory: ...

    @property
    def position(self) -> int:
        """Return the offset of the topic `control` that this process applies next. `state` includes every event before
        this offset that this program can decode.
        """

    @property
    def complete(self) -> bool:
        """Return whether this program could decode every event of `control` that it has read. If not, `state` lacks the
        effects of the other events, which a newer version of Everput has written.
        """

    async def seen(self, offset: int, *, timeout_s: float | None = 2.0) -> None:
        """Wait until this process has applied the event at this offset of `control`. `timeout_s` may be None for no
        limit.

        Raises ViewBehind if the wait takes longer.
        """

    def passed_over(self, offset: int) -> bool:
        """Return True if the event at this offset of `control` had no effect, else False. For example, an event that
        creates a queue has no effect if another queue already had the name.

        Call this method right after seen() has returned for this offset, because the process remembers only recent
        offsets.
        """

    async def caught_up(self, *, timeout_s: float = 2.0) -> None:
        """Wait until this process has applied every event that is in `control` now. For this, ask Kafka for the end of
        `control`.

        Raises ViewBehind if this takes longer than `timeout_s` altogether, LogUnavailable if Kafka does not answer.
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
        """Read the whole topic `control`. Return True if no damage was found. Return False if the partition leader's
        copy is damaged, but another broker's copy is good: ordinary Kafka consumers may then be unable to read the
        topic.

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


# A function that counts stored bytes. It gets the id of an organization, and the number of bytes to add to its count.
Count = Callable[[str, int], None]

# A function that gets a partition's number, and returns a record for this partition: its key, value and queue id.
BuildRecord = Callable[[int], tuple[bytes, bytes, bytes]]


class Acknowledged(Protocol):
    """A receiver of the result of one append to Kafka. It has three methods of asyncio.Future, and is faster than a
    future.

    When the result is known, done() is called. If done() returns False, set_result() or set_exception() is called once.
    These three methods must not raise.
    """

    def done(self) -> bool:
        """Return whether the result would be ignored, because the caller has it already or has stopped waiting."""

    def set_result(self, place: Any, /) -> None:
        """Receive the partition and the offset of the message. All in-sync replicas have stored the message."""

    def set_exception(self, error: BaseException, /) -> None:
        """Receive the reason why the append failed."""


class MessageLog(Protocol):
    """The topic `messages`, for appending messages and finding them again."""

    def append(
        self, build: BuildRecord, *, ordering_key: str | None = None, size: int = 0
    ) -> Awaitable[tuple[int, int]]:
        """Append a message. The returned awaitable gives the partition and the offset once all in-sync replicas have
        stored the message.

        `build` makes the record for a partition, and can be called several times. Messages with the same ordering key
        go to the same partition.

        Raises InDoubt if the message may have been stored, and any other Unavailable if it was not stored.
        """

    def append_for(
        self, writer: Acknowledged, build: BuildRecord, *, ordering_key: str | None = None, size: int = 0
    ) -> None:
        """Append a message like append(), but return nothing. When the result is known, call set_result() or
        set_exception() of `writer` with it. This is faster than the future of append().

        If this method itself raises Unavailable, nothing is stored and `writer` gets no result.
        """

    def append_together(
        self, builds: Sequence[BuildRecord], *, partition: int | None = None, size: int = 0
    ) -> Awaitable[None]:
        """Append messages in one Kafka record batch. If the messages don't fit into one batch, use as few batches as
        possible.

        With `partition`, all messages go to this partition. If InDoubt is raised, all, some or none of the messages are
        stored. If another Unavailable is raised, no message is stored.
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
        """Return the offset and the record's value of a message, or None if there is no such message.

        The search of the partition begins at `at_ms`, the time in the message's id. The first read usually finds the
        message. Each process limits how many searches continue after their first read at the same time, so this call
        may wait. Raises Unavailable if Kafka does not answer, if the wait is too long, or if the message may be in an
        unreadable range.
        """

    async def find_all(
        self, *, partition: int, at_ms: int, message_ids: Collection[str], organization_id: str
    ) -> dict[str, tuple[int, bytes]]:
        """Return, by message id, the offset of each of these messages and the value of its record. `at_ms` is the time
        in the message ids. It must be the same in all of them.

        Messages that are not found are left out. Raises Unavailable if Kafka does not answer, or if such a message may
        be in an unreadable range.
        """

    async def count(
        self, queue_id: str, *, begin: Sequence[int], end: Sequence[int], organization_id: str
    ) -> tuple[int, bool]:
        """Count the queue's messages in each partition, from the partition's offset in `begin` to before its offset in
        `end`. Return the sum over all partitions, and whether the sum is exact.

        At most about 16 MiB of a partition are read. If the partition has more, the count of the rest is estimated, and
        the sum is not exact. The sum is also not exact if records are damaged. Raises Unavailable if Kafka does not
        answer.
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
        """Return up to `limit` of the queue's newest messages. The messages of each partition are from the partition's
        offset in `begin` to before its offset in `end`. Also return the value of `end` for the next call, which returns
        older messages: one offset for each partition.

        With `wanted`, leave out records for whose value `wanted` returns False. A call may return few messages, or
        none, although there are older ones. Raises Unavailable if Kafka does not answer.
        """


class ClaimLog(Protocol):
    """The access to the topic `claims`, for appending and reading. The topic holds the Idempotency-Keys that were used
    recently.
    """

    async def append(self, claim: PutClaimed) -> None:
        """Append a claim of an Idempotency-Key: an event that says that a request is about to put the key's messages.
        Return once all in-sync replicas have stored the claim.

        Raises ShareUsed if the organization has used too many keys in about the last 24 hours. Raises Unavailable if
        the claim was not stored, or if it is uncertain whether it was stored.
        """

    async def claims(self, digest: bytes) -> Sequence[PutClaimed]:
        """Return the claims of an Idempotency-Key, the oldest first. Claims older than 24 hours may be missing.
        `digest` is the hash of the key.

        Raises Unavailable if Kafka does not answer.
        """


class TooMuch(Exception):
    """The error that the data of all requested messages is too large for one answer. Ask for fewer messages."""


class CountingChange(NamedTuple):
    """The change of a message that is in effect now. If the message was deleted, this is the deletion. Otherwise, it is
    the message's newest valid update.

    `offset` is the offset of this change in the topic `changes`.
    """

    offset: int
    event: MessageChange


class ChangeLog(Protocol):
    """The access to the topic `changes`, for appending updates and deletions of messages, and for reading the workers'
    answers to them.
    """

    async def append(self, event: MessageChange) -> tuple[int, int]:
        """Append an update or a deletion of a message to the topic `changes`. Return two offsets, which answer() needs
        to find the worker's answer. The first is the change's offset in `changes`, or -1 if it is unknown. The second
        is the offset in `deliveries` at which the search for the answer begins.

        Raises InDoubt if the change may have been stored, and any other Unavailable if it was not stored.
        """

    async def answer(
        self, partition: int, change_offset: int, message_id: str, *, answers_from: int, within_s: float
    ) -> ChangeApplied | None:
        """Wait for a worker's answer to a change of a message, and return the answer. Return None if no answer comes
        within `within_s` seconds, or if Kafka does not answer.

        `change_offset` and `answers_from` are the two offsets that append() returned for this change.
        """

    async def counted(self, event: MessageChange) -> int | None:
        """Find an update or deletion in the topic `changes`, and return its offset. Return None if it had no effect
        when it was appended, for example because the message was deleted before, or if it is not in the topic.

        Raises Unavailable if Kafka does not answer.
        """

    async def latest(
        self, places: Mapping[str, tuple[int, int]], *, organization_id: str, bytes_max: int | None = None
    ) -> dict[str, CountingChange]:
        """Return, by message id, the change of each message that is in effect now: its deletion, or if there is none,
        its newest valid update. Messages without such a change are left out.

        `places` has the messages to look up: it maps each message id to the time of the message's put and to its
        partition. Raises TooMuch if more than one message is changed, and the changes have more than `bytes_max` bytes
        together. Raises Unavailable if Kafka does not answer.
        """

    async def deleted(
        self, queue_id: str, *, begin: Sequence[int], end: Sequence[int], since_ms: int, organization_id: str
    ) -> tuple[int, bool]:
        """Count the queue's deleted messages in each partition of `messages`, from the partition's offset in `begin` to
        before its offset in `end`. Return the sum over all partitions, and whether it is exact.

        `begin` and `end` have one offset for each partition. `since_ms` is a time in ms: no message in these ranges was
        put before it. If there are more changes than one request may read, the sum is too low and not exact. Raises
        Unavailable if Kafka does not answer.
        """


class ListenerTestLog(Protocol):
    """The part of the log that stores the results of listener tests. A test sends one message to a listener, bypassing
    its queue.
    """

    async def append(self, event: ListenerTested) -> None:
        """Append the event with the result of a listener test. Raises InDoubt if Kafka does not acknowledge the event:
        the event may be stored or not. Raises DiskNearlyFull if the disk is nearly full.
        """


class Log(Protocol):
    """The topics of the log, as API requests use them: to append events, and to find messages and the changes of
    messages.
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
