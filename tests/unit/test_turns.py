"""Ordering keys: whose turn it is."""

from __future__ import annotations

from collections import defaultdict

from hypothesis import given
from hypothesis import strategies as st

from broker.core.flow import Pace
from broker.core.turns import Turns

KEYS = st.sampled_from("abc")


@given(st.lists(st.tuples(KEYS, st.booleans())))
def test_one_delivery_of_a_key_has_the_turn_and_the_others_get_it_in_the_order_they_came(steps: list[tuple[str, bool]]):
    turns: Turns[int] = Turns()
    model: defaultdict[str, list[int]] = defaultdict(list)  # the first of each has the turn
    for number, (key, comes) in enumerate(steps):
        if comes or not model[key]:
            assert turns.take(key, number) == (not model[key])
            model[key].append(number)
        else:
            model[key].pop(0)
            assert turns.next(key) == (model[key][0] if model[key] else None)


def test_a_restart_sends_away_all_who_wait_and_keeps_the_turns_that_go_on():
    turns: Turns[str] = Turns()
    for key in ("held", "free"):
        for number in range(3):
            turns.take(key, f"{key}{number}")
    assert turns.restart(["held"]) == ["held1", "held2", "free1", "free2"]
    assert not turns.take("held", "later")
    assert turns.take("free", "again")
    assert turns.next("held") == "later"


@given(st.floats(0.1, 1000), st.lists(st.floats(0, 2), min_size=1, max_size=200))
def test_a_pace_never_lets_more_begin_than_its_rate_and_its_burst(rate_per_s: float, pauses: list[float]):
    pace, burst_s, now, begun = Pace(rate_per_s, burst_s=0.1), 0.1, 1000.0, 0
    first = None
    for pause in pauses:
        now += pause
        if pace.begin(now):
            first = now if first is None else first
            begun += 1
    assert first is not None, "the first one may always begin"
    assert begun <= rate_per_s * (now - first + burst_s) + 2
