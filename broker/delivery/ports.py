"""The interfaces through which delivery uses Kafka, each as narrow as delivery needs it.

For: the protocols. `broker/kafka` implements them. Each has a second implementation in memory for tests
(tests/memory_kafka.py), and tests/contracts runs the same tests on both.
Not for: any implementation, nor what the API asks of Kafka (broker/ports).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from broker.core.cursor import Cursor
from broker.core.events import ControlEvent, MessageChange
from broker.core.flow import Share
from broker.errors import LogDamaged
from broker.ports import FetchResult, Record

KeyAndValue = tuple[bytes, bytes | None]
Gained = Callable[[Collection[int]], None]
GivenUp = Callable[[Collection[int]], Awaitable[None]]


class LogReader(Protocol):
    """A reader of Kafka topics. Each call sends its own requests."""

    async def offsets(self, topic: str, at_ms: Mapping[int, int]) -> dict[int, int]:
        """Return, for each partition, the offset of its first record at or after a time in ms. Return -1 for a
        partition without such a record. The time may also be `EARLIEST` or `LATEST`, for the partition's first or end
        offset. Raises LogUnavailable if Kafka does not answer.
        """

    async def read(
        self,
        topic: str,
        partition: int,
        offset: int,
        *,
        bytes_max: int = 1 << 20,
        worth: Callable[[bytes], bool] | None = None,
    ) -> FetchResult:
        """Fetch records of a partition, beginning at `offset`. Return at least one record if the partition has any
        there. Raises OffsetTooOld if Kafka has deleted the record at `offset`, or if the partition ends before
        `offset`. Raises LogDamaged if no copy of the records is intact, and LogUnavailable if Kafka does not answer.

        `worth` can save time: it gets the fetched bytes, and returns whether the caller wants any of their records. If
        `worth` returns False, the records may be left out.
        """

    def walk(
        self, topic: str, partition: int, offset: int, end: int, *, pass_damaged: bool = False
    ) -> AsyncIterator[Record]:
        """Yield the Kafka records from `offset` to before `end`, an offset that the partition has reached. Raises
        LogUnavailable if Kafka does not answer.

        If `pass_damaged` is true, skip unreadable records; otherwise raise LogDamaged.
        """

    async def delete_before(self, topic: str, partition: int, offset: int) -> None:
        """Delete the partition's records before this offset. Raises LogUnavailable if Kafka does not answer."""

    def report(self, damage: LogDamaged) -> None:
        """Report that a range of records can't be read, or that its records are missing."""


class Appender(Protocol):
    """A writer that appends records to one Kafka topic."""

    @property
    def name(self) -> str: ...

    async def append(self, outcomes: MutableMapping[int, list[KeyAndValue]]) -> None:
        """Write the records in `outcomes`, which maps each partition to a list of (key, value) pairs. When all records
        of a partition are written, remove the partition from `outcomes`. A value of None is a tombstone.

        If LogUnavailable is raised, the records that are left in `outcomes` may or may not have been written.
        """

    async def append_one(self, partition: int, key: bytes, value: bytes) -> int:
        """Append one Kafka record and return its offset, or -1 if the offset is unknown. If LogUnavailable is raised,
        the record may or may not have been written.
        """


class Messages(Protocol):
    """The topic `messages`, which holds the messages that were put."""

    @property
    def name(self) -> str: ...

    async def end_offsets(self) -> Sequence[int]:
        """Return the end offset of each partition. Raises LogUnavailable if Kafka does not answer."""


class Control(Protocol):
    """The topic `control`, which holds events about queues, listeners, accounts and more."""

    async def append(self, event: ControlEvent) -> int:
        """Store the event, and return its offset in the topic `control`. Raises InDoubt if the event may be stored, and
        another BrokerError if it is not stored.
        """


class Changes(Protocol):
    """The topic `changes`, which holds updates and deletions of messages."""

    @property
    def name(self) -> str: ...

    async def end_offsets(self, partitions: list[int]) -> Mapping[int, int]:
        """Return the end offset of each of these partitions of `changes`. Raises LogUnavailable if Kafka does not
        answer.
        """

    def since(self, partition: int, at_ms: int, begin: int, end: int) -> AsyncIterator[tuple[int, int, MessageChange]]:
        """Yield the updates and deletions of messages that were recorded at the time `at_ms` or later. Each is a tuple
        (offset, time of its record in ms, event). Read the topic `changes` only from offset `begin` to before `end`.
        Changes from before `at_ms` may be yielded, too. Unreadable changes are left out. Raises LogUnavailable if Kafka
        does not answer.
        """

    async def at(self, partition: int, offset: int) -> MessageChange | None:
        """Return the update or deletion of a message that the topic `changes` has at this offset. Return None if the
        record is no such event, or was given up as lost. Raises LogDamaged if the record is unreadable or was deleted,
        and LogUnavailable if Kafka does not answer or does not have the record yet.
        """


class DeliveryLog(Protocol):
    """The Kafka topics that delivery reads and writes."""

    @property
    def requests(self) -> LogReader: ...

    @property
    def messages(self) -> Messages: ...

    @property
    def changes(self) -> Changes: ...

    @property
    def control(self) -> Control: ...

    @property
    def deliveries(self) -> Appender: ...

    @property
    def outstanding(self) -> Appender: ...


class Membership(Protocol):
    """A worker's membership in the consumer group, and a reader of new messages in the partitions that the
    worker owns.
    """

    async def start(self, gained: Gained, given_up: GivenUp) -> None:
        """Join the consumer group. Raises LogUnavailable if Kafka does not answer.

        `gained` is called when partitions are assigned to this member. Reading starts only when begin() is called.
        `given_up` is awaited before Kafka assigns the partitions to another member. If `given_up` takes longer than the
        session timeout, Kafka does not wait for its end.
        """

    async def stop(self) -> None:
        """Leave the consumer group, so that other members take the partitions over immediately."""

    def begin(self, offsets: Mapping[int, int]) -> None:
        """Read these partitions, each from the given offset on. Ignore a partition that is not assigned to this member.
        Continue to read other partitions as before.
        """

    async def read(self) -> Mapping[int, Iterable[Record]]:
        """Return new Kafka records by partition, after a short wait at most. Raises LogUnavailable if this member has
        had only errors from the consumer group for many seconds. The worker must then be started again.

        Raises LogDamaged if the next records can't be read. To skip these records, call `begin()` with a later offset.
        """

    async def confirm(self, offsets: Mapping[int, int], notes: Mapping[int, str] = ...) -> None:
        """Ask Kafka whether this member still owns its partitions: commit `offsets` for the consumer group, which Kafka
        accepts only from a current member. Raises NoMember if the member has lost its partitions. Raises LogUnavailable
        if Kafka does not answer, or if `offsets` is empty.

        `offsets` has an offset for each partition. The committed offsets also show operators the consumer group's lag.
        `notes` has a text for each partition. The partition's next owner gets this text from notes().
        """

    async def notes(self, partitions: Iterable[int]) -> dict[int, str]:
        """Return, by partition, the newest text that an owner of the partition has stored in Kafka. Partitions without
        a text are left out. Raises LogUnavailable if Kafka does not answer.
        """

    async def share(self, partitions: Collection[int]) -> Share:
        """Return three numbers: the fraction of all partitions that this worker owns, the number of workers that own
        partitions, and this worker's place among these workers (0 for the first). Raises LogUnavailable if Kafka does
        not answer, or during a rebalance.
        """


class CursorStore(Protocol):
    """The committed offsets of all listeners. Each listener has a consumer group of its own."""

    async def load(self, listener_ids: Iterable[str], partitions: Iterable[int]) -> dict[str, dict[int, Cursor]]:
        """Return the newest committed offset, with its metadata, for each listener and partition. Pairs without a
        commit are left out. Raises LogUnavailable if Kafka does not answer.
        """

    async def store(self, cursors: Mapping[str, Mapping[int, Cursor]]) -> None:
        """Commit the listeners' offsets, with one request for each listener. If some of the requests fail, raise
        NotStored after all of them have ended.
        """

    async def listeners(self) -> set[str]:
        """Return the ids of all listeners that have committed offsets, including deleted listeners and ended replays.
        Raises LogUnavailable if Kafka does not answer.
        """

    async def delete(self, listener_id: str) -> None:
        """Delete a listener's committed offsets. Raises LogUnavailable if Kafka does not answer."""


class ChangeFeed(Protocol):
    """A reader of new records in the topic `changes`."""

    async def stop(self) -> None: ...

    def follow(self, offsets: Mapping[int, int]) -> None:
        """Read only these partitions from now on, each from the given offset."""

    async def read(self) -> list[tuple[int, int, MessageChange]]:
        """Return new changes of messages as (partition, offset, event), after a short wait at most. If `follow()` was
        not called yet, wait until it is called.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """The interfaces through which one worker uses Kafka."""

    log: DeliveryLog
    membership: Membership
    cursors: CursorStore
    changes: ChangeFeed
