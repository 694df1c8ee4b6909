"""Members that leave, accounts that end or are blocked, sessions that are ended from elsewhere: what is answered.

Not for: the fold (test_directory.py), other tenants (test_isolation.py), the shell (tests/scenarios)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from api_client import Api, make_api, problem
from test_api_accounts import PASSWORD, WHO, bearer, organization, register
from test_api_server import live_api

from broker.audit.reader import ReaderTuning
from broker.commands.accounts import AccountCommands
from broker.core.accounts import Account
from tests.apps import InterruptedPasswords, cheap_passwords

BOB = "bob@example.com"


@pytest.fixture
async def api() -> Api:
    return await make_api()


@pytest.fixture
async def over_http() -> AsyncIterator[Api]:
    async with live_api(reading=ReaderTuning(settle_ms=0, slice_events=1)) as live:
        yield live


def people(api: Api) -> AccountCommands:
    return AccountCommands(api.log.control, api.log.control, cheap_passwords())


def account(api: Api, email: str = WHO["email"]) -> Account:
    found = api.log.control.state.accounts.account(email)
    assert found is not None
    return found


async def two_members(api: Api) -> tuple[str, str, str]:
    """Ann's token, Bob's, and the path of their organization's members."""
    ann, bob = await register(api), await register(api, BOB)
    organization_id = await organization(api, ann)
    await people(api).members.join(account(api, BOB).id, organization_id)
    return ann, bob, f"/v1/organizations/{organization_id}/members"


async def delete(api: Api, path: str, token: str) -> httpx.Response:
    return await api.bare.delete(path, headers=bearer(token))


async def test_a_member_sees_the_members_and_removes_one_who_is_out_at_once(api):
    ann, bob, path = await two_members(api)
    listed = (await api.bare.get(path, headers=bearer(bob))).json()["members"]
    assert [(one["email"], one["blocked"]) for one in listed] == [(WHO["email"], False), (BOB, False)]
    removed = await delete(api, f"{path}/{account(api, BOB).id}", ann)
    assert removed.json() == {"member": listed[1]}
    problem(await api.bare.get(path, headers=bearer(bob)), 404)
    assert (await api.bare.get("/v1/organizations", headers=bearer(bob))).json() == {"organizations": []}
    problem(await delete(api, f"{path}/{account(api, BOB).id}", ann), 404)
    problem(await delete(api, f"{path}/not-an-id", ann), 404)


async def test_the_last_member_leaves_only_if_it_says_so(api):
    ann, bob, path = await two_members(api)
    assert (await delete(api, f"{path}/{account(api, BOB).id}", bob)).status_code == 200
    answer = problem(await delete(api, f"{path}/{account(api).id}", ann), 422, "last-member")
    assert "Ann's" in answer["detail"]
    problem(await delete(api, f"{path}/{account(api).id}?even_if_last=perhaps", ann), 422, "bad-parameter")
    assert (await delete(api, f"{path}/{account(api).id}?even_if_last=true", ann)).status_code == 200


async def test_an_account_creates_twenty_organizations_the_ones_it_left_included(over_http):
    token = await register(over_http)
    account_id = account(over_http).id
    for _ in range(20):
        path = f"/v1/organizations/{await organization(over_http, token)}/members/{account_id}?even_if_last=true"
        assert (await delete(over_http, path, token)).status_code == 200
    answer = await over_http.bare.put("/v1/organizations", json={"name": "one more"}, headers=bearer(token))
    assert "has created 20 organizations" in problem(answer, 422, "quota-reached")["detail"]


async def test_of_two_members_who_leave_at_once_one_is_told_that_it_is_the_last(api):
    ann, bob, path = await two_members(api)
    leaving = [(ann, account(api).id), (bob, account(api, BOB).id)]
    answers = await asyncio.gather(*(delete(api, f"{path}/{account_id}", token) for token, account_id in leaving))
    assert sorted(answer.status_code for answer in answers) == [200, 422]


async def test_a_deleted_account_is_out_its_address_is_free_and_its_organizations_keys_go_on(api):
    ann, bob, path = await two_members(api)
    made = await api.bare.put(path.replace("members", "keys"), json={"name": "k"}, headers=bearer(bob))
    before = account(api, BOB)

    async def delete_it(token: str, **body: Any) -> httpx.Response:
        return await api.bare.post("/v1/accounts/delete", json=body, headers=bearer(token))

    wrong = problem(await delete_it(bob, password="not it at all"), 422)
    assert wrong["errors"][0]["pointer"] == "/password"
    answer = await delete_it(bob, password=PASSWORD)
    assert answer.json() == {"account": {"id": before.id, "email": BOB}, "without_members": []}
    assert "everput_session=; Path=/; Max-Age=0" in answer.headers["set-cookie"]
    problem(await api.bare.get("/v1/sessions", headers=bearer(bob)), 401)
    problem(await api.bare.post("/v1/sessions", json={**WHO, "email": BOB}), 401, "wrong-password")
    key = {"x-api-key": made.json()["key"]["secret"]}
    assert (await api.bare.get("/v1/queues", headers=key)).status_code == 200
    token = await register(api, BOB)
    assert account(api, BOB).id != before.id
    assert (await api.bare.get("/v1/organizations", headers=bearer(token))).json() == {"organizations": []}

    problem(await delete_it(ann, password=PASSWORD), 422, "last-member")
    answer = (await delete_it(ann, password=PASSWORD, even_if_last=True)).json()
    assert [one["name"] for one in answer["without_members"]] == ["Ann's"]


async def test_an_account_is_deleted_though_it_is_removed_from_an_organization_meanwhile(api):
    ann, bob, path = await two_members(api)
    answers = []

    async def remove_first(_event: Any) -> None:
        api.log.control.before = None
        answers.append(await delete(api, f"{path}/{account(api, BOB).id}", ann))

    api.log.control.before = remove_first
    answers.append(await api.bare.post("/v1/accounts/delete", json={"password": PASSWORD}, headers=bearer(bob)))
    assert [answer.status_code for answer in answers] == [200, 200]
    assert api.log.control.state.accounts.account(BOB) is None


async def test_a_blocked_account_has_no_session_gets_none_and_only_it_is_told_so(api):
    token = await register(api)
    assert await people(api).block(account(api).id)
    assert not await people(api).block(account(api).id)
    problem(await api.bare.get("/v1/sessions", headers=bearer(token)), 401)
    problem(await api.bare.post("/v1/sessions", json=WHO), 403, "account-blocked")
    problem(await api.bare.post("/v1/sessions", json={**WHO, "password": PASSWORD + "?"}), 401, "wrong-password")
    assert await people(api).unblock(account(api).id)
    assert (await api.bare.post("/v1/sessions", json=WHO)).status_code == 200


@pytest.mark.parametrize(("ends", "status"), [("block", 403), ("delete", 401)])
async def test_who_is_blocked_or_deleted_between_the_password_and_the_session_gets_none(ends: str, status: int):
    passwords = InterruptedPasswords()
    api = await make_api(passwords=passwords)
    assert (await api.bare.put("/v1/accounts", json=WHO)).status_code == 200

    async def ended() -> None:
        await getattr(people(api), ends)(account(api).id)

    passwords.after_check = ended
    problem(await api.bare.post("/v1/sessions", json=WHO), status)
    assert not api.log.control.state.accounts.sessions


async def test_a_reset_password_opens_one_session_in_which_it_must_be_changed(api):
    token = await register(api)
    password, _ = await people(api).reset_password(account(api).id)
    assert password.encode() not in b"".join(api.log.control.records)
    problem(await api.bare.get("/v1/sessions", headers=bearer(token)), 401)
    problem(await api.bare.post("/v1/sessions", json=WHO), 401, "wrong-password")
    once = {**WHO, "password": password}
    begun = await api.bare.post("/v1/sessions", json=once)
    assert begun.status_code == 200
    problem(await api.bare.post("/v1/sessions", json=once), 401, "wrong-password")
    body = {"password": password, "new_password": PASSWORD}
    here = bearer(begun.json()["session"]["token"])
    api.bare.cookies.clear()
    assert (await api.bare.post("/v1/accounts/password", json=body, headers=here)).status_code == 200
    assert (await api.bare.post("/v1/sessions", json=WHO)).status_code == 200


async def test_of_two_who_use_a_one_time_password_at_once_one_has_a_session(api):
    await register(api)
    password, _ = await people(api).reset_password(account(api).id)
    once = {**WHO, "password": password}
    answers = await asyncio.gather(*(api.bare.post("/v1/sessions", json=once) for _ in range(2)))
    assert sorted(answer.status_code for answer in answers) == [200, 401]


@pytest.mark.parametrize(("which", "here", "elsewhere"), [("this", 401, 200), ("others", 200, 401), ("all", 401, 401)])
async def test_a_session_ends_itself_the_others_or_all(api, which, here, elsewhere):
    tokens = [await register(api)]
    tokens.append((await api.bare.post("/v1/sessions", json=WHO)).json()["session"]["token"])
    theirs = await register(api, BOB)
    ended = await delete(api, f"/v1/sessions?which={which}", tokens[0])
    assert ended.status_code == 200
    assert ("set-cookie" in ended.headers) == (here == 401)
    for token, status in ((tokens[0], here), (tokens[1], elsewhere), (theirs, 200)):
        assert (await api.bare.get("/v1/sessions", headers=bearer(token))).status_code == status
    problem(await delete(api, "/v1/sessions?which=mine", theirs), 422, "bad-parameter")
    events = len(api.log.control.records)
    assert (await delete(api, "/v1/sessions?which=others", theirs)).status_code == 200
    assert len(api.log.control.records) == events, "there is none: nothing is written"


async def test_who_is_removed_or_revoked_while_a_body_is_on_its_way_makes_no_key(over_http):
    api = over_http
    ann, bob, path = await two_members(api)
    keys = path.replace("members", "keys")
    manager = (await api.bare.put(keys, json={"name": "m", "scopes": ["keys", "queues"]}, headers=bearer(ann))).json()
    removal, revocation = f"{path}/{account(api, BOB).id}", f"{keys}/{manager['key']['id']}"
    for headers, ends, status in (
        (bearer(bob), removal, 404),
        ({"x-api-key": manager["key"]["secret"]}, revocation, 401),
    ):

        async def body(ends: str = ends):
            yield b'{"name": '
            assert (await delete(api, ends, ann)).status_code == 200
            yield b'"late", "scopes": ["queues"]}'

        sent = {**headers, "content-type": "application/json"}
        answer = await api.bare.put(keys, content=body(), headers=sent)
        problem(answer, status)
    assert "late" not in [key.name for key in api.log.control.state.keys.values()]


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("PUT", "/v1/organizations", b'{"name": "late"}'),
        ("POST", "/v1/accounts/delete", b'{"password": "%b"}' % PASSWORD.encode()),
    ],
)
async def test_a_session_that_ends_while_a_body_is_on_its_way_does_nothing_more(over_http, method, path, body):
    api = over_http
    ended = await register(api)
    other = (await api.bare.post("/v1/sessions", json=WHO)).json()["session"]["token"]

    async def slowly():
        yield body[:1]
        assert (await delete(api, "/v1/sessions?which=others", other)).status_code == 200
        yield body[1:]

    headers = {**bearer(ended), "content-type": "application/json"}
    problem(await api.bare.request(method, path, content=slowly(), headers=headers), 401)
    assert account(api).email == WHO["email"]
    assert "late" not in [one.name for one in api.log.control.state.organizations.values()]


@pytest.mark.parametrize("by", ["key", "member"])
async def test_a_log_that_is_being_sent_ends_when_its_reader_is_out(over_http, by):
    api = over_http
    ann, bob, path = await two_members(api)
    keys = path.replace("members", "keys")
    made = (await api.bare.put(keys, json={"name": "a", "scopes": ["audit"]}, headers=bearer(ann))).json()["key"]
    sent = {"x-api-key": made["secret"]}
    if by == "member":
        sent = {**bearer(bob), "everput-organization": path.split("/")[3]}
    assert b'"complete":true' in (await api.bare.get("/v1/log", headers=sent)).content
    out = f"{path}/{account(api, BOB).id}" if by == "member" else f"{keys}/{made['id']}"
    member = {**bearer(ann), "everput-organization": path.split("/")[3]}
    queue = (await api.bare.put("/v1/queues", json={"name": "q"}, headers=member)).json()["queue"]["id"]
    for _ in range(24):  # more than fits between the two ends of a connection whose client does not read
        put = await api.bare.put(f"/v1/queues/{queue}/messages", json={"data": "x" * (1 << 20)}, headers=member)
        assert put.status_code == 200
    async with (
        httpx.AsyncClient(base_url=api.bare.base_url, timeout=60) as reader,
        reader.stream("GET", "/v1/log", headers=sent) as answer,
    ):
        assert answer.status_code == 200
        lines = answer.aiter_lines()
        got = [await anext(lines), await anext(lines)]
        assert '"complete":false' in got[1]
        assert (await delete(api, out, ann)).status_code == 200
        with pytest.raises(httpx.RemoteProtocolError):  # the end of the chunked body is missing
            got += [line async for line in lines]
    assert not any('"complete":true' in line for line in got)
