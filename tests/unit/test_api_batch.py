"""POST of a batch of messages: all or none, answered in order."""

from __future__ import annotations

import pytest
from api_client import make_api

from broker.core.codec import decode_message
from broker.errors import DiskNearlyFull, InDoubt, LogUnavailable


def stored(api) -> list[str]:
    """The data of every message in the log."""
    return [decode_message(value).data for records in api.log.messages.records for _, value, _ in records]


async def test_a_batch_is_put_together_and_answered_in_its_order():
    api = await make_api()
    path = f"/v1/queues/{await api.queue('orders')}/messages"
    wanted = [{"data": f"m{number}"} for number in range(1000)]
    answer = await api.request("POST", f"{path}/batch", json={"messages": wanted})
    assert answer.status_code == 200
    results = answer.json()["messages"]
    assert stored(api) == [one["data"] for one in wanted]
    assert sorted(len(records) for records in api.log.messages.records) == [0, 1000]  # one partition
    for number in (0, 500, 999):
        href = results[number]["_links"]["self"]["href"].removeprefix("http://api.example.com")
        assert href == f"{path}/{results[number]['message']['id']}"
        found = (await api.get(href)).json()["message"]
        assert found["data"] == f"m{number}"
        assert found["name"] == results[number]["message"]["name"]


async def test_an_ordering_key_sends_its_messages_where_the_key_s_others_are():
    api = await make_api()
    path = f"/v1/queues/{await api.queue()}/messages/batch"
    for _ in range(2):
        batch = [{"data": "free"}, {"data": "first", "key": "k"}, {"data": "second", "key": "k"}]
        assert (await api.request("POST", path, json={"messages": batch})).status_code == 200
    of_key = [decode_message(value) for _, value, _ in api.log.messages.records[api.log.messages.partition_of("k")]]
    assert [one.data for one in of_key if one.key == "k"] == ["first", "second"] * 2


@pytest.mark.parametrize(
    ("bad", "pointer"),
    [
        ({"data": 1}, "/messages/1/data"),
        ({"data": "x" * (1 << 20) + "x"}, "/messages/1/data"),
        ({"data": "x", "name": ""}, "/messages/1/name"),
        ({"data": "x", "key": ""}, "/messages/1/key"),
        ({"data": "x", "what": 1}, "/messages/1/what"),
    ],
)
async def test_one_that_is_refused_refuses_all(bad, pointer: str):
    api = await make_api()
    path = f"/v1/queues/{await api.queue()}/messages/batch"
    answer = await api.request("POST", path, json={"messages": [{"data": "good"}, bad, {"data": "good"}]})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == pointer
    assert stored(api) == []


async def test_a_batch_for_the_queue_of_the_alerts_is_refused_as_a_whole():
    api = await make_api()
    path = f"/v1/queues/{await api.queue('everput.alerts')}/messages"
    one = await api.put(path, json={"data": "x"})
    batch = await api.request("POST", f"{path}/batch", json={"messages": [{"data": "x"}]})
    assert one.status_code == batch.status_code == 422
    assert one.json()["detail"] == batch.json()["detail"]
    assert "errors" not in one.json()
    assert "errors" not in batch.json()


@pytest.mark.parametrize("count", [0, 1001])
async def test_a_batch_has_1_to_1000_messages(count: int):
    api = await make_api()
    path = f"/v1/queues/{await api.queue()}/messages/batch"
    answer = await api.request("POST", path, json={"messages": [{"data": ""}] * count})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == "/messages"
    assert stored(api) == []


async def test_a_batch_may_be_larger_than_a_put_and_not_larger_than_its_own_limit():
    api = await make_api()  # bodies of 2 MiB
    path = f"/v1/queues/{await api.queue()}/messages/batch"
    three_mib = {"messages": [{"data": "x" * (1 << 20)}] * 3}
    assert (await api.request("POST", path, json=three_mib)).status_code == 200
    four_mib = {"messages": [{"data": "x" * (1 << 20)}] * 4}
    assert (await api.request("POST", path, json=four_mib)).status_code == 413
    assert len(stored(api)) == 3


@pytest.mark.parametrize(
    ("failing", "code"),
    [
        (LogUnavailable("x"), "log-unavailable"),
        (DiskNearlyFull("x"), "disk-nearly-full"),
        (InDoubt("x"), "in-doubt"),
    ],
)
async def test_what_kafka_does_not_take_is_not_a_200(failing, code: str):
    api = await make_api()
    path = f"/v1/queues/{await api.queue()}/messages/batch"
    api.log.messages.failing = failing
    answer = await api.request("POST", path, json={"messages": [{"data": "x"}, {"data": "y", "key": "k"}]})
    assert answer.status_code == 503
    assert answer.json()["type"] == f"/problems/{code}"
