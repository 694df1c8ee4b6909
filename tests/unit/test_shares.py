"""What couriers share: the quick ones take what they need, the others share the rest; memory likewise."""

from __future__ import annotations

from types import SimpleNamespace

from hypothesis import given
from hypothesis import strategies as st

from broker.core.circuit import Circuit
from broker.core.events import ListenerSettings
from broker.core.flow import FIRST, WHOLE
from broker.delivery.limits import Limits
from broker.delivery.shares import ALL_HELD_BYTES_MAX, ATTEMPTS_LEAST, ATTEMPTS_MAX, HELD_BYTES_MAX, share_out


def couriers(count: int, *, busy: int, hungry: bool, slow: bool = False) -> list[SimpleNamespace]:
    return [
        SimpleNamespace(busy=busy, hungry=hungry, limits=SimpleNamespace(gives_way=slow, begins=0))
        for _ in range(count)
    ]


def test_the_hungry_share_what_the_others_leave():
    slow = couriers(200, busy=64, hungry=True)
    share_out([*slow, *couriers(24, busy=2, hungry=False)], begins=0, tick=0)
    assert {courier.limits.share for courier in slow} == {(ATTEMPTS_MAX - 48) // 200}


def test_everybody_may_have_a_few_however_many_there_are():
    many = couriers(10_000, busy=2, hungry=True)
    share_out(many, begins=0, tick=0)
    assert {courier.limits.share for courier in many} == {ATTEMPTS_LEAST}


def test_a_few_may_hold_as_much_as_one_may_and_many_no_more_than_all_may():
    few, many = couriers(3, busy=1, hungry=True), couriers(600, busy=1, hungry=True)
    share_out(few, begins=0, tick=0)
    share_out(many, begins=0, tick=0)
    assert {courier.bytes_share for courier in few} == {HELD_BYTES_MAX}
    assert sum(courier.bytes_share for courier in many) <= ALL_HELD_BYTES_MAX


@given(slow=st.integers(1, 50), begins=st.integers(0, 200))
def test_the_slow_begin_what_they_may_together_and_over_some_ticks_each_as_much(slow, begins):
    all_of_them = couriers(slow, busy=0, hungry=True, slow=True)
    begun = [0] * slow
    for tick in range(slow):
        share_out(all_of_them, begins=begins, tick=tick)
        assert sum(courier.limits.begins for courier in all_of_them) == begins
        begun = [so_far + courier.limits.begins for so_far, courier in zip(begun, all_of_them, strict=True)]
    assert set(begun) == {begins}


def test_a_slow_one_that_has_nothing_to_do_need_not_wait_for_the_next_tick_when_it_gets_something():
    idle, quick = couriers(1, busy=0, hungry=False, slow=True), couriers(5, busy=9, hungry=True)
    share_out([*idle, *quick], begins=0, tick=3)
    assert idle[0].limits.begins == 1
    assert {courier.limits.begins for courier in quick} == {0}  # does not count for them


def test_a_replay_begins_no_more_than_is_left_to_it_however_quickly_it_is_answered():
    settings = ListenerSettings()
    limits, normal = Limits(Circuit(), settings, replay=True), Limits(Circuit(), settings)
    courier = SimpleNamespace(busy=1, hungry=True, limits=limits)
    for one in (limits, normal):
        one.update(settings, WHOLE)
        one.took(1)
    share_out([courier], begins=2, tick=0)
    assert (limits.most(1), normal.most(1)) == (1 + 2, FIRST)
    assert limits.begin(0.0)
    assert limits.begin(0.0)
    assert limits.most(1) == 1


def test_nobody_to_share_with_is_no_trouble():
    share_out([], begins=5, tick=0)
