"""Addresses that are nobody's to name: refused at every PUT and, whatever DNS says by then, at every connection.

The table of test_address_rules.py goes through the API here, and through each of the three that connect: deliveries,
probes and tests of a listener.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from ipaddress import ip_network

import pytest
from api_client import make_api, problem
from test_address_rules import BAD_ADDRESSES, LOOPBACK, Names

from broker.delivery.dispatch.liveness import alive
from broker.outbound.addresses import PORTS_REFUSED, Resolver, parse_url
from broker.outbound.connection import ConnectFailed, connect
from broker.outbound.dns import DnsTuning

DISGUISES = ["127.1", "2130706433", "0x7f000001", "017700000001", "0177.0.0.1", "127.0.0.1.", "0", "[::ffff:7f00:1]"]
HOSTS = [*(f"[{text}]" if ":" in text else text for text in BAD_ADDRESSES), *DISGUISES, "localhost", "a.internal"]
GOOD = "https://8.8.8.8/"


@pytest.mark.parametrize("field", ["notify_url", "liveness_url"])
async def test_no_put_takes_an_address_that_is_not_public(field):
    api = await make_api()
    queue_id = await api.queue()
    listener_id = await api.listener(queue_id)
    before = len(api.log.control.records)
    for host in HOSTS:
        for url in (f"http://{host}/", f"https://{host}:8443/x", f"http://user@{host}/", f"http://{host}@8.8.8.8/"):
            body = {"name": "n", "notify_url": GOOD, "liveness_url": GOOD, field: url}
            for path in (f"/v1/queues/{queue_id}/listeners", f"/v1/queues/{queue_id}/listeners/{listener_id}"):
                answer = await api.put(path, json=body)
                assert problem(answer, 422)["errors"][0]["pointer"] == f"/{field}", url
    assert len([one for one in api.log.control.records[before:] if b"listener" in one]) == 0


PORTS = [22, 25, 53, 110, 143, 389, 465, 587, 993, 6000, 6667, 10080]


@pytest.mark.parametrize("field", ["notify_url", "liveness_url"])
async def test_no_put_takes_a_port_where_something_else_than_http_is_spoken(field):
    api = await make_api(allow_networks=LOOPBACK)
    queue_id = await api.queue()
    listener_id = await api.listener(queue_id)
    for port in PORTS:
        for url in (f"http://8.8.8.8:{port}/", f"https://public.example:{port}/x", f"http://127.0.0.1:{port}/"):
            body = {"name": "n", "notify_url": GOOD, "liveness_url": GOOD, field: url}
            for path in (f"/v1/queues/{queue_id}/listeners", f"/v1/queues/{queue_id}/listeners/{listener_id}"):
                answer = await api.put(path, json=body)
                assert problem(answer, 422)["errors"][0]["pointer"] == f"/{field}", url
    for number, port in enumerate((80, 443, 3000, 8000, 8080, 8443)):
        body = {"name": f"n{number}", "notify_url": GOOD, "liveness_url": GOOD, field: f"http://8.8.8.8:{port}/"}
        assert (await api.put(f"/v1/queues/{queue_id}/listeners", json=body)).status_code == 200


async def test_the_allow_list_lets_in_what_it_names_and_nothing_else():
    api = await make_api(allow_networks=(ip_network("10.1.0.0/16"), ip_network("fd00:1::/32")))
    queue_id = await api.queue()
    allowed = ["10.1.2.3", "0x0a010203", "[::ffff:10.1.2.3]", "[fd00:1::1]", "8.8.8.8"]
    refused = ["10.2.0.1", "127.0.0.1", "[fd00:2::1]", "[::1]", "169.254.169.254", "[::ffff:10.2.0.1]"]
    for number, host in enumerate([*allowed, *refused]):
        body = {"name": f"n{number}", "notify_url": f"http://{host}/", "liveness_url": GOOD}
        answer = await api.put(f"/v1/queues/{queue_id}/listeners", json=body)
        assert answer.status_code == (200 if host in allowed else 422), host


@contextlib.asynccontextmanager
async def forbidden_server(ports=(0,)):
    """A server on loopback, on the first of these ports that is free, and how often somebody connected to it."""
    connected: list[object] = []

    async def served(_reader, writer):
        connected.append(writer.get_extra_info("peername"))
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
        writer.close()

    for port in ports:
        with contextlib.suppress(OSError):
            async with await asyncio.start_server(served, "127.0.0.1", port) as server:
                yield server.sockets[0].getsockname()[1], connected
                return


class Owner:
    def answered(self, *_): ...

    def failed(self, *_): ...

    def released(self, *_): ...

    def lost(self, *_): ...


async def attempt(url: str, resolver: Resolver) -> str:
    """What a delivery's connection comes to, and a probe's."""
    tls = ssl.create_default_context()
    assert not await alive(url, resolver, tls)
    with pytest.raises(ConnectFailed) as failed:
        await connect(Owner(), parse_url(url), resolver, tls)
    return str(failed.value)


async def test_no_connection_is_made_to_an_address_that_is_not_allowed_however_it_is_written():
    async with forbidden_server() as (port, connected):
        for host in (*DISGUISES[:6], "[::ffff:7f00:1]", "127.0.0.1"):
            assert await attempt(f"http://{host}:{port}/", Resolver(())) == "no-address"
        assert connected == []


async def test_no_connection_is_made_to_a_port_where_something_else_than_http_is_spoken():
    unprivileged = sorted(port for port in PORTS_REFUSED if port >= 1024)
    async with forbidden_server(unprivileged) as (port, connected):
        for host in ("127.0.0.1", "localhost"):
            assert await attempt(f"http://{host}:{port}/", Resolver(LOOPBACK)) == "port-not-allowed"
        assert connected == []


@pytest.mark.parametrize("answer", [["127.0.0.1"], ["::ffff:127.0.0.1"], ["10.0.0.1", "127.0.0.1"]])
async def test_a_name_that_leads_to_loopback_is_not_connected_to(answer):
    async with forbidden_server() as (port, connected):
        names = Names(answer)
        assert await attempt(f"http://innocent.example:{port}/", Resolver((), names.ask)) == "no-address"
        assert names.asked == ["innocent.example"]
        assert connected == []


async def test_a_name_whose_answer_changes_after_the_check_is_checked_at_each_connection():
    """First the allowed address, then another: it is the checked one that is connected to, never a second answer."""
    async with forbidden_server() as (port, connected):
        names = Names(["127.0.0.1"], ["127.0.0.2"], ["127.0.0.2"])
        resolver = Resolver((ip_network("127.0.0.1/32"),), names.ask, DnsTuning(cache_s=-1.0))
        target = parse_url(f"http://rebinding.example:{port}/")
        connection = await connect(Owner(), target, resolver, ssl.create_default_context())
        connection.close()
        assert await attempt(f"http://rebinding.example:{port}/", resolver) == "no-address"
        assert len(names.asked) == 3  # once for each connection, and not again by the connecting
        assert len(connected) == 1


async def test_a_test_of_a_listener_is_guarded_too():
    async with forbidden_server() as (port, connected):
        api = await make_api(dns=Names(["127.0.0.1"]).ask)
        queue_id = await api.queue()
        listener_id = await api.listener(queue_id, notify_url=f"http://innocent.example:{port}/")
        answer = await api.request("POST", f"/v1/queues/{queue_id}/listeners/{listener_id}/test")
        assert answer.json()["test"]["error"] == "no-address"
        assert connected == []


async def test_a_name_that_leads_inside_is_answered_as_one_that_is_not_known(caplog):
    """In the answer to a test; in an attempt, by test_answers.py. The process log tells them apart."""
    caplog.set_level(logging.DEBUG, "broker.outbound.connection")
    names = Names(["10.0.0.7"], socket.gaierror(socket.EAI_NONAME, "Name or service not known"))
    api = await make_api(dns=names.ask)
    queue_id = await api.queue()
    answers = []
    for name in ("internal", "unknown"):
        listener_id = await api.listener(queue_id, name=name, notify_url=f"http://{name}.corp.example/")
        test = (await api.request("POST", f"/v1/queues/{queue_id}/listeners/{listener_id}/test")).json()["test"]
        answers.append({field: test[field] for field in ("status", "error")})
    assert answers == [{"status": None, "error": "no-address"}] * 2
    assert "host=internal.corp.example reason=AddressRefused" in caplog.text
    assert "host=unknown.corp.example reason=OSError" in caplog.text


async def test_a_redirect_is_not_followed():
    async with forbidden_server() as (port, connected):

        async def elsewhere(reader, writer):
            await reader.readuntil(b"\r\n\r\n")
            location = f"location: http://127.0.0.1:{port}/"
            writer.write(f"HTTP/1.1 307 Elsewhere\r\n{location}\r\ncontent-length: 0\r\n\r\n".encode())
            writer.close()

        async with await asyncio.start_server(elsewhere, "127.0.0.1", 0) as server:
            api = await make_api(allow_networks=LOOPBACK)
            queue_id = await api.queue()
            url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
            listener_id = await api.listener(queue_id, notify_url=url)
            answer = await api.request("POST", f"/v1/queues/{queue_id}/listeners/{listener_id}/test")
            assert answer.json()["test"]["status"] == 307
            assert not await alive(url, Resolver(LOOPBACK), ssl.create_default_context())
        assert connected == []
