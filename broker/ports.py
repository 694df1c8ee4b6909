"""What the parts of Everput ask of each other, as narrow as each asker can do with.

For: the protocols; broker/kafka and projections implement them, broker/commands, broker/delivery and api use them.
Not for: any implementation."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from broker.core.directory import Directory
from broker.core.events import ControlEvent, Event


class DirectoryView(Protocol):
    """The directory as folded so far in this process."""

    @property
    def state(self) -> Directory: ...

    async def seen(self, offset: int, *, timeout_s: float = 2.0) -> None:
        """Wait until the event at this offset of `control` is folded (ViewBehind when it takes longer)."""

    async def caught_up(self, *, timeout_s: float = 2.0) -> None:
        """Wait until everything that is in `control` now is folded (ViewBehind, LogUnavailable)."""


class ControlLog(Protocol):
    """The `control` topic, as a writer sees it."""

    async def append(self, event: ControlEvent) -> int:
        """Its offset, once all in-sync replicas have it (LogUnavailable, InDoubt)."""

    async def end_offset(self) -> int:
        """One past the newest event (LogUnavailable)."""


# Given the partition of the batch it goes into: the record's key, value and queue id.
BuildRecord = Callable[[int], tuple[bytes, bytes, bytes]]


class MessageLog(Protocol):
    """The `messages` topic, as a writer sees it."""

    def append(self, build: BuildRecord, *, key: str | None = None) -> Awaitable[tuple[int, int]]:
        """(partition, offset), once all in-sync replicas have it (LogUnavailable, InDoubt).

        build: called once, when the batch and with it the partition is chosen. key: an ordering key, fixes the partition.
        """

    async def end_offsets(self) -> tuple[int, ...]:
        """By partition, one past the newest message (LogUnavailable)."""

    async def find(self, *, partition: int, at_ms: int, message_id: str) -> tuple[int, bytes] | None:
        """(offset, value) of a message, read from its partition and time; None when there is none (LogUnavailable)."""


class Cursor(Protocol):
    """Where one stream is. open: offsets below top that are not settled."""

    top: int
    open: Sequence[int]


Changed = Callable[[Event], None]
