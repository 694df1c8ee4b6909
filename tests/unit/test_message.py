"""A message as the deliverers hold it: encoded once, the same bytes for all, and never guessed at."""

from __future__ import annotations

from types import SimpleNamespace

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.core.codec import encode
from broker.core.entities import Queue
from broker.core.events import MessagePut, QueueCreated
from broker.delivery.reading.message import Message, messages
from broker.errors import UnknownEvent

QUEUE = Queue(id="q-1", organization_id="o", name="Löschungen", created_at_ms=0)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=50)


def message(*, name: str = "delete", data: str = "{}", **more) -> Message:
    event = MessagePut(at_ms=1, organization_id="o", message_id="m-1", queue_id="q-1", name=name, data=data, **more)
    return Message(7, b"m-1", "q-1", 1, encode(event))


@settings(deadline=None)
@given(TEXT, TEXT)
def test_the_body_is_what_the_listener_was_promised(name, data):
    assert orjson.loads(message(name=name, data=data).body(QUEUE)) == {
        "queue": {"id": "q-1", "name": "Löschungen"},
        "message": {"id": "m-1", "name": name, "data": data},
    }


def test_the_body_is_encoded_once_and_is_the_same_bytes_for_everyone():
    held = message()
    assert held.body(QUEUE) is held.body(QUEUE)


def test_the_ordering_key_is_known_once_the_body_is():
    held = message(key="user-7")
    held.body(QUEUE)
    assert held.key == "user-7"


def test_the_time_before_which_it_is_not_delivered_is_known_once_the_body_is():
    plain, later = message(), message(deliver_at_ms=5)
    for held in (plain, later):
        held.body(QUEUE)
    assert (plain.deliver_at_ms, later.deliver_at_ms) == (0, 5)
    assert later.renewed("other", 1).deliver_at_ms == 5


@settings(deadline=None)
@given(TEXT, TEXT)
def test_what_was_put_can_be_had_again_for_parking(name, data):
    held = message(name=name, data=data)
    held.body(QUEUE)
    assert held.name_and_data() == (name, data)


@pytest.mark.parametrize(
    "value",
    [b"", b"garbage", encode(QueueCreated(at_ms=1, organization_id="o", queue_id="q", name="n"))],
)
def test_what_is_no_message_says_so_each_time_and_has_no_content(value):
    held = Message(7, b"m-1", "q-1", 1, value)
    for _ in range(2):
        with pytest.raises(UnknownEvent):
            held.body(QUEUE)
    assert held.name_and_data() == ("", "")


def test_kafka_records_become_messages_whatever_they_lack():
    whole = SimpleNamespace(offset=3, timestamp=5, key=b"m-1", value=b"{}", headers=(("queue", b"q-1"),))
    bare = SimpleNamespace(offset=4, timestamp=6, key=None, value=None, headers=())
    empty = SimpleNamespace(offset=5, timestamp=6, key=b"", value=b"", headers=(("queue", None),))
    made = list(messages([whole, bare, empty]))
    assert [(m.offset, m.id, m.queue_id, m.put_at_ms, m.size) for m in made] == [
        (3, b"m-1", "q-1", 5, 2),
        (4, b"", "", 6, 0),
        (5, b"", "", 6, 0),
    ]
