"""The header Idempotency-Key on the put of a message and of a batch."""

from __future__ import annotations

import pytest
from api_client import make_api, problem

from broker.errors import LogUnavailable, ShareUsed


async def put(api, path: str, key: str, body: dict, method: str = "PUT"):
    return await api.request(method, path, headers={"idempotency-key": key}, json=body)


async def test_the_same_key_and_body_get_the_first_answer_again():
    api = await make_api()
    path = f"/v1/queues/{await api.queue()}/messages"
    first = await put(api, path, "k-1", {"data": "x"})
    assert first.status_code == 200
    again = await put(api, path, "k-1", {"data": "x", "key": None})  # the same, said otherwise
    assert (again.status_code, again.json()) == (200, first.json())
    assert (await put(api, path, "k-2", {"data": "x"})).json() != first.json()
    assert sum(map(len, api.log.messages.records)) == 2


async def test_a_batch_has_a_key_as_a_whole():
    api = await make_api()
    path = f"/v1/queues/{await api.queue()}/messages/batch"
    body = {"messages": [{"data": f"m{number}", "key": "odd" if number % 2 else None} for number in range(20)]}
    first = await put(api, path, "k", body, "POST")
    assert first.status_code == 200
    assert len({one["message"]["id"] for one in first.json()["messages"]}) == 20
    assert (await put(api, path, "k", body, "POST")).json() == first.json()
    body["messages"].reverse()
    assert (await put(api, path, "k", body, "POST")).status_code == 422
    assert sum(map(len, api.log.messages.records)) == 20


async def test_another_body_or_another_queue_is_refused():
    api = await make_api()
    one, other = [f"/v1/queues/{await api.queue(name)}/messages" for name in ("one", "other")]
    await put(api, one, "k", {"data": "x"})
    for path, body in ((one, {"data": "y"}), (one, {"data": "x", "name": "n"}), (other, {"data": "x"})):
        answer = await put(api, path, "k", body)
        assert answer.status_code == 422
        assert answer.json()["type"] == "/problems/idempotency-key-reused"
    assert sum(map(len, api.log.messages.records)) == 1


async def test_another_organization_s_key_is_another_key():
    api = await make_api()
    await put(api, f"/v1/queues/{await api.queue()}/messages", "k", {"data": "x"})
    theirs = {"x-api-key": await api.another_organization()}
    created = await api.bare.put("/v1/queues", headers=theirs, json={"name": "queue"})
    path = f"/v1/queues/{created.json()['queue']['id']}/messages"
    answer = await api.bare.put(path, headers={**theirs, "idempotency-key": "k"}, json={"data": "y"})
    assert answer.status_code == 200


async def test_an_organization_that_has_used_its_share_is_429_for_a_new_key_only():
    api = await make_api()
    path = f"/v1/queues/{await api.queue()}/messages"
    first = await put(api, path, "known", {"data": "x"})
    api.log.claims.failing = ShareUsed("this organization has used its share")
    refused = await put(api, path, "new", {"data": "x"})
    problem(refused, 429, "share-used")
    assert int(refused.headers["retry-after"]) > 0
    assert (await put(api, path, "known", {"data": "x"})).json() == first.json()
    assert (await api.put(path, json={"data": "x"})).status_code == 200


async def test_what_was_refused_takes_no_key():
    api = await make_api()
    path = f"/v1/queues/{await api.queue()}/messages"
    assert (await put(api, path, "k", {"data": 1})).status_code == 422
    assert (await put(api, path, "k", {"data": "x", "name": ""})).status_code == 422
    assert (await put(api, path, "k", {"data": "x"})).status_code == 200


async def test_a_put_that_failed_is_told_to_wait_until_it_can_be_taken_over():
    api = await make_api()
    path = f"/v1/queues/{await api.queue()}/messages"
    api.log.messages.failing = LogUnavailable("x")
    assert (await put(api, path, "k", {"data": "x"})).status_code == 503
    api.log.messages.failing = None
    answer = await put(api, path, "k", {"data": "x"})
    assert answer.status_code == 409
    assert answer.json()["title"] == "Conflict"
    assert answer.headers["retry-after"] == "1"


@pytest.mark.parametrize("key", ["", "x" * 256, "é", "a\tb"])
async def test_a_key_is_1_to_255_printable_characters(key: str):
    api = await make_api()
    path = f"/v1/queues/{await api.queue()}/messages"
    answer = await api.request("PUT", path, headers={"idempotency-key": key.encode()}, json={"data": "x"})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["header"] == "Idempotency-Key"
