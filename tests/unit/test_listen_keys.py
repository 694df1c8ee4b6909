"""What `everput listen` decides by itself: its listeners' names, what a key means, which requests it remembers.

The whole way, and a terminal: tests/scenarios/test_listen.py."""

from __future__ import annotations

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.core.names import NAME_CHARS_MAX, refuse_name
from broker.errors import ConfigurationError
from cli.listen.keys import RECEIVED_BYTES_MAX, RECEIVED_MAX, Action, History, Keyboard
from cli.listen.listen import risk
from cli.listen.targets import Address, Filter, names_of, wanted


@pytest.mark.parametrize(
    ("pressed", "actions"),
    [
        ("r", [Action("resend", None)]),
        ("3r", [Action("resend", 3)]),
        ("12b7R", [Action("body", 12), Action("resend", 7)]),
        ("bblq?h", [Action(name, None) for name in ("body", "body", "list", "quit", "help", "help")]),
        ("3xr", [Action("resend", None)]),
        ("3\x1b[Ar", [Action("resend", None)]),  # an arrow
        ("\u00b3r\u0661r", [Action("resend", None)] * 2),  # digits of others
        ("xyz \n", []),
    ],
)
def test_a_letter_is_an_action_and_digits_before_it_its_number(pressed, actions):
    keyboard = Keyboard()
    assert [action for key in pressed if (action := keyboard.pressed(key)) is not None] == actions


@given(st.text())
def test_no_key_makes_it_fail(text):
    keyboard = Keyboard()
    for key in text:
        action = keyboard.pressed(key)
        assert action is None or action.number is None or 0 <= action.number < 10**9


def add(history: History, body: str = "") -> int:
    return history.add({"headers": {}, "body": body}, {}, lambda _: None).number


def test_the_last_requests_are_found_by_number_and_older_ones_forgotten():
    history = History()
    assert history.find(None) is history.find(1) is None
    assert [add(history) for _ in range(RECEIVED_MAX + 5)] == list(range(1, RECEIVED_MAX + 6))
    assert [one.number for one in history] == list(range(6, RECEIVED_MAX + 6))
    assert history.find(5) is None
    assert history.find(6).number == 6
    assert history.find(None).number == history.count == RECEIVED_MAX + 5


def test_of_large_requests_few_are_remembered_and_the_last_always():
    history = History()
    body = "x" * (RECEIVED_BYTES_MAX // 3)
    for _ in range(5):
        add(history, body)
    assert [one.number for one in history] == [3, 4, 5]
    add(history, "x" * (RECEIVED_BYTES_MAX + 1))
    assert [one.number for one in history] == [6]
    add(history)
    assert [one.number for one in history] == [7]


def test_long_addresses_that_begin_alike_are_listeners_apart_each_time_of_the_same_name():
    targets = [f"http://localhost:3000/{'x' * 300}/{number}" for number in range(3)]
    names = names_of(targets, ())
    assert len(set(names)) == 3
    assert all(len(name) <= NAME_CHARS_MAX and refuse_name(name) is None for name in names)
    assert names_of(targets, ()) == names
    assert names_of(["http://localhost:3000/"], ())[0].startswith("http://localhost:3000/ on ")


@pytest.mark.parametrize(
    ("targets", "given"),
    [
        (["http://a/", "http://a/"], []),
        (["http://a/", "http://b/"], ["same", "same"]),
        (["http://a/", "http://b/"], ["one"]),
        (["http://a/"], ["one", "two"]),
    ],
)
def test_no_listener_is_dropped_silently(targets, given):
    with pytest.raises(ConfigurationError):
        names_of(targets, given)


def test_one_address_may_be_two_listeners_with_names_of_their_own():
    assert names_of(["http://a/", "http://a/"], ["one", "two"]) == ["one", "two"]


def test_temporary_listeners_have_names_that_no_other_has():
    first, second = (names_of(["http://a/"], (), temporary=True) for _ in range(2))
    assert first != second
    assert names_of(["http://a/"], ["mine"], temporary=True) == ["mine"]


@pytest.mark.parametrize(
    ("typed", "url"),
    [
        ("3000", "http://127.0.0.1:3000/"),
        ("3000/hook?x=1", "http://127.0.0.1:3000/hook?x=1"),
        ("localhost:3000", "http://localhost:3000"),
        ("my-box.local:80/a", "http://my-box.local:80/a"),
        ("https://localhost/x", "https://localhost/x"),
    ],
)
def test_a_port_or_a_host_with_a_port_is_an_address(typed: str, url: str):
    assert Address().convert(typed, None, None) == url


@pytest.mark.parametrize(
    "typed", ["localhost", "ftp://a/", "3000 ", "", "300000", "99999", "a:70000", "http://", "http://a:x/", "0"]
)
def test_what_is_no_address_is_refused(typed: str):
    with pytest.raises(click.BadParameter, match="such as 3000"):
        Address().convert(typed, None, None)


def test_a_filter_is_a_pattern_for_a_field_and_all_filters_must_match():
    told = {"queue": {"name": "orders"}, "message": {"name": "order-7", "data": "urgent: yes\n"}}
    assert wanted([("name", "order-*"), ("data", "*urgent*"), ("queue", "orders")], told)
    assert not wanted([("name", "order-*"), ("data", "later*")], told)
    assert wanted([], told)
    assert Filter().convert("data=a=b", None, None) == ("data", "a=b")
    for refused in ("data", "key=x", "=x"):
        with pytest.raises(click.BadParameter, match="such as name=order"):
            Filter().convert(refused, None, None)


def test_only_with_a_server_elsewhere_the_warning_says_that_the_internet_reaches_this_machine():
    queues, targets = ["orders"], ["http://127.0.0.1:3000/"]
    decides = "anybody who may put messages on orders at {} decides what is sent"
    for url in ("http://127.0.0.1:8080", "http://localhost:8080", "http://[::1]:8080"):
        assert risk(url, queues, targets) == (
            f"Until this command ends (Ctrl-C), {decides.format(url)} to http://127.0.0.1:3000/ on this machine."
        )
    url = "https://everput.example.com"
    assert risk(url, queues, targets) == (
        "This lets the internet reach http://127.0.0.1:3000/ on this machine: until this command ends (Ctrl-C), "
        f"{decides.format(url)} there."
    )
