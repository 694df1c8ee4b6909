"""How often each of many listeners that are down is asked, by a clock of its own and with no listener at all."""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise

import pytest

from broker.core.circuit import PROBE_MS_FIRST, PROBE_MS_MAX
from broker.core.probes import Probes, interval_ms
from broker.delivery.tuning import TUNED

TICK_MS = 50
HOUR_MS = 3_600_000


def asked(down_for_ms: dict[str, int], *, most: int, for_ms: int) -> dict[str, list[int]]:
    """When each was asked, all being down for so long already and staying so; most: probes in a tick."""
    probes: Probes[str] = Probes()
    since_ms = {name: HOUR_MS - ms for name, ms in down_for_ms.items()}
    for name, when_ms in since_ms.items():
        probes.add(name, at_ms=HOUR_MS, since_ms=when_ms)
    found: dict[str, list[int]] = defaultdict(list)
    for at_ms in range(HOUR_MS, HOUR_MS + for_ms, TICK_MS):
        left = most
        while left and (name := probes.next(at_ms)) is not None:
            left -= 1
            found[name].append(at_ms)
            wait_ms = interval_ms(at_ms - since_ms[name], listeners=len(down_for_ms), per_s=most * 1000 // TICK_MS)
            probes.add(name, at_ms=at_ms + wait_ms, since_ms=since_ms[name])
    return found


def longest_wait_ms(times: list[int], *, for_ms: int) -> int:
    return max(after - before for before, after in pairwise([HOUR_MS, *times, HOUR_MS + for_ms]))


def long_dead(count: int) -> dict[str, int]:
    return {f"old-{number}": HOUR_MS for number in range(count)}


def test_few_are_asked_twice_a_second_however_long_they_are_down():
    found = asked(long_dead(TUNED.probes_min * 10), most=TUNED.probes_min, for_ms=20_000)
    assert {longest_wait_ms(times, for_ms=20_000) for times in found.values()} == {PROBE_MS_FIRST}


@pytest.mark.parametrize("most", [TUNED.probes_min, TUNED.probes_max])
@pytest.mark.parametrize("old", [600, 10_000])
def test_one_that_has_just_gone_is_asked_twice_a_second_beside_thousands_that_are_dead_for_long(old, most):
    found = asked(long_dead(old) | {"gone": 0}, most=most, for_ms=5_000)
    assert longest_wait_ms(found["gone"], for_ms=5_000) <= PROBE_MS_FIRST + TICK_MS


def test_the_last_to_go_comes_first_where_hundreds_went_a_moment_before():
    before = {f"before-{number}": 10_000 + number for number in range(600)}
    found = asked(before | {"gone": 0}, most=TUNED.probes_min, for_ms=5_000)
    assert longest_wait_ms(found["gone"], for_ms=5_000) <= PROBE_MS_FIRST + TICK_MS


def test_none_waits_for_ever_although_more_are_asked_often_than_there_may_be_probes():
    """The longest wait is that of their number, at half of the probes there may be."""
    going = {f"going-{number}": 0 for number in range(40)}
    found = asked(long_dead(560) | going, most=TUNED.probes_min, for_ms=100_000)
    assert len(found) == 600
    in_turn_ms = 600 * TICK_MS // (TUNED.probes_min // 2)
    assert max(longest_wait_ms(times, for_ms=100_000) for times in found.values()) <= in_turn_ms + PROBE_MS_MAX


def test_one_that_is_down_for_longer_is_asked_less_often_where_many_are():
    waits = [interval_ms(down_ms, listeners=10_000, per_s=200) for down_ms in (0, 10_000, 20_000, 60_000, HOUR_MS)]
    assert waits == [PROBE_MS_FIRST, PROBE_MS_FIRST, 1_000, 3_000, PROBE_MS_MAX]
