"""Follows the log for clients that wait for changes: which queues, listeners and messages of an organization an event
concerned.

For: one reader of the log's end in each process, shared by all waiting clients, and the changes of the last minutes.
Not for: the events themselves (reader.py), who may see a change and the stream that carries it (api/watch.py).

Only record batches with the id of an organization that has a client are decoded. If many organizations have clients,
all batches are decoded. Each check of the log reads about READ_BYTES of each partition. If more has arrived, the check
skips the rest, and every client learns that the changes are unknown, so that it reads everything again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections import Counter, deque
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Final, NamedTuple

import msgspec

from broker.audit.records import Records
from broker.errors import LogDamaged, LogUnavailable
from broker.kafka.topics import Topic
from broker.ports import LATEST, DirectoryView, OffsetTooOld, Record

log = logging.getLogger(__name__)

LOOK_S: Final = 1.0
READ_BYTES: Final = 64 << 10
# The results of the newest 300 checks of the log are kept. If a client's position is older, the changes are unknown.
LOOKS_MAX: Final = 300
# If clients of over 16 organizations wait, decode every batch: to search its bytes for all ids would take longer.
SEARCHED_MAX: Final = 16
# If a check of the log finds over 500 changes of an organization, its clients only learn that something has changed.
CHANGES_MAX: Final = 500


class Change(NamedTuple):
    """A change in the log: the kind of thing that changed, and the ids of its queue and its listener, if known. The
    kind is, for example, `queue`, `listener`, `message`, `delivery` or `replay`. Usually, it is the first word of the
    event's type.
    """

    kind: str
    queue_id: str | None = None
    listener_id: str | None = None


class Changes(NamedTuple):
    """The changes in the log since a client's position, and the client's new position. If it is unknown what has
    changed, `changes` is None. The client must then assume that everything has changed.
    """

    position: str
    changes: frozenset[Change] | None


class _Peek(msgspec.Struct):
    """The fields that the change feed decodes from an event. They say which queue, listener or replay of which
    organization has changed.
    """

    type: str = ""
    organization_id: str = ""
    queue_id: str | None = None
    listener_id: str | None = None
    replay_id: str | None = None


class _Look(NamedTuple):
    # The changes by organization id. If an organization had more than CHANGES_MAX changes, the value is None.
    changes: Mapping[str, frozenset[Change] | None]
    # True if some records were skipped. Then it is unknown for every organization what has changed.
    unread: bool


_peek = msgspec.json.Decoder(_Peek)
_NOTHING: Final[frozenset[Change]] = frozenset()
_KINDS: Final = {"deliveries": "delivery", "answers": "delivery", "change": "message"}


class LogFeed:
    """The changes in the log, for all organizations that have a client waiting in this process.

    `table` has the topics that are read. Its keys are the names of the topics without the installation's prefix. While
    no client waits, no topic is read.
    """

    def __init__(
        self, records: Records, table: Mapping[str, Topic], view: DirectoryView, *, look_s: float = LOOK_S
    ) -> None:
        self._records = records
        self._table = table
        self._view = view
        self._look_s = look_s
        self._waiting: Counter[str] = Counter()  # clients by organization
        self._begun: asyncio.Task[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._positions: dict[tuple[str, int], int] = {}
        self._looks: deque[_Look] = deque(maxlen=LOOKS_MAX)
        self._epoch = secrets.token_hex(6)
        self._number = 0  # The number of completed checks of the log since `_epoch` was set. A position has both.
        self._looking = False  # True while the log is read
        # By organization id: a number n. All checks of the log after the first n include the organization's records.
        self._known_since: dict[str, int] = {}
        self._looked = asyncio.Event()
        self._again: dict[str, frozenset[Change]] = {}
        self.stopped = False

    @contextlib.asynccontextmanager
    async def waiting(self, organization_id: str) -> AsyncIterator[None]:
        """Collect the organization's changes from the log while the `with` block runs, so that since() can return them.
        Raises LogUnavailable if Kafka does not answer.
        """
        known = self._waiting[organization_id] > 0
        self._waiting[organization_id] += 1
        try:
            if not known:
                # If a check of the log runs now, it may have skipped this organization's records. Only later checks
                # count.
                self._known_since[organization_id] = self._number + self._looking
            if self._begun is None:
                self._begun = asyncio.create_task(self._begin())
            await asyncio.shield(self._begun)
            yield
        finally:
            self._waiting[organization_id] -= 1
            if not self._waiting[organization_id]:
                del self._waiting[organization_id], self._known_since[organization_id]
            if not self._waiting:
                self._end()

    def since(self, organization_id: str, position: str | None) -> Changes:
        """Return an organization's changes since `position`, which an earlier call has returned, and the new position.

        If it is unknown what has changed, the changes are None. This is so if the position is missing, too old or from
        another process, or if no client of the organization was waiting for some time since then. It is also so if a
        check of the log skipped records, or found more than CHANGES_MAX changes of the organization.
        """
        now = f"{self._epoch}-{self._number}"
        epoch, _, number = (position or "").partition("-")
        if epoch != self._epoch or not (number.isascii() and number.isdigit() and len(number) < 16):
            return Changes(now, None)
        behind = self._number - int(number)
        if (
            not 0
            <= behind
            <= min(len(self._looks), self._number - self._known_since.get(organization_id, self._number))
        ):
            return Changes(now, None)
        found: set[Change] = set()
        for look in list(self._looks)[len(self._looks) - behind :]:
            changes = look.changes.get(organization_id, _NOTHING)
            if look.unread or changes is None:
                return Changes(now, None)
            found |= changes
        return Changes(now, frozenset(found))

    async def looked(self, timeout_s: float) -> None:
        """Wait until the next check of the log for changes has ended, or until `timeout_s` seconds have passed. After
        stop(), return at once.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._looked.wait()

    def stop(self) -> None:
        """End all streams of changes, because the process ends."""
        self.stopped = True
        self._looked.set()

    async def _begin(self) -> None:
        try:
            self._positions = await self._ends()
        except BaseException:
            # If another client has started a new task to read the log's end offsets meanwhile, keep that task.
            if self._begun is asyncio.current_task():
                self._begun = None
            raise
        if self._waiting:
            self._task = asyncio.create_task(self._run(), name="change feed")

    def _end(self) -> None:
        for task in (self._begun, self._task):
            if task is not None:
                task.cancel()
        self._begun = self._task = None
        # While no client waits, the log is not read, so changes in this time will be unknown to later clients.
        # A position begins with `_epoch`. For a position with an old epoch, since() says that the changes are unknown.
        self._epoch, self._number = secrets.token_hex(6), 0
        self._looks.clear()
        self._again = {}

    async def _ends(self) -> dict[tuple[str, int], int]:
        """Ask Kafka for the end offsets of all partitions that this feed reads, and return them."""
        names = list(self._table)
        found = await asyncio.gather(
            *(
                self._records.offsets(topic.name, dict.fromkeys(range(topic.partitions), LATEST))
                for topic in self._table.values()
            )
        )
        return {(name, number): end for name, ends in zip(names, found, strict=True) for number, end in ends.items()}

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._look_s)
            self._looking = True
            try:
                await self._look()
            except LogUnavailable:
                # After a failed check of the log, the next check begins at the same positions, so no change is missed.
                continue
            except Exception:
                log.exception("changes.look_failed")
                self._positions = {}
                self._add(_Look({}, unread=True))
            finally:
                self._looking = False

    async def _look(self) -> None:
        ends = await self._ends()
        moved = [(lane, at) for lane, end in ends.items() if (at := self._positions.get(lane, end)) < end]
        reads = await asyncio.gather(*(self._read(*lane, at) for lane, at in moved))
        # If an unexpected error has emptied `_positions`, the events since the last successful check are not read.
        # If `_positions` is empty, tell clients that the changes are unknown. The next check begins at the log's end.
        unread = not self._positions
        found: dict[str, set[Change]] = {}
        for (lane, _), read in zip(moved, reads, strict=True):
            unread = unread or read is None or read[1] < ends[lane]
            for organization_id, change in [] if read is None else self._changes(read[0]):
                found.setdefault(organization_id, set()).add(change)
        self._positions = ends
        # A worker writes a delivery's event first, and commits the offset later. Until then, clients get the old state.
        # Report each changed delivery now and in the next check, because a client that reads now may get the old state.
        again, self._again = (
            self._again,
            {one: frozenset(change for change in some if change.kind == "delivery") for one, some in found.items()},
        )
        for organization_id, changes in again.items():
            found.setdefault(organization_id, set()).update(changes)
        told = {one: frozenset(some) if len(some) <= CHANGES_MAX else None for one, some in found.items()}
        self._add(_Look(told, unread))

    def _add(self, look: _Look) -> None:
        self._looks.append(look)
        self._number += 1
        self._looked.set()
        if not self.stopped:
            self._looked = asyncio.Event()

    async def _read(self, topic: str, partition: int, offset: int) -> tuple[Iterable[Record], int] | None:
        """Return the next records of a partition, and the offset at which the next read begins. Records of
        organizations without a waiting client may be left out. Return None if the next records are damaged or deleted.
        """
        ids = [one.encode() for one in self._waiting]
        searched = topic != "control" and len(ids) <= SEARCHED_MAX
        worth = (lambda values: any(one in values for one in ids)) if searched else None
        name = self._table[topic].name
        try:
            fetched = await self._records.read(name, partition, offset, bytes_max=READ_BYTES, worth=worth)
        except (LogDamaged, OffsetTooOld):
            return None
        return fetched.records, fetched.next_offset

    def _changes(self, records: Iterable[Record]) -> Iterable[tuple[str, Change]]:
        for record in records:
            try:
                event = _peek.decode(record.value or b"")
            except msgspec.MsgspecError:
                continue
            if event.organization_id in self._waiting:
                yield event.organization_id, self._change(event)

    def _change(self, event: _Peek) -> Change:
        """Return the change that clients get for an event of the log. If the event is about the deliveries of a replay,
        this is a change of the replay.
        """
        state = self._view.state
        noun = event.type.partition(".")[0]
        kind, listener_id = _KINDS.get(noun, noun), event.listener_id
        replay = state.replays.find(event.organization_id, event.replay_id or listener_id or "")
        if replay is not None:
            kind, listener_id = "replay", replay.listener_id
        listener = state.listeners.get(listener_id or "")
        return Change(kind, event.queue_id or (None if listener is None else listener.queue_id), listener_id)
