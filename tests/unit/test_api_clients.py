"""Limits for clients without a key: known browsers, and client addresses behind proxies, over HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import ip_network
from typing import Any

import httpx
import pytest
from api_client import make_api
from hypothesis import given
from hypothesis import strategies as st
from test_api_server import serving

from api.accounts import AccountLimits
from api.browsers import KNOWN_S, NAME, Browsers
from api.clients import Clients, parse_address
from broker.sealing import Sealer, new_sealing_key

PASSWORD = "correct horse battery"
ANN = {"email": "ann@example.com", "password": PASSWORD}
WRONG = {**ANN, "password": "a wrong password"}
PROXIES = (ip_network("127.0.0.0/8"), ip_network("10.0.0.0/8"))


@asynccontextmanager
async def client_of(**settings: Any) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a live server, without cookies of its own."""
    api = await make_api(**settings)
    async with (
        serving(api) as port,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60) as client,
    ):
        yield client


async def sign_in(client: httpx.AsyncClient, body: dict[str, str], browser: str | None = None) -> httpx.Response:
    headers = {} if browser is None else {"cookie": f"{NAME}={browser}".encode()}
    client.cookies.clear()
    return await client.post("/v1/sessions", json=body, headers=headers)


async def test_guesses_of_strangers_at_an_address_do_not_keep_a_known_browser_out():
    async with client_of() as client:
        await client.put("/v1/accounts", json=ANN)
        browser = (await sign_in(client, ANN)).cookies[NAME]
        for _ in range(9):
            assert (await sign_in(client, WRONG)).status_code == 401
        assert (await sign_in(client, ANN)).status_code == 429
        signed_in = await sign_in(client, ANN, browser)
        assert signed_in.status_code == 200
        session = {"authorization": f"Bearer {signed_in.json()['session']['token']}"}
        change = {"password": PASSWORD, "new_password": "another horse battery"}
        assert (await client.post("/v1/accounts/password", json=change, headers=session)).status_code == 200


async def test_a_known_browser_has_a_limit_too_and_is_known_for_its_account_only():
    async with client_of() as client:
        bob = {**ANN, "email": "bob@example.com"}
        for who in (ANN, bob):
            await client.put("/v1/accounts", json=who)
        browser = (await sign_in(client, bob)).cookies[NAME]
        answers = [await sign_in(client, {**bob, "password": "a wrong password"}, browser) for _ in range(11)]
        assert [answer.status_code for answer in answers] == [401] * 10 + [429]
        assert answers[-1].headers["ratelimit-policy"] == '"known";q=10;w=100'
        assert (await sign_in(client, bob)).status_code == 200  # strangers' attempts are not used up
        for _ in range(10):
            await sign_in(client, WRONG)
        for forged in (browser, "", "x", f"9999999999.x.{'0' * 64}", browser[:-1], "é", "9" * 5_000):
            assert (await sign_in(client, ANN, forged)).status_code == 429


def test_a_browsers_cookie_is_believed_by_processes_with_the_key_for_a_year():
    old, new = new_sealing_key(), new_sealing_key()

    def browsers(sealing_keys: str, known_s: int = KNOWN_S) -> Browsers:
        return Browsers(Sealer(sealing_keys).derived_keys("known browsers"), known_s=known_s)

    def scope(set_cookie: tuple[bytes, bytes]) -> dict[str, Any]:
        return {"headers": [(b"cookie", b"a=b; " + set_cookie[1].partition(b";")[0])]}

    name, value = browsers(old).cookie("Ann@example.com", https=True)
    assert name == b"set-cookie"
    assert value.startswith(b"__Host-everput_browser=")
    for attribute in (b"HttpOnly", b"SameSite=Strict", b"Secure", b"Path=/", b"Max-Age=31536000"):
        assert attribute in value.split(b"; ")
    sent = scope((name, value))
    assert browsers(old).knows(sent, "ann@example.com", https=True)
    assert browsers(f"{new},{old}").knows(sent, "ann@example.com", https=True)
    assert not browsers(new).knows(sent, "ann@example.com", https=True)
    assert not browsers(old).knows(sent, "ann@example.com", https=False)
    ended = scope(browsers(old, known_s=-1).cookie("ann@example.com", https=True))
    assert not browsers(old).knows(ended, "ann@example.com", https=True)


async def register(client: httpx.AsyncClient, number: int, **headers: str) -> int:
    body = {"email": f"{number}@example.com", "password": PASSWORD}
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    return (await client.put("/v1/accounts", json=body, headers=sent)).status_code


async def test_accounts_are_counted_by_the_client_that_a_trusted_proxy_names():
    async with client_of(trusted_proxies=PROXIES) as client:
        forms = (
            {"x_forwarded_for": "203.0.113.1"},
            {"x_forwarded_for": "198.51.100.9, 203.0.113.1"},  # the client wrote the first
            {"x_forwarded_for": "203.0.113.1:4711, 10.1.2.3"},  # two proxies
            {"forwarded": "for=198.51.100.9, for=203.0.113.1;proto=https"},
            {"forwarded": 'by=10.0.0.1; For="203.0.113.1:80", for=10.1.2.3'},
        )
        assert [await register(client, number, **form) for number, form in enumerate(forms)] == [200] * 5
        for form in forms:
            assert await register(client, 6, **form) == 429
        assert await register(client, 7, x_forwarded_for="203.0.113.2") == 200
        assert await register(client, 8, forwarded='for="[2001:db8::1]:80"') == 200


async def test_an_ipv6_network_of_64_bits_is_one_client():
    async with client_of(trusted_proxies=PROXIES) as client:
        same = [await register(client, number, x_forwarded_for=f"2001:db8:1:2::{number}") for number in range(6)]
        assert same == [200] * 5 + [429]
        assert await register(client, 6, x_forwarded_for="2001:db8:1:3::1") == 200


async def test_one_client_does_not_use_up_everybodys_attempts_to_sign_in():
    limits = AccountLimits(clients_guesses_per_s=0.001, all_guesses_per_s=0.001)
    async with client_of(trusted_proxies=PROXIES, account_limits=limits) as client:

        async def tried(number: int, address: str) -> httpx.Response:
            body = {"email": f"{number}@example.com", "password": PASSWORD}
            return await client.post("/v1/sessions", json=body, headers={"x-forwarded-for": address})

        answers = [await tried(number, "203.0.113.1") for number in range(60)]
        assert [answer.status_code for answer in answers] == [401] * 20 + [429] * 40
        assert answers[-1].headers["ratelimit-policy"].startswith('"client";q=20;')
        assert (await tried(60, "203.0.113.2")).status_code == 401


def no_more(**limits: int) -> AccountLimits:
    """Let no limit regain anything while the test runs."""
    names = ("all_guesses", "guesses", "clients_guesses", "registrations", "clients_registrations")
    return AccountLimits(**{f"{name}_per_s": 1e-6 for name in names}, **limits)


async def test_networks_that_guess_leave_attempts_for_one_that_did_not():
    async with client_of(trusted_proxies=PROXIES, account_limits=no_more(all_guesses_at_once=16)) as client:
        await client.put("/v1/accounts", json=ANN, headers={"x-forwarded-for": "198.51.100.1"})

        async def tried(email: str, address: str, password: str = "a wrong password") -> int:
            body = {"email": email, "password": password}
            return (await client.post("/v1/sessions", json=body, headers={"x-forwarded-for": address})).status_code

        got_in = 0
        for number in range(40):  # six networks, addresses of any client in them, and addresses of anybody
            address = f"203.0.{number % 6}.{number}" if number % 2 else f"2001:db8:{number % 6}:{number}::1"
            got_in += await tried(f"{number}@example.com", address) == 401
        assert 8 <= got_in < 16
        assert await tried(ANN["email"], "192.0.2.1", PASSWORD) == 200
        assert await tried("no@example.com", "192.0.3.1") == 401


async def test_guesses_at_an_e_mail_address_do_not_keep_its_owner_out_of_a_new_browser():
    async with client_of(trusted_proxies=PROXIES, account_limits=no_more()) as client:
        await client.put("/v1/accounts", json=ANN, headers={"x-forwarded-for": "198.51.100.1"})

        async def tried(address: str, password: str) -> int:
            body = {**ANN, "password": password}
            return (await client.post("/v1/sessions", json=body, headers={"x-forwarded-for": address})).status_code

        guesses = [await tried(f"203.0.{number % 4}.{number}", "a wrong password") for number in range(30)]
        assert guesses[-20:] == [429] * 20
        assert await tried("192.0.2.1", PASSWORD) == 200


async def test_known_browsers_have_a_limit_together_that_strangers_do_not_use_up():
    async with client_of(trusted_proxies=PROXIES, account_limits=no_more(all_guesses_at_once=16)) as client:

        async def tried(number: int, browser: str | None = None, password: str = PASSWORD) -> httpx.Response:
            cookie = {} if browser is None else {"cookie": f"{NAME}={browser}"}
            client.cookies.clear()
            body = {"email": f"{number}@example.com", "password": password}
            headers = {"x-forwarded-for": f"198.51.{number}.1", **cookie}
            return await client.post("/v1/sessions", json=body, headers=headers)

        browsers = []
        for number in range(4):
            await register(client, number, x_forwarded_for=f"198.51.{number}.1")
            browsers.append((await tried(number)).cookies[NAME])
        strangers = [await tried(100 + number, password="a wrong password") for number in range(40)]
        assert strangers[-1].status_code == 429
        assert (await tried(0, browsers[0])).status_code == 200
        known = [await tried(n % 4, browsers[n % 4], "a wrong password") for n in range(36)]
        assert known[0].status_code == 401
        assert "known-sessions" in {answer.headers.get("ratelimit-policy", "").split('"')[1] for answer in known[16:]}


async def test_networks_that_register_much_leave_room_for_one_that_did_not():
    async with client_of(trusted_proxies=PROXIES, account_limits=no_more()) as client:
        made = [await register(client, number, x_forwarded_for=f"203.0.{number % 4}.{number}") for number in range(40)]
        assert 10 <= made.count(200) < 20
        assert await register(client, 40, x_forwarded_for="192.0.2.1") == 200


async def test_a_header_is_not_believed_from_elsewhere_nor_beside_the_other_one():
    async with client_of(trusted_proxies=(ip_network("10.0.0.0/8"),)) as client:
        forged = [await register(client, number, x_forwarded_for="203.0.113.1") for number in range(7)]
        assert forged == [200] * 7  # the peer is on loopback: its address says nothing
    async with client_of(trusted_proxies=PROXIES) as client:
        both = [
            await register(client, number, x_forwarded_for="203.0.113.1", forwarded=f"for=198.51.100.{number}")
            for number in range(6)
        ]
        assert both == [200] * 5 + [429]


@pytest.mark.parametrize(
    ("peer", "headers", "behind_proxy", "name"),
    [
        ("192.0.2.1", {}, False, "192.0.2.1"),
        ("192.0.2.1", {}, True, None),  # a proxy that nobody has named: all clients would be one
        ("::ffff:192.0.2.1", {}, False, "192.0.2.1"),
        ("2001:db8::1", {"x-forwarded-for": "203.0.113.1"}, False, "2001:db8::/64"),
        ("127.0.0.1", {}, False, None),
        ("::1", {}, False, None),
        ("fe80::1%eth0", {}, False, None),
        ("", {}, False, None),
    ],
)
def test_without_a_trusted_proxy_the_peer_is_the_client(peer, headers, behind_proxy, name):
    scope = {"client": (peer, 1), "headers": [(key.encode(), value.encode()) for key, value in headers.items()]}
    assert Clients(behind_proxy=behind_proxy).name(scope) == name


def test_a_hop_that_is_no_address_counts_for_the_proxy_that_sent_it():
    clients = Clients(PROXIES)
    for text in ("unknown", "_hidden", "x" * 20_000, ",,,,", "1.2.3", "203.0.113.1, unknown"):
        scope = {"client": ("10.0.0.1", 1), "headers": [(b"x-forwarded-for", text.encode())]}
        assert clients.name(scope) == "10.0.0.1"
    scope["headers"] = [(b"x-forwarded-for", b"10.0.0.9, " * 2_000 + b"10.0.0.8")]
    assert clients.name(scope) == "10.0.0.9"
    scope["headers"] = [(b"x-forwarded-for", b"203.0.113.1"), (b"x-forwarded-for", b"203.0.113.2")]
    assert clients.name(scope) == "203.0.113.2"


def test_a_connection_is_its_peers_unless_a_proxy_may_be_there():
    clients = Clients(PROXIES)
    peers = ("192.0.2.1", "2001:db8::1", "::ffff:192.0.2.1", "10.0.0.1", "127.0.0.1", "::1", "x")
    named = ["192.0.2.1", "2001:db8::/64", "192.0.2.1", None, None, None, None]
    assert [clients.peer(peer) for peer in peers] == named
    assert Clients(behind_proxy=True).peer("192.0.2.1") is None


@given(st.text(max_size=100))
def test_any_text_is_an_address_or_none(text):
    address = parse_address(text)
    assert address is None or address.version in (4, 6)
