"""Accounts, sessions, organizations and keys over the API: what is asked, what is answered, what stands in the log."""

from __future__ import annotations

import asyncio

import httpx
import msgspec
import pytest
from api_client import Api, make_api, problem
from argon2 import PasswordHasher

from api import auth
from api.accounts import AccountLimits
from api.auth import cookie
from broker.commands.members import ORGANIZATIONS_MAX
from broker.commands.organizations import SCOPES, create_key, create_organization
from broker.core.accounts import SESSIONS_MAX
from broker.core.codec import decode
from broker.core.events import KeyUsed, SessionCreated
from broker.passwords import Passwords
from broker.volume import StoredBytes
from tests.apps import InterruptedPasswords

EMAIL = "ann@example.com"
PASSWORD = "correct horse battery"
WHO = {"email": EMAIL, "password": PASSWORD}
SAME = {"sec-fetch-site": "same-origin"}


@pytest.fixture
async def api() -> Api:
    return await make_api()


async def register(api: Api, email: str = EMAIL) -> str:
    """The token of a new account's new session."""
    assert (await api.bare.put("/v1/accounts", json={"email": email, "password": PASSWORD})).status_code == 200
    answer = await api.bare.post("/v1/sessions", json={"email": email, "password": PASSWORD})
    api.bare.cookies.clear()
    return answer.json()["session"]["token"]


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


async def organization(api: Api, token: str) -> str:
    answer = await api.bare.put("/v1/organizations", json={"name": "Ann's"}, headers=bearer(token))
    return answer.json()["organization"]["id"]


async def test_from_an_account_to_a_key_that_puts_a_message(api):
    answer = await api.bare.put("/v1/accounts", json=WHO)
    assert (answer.status_code, answer.json()["account"]["email"]) == (200, EMAIL)
    session = await api.bare.post("/v1/sessions", json=WHO)
    assert session.json()["account"] == answer.json()["account"]
    token = bearer(session.json()["session"]["token"])
    made = await api.bare.put("/v1/organizations", json={"name": "Ann's"}, headers=token)
    organization = made.json()["organization"]
    assert organization["name"] == "Ann's"
    assert (await api.bare.get("/v1/organizations", headers=token)).json() == {"organizations": [organization]}
    path = f"/v1/organizations/{organization['id']}/keys"
    answer = await api.bare.put(path, json={"name": "first"}, headers=token)
    key = answer.json()["key"]
    assert key.keys() >= {"id", "name", "prefix", "scopes", "secret"}
    assert (key["scopes"], answer.headers["cache-control"]) == (["queues", "messages"], "no-store")
    queue = await api.bare.put("/v1/queues", json={"name": "q"}, headers={"x-api-key": key["secret"]})
    queue_id = queue.json()["queue"]["id"]
    put = await api.bare.put(
        f"/v1/queues/{queue_id}/messages", json={"data": "x"}, headers={"x-api-key": key["secret"]}
    )
    assert put.status_code == 200


async def test_no_password_token_or_key_is_in_the_log_or_in_a_later_answer(api):
    token = await register(api)
    organization_id = await organization(api, token)
    path = f"/v1/organizations/{organization_id}/keys"
    secret = (await api.bare.put(path, json={"name": "k"}, headers=bearer(token))).json()["key"]["secret"]
    records = b"".join(api.log.control.records)
    for hidden in (PASSWORD, token, secret):
        assert hidden.encode() not in records
        assert hidden not in (await api.bare.get(path, headers=bearer(token))).text
    assert b"$argon2id$" in records


async def test_an_e_mail_address_is_taken_in_whatever_case(api):
    await api.bare.put("/v1/accounts", json=WHO)
    answer = await api.bare.put("/v1/accounts", json={**WHO, "email": EMAIL.upper()})
    assert problem(answer, 422, "email-taken")["errors"][0]["pointer"] == "/email"


async def test_of_two_who_register_one_address_at_once_one_has_it(api):
    answers = await asyncio.gather(*(api.bare.put("/v1/accounts", json=WHO) for _ in range(2)))
    assert sorted(answer.status_code for answer in answers) == [200, 422]


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        ({"email": "x"}, "/email"),
        ({"email": "a@b"}, "/email"),
        ({"email": "a b@example.com"}, "/email"),
        ({"email": "ü@example.com"}, "/email"),
        # A mail header would name another address.
        ({"email": "a<bob@example.com>"}, "/email"),
        ({"email": "bob@example.com,staff"}, "/email"),
        ({"email": "g:bob@example.com;"}, "/email"),
        ({"email": "=?utf-8?q?bob=40example.com?=@example.com"}, "/email"),
        ({"email": "bob%example.com@example.com"}, "/email"),
        ({"email": "a@" + "b" * 250 + ".com"}, "/email"),
        ({"password": "short"}, "/password"),
        ({"password": "x" * 1001}, "/password"),
        ({"password": None}, "/password"),
        ({"name": "x"}, "/name"),
    ],
)
async def test_an_account_that_is_not_as_it_must_be_is_422(api, change, pointer):
    answer = await api.bare.put("/v1/accounts", json={**WHO, **change})
    assert problem(answer, 422)["errors"][0]["pointer"] == pointer


async def test_registration_can_be_switched_off():
    api = await make_api(registration=False)
    problem(await api.bare.put("/v1/accounts", json=WHO), 403, "forbidden")


async def test_nobody_registers_before_the_operator_has_made_an_organization_in_the_shell(api):
    state = api.log.control.state
    state.initialized = False
    answer = problem(await api.bare.put("/v1/accounts", json=WHO), 403, "forbidden")
    assert "everput init" in answer["detail"]
    assert not state.accounts.by_id
    await api.another_organization()
    assert (await api.bare.put("/v1/accounts", json=WHO)).status_code == 200


async def test_a_wrong_password_and_an_unknown_address_are_answered_alike():
    checked: list[str] = []

    class Counting(PasswordHasher):
        def verify(self, password_hash, password):
            checked.append(password_hash)
            return super().verify(password_hash, password)

    api = await make_api(passwords=Passwords(Counting(1, 8, 1)))
    await api.bare.put("/v1/accounts", json=WHO)
    wrong = await api.bare.post("/v1/sessions", json={**WHO, "password": PASSWORD + "?"})
    unknown = await api.bare.post("/v1/sessions", json={**WHO, "email": "bob@example.com"})
    assert problem(wrong, 401, "wrong-password") == problem(unknown, 401, "wrong-password")
    assert len(checked) == 2  # a hash is computed for both
    assert "set-cookie" not in wrong.headers


async def test_guessing_is_slowed_down_for_one_address_and_not_for_another(api):
    await api.bare.put("/v1/accounts", json=WHO)
    await api.bare.put("/v1/accounts", json={**WHO, "email": "bob@example.com"})
    wrong = {**WHO, "password": "a wrong password"}
    answers = [await api.bare.post("/v1/sessions", json=wrong) for _ in range(12)]
    assert [answer.status_code for answer in answers] == [401] * 10 + [429] * 2
    assert 1 <= int(answers[-1].headers["retry-after"]) <= 10
    assert answers[-1].headers["ratelimit-policy"] == '"address";q=10;w=100'
    assert answers[-1].headers["ratelimit"].startswith('"address";r=0;t=')
    problem(await api.bare.post("/v1/sessions", json={**WHO, "email": EMAIL.upper()}), 429, "too-many-requests")
    assert (await api.bare.post("/v1/sessions", json={**WHO, "email": "bob@example.com"})).status_code == 200


async def test_who_tries_many_addresses_is_slowed_down_too():
    api = await make_api(account_limits=AccountLimits(all_guesses_per_s=0.001))
    answers = [
        await api.bare.post("/v1/sessions", json={**WHO, "email": f"{number}@example.com"}) for number in range(60)
    ]
    assert [answer.status_code for answer in answers] == [401] * 50 + [429] * 10


async def test_a_crowd_of_attempts_uses_up_no_address_and_one_address_not_all_attempts(monkeypatch):
    api = await make_api(account_limits=AccountLimits(all_guesses_per_s=0.001, guesses_per_s=0.001))

    async def tried(email: str) -> str:
        """Who refused."""
        answer = await api.bare.post("/v1/sessions", json={**WHO, "email": email})
        return answer.headers["ratelimit-policy"].partition(";")[0] if answer.status_code == 429 else ""

    refusals = [await tried("one@example.com") for _ in range(60)]
    assert refusals == [""] * 10 + ['"address"'] * 50
    refusals = [await tried(f"{number}@example.com") for number in range(50)]
    assert refusals == [""] * 40 + ['"sessions"'] * 10
    monkeypatch.setattr("api.limits.Limit.check", lambda *_, left=0: None)
    left = await api.bare.post("/v1/sessions", json={**WHO, "email": "49@example.com"})
    assert '"address";r=9' in left.headers["ratelimit"], "what was refused has used up nothing of the address's"


async def test_accounts_are_not_made_by_the_thousand(api):
    answers = [
        await api.bare.put("/v1/accounts", json={**WHO, "email": f"{number}@example.com"}) for number in range(30)
    ]
    assert {answer.status_code for answer in answers} == {200, 429}
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert refused.headers["ratelimit-policy"] == '"accounts";q=20;w=20'


async def test_the_cookie_is_for_browsers_and_for_https_where_there_is_https():
    for public_url, https in ((None, False), ("https://broker.example", True), ("http://broker.example", False)):
        api = await make_api(public_url=public_url)
        await api.bare.put("/v1/accounts", json=WHO)
        cookie = (await api.bare.post("/v1/sessions", json=WHO)).headers["set-cookie"]
        assert cookie.startswith("__Host-everput_session=evs_" if https else "everput_session=evs_")
        assert "HttpOnly" in cookie
        assert "SameSite=Lax" in cookie
        assert "; Path=/;" in cookie
        assert "Domain" not in cookie
        assert ("Secure" in cookie) == https


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("everput_session=evs_1", "evs_1"),
        ("a=b; everput_session=evs_1;c=d", "evs_1"),
        ("everput_session=1; everput_session = 2 ", "2"),
        ("everput_session=a=b", "a=b"),
        ('everput_session="evs_1"', '"evs_1"'),
        ("everput_session=", ""),
        ("everput_session", None),
        ("xeverput_session=1; everput_sessionx=2; =3;", None),
        ("", None),
    ],
)
def test_a_cookie_is_found_by_its_name_as_it_was_sent(text, value):
    assert cookie(text, "everput_session") == value


async def test_a_cookie_of_backslashes_is_no_session(api):
    answer = await api.bare.get("/v1/sessions", headers={"cookie": 'everput_session="' + "\\" * 30_000 + '"'})
    assert answer.status_code == 401


async def test_by_https_a_cookie_that_another_host_or_a_page_without_tls_may_have_set_is_none():
    api = await make_api(public_url="https://broker.example")
    token = await register(api)
    api.bare.cookies.clear()
    for name, status in (("everput_session", 401), ("__Host-everput_session", 200)):
        answer = await api.bare.get("/v1/sessions", headers={"cookie": f"{name}={token}"})
        assert answer.status_code == status


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),
        ({"sec-fetch-site": "none"}, 403),
        ({"sec-fetch-site": "cross-site", "origin": "http://api.example.com"}, 403),
        ({"sec-fetch-site": "same-origin"}, 200),
        ({"origin": "http://api.example.com"}, 200),
        ({"origin": "https://api.example.com"}, 403),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
    ],
)
async def test_what_a_browser_sends_with_a_cookie_must_come_from_the_servers_own_pages(api, headers, status):
    cookie = f"everput_session={await register(api)}"
    answer = await api.bare.put("/v1/organizations", json={"name": "x"}, headers={**headers, "cookie": cookie})
    assert answer.status_code == status
    read = await api.bare.get("/v1/organizations", headers={**headers, "cookie": cookie})
    assert read.status_code == 200


@pytest.mark.parametrize("token", ["", "evs_nonsense", "evs_003aUlTJC7tjlCTQj2uNU3MFagCXG9LRKRcwGkBIDlf3LP1ya"])
async def test_an_unknown_session_is_401_and_names_its_scheme(api, token):
    answer = await api.bare.get("/v1/sessions", headers=bearer(token))
    problem(answer, 401, "unauthenticated")
    assert answer.headers["www-authenticate"].startswith("Bearer")


async def test_a_session_that_others_have_displaced_before_it_is_answered_is_a_503(api):
    await api.bare.put("/v1/accounts", json=WHO)
    control = api.log.control

    async def others(made):
        if isinstance(made, SessionCreated):
            for number in range(SESSIONS_MAX):
                await control.append(msgspec.structs.replace(made, session_id=f"s{number}", token_sha256=f"t{number}"))

    control.after = others
    problem(await api.bare.post("/v1/sessions", json=WHO), 503, "unavailable")


async def test_a_session_ends_when_it_is_asked_to_and_when_its_time_is_over(api):
    token = await register(api)
    assert (await api.bare.get("/v1/sessions", headers=bearer(token))).json()["account"]["email"] == EMAIL
    ended = await api.bare.delete("/v1/sessions", headers=bearer(token))
    assert "everput_session=; Path=/; Max-Age=0" in ended.headers["set-cookie"]
    problem(await api.bare.get("/v1/sessions", headers=bearer(token)), 401)
    answer = await api.bare.post("/v1/sessions", json=WHO)
    token = answer.json()["session"]["token"]
    created = next(event for event in map(decode, reversed(api.log.control.records)) if type(event) is SessionCreated)
    session = api.log.control.state.accounts.sessions[created.session_id]
    object.__setattr__(session, "expires_at_ms", 1)
    problem(await api.bare.get("/v1/sessions", headers=bearer(token)), 401)


async def change(api: Api, token: str, password: str, new_password: str) -> httpx.Response:
    body = {"password": password, "new_password": new_password}
    return await api.bare.post("/v1/accounts/password", json=body, headers=bearer(token))


async def test_a_changed_password_is_the_only_one_and_ends_the_other_sessions(api):
    here = await register(api)
    elsewhere = (await api.bare.post("/v1/sessions", json=WHO)).json()["session"]["token"]
    theirs = await register(api, "bob@example.com")
    api.bare.cookies.clear()
    changed = await change(api, here, PASSWORD, "another password")
    assert (changed.status_code, changed.json()["account"]["email"]) == (200, EMAIL)
    for token, status in ((here, 200), (elsewhere, 401), (theirs, 200)):
        assert (await api.bare.get("/v1/sessions", headers=bearer(token))).status_code == status
    problem(await api.bare.post("/v1/sessions", json=WHO), 401, "wrong-password")
    assert (await api.bare.post("/v1/sessions", json={**WHO, "password": "another password"})).status_code == 200
    assert b"another password" not in b"".join(api.log.control.records)


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"password": "not it at all", "new_password": "another password"}, "/password"),
        ({"password": PASSWORD, "new_password": "short"}, "/new_password"),
        ({"password": PASSWORD}, "/new_password"),
        ({"password": PASSWORD, "new_password": "another password", "email": EMAIL}, "/email"),
    ],
)
async def test_a_change_of_password_that_is_not_as_it_must_be_is_422_and_changes_nothing(api, body, pointer):
    token = await register(api)
    answer = await api.bare.post("/v1/accounts/password", json=body, headers=bearer(token))
    assert problem(answer, 422)["errors"][0]["pointer"] == pointer
    assert (await api.bare.post("/v1/sessions", json=WHO)).status_code == 200


async def test_a_password_is_changed_in_a_session_only_and_with_no_more_guesses_than_a_sign_in_has(api):
    token = await register(api)
    body = {"password": PASSWORD, "new_password": "another password"}
    problem(await api.bare.post("/v1/accounts/password", json=body), 401)
    problem(await api.bare.post("/v1/accounts/password", json=body, headers={"x-api-key": api.key}), 401)
    cookie = {"cookie": f"everput_session={token}", "sec-fetch-site": "cross-site"}
    problem(await api.bare.post("/v1/accounts/password", json=body, headers=cookie), 403)
    answers = [await change(api, token, "a wrong password", "another password") for _ in range(12)]
    assert [answer.status_code for answer in answers] == [422] * 10 + [429] * 2


async def test_of_two_changes_at_once_in_two_sessions_the_second_finds_its_session_ended(api):
    tokens = [await register(api)]
    tokens.append((await api.bare.post("/v1/sessions", json=WHO)).json()["session"]["token"])
    api.bare.cookies.clear()
    wanted = ["another password", "a third password"]
    answers = await asyncio.gather(*(change(api, *one) for one in zip(tokens, [PASSWORD] * 2, wanted, strict=True)))
    assert sorted(answer.status_code for answer in answers) == [200, 401]
    for answer, password in zip(answers, wanted, strict=True):
        signed_in = await api.bare.post("/v1/sessions", json={**WHO, "password": password})
        assert signed_in.status_code == answer.status_code


async def test_who_signs_in_with_the_former_password_while_it_is_changed_gets_no_session():
    passwords = InterruptedPasswords()
    api = await make_api(passwords=passwords)
    token = await register(api)

    async def changed() -> None:
        assert (await change(api, token, PASSWORD, "another password")).status_code == 200

    passwords.after_check = changed
    problem(await api.bare.post("/v1/sessions", json=WHO), 401, "wrong-password")
    assert len(api.log.control.state.accounts.sessions) == 1


async def test_an_organization_of_another_account_is_404(api):
    mine, theirs = await register(api), await register(api, "bob@example.com")
    path = f"/v1/organizations/{await organization(api, mine)}/keys"
    key_id = (await api.bare.put(path, json={"name": "k"}, headers=bearer(mine))).json()["key"]["id"]
    for headers in (bearer(theirs), {"x-api-key": await api.key_with(SCOPES)}):
        for method, at in (("GET", path), ("PUT", path), ("GET", f"{path}/{key_id}"), ("DELETE", f"{path}/{key_id}")):
            answer = await api.bare.request(method, at, json={"name": "k"}, headers=headers)
            problem(answer, 404, "not-found")
    problem(await api.bare.get("/v1/organizations/nonsense/keys", headers=bearer(mine)), 404)
    problem(await api.bare.get(f"/v1/organizations/{api.organization_id}/keys", headers=bearer(mine)), 404)


async def test_an_account_has_so_many_organizations(api):
    token = await register(api)
    for _ in range(ORGANIZATIONS_MAX):
        await organization(api, token)
    answer = await api.bare.put("/v1/organizations", json={"name": "one more"}, headers=bearer(token))
    problem(answer, 422, "quota-reached")


async def test_a_key_makes_keys_if_it_may_and_gives_away_no_more_than_it_has(api):
    path = f"/v1/organizations/{api.organization_id}/keys"
    problem(await api.put(path, json={"name": "k"}), 403)
    manager = {"x-api-key": await api.key_with(("keys", "messages"))}
    answer = await api.put(path, json={"name": "k", "scopes": ["messages"]}, headers=manager)
    assert answer.json()["key"]["scopes"] == ["messages"]
    problem(await api.put(path, json={"name": "k", "scopes": ["queues"]}, headers=manager), 403)
    problem(await api.put(path, json={"name": "k"}, headers=manager), 403)
    answer = await api.put(path, json={"name": "k", "scopes": ["keys", "everything"]}, headers=manager)
    assert problem(answer, 422)["errors"][0]["pointer"] == "/scopes/1"


async def test_a_revoked_key_is_refused_and_its_secret_is_in_no_list(api):
    manager = {"x-api-key": await api.key_with(SCOPES)}
    path = f"/v1/organizations/{api.organization_id}/keys"
    made = (await api.put(path, json={"name": "k"}, headers=manager)).json()["key"]
    asked = {"x-api-key": made["secret"]}
    assert (await api.get("/v1/queues", headers=asked)).status_code == 200
    listed = await api.get(path, headers=manager)
    assert made["id"] in [key["id"] for key in listed.json()["keys"]]
    assert "secret" not in listed.text
    revoked = await api.request("DELETE", f"{path}/{made['id']}", headers=manager)
    assert revoked.json()["key"]["id"] == made["id"]
    problem(await api.get("/v1/queues", headers=asked), 401)
    problem(await api.get(f"{path}/{made['id']}", headers=manager), 404)
    problem(await api.request("DELETE", f"{path}/{made['id']}", headers=manager), 404)


async def test_pages_of_keys_hold_each_once(api):
    manager = {"x-api-key": await api.key_with(SCOPES)}
    path = f"/v1/organizations/{api.organization_id}/keys"
    for number in range(5):
        await api.put(path, json={"name": f"k{number}"}, headers=manager)
    found: list[str] = []
    at: str | None = f"{path}?limit=2"
    while at:
        body = (await api.get(at, headers=manager)).json()
        found += [key["name"] for key in body["keys"]]
        at = body["_links"].get("next", {}).get("href")
    assert sorted(found) == sorted(["first", "with scopes", *(f"k{number}" for number in range(5))])


async def test_the_use_of_a_key_is_noted_once_and_shown(api):
    manager = {"x-api-key": await api.key_with(SCOPES)}
    path = f"/v1/organizations/{api.organization_id}/keys"
    _, secret = await create_key(
        api.log.control, api.log.control, organization_id=api.organization_id, name="k", scopes=SCOPES
    )
    shown = {key["name"]: key for key in (await api.get(path, headers=manager)).json()["keys"]}
    assert shown["k"]["last_used_at"] is None
    for _ in range(3):
        await api.get("/v1/queues", headers={"x-api-key": secret})
        await asyncio.sleep(0)  # it is noted beside the request
    shown = {key["name"]: key for key in (await api.get(path, headers=manager)).json()["keys"]}
    assert shown["k"]["last_used_at"] is not None
    used = [event for event in map(decode, api.log.control.records) if isinstance(event, KeyUsed)]
    assert len([event for event in used if event.key_id == shown["k"]["id"]]) == 1


async def test_the_cache_of_keys_has_a_bound_and_each_key_leaves_it_after_an_hour(api, monkeypatch):
    monkeypatch.setattr(auth, "_REMEMBERED_MAX", 3)
    at_s = 1_000.0
    monkeypatch.setattr(auth, "monotonic", lambda: at_s)
    view = api.log.control
    keys = auth.ApiKeys(view, view, StoredBytes(view, view, bytes_max=None), requests_per_s=None)
    secrets = [
        (await create_key(view, view, organization_id=api.organization_id, name=f"k{number}", scopes=SCOPES))[
            1
        ].encode()
        for number in range(5)
    ]
    for secret in secrets:
        await keys.find(secret, [], b"r")
    assert [keys.remembered(secret) is not None for secret in secrets] == [False, False, True, True, True]
    await keys.find(secrets[0], [], b"r")
    assert [keys.remembered(secret) is not None for secret in secrets] == [True, False, False, True, True]
    at_s += 3_600
    assert not any(map(keys.remembered, secrets))
    await keys.find(secrets[4], [], b"r")
    assert keys.remembered(secrets[4]) is not None


async def test_the_use_of_a_key_counts_as_stored_bytes_and_is_not_noted_beyond_the_bound(api):
    view = api.log.control
    organization = await create_organization(view, view, name="theirs", actor="account:ann")

    async def used(stored: StoredBytes) -> int:
        before = len(view.records)
        _, secret = await create_key(view, view, organization_id=organization.id, name="k", scopes=SCOPES)
        keys = auth.ApiKeys(view, view, stored, requests_per_s=None)
        await keys.find(secret.encode(), [], b"r")
        await asyncio.sleep(0)
        return sum(isinstance(decode(record), KeyUsed) for record in view.records[before:])

    stored = StoredBytes(view, view, bytes_max=10_000)
    assert await used(stored) == 1
    assert stored.stored(organization.id) > 100
    stored.add(organization.id, 12_000)
    assert await used(stored) == 0
