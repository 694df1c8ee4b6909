"""A forgotten password is reset by e-mail, over the API and a real SMTP server."""

from __future__ import annotations

import re

import httpx
import pytest
from api_client import Api, make_api

from api.password_resets import ALL_AT_ONCE, EACH_AT_ONCE
from broker.commands.accounts import AccountCommands
from broker.settings import SmtpSettings
from tests.listeners import until
from tests.smtp import Inbox, receiving_mail

RESET = "/v1/accounts/password-reset"
EMAIL, PASSWORD, NEW = "ann@example.com", "correct horse battery", "wrong horse staple 7"


@pytest.fixture
async def inbox():
    async with receiving_mail() as made:
        yield made


async def api_with(inbox: Inbox, **more: object) -> Api:
    smtp = SmtpSettings(host="127.0.0.1", port=inbox.port, tls=False, sender="everput@example.com")
    api = await make_api(**{"smtp": smtp, "public_url": "https://everput.example", **more})
    created = await api.bare.put("/v1/accounts", json={"email": EMAIL, "password": PASSWORD})
    assert created.status_code == 200
    return api


async def ask(api: Api, email: str = EMAIL) -> httpx.Response:
    return await api.bare.post(RESET, json={"email": email}, headers={"host": "evil.example"})


async def token(inbox: Inbox, number: int = 1) -> str:
    await until(lambda: len(inbox.mails) == number, what="the mail arrives")
    text = inbox.mails[-1].get_content()
    found = re.search(r"^https://everput\.example/console#/reset/([\w-]+)\r?$", text, re.MULTILINE)
    assert found is not None, text
    return found[1]


async def use(api: Api, token: str, password: str = NEW) -> httpx.Response:
    return await api.bare.put(RESET, json={"token": token, "new_password": password})


async def sign_in(api: Api, password: str) -> httpx.Response:
    return await api.bare.post("/v1/sessions", json={"email": EMAIL, "password": password})


async def test_the_link_of_the_mail_sets_a_new_password_once_and_ends_all_sessions(inbox):
    api = await api_with(inbox)
    session = (await sign_in(api, PASSWORD)).json()["session"]["token"]
    assert (await ask(api)).json() == {"sent_if_known": True}
    secret = await token(inbox)
    assert inbox.recipients == [EMAIL]
    refused = await use(api, secret, "short")
    assert (refused.status_code, refused.json()["errors"][0]["pointer"]) == (422, "/new_password")
    assert (await sign_in(api, PASSWORD)).status_code == 200
    assert (await use(api, secret)).json()["account"]["email"] == EMAIL
    assert (await sign_in(api, PASSWORD)).status_code == 401
    assert (await sign_in(api, NEW)).status_code == 200
    before = await api.bare.get("/v1/sessions", headers={"authorization": f"Bearer {session}"})
    assert before.status_code == 401
    again = await use(api, secret, "another horse staple 8")
    assert (again.status_code, again.json()["errors"][0]["pointer"]) == (422, "/token")


async def test_nobody_learns_whether_an_account_exists(inbox):
    api = await api_with(inbox)
    known, unknown = await ask(api), await ask(api, "nobody@example.com")
    assert (known.status_code, known.content) == (unknown.status_code, unknown.content)
    await token(inbox)
    assert inbox.recipients == [EMAIL]


@pytest.mark.parametrize("wrong", ["", "x", "A" * 100, "é"])
async def test_a_token_from_elsewhere_is_refused(inbox, wrong):
    api = await api_with(inbox)
    assert (await use(api, wrong)).status_code == 422


async def test_a_page_token_is_no_reset_token(inbox):
    api = await api_with(inbox)
    queue_id = await api.queue()
    for _ in range(2):
        await api.put(f"/v1/queues/{queue_id}/messages", json={"data": "d"})
    page = (await api.get(f"/v1/queues/{queue_id}/messages?limit=1")).json()
    cursor = page["_links"]["next"]["href"].partition("cursor=")[2]
    assert (await use(api, cursor)).status_code == 422


async def test_one_address_gets_few_mails(inbox):
    api = await api_with(inbox)
    statuses = [(await ask(api)).status_code for _ in range(EACH_AT_ONCE + 1)]
    assert statuses == [200] * EACH_AT_ONCE + [429]


async def test_invalid_links_keep_nobody_from_setting_a_password(inbox):
    api = await api_with(inbox)
    await ask(api)
    secret = await token(inbox)
    assert {(await use(api, "x")).status_code for _ in range(ALL_AT_ONCE + 1)} == {422}
    assert (await use(api, secret)).status_code == 200


async def test_a_link_is_refused_if_the_account_changes_before_its_password_is_set(inbox, monkeypatch):
    api = await api_with(inbox)
    await ask(api)
    change = AccountCommands.change_password

    async def ended(self, session, *passwords, request_id):
        await self.end_sessions(session.account_id)
        return await change(self, session, *passwords, request_id=request_id)

    monkeypatch.setattr(AccountCommands, "change_password", ended)
    refused = await use(api, await token(inbox))
    assert (refused.status_code, refused.json()["errors"][0]["pointer"]) == (422, "/token")
    assert (await sign_in(api, NEW)).status_code == 401


@pytest.mark.parametrize("without", [{"smtp": None}, {"public_url": None}])
async def test_without_a_mail_server_or_a_public_url_the_operator_resets_passwords(inbox, without):
    api = await api_with(inbox, **without)
    assert (await ask(api)).status_code == 403
    page = (await api.bare.get("/console")).text
    assert 'data-mail="off"' in page
    assert 'data-mail="on"' in (await (await api_with(inbox)).bare.get("/console")).text
