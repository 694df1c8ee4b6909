"""What a run proves: its record against the promises. Pure; moments are seconds of one clock.

For: the soaks and the simulation alike. Not for: making the record (history.py, tests/stateful/simulation.py).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

CLOCKS_S = 0.02  # a time is of another clock than moments are, and may be set right by so much meanwhile


@dataclass(frozen=True, slots=True)
class Put:
    """data: different in each. message_id: None where the put was not answered 200: it may be stored, or not.

    due_at: the time it was given, before which nobody gets it.
    """

    data: str
    key: str | None
    sent_at: float
    answered_at: float
    message_id: str | None
    due_at: float | None = None


@dataclass(frozen=True, slots=True)
class Update:
    """New data for what was put with this one, the number-th. answered_at: None where it was not answered 200, or
    nobody said that he honours it: it may hold, or not. gets: listeners of whom it was said that they get it."""

    data: str
    number: int
    sent_at: float
    answered_at: float | None = None
    gets: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Taken:
    """A delivery that the listener answered 2xx. data: as it was put. update: its number; 0: the data was that, too."""

    data: str
    message_id: str
    at: float
    update: int = 0


@dataclass(frozen=True, slots=True)
class Attempt:
    """From when to when a listener was busy with a delivery, whatever it answered."""

    data: str
    began: float
    ended: float


@dataclass(frozen=True, slots=True)
class Crash:
    """From when to when something was gone that may repeat deliveries. since: what was settled after it was perhaps in
    no checkpoint; since_of_slow: likewise, of listeners that may give way. in_flight: deliveries of one listener that
    may have been under way. puts_until: what was put later can't have been settled by what was gone; None: it can, as
    long as it lasted."""

    began: float
    ended: float
    since: float
    in_flight: int
    puts_until: float | None = None
    since_of_slow: float | None = None


@dataclass(slots=True)
class Record:
    """listeners: by name, when its PUT was sent and when it was answered. taken: by listener, in their order.
    attempts: by listener, as far as they are known.

    waiting: (listener, data) that are visibly waiting or parked. parked: likewise, what was parked for a while: its key
    went on without it. deleted: data nobody need get. cancelled: by (listener, data) of it, when it was said that it
    is not delivered. updates: those of a message in their order, each sent after the one before was answered.
    lost_answers: deliveries that a listener took and whose answer something else than a crash has swallowed.
    slow: listeners that may give way, and be in a checkpoint less often. slack_s: how far the moments of a crash and of
    a delivery may be wrong, where different threads or processes note them.
    """

    puts: list[Put] = field(default_factory=list)
    listeners: dict[str, tuple[float, float]] = field(default_factory=dict)
    taken: dict[str, list[Taken]] = field(default_factory=dict)
    attempts: dict[str, list[Attempt]] = field(default_factory=dict)
    crashes: list[Crash] = field(default_factory=list)
    waiting: set[tuple[str, str]] = field(default_factory=set)
    deleted: set[str] = field(default_factory=set)
    cancelled: dict[tuple[str, str], float] = field(default_factory=dict)
    updates: list[Update] = field(default_factory=list)
    parked: set[tuple[str, str]] = field(default_factory=set)
    lost_answers: int = 0
    slow: set[str] = field(default_factory=set)
    slack_s: float = 0.0


def violations(record: Record) -> list[str]:
    """Each begins with its kind: lost, phantom, too early, before its time, deleted, outdated, out of order, at once,
    repeated.
    Empty: all promises were kept."""
    return [
        f"{found} ({listener})"
        for listener in record.listeners
        for check in (_lost, _phantoms, _deleted, _outdated, _out_of_order, _at_once, _repeated)
        for found in check(record, listener)
    ]


def first_places(taken: Sequence[Taken]) -> dict[str, int]:
    """By data, where its first delivery stands among all."""
    places: dict[str, int] = {}
    for place, one in enumerate(taken):
        places.setdefault(one.data, place)
    return places


def _lost(record: Record, listener: str) -> Iterator[str]:
    there_since = record.listeners[listener][1]
    delivered = {one.data for one in record.taken.get(listener, ())}
    for put in record.puts:
        owed = put.message_id is not None and put.sent_at >= there_since and put.data not in record.deleted
        if owed and put.data not in delivered and (listener, put.data) not in record.waiting:
            yield f"lost: {put.data}"


def _phantoms(record: Record, listener: str) -> Iterator[str]:
    asked_at = record.listeners[listener][0]
    puts = {put.data: put for put in record.puts}
    ids: dict[str, str] = {}
    for one in record.taken.get(listener, ()):
        put = puts.get(one.data)
        if put is None:
            yield f"phantom: {one.data} was never put"
        elif one.at < put.sent_at:
            yield f"phantom: {one.data} was delivered before it was put"
        elif ids.setdefault(one.data, put.message_id or one.message_id) != one.message_id:
            yield f"phantom: {one.data} came with the id of another message"
        elif put.message_id is not None and put.answered_at < asked_at:
            yield f"too early: {one.data} was put before the listener was"
        elif put.due_at is not None and one.at < put.due_at - CLOCKS_S:
            yield f"before its time: {one.data} by {put.due_at - one.at:.3f} s"


def _deleted(record: Record, listener: str) -> Iterator[str]:
    """Who was said not to get it does not, and has not; but for a crash: who was gone had not heard of it, or told."""
    for one in record.taken.get(listener, ()):
        said = record.cancelled.get((listener, one.data))
        if said is not None and not _crashed(record, min(said, one.at), max(said, one.at)):
            yield f"deleted: {one.data} was delivered, and at {one.at - said:+.3f} s it was said that it is not"


def _outdated(record: Record, listener: str) -> Iterator[str]:
    """What begins clearly after an update that counts has its data, or that of a later one, and who was said to get it
    never takes it as it was before; but for a crash, as with deletions. None has data that nobody has sent yet."""
    by_data: defaultdict[str, list[Update]] = defaultdict(list)
    for update in record.updates:
        by_data[update.data].append(update)
    for one in record.taken.get(listener, ()):
        updates = by_data.get(one.data, [])
        sent = {update.number for update in updates if update.sent_at <= one.at}
        if one.update and one.update not in sent:
            yield f"phantom: {one.data} was delivered before its update {one.update} was sent"
        for update in updates:
            said = update.answered_at
            if said is None or one.update >= update.number:
                continue
            counts = listener in update.gets or one.at > said + record.slack_s
            if counts and not _crashed(record, min(said, one.at), max(said, one.at)):
                yield f"outdated: {one.data} was delivered {one.at - said:+.3f} s after its update {update.number}"


def _crashed(record: Record, begin: float, end: float) -> bool:
    """Whether something may have been gone at some time between these moments."""
    slack_s = record.slack_s
    return any(crash.began - slack_s <= end and begin <= crash.ended + slack_s for crash in record.crashes)


def _out_of_order(record: Record, listener: str) -> Iterator[str]:
    """Where one put was answered before another of its key was sent, the first is delivered first."""
    places = first_places(record.taken.get(listener, ()))
    by_key: defaultdict[str, list[Put]] = defaultdict(list)
    for put in record.puts:
        counts = put.message_id is not None and put.data in places and (listener, put.data) not in record.parked
        if put.key is not None and counts and put.data not in record.deleted:  # who was gone may send that late
            by_key[put.key].append(put)
    for key, puts in by_key.items():
        answered = sorted(puts, key=lambda put: put.answered_at)
        before, latest, last = 0, -1, ""
        for put in sorted(puts, key=lambda put: put.sent_at):
            while before < len(answered) and answered[before].answered_at <= put.sent_at:
                if places[answered[before].data] > latest:
                    latest, last = places[answered[before].data], answered[before].data
                before += 1
            if places[put.data] < latest:
                yield f"out of order: {put.data} before {last}, of the key {key}"


def _at_once(record: Record, listener: str) -> Iterator[str]:
    """One of a key begins when no other is under way, but after a crash: who has begun that one may be gone."""
    keys = {put.data: put.key for put in record.puts if put.key is not None}
    busy: dict[str, Attempt] = {}  # by key, that which ends last
    for one in sorted(record.attempts.get(listener, ()), key=lambda one: one.began):
        key = keys.get(one.data)
        if key is None:
            continue
        other = busy.get(key)
        if other is None or other.ended <= one.began:
            busy[key] = one
            continue
        if not _crashed(record, other.began, one.began):
            yield f"at once: {one.data} while {other.data} was under way, of the key {key}"
        if one.ended > other.ended:
            busy[key] = one


def _repeated(record: Record, listener: str) -> Iterator[str]:
    """A repeat is a crash's that began before it and ended after the delivery it repeats.

    Each explains as many as it may have settled after a checkpoint, of what was put in time for that, and as many of
    any as it had in flight; a repeat may be any one's.
    """
    put_at = {put.data: put.sent_at for put in record.puts}
    newest: dict[str, float] = {}
    taken = record.taken.get(listener, ())
    room: list[int] = []  # of each crash two: for what was settled, and in flight
    for crash in record.crashes:
        until = crash.ended + record.slack_s
        since = crash.since
        if listener in record.slow and crash.since_of_slow is not None:
            since = crash.since_of_slow
        settled = {
            one.data
            for one in taken
            if since - record.slack_s <= one.at <= until and _in_time(record, crash, put_at.get(one.data, one.at))
        }
        room += len(settled), crash.in_flight
    repeats: list[tuple[str, list[int]]] = []
    for one in taken:
        before = newest.get(one.data)
        newest[one.data] = one.at
        if before is not None:
            put_s = put_at.get(one.data, before)
            between = [
                place
                for number, crash in enumerate(record.crashes)
                if before - record.slack_s <= crash.ended and crash.began <= one.at
                for place in ((2 * number, 2 * number + 1) if _in_time(record, crash, put_s) else (2 * number + 1,))
            ]
            repeats.append((one.data, between))
    unexplained = _too_many([between for _, between in repeats], room)
    if len(unexplained) > record.lost_answers:
        for number in unexplained:
            data, between = repeats[number]
            rooms = ", ".join(str(room[place]) for place in between)
            yield f"repeated: {data} " + (f"once more than crashes explain ({rooms})" if between else "without a crash")


def _too_many(options: Sequence[Sequence[int]], room: Sequence[int]) -> list[int]:
    """Those that have no place where each takes one in one of its options, of which each has so much room."""
    placed: list[list[int]] = [[] for _ in room]

    def place(one: int, seen: set[int]) -> bool:
        for option in options[one]:
            if option in seen:
                continue
            seen.add(option)
            if len(placed[option]) < room[option]:
                placed[option].append(one)
                return True
            for at, other in enumerate(placed[option]):
                if place(other, seen):
                    placed[option][at] = one
                    return True
        return False

    return [one for one in range(len(options)) if not place(one, set())]


def _in_time(record: Record, crash: Crash, put_s: float) -> bool:
    """Whether what was put then may have been settled by what was gone."""
    return crash.puts_until is None or put_s <= crash.puts_until + record.slack_s
