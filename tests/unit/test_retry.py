"""When a failed attempt is made again: full jitter below a doubling bound, and what the listener asked for."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.core.retry import RetryPolicy, delay_ms, next_at_ms

ALMOST_ONE = 1 - 2**-53
JITTER = st.floats(0, 1, exclude_max=True)
POLICIES = st.builds(
    RetryPolicy,
    delay_ms_first=st.integers(1, 10_000),
    delay_ms_max=st.integers(1_000, 3_600_000),
    delay_ms_min=st.integers(0, 1_000),
    max_attempts=st.one_of(st.none(), st.integers(1, 20)),
    max_age_ms=st.integers(1, 10**9),
)
ASKED = st.one_of(st.none(), st.integers(0, 10**9))


@settings(deadline=None)
@given(POLICIES, st.integers(1, 10**6), ASKED, JITTER)
def test_a_wait_is_never_shorter_than_the_least_nor_longer_than_the_most(policy, number, asked, jitter):
    wait = delay_ms(policy, number, retry_after_s=asked, jitter=jitter)
    assert policy.delay_ms_min <= wait <= max(policy.delay_ms_min, policy.delay_ms_max)


@settings(deadline=None)
@given(POLICIES, st.integers(1, 100), JITTER)
def test_the_jitter_is_full_it_spreads_over_everything_below_the_bound(policy, number, jitter):
    bound = min(policy.delay_ms_max, policy.delay_ms_first * 2 ** (number - 1))
    wait = delay_ms(policy, number, retry_after_s=None, jitter=jitter)
    assert wait == max(policy.delay_ms_min, int(bound * jitter))


def test_the_bound_doubles_with_each_failure_until_the_longest_wait():
    policy = RetryPolicy(delay_ms_first=1_000, delay_ms_max=60_000, delay_ms_min=0)
    bounds = [delay_ms(policy, number, retry_after_s=None, jitter=ALMOST_ONE) + 1 for number in range(1, 9)]
    assert bounds == [1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 60_000, 60_000]


@pytest.mark.parametrize(("asked", "least"), [(0, 0), (1, 1_000), (7, 7_000), (60, 60_000), (86_400, 60_000)])
def test_retry_after_is_waited_for_up_to_the_longest_wait(asked, least):
    policy = RetryPolicy(delay_ms_max=60_000, delay_ms_min=0)
    assert delay_ms(policy, 1, retry_after_s=asked, jitter=0.0) == least


@settings(deadline=None)
@given(POLICIES, st.integers(1, 50), st.integers(0, 10**6), JITTER)
def test_retry_after_never_makes_a_wait_shorter(policy, number, asked, jitter):
    without = delay_ms(policy, number, retry_after_s=None, jitter=jitter)
    assert delay_ms(policy, number, retry_after_s=asked, jitter=jitter) >= without


@pytest.mark.parametrize("number", [0, -1])
def test_attempts_are_numbered_from_1(number):
    with pytest.raises(ValueError, match="must be at least 1"):
        delay_ms(RetryPolicy(), number, retry_after_s=None, jitter=0.5)


@settings(deadline=None)
@given(POLICIES, st.integers(1, 30), st.integers(0, 2 * 10**9), ASKED, JITTER)
def test_an_attempt_is_left_exactly_while_neither_the_number_nor_the_age_is_used_up(policy, number, age, asked, jitter):
    at_ms = 1_700_000_000_000
    due = next_at_ms(policy, number, since_ms=at_ms - age, at_ms=at_ms, retry_after_s=asked, jitter=jitter)
    used_up = (policy.max_attempts is not None and number >= policy.max_attempts) or age >= policy.max_age_ms
    assert (due is None) == used_up
    if due is not None:
        assert due == at_ms + delay_ms(policy, number, retry_after_s=asked, jitter=jitter)
