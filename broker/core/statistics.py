"""Statistics per minute: how many messages were put, delivered, refused and parked, and how long deliveries took.

For: counting records by minute, and deciding which `statistics.counted` events are valid. Not for: reading and writing
topics (broker/kafka/counting.py, broker/kafka/statistics.py), the Faust agent (projections/statistics.py).

A lane is one partition of `messages` or `deliveries`. Each `statistics.counted` event names the range of offsets that
it covers in each lane. An event that covers an offset for the second time is ignored (Coverage). Therefore the sum of
the valid events counts every record once, whoever counted it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from broker.core.delivery import taken
from broker.core.events import DeliveriesSettled, DeliveryAttempted, Event, StatisticsCounted, StatisticsRow
from broker.core.histogram import BOUNDS_MS, buckets

MINUTE_MS: Final = 60_000
# Messages and attempts older than 30 days need not be counted: the topic `statistics` keeps its records for 30 days.
KEPT_MS: Final = 30 * 24 * 60 * MINUTE_MS
# Ignore an event in `statistics` if over 200 records came between its writer's last read of the topic and the event.
LATE_MAX: Final = 200
_ANSWER_CHARS_MAX: Final = 32
_STATUSES: Final = range(100, 600)


class Lane(NamedTuple):
    """A partition of `messages` or `deliveries` whose records are counted for the statistics. The topic is named
    without the prefix of the installation's topics.
    """

    topic: str
    partition: int


class Position(NamedTuple):
    """The position up to which the records of a partition have been counted for the statistics.

    `offset` is that of the next record to count. `minute` is the minute (since the epoch) of the newest counted record;
    0 if there is none.
    """

    offset: int
    minute: int = 0


class Key(NamedTuple):
    """The minute, queue and listener to which a row of statistics belongs. A row for the puts of a queue has an empty
    `listener_id`. In a row for unreadable records, both ids are empty.
    """

    minute: int
    queue_id: str
    listener_id: str


@dataclass(slots=True)
class Counts:
    """The counts of one row of statistics. In a row for unreadable records (see Key), `put` is the number of offsets
    that could not be read, and the other counts are 0.
    """

    put: int = 0
    delivered: int = 0
    parked: int = 0  # deliveries
    # The sum of the delivery times in ms. took() says when a delivery time begins.
    waited_ms: int = 0
    failed: dict[str, int] = field(default_factory=dict)  # attempts by HTTP status or error
    waited: dict[int, int] = field(default_factory=dict)  # deliveries by histogram bucket

    def add(self, other: Counts) -> None:
        self.put += other.put
        self.delivered += other.delivered
        self.parked += other.parked
        self.waited_ms += other.waited_ms
        for answer, number in other.failed.items():
            self.failed[answer] = self.failed.get(answer, 0) + number
        for bucket, number in other.waited.items():
            self.waited[bucket] = self.waited.get(bucket, 0) + number

    def took(self, waited_ms: Sequence[int]) -> None:
        """Add these delivery times to their sum and their histogram. The caller adds the number of deliveries to
        `delivered`.

        A delivery time is the number of ms until the listener accepted the message. It begins at the message's put or,
        if the message has a `deliver_at`, at that time. If the delivery failed again after a redrive, it begins at the
        redrive.
        """
        for bucket, number in buckets(waited_ms):
            self.waited[bucket] = self.waited.get(bucket, 0) + number
        self.waited_ms += sum([max(0, one) for one in waited_ms])

    def quantile_ms(self, share: float) -> int | None:
        """Return the delivery time in ms that a fraction of the deliveries, `share`, did not exceed; 0.5 means the
        median. The time is rounded up to the upper bound of its histogram bucket.

        Return None if there is no delivery, or if the time is above the highest bound.
        """
        total = sum(self.waited.values())
        seen = 0
        for step in sorted(self.waited):
            seen += self.waited[step]
            if seen >= share * total:
                return BOUNDS_MS[step] if step < len(BOUNDS_MS) else None
        return None

    def mean_ms(self) -> float | None:
        """Return the mean delivery time in ms; None if no delivery has a known time."""
        total = sum(self.waited.values())
        return self.waited_ms / total if total else None


class Totals:
    """The counts of statistics by minute, queue and listener, and for each partition the offset up to which its records
    are counted.
    """

    def __init__(self, positions: Mapping[Lane, Position] | None = None) -> None:
        self.rows: dict[Key, Counts] = {}
        self.begins: dict[Lane, Position] = dict(positions or {})
        self.positions: dict[Lane, Position] = dict(self.begins)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def moved(self) -> bool:
        """Whether these counts cover any Kafka record."""
        return self.positions != self.begins

    def at(self, key: Key) -> Counts:
        counts = self.rows.get(key)
        if counts is None:
            counts = self.rows[key] = Counts()
        return counts

    def put(self, minute: int, queue_id: str, number: int = 1) -> None:
        """Count this number of messages that were put on a queue in a minute."""
        self.at(Key(minute, queue_id, "")).put += number

    def event(self, event: Event) -> None:
        """Count the attempts in an event `deliveries.settled` or `delivery.attempted`. Do nothing for other events."""
        if isinstance(event, DeliveriesSettled):
            self._settled(event)
        elif isinstance(event, DeliveryAttempted):
            self._attempted(event)

    def _settled(self, event: DeliveriesSettled) -> None:
        waited_ms = event.waited_ms if isinstance(event.waited_ms, tuple) else ()
        minutes = [row[1] // MINUTE_MS for row in event.rows]
        for minute, number in Counter(minutes).items():
            counts = self.at(Key(minute, event.queue_id, event.listener_id))
            counts.delivered += number
            counts.took(
                waited_ms
                if number == len(minutes)
                else [w for w, m in zip(waited_ms, minutes, strict=False) if m == minute]
            )

    def _attempted(self, event: DeliveryAttempted) -> None:
        counts = self.at(Key(event.at_ms // MINUTE_MS, event.queue_id, event.listener_id))
        if event.outcome == "delivered":
            counts.delivered += 1
            if isinstance(event.waited_ms, int):
                counts.took([event.waited_ms])
            return
        answer = answer_name(event.status, event.error)
        counts.failed[answer] = counts.failed.get(answer, 0) + 1
        counts.parked += event.outcome == "parked"

    def passed(self, lane: Lane, offset: int, at_ms: int) -> None:
        """Record that a partition is counted up to and including the Kafka record at this offset, whose time is
        `at_ms`.
        """
        at = self.positions.get(lane)
        minute = max(at_ms // MINUTE_MS, at.minute if at is not None else 0)
        self.positions[lane] = Position(offset + 1, minute)

    def skipped(self, lane: Lane, offset: int) -> None:
        """Record that counting continues at this offset of a partition: no record before it is left to count."""
        self.positions[lane] = Position(offset, self._minute(lane))

    def unreadable(self, lane: Lane, first: int, last: int) -> None:
        """Count the offsets from `first` to `last` of a partition as unreadable. The times of these records are
        unknown. So the statistics show the minute of the newest record that was counted before them as incomplete.
        """
        minute = self._minute(lane)
        self.at(Key(minute, "", "")).put += last - first + 1
        self.positions[lane] = Position(last + 1, minute)

    def _minute(self, lane: Lane) -> int:
        at = self.positions.get(lane)
        return 0 if at is None else at.minute

    def counted(self, at_ms: int, after: int) -> StatisticsCounted:
        """Return the event that stores these counts in the topic `statistics`. `after` is the offset up to which this
        process has read the topic: the offset of the first record that it has not read.
        """
        ranges = tuple(
            (lane.topic, lane.partition, self.begins.get(lane, Position(0)).offset, end.offset, end.minute)
            for lane, end in sorted(self.positions.items())
        )
        rows = tuple(_row(key, counts) for key, counts in sorted(self.rows.items()))
        return StatisticsCounted(
            at_ms=at_ms, organization_id="", actor="worker", after=after, ranges=ranges, minutes=rows
        )


def answer_name(status: int | None, error: str | None) -> str:
    """Return the name under which the statistics count a failed attempt: its HTTP status, or its error if there was no
    answer.

    If a 2xx answer to a batch rejected the message, the name is the error, too. A status outside 100 to 599, or an
    error of over 32 characters, is counted as `other`.
    """
    if status is not None and not (taken(status) and error):
        return str(status) if status in _STATUSES else "other"
    return error if error and len(error) <= _ANSWER_CHARS_MAX else "other"


def _row(key: Key, counts: Counts) -> StatisticsRow:
    return (
        *key,
        counts.put,
        counts.delivered,
        counts.parked,
        counts.waited_ms,
        dict(sorted(counts.failed.items())),
        tuple(counts.waited.get(step, 0) for step in range(max(counts.waited, default=-1) + 1)),
    )


def read_row(row: StatisticsRow) -> tuple[Key, Counts]:
    """Return the key (minute, queue, listener) and the counts that a row of the event `statistics.counted` holds."""
    minute, queue_id, listener_id, put, delivered, parked, waited_ms, failed, waited = row
    steps = {step: number for step, number in enumerate(waited) if number}
    return Key(minute, queue_id, listener_id), Counts(put, delivered, parked, waited_ms, dict(failed), steps)


class Coverage:
    """The rule that statistics count each Kafka record once. If several statistics events cover the same offset of a
    partition, only the first of them is valid.

    `positions` maps a partition of `messages` or `deliveries` to the offset up to which valid events have counted its
    records.
    """

    def __init__(self) -> None:
        self.positions: dict[Lane, Position] = {}

    def accept(self, offset: int, event: StatisticsCounted) -> bool:
        """Return whether the event at this offset of the topic `statistics` is valid. If so, remember which offsets the
        event covers.

        The event is not valid if it covers an offset that an earlier valid event covers. It is also not valid if it was
        written late: more than LATE_MAX records came between its writer's last read of the topic and the event.
        """
        if offset - event.after > LATE_MAX:
            return False
        ranges = [(Lane(topic, number), begin, end, minute) for topic, number, begin, end, minute in event.ranges]
        if any(lane in self.positions and begin < self.positions[lane].offset for lane, begin, _, _ in ranges):
            return False
        for lane, _, end, minute in ranges:
            self.positions[lane] = Position(end, minute)
        return True


def total(rows: Iterable[tuple[Key, Counts]], into: dict[Key, Counts] | None = None) -> dict[Key, Counts]:
    """Add up the rows of statistics that have the same minute, queue and listener."""
    sums = {} if into is None else into
    for key, counts in rows:
        if key in sums:
            sums[key].add(counts)
        else:
            sums[key] = counts
    return sums


class Series:
    """The statistics of one queue or listener over time, in steps of at least a minute.

    `points` has the counts of each step. `complete` has one value for each step: False if some counts of the step are
    known to be missing. `written_at_ms` is the time of the newest event that was added; None if none was.
    """

    def __init__(self, from_ms: int, step_ms: int, number: int, queue_id: str, listener_id: str | None = None) -> None:
        self.from_ms = from_ms
        self.step_ms = step_ms
        self.points = [Counts() for _ in range(number)]
        self.complete = [True] * number
        self.later = Counts()  # counts after the last step
        self.written_at_ms: int | None = None
        self._queue_id = queue_id
        self._listener_id = listener_id
        self._lost = False

    def add(self, event: StatisticsCounted) -> None:
        """Add the counts of a valid event. The caller must add the events in their order in the topic `statistics`.

        The statistics of a listener also count the puts on the listener's queue.
        """
        if self._lost:
            self._mark(self.written_at_ms or 0, event.at_ms)
            self._lost = False
        self.written_at_ms = event.at_ms
        for row in event.minutes:
            if not row[1]:
                self._mark(row[0] * MINUTE_MS, row[0] * MINUTE_MS)
            elif self._wants(row):
                self._count(*read_row(row))

    def _wants(self, row: StatisticsRow) -> bool:
        """Return whether these statistics include this row of counts. The statistics of a listener include the puts on
        the listener's queue, and the deliveries to the listener. The statistics of a queue include the puts on the
        queue, and the deliveries to all of its listeners.
        """
        queue_id, listener_id = row[1:3]
        return queue_id == self._queue_id and (self._listener_id is None or listener_id in ("", self._listener_id))

    def _count(self, key: Key, counts: Counts) -> None:
        self._at(key.minute).add(counts)

    def lost(self) -> None:
        """Record that an event of statistics can't be read, so that its counts are missing."""
        self._lost = True

    def close(self) -> None:
        """Call this after the last event was added. If the last event could not be read, mark the steps of time from
        the newest readable event on as incomplete.
        """
        if self._lost:
            self._mark(self.written_at_ms or 0, self.from_ms + self.step_ms * len(self.points))

    def _at(self, minute: int) -> Counts:
        place = (minute * MINUTE_MS - self.from_ms) // self.step_ms
        if place < 0:
            return Counts()
        return self.points[place] if place < len(self.points) else self.later

    def _mark(self, first_ms: int, last_ms: int) -> None:
        """Mark the steps of time from one time to another as incomplete, because counts are missing."""
        first = (first_ms // MINUTE_MS * MINUTE_MS - self.from_ms) // self.step_ms
        last = (last_ms - self.from_ms) // self.step_ms
        for place in range(max(0, first), min(last + 1, len(self.points))):
            self.complete[place] = False

    def backlog(self, now: int, *, since_ms: int = 0) -> list[int]:
        """Return how many deliveries of a listener waited at the end of each step of time. `now` is how many wait now.
        The earlier numbers are calculated backwards from `now`.

        Before `since_ms`, when the listener was created, no delivery waited. The calculation does not know redrives,
        deletions of messages, `deliver_at` times, and deliveries that were repeated after a crash. So earlier numbers
        can be too high or too low.
        """
        growths = [_growth(counts) for counts in (*self.points, self.later)]
        ends_ms = (self.from_ms + (place + 1) * self.step_ms for place in range(len(self.points)))
        known = zip(_backwards(now, growths), ends_ms, strict=True)
        return [waiting if end_ms > since_ms else 0 for waiting, end_ms in known]


def _growth(counts: Counts) -> int:
    return counts.put - counts.delivered - counts.parked


def _backwards(now: int, growths: Sequence[int]) -> list[int]:
    """Return how many deliveries waited at the end of each step of time, oldest step first. `now` is how many wait now.
    The earlier numbers are calculated backwards from `now`.

    `growths` says by how much the number of waiting deliveries grew: in each step and, as the last item, from the end
    of the last step until now.
    """
    found, waiting = [], now
    for growth in reversed(growths[1:]):
        waiting -= growth
        found.append(max(0, waiting))
    return found[::-1]


class QueuesSeries(Series):
    """The statistics of several queues together over time.

    `queues` maps the id of each queue to the queue's listeners: each listener's id, with the time of its creation. A
    put counts as one waiting delivery for each listener that existed in the minute of the put.
    """

    def __init__(self, from_ms: int, step_ms: int, number: int, queues: Mapping[str, Mapping[str, int]]) -> None:
        super().__init__(from_ms, step_ms, number, "")
        self._queues = queues
        self._growths = [0] * (number + 1)
        # For each listener created at `from_ms` or later: the number of deliveries by which its backlog has grown.
        self._young = {
            one: 0 for listeners in queues.values() for one, at_ms in listeners.items() if at_ms >= self.from_ms
        }

    def _wants(self, row: StatisticsRow) -> bool:
        return row[1] in self._queues

    def _count(self, key: Key, counts: Counts) -> None:
        super()._count(key, counts)
        if key.minute * MINUTE_MS < self.from_ms:
            return
        listeners, end_ms = self._queues[key.queue_id], (key.minute + 1) * MINUTE_MS
        if key.listener_id:
            concerned = [key.listener_id] if key.listener_id in listeners else []
        else:
            concerned = [one for one, created_at_ms in listeners.items() if created_at_ms < end_ms]
        self._growths[self._place(key.minute * MINUTE_MS)] += _growth(counts) * len(concerned)
        for one in concerned:
            if one in self._young:
                self._young[one] += _growth(counts)

    def _place(self, at_ms: int) -> int:
        return min((at_ms - self.from_ms) // self.step_ms, len(self.points))

    def backlog_of(self, lags: Mapping[str, int]) -> list[int]:
        """Return how many deliveries waited at the end of each step of time. The numbers are calculated backwards from
        `lags`, the number of deliveries that wait for each listener now.

        For the same reasons as in Series.backlog(), earlier numbers can be too high or too low.
        """
        growths = [*self._growths]
        for listeners in self._queues.values():
            for one, created_at_ms in listeners.items():
                # A listener can start with older messages. Count them as growth at the time of its creation.
                if one in self._young:
                    growths[self._place(created_at_ms)] += lags.get(one, 0) - self._young[one]
        return _backwards(sum(lags.values()), growths)
