"""The circuit against a model: when it opens, that nothing flows while it is open, that it is never stuck."""

from __future__ import annotations

from copy import copy

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from broker.core.circuit import (
    PROBATION_DONE,
    PROBATION_FIRST,
    PROBE_MS_FIRST,
    PROBE_MS_MAX,
    TRIP_AFTER,
    TRIP_AFTER_NEW,
    Circuit,
    State,
)


class CircuitMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.circuit = Circuit()
        self.at_ms = 1_700_000_000_000
        self.in_a_row = 0  # faults since the last success, while closed
        self.relapses = 0
        self.down_since_ms = 0

    @rule(ms=st.integers(1, 20_000))
    def time_passes(self, ms):
        self.at_ms += ms

    @rule()
    def an_attempt_succeeds(self):
        before, allowance = self.circuit.state, self.circuit.allowance
        self.circuit.succeeded()
        self.in_a_row = 0
        if before is State.PROBATION:
            self.down_since_ms = 0
            if allowance * 2 >= PROBATION_DONE:
                assert self.circuit.state is State.CLOSED
                self.relapses = 0
            else:
                assert self.circuit.allowance == allowance * 2
        else:
            assert self.circuit.state is before

    @rule(new=st.booleans())
    def an_attempt_fails(self, new):
        before, probe_at_ms = self.circuit.state, self.circuit.probe_at_ms
        opened = self.circuit.failed(self.at_ms, new=new)
        self.in_a_row += 1
        if before is State.CLOSED:
            assert opened == (self.in_a_row >= (TRIP_AFTER_NEW if new else TRIP_AFTER))
        elif before is State.PROBATION:
            assert opened == (self.in_a_row >= TRIP_AFTER_NEW)
            self.relapses += opened
        else:
            assert not opened
            assert self.circuit.probe_at_ms == probe_at_ms  # late failures don't put the probe off
        if opened:
            self.down_since_ms = self.down_since_ms or self.at_ms
            wait = self.circuit.probe_at_ms - self.at_ms
            assert wait == min(PROBE_MS_MAX, PROBE_MS_FIRST * 2**self.relapses)

    @rule()
    def nobody_is_there(self):
        before, probe_at_ms = self.circuit.state, self.circuit.probe_at_ms
        opened = self.circuit.trip(self.at_ms)
        assert opened == (before is not State.OPEN)
        self.down_since_ms, self.relapses = self.down_since_ms or self.at_ms, 0
        assert self.circuit.state is State.OPEN
        assert self.circuit.probe_at_ms == (self.at_ms + PROBE_MS_FIRST if opened else probe_at_ms)

    @rule(alive=st.booleans(), interval_ms=st.integers(PROBE_MS_FIRST, PROBE_MS_MAX))
    def its_liveness_url_is_asked(self, alive, interval_ms):
        before = self.circuit.state
        flows = self.circuit.probed(alive=alive, at_ms=self.at_ms, interval_ms=interval_ms)
        assert flows == (before is State.OPEN and alive)
        if flows:
            assert self.circuit.state is State.PROBATION
            assert self.circuit.allowance == PROBATION_FIRST
            self.in_a_row = 0
        elif before is State.OPEN:
            assert self.circuit.probe_at_ms == self.at_ms + interval_ms
            self.relapses = 0

    @precondition(lambda self: self.circuit.state is State.PROBATION)
    @rule()
    def it_relapses_when_it_fails_as_often_in_a_row_as_a_new_one_may(self):
        while self.in_a_row < TRIP_AFTER_NEW - 1:
            assert not self.circuit.failed(self.at_ms)
            self.in_a_row += 1
        assert self.circuit.failed(self.at_ms)
        assert self.circuit.state is State.OPEN
        self.in_a_row += 1
        self.relapses += 1
        self.down_since_ms = self.down_since_ms or self.at_ms

    @invariant()
    def it_is_alive_while_it_is_open_only_since_attempts_failed_again(self):
        assert self.circuit.alive == (self.circuit.state is State.OPEN and self.relapses > 0)

    @invariant()
    def nothing_flows_while_it_is_open_and_everything_while_it_is_closed(self):
        expected = {State.OPEN: {0}, State.CLOSED: {None}, State.PROBATION: set(range(1, PROBATION_DONE))}
        assert self.circuit.allowance in expected[self.circuit.state]

    @invariant()
    def it_is_down_since_it_opened_for_the_first_time_without_a_success_in_between(self):
        assert self.circuit.down_since_ms == self.down_since_ms

    @invariant()
    def the_next_probe_is_never_further_off_than_the_longest_pause(self):
        if self.circuit.state is State.OPEN:
            assert self.circuit.probe_at_ms - self.at_ms <= PROBE_MS_MAX

    @invariant()
    def it_is_never_stuck_a_good_probe_and_a_few_successes_close_it(self):
        circuit = copy(self.circuit)
        circuit.probed(alive=True, at_ms=self.at_ms, interval_ms=PROBE_MS_FIRST)
        for _ in range(PROBATION_DONE):
            circuit.succeeded()
        assert circuit.state is State.CLOSED


TestCircuit = CircuitMachine.TestCase
TestCircuit.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_faults_that_are_not_in_a_row_never_open_it():
    circuit = Circuit()
    for _ in range(10):
        for _ in range(TRIP_AFTER - 1):
            assert not circuit.failed(0)
        circuit.succeeded()
    assert circuit.state is State.CLOSED


def relapse(circuit: Circuit) -> None:
    circuit.probed(alive=True, at_ms=0, interval_ms=PROBE_MS_FIRST)
    for _ in range(TRIP_AFTER_NEW):
        circuit.failed(0)


def test_who_fails_every_other_attempt_gets_through_probation():
    circuit = Circuit()
    for _ in range(TRIP_AFTER):
        circuit.failed(0)
    circuit.probed(alive=True, at_ms=0, interval_ms=PROBE_MS_FIRST)
    for _ in range(PROBATION_DONE):
        assert not circuit.failed(0)
        circuit.succeeded()
    assert circuit.state is State.CLOSED


def test_a_listener_that_relapses_again_and_again_is_probed_less_and_less_often():
    circuit = Circuit()
    for _ in range(TRIP_AFTER):
        circuit.failed(0)
    waits = [circuit.probe_at_ms]
    for _ in range(8):
        relapse(circuit)
        waits.append(circuit.probe_at_ms)
    assert waits == [500, 1_000, 2_000, 4_000, 8_000, 10_000, 10_000, 10_000, 10_000]


def test_a_listener_that_was_really_down_in_between_is_probed_often_again():
    circuit = Circuit()
    for _ in range(TRIP_AFTER):
        circuit.failed(0)
    for _ in range(4):
        relapse(circuit)
    circuit.probed(alive=False, at_ms=0, interval_ms=PROBE_MS_FIRST)
    relapse(circuit)
    assert circuit.probe_at_ms == 2 * PROBE_MS_FIRST


@pytest.mark.parametrize("probed", [False, True])
def test_a_listener_that_is_found_unreachable_after_a_relapse_is_not_alive(probed: bool):
    circuit = Circuit()
    for _ in range(TRIP_AFTER):
        circuit.failed(0)
    relapse(circuit)
    assert circuit.alive
    if probed:
        circuit.probed(alive=True, at_ms=0, interval_ms=PROBE_MS_FIRST)
    assert circuit.trip(0) is probed, "without the probe, it is open already"
    assert not circuit.alive
