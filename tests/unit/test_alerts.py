"""Alerts: the rule of when one begins and ends, and the fold. One worker's checks are in test_alert_watch.py."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.core import events as ev
from broker.core.alerts import (
    BACK_MS,
    CALM_MS,
    INTERVAL_MS,
    Alerts,
    Kind,
    Level,
    ListenerFacts,
    Reading,
    Step,
    Thresholds,
    Trigger,
    readings,
    steps,
    thresholds,
)
from broker.core.events import AlertThresholds, ListenerSettings

HOLD_MS = 60_000
waits = st.sampled_from([0, CALM_MS, HOLD_MS]) | st.integers(0, 400_000)
times = st.lists(st.tuples(waits, st.sampled_from(Level)), max_size=60)


def replay(looks: list[tuple[int, Level]]) -> list[tuple[int, Level, Step | None, int]]:
    """Each look's time, level, what came of it, and how long the level had lasted."""
    trigger, at_ms, since_ms, before, seen = Trigger(), 1, 1, None, []
    for wait_ms, level in looks:
        at_ms += wait_ms
        if level is not before:
            since_ms, before = at_ms, level
        seen.append((at_ms, level, trigger.step(Reading(level, HOLD_MS, CALM_MS), at_ms), at_ms - since_ms))
    return seen


@given(times)
def test_beginnings_and_ends_take_turns(looks):
    changes = [step for _, _, step, _ in replay(looks) if step is not None]
    assert all((step is Step.BEGIN) == (place % 2 == 0) for place, step in enumerate(changes))


@given(times)
def test_an_alert_begins_only_after_the_level_was_high_for_as_long_as_it_must(looks):
    for _, level, step, lasted_ms in replay(looks):
        if step is Step.BEGIN:
            assert level is Level.HIGH
            assert lasted_ms >= HOLD_MS
        if step is Step.END:
            assert level is Level.LOW
            assert lasted_ms >= CALM_MS
        if level is Level.BETWEEN:
            assert step is None


@given(times)
def test_two_beginnings_have_their_interval_between_them(looks):
    begun = [at_ms for at_ms, _, step, _ in replay(looks) if step is Step.BEGIN]
    assert all(later - earlier >= INTERVAL_MS for earlier, later in itertools.pairwise(begun))


def test_what_comes_and_goes_begins_again_only_after_the_interval():
    comes_and_goes = [(1, Level.HIGH), (HOLD_MS, Level.HIGH), (1, Level.LOW), (CALM_MS, Level.LOW)] * 10
    begun = [at_ms for at_ms, _, step, _ in replay(comes_and_goes) if step is Step.BEGIN]
    assert [later - earlier for earlier, later in itertools.pairwise(begun)] == [5 * (HOLD_MS + CALM_MS + 2)]


@given(st.integers(0, 3), st.integers(1, 400_000))
def test_what_is_high_long_enough_does_begin(looks_before, wait_ms):
    seen = replay([(1, Level.LOW)] * looks_before + [(wait_ms, Level.HIGH), (HOLD_MS, Level.HIGH)])
    assert [step for _, _, step, _ in seen][-1] is Step.BEGIN


def test_a_beginning_in_the_future_of_a_clock_that_was_wrong_does_not_prevent_an_alert():
    trigger = Trigger(begun_at_ms=10**13)
    assert trigger.step(Reading(Level.HIGH), 10**12) is Step.BEGIN


def test_a_number_between_the_two_thresholds_changes_nothing():
    trigger = Trigger()
    limits = Thresholds(parked=10)
    found = [
        trigger.step(readings(ListenerFacts(parked=parked), limits, at_ms)[Kind.PARKED], at_ms)
        for at_ms, parked in [(1, 9), (2, 10), (3, 9), (4, 11), (5, 5), (6, 4), (6 + CALM_MS, 4)]
    ]
    assert found == [None, Step.BEGIN, None, None, None, None, Step.END]


@pytest.mark.parametrize(
    ("facts", "high"),
    [
        (ListenerFacts(health="down"), {Kind.DOWN}),
        (ListenerFacts(health="failing"), {Kind.FAILING}),
        (ListenerFacts(lag=10_000), {Kind.LAG}),
        (ListenerFacts(lag=1, oldest_at_ms=100_000), {Kind.LAG}),
        (ListenerFacts(lag=10_000, health="paused"), set()),
        (ListenerFacts(parked=1), {Kind.PARKED}),
        (ListenerFacts(secret_ends_at_ms=1_000_001), {Kind.SECRET}),
        (ListenerFacts(secret_ends_at_ms=1_000_000), set()),
        (ListenerFacts(), set()),
    ],
)
def test_facts_are_compared_with_the_thresholds(facts, high):
    found = readings(facts, Thresholds(lag_s=900), 1_000_000)
    assert {kind for kind, reading in found.items() if reading.level is Level.HIGH} == high


def test_a_threshold_of_zero_turns_an_alert_off_and_ends_it_without_a_message():
    off = Thresholds(lag_messages=0, lag_s=0, parked=0, down_s=0, failing_s=0)
    facts = ListenerFacts(health="down", lag=10**9, parked=10**9, oldest_at_ms=0)
    assert {reading.level for kind, reading in readings(facts, off, 10**9).items() if kind is not Kind.SECRET} == {
        Level.OFF
    }
    assert Trigger(open=True, begun_at_ms=1).step(Reading(Level.OFF), 2) is Step.END_QUIETLY


def test_a_listener_has_its_own_thresholds_then_its_queues_then_the_defaults():
    assert thresholds(AlertThresholds(parked=3), AlertThresholds(parked=5, lag_s=7)) == Thresholds(parked=3, lag_s=7)
    assert thresholds(ListenerSettings().alerts) == Thresholds()


def test_a_listener_that_fails_and_then_is_down_comes_back_once():
    triggers = {kind: Trigger() for kind in Kind}
    found, at_ms = [], 1
    for wait_ms, health in [
        (0, "failing"),
        (300_000, "failing"),
        (1, "down"),
        (60_000, "down"),
        (1, "healthy"),
        (BACK_MS, "healthy"),
        (BACK_MS, "healthy"),
    ]:
        at_ms += wait_ms
        found.append(steps(triggers, readings(ListenerFacts(health=health), Thresholds(), at_ms), at_ms))
    assert found == [
        {},
        {Kind.FAILING: Step.BEGIN},
        {},
        {Kind.DOWN: Step.BEGIN, Kind.FAILING: Step.END_QUIETLY},
        {},
        {Kind.DOWN: Step.END},
        {},
    ]


# The fold

BY = {"at_ms": 1, "organization_id": "o", "actor": "worker", "alert": "listener.down", "listener_id": "l"}


def test_the_first_beginning_counts_and_the_end_of_another_episode_does_not():
    alerts = Alerts()
    assert alerts.apply(ev.AlertRaised(**BY, alert_id="1"))
    assert not alerts.apply(ev.AlertRaised(**BY, alert_id="2"))
    assert not alerts.apply(ev.AlertCleared(**BY, alert_id="2"))
    assert alerts.trigger(Kind.DOWN, "l") == Trigger(open=True, begun_at_ms=1)
    assert alerts.apply(ev.AlertCleared(**BY, alert_id="1"))
    assert not alerts.apply(ev.AlertCleared(**BY, alert_id="1"))
    assert alerts.trigger(Kind.DOWN, "l") == Trigger(open=False, begun_at_ms=1)
    alerts.forget("l")
    assert alerts.trigger(Kind.DOWN, "l") == Trigger()
    assert not alerts.apply(ev.AlertTold(at_ms=1, organization_id="o", alert_id="1", message_id="m"))
