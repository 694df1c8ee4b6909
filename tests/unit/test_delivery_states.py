"""The states of a delivery, and what follows an attempt that was not taken."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from broker.core.delivery import (
    AGAIN,
    AWAY,
    DELIVERED,
    DROPPED,
    ENDED,
    HOLDS,
    MEANS,
    MISSING,
    NEXT,
    PUT_OFF,
    READY,
    SENT,
    Decision,
    Failure,
    History,
    Kind,
    Leaving,
    Verdict,
    Waiting,
    judge,
    legal,
    picture,
    taken,
)
from broker.core.retry import RetryPolicy
from broker.delivery.dispatch.stream import Delivery
from tests.legal import IllegalTransition

AT_MS = 1_000_000
POLICY = RetryPolicy(delay_ms_first=1_000, delay_ms_max=3_600_000, max_attempts=5, max_age_ms=600_000)
FIRST = History(number=1, first_at_ms=AT_MS, since_ms=AT_MS)


def judged(failure: Failure, history: History = FIRST, *, policy: RetryPolicy = POLICY, jitter: float = 0.5) -> Verdict:
    return judge(failure, history, policy, at_ms=AT_MS, set_aside_after_ms=60_000, jitter=jitter)


def test_the_picture_in_the_docs_is_that_of_the_table():
    docs = Path(__file__).parents[2] / "docs/delivery.md"
    assert docs.read_text() == picture(), "make events"


def test_every_state_is_reached_and_ends():
    assert NEXT.keys() == MEANS.keys() == set(Kind)
    reached = {Kind.MISSING}
    while more := {after for kind in reached for after in NEXT[kind]} - reached:
        reached |= more
    assert reached == set(Kind)
    ending = set(ENDED)
    while more := {kind for kind in NEXT if NEXT[kind].keys() & ending} - ending:
        ending |= more
    assert ending == set(Kind)


def test_whatever_is_not_ended_may_be_dropped_and_nothing_leaves_an_end():
    assert all(Kind.DROPPED in NEXT[kind] for kind in set(Kind) - ENDED)
    assert {Kind.DELIVERED, Kind.KEPT, Kind.RETURNED, Kind.CANCELLED, Kind.DROPPED} == ENDED
    assert set(Kind) - ENDED - {Kind.MISSING} == HOLDS


def test_an_attempt_begins_in_ready_only():
    begins = {kind for kind in Kind if Kind.CONNECTING in NEXT[kind]}
    assert begins == {Kind.READY}
    assert {kind for kind in Kind if Kind.SENT in NEXT[kind]} == {Kind.READY, Kind.CONNECTING}
    assert {kind for kind in Kind if Kind.DELIVERED in NEXT[kind]} == {Kind.SENT}


def test_what_the_table_does_not_know_raises_in_tests():
    delivery = Delivery(None, 0, None)
    for state in (READY, SENT, Waiting(1, "retry"), READY, SENT, DELIVERED):
        delivery.state = state
    with pytest.raises(IllegalTransition):
        delivery.state = DROPPED
    assert delivery.state is DELIVERED
    assert not legal(MISSING, SENT)
    assert not legal(Leaving(None, 500, None), READY)


@pytest.mark.parametrize(("status", "is_taken"), [(199, False), (200, True), (204, True), (299, True), (300, False)])
def test_only_2xx_takes_a_message(status: int, is_taken: bool):
    assert taken(status) is is_taken


@pytest.mark.parametrize(
    ("failure", "fault", "slow_down"),
    [
        (Failure(status=500), True, False),
        (Failure(status=503), True, True),
        (Failure(status=429), False, True),
        (Failure(status=422), False, False),
        (Failure(status=302), False, False),
        (Failure(error="refused", connected=False), True, False),
        (Failure(error="connect-timeout", connected=False), True, True),
        (Failure(error="timeout"), True, True),
        (Failure(error="closed"), True, False),
        (Failure(error="garbage"), True, False),
    ],
)
def test_a_failure_is_retried_and_counts_for_what_it_is(failure: Failure, fault: bool, slow_down: bool):
    assert judged(failure) == Verdict(Decision.RETRY, AT_MS + 500, fault=fault, slow_down=slow_down)


def test_a_listener_that_names_a_time_gets_it():
    assert judged(Failure(status=503, retry_after_s=7)).due_ms == AT_MS + 7_000


def test_the_last_attempt_parks():
    fifth = replace(FIRST, number=5)
    assert judged(Failure(status=500), fifth) == Verdict(Decision.PARK, None, fault=True)
    old = replace(FIRST, since_ms=AT_MS - 600_000)
    assert judged(Failure(status=500), old).decision is Decision.PARK


@pytest.mark.parametrize(
    "history",
    [
        replace(FIRST, first_at_ms=AT_MS - 60_000),
        replace(FIRST, outstanding=True),
        replace(FIRST, crowded=True),
    ],
)
def test_what_fails_for_long_came_from_outstanding_or_takes_the_room_of_others_is_set_aside(history: History):
    verdict = judged(Failure(status=500), history)
    assert (verdict.decision, verdict.due_ms) == (Decision.SET_ASIDE, AT_MS + 500)


def test_a_retry_that_is_due_after_a_minute_is_set_aside():
    policy = replace(POLICY, delay_ms_first=100_000)
    assert judged(Failure(status=500), policy=policy, jitter=0.9).decision is Decision.SET_ASIDE
    assert judged(Failure(status=500), policy=policy, jitter=0.1).decision is Decision.RETRY


def test_a_connection_that_was_closed_while_it_was_idle_is_no_attempt_but_once():
    stale = Failure(error="closed", stale=True)
    assert judged(stale) is AGAIN
    assert judged(stale, replace(FIRST, again=True)).decision is Decision.RETRY
    assert judged(replace(stale, error="timeout")).decision is Decision.RETRY
    assert judged(Failure(error="closed")).decision is Decision.RETRY


@pytest.mark.parametrize(
    ("failure", "away"),
    [
        (Failure(status=599, tunnel=True), True),
        (Failure(status=599), False),
        (Failure(error="refused", connected=False, tunnel=True), True),
        (Failure(error="connect-timeout", connected=False, tunnel=True), True),
        (Failure(error="garbage", tunnel=True), True),
        (Failure(error="timeout", tunnel=True), False),
        (Failure(error="closed", tunnel=True), False),
        (Failure(status=500, tunnel=True), False),
    ],
)
def test_nobody_holds_the_tunnel(failure: Failure, away: bool):
    assert (judged(failure) is AWAY) is away


def test_a_name_that_had_no_turn_in_dns_is_no_attempt():
    assert judged(Failure(error="dns", tried=False, connected=False)) is PUT_OFF
    assert judged(Failure(error="dns", connected=False)).decision is Decision.RETRY
