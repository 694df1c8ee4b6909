"""Sign-in with an OpenID Connect provider, against a real one on loopback, honest and hostile."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from api_client import Api, make_api, problem
from joserfc.jwk import RSAKey
from starlette.responses import JSONResponse, Response
from test_api_accounts import SAME

from api.oidc import ALL_AT_ONCE, VALID_S
from broker.clock import now_ms
from broker.commands.accounts import AccountCommands
from broker.commands.context import shell_context
from broker.commands.invitations import InvitationCommands
from broker.commands.organizations import create_organization
from broker.core.codec import decode
from broker.core.events import AccountIdentityUnlinked
from broker.outbound import oidc
from tests.apps import cheap_passwords
from tests.oidc import CLIENT_SECRET, TestProvider, provider

ANN = "ann@example.com"
PASSWORD = "correct horse battery"
START = "/v1/sessions/oidc"


@pytest.fixture
async def acme() -> AsyncIterator[TestProvider]:
    async with provider() as made:
        yield made


async def app(acme: TestProvider, *, domains: tuple[str, ...] = (), **more: Any) -> Api:
    return await make_api(oidc=acme.settings(domains=domains), public_url="http://api.example.com", **more)


async def at_provider(api: Api, *, page: str = "", **changes: Any) -> str:
    """Begin a sign-in, sign in at the provider, and return where it sends the browser."""
    begun = await api.bare.post(START, json={"page": page}, headers=SAME)
    assert begun.status_code == 200, begun.text
    async with httpx.AsyncClient() as browser:
        sent = await browser.get(begun.json()["url"], params=None)
    assert sent.status_code == 302, sent.text
    place = urlsplit(sent.headers["location"])
    query = {name: values[0] for name, values in parse_qs(place.query).items()} | changes
    return str(httpx.URL(path=place.path, params={name: value for name, value in query.items() if value is not None}))


async def comes_back(api: Api, place: str) -> str:
    """Where the console leads after the provider has sent the browser back: empty for a success."""
    answer = await api.bare.get(place)
    assert answer.status_code == 303, answer.text
    assert answer.headers["cache-control"] == "no-store"
    before, _, reason = answer.headers["location"].partition("#")
    assert before == "../console"
    return reason.removeprefix("/signin/")


async def signed_in(api: Api) -> str | None:
    answer = await api.bare.get("/v1/sessions")
    return answer.json()["account"]["email"] if answer.status_code == 200 else None


async def registered(api: Api, email: str = ANN) -> str:
    control = api.log.control
    people = AccountCommands(control, control, cheap_passwords())
    return (await people.create_account(email, PASSWORD)).id


async def test_a_new_person_gets_an_account_and_a_session_and_later_the_same_account(acme):
    api = await app(acme)
    assert await comes_back(api, await at_provider(api)) == ""
    assert await signed_in(api) == ANN
    account = (await api.bare.get("/v1/sessions")).json()["account"]["id"]
    assert (await api.bare.delete("/v1/sessions", headers=SAME)).status_code == 200
    assert await signed_in(api) is None
    acme.person |= {"email": "ann.married@example.com"}
    assert await comes_back(api, await at_provider(api)) == ""
    now = (await api.bare.get("/v1/sessions")).json()["account"]
    assert (now["id"], now["email"]) == (account, ANN)
    assert (await api.bare.post("/v1/sessions", json={"email": ANN, "password": ""})).status_code == 401
    assert acme.asked.count("/.well-known/openid-configuration") == 1


async def test_the_first_sign_in_to_an_account_takes_it_from_whoever_registered_the_address(acme):
    api = await app(acme)
    account = await registered(api)
    squatter = (await api.bare.post("/v1/sessions", json={"email": ANN, "password": PASSWORD})).json()
    api.bare.cookies.clear()
    assert await comes_back(api, await at_provider(api)) == ""
    assert (await api.bare.get("/v1/sessions")).json()["account"]["id"] == account
    old = {"authorization": f"Bearer {squatter['session']['token']}"}
    assert (await api.bare.get("/v1/sessions", headers=old)).status_code == 401
    again = await api.bare.post("/v1/sessions", json={"email": ANN, "password": PASSWORD})
    assert again.status_code == 401
    changed = {"password": PASSWORD, "new_password": "another horse battery"}
    assert (await api.bare.post("/v1/accounts/password", json=changed, headers=SAME)).status_code == 422


@pytest.mark.parametrize("verified", [False, None, "true", 1])
async def test_an_address_that_the_provider_has_not_verified_opens_no_account(acme, verified):
    api = await app(acme)
    await registered(api)
    acme.person["email_verified"] = verified
    assert await comes_back(api, await at_provider(api)) == "email"
    assert await signed_in(api) is None
    assert (await api.bare.post("/v1/sessions", json={"email": ANN, "password": PASSWORD})).status_code == 200


async def test_another_person_with_the_address_of_an_account_does_not_get_it(acme):
    api = await app(acme)
    assert await comes_back(api, await at_provider(api)) == ""
    api.bare.cookies.clear()
    acme.person["sub"] = "the-next-ann"
    assert await comes_back(api, await at_provider(api)) == "taken"
    assert await signed_in(api) is None


async def with_password(api: Api, password: str = "another horse battery") -> None:
    """Give the account that is linked with the provider a password, as a mail to its address does."""
    control = api.log.control
    people = AccountCommands(control, control, cheap_passwords())
    await people.replace_password(control.state.accounts.account(ANN), password, request_id="r")


async def test_an_account_with_a_password_is_unlinked_and_its_other_sessions_end(acme):
    api = await app(acme)
    assert await comes_back(api, await at_provider(api)) == ""
    assert (await api.bare.get("/v1/sessions")).json()["account"]["identity"] == {
        "issuer": acme.settings().issuer,
        "has_password": False,
    }
    await with_password(api)
    assert await comes_back(api, await at_provider(api)) == ""
    by_provider = {"authorization": f"Bearer {api.bare.cookies['everput_session']}"}
    api.bare.cookies.clear()
    who = {"email": ANN, "password": "another horse battery"}
    begun = (await api.bare.post("/v1/sessions", json=who)).json()
    assert begun["account"]["identity"]["has_password"] is True
    api.bare.cookies.clear()
    ours = {"authorization": f"Bearer {begun['session']['token']}"}
    wrong = await api.bare.post("/v1/accounts/unlink", json={"password": PASSWORD}, headers=ours)
    assert problem(wrong, 422)["errors"][0]["pointer"] == "/password"
    body = {"password": who["password"]}
    answer = await api.bare.post("/v1/accounts/unlink", json=body, headers=ours)
    assert answer.json() == {"account": {"id": begun["account"]["id"], "email": ANN}}
    assert (await api.bare.get("/v1/sessions", headers=by_provider)).status_code == 401
    assert (await api.bare.get("/v1/sessions", headers=ours)).json()["account"] == answer.json()["account"]
    event = decode(api.log.control.records[-1])
    assert event == AccountIdentityUnlinked(
        at_ms=event.at_ms,
        organization_id="",
        actor=f"account:{begun['account']['id']}",
        request_id=event.request_id,
        account_id=begun["account"]["id"],
        session_id=begun["session"]["id"],
    )
    problem(await api.bare.post("/v1/accounts/unlink", json=body, headers=ours), 422)
    assert (await api.bare.post("/v1/sessions", json=who)).status_code == 200


@pytest.mark.parametrize(("sessions", "status"), [(1, 200), (2, 401)])
async def test_an_unlink_that_comes_second_succeeds_in_the_same_session_and_in_another_it_has_none(
    acme, sessions, status
):
    api = await app(acme)
    await comes_back(api, await at_provider(api))
    await with_password(api)
    await comes_back(api, await at_provider(api))
    who = {"email": ANN, "password": "another horse battery"}
    begun = [(await api.bare.post("/v1/sessions", json=who)).json()["session"] for _ in range(sessions)]
    api.bare.cookies.clear()
    control, first = api.log.control, []

    async def unlink(session: dict) -> int:
        headers = {"authorization": f"Bearer {session['token']}"}
        body = {"password": who["password"]}
        return (await api.bare.post("/v1/accounts/unlink", json=body, headers=headers)).status_code

    async def come_first(_event) -> None:
        control.before = None
        first.append(await unlink(begun[0]))

    control.before = come_first
    assert (await unlink(begun[-1]), first) == (status, [200])
    assert control.state.accounts.account(ANN).identity is None


async def test_the_same_address_at_the_provider_may_be_linked_again_after_it_was_unlinked(acme):
    api = await app(acme)
    assert await comes_back(api, await at_provider(api)) == ""
    account = (await api.bare.get("/v1/sessions")).json()["account"]["id"]
    await with_password(api)
    assert await comes_back(api, await at_provider(api)) == ""
    body = {"password": "another horse battery"}
    assert (await api.bare.post("/v1/accounts/unlink", json=body, headers=SAME)).status_code == 200
    acme.person["sub"] = "the-same-ann-anew"
    assert await comes_back(api, await at_provider(api)) == ""
    assert (await api.bare.get("/v1/sessions")).json()["account"]["id"] == account
    assert (await api.bare.post("/v1/sessions", json={"email": ANN, **body})).status_code == 401


async def test_an_account_without_a_lasting_password_stays_linked(acme):
    api = await app(acme)
    assert await comes_back(api, await at_provider(api)) == ""
    control = api.log.control
    before = control.state.accounts.account(ANN)
    refused = await api.bare.post("/v1/accounts/unlink", json={"password": ""}, headers=SAME)
    assert "no permanent password" in problem(refused, 422)["detail"]
    once, _ = await AccountCommands(control, control, cheap_passwords()).reset_password(before.id)
    assert await comes_back(api, await at_provider(api)) == ""
    refused = await api.bare.post("/v1/accounts/unlink", json={"password": once}, headers=SAME)
    assert "no permanent password" in problem(refused, 422)["detail"]
    assert control.state.accounts.account(ANN).identity == before.identity
    session = control.state.accounts.sessions_of(before.id)[-1].id
    fields = {"at_ms": now_ms(), "organization_id": "", "account_id": before.id}
    assert not control.state.apply(AccountIdentityUnlinked(**fields, session_id=session)), "nor does an event count"
    problem(await api.bare.post("/v1/accounts/unlink", json={"password": once}), 403)


WRONG: dict[str, dict[str, Any]] = {
    "another nonce": {"nonce": "another"},
    "no nonce": {"nonce": None},
    "another audience": {"aud": "another-client"},
    "several audiences without the authorized party": {"aud": ["everput-test", "another-client"]},
    "another authorized party": {"azp": "another-client"},
    "another issuer": {"iss": "https://id.example"},
    "expired": {"exp": 1},
    "no expiry": {"exp": None},
    "from the future": {"nbf": 4_000_000_000},
    "no subject": {"sub": None},
    "an empty subject": {"sub": ""},
    "a subject that is a list": {"sub": ["x"]},
    "a subject that is no text for a log": {"sub": "\ud800"},
    "a subject that is too long": {"sub": "x" * 256},
    "an audience that is an object": {"aud": {"everput-test": 1}},
    "a nonce that is a list": {"nonce": []},
    "an expiry that is a text": {"exp": "4000000000"},
    "an address that is no address": {"email": "ann@example.com\r\nBcc: eve@example.com"},
    "an address that is not ASCII": {"email": "\ud800@example.com"},
}


@pytest.mark.parametrize("claims", WRONG.values(), ids=WRONG)
async def test_an_id_token_with_a_wrong_claim_is_refused(acme, claims):
    api = await app(acme)
    acme.claims = claims
    assert await comes_back(api, await at_provider(api)) == ("email" if "email" in claims else "provider")
    assert await signed_in(api) is None
    assert api.log.control.state.accounts.account(ANN) is None


@pytest.mark.parametrize("algorithm", ["none", "HS256"])
async def test_an_id_token_that_the_providers_key_did_not_sign_is_refused(acme, algorithm):
    api = await app(acme)
    acme.algorithm = algorithm
    assert await comes_back(api, await at_provider(api)) == "provider"
    assert await signed_in(api) is None


async def test_a_key_that_the_provider_does_not_show_is_refused_and_a_new_one_is_read(acme, monkeypatch):
    api = await app(acme)
    acme.published, acme.key = acme.key, RSAKey.generate_key(2048, {"kid": "1"})
    assert await comes_back(api, await at_provider(api)) == "provider"
    assert acme.asked.count("/keys") == 1, "an unknown key does not make Everput ask again and again"
    monkeypatch.setattr(oidc, "_KEYS_AGAIN_S", 0.0)
    acme.published = None
    assert await comes_back(api, await at_provider(api)) == ""


async def test_only_the_browser_that_has_begun_the_sign_in_completes_it_and_once(acme):
    api = await app(acme)
    place = await at_provider(api)
    kept = {"cookie": f"everput_oidc={api.bare.cookies['everput_oidc']}"}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(api.app), base_url="http://api.example.com") as victim:
        forged = await victim.get(place)
        assert forged.headers["location"] == "../console#/signin/stale"
        assert "everput_session=" not in str(forged.headers)
    assert await comes_back(api, place) == ""
    assert (await api.bare.delete("/v1/sessions", headers=SAME)).status_code == 200
    assert await comes_back(api, place) == "stale", "the cookie is gone"
    again = await api.bare.get(place, headers=kept)
    assert again.headers["location"] == "../console#/signin/provider", "a code works once"
    assert await signed_in(api) is None


async def test_the_state_of_another_sign_in_is_refused(acme):
    api = await app(acme)
    first = await at_provider(api)
    second = await at_provider(api)
    assert await comes_back(api, first) == "stale"
    third = await at_provider(api, state=None)
    assert await comes_back(api, third) == "stale"
    assert second != third
    assert await signed_in(api) is None


async def test_a_sign_in_that_took_too_long_or_was_cancelled_is_refused(acme, monkeypatch):
    api = await app(acme)
    assert await comes_back(api, await at_provider(api, code=None, error="access_denied")) == "cancelled"
    place = await at_provider(api)
    monkeypatch.setattr("api.oidc.now_ms", lambda: now_ms() + VALID_S * 1000)
    assert await comes_back(api, place) == "stale"


@pytest.mark.parametrize("headers", [{}, {"sec-fetch-site": "cross-site"}, {"origin": "https://evil.example"}])
async def test_only_the_consoles_pages_begin_a_sign_in(acme, headers):
    api = await app(acme)
    problem(await api.bare.post(START, json={}, headers=headers), 403)
    assert acme.asked == []


async def test_without_a_provider_nobody_signs_in_with_one():
    api = await make_api()
    problem(await api.bare.post(START, json={}, headers=SAME), 403)
    assert await comes_back(api, "/console/oidc?code=x&state=y") == "provider"


async def test_a_provider_that_is_down_is_a_clear_error(acme, caplog):
    api = await app(acme)
    acme.down = True
    problem(await api.bare.post(START, json={}, headers=SAME), 503, "unavailable")
    acme.down = False
    place = await at_provider(api)
    acme.down = True
    assert await comes_back(api, place) == "unavailable"
    assert "oidc.unavailable" in caplog.text
    assert await signed_in(api) is None


HOSTILE = {
    "too long": lambda: JSONResponse({"id_token": "x" * oidc.ANSWER_BYTES_MAX}),
    "a list": lambda: JSONResponse([]),
    "no JSON": lambda: Response(b"{"),
    "compressed": lambda: Response(b"x", headers={"content-encoding": "gzip"}),
    "a redirect": lambda: Response(status_code=302, headers={"location": "http://127.0.0.1:1/"}),
}


@pytest.mark.parametrize("answer", HOSTILE.values(), ids=HOSTILE)
async def test_a_hostile_answer_is_bounded_and_refused(acme, answer):
    api = await app(acme)
    place = await at_provider(api)
    acme.answer = answer()
    assert await comes_back(api, place) == "unavailable"


TOKENS = ["", "x", "..", "a.b.c", "x" * 10_000, "e30.e30.", "eyJhbGciOiJSUzI1NiJ9.bnVsbA.x", "é.é.é"]
KEYS: list[Any] = [
    {},
    {"keys": 1},
    {"keys": [1]},
    {"keys": [{}]},
    {"keys": "x"},
    {"keys": None},
    {"keys": [{"kty": "RSA"}]},
]


@pytest.mark.parametrize("token", [*TOKENS, None, 1, {}, []], ids=lambda token: str(token)[:20])
async def test_an_id_token_that_is_none_is_refused(acme, token):
    api = await app(acme)
    place = await at_provider(api)
    acme.answer = JSONResponse({"id_token": token})
    assert await comes_back(api, place) == "provider"


@pytest.mark.parametrize("keys", KEYS, ids=str)
async def test_keys_that_are_none_are_refused(acme, keys):
    api = await app(acme)
    place = await at_provider(api)
    acme.keys = keys
    assert await comes_back(api, place) in ("provider", "unavailable")
    assert await signed_in(api) is None


@pytest.mark.parametrize("methods", [1, None, {}, "x", ["client_secret_post"]])
async def test_strange_ways_to_authenticate_do_not_stop_the_process(acme, methods):
    api = await app(acme)
    acme.metadata = {"token_endpoint_auth_methods_supported": methods}
    await at_provider(api)


async def test_a_provider_that_does_not_answer_is_given_up(acme, monkeypatch):
    monkeypatch.setattr(oidc, "TIMEOUT_S", 0.2)

    given_up = asyncio.Event()

    async def late(_request: Any) -> Response:
        await given_up.wait()
        return Response()

    api = await app(acme)
    acme._metadata = late
    problem(await api.bare.post(START, json={}, headers=SAME), 503, "unavailable")
    given_up.set()


@pytest.mark.parametrize(
    "metadata",
    [{"issuer": "https://another.example"}, {"token_endpoint": "http://id.example/token"}, {"jwks_uri": "file:///etc"}],
)
async def test_metadata_of_another_issuer_or_without_tls_is_refused(acme, metadata):
    api = await app(acme)
    acme.metadata = metadata
    problem(await api.bare.post(START, json={}, headers=SAME), 503, "unavailable")


async def test_if_registration_is_closed_only_known_people_and_those_of_a_named_domain_get_in(acme):
    closed = await app(acme, registration=False)
    assert await comes_back(closed, await at_provider(closed)) == "unknown"
    await registered(closed)
    assert await comes_back(closed, await at_provider(closed)) == ""
    named = await app(acme, registration=False, domains=("example.com",))
    assert await comes_back(named, await at_provider(named)) == ""
    other = await app(acme, domains=("example.org",))
    await registered(other)
    assert await comes_back(other, await at_provider(other)) == "domain"
    acme.person["email"] = "ann@evil.example.org"
    assert await comes_back(other, await at_provider(other)) == "domain"


async def test_an_invited_person_gets_an_account_and_comes_back_to_the_invitation(acme):
    api = await app(acme, registration=False)
    commands = InvitationCommands(api.log.control, api.log.control)
    _, theirs = await commands.invite(shell_context(api.organization_id), "eve@example.com")
    for token in (theirs, "evi_unknown"):
        assert await comes_back(api, await at_provider(api, page=f"#/invitation/{token}")) == "unknown"
    _, token = await commands.invite(shell_context(api.organization_id), "Ann@example.com", "auditor")
    assert await comes_back(api, await at_provider(api, page=f"#/invitation/{token}")) == f"/invitation/{token}"
    accepted = await api.bare.post("/v1/invitations/accept", json={"token": token}, headers=SAME)
    assert accepted.json()["organization"]["id"] == api.organization_id
    deep = f"#/o/{api.organization_id}/log?type=queue"
    assert await comes_back(api, await at_provider(api, page=deep)) == deep[1:]


@pytest.mark.parametrize(
    "page", ["https://evil.example", "//evil.example", "#/x\r\nset-cookie: a=b", "#/ x", "#/" + "x" * 301]
)
async def test_only_pages_of_the_console_are_come_back_to(acme, page):
    api = await app(acme)
    answer = await api.bare.post(START, json={"page": page}, headers=SAME)
    assert problem(answer, 422)["errors"][0]["pointer"] == "/page"


async def test_a_blocked_account_stays_out_and_a_deleted_one_is_forgotten(acme):
    api = await app(acme)
    control = api.log.control
    people = AccountCommands(control, control, cheap_passwords())
    assert await comes_back(api, await at_provider(api)) == ""
    account = control.state.accounts.account(ANN)
    await people.block(account.id)
    assert await signed_in(api) is None
    assert await comes_back(api, await at_provider(api)) == "blocked"
    await people.delete(account.id)
    assert await comes_back(api, await at_provider(api)) == ""
    assert control.state.accounts.account(ANN).id != account.id


async def test_a_one_time_password_of_the_operator_and_the_provider_do_not_disturb_each_other(acme):
    api = await app(acme)
    control = api.log.control
    people = AccountCommands(control, control, cheap_passwords())
    assert await comes_back(api, await at_provider(api)) == ""
    once, _ = await people.reset_password(control.state.accounts.account(ANN).id)
    for _ in range(2):
        assert await comes_back(api, await at_provider(api)) == ""
    answers = [await api.bare.post("/v1/sessions", json={"email": ANN, "password": once}) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 401]


async def test_no_secret_is_logged_or_stored(acme, caplog):
    caplog.set_level(logging.DEBUG)
    api = await app(acme)
    place = await at_provider(api)
    assert await comes_back(api, place) == ""
    token = api.bare.cookies["everput_session"]
    code = httpx.URL(place).params["code"]
    told = caplog.text.replace(place, "") + b"\n".join(api.log.control.records).decode() + repr(api.settings)
    ours = "\n".join(line for line in told.splitlines() if "httpx" not in line and "httpcore" not in line)
    assert not any(secret in ours for secret in (CLIENT_SECRET, token, code))


async def test_few_sign_ins_begin_at_once(acme):
    api = await app(acme)
    transport = httpx.ASGITransport(api.app, client=("203.0.113.7", 4711))
    async with httpx.AsyncClient(transport=transport, base_url="http://api.example.com") as stranger:
        statuses = [(await stranger.post(START, json={}, headers=SAME)).status_code for _ in range(2)]
        answers = await asyncio.gather(*(stranger.post(START, json={}, headers=SAME) for _ in range(2 * ALL_AT_ONCE)))
    assert statuses == [200, 200]
    assert {answer.status_code for answer in answers} == {200, 429}


async def test_the_operators_organization_comes_before_the_first_account(acme):
    api = await app(acme)
    await create_organization(api.log.control, api.log.control, name="first")
    api.log.control.state.initialized = False
    assert await comes_back(api, await at_provider(api)) == "unknown"
