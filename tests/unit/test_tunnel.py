"""Who may hold a tunnel, and that its address is nobody's to name. The whole way: tests/scenarios/test_listen.py."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

import httpx
import orjson
import pytest
from api_client import Api, Socket, make_api

from api.tunnel import Tunnels
from broker.commands import Commands
from broker.delivery.guard import AWAY, parse_url, refuse_url


@pytest.fixture
async def tunnelled() -> tuple[Api, Tunnels]:
    tunnels = Tunnels("tunnel://127.0.0.1:7")
    return await make_api(tunnels=tunnels), tunnels


def connect(api: Api, queue_id: str, key: str | None = None) -> Socket:
    return Socket(api, f"/v1/queues/{queue_id}/listen", "name=n", {"x-api-key": api.key if key is None else key})


async def listeners(api: Api, queue_id: str) -> list[Any]:
    return (await api.get(f"/v1/queues/{queue_id}/listeners")).json()["listeners"]


async def test_another_organizations_key_none_or_one_without_the_scope_makes_no_listener(tunnelled):
    api, _ = tunnelled
    queue_id = await api.queue()
    for key, status in (
        (await api.another_organization(), 404),
        ("", 401),
        ("nonsense", 401),
        (await api.key_with(("messages",)), 403),
    ):
        told = await connect(api, queue_id, key).next()
        assert (told["type"], told["status"]) == ("websocket.http.response.start", status)
    assert await listeners(api, queue_id) == []


async def test_the_listeners_urls_lead_to_the_process_that_holds_the_socket_now(tunnelled):
    api, tunnels = tunnelled
    queue_id = await api.queue()
    urls = []
    for address in ("tunnel://127.0.0.1:7", "tunnel://127.0.0.1:8"):
        tunnels.address = address
        mine = connect(api, queue_id)
        assert (await mine.next())["type"] == "websocket.accept"
        (shown,) = await listeners(api, queue_id)
        assert orjson.loads((await mine.next())["text"])["listener"] == {"id": shown["id"], "name": "n"}
        urls.append(shown["notify_url"])
        assert urls[-1].startswith(address)
        assert len(urlsplit(urls[-1]).path) > 30, "it can't be guessed"
        await mine.leave()
    assert len(set(urls)) == 2


async def test_a_listener_with_a_url_of_its_own_is_not_taken_over(tunnelled):
    api, _ = tunnelled
    queue_id = await api.queue()
    await api.listener(queue_id, name="n")
    told = await connect(api, queue_id).next()
    assert told["status"] == 422
    (shown,) = await listeners(api, queue_id)
    assert shown["notify_url"] == "https://8.8.8.8/n"


async def test_a_listener_that_is_given_a_url_of_its_own_while_a_client_connects_keeps_it(tunnelled, monkeypatch):
    api, _ = tunnelled
    queue_id = await api.queue()
    first = connect(api, queue_id)
    await first.next()
    await first.leave()
    (shown,) = await listeners(api, queue_id)
    record = Commands._record

    async def late(self, event):
        monkeypatch.setattr(Commands, "_record", record)
        path = f"/v1/queues/{queue_id}/listeners/{shown['id']}"
        assert (await api.put(path, json={"notify_url": "https://8.8.8.8/own"})).status_code == 200
        return await record(self, event)

    monkeypatch.setattr(Commands, "_record", late)
    told = await connect(api, queue_id).next()
    assert told["status"] == 422
    assert (await listeners(api, queue_id))[0]["notify_url"] == "https://8.8.8.8/own"


async def test_no_client_can_name_a_tunnel_not_even_for_its_own_listener(tunnelled):
    api, _ = tunnelled
    queue_id = await api.queue()
    mine = connect(api, queue_id)
    await mine.next()
    (shown,) = await listeners(api, queue_id)
    path = f"/v1/queues/{queue_id}/listeners/{shown['id']}"
    for field in ("notify_url", "liveness_url"):
        answer = await api.put(path, json={field: "tunnel://169.254.169.254/latest"})
        assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, f"/{field}")
    assert (await api.put(path, json={"max_in_flight": 3})).status_code == 200
    assert (await listeners(api, queue_id))[0]["notify_url"] == shown["notify_url"]
    await mine.leave()


@pytest.mark.parametrize("url", ["tunnel://127.0.0.1:7/x", "TUNNEL://127.0.0.1:7/x", "tunnel://8.8.8.8/"])
def test_only_this_scheme_goes_past_the_address_check_and_it_is_refused_to_clients(url: str):
    assert parse_url(url).tunnel
    assert refuse_url(url, ()) is not None
    assert not parse_url("http://127.0.0.1:7/x").tunnel


async def test_without_a_client_the_tunnel_says_that_it_is_down(tunnelled):
    _, tunnels = tunnelled
    async with httpx.AsyncClient(transport=httpx.ASGITransport(tunnels.app), base_url="http://x") as client:
        assert (await client.get("/nobody/live")).status_code == 503
        assert (await client.post("/nobody/notify", content=b"{}")).status_code == AWAY
