"""Statistics: what counts once is counted once, however the log is cut and whoever writes it down."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.core.codec import decode, encode
from broker.core.events import DeliveriesSettled, DeliveryAttempted, StatisticsCounted
from broker.core.statistics import (
    LATE_MAX,
    MINUTE_MS,
    Counts,
    Coverage,
    Key,
    Lane,
    Position,
    QueuesSeries,
    Series,
    Totals,
    answer_name,
    read_row,
)

PUTS, DELIVERIES = Lane("messages", 0), Lane("deliveries", 0)
LANES = (PUTS, Lane("messages", 1), DELIVERIES, Lane("deliveries", 1))
BASE_MS = 29_000_000 * MINUTE_MS
QUEUES, LISTENERS = ("q1", "q2"), ("l1", "l2")


def settled(queue_id: str, listener_id: str, rows: Iterable[tuple[int, int]], **more: Any) -> DeliveriesSettled:
    """rows: (at_ms, waited_ms)."""
    rows = list(rows)
    return DeliveriesSettled(
        at_ms=BASE_MS,
        organization_id="o",
        listener_id=listener_id,
        queue_id=queue_id,
        partition=0,
        rows=tuple((number, at_ms, 200, 3) for number, (at_ms, _) in enumerate(rows)),
        **({"waited_ms": tuple(waited for _, waited in rows)} | more),
    )


def attempted(queue_id: str, listener_id: str, at_ms: int, outcome: str, **more: Any) -> DeliveryAttempted:
    fields = {"status": 500, "error": None, "number": 2} | more
    return DeliveryAttempted(
        at_ms=at_ms,
        organization_id="o",
        listener_id=listener_id,
        queue_id=queue_id,
        message_id="m",
        partition=0,
        offset=7,
        outcome=outcome,
        took_ms=3,
        next_at_ms=None,
        **fields,
    )


MOMENTS = st.integers(BASE_MS, BASE_MS + 5 * MINUTE_MS)
RECORDS = st.one_of(
    st.builds(
        settled,
        st.sampled_from(QUEUES),
        st.sampled_from(LISTENERS),
        st.lists(st.tuples(MOMENTS, st.integers(-5, 10**7))),
    ),
    st.builds(
        attempted,
        st.sampled_from(QUEUES),
        st.sampled_from(LISTENERS),
        MOMENTS,
        st.sampled_from(["failed", "parked", "delivered"]),
        status=st.sampled_from([None, 100, 422, 599, 7_000]),
        error=st.sampled_from([None, "timeout", "x" * 99]),
    ),
    st.none(),  # offsets that can't be read
)
LOGS = st.fixed_dictionaries(
    {
        lane: st.lists(
            st.tuples(MOMENTS, st.sampled_from(QUEUES) if lane.topic == "messages" else RECORDS), max_size=30
        )
        for lane in LANES
    }
)
Log = dict[Lane, list[tuple[int, Any]]]


def fold(totals: Totals, log: Log, lane: Lane, number: int) -> None:
    """Fold so many more records of a lane, as Counting does."""
    begin = totals.positions[lane].offset
    for offset, (at_ms, record) in enumerate(log[lane][begin : begin + number], begin):
        if record is None:
            totals.unreadable(lane, offset, offset)
        else:
            if lane.topic == "messages":
                totals.put(at_ms // MINUTE_MS, record)
            else:
                totals.event(record)
            totals.passed(lane, offset, at_ms)


class Topic:
    """`statistics`, as events one after the other."""

    def __init__(self) -> None:
        self.records: list[bytes] = []

    def append(self, event: StatisticsCounted) -> None:
        self.records.append(encode(event))

    def read(self) -> tuple[dict[Key, Counts], Coverage]:
        """The sums of what counts."""
        sums, coverage = dict[Key, Counts](), Coverage()
        for offset, value in enumerate(self.records):
            event = decode(value)
            assert isinstance(event, StatisticsCounted)
            if coverage.accept(offset, event):
                for key, counts in map(read_row, event.minutes):
                    sums.setdefault(key, Counts()).add(counts)
        return sums, coverage


def begin(topic: Topic, lanes: Iterable[Lane]) -> Totals:
    """As a process begins that was given these lanes."""
    known = topic.read()[1].positions
    return Totals({lane: known.get(lane, Position(0)) for lane in lanes})


@settings(max_examples=150, deadline=None)
@given(log=LOGS, data=st.data())
def test_rebuilt_from_the_log_they_are_as_they_were_counted_live(log: Log, data: st.DataObject):
    """Three processes that fold, write, are killed before or after a write, and hold the same lanes at times."""
    topic = Topic()
    processes: dict[int, tuple[Totals, int]] = {}
    for _ in range(data.draw(st.integers(0, 40), "steps")):
        who = data.draw(st.integers(0, 2), "who")
        what = data.draw(st.sampled_from(["fold", "fold", "write", "crash", "twice"]), "what")
        if who not in processes or what == "crash":
            lanes = data.draw(st.sets(st.sampled_from(LANES), min_size=1), "lanes")
            processes[who] = begin(topic, lanes), len(topic.records)
        elif what == "fold":
            totals = processes[who][0]
            fold(totals, log, data.draw(st.sampled_from(sorted(totals.positions))), data.draw(st.integers(1, 10)))
        else:  # whatever it had read of the topic may be old by now
            totals, after = processes[who]
            for _ in range(2 if what == "twice" else 1):  # a send that is repeated in doubt
                topic.append(totals.counted(BASE_MS, after))
            if data.draw(st.booleans(), "killed before it knew"):
                processes[who] = begin(topic, totals.positions), len(topic.records)
            else:
                known = topic.read()[1].positions
                going_on = all(known.get(lane) == at for lane, at in totals.positions.items())
                places = (
                    totals.positions
                    if going_on
                    else totals.begins | {one: known[one] for one in totals.begins if one in known}
                )
                processes[who] = Totals(places), len(topic.records)
    last = begin(topic, LANES)
    for lane in LANES:
        fold(last, log, lane, 100)
    topic.append(last.counted(BASE_MS, len(topic.records)))
    anew = Totals(dict.fromkeys(LANES, Position(0)))
    for lane in reversed(LANES):
        fold(anew, log, lane, 100)
    sums, coverage = topic.read()
    assert coverage.positions == anew.positions
    assert {key: counts for key, counts in sums.items() if counts != Counts()} == {
        key: counts for key, counts in anew.rows.items() if counts != Counts()
    }


def test_what_is_counted_of_each_record():
    totals = Totals({PUTS: Position(0), DELIVERIES: Position(0)})
    totals.put(BASE_MS // MINUTE_MS, "q1")
    totals.event(settled("q1", "l1", [(BASE_MS, 0), (BASE_MS + 1, 3), (BASE_MS + MINUTE_MS, 4_000_000)]))
    totals.event(attempted("q1", "l1", BASE_MS, "failed", status=422))
    totals.event(attempted("q1", "l1", BASE_MS, "parked", status=None, error="timeout"))
    totals.event(attempted("q1", "l1", BASE_MS, "delivered", status=200, waited_ms=60_000))
    minute = BASE_MS // MINUTE_MS
    assert totals.rows == {
        Key(minute, "q1", ""): Counts(put=1),
        Key(minute, "q1", "l1"): Counts(
            delivered=3, parked=1, waited_ms=60_003, failed={"422": 1, "timeout": 1}, waited={0: 1, 2: 1, 13: 1}
        ),
        Key(minute + 1, "q1", "l1"): Counts(delivered=1, waited_ms=4_000_000, waited={16: 1}),
    }


def test_deliveries_that_an_older_program_wrote_have_no_time_but_count():
    totals = Totals()
    event = settled("q1", "l1", [(BASE_MS, 1)])
    old = decode(encode(event).replace(b',"waited_ms":[1]', b""))
    assert b"waited_ms" not in encode(old)
    totals.event(old)
    (counts,) = totals.rows.values()
    assert (counts.delivered, counts.mean_ms(), counts.quantile_ms(0.5)) == (1, None, None)


def test_an_event_that_comes_too_late_counts_for_nobody():
    event = Totals({PUTS: Position(0)}).counted(BASE_MS, 5)
    assert Coverage().accept(5 + LATE_MAX, event)
    assert not Coverage().accept(5 + LATE_MAX + 1, event)


@pytest.mark.parametrize(
    ("status", "error", "name"),
    [
        (422, None, "422"),
        (99, None, "other"),
        (None, "refused", "refused"),
        (200, "failed-in-batch", "failed-in-batch"),
        (500, "failed-in-batch", "500"),
        (None, None, "other"),
        (None, "e" * 33, "other"),
    ],
)
def test_how_a_failed_attempt_is_counted(status: int | None, error: str | None, name: str):
    assert answer_name(status, error) == name


def test_quantiles_are_the_bounds_of_their_steps():
    counts = Counts()
    for waited_ms in (*[3] * 98, 900, 7_200_000):
        counts.took([waited_ms])
    assert [counts.quantile_ms(share) for share in (0.5, 0.99, 1.0)] == [5, 1_000, None]


def counted(*rows: tuple[Key, Counts], at_ms: int = BASE_MS) -> StatisticsCounted:
    totals = Totals()
    totals.rows = dict(rows)
    return totals.counted(at_ms, 0)


def test_a_series_has_one_queue_s_counts_and_no_other_s():
    minute = BASE_MS // MINUTE_MS
    series = {listener_id: Series(BASE_MS, 2 * MINUTE_MS, 2, "q1", listener_id) for listener_id in (None, "l1")}
    event = counted(
        (Key(minute - 1, "q1", ""), Counts(put=1_000)),
        (Key(minute, "q1", ""), Counts(put=8)),
        (Key(minute + 1, "q1", "l1"), Counts(delivered=3)),
        (Key(minute + 2, "q1", "l2"), Counts(delivered=4)),
        (Key(minute + 2, "q2", "l1"), Counts(delivered=100)),
        (Key(minute + 4, "q1", "l1"), Counts(delivered=1)),
    )
    for one in series.values():
        one.add(event)
    assert [(point.put, point.delivered) for point in series[None].points] == [(8, 3), (0, 4)]
    assert [(point.put, point.delivered) for point in series["l1"].points] == [(8, 3), (0, 0)]
    assert series["l1"].backlog(4) == [5, 5]
    assert series["l1"].complete == [True, True]


def test_a_series_says_where_it_is_incomplete():
    minute = BASE_MS // MINUTE_MS
    series = Series(BASE_MS, MINUTE_MS, 6, "q1", "l1")
    series.add(counted((Key(minute + 1, "", ""), Counts(put=3)), at_ms=BASE_MS + 2 * MINUTE_MS))
    assert series.complete == [True, False, True, True, True, True]
    series.lost()
    series.add(counted(at_ms=BASE_MS + 3 * MINUTE_MS))
    assert series.complete == [True, False, False, False, True, True]
    series.lost()
    series.close()
    assert series.complete == [True, False, False, False, False, False]


def test_the_backlog_of_several_listeners_begins_with_each_of_them():
    minute = BASE_MS // MINUTE_MS
    old, young = 0, (minute + 2) * MINUTE_MS + 1
    series = QueuesSeries(minute * MINUTE_MS, MINUTE_MS, 5, {"q": {"old": old, "young": young}, "none": {}})
    series.add(
        counted(
            (Key(minute, "q", ""), Counts(put=10)),
            (Key(minute, "none", ""), Counts(put=99)),
            (Key(minute + 1, "q", "old"), Counts(delivered=4)),
            (Key(minute + 3, "q", "young"), Counts(delivered=6)),
            (Key(minute + 4, "q", ""), Counts(put=1)),
        )
    )
    # `young` began with the ten messages before it, of which four wait besides the new one.
    assert series.backlog_of({"old": 7, "young": 5}) == [10, 6, 6 + 10, 6 + 4, 7 + 5]
    assert [one.put for one in series.points] == [109, 0, 0, 0, 1]
