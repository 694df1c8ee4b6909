"""A message's deliver_at: what is taken, what is refused, and that others pay nothing for it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from api_client import Api, make_api, problem

from broker.core.codec import decode_message


@pytest.fixture
async def api() -> Api:
    return await make_api()


def stored(api: Api) -> list[bytes]:
    return [value for records in api.log.messages.records for _, value, _ in records]


@pytest.mark.parametrize(
    ("text", "at_ms"),
    [
        ("2001-01-31T12:00:00Z", 980_942_400_000),
        ("2001-01-31t13:00:00.5+01:00", 980_942_400_500),
        ("1969-12-31T23:59:59Z", 1),
    ],
)
async def test_a_time_is_stored_and_shown(api, text, at_ms):
    path = f"/v1/queues/{await api.queue()}/messages"
    put = await api.put(path, json={"data": "x", "deliver_at": text})
    assert put.status_code == 200, put.text
    assert [decode_message(value).deliver_at_ms for value in stored(api)] == [at_ms]
    shown = (await api.get(f"{path}/{put.json()['message']['id']}")).json()["message"]["deliver_at"]
    assert datetime.fromisoformat(shown).timestamp() * 1000 == at_ms


async def test_a_message_without_a_time_is_stored_without_the_field(api):
    path = f"/v1/queues/{await api.queue()}/messages"
    put = await api.put(path, json={"data": "x", "deliver_at": None})
    assert b"deliver_at" not in stored(api)[0]
    assert (await api.get(f"{path}/{put.json()['message']['id']}")).json()["message"]["deliver_at"] is None


@pytest.mark.parametrize(
    "more",
    [
        {"deliver_at": "tomorrow"},
        {"deliver_at": "2026-01-31T12:00:00"},
        {"deliver_at": 1_767_225_630},
        {"deliver_at": "2026-01-31"},
        {"deliver_at": "2001-01-31T12:00:00Z", "key": "k"},
        {"deliver_at": (datetime.now(UTC) + timedelta(days=367)).isoformat()},
    ],
)
async def test_what_is_no_time_or_too_far_off_or_would_break_the_order_of_a_key_is_refused(api, more):
    path = f"/v1/queues/{await api.queue()}/messages"
    answer = problem(await api.put(path, json={"data": "x", **more}), 422)
    assert answer["errors"][0]["pointer"] == "/deliver_at"
    batch = {"messages": [{"data": "x"}, {"data": "y", **more}]}
    answer = problem(await api.request("POST", f"{path}/batch", json=batch), 422)
    assert answer["errors"][0]["pointer"] == "/messages/1/deliver_at"
    assert stored(api) == []


async def test_each_of_a_batch_has_its_own(api):
    path = f"/v1/queues/{await api.queue()}/messages/batch"
    batch = {"messages": [{"data": "x"}, {"data": "y", "deliver_at": "2001-01-31T12:00:00Z"}]}
    assert (await api.request("POST", path, json=batch)).status_code == 200
    assert sorted(b"deliver_at_ms" in value for value in stored(api)) == [False, True]
