"""The health of a listener: the rule as a table, and the counts on their way through a cursor."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.core.cursor import Cursor
from broker.core.health import ENOUGH, MENDED_MS, MINUTES, Facts, Health, Recent, facts_of, read

NOW_MS = 1_700_000_000_000
MINUTE_MS = 60_000
LAST_REFUSED = {"accepted_at_ms": NOW_MS - 2, "refused_at_ms": NOW_MS - 1}
LAST_ACCEPTED = {"accepted_at_ms": NOW_MS - 1, "refused_at_ms": NOW_MS - 2}

RULE = {
    "no attempt yet": (Facts(), Health.NEW),
    "no attempt yet, but messages wait for a retry elsewhere": (Facts(retrying=3), Health.NEW),
    "all 60 of 60 refused": (Facts(refused=60, refused_at_ms=NOW_MS), Health.FAILING),
    "all refused, and long ago": (Facts(parked=60, refused_at_ms=1), Health.FAILING),
    "one refused, then accepted": (Facts(accepted=1, refused=1, **LAST_ACCEPTED), Health.HEALTHY),
    "one accepted, then refused": (Facts(accepted=1, refused=1, **LAST_REFUSED), Health.FAILING),
    "few attempts, the last accepted": (Facts(accepted=1, refused=ENOUGH - 2, **LAST_ACCEPTED), Health.HEALTHY),
    "a quarter refused": (Facts(accepted=30, refused=10, **LAST_REFUSED), Health.HEALTHY),
    "more than a quarter refused": (Facts(accepted=30, refused=11, **LAST_ACCEPTED), Health.FAILING),
    "nothing refused for a minute": (
        Facts(accepted=1, refused=60, accepted_at_ms=NOW_MS, refused_at_ms=NOW_MS - MENDED_MS),
        Health.HEALTHY,
    ),
    "all accepted, and parked ones of before": (Facts(parked=9, accepted=60, accepted_at_ms=NOW_MS), Health.HEALTHY),
    "down": (Facts(down=True, refused=5, refused_at_ms=NOW_MS), Health.DOWN),
    "down without an attempt": (Facts(down=True), Health.DOWN),
}


@pytest.mark.parametrize("case", RULE)
def test_the_health_follows_from_the_facts(case: str):
    facts, health = RULE[case]
    assert facts.health(paused=False) is health
    assert facts.health(paused=True) is Health.PAUSED
    with_replay = facts.health(paused=False, replaying=True)
    assert with_replay is (Health.REPLAYING if health in (Health.HEALTHY, Health.NEW) else health)


attempts = st.lists(
    st.tuples(st.integers(0, 10 * MINUTE_MS), st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=30
)


@given(st.lists(attempts, max_size=4), st.integers(0, 99), st.integers(0, 99))
def test_the_counts_of_all_streams_are_added_up_in_whatever_cursors_they_were(streams, parked, retrying):
    cursors, since = [], (NOW_MS // MINUTE_MS - MINUTES + 1) * MINUTE_MS
    for stream in streams:
        recent = Recent()
        for ago_ms, accepted, refused in sorted(stream, reverse=True):
            recent.add(NOW_MS - ago_ms, accepted=accepted, refused=refused)
        assert recent.text(0, 0, alive=True) == recent.text(0, 0, alive=True)
        counted = Cursor(top=7, open=(3,), pending=1, error="503", counts=recent.text(parked, retrying, alive=False))
        again = Cursor.from_metadata(counted.offset, counted.metadata())
        assert again == counted
        cursors.append(again)
    every = [(NOW_MS - ago_ms, accepted, refused) for stream in streams for ago_ms, accepted, refused in stream]
    latest = [one for one in every if one[0] >= since]
    facts = facts_of([*cursors, Cursor(top=1)], NOW_MS)
    accepted_last = facts.accepted_at_ms > facts.refused_at_ms
    assert facts == Facts(
        error="503" if streams and not accepted_last else None,
        parked=parked * len(streams),
        retrying=retrying * len(streams),
        accepted=sum(one[1] for one in latest),
        refused=sum(one[2] for one in latest),
        accepted_at_ms=max((at_ms for at_ms, accepted, _ in every if accepted), default=0),
        refused_at_ms=max((at_ms for at_ms, _, refused in every if refused), default=0),
    )


def test_a_cursor_without_counts_is_written_as_ever_and_foreign_counts_spoil_nothing():
    cursor = Cursor(top=9, open=(4,), pending=1, error="refused", attempts=(2,))
    assert ";" not in cursor.metadata()
    odd = replace(cursor, counts="!")
    assert Cursor.from_metadata(odd.offset, odd.metadata()) == odd
    assert facts_of([odd], NOW_MS) == Facts(error="refused")
    for text in ("", "gA", "AQ", "====", "\u2026"):
        assert read(text)[:3] == (False, 0, 0)


@pytest.mark.parametrize("newest", [0, 1, 2])
def test_the_error_is_that_of_the_newest_failed_attempt_in_whatever_partition_it_was(newest: int):
    cursors = []
    for partition in range(3):
        recent = Recent()
        recent.add(NOW_MS - (1 if partition == newest else 10 * (partition + 1)), refused=1)
        text = recent.text(0, 1, alive=False)
        cursors.append(Cursor(top=1, error=f"error of partition {partition}", counts=text))
    without_error = Cursor(top=1)
    assert facts_of([without_error, *cursors, without_error], NOW_MS).error == f"error of partition {newest}"


def test_a_listener_that_answers_probes_and_refuses_messages_is_not_down():
    recent = Recent()
    recent.add(NOW_MS, refused=3)
    down = Cursor(top=1, state="down", counts=recent.text(0, 3, alive=False))
    refuses = Cursor(top=1, state="down", counts=recent.text(0, 3, alive=True))
    assert facts_of([down], NOW_MS).health(paused=False) is Health.DOWN
    assert facts_of([refuses], NOW_MS).health(paused=False) is Health.FAILING
    assert facts_of([Cursor(top=1, state="down")], NOW_MS).health(paused=False) is Health.DOWN
