"""What is owed, in a private temporary database, so that memory stays bounded however much it is.

For: finding the row of a delivery, those of a listener that are due, the first of a line; and counts that cost nothing.
SQLite holds a few MiB of it in memory and the rest in a temporary file, which is gone with the process: what is here is
found again in the topic `outstanding` (docs/decisions/0174). Not for: who may go when (schedule.py).
"""

# ruff: noqa: S608 - what statements are put together from are constants

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from broker.core.ids import parse_message_id
from broker.delivery.outstanding.entry import UNREAD, Key, Line, Owed
from broker.delivery.tuning import TUNED

BEGIN: Final = (-1, -1)

# queued_ms: when the row is examined next; null while it is parked, behind others of its ordering key, or taken.
# Scheduled rows and rows without an ordering key are left out of the indices that they do not need.
_ATTEMPTED: Final = "(number > 0 OR due_ms IS NULL)"
_IN_LINE: Final = "ordering_key IS NOT NULL AND due_ms IS NOT NULL"
_WAITING: Final = "due_ms IS NOT NULL AND (number > 0 OR ordering_key IS NOT NULL)"
_SCHEMA: Final = f"""
PRAGMA journal_mode = OFF;
PRAGMA synchronous = OFF;
CREATE TABLE owed (
  id INTEGER PRIMARY KEY, partition INTEGER, message TEXT, listener INTEGER, place INTEGER, ordering_key TEXT,
  offset INTEGER, number INTEGER, redrives INTEGER, forgiven INTEGER, since_ms INTEGER, first_at_ms INTEGER,
  due_ms INTEGER, queued_ms INTEGER, found INTEGER, record BLOB, bare INTEGER
);
CREATE UNIQUE INDEX by_message ON owed (partition, message, listener);
CREATE INDEX by_listener ON owed (listener, queued_ms);
CREATE INDEX by_redrives ON owed (listener, redrives) WHERE {_ATTEMPTED};
CREATE INDEX by_age ON owed (partition, listener, message) WHERE {_WAITING};
CREATE INDEX by_bare ON owed (partition, message) WHERE bare;
CREATE INDEX by_line ON owed (partition, listener, ordering_key, place) WHERE {_IN_LINE};
"""
_LINE: Final = f"partition = ? AND listener = ? AND ordering_key = ? AND {_IN_LINE}"
_DAMAGED: Final = "partition = ? AND message >= 'damaged-' AND message < 'damaged.'"
_INSERT: Final = f"INSERT OR IGNORE INTO owed VALUES ({', '.join('?' * 17)})"


@dataclass(slots=True)
class Count:
    """The counts of one listener's entries.

    due: of each partition, those that are not parked.
    in_line: those of them with an ordering key.
    waiting: of each partition, those of them that wait for the listener, and not for their `deliver_at`.
    """

    rows: int = 0
    due: dict[int, int] = field(default_factory=dict)
    waiting: dict[int, int] = field(default_factory=dict)
    in_line: int = 0


class Ledger:
    """The index of `outstanding` in one worker.

    counts: by listener id.
    in_line: how many entries wait in the queues of ordering keys.
    """

    def __init__(self, cache_kib: int = TUNED.index_cache_kib) -> None:
        self._cache_kib = cache_kib
        self.counts: dict[str, Count] = {}
        self.in_line = 0
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
        self.in_line = self._rows = 0

    # One delivery

    def find(self, partition: int, listener_id: str, message_id: str) -> Owed | None:
        if listener_id not in self.counts:
            return None
        place = (partition, message_id, self._numbers[listener_id])
        return self._one("SELECT * FROM owed WHERE partition = ? AND message = ? AND listener = ?", place)

    def get(self, row_id: int) -> Owed | None:
        return self._one("SELECT * FROM owed WHERE id = ?", (row_id,))

    def write(self, partition: int, rows: Mapping[Key, Owed | None]) -> list[Owed]:
        """Write entries, or remove those that are None. Return the former entries. A new version of an entry has
        another id.
        """
        written = [owed for owed in rows.values() if owed is not None]
        before: list[Owed] = []
        if not written and not self._rows:
            return before
        self._database.execute("BEGIN")
        if len(written) < len(rows):
            before = self._take_out(partition, [key for key, owed in rows.items() if owed is None])
        if not self._insert(written):
            before += self._take_out(partition, [(owed.listener_id, owed.message_id) for owed in written])
            self._insert(written)
        self._database.execute("COMMIT")
        for owed in written:
            self._count(owed, 1)
        return before

    def _insert(self, written: Sequence[Owed]) -> bool:
        """Insert all entries, or none if one exists already; nearly always none does."""
        if not written:
            return True
        first_id = self._last_id + 1
        done = self._database.executemany(_INSERT, map(self._row, written)).rowcount == len(written)
        if not done:
            self._database.execute("DELETE FROM owed WHERE id >= ?", (first_id,))
        return done

    def _take_out(self, partition: int, keys: Iterable[Key]) -> list[Owed]:
        found = [self.find(partition, *key) for key in keys]
        before = [owed for owed in found if owed is not None]
        self._database.executemany("DELETE FROM owed WHERE id = ?", [(owed.id,) for owed in before])
        for owed in before:
            self._count(owed, -1)
        return before

    def remove(self, owed: Owed) -> bool:
        """Remove an entry. Return whether it was still in the index as it is here."""
        gone = self._database.execute("DELETE FROM owed WHERE id = ?", (owed.id,)).rowcount > 0
        if gone:
            self._count(owed, -1)
        return gone

    def queue(self, owed: Owed, queued_ms: int | None) -> None:
        """Set from when on the entry is examined."""
        owed.queued_ms = queued_ms
        self._database.execute("UPDATE owed SET queued_ms = ? WHERE id = ?", (queued_ms, owed.id))

    def redriven(self, owed: Owed, *, was_parked: bool) -> None:
        """Store what a redrive has changed in an entry."""
        self._database.execute(
            "UPDATE owed SET redrives = ?, forgiven = ?, since_ms = ?, due_ms = ?, queued_ms = ? WHERE id = ?",
            (owed.redrives, owed.forgiven, owed.since_ms, owed.due_ms, owed.queued_ms, owed.id),
        )
        if was_parked:
            self._count_due(owed, 1)

    # Of a listener

    def due(self, listener_id: str, at_ms: int, *, after: tuple[int, int], limit: int) -> list[Owed]:
        """Return the entries to be examined by now, earliest first, after this (queued_ms, id)."""
        return self._some(
            "SELECT * FROM owed WHERE listener = ? AND queued_ms <= ? AND (queued_ms, id) > (?, ?)"
            " ORDER BY queued_ms, id LIMIT ?",
            (self._numbers.get(listener_id), at_ms, *after, limit),
        )

    def next_ms(self, listener_id: str) -> int | None:
        """Return when the first of a listener's entries is to be examined."""
        sql = "SELECT queued_ms FROM owed WHERE listener = ? AND queued_ms > -1 ORDER BY queued_ms LIMIT 1"
        return next((row[0] for row in self._rows_of(sql, (self._numbers.get(listener_id),))), None)

    def attempted_before(self, listener_id: str, redrive: int, *, limit: int) -> list[Owed]:
        """Return attempted entries that do not know of this redrive yet."""
        return self._some(
            f"SELECT * FROM owed WHERE listener = ? AND redrives < ? AND {_ATTEMPTED} LIMIT ?",
            (self._numbers.get(listener_id), redrive, limit),
        )

    def of_listener(self, listener_id: str, *, limit: int) -> list[Owed]:
        return self._some("SELECT * FROM owed WHERE listener = ? LIMIT ?", (self._numbers.get(listener_id), limit))

    # Of a line

    def line(self, line: Line, limit: int) -> list[tuple[int, int]]:
        """(id, place) of its first."""
        sql = f"SELECT id, place FROM owed WHERE {_LINE} ORDER BY place LIMIT ?"
        return self._rows_of(sql, (*self._of(line), limit))

    def begins_before(self, line: Line, place: int) -> bool:
        """Return whether the queue exists and its first entry is earlier than this offset."""
        count = self.counts.get(line[0])
        if count is None or not count.in_line:
            return False
        sql = f"SELECT 1 FROM owed WHERE {_LINE} AND place < ? LIMIT 1"
        return bool(self._rows_of(sql, (*self._of(line), place)))

    # Of a partition

    def of_partition(self, partition: int, *, limit: int) -> list[Owed]:
        return self._some("SELECT * FROM owed WHERE partition = ? LIMIT ?", (partition, limit))

    def has_message(self, partition: int, message_id: str) -> bool:
        """Whether any listener is owed it."""
        sql = "SELECT 1 FROM owed WHERE partition = ? AND message = ? LIMIT 1"
        return bool(self._rows) and bool(self._rows_of(sql, (partition, message_id)))

    def at_offsets(self, partition: int, first: int, last: int, *, after_id: int, limit: int) -> list[Owed]:
        """Return parked entries whose messages are at these offsets, in the order of writing."""
        return self._some(
            "SELECT * FROM owed WHERE partition = ? AND place BETWEEN ? AND ? AND due_ms IS NULL AND id > ?"
            " ORDER BY id LIMIT ?",
            (partition, first, last, after_id, limit),
        )

    @property
    def newest_id(self) -> int:
        """The id of the entry that was written last."""
        return self._last_id

    def unread(self, partition: int, *, after_id: int, limit: int) -> list[Owed]:
        """Return the parked entries whose message, or its change, could not be read, in the order of writing."""
        sql = "SELECT * FROM owed WHERE partition = ? AND bare = ? AND due_ms IS NULL AND id > ? ORDER BY id LIMIT ?"
        return self._some(sql, (partition, UNREAD, after_id, limit))

    def damaged(self, partition: int) -> int:
        """Count the entries that stand for unreadable messages."""
        sql = f"SELECT COUNT(*) FROM owed WHERE {_DAMAGED}"
        return next((int(row[0]) for row in self._rows_of(sql, (partition,))), 0)

    def oldest_put_ms(self, partition: int) -> int | None:
        """Return when the oldest outstanding message was put; 0 if that can't be read."""
        if self._rows_of(f"SELECT 1 FROM owed WHERE {_DAMAGED} LIMIT 1", (partition,)):
            return 0
        return self._put_ms("SELECT message FROM owed WHERE partition = ? ORDER BY message LIMIT 1", (partition,))

    def oldest_bare_put_ms(self, partition: int) -> int | None:
        """Return when the oldest message was put whose record has no payload; 0 if one of them can't be read."""
        if self._rows_of(f"SELECT 1 FROM owed WHERE {_DAMAGED} LIMIT 1", (partition,)):
            return 0
        sql = "SELECT message FROM owed WHERE partition = ? AND bare ORDER BY message LIMIT 1"
        return self._put_ms(sql, (partition,))

    def waits_since_ms(self, partition: int, listener_id: str) -> int | None:
        """Return when the oldest message that waits for a listener was put."""
        sql = f"SELECT message FROM owed WHERE partition = ? AND listener = ? AND {_WAITING} ORDER BY message LIMIT 1"
        return self._put_ms(sql, (partition, self._numbers.get(listener_id)))

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

    def _one(self, sql: str, values: Sequence[Any]) -> Owed | None:
        return next(iter(self._some(sql, values)), None)

    def _some(self, sql: str, values: Sequence[Any]) -> list[Owed]:
        return [
            Owed(row_id, partition, self._listeners[listener], message, *more)
            for row_id, partition, message, listener, *more in self._rows_of(sql, values)
        ]

    def _rows_of(self, sql: str, values: Sequence[Any]) -> list[Any]:
        return self._database.execute(sql, values).fetchall() if self._rows else []

    def _of(self, line: Line) -> tuple[int, int, str]:
        return line[1], self._numbers.get(line[0], -1), line[2]

    def _row(self, owed: Owed) -> tuple[Any, ...]:
        """Return the entry as a row, with an id of its own."""
        number = self._numbers.get(owed.listener_id)
        if number is None:
            number = self._numbers[owed.listener_id] = len(self._listeners)
            self._listeners.append(owed.listener_id)
        self._last_id += 1
        owed.id = self._last_id
        return (
            owed.id,
            owed.partition,
            owed.message_id,
            number,
            owed.place,
            owed.ordering_key,
            owed.offset,
            owed.number,
            owed.redrives,
            owed.forgiven,
            owed.since_ms,
            owed.first_at_ms,
            owed.due_ms,
            owed.queued_ms,
            owed.found,
            owed.record,
            owed.bare,
        )

    def _count(self, owed: Owed, by: int) -> None:
        count = self.counts.get(owed.listener_id)
        if count is None:
            count = self.counts[owed.listener_id] = Count()
        self._rows += by
        count.rows += by
        if owed.due_ms is not None:
            self._count_due(owed, by)
        if not count.rows:
            del self.counts[owed.listener_id]

    def _count_due(self, owed: Owed, by: int) -> None:
        count = self.counts[owed.listener_id]
        count.due[owed.partition] = count.due.get(owed.partition, 0) + by
        if owed.number or owed.ordering_key is not None:
            count.waiting[owed.partition] = count.waiting.get(owed.partition, 0) + by
        if owed.ordering_key is not None:
            count.in_line += by
            self.in_line += by
