"""What delivery asks of Kafka: four ports, as narrow as delivery can do with.

For: the protocols. `broker/kafka` implements them; each has a twin in memory (tests/memory_kafka.py), and the suites in
tests/contracts say, for both, what delivery relies on. Not for: any implementation, nor what the API asks of Kafka
(broker/ports.py).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from broker.core.cursor import Cursor
from broker.core.events import ControlEvent, MessageChange
from broker.core.flow import Share
from broker.ports import FetchResult, Record

KeyAndValue = tuple[bytes, bytes | None]
Gained = Callable[[Collection[int]], None]
GivenUp = Callable[[Collection[int]], Awaitable[None]]


class LogReader(Protocol):
    """A reader of topics' partitions, one request at a time."""

    async def offsets(self, topic: str, at_ms: Mapping[int, int]) -> dict[int, int]:
        """Return by partition the first offset at or after a time (EARLIEST, LATEST are times); -1: there is none."""

    async def read(
        self,
        topic: str,
        partition: int,
        offset: int,
        *,
        bytes_max: int = 1 << 20,
        worth: Callable[[bytes], bool] | None = None,
    ) -> FetchResult:
        """Fetch records from an offset on, at least one if there is any.
        Raises OffsetTooOld, LogDamaged or LogUnavailable.

        worth: whether any record in these bytes may be wanted. If not, all of them may be left out.
        """

    def walk(
        self, topic: str, partition: int, offset: int, end: int, *, pass_damaged: bool = False
    ) -> AsyncIterator[Record]:
        """Yield the records in [offset, end). Raises LogUnavailable. end: known to be there.

        pass_damaged: go on after what can't be read; else LogDamaged.
        """

    async def delete_before(self, topic: str, partition: int, offset: int) -> None:
        """Delete the partition's records before this offset. Raises LogUnavailable."""


class Appender(Protocol):
    """Appends to one topic."""

    @property
    def name(self) -> str: ...

    async def append(self, outcomes: MutableMapping[int, list[KeyAndValue]]) -> None:
        """Write (key, value) records by partition, and remove written ones from `outcomes`. No value: a tombstone.

        LogUnavailable: the records that are left in `outcomes` may be written or not.
        """

    async def append_one(self, partition: int, key: bytes, value: bytes) -> int:
        """Write a record and return its offset, -1 where it is not known. After LogUnavailable it may be written."""


class Messages(Protocol):
    """The topic `messages`."""

    @property
    def name(self) -> str: ...

    async def end_offsets(self) -> Sequence[int]:
        """Return the end offset of each partition. Raises LogUnavailable."""


class Control(Protocol):
    """The topic `control`."""

    async def append(self, event: ControlEvent) -> int:
        """Return the event's offset, once it is stored. Raises LogUnavailable or InDoubt."""


class Changes(Protocol):
    """The topic `changes`, read back."""

    @property
    def name(self) -> str: ...

    async def end_offsets(self, partitions: list[int]) -> Mapping[int, int]:
        """Return the end offset of each partition. Raises LogUnavailable."""

    def since(self, partition: int, at_ms: int, begin: int, end: int) -> AsyncIterator[tuple[int, int, MessageChange]]:
        """Yield (offset, recorded at, event) of the changes since a time, in [begin, end). Raises LogUnavailable."""

    async def at(self, partition: int, offset: int) -> MessageChange | None:
        """Return the change at this offset; None when it no longer exists. Raises LogUnavailable."""


class DeliveryLog(Protocol):
    """The log, as delivery reads and writes it."""

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
    """A member of the workers' group, and the newest end of `messages` in the partitions that it owns."""

    async def start(self, gained: Gained, given_up: GivenUp) -> None:
        """Join the group. Raises LogUnavailable.

        gained: called when the group has agreed; nothing is read before begin().
        given_up: awaited before another member may own these partitions.
        """

    async def stop(self) -> None:
        """Leave the group, so that other members take the partitions over at once."""

    def begin(self, offsets: Mapping[int, int]) -> None:
        """Read these partitions from these offsets on."""

    async def read(self) -> Mapping[int, Iterable[Record]]:
        """Return new records by partition, after a short wait at most.
        Raises LogUnavailable if reading has failed for long.

        LogDamaged: the next records of a partition can't be read; call begin() after them.
        """

    async def confirm(self, offsets: Mapping[int, int]) -> None:
        """Ask whether the member still owns its partitions.
        Raises NoMember if it does not, LogUnavailable if Kafka can't tell.

        offsets: where it reads, for people who inspect the group.
        """

    async def share(self, partitions: Collection[int]) -> Share:
        """Return the share of the member that owns these partitions (LogUnavailable; also during a rebalance)."""


class CursorStore(Protocol):
    """The cursors of all listeners."""

    async def load(self, listener_ids: Iterable[str], partitions: Iterable[int]) -> dict[str, dict[int, Cursor]]:
        """Return by listener and partition the cursor stored last; nothing where none was. Raises LogUnavailable."""

    async def store(self, cursors: Mapping[str, Mapping[int, Cursor]]) -> None:
        """Store cursors, those of a listener together. NotStored is raised when all requests have ended."""

    async def listeners(self) -> set[str]:
        """Return the ids of all listeners that have cursors, including ended ones. Raises LogUnavailable."""

    async def delete(self, listener_id: str) -> None:
        """Forget a listener's cursors. Raises LogUnavailable."""


class ChangeFeed(Protocol):
    """The newest end of `changes`."""

    async def start(self) -> None:
        """Connect. Raises LogUnavailable."""

    async def stop(self) -> None: ...

    def follow(self, offsets: Mapping[int, int]) -> None:
        """Follow these partitions, from these offsets on, and no others."""

    async def read(self) -> list[tuple[int, int, MessageChange]]:
        """Return (partition, offset, event) of new changes, after a short wait at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """All that one worker asks of Kafka."""

    log: DeliveryLog
    membership: Membership
    cursors: CursorStore
    changes: ChangeFeed
