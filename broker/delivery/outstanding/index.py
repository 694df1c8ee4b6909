"""The index of the topic `outstanding`, in a private temporary SQLite database, so that memory stays bounded.

For: finding the row of one delivery, a listener's due deliveries, and the first delivery of an ordering key; and cheap
counts. SQLite caches up to `index_cache_kib` of it in memory. The temporary file disappears with the process, because
everything can be read again from the topic `outstanding` (docs/decisions/0174).
Not for: which delivery may be attempted when (schedule.py).
"""

# ruff: noqa: S608 - The SQL is made of constants only.

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from operator import attrgetter
from typing import Any, Final

from broker.core.ids import parse_message_id
from broker.core.outstanding_sum import KeySum
from broker.delivery.outstanding.entry import UNREAD, Key, KeyQueue, OutstandingEntry
from broker.delivery.tuning import TUNED

BEGIN: Final = (-1, -1)
LAST_OFFSET: Final = (1 << 63) - 1  # the highest offset that a Kafka partition can have

# The column `queued_ms` holds the time at which the worker must examine the delivery next.
# `queued_ms` is null if the delivery is parked, its dispatcher has it, or an earlier one of its key must go first.
# The column `waits` is true if the delivery is counted as waiting: it is not parked, and its `deliver_at` has come.
# Each of the conditions _ATTEMPTED, _HAS_KEY, _WAITING and _SCHEDULED selects the rows of a partial index in SQLite.
_ATTEMPTED: Final = "(number > 0 OR due_ms IS NULL)"
_HAS_KEY: Final = "ordering_key IS NOT NULL AND due_ms IS NOT NULL"
_WAITING: Final = "waits"
_SCHEDULED: Final = "due_ms IS NOT NULL AND NOT waits"
# One step counts at most this many deliveries whose `deliver_at` has come, which takes some milliseconds.
_COUNTED_AT_ONCE: Final = 500
_SCHEMA: Final = f"""
PRAGMA journal_mode = OFF;
PRAGMA synchronous = OFF;
CREATE TABLE entries (
  id INTEGER PRIMARY KEY, partition INTEGER, listener INTEGER, message TEXT, message_offset INTEGER, ordering_key TEXT,
  record_offset INTEGER, number INTEGER, redrives INTEGER, forgiven INTEGER, since_ms INTEGER, first_at_ms INTEGER,
  due_ms INTEGER, queued_ms INTEGER, found INTEGER, record BLOB, bare INTEGER,
  undo_forgiven INTEGER, undo_since_ms INTEGER, undo_due_ms INTEGER, waits INTEGER
);
CREATE UNIQUE INDEX by_message ON entries (partition, message, listener);
CREATE INDEX by_listener ON entries (listener, queued_ms);
CREATE INDEX by_redrives ON entries (listener, redrives) WHERE {_ATTEMPTED};
CREATE INDEX by_undo ON entries (listener) WHERE undo_forgiven IS NOT NULL;
CREATE INDEX by_age ON entries (partition, listener, message) WHERE {_WAITING};
CREATE INDEX by_schedule ON entries (partition, listener, due_ms) WHERE {_SCHEDULED};
CREATE INDEX by_bare ON entries (partition, message) WHERE bare;
CREATE INDEX by_key_queue ON entries (partition, listener, ordering_key, message_offset) WHERE {_HAS_KEY};
"""
_KEY_QUEUE: Final = f"partition = ? AND listener = ? AND ordering_key = ? AND {_HAS_KEY}"
_STANDS_FOR_RANGE: Final = "message >= 'damaged-' AND message < 'damaged.'"
_DAMAGED: Final = f"partition = ? AND {_STANDS_FOR_RANGE}"
_FIELDS: Final = [one.name for one in fields(OutstandingEntry) if one.init]  # in the order of the columns
_values: Final = attrgetter(*_FIELDS)
_INSERT: Final = f"INSERT OR IGNORE INTO entries VALUES ({', '.join('?' * len(_FIELDS))})"


@dataclass(slots=True)
class Count:
    """The counts of one listener's deliveries in a worker's index of the topic `outstanding`."""

    rows: int = 0
    due: dict[int, int] = field(default_factory=dict)  # number of deliveries that are not parked, by partition
    # The number of waiting messages, by partition. Parked messages, and those with a later `deliver_at`, do not count.
    waiting: dict[int, int] = field(default_factory=dict)
    retrying: dict[int, int] = field(default_factory=dict)  # attempted and not parked, by partition
    parked: dict[int, int] = field(default_factory=dict)  # parked deliveries, by partition
    queued_keys: int = 0  # unparked deliveries with an ordering key


class OutstandingIndex:
    """The index of the deliveries in the topic `outstanding` that one worker owns, in a temporary SQLite database."""

    def __init__(self, cache_kib: int = TUNED.index_cache_kib) -> None:
        self._cache_kib = cache_kib
        self.counts: dict[str, Count] = {}  # by listener id
        self.queued_keys = 0
        # By listener id: the partitions whose deliveries have changed since the last call of take_changed().
        self.changed: dict[str, set[int]] = {}
        # By partition: how many deliveries the index has, and a hash of the keys of their records in `outstanding`.
        self.sums: defaultdict[int, KeySum] = defaultdict(KeySum)
        self._rows = 0
        self._last_id = 0
        self._opened: sqlite3.Connection | None = None
        self._numbers: dict[str, int] = {}
        self._listeners: list[str] = []

    def __len__(self) -> int:
        return self._rows

    def close(self) -> None:
        """Close the index and delete its file."""
        if self._opened is not None:
            self._opened.close()
            self._opened = None
        self.counts.clear()
        self.sums.clear()
        self.queued_keys = self._rows = 0

    # One delivery

    def find(self, partition: int, listener_id: str, message_id: str) -> OutstandingEntry | None:
        if listener_id not in self.counts:
            return None
        which = (partition, message_id, self._numbers[listener_id])
        return self._one("SELECT * FROM entries WHERE partition = ? AND message = ? AND listener = ?", which)

    def get(self, row_id: int) -> OutstandingEntry | None:
        return self._one("SELECT * FROM entries WHERE id = ?", (row_id,))

    def write(self, partition: int, rows: Mapping[Key, OutstandingEntry | None], at_ms: int) -> list[OutstandingEntry]:
        """Write these rows to the SQLite index. `rows` maps the key of a delivery (listener id, message id) to its new
        row, which gets a new id. If there is None instead of a new row, the delivery's row is removed. Return the
        former rows that were replaced or removed. `at_ms` is the time now.
        """
        written = [entry for entry in rows.values() if entry is not None]
        for entry in written:
            entry.waits = entry.waits_at(at_ms)
        before: list[OutstandingEntry] = []
        if not written and not self._rows:
            return before
        self._database.execute("BEGIN")
        if len(written) < len(rows):
            before = self._take_out(partition, [key for key, entry in rows.items() if entry is None])
        if not self._insert(written):
            before += self._take_out(partition, [(entry.listener_id, entry.message_id) for entry in written])
            self._insert(written)
        self._database.execute("COMMIT")
        for entry in written:
            self._count(entry, 1)
        return before

    def _insert(self, written: Sequence[OutstandingEntry]) -> bool:
        """Insert the rows into the SQLite index, and return True. If one of the rows exists already, which is rare,
        insert none of them and return False.
        """
        if not written:
            return True
        first_id = self._last_id + 1
        done = self._database.executemany(_INSERT, map(self._row, written)).rowcount == len(written)
        if not done:
            self._database.execute("DELETE FROM entries WHERE id >= ?", (first_id,))
        return done

    def _take_out(self, partition: int, keys: Iterable[Key]) -> list[OutstandingEntry]:
        found = [self.find(partition, *key) for key in keys]
        before = [entry for entry in found if entry is not None]
        self._database.executemany("DELETE FROM entries WHERE id = ?", [(entry.id,) for entry in before])
        for entry in before:
            self._count(entry, -1)
        return before

    def remove(self, entry: OutstandingEntry) -> bool:
        """Remove a row of the SQLite index. Return False if the row was removed or replaced before, or if the index is
        closed.
        """
        if not self._rows:
            return False
        entry.waits = self._is_counted(entry)
        gone = self._database.execute("DELETE FROM entries WHERE id = ?", (entry.id,)).rowcount > 0
        if gone:
            self._count(entry, -1)
        return gone

    def queue(self, entry: OutstandingEntry, queued_ms: int | None) -> None:
        """Set the time at which the worker examines this delivery next. If the time is None, the worker does not
        examine the delivery until a later call sets a time.
        """
        entry.queued_ms = queued_ms
        self._database.execute("UPDATE entries SET queued_ms = ? WHERE id = ?", (queued_ms, entry.id))

    def redriven(self, entry: OutstandingEntry, at_ms: int, *, was_parked: bool) -> None:
        """Store in a delivery's SQLite row what a redrive (a request to retry now), its undoing or mended damage has
        changed, such as the due time. `was_parked` says whether the delivery was parked before. `at_ms` is the time
        now.
        """
        waited, entry.waits = self._is_counted(entry), entry.waits_at(at_ms)
        self._database.execute(
            "UPDATE entries SET redrives = ?, forgiven = ?, since_ms = ?, due_ms = ?, queued_ms = ?,"
            " undo_forgiven = ?, undo_since_ms = ?, undo_due_ms = ?, waits = ? WHERE id = ?",
            (
                *(entry.redrives, entry.forgiven, entry.since_ms, entry.due_ms, entry.queued_ms),
                *(entry.undo_forgiven, entry.undo_since_ms, entry.undo_due_ms, entry.waits, entry.id),
            ),
        )
        if entry.waits != waited:
            _add(self.counts[entry.listener_id].waiting, entry.partition, entry.waits - waited)
        if was_parked != (entry.due_ms is None):
            by = 1 if was_parked else -1
            _add(self.counts[entry.listener_id].parked, entry.partition, -by)
            self._count_due(entry, by)
            self.changed.setdefault(entry.listener_id, set()).add(entry.partition)

    # Rows of a listener

    def due(self, listener_id: str, at_ms: int, *, after: tuple[int, int], limit: int) -> list[OutstandingEntry]:
        """Return at most `limit` SQLite rows of the listener's deliveries whose `queued_ms` is not later than `at_ms`,
        the earliest first. `after` is the (queued_ms, id) of the last row that the previous call returned. It is BEGIN
        in the first call.
        """
        return self._some(
            "SELECT * FROM entries WHERE listener = ? AND queued_ms <= ? AND (queued_ms, id) > (?, ?)"
            " ORDER BY queued_ms, id LIMIT ?",
            (self._numbers.get(listener_id), at_ms, *after, limit),
        )

    def next_ms(self, listener_id: str) -> int | None:
        """Return the earliest time at which the worker must examine a delivery of this listener. Return None if there
        is no such time.
        """
        sql = "SELECT queued_ms FROM entries WHERE listener = ? AND queued_ms > -1 ORDER BY queued_ms LIMIT 1"
        return next((row[0] for row in self._rows_of(sql, (self._numbers.get(listener_id),))), None)

    def attempted_before(self, listener_id: str, redrive: int, *, limit: int) -> list[OutstandingEntry]:
        """Return at most `limit` deliveries of the listener to which the redrive (request to retry now) number
        `redrive` was not applied yet. Leave out deliveries that wait for their first attempt.
        """
        return self._some(
            f"SELECT * FROM entries WHERE listener = ? AND redrives < ? AND {_ATTEMPTED} LIMIT ?",
            (self._numbers.get(listener_id), redrive, limit),
        )

    def redriven_until(self, listener_id: str, redrive: int, *, after_id: int, limit: int) -> list[OutstandingEntry]:
        """Return deliveries of the listener that a redrive (request to retry now) has made due, and that were not
        attempted since. Only redrives with a number up to `redrive` are considered. Return at most `limit` deliveries
        with row ids above `after_id`, sorted by row id.
        """
        return self._some(
            "SELECT * FROM entries WHERE listener = ? AND undo_forgiven IS NOT NULL AND redrives <= ? AND id > ?"
            " ORDER BY id LIMIT ?",
            (self._numbers.get(listener_id), redrive, after_id, limit),
        )

    def of_listener(self, listener_id: str, *, limit: int) -> list[OutstandingEntry]:
        return self._some("SELECT * FROM entries WHERE listener = ? LIMIT ?", (self._numbers.get(listener_id), limit))

    # Rows of an ordering key

    def offsets(self, key_queue: KeyQueue, limit: int) -> list[tuple[int, int]]:
        """Return (row id, message offset) of the first `limit` deliveries of an ordering key to one listener, in the
        order of their messages. Leave out parked deliveries.
        """
        sql = f"SELECT id, message_offset FROM entries WHERE {_KEY_QUEUE} ORDER BY message_offset LIMIT ?"
        return self._rows_of(sql, (*self._of(key_queue), limit))

    def begins_before(self, key_queue: KeyQueue, offset: int) -> bool:
        """Return whether the index has an earlier delivery of this ordering key to the listener: one that is not
        parked, and whose message is below this offset.
        """
        count = self.counts.get(key_queue[0])
        if count is None or not count.queued_keys:
            return False
        sql = f"SELECT 1 FROM entries WHERE {_KEY_QUEUE} AND message_offset < ? LIMIT 1"
        return bool(self._rows_of(sql, (*self._of(key_queue), offset)))

    # Rows of a partition

    def of_partition(self, partition: int, *, limit: int) -> list[OutstandingEntry]:
        return self._some("SELECT * FROM entries WHERE partition = ? LIMIT ?", (partition, limit))

    def has_message(self, partition: int, message_id: str) -> bool:
        """Return whether this partition of the topic `outstanding` has a delivery of this message to at least one
        listener.
        """
        sql = "SELECT 1 FROM entries WHERE partition = ? AND message = ? LIMIT 1"
        return bool(self._rows) and bool(self._rows_of(sql, (partition, message_id)))

    @property
    def newest_id(self) -> int:
        """The id of the row that was inserted last, even if it was removed since; 0 if no row was inserted yet."""
        return self._last_id

    def unread(self, partition: int, first: int, last: int, *, after_id: int, limit: int) -> list[OutstandingEntry]:
        """Return the rows of deliveries that are parked because their message, its update or earlier results could not
        be read. Only messages with offsets from `first` to `last` are considered. One row can stand for a whole range
        of messages: this row is returned if its range begins at or before `last`, even if the range ends before
        `first`. Return at most `limit` rows with ids above `after_id`, sorted by id.
        """
        sql = (
            "SELECT * FROM entries WHERE partition = ? AND bare = ? AND due_ms IS NULL AND message_offset <= ? AND"
            f" (message_offset >= ? OR {_STANDS_FOR_RANGE}) AND id > ? ORDER BY id LIMIT ?"
        )
        return self._some(sql, (partition, UNREAD, last, first, after_id, limit))

    def damaged(self, partition: int) -> int:
        """Return how many rows of a partition stand for ranges of unreadable messages, and not for one delivery."""
        sql = f"SELECT COUNT(*) FROM entries WHERE {_DAMAGED}"
        return next((int(row[0]) for row in self._rows_of(sql, (partition,))), 0)

    def oldest_put_ms(self, partition: int) -> int | None:
        """Return the put time of the oldest message with a delivery in this partition of the topic `outstanding`.
        Return None if there is no delivery. Return 0 if a row stands for a range of unreadable messages, because their
        put times are unknown.
        """
        if self._rows_of(f"SELECT 1 FROM entries WHERE {_DAMAGED} LIMIT 1", (partition,)):
            return 0
        return self._put_ms("SELECT message FROM entries WHERE partition = ? ORDER BY message LIMIT 1", (partition,))

    def oldest_bare_put_ms(self, partition: int) -> int | None:
        """Return the put time of the oldest message whose delivery is stored in this partition of the topic
        `outstanding` without a copy of the message's data. Return None if there is no such message. Return 0 if a row
        stands for a range of unreadable messages, because their put times are unknown.
        """
        if self._rows_of(f"SELECT 1 FROM entries WHERE {_DAMAGED} LIMIT 1", (partition,)):
            return 0
        sql = "SELECT message FROM entries WHERE partition = ? AND bare ORDER BY message LIMIT 1"
        return self._put_ms(sql, (partition,))

    def waiting(self, partition: int, listener_id: str, at_ms: int) -> tuple[int, int | None]:
        """Return how many messages of a partition wait for this listener at the time `at_ms`, and when the oldest of
        them was put. Parked deliveries, and messages whose `deliver_at` is later, do not wait for the listener.

        A call counts at most `_COUNTED_AT_ONCE` messages whose `deliver_at` has come since the previous call. Later
        calls count the rest.
        """
        count = self.counts.get(listener_id)
        if count is None or not count.due.get(partition):
            return 0, None
        place = partition, self._numbers[listener_id]
        if count.due[partition] > count.waiting.get(partition, 0):
            self._count_due_at(count, listener_id, place, at_ms)
        number = count.waiting.get(partition, 0)
        sql = (
            f"SELECT message FROM entries WHERE partition = ? AND listener = ? AND {_WAITING} ORDER BY message LIMIT 1"
        )
        return number, self._put_ms(sql, place) if number else None

    def _count_due_at(self, count: Count, listener_id: str, place: tuple[int, int], at_ms: int) -> None:
        """Count at most `_COUNTED_AT_ONCE` more deliveries as waiting, because their `deliver_at` has come."""
        more = self._database.execute(
            "UPDATE entries SET waits = 1 WHERE id IN (SELECT id FROM entries WHERE partition = ? AND listener = ?"
            f" AND due_ms <= ? AND {_SCHEDULED} LIMIT ?)",
            (*place, at_ms, _COUNTED_AT_ONCE),
        ).rowcount
        if more:
            _add(count.waiting, place[0], more)
            self.changed.setdefault(listener_id, set()).add(place[0])

    def _is_counted(self, entry: OutstandingEntry) -> bool:
        """Return whether the index counts the delivery as waiting now. If `entry.waits` is false, ask the database: the
        `deliver_at` may have come, and the delivery been counted, after `entry` was read.
        """
        return entry.waits or any(
            row[0] for row in self._rows_of("SELECT waits FROM entries WHERE id = ?", (entry.id,))
        )

    def _put_ms(self, sql: str, values: Sequence[Any]) -> int | None:
        places = (parse_message_id(row[0]) for row in self._rows_of(sql, values))
        return next((place[0] for place in places if place is not None), None)

    # Rows

    @property
    def _database(self) -> sqlite3.Connection:
        if self._opened is None:
            self._opened = sqlite3.connect("", isolation_level=None)
            self._opened.executescript(_SCHEMA)
            self._opened.execute(f"PRAGMA cache_size = -{self._cache_kib}")
        return self._opened

    def _one(self, sql: str, values: Sequence[Any]) -> OutstandingEntry | None:
        return next(iter(self._some(sql, values)), None)

    def _some(self, sql: str, values: Sequence[Any]) -> list[OutstandingEntry]:
        return [
            OutstandingEntry(row_id, partition, self._listeners[listener], *more)
            for row_id, partition, listener, *more in self._rows_of(sql, values)
        ]

    def _rows_of(self, sql: str, values: Sequence[Any]) -> list[Any]:
        return self._database.execute(sql, values).fetchall() if self._rows else []

    def _of(self, key_queue: KeyQueue) -> tuple[int, int, str]:
        return key_queue[1], self._numbers.get(key_queue[0], -1), key_queue[2]

    def _row(self, entry: OutstandingEntry) -> tuple[Any, ...]:
        """Give the delivery a new row id, and return its values in the order of the table's columns."""
        number = self._numbers.get(entry.listener_id)
        if number is None:
            number = self._numbers[entry.listener_id] = len(self._listeners)
            self._listeners.append(entry.listener_id)
        self._last_id += 1
        entry.id = self._last_id
        entry_id, partition, _, *more = _values(entry)
        return entry_id, partition, number, *more

    def _count(self, entry: OutstandingEntry, by: int) -> None:
        count = self.counts.get(entry.listener_id)
        if count is None:
            count = self.counts[entry.listener_id] = Count()
        self._rows += by
        count.rows += by
        self.sums[entry.partition].add(entry.key, by)
        if entry.waits:
            _add(count.waiting, entry.partition, by)
        if entry.due_ms is not None:
            self._count_due(entry, by)
        else:
            _add(count.parked, entry.partition, by)
        self.changed.setdefault(entry.listener_id, set()).add(entry.partition)
        if not count.rows:
            del self.counts[entry.listener_id]

    def _count_due(self, entry: OutstandingEntry, by: int) -> None:
        count = self.counts[entry.listener_id]
        _add(count.due, entry.partition, by)
        if entry.number:
            _add(count.retrying, entry.partition, by)
        if entry.ordering_key is not None:
            count.queued_keys += by
            self.queued_keys += by


def _add(counts: dict[int, int], partition: int, by: int) -> None:
    counts[partition] = counts.get(partition, 0) + by
