"""The window, step by step: each picture of its docstring once. In any order: tests/stateful."""

from __future__ import annotations

from broker.core.cursor import OPEN_MAX, Cursor
from broker.core.window import BEHIND_MAX, Window


def test_what_the_tail_brings_is_open_until_it_is_settled():
    window: Window[str] = Window()
    assert window.seen(3, "a")
    assert window.seen(5, "b")
    assert (window.opened(), window.top(6)) == ((3, 5), 6)
    assert window.settle(3) == "a"
    assert window.settle(3) is None
    assert (window.opened(), window.top(6)) == ((5,), 6)


def test_without_room_offsets_are_noted_and_the_cursor_waits_before_them():
    window: Window[str] = Window()
    window.seen(3, "a")
    assert not window.seen(5, None)
    assert not window.seen(6, "c")  # there is room again, and it is not its turn
    assert not window.attached
    assert (window.wanted(), window.top(7)) == (5, 5)
    assert [window.may_take(offset) for offset in (5, 6, 7)] == [True, False, False]
    window.take(5, "b")
    window.take(6, "c")
    assert window.attached
    assert (window.opened(), window.top(7)) == ((3, 5, 6), 7)


def test_beyond_the_bound_the_log_is_scanned_again():
    window: Window[str] = Window()
    for offset in range(BEHIND_MAX + 2):
        window.seen(offset, None)
    assert (len(window.behind), window.scan_from) == (BEHIND_MAX, BEHIND_MAX)
    assert not window.seen(BEHIND_MAX + 2, "x")


def test_a_scan_that_reaches_the_tail_attaches_it_again():
    window: Window[str] = Window(scan_from=10)
    window.take(12, "a")
    assert window.scan_from == 13
    window.passed(10, 15, tail=20)
    assert window.scan_from == 15
    window.passed(15, 20, tail=20)
    assert window.attached
    assert window.top(20) == 20


def test_a_scan_past_a_message_that_vanished_leaves_nothing_out():
    window: Window[str] = Window(scan_from=12)
    window.behind.extend((10, 11))
    assert not window.may_take(11)  # 10 was not in the log any more, so neither 11 nor 12 could be taken
    window.passed(10, 15, tail=15)
    assert window.scan_from == 12
    window.gone(10)
    assert window.wanted() == 11


def test_a_cursor_above_the_tail_is_not_delivered_again_when_the_tail_comes_by():
    window: Window[str] = Window()
    window.restore(Cursor(top=10, open=(4,)), 3, [(4, "again")])
    assert window.wanted() == 4
    assert not window.seen(4, "a")
    assert not window.seen(9, "b")
    assert window.top(5) == 10
    assert window.found(4) == "again"
    assert window.found(4) is None
    assert window.seen(10, "c")
    assert window.opened() == (4, 10)


def test_nothing_overtakes_an_earlier_message_that_must_be_read_again():
    window: Window[str] = Window()
    window.restore(Cursor(top=10, open=(4,)), 10, [(4, "again")])
    assert not window.seen(10, "of the same ordering key")
    assert (window.wanted(), window.top(11)) == (4, 10)
    assert window.found(4) == "again"
    assert window.may_take(10)
    window.take(10, "of the same ordering key")
    assert window.attached
    assert window.seen(11, "and now the tail's")


def test_a_cursor_below_the_tail_is_caught_up_from_its_top():
    window: Window[str] = Window()
    window.restore(Cursor(top=10, open=(4, 7)), 20, [(4, "a"), (7, "b")])
    assert (window.wanted(), window.top(20)) == (4, 10)
    assert window.found(4) == "a"
    assert window.found(7) == "b"
    assert window.wanted() == 10


def test_messages_let_go_are_wanted_again_and_stay_open():
    window: Window[str] = Window()
    window.seen(3, "a")
    window.forget((3,))
    assert (window.wanted(), window.opened(), window.idle(4)) == (3, (3,), False)
    assert window.settle(3) == "a"
    assert window.wanted() is None
    assert window.idle(4)


def test_it_is_full_when_the_cursor_could_not_name_one_more():
    window: Window[str] = Window()
    for offset in range(OPEN_MAX):
        assert not window.full
        window.seen(offset, "x")
    assert window.full
