"""Who may hold a tunnel, and that its address is nobody's to name. The whole way: tests/scenarios/test_listen.py."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode, urlsplit

import httpx
import orjson
import pytest
from api_client import Api, Socket, make_api
from hypothesis import given
from hypothesis import strategies as st
from test_api_accounts import SAME, WHO

from api.tunnel import REVOKED, Room, TunnelBounds, Tunnels
from broker.clock import now_ms
from broker.commands.accounts import AccountCommands
from broker.commands.context import shell_context
from broker.commands.organizations import create_key
from broker.core.delivery import TUNNEL_AWAY
from broker.outbound.addresses import TUNNEL_PROOF, parse_url, refuse_url, tunnel_proof

ADDRESS = "tunnel://127.0.0.1:7"


def tunnels_of(**bounds: int) -> Tunnels:
    """Tunnels that look often."""
    return Tunnels(ADDRESS, TunnelBounds(look_s=0.01, **bounds))


@pytest.fixture
async def tunnelled() -> tuple[Api, Tunnels]:
    tunnels = tunnels_of()
    return await make_api(tunnels=tunnels), tunnels


def connect(api: Api, queue_id: str, key: str | None = None, *, name: str = "n") -> Socket:
    headers = {"x-api-key": api.key if key is None else key}
    return Socket(api, f"/v1/queues/{queue_id}/listen", urlencode({"name": name}), headers)


def notify_url(api: Api, listener_id: str) -> str:
    """As workers have it: no answer shows it."""
    return api.log.control.state.listeners[listener_id].notify_url


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
        created = not urls  # by the first client only
        said = orjson.loads((await mine.next())["text"])["listener"]
        assert said == {"id": shown["id"], "name": "n", "created": created}
        urls.append(notify_url(api, shown["id"]))
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


async def test_a_listener_that_is_given_a_url_of_its_own_while_a_client_connects_keeps_it(tunnelled):
    api, _ = tunnelled
    queue_id = await api.queue()
    first = connect(api, queue_id)
    await first.next()
    await first.leave()
    (shown,) = await listeners(api, queue_id)

    async def late(_event):
        api.log.control.before = None
        path = f"/v1/queues/{queue_id}/listeners/{shown['id']}"
        assert (await api.put(path, json={"notify_url": "https://8.8.8.8/own"})).status_code == 200

    api.log.control.before = late
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
    before = notify_url(api, shown["id"])
    assert (await api.put(path, json={"max_in_flight": 3})).status_code == 200
    assert notify_url(api, shown["id"]) == before
    await mine.leave()


async def test_where_a_tunnel_leads_is_in_no_answer(tunnelled):
    api, _ = tunnelled
    queue_id = await api.queue()
    mine = connect(api, queue_id)
    await mine.next()
    (shown,) = await listeners(api, queue_id)
    token = notify_url(api, shown["id"]).split("/")[3]
    path = f"/v1/queues/{queue_id}/listeners"
    moment = quote(datetime.now(UTC).isoformat())
    for asked in (path, f"{path}/{shown['id']}", f"{path}?at={moment}", f"{path}/{shown['id']}?at={moment}"):
        answer = await api.get(asked)
        assert answer.status_code == 200
        assert ("tunnel://…" in answer.text, token in answer.text) == (True, False), asked
    for method, more in (("PUT", {"json": {"max_in_flight": 3}}), ("POST", {}), ("DELETE", {})):
        asked = f"{path}/{shown['id']}" + ("/pause" if method == "POST" else "")
        answer = await api.request(method, asked, **more)
        assert ("tunnel://…" in answer.text, token in answer.text) == (True, False), method
    await mine.leave()


async def closed(socket: Socket) -> tuple[int, str]:
    """The code and the reason that it is told at its end."""
    while (told := await socket.next())["type"] != "websocket.close":
        pass
    return told["code"], told["reason"]


async def test_a_revoked_keys_tunnel_is_closed_and_another_keys_is_not(tunnelled):
    api, _ = tunnelled
    queue_id = await api.queue()
    manager, key = await api.key_with(("keys",)), await api.key_with(("queues",))
    mine, other = connect(api, queue_id, key), connect(api, queue_id, name="other")
    for one in (mine, other):
        assert (await one.next())["type"] == "websocket.accept"
    path = f"/v1/organizations/{api.organization_id}/keys"
    keys = (await api.get(path, headers={"x-api-key": manager})).json()["keys"]
    key_id = next(one["id"] for one in keys if one["scopes"] == ["queues"])
    await api.request("DELETE", f"{path}/{key_id}", headers={"x-api-key": manager})
    assert await closed(mine) == (REVOKED, "its API key was revoked")
    assert (await connect(api, queue_id, key).next())["status"] == 401
    assert orjson.loads((await other.next())["text"])["type"] == "listening"
    assert other.said.empty()
    for one in (mine, other):
        await one.leave()


class Person(NamedTuple):
    """Somebody who is signed in, and their organization with a queue."""

    api: Api
    account_id: str
    cookie: str
    organization_id: str
    queue_id: str

    def connect(self, *, origin: str | None = "http://api.example.com", organization_id: str | None = None) -> Socket:
        """Open the WebSocket as a browser does for a page of this origin."""
        headers = {"host": "api.example.com", "cookie": self.cookie, **({} if origin is None else {"origin": origin})}
        query = urlencode({"name": "n", "organization": organization_id or self.organization_id})
        return Socket(self.api, f"/v1/queues/{self.queue_id}/listen", query, headers)


async def person(api: Api, who: dict[str, str]) -> Person:
    assert (await api.bare.put("/v1/accounts", json=who)).status_code == 200
    signed_in = await api.bare.post("/v1/sessions", json=who, headers=SAME)
    cookie = signed_in.headers["set-cookie"].partition(";")[0]
    headers = {"authorization": f"Bearer {signed_in.json()['session']['token']}"}
    made = (await api.bare.put("/v1/organizations", json={"name": who["email"]}, headers=headers)).json()
    headers["everput-organization"] = made["organization"]["id"]
    queue = (await api.bare.put("/v1/queues", json={"name": "q"}, headers=headers)).json()["queue"]["id"]
    return Person(api, signed_in.json()["account"]["id"], cookie, made["organization"]["id"], queue)


async def test_a_page_of_this_server_holds_a_tunnel_with_its_sessions_cookie(tunnelled):
    ann = await person(tunnelled[0], WHO)
    mine = ann.connect()
    assert (await mine.next())["type"] == "websocket.accept"
    assert orjson.loads((await mine.next())["text"])["listener"]["name"] == "n"
    await mine.leave()


@pytest.mark.parametrize("origin", [None, "http://evil.example", "https://api.example.com", "null"])
async def test_a_page_of_another_site_holds_no_tunnel_with_a_persons_cookie(tunnelled, origin: str | None):
    ann = await person(tunnelled[0], WHO)
    told = await ann.connect(origin=origin).next()
    assert (told["type"], told["status"]) == ("websocket.http.response.start", 403)


async def test_a_person_holds_no_tunnel_in_an_organization_that_is_not_theirs(tunnelled):
    api, _ = tunnelled
    ann = await person(api, WHO)
    bob = await person(api, {**WHO, "email": "bob@example.com"})
    assert (await ann.connect(organization_id=bob.organization_id).next())["status"] == 404
    assert (await bob._replace(queue_id=ann.queue_id).connect().next())["status"] == 404
    assert (await ann._replace(cookie="").connect().next())["status"] == 401


@pytest.mark.parametrize("end", ["signed out", "removed", "expired"])
async def test_a_persons_tunnel_ends_with_the_session_and_the_membership(tunnelled, monkeypatch, end: str):
    api, _ = tunnelled
    ann = await person(api, WHO)
    mine = ann.connect()
    assert (await mine.next())["type"] == "websocket.accept"
    commands = AccountCommands(api.log.control, api.log.control)
    if end == "signed out":
        assert (await api.bare.delete("/v1/sessions", headers={**SAME, "cookie": ann.cookie})).status_code == 200
    elif end == "removed":
        await commands.members.leave(shell_context(ann.organization_id), ann.account_id, even_if_last=True)
    else:
        later = now_ms() + 400 * 86_400_000
        monkeypatch.setattr("api.calls.now_ms", lambda: later)
    assert (await closed(mine))[0] == REVOKED
    await mine.leave()


async def test_a_person_without_the_role_holds_no_tunnel_and_loses_it_with_the_role(tunnelled):
    api, _ = tunnelled
    ann = await person(api, WHO)
    bob = await person(api, {**WHO, "email": "bob@example.com"})
    commands = AccountCommands(api.log.control, api.log.control)
    await commands.members.join(bob.account_id, ann.organization_id)
    his = bob._replace(organization_id=ann.organization_id, queue_id=ann.queue_id)
    held = his.connect()
    assert (await held.next())["type"] == "websocket.accept"
    await commands.members.change_role(shell_context(ann.organization_id), bob.account_id, "auditor")
    assert (await closed(held))[0] == REVOKED
    await held.leave()
    assert (await his.connect().next())["status"] == 403


async def test_an_expired_keys_tunnel_is_closed(tunnelled, monkeypatch):
    api, _ = tunnelled
    queue_id = await api.queue()
    made = create_key(
        api.log.control,
        api.log.control,
        organization_id=api.organization_id,
        name="for a minute",
        scopes=("queues",),
        queue_ids=(queue_id,),
        expires_at_ms=now_ms() + 60_000,
    )
    held = connect(api, queue_id, (await made)[1])
    assert (await held.next())["type"] == "websocket.accept"
    monkeypatch.setattr("api.tunnel.now_ms", lambda: now_ms() + 60_000)
    assert await closed(held) == (REVOKED, "its API key has expired")
    await held.leave()


async def test_an_organization_holds_so_many_tunnels_with_any_key_and_another_has_its_own():
    api = await make_api(tunnels=tunnels_of(each_max=2))
    queue_id = await api.queue()
    held = [connect(api, queue_id, name=str(number)) for number in range(2)]
    for one in held:
        assert (await one.next())["type"] == "websocket.accept"
    assert (await connect(api, queue_id, name="one more").next())["status"] == 429
    second_key = await api.key_with(("queues",))
    assert (await connect(api, queue_id, second_key, name="one more").next())["status"] == 429
    theirs = await api.another_organization()
    their_queue = await api.put("/v1/queues", json={"name": "theirs"}, headers={"x-api-key": theirs})
    another = connect(api, their_queue.json()["queue"]["id"], theirs, name="another's")
    assert (await another.next())["type"] == "websocket.accept"
    await held[0].leave()
    again = connect(api, queue_id, name="one more")
    assert (await again.next())["type"] == "websocket.accept"
    for one in (held[1], another, again):
        await one.leave()
    assert len(await listeners(api, queue_id)) == 3, "a refused one has made none"


class Worker:
    """A request to a tunnel, by hand. read: parts of the body that were asked for. answer: its status."""

    def __init__(self, tunnels: Tunnels, url: str, body: bytes) -> None:
        self.read = 0
        self.answer: int | None = None
        self.proof = ""
        self._body = body
        self._left = asyncio.Event()
        path = urlsplit(url).path
        scope = {
            "type": "http",
            "method": "POST",
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "query_string": b"",
            "headers": [(b"content-length", b"%d" % len(body)), (b"webhook-id", b"m")],
        }
        self.task = asyncio.create_task(tunnels.app(scope, self._receive, self._send))

    async def _receive(self) -> Any:
        if not self.read:
            self.read = 1
            return {"type": "http.request", "body": self._body, "more_body": False}
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.answer = message["status"]
            self.proof = dict(message["headers"])[TUNNEL_PROOF.encode()].decode()

    async def leave(self) -> None:
        self._left.set()
        await self.done()

    async def done(self) -> None:
        async with asyncio.timeout(5):
            await self.task


async def holding(api: Api, *, takes: int = 0) -> tuple[Socket, str]:
    """A client, and the notify_url that leads to it. takes: texts that it takes unasked; 0 for all."""
    queue_id = await api.queue()
    mine = connect(api, queue_id)
    await mine.next()
    await mine.next()
    mine.takes = takes
    (shown,) = await listeners(api, queue_id)
    return mine, notify_url(api, shown["id"])


async def some_turns() -> None:
    """Whatever can happen without us has happened."""
    for _ in range(50):
        await asyncio.sleep(0)


async def test_an_answer_is_the_clients_and_carries_the_tunnels_proof(tunnelled):
    api, tunnels = tunnelled
    mine, url = await holding(api)
    worker = Worker(tunnels, url, b'{"a":"\xc3\xbc"}')
    asked = orjson.loads((await mine.next())["text"])
    assert (asked["type"], asked["headers"], asked["body"]) == ("request", {"webhook-id": "m"}, '{"a":"ü"}')
    mine.say(orjson.dumps({"number": asked["number"], "status": 202}).decode())
    await worker.done()
    assert (worker.answer, worker.proof) == (202, tunnel_proof(url.split("/")[3]))
    await mine.leave()


async def test_when_the_worker_has_gone_nothing_is_kept_for_it(tunnelled):
    api, tunnels = tunnelled
    mine, url = await holding(api)
    worker = Worker(tunnels, url, b"{}")
    await mine.next()
    assert tunnels.waiting == 1
    await worker.leave()
    assert tunnels.waiting == 0
    await mine.leave()


async def test_when_the_client_goes_what_it_had_got_fails_and_what_it_had_not_was_no_attempt():
    tunnels = tunnels_of(tunnel_bytes_max=1000)
    api = await make_api(tunnels=tunnels)
    mine, url = await holding(api, takes=1)
    workers = [Worker(tunnels, url, b"x" * 600) for _ in range(3)]
    await some_turns()
    assert [worker.read for worker in workers] == [1, 1, 0]
    await mine.leave()
    await mine.next()  # the server lets go of what it was sending
    for worker in workers:
        await worker.done()
    assert [worker.answer for worker in workers] == [503, 503, TUNNEL_AWAY]


@pytest.mark.parametrize("bound", ["tunnel_bytes_max", "tenant_bytes_max", "all_bytes_max"])
async def test_bodies_wait_with_the_worker_while_the_client_takes_none(bound):
    tunnels = tunnels_of(**{bound: 1000})
    api = await make_api(tunnels=tunnels)
    mine, url = await holding(api, takes=1)
    workers = [Worker(tunnels, url, b"x" * 400) for _ in range(6)]
    await some_turns()
    assert [worker.read for worker in workers] == [1, 1, 1, 0, 0, 0], "one is taken, two have room"
    await mine.next()
    await some_turns()
    assert sum(worker.read for worker in workers) == 4
    mine.takes = 0
    for number in range(5):
        if number:
            await mine.next()
        await some_turns()
    assert sum(worker.read for worker in workers) == 6
    for worker in workers:
        await worker.leave()
    await mine.leave()


@given(st.lists(st.tuples(st.integers(1, 150), st.integers(0, 3), st.booleans()), max_size=20))
def test_what_is_held_at_once_fits_and_nobody_waits_for_ever(asked):
    """Each: a size, how long it is held, and whether it gives up while it waits."""
    held: dict[int, int] = {}
    done: list[int] = []

    async def hold(room: Room, number: int, size: int, turns: int) -> None:
        async with room.held(size):
            held[number] = min(size, 100)
            assert sum(held.values()) <= 100
            for _ in range(turns):
                await asyncio.sleep(0)
            del held[number]
            done.append(number)

    async def main() -> None:
        room = Room(100)
        tasks = [asyncio.create_task(hold(room, number, size, turns)) for number, (size, turns, _) in enumerate(asked)]
        await asyncio.sleep(0)
        for task, (_, _, gives_up) in zip(tasks, asked, strict=True):
            if gives_up and not held.keys() & {tasks.index(task)}:
                task.cancel()
        async with asyncio.timeout(5):
            await asyncio.gather(*tasks, return_exceptions=True)
        async with asyncio.timeout(5), room.held(100):  # all of it is there again
            pass

    asyncio.run(main())
    assert {number for number, (_, _, gives_up) in enumerate(asked) if not gives_up} <= set(done)


@pytest.mark.parametrize("url", ["tunnel://127.0.0.1:7/x", "TUNNEL://127.0.0.1:7/x", "tunnel://8.8.8.8/"])
def test_only_this_scheme_goes_past_the_address_check_and_it_is_refused_to_clients(url: str):
    assert parse_url(url).tunnel
    assert refuse_url(url, ()) is not None
    assert not parse_url("http://127.0.0.1:7/x").tunnel


async def test_without_a_client_the_tunnel_says_that_it_is_down(tunnelled):
    _, tunnels = tunnelled
    async with httpx.AsyncClient(transport=httpx.ASGITransport(tunnels.app), base_url="http://x") as client:
        assert (await client.get("/nobody/live")).status_code == 503
        assert (await client.post("/nobody/notify", content=b"{}")).status_code == TUNNEL_AWAY
