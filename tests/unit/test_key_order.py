"""Ordering keys: whose turn it is."""

from __future__ import annotations

from collections import defaultdict

from hypothesis import given
from hypothesis import strategies as st

from broker.core.flow import Pace
from broker.core.key_order import ArrivingOffsets, KeyOrder

KEYS = st.sampled_from("abc")


@given(st.lists(st.tuples(KEYS, st.booleans())))
def test_one_delivery_of_a_key_has_the_turn_and_the_others_get_it_in_the_order_they_came(steps: list[tuple[str, bool]]):
    key_order: KeyOrder[int] = KeyOrder()
    model: defaultdict[str, list[int]] = defaultdict(list)  # the first of each has the turn
    for number, (key, comes) in enumerate(steps):
        if comes or not model[key]:
            assert key_order.take(key, number, 0.0) == (not model[key])
            model[key].append(number)
        else:
            model[key].pop(0)
            assert key_order.next(key, 0.0) == (model[key][0] if model[key] else None)


def test_a_restart_sends_away_all_who_wait_and_keeps_the_turns_that_go_on():
    key_order: KeyOrder[str] = KeyOrder()
    for key in ("held", "free"):
        for number in range(3):
            key_order.take(key, f"{key}{number}", 0.0)
    assert key_order.restart(["held"]) == ["held1", "held2", "free1", "free2"]
    assert not key_order.take("held", "later", 0.0)
    assert key_order.take("free", "again", 0.0)
    assert key_order.next("held", 0.0) == "later"


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


@given(st.lists(st.tuples(KEYS, st.integers(0, 9), st.sampled_from(["joins", "leaves", "forgotten"]))))
def test_of_each_line_the_first_that_is_on_its_way_is_known(steps: list[tuple[str, int, str]]):
    lines: ArrivingOffsets[str] = ArrivingOffsets()
    model: defaultdict[str, set[int]] = defaultdict(set)
    for key, offset, what in steps:
        if what == "leaves":
            lines.leave(key, offset)
            model[key].discard(offset)
        elif what == "joins":
            lines.join(key, offset)
            model[key].add(offset)
        else:
            assert lines.forget(lambda one, key=key: one == key) == ([key] if model.pop(key, None) else [])
        assert [lines.first(one) for one in "abc"] == [min(model[one], default=None) for one in "abc"]
        assert len(lines) == sum(map(bool, model.values()))


@given(st.lists(st.tuples(KEYS, st.sampled_from(["take", "next", "drop", "restart", "away"]), st.integers(0, 5))))
def test_it_is_known_how_many_wait_and_for_how_long_the_turn_was_one_deliverys(steps: list[tuple[str, str, int]]):
    key_order: KeyOrder[int] = KeyOrder()
    waiting: defaultdict[str, int] = defaultdict(int)
    since: dict[str, float] = {}
    now = 0.0
    for key, what, pause in steps:
        now += pause
        if what == "take":
            if key_order.take(key, 0, now):
                since[key] = now
            else:
                waiting[key] += 1
        elif what == "next" and key_order.next(key, now) is not None:
            waiting[key] -= 1
            since[key] = now
        elif what == "away":
            assert len(key_order.send_away(key)) == waiting.pop(key, 0)
        elif what == "restart":
            key_order.restart([key] if key in since else [])
            waiting.clear()
            since = {key: since[key]} if key in since else {}
        elif what in ("next", "drop"):
            key_order.drop(key)
            waiting.pop(key, None)
            since.pop(key, None)
        assert key_order.waiting == sum(waiting.values())
        assert all(key_order.taken_for_s(one, now) == now - since.get(one, now) for one in "abc")
        assert key_order.held_for(now, 3.0) == [one for one in key_order.held_for(now, 0.0) if now - since[one] >= 3.0]
        assert sorted(key_order.held_for(now, 0.0)) == sorted(one for one, count in waiting.items() if count)
