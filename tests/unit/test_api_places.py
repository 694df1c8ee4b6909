"""Places that all tenants of a process share, over HTTP: one account's organizations leave some to the others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from ipaddress import ip_network

import httpx
from api_client import Api, make_api
from test_api_server import serving

from broker.core.events import OrganizationCreated, OrganizationJoined

LOOPBACK = (ip_network("127.0.0.0/8"),)


async def organizations(api: Api, account: str, count: int) -> list[dict[str, str]]:
    """The headers of a key of each of an account's new organizations."""
    who = {"email": f"{account}@example.com", "password": "correct horse battery"}
    await api.bare.put("/v1/accounts", json=who)
    session = {"authorization": f"Bearer {(await api.bare.post('/v1/sessions', json=who)).json()['session']['token']}"}
    found = []
    for number in range(count):
        made = await api.bare.put("/v1/organizations", json={"name": f"{account} {number}"}, headers=session)
        path = f"/v1/organizations/{made.json()['organization']['id']}/keys"
        body = {"name": "k", "scopes": ["queues", "audit"]}
        key = (await api.bare.put(path, json=body, headers=session)).json()["key"]["secret"]
        found.append({"x-api-key": key})
    return found


async def settled(tasks: list[asyncio.Task[httpx.Response]], refused: int) -> list[asyncio.Task[httpx.Response]]:
    """Those that have a place, once so many have been refused."""
    async with asyncio.timeout(60):
        while sum(task.done() for task in tasks) < refused:
            await asyncio.wait([task for task in tasks if not task.done()], return_when=asyncio.FIRST_COMPLETED)
    return [task for task in tasks if not task.done()]


@asynccontextmanager
async def client_of(api: Api) -> AsyncIterator[httpx.AsyncClient]:
    async with serving(api) as port:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", limits=limits, timeout=60) as client:
            yield client


async def test_one_accounts_organizations_do_not_take_all_places_of_the_log():
    gate = asyncio.Event()
    api = await make_api()
    api.records.before_read = gate.wait
    ann, bob = await organizations(api, "ann", 4), await organizations(api, "bob", 1)
    async with client_of(api) as client:
        asked = [asyncio.create_task(client.get("/v1/log", headers=one)) for one in ann for _ in range(8)]
        held = await settled(asked, refused=24)
        assert {task.result().status_code for task in asked if task.done()} == {503}
        theirs = asyncio.create_task(client.get("/v1/log", headers=bob[0]))
        gate.set()
        assert (await theirs).status_code == 200
        assert {answer.status_code for answer in await asyncio.gather(*held)} == {200}


async def test_one_accounts_organizations_do_not_take_all_looks_at_the_past():
    gate = asyncio.Event()
    api = await make_api()
    api.records.before_read = gate.wait
    ann, bob = await organizations(api, "ann", 4), await organizations(api, "bob", 1)
    async with client_of(api) as client:
        await client.put("/v1/queues", json={"name": "q"}, headers=bob[0])
        now = {"at": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")}
        asked = [
            asyncio.create_task(client.get("/v1/queues", params=now, headers=one)) for one in ann for _ in range(4)
        ]
        held = await settled(asked, refused=12)
        assert {task.result().status_code for task in asked if task.done()} == {503}
        theirs = asyncio.create_task(client.get("/v1/queues", params=now, headers=bob[0]))
        gate.set()
        assert (await theirs).status_code == 200
        assert {answer.status_code for answer in await asyncio.gather(*held)} == {200}


async def test_one_accounts_organizations_do_not_take_all_places_of_listener_tests():
    api = await make_api(allow_networks=LOOPBACK)
    ann, bob = await organizations(api, "ann", 5), await organizations(api, "bob", 1)
    gate = asyncio.Event()

    async def hanging(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await gate.wait()
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(hanging, "127.0.0.1", 0) as server, client_of(api) as client:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        paths = []
        for one in (*ann, *bob):
            queue = (await client.put("/v1/queues", json={"name": "q"}, headers=one)).json()["queue"]["id"]
            body = {"name": "l", "notify_url": url, "liveness_url": url}
            made = await client.put(f"/v1/queues/{queue}/listeners", json=body, headers=one)
            paths.append(f"/v1/queues/{queue}/listeners/{made.json()['listener']['id']}/test")
        asked = [
            asyncio.create_task(client.post(path, headers=one))
            for one, path in zip(ann, paths, strict=False)
            for _ in range(4)
        ]
        held = await settled(asked, refused=15)
        assert {task.result().status_code for task in asked if task.done()} == {429}
        theirs = asyncio.create_task(client.post(paths[-1], headers=bob[0]))
        gate.set()
        assert (await theirs).status_code == 200
        assert {answer.status_code for answer in await asyncio.gather(*held)} == {200}


async def test_an_organization_counts_for_its_founder_also_when_the_founder_has_left():
    api = await make_api()
    control = api.log.control
    event = OrganizationCreated(at_ms=1, organization_id="o", actor="account:ann", name="Ann's")
    await control.append(event)
    assert control.state.tenant_of("o") == "ann"
    assert control.state.tenant_of(api.organization_id) == api.organization_id
    await control.append(OrganizationJoined(at_ms=2, organization_id="o", account_id="bob"))
    assert control.state.tenant_of("o") == "ann"
