"""What couriers share: the quick ones take what they need, the others share the rest; memory likewise."""

from __future__ import annotations

from types import SimpleNamespace

from broker.delivery.shares import ALL_HELD_BYTES_MAX, ATTEMPTS_LEAST, ATTEMPTS_MAX, HELD_BYTES_MAX, share_out


def couriers(count: int, *, busy: int, hungry: bool) -> list[SimpleNamespace]:
    return [SimpleNamespace(busy=busy, hungry=hungry) for _ in range(count)]


def test_the_hungry_share_what_the_others_leave():
    slow = couriers(200, busy=64, hungry=True)
    share_out([*slow, *couriers(24, busy=2, hungry=False)])
    assert {courier.attempts_share for courier in slow} == {(ATTEMPTS_MAX - 48) // 200}


def test_everybody_may_have_a_few_however_many_there_are():
    many = couriers(10_000, busy=2, hungry=True)
    share_out(many)
    assert {courier.attempts_share for courier in many} == {ATTEMPTS_LEAST}


def test_a_few_may_hold_as_much_as_one_may_and_many_no_more_than_all_may():
    few, many = couriers(3, busy=1, hungry=True), couriers(600, busy=1, hungry=True)
    share_out(few)
    share_out(many)
    assert {courier.bytes_share for courier in few} == {HELD_BYTES_MAX}
    assert sum(courier.bytes_share for courier in many) <= ALL_HELD_BYTES_MAX


def test_nobody_to_share_with_is_no_trouble():
    share_out([])
