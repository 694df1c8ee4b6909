"""GET of a queue's messages: newest first, a page at a time, by time."""

from __future__ import annotations

import pytest
from api_client import make_api


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
