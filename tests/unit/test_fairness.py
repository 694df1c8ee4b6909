"""What dispatchers share: the quick ones take what they need, the others share the rest; memory likewise."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.core.circuit import Circuit
from broker.core.events import ListenerSettings
from broker.core.flow import FIRST, WAITED_MAX, WHOLE
from broker.delivery.dispatch.fairness import (
    SCHEDSTAT,
    Processor,
    deal_permits,
    share_out,
)
from broker.delivery.dispatch.limits import Limits, Priority
from broker.delivery.tuning import TUNED


def dispatchers(
    count: int, *, busy: int, wants_more: bool, priority: Priority = Priority.FAST, held_bytes: int = 0
) -> list[SimpleNamespace]:
    return [
        SimpleNamespace(
            busy=busy,
            wants_more=wants_more,
            waits=wants_more,
            limits=SimpleNamespace(priority=priority, permits=0),
            memory=SimpleNamespace(held_bytes=held_bytes),
        )
        for _ in range(count)
    ]


def test_the_hungry_share_what_the_others_leave():
    slow = dispatchers(200, busy=64, wants_more=True, priority=Priority.SLOW)
    share_out([*slow, *dispatchers(24, busy=2, wants_more=False)])
    assert {dispatcher.limits.share for dispatcher in slow} == {(TUNED.attempts_max - 48) // 200}


def test_a_quick_one_has_what_it_would_have_alone_the_slow_share_what_it_leaves_and_then_come_those_that_fail():
    quick, slow = (
        dispatchers(1, busy=64, wants_more=True),
        dispatchers(200, busy=2, wants_more=True, priority=Priority.SLOW),
    )
    hanging, failing = (
        dispatchers(300, busy=2, wants_more=False, priority=Priority.FAILING),
        dispatchers(9, busy=1, wants_more=True, priority=Priority.FAILING),
    )
    share_out([*failing, *hanging, *slow, *quick])
    assert quick[0].limits.share == TUNED.attempts_max
    assert {dispatcher.limits.share for dispatcher in slow} == {(TUNED.attempts_max - 64) // 200}
    assert {dispatcher.limits.share for dispatcher in failing} == {TUNED.attempts_min}


def test_everybody_may_have_a_few_however_many_there_are():
    many = dispatchers(10_000, busy=2, wants_more=True)
    share_out(many)
    assert {dispatcher.limits.share for dispatcher in many} == {TUNED.attempts_min}


def test_a_few_may_hold_as_much_as_one_may_and_many_no_more_than_all_may():
    few, many = dispatchers(3, busy=1, wants_more=True), dispatchers(600, busy=1, wants_more=True)
    share_out(few)
    share_out(many)
    assert {dispatcher.memory.bytes_share for dispatcher in few} == {TUNED.held_bytes_max}
    assert sum(dispatcher.memory.bytes_share for dispatcher in many) <= TUNED.all_held_bytes_max


def test_a_quick_one_may_hold_as_much_as_one_may_beside_many_others_that_share_what_it_leaves():
    quick, slow = (
        dispatchers(2, busy=1, wants_more=True, held_bytes=TUNED.held_bytes_max),
        dispatchers(600, busy=1, wants_more=True, priority=Priority.SLOW),
    )
    share_out([*slow, *quick])
    assert {dispatcher.memory.bytes_share for dispatcher in quick} == {TUNED.held_bytes_max}
    assert (
        sum(dispatcher.memory.bytes_share for dispatcher in slow) <= TUNED.all_held_bytes_max - 2 * TUNED.held_bytes_max
    )


@given(slow=st.integers(1, 50), permits=st.integers(0, 200))
def test_the_slow_begin_what_they_may_together_and_over_some_turns_each_as_much(slow, permits):
    all_of_them = dispatchers(slow, busy=0, wants_more=True, priority=Priority.SLOW)
    begun = [0] * slow
    for turn in range(slow):
        deal_permits(all_of_them, permits, turn=turn)
        assert sum(dispatcher.limits.permits for dispatcher in all_of_them) == permits
        begun = [so_far + dispatcher.limits.permits for so_far, dispatcher in zip(begun, all_of_them, strict=True)]
    assert set(begun) == {permits}


@pytest.mark.parametrize(("permits", "theirs"), [(4, [1, 1]), (400, [100, 100]), (5, [1, 2])])
def test_half_of_what_may_begin_is_for_the_slow_however_many_fail(permits, theirs):
    slow, failing = (
        dispatchers(2, busy=1, wants_more=True, priority=Priority.SLOW),
        dispatchers(400, busy=2, wants_more=True, priority=Priority.FAILING),
    )
    begun = deal_permits([*failing, *slow], permits, turn=0)
    assert sorted(dispatcher.limits.permits for dispatcher in slow) == theirs
    assert sum(dispatcher.limits.permits for dispatcher in failing) == permits // 2
    assert [one for one in begun if one.limits.priority is Priority.SLOW] == slow
    deal_permits(failing, permits, turn=0)
    assert sum(dispatcher.limits.permits for dispatcher in failing) == permits  # when there are no slow ones


def test_a_slow_one_that_has_nothing_to_do_need_not_wait_for_the_next_turn_when_it_gets_something():
    idle, quick = (
        dispatchers(1, busy=0, wants_more=False, priority=Priority.SLOW),
        dispatchers(5, busy=9, wants_more=True),
    )
    deal_permits([*idle, *quick], 0, turn=3)
    assert idle[0].limits.permits == 1
    assert {dispatcher.limits.permits for dispatcher in quick} == {0}  # does not count for them


def test_a_replay_begins_no_more_than_is_left_to_it_however_quickly_it_is_answered():
    settings = ListenerSettings()
    limits, normal = Limits(Circuit(), settings, replay=True), Limits(Circuit(), settings)
    dispatcher = SimpleNamespace(busy=1, wants_more=True, waits=True, limits=limits)
    for one in (limits, normal):
        one.update(settings, WHOLE)
        one.took(1)
    assert (limits.priority, normal.priority) == (1, 0)
    deal_permits([dispatcher], 2, turn=0)
    assert (limits.most(1), normal.most(1)) == (1 + 2, FIRST)
    assert limits.begin(0.0)
    assert limits.begin(0.0)
    assert limits.most(1) == 1


@pytest.mark.parametrize(
    ("took_ms", "rank"),
    [
        ([], 2),
        ([5], 0),
        ([2_000], 1),
        ([2_000, 5, 5], 0),  # a cold start
        ([5] * 9 + [15_000], 0),
        ([5] * 9 + [300] * 4, 0),  # our own lateness
        ([1_000] * 9 + [5], 1),
        ([260] * 20, 1),
        ([5] * 20 + [1_000] * 9, 1),
    ],
)
def test_a_listener_is_slow_by_its_last_answers_and_not_by_one_of_them(took_ms, rank):
    limits = Limits(Circuit(), ListenerSettings())
    for one in took_ms:
        limits.took(one)
    assert limits.priority == rank


@pytest.mark.parametrize(
    ("outcomes", "rank"), [("+" * 20 + "--", 0), ("+" * 20 + "---", 2), ("+-" * 20, 2), ("-++++", 0), ("---------+", 0)]
)
def test_a_listener_comes_last_while_it_fails_more_than_a_quarter(outcomes, rank):
    limits = Limits(Circuit(), ListenerSettings())
    for one in outcomes:
        if one == "+":
            limits.succeeded()
            limits.took(1)
        else:
            limits.failed()
    assert limits.priority == rank


def test_nobody_to_share_with_is_no_trouble():
    share_out([])
    deal_permits([], 5, turn=0)


def test_the_time_that_a_process_waits_for_a_processor_is_told_from_call_to_call(tmp_path):
    schedstat, times = tmp_path / "schedstat", iter((5.0, 5.1, 5.2))
    schedstat.write_text("900 50000000 7\n")
    processor = Processor(schedstat, monotonic=lambda: next(times))
    schedstat.write_text("950 90000000 9\n")
    assert processor.waited() == pytest.approx(0.4)  # 40 ms of 100
    assert processor.waited() == 0


@pytest.mark.skipif(not SCHEDSTAT.exists(), reason="only Linux tells it")
def test_a_process_that_shares_one_processor_with_a_busy_one_waits():
    only_one = {min(os.sched_getaffinity(0))}
    busy = f"import os; os.sched_setaffinity(0, {only_one}); print(flush=True)\nwhile True: pass"
    before = os.sched_getaffinity(0)
    with subprocess.Popen([sys.executable, "-c", busy], stdout=subprocess.PIPE) as other:
        try:
            other.stdout.readline()
            os.sched_setaffinity(0, only_one)
            processor = Processor()
            until = time.process_time() + 0.2
            while time.process_time() < until:
                pass
            assert processor.waited() > WAITED_MAX
        finally:
            os.sched_setaffinity(0, before)
            other.kill()


def test_where_nothing_tells_it_nobody_waits(tmp_path):
    assert Processor(tmp_path / "none").waited() == 0
