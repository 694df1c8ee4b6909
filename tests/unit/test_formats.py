"""The formats of requests: what Slack gets of an alert and of any other message."""

from __future__ import annotations

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.core.formats import slack


def body(data: str, name: str = "m") -> bytes:
    return orjson.dumps({"queue": {"id": "q", "name": "q"}, "message": {"id": "1", "name": name, "data": data}})


def text(data: str, name: str = "m") -> str:
    told = orjson.loads(slack(body(data, name)))
    assert list(told) == ["text"]
    return told["text"]


ALERT = {"type": "listener.down", "state": "raised", "text": "The listener <!channel> is down.", "link": "https://e/c"}


@pytest.mark.parametrize(
    ("changed", "shown"),
    [
        ({}, ":red_circle: *listener.down* The listener &lt;!channel&gt; is down. <https://e/c|Console>"),
        ({"link": None, "text": "a"}, ":red_circle: *listener.down* a"),
        ({"link": "javascript:x", "text": "a"}, ":red_circle: *listener.down* a"),
        ({"link": None, "text": "a", "state": "cleared", "type": "b"}, ":large_green_circle: *b* a"),
    ],
)
def test_an_alert_is_one_line_for_slack(changed, shown):
    assert text(orjson.dumps(ALERT | changed).decode()) == shown


def test_another_message_is_shown_with_its_name():
    assert text("a & b", "<n>") == "*&lt;n&gt;*\na &amp; b"


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=200).map(lambda data: data * 30))
def test_no_data_mentions_anybody_or_is_longer_than_slack_takes(data):
    shown = text(data)
    assert len(shown) <= 3_000
    assert "<" not in shown
