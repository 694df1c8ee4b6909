"""A put of any text arrives as it was put: the request's bytes, the record, and the bytes of the POST."""

from __future__ import annotations

import json

from api_client import make_api
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from broker.core.entities import Queue
from broker.delivery.reading.message import Message

SCALARS = st.characters(exclude_categories=["Cs"])
SHORT = {'"': '\\"', "\\": "\\\\", "/": "\\/", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
QUEUE = Queue(id="q", organization_id="o", name="queue", created_at_ms=0)


def spelled(char: str, how: int) -> str:
    """One character as JSON may have it (RFC 8259, 7): short, as one or two \\u, or as it is."""
    if how == 0 and char in SHORT:
        return SHORT[char]
    if how <= 1 or char < " " or char in '"\\':
        units = char.encode("utf-16-be")
        hexes = [units[at : at + 2].hex() for at in range(0, len(units), 2)]
        return "".join(f"\\u{one.upper() if how else one}" for one in hexes)
    return char


def message_from(api, partition: int) -> bytes:
    key, value, _ = api.log.messages.records[partition][-1]
    return Message(0, key, "q", 0, value).body(QUEUE)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300, deadline=None)
@given(data=st.lists(st.tuples(SCALARS, st.integers(0, 2)), max_size=60), name=st.text(SCALARS, max_size=20))
@example(
    data=[("\0", 0), ("\u2028", 2), ("\U0001f98a", 1), ("\ufeff", 2), ("\uffff", 2), ("/", 0), ("\x7f", 2)], name=""
)
async def test_any_text_however_it_is_spelled_arrives_byte_for_byte(data, name):
    api = await make_api()
    path = f"/v1/queues/{await api.queue()}/messages"
    text = "".join(char for char, _ in data)
    body = '{"data":"' + "".join(spelled(char, how) for char, how in data) + '","name":' + json.dumps(name) + "}"
    answer = await api.put(path, content=body.encode())
    if answer.status_code == 422:  # not every text is a name
        assert answer.json()["errors"][0]["pointer"] == "/name"
        body = '{"data":"' + "".join(spelled(char, how) for char, how in data) + '"}'
        answer = await api.put(path, content=body.encode())
    assert answer.status_code == 200, answer.text
    partition = next(number for number, records in enumerate(api.log.messages.records) if records)
    delivered = json.loads(message_from(api, partition))["message"]["data"]
    assert delivered.encode() == text.encode()
    read = (await api.get(f"{path}/{answer.json()['message']['id']}")).json()["message"]["data"]
    assert read.encode() == text.encode()
