"""How many attempts of one listener may be under way and begin: its rate, and how long it is let alone."""

from __future__ import annotations

from broker.core.circuit import Circuit
from broker.core.events import ListenerSettings
from broker.core.flow import WHOLE, Share
from broker.delivery.dispatch.limits import Limits

ONE_A_SECOND = ListenerSettings(rate_per_s=1)


def limits_at_their_rate() -> Limits:
    """Of a listener that has begun all that its rate allows, at 1.0."""
    limits = Limits(Circuit(), ONE_A_SECOND)
    limits.update(ONE_A_SECOND, WHOLE)
    while limits.begin(1.0):
        pass
    return limits


def test_a_change_that_leaves_the_rate_as_it_is_gives_no_fresh_burst():
    limits = limits_at_their_rate()
    limits.update(ListenerSettings(rate_per_s=1, timeout_ms=1_000), WHOLE)
    assert not limits.begin(1.0)
    limits.update(ListenerSettings(rate_per_s=2), WHOLE)
    assert limits.begin(1.0)


def test_one_whose_rate_is_taken_away_is_held_back_no_more():
    limits = limits_at_their_rate()
    assert limits.held_back(0)
    limits.update(ListenerSettings(), WHOLE)
    assert not limits.held_back(0)


def test_a_worker_without_partitions_has_a_little_of_the_rate_all_the_same():
    limits = Limits(Circuit(), ONE_A_SECOND)
    limits.update(ONE_A_SECOND, Share(partitions=0.0))
    assert limits.begin(0.0)


def test_a_listener_is_let_alone_for_as_long_as_it_asks_and_a_minute_at_most():
    limits = Limits(Circuit(), ListenerSettings())
    for asked_s, until_ms in ((7, 7_000), (1_000_000, 60_000)):
        limits.pushed_back(0, asked_s)
        assert limits.let_alone(until_ms - 1)
        assert not limits.let_alone(until_ms)


def test_a_time_out_makes_one_slow_that_is_known_and_does_not_make_a_new_one_known():
    known, new = (Limits(Circuit(), ListenerSettings()) for _ in range(2))
    known.took(5)
    for limits in (known, new):
        for _ in range(9):
            limits.timed_out(60_000)
    assert (known.new, known.quick) == (False, False)
    assert new.new
