"""GET of a queue's messages: newest first, a page at a time, by time."""

from __future__ import annotations

import pytest
from api_client import make_api, problem

from api.page_tokens import PageTokens
from api.pages import Span
from broker.sealing import Sealer


async def test_a_queue_s_messages_are_listed_newest_first_a_page_at_a_time():
    api = await make_api()
    queue_id = await api.queue("orders")
    other_id = await api.queue("others")
    put = []
    for number in range(7):
        answer = await api.request("PUT", f"/v1/queues/{queue_id}/messages", json={"data": f"m{number}"})
        put.append(answer.json()["message"]["id"])
        await api.request("PUT", f"/v1/queues/{other_id}/messages", json={"data": "not ours"})
    path: str | None = f"/v1/queues/{queue_id}/messages?limit=3"
    listed = []
    while path is not None:
        page = (await api.request("GET", path)).json()
        assert len(page["messages"]) <= 3
        listed += page["messages"]
        link = page["_links"].get("next")
        path = None if link is None else link["href"].removeprefix("http://api.example.com")
    assert {one["id"] for one in listed} == set(put)
    assert len(listed) == 7
    times = [one["created_at"] for one in listed]
    assert times == sorted(times, reverse=True)


@pytest.mark.parametrize("query", ["limit=0", "limit=x", "cursor=zzz", "cursor=W10", "from=yesterday", "to=2026-01-01"])
async def test_a_bad_parameter_is_named(query: str):
    api = await make_api()
    answer = await api.request("GET", f"/v1/queues/{await api.queue('orders')}/messages?{query}")
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"


async def test_another_organization_s_messages_are_not_listed():
    api = await make_api()
    answer = await api.request("GET", "/v1/queues/2180994c-b6b2-4d0e-b7ad-414716e83386/messages")
    assert answer.status_code == 404


async def test_a_cursor_beyond_the_end_of_the_log_is_422():
    api = await make_api()
    queue_id = await api.queue("orders")
    await api.put(f"/v1/queues/{queue_id}/messages", json={"data": "m"})
    path, tokens = f"/v1/queues/{queue_id}/messages", PageTokens(Sealer(api.settings.sealing_key))
    for beyond in (Span((0, 0), (2, 2)), Span((2, 2), (0, 0)), Span((0, 0), (2**63, 0))):
        answer = await api.get(f"{path}?cursor={tokens.seal(beyond.position(), api.organization_id, path)}")
        assert problem(answer, 422, "bad-parameter")["errors"][0]["parameter"] == "cursor"


async def test_a_made_name_is_no_longer_than_a_name_may_be():
    api = await make_api()
    queue_id = await api.queue("q" * 200)
    name = (await api.put(f"/v1/queues/{queue_id}/messages", json={"data": "m"})).json()["message"]["name"]
    assert len(name) == 200
    assert "-message-" in name
