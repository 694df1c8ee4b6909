"""How many attempts at once: the limit grows by answers, halves when pushed back, and stays between its bounds."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from broker.core.flow import FIRST, GATE_LEAST, GATE_MOST, LATE_S, WAITED_MAX, Flow, Gate, Share, fair_share

PAUSE_MS = 1_000


class FlowMachine(RuleBasedStateMachine):
    flow: Flow

    @initialize(max_in_flight=st.integers(1, 200))
    def begin(self, max_in_flight):
        self.flow = Flow(max_in_flight)
        self.at_ms = 1_700_000_000_000
        self.decreased_at_ms = 0

    @rule(ms=st.integers(0, 1_500))
    def time_passes(self, ms):
        self.at_ms += ms

    @rule(times=st.integers(1, 300))
    def attempts_succeed(self, times):
        before = self.flow.limit
        for _ in range(times):
            self.flow.succeeded()
        assert before <= self.flow.limit <= before + times

    @rule(times=st.integers(1, 50))
    def the_listener_pushes_back(self, times):
        before = self.flow.limit
        for _ in range(times):
            self.flow.pushed_back(self.at_ms)
        if self.at_ms - self.decreased_at_ms < PAUSE_MS:
            assert self.flow.limit == before
        else:
            assert max(1, before // 2) <= self.flow.limit <= max(1, (before + 1) // 2)
            self.decreased_at_ms = self.at_ms

    @rule(max_in_flight=st.integers(1, 200))
    def the_setting_changes(self, max_in_flight):
        before = self.flow.limit
        self.flow.resize(max_in_flight)
        assert self.flow.limit == min(before, max_in_flight)

    @invariant()
    def the_limit_is_between_one_and_the_setting(self):
        assert 1 <= self.flow.limit <= self.flow.max_in_flight


TestFlow = FlowMachine.TestCase
TestFlow.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_it_begins_with_a_few_and_grows_by_about_one_per_round_of_successes():
    flow = Flow(64)
    assert flow.limit == FIRST
    for _ in range(FIRST + 1):
        flow.succeeded()
    assert flow.limit == FIRST + 1


def test_successes_bring_it_to_the_setting_and_not_beyond():
    flow = Flow(64)
    for _ in range(64 * 64):
        flow.succeeded()
    assert flow.limit == 64


def test_the_answers_to_one_burst_halve_it_once():
    flow = Flow(64)
    for _ in range(16):
        flow.pushed_back(5_000)
    assert flow.limit == FIRST // 2


def test_a_listener_that_pushes_back_for_ever_still_gets_one_at_a_time():
    flow = Flow(64)
    for second in range(100):
        flow.pushed_back(second * PAUSE_MS)
    assert flow.limit == 1
    flow.succeeded()
    flow.succeeded()
    assert flow.limit == 2


@given(st.integers(1, 10_000), st.integers(1, 64))
def test_all_workers_together_have_what_the_listener_allows_or_one_each(total, workers):
    shares = [Share(workers=workers, rank=rank).of(total) for rank in range(workers)]
    assert sum(shares) == max(total, workers)
    assert max(shares) - min(shares) <= 1


@given(st.integers(1, 5_000), st.integers(0, 5_000), st.integers(0, 10_000), st.integers(1, 10))
def test_the_hungry_share_evenly_what_the_others_leave_and_each_has_the_least(total, used, wanting, least):
    share = fair_share(total, used=used, wanting=wanting, least=least)
    assert share >= least
    assert share == least or used + share * wanting <= total
    assert used + (share + 1) * max(wanting, 1) > total


ticks = st.tuples(st.floats(0, 2 * LATE_S), st.floats(0, 2 * WAITED_MAX))


@given(told=st.lists(ticks, max_size=200))
def test_the_gate_of_the_slow_stays_between_its_bounds_and_narrows_only_when_the_machine_is_busy(told):
    gate, before = Gate(), GATE_LEAST
    for late_s, waited in told:
        now = gate.tick(late_s, waited=waited)
        assert GATE_LEAST <= now <= GATE_MOST
        assert (now <= before) if late_s > LATE_S or waited > WAITED_MAX else (now >= before)
        before = now


@pytest.mark.parametrize("busy", [(2 * LATE_S, 0.0), (0.0, 2 * WAITED_MAX)])
def test_the_gate_opens_altogether_for_a_worker_that_is_in_time_and_gives_way_at_once_when_it_is_not(busy):
    gate = Gate()
    for _ in range(GATE_MOST):
        gate.tick(0.0, waited=0.0)
    assert gate.tick(0.0, waited=0.0) == GATE_MOST
    late_s, waited = busy
    for _ in range(10):
        gate.tick(late_s, waited=waited)
    assert gate.tick(late_s, waited=waited) < GATE_MOST / 3
