"""People are invited to an organization by a link, over the API and a real SMTP server."""

from __future__ import annotations

import logging
import re
from typing import Any

import httpx
import pytest
from api_client import Api, make_api

from api.invitations import CLIENTS_AT_ONCE, EACH_AT_ONCE, ORGANIZATION_AT_ONCE
from broker.clock import now_ms
from broker.commands.accounts import AccountCommands
from broker.commands.context import shell_context
from broker.commands.invitations import OPEN_MAX, VALID_S, InvitationCommands
from broker.core import events as ev
from broker.core.keys import key_sha256
from broker.errors import QuotaReached, Refused
from broker.settings import SmtpSettings
from tests.apps import cheap_passwords
from tests.listeners import until
from tests.smtp import receiving_mail

PASSWORD = "correct horse battery"
BOB = "bob@example.com"


@pytest.fixture
async def inbox():
    async with receiving_mail() as made:
        yield made


class Person:
    """An account with a session, and the requests it makes."""

    def __init__(self, api: Api, account_id: str, token: str) -> None:
        self.api = api
        self.id = account_id
        self.headers = {"authorization": f"Bearer {token}"}

    async def ask(self, method: str, path: str, body: object = None) -> httpx.Response:
        return await self.api.bare.request(method, path, headers=self.headers, json=body)

    async def invite(self, organization_id: str, email: str = BOB) -> dict[str, Any]:
        answer = await self.ask("PUT", f"/v1/organizations/{organization_id}/invitations", {"email": email})
        assert answer.status_code == 200, answer.text
        assert answer.headers["cache-control"] == "no-store"
        made: dict[str, Any] = answer.json()["invitation"]
        return made

    async def accept(self, token: str) -> httpx.Response:
        return await self.ask("POST", "/v1/invitations/accept", {"token": token})

    async def emails(self, organization_id: str) -> list[str]:
        answer = await self.ask("GET", f"/v1/organizations/{organization_id}/members")
        return [one["email"] for one in answer.json()["members"]]


async def person(api: Api, email: str, password: str = PASSWORD) -> Person:
    """An account, made by the operator unless it exists, that has signed in."""
    control = api.log.control
    account = control.state.accounts.account(email)
    if account is None:
        account = await AccountCommands(control, control, cheap_passwords()).create_account(email, password)
    answer = await api.bare.post("/v1/sessions", json={"email": email, "password": password})
    api.bare.cookies.clear()
    return Person(api, account.id, answer.json()["session"]["token"])


async def ann_and_her_organization(api: Api) -> tuple[Person, str]:
    ann = await person(api, "ann@example.com")
    made = await ann.ask("PUT", "/v1/organizations", {"name": "Ann's shop"})
    return ann, made.json()["organization"]["id"]


async def register(api: Api, token: str, password: str = PASSWORD) -> httpx.Response:
    return await api.bare.post("/v1/invitations/register", json={"token": token, "password": password})


def refused(answer: httpx.Response) -> str:
    """The error text about a token that does not work."""
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/token")
    text: str = answer.json()["detail"]
    return text


async def test_an_account_accepts_an_invitation_once_and_is_a_member_with_all_rights():
    api = await make_api()
    ann, shop = await ann_and_her_organization(api)
    bob, eve = await person(api, BOB), await person(api, "eve@example.com")
    made = await ann.invite(shop)
    assert (made["link"], made["mailed"]) == (None, False)
    listed = (await ann.ask("GET", f"/v1/organizations/{shop}/invitations")).json()["invitations"]
    assert listed == [{name: made[name] for name in ("id", "email", "role", "created_at", "expires_at")}]
    accepted = await bob.accept(made["token"])
    assert accepted.json() == {"organization": {"id": shop, "name": "Ann's shop"}}
    assert await bob.emails(shop) == ["ann@example.com", BOB]
    assert (await ann.ask("GET", f"/v1/organizations/{shop}/invitations")).json() == {"invitations": []}
    refused(await eve.accept(made["token"]))
    assert await ann.emails(shop) == ["ann@example.com", BOB]
    keys = await bob.ask("PUT", f"/v1/organizations/{shop}/keys", {"name": "bob's"})
    assert keys.status_code == 200


async def test_with_the_link_a_person_registers_even_if_registration_is_closed():
    api = await make_api(registration=False)
    ann, shop = await ann_and_her_organization(api)
    assert (await api.bare.put("/v1/accounts", json={"email": BOB, "password": PASSWORD})).status_code == 403
    made = await ann.invite(shop)
    weak = await register(api, made["token"], "short")
    assert (weak.status_code, weak.json()["errors"][0]["pointer"]) == (422, "/password")
    answer = (await register(api, made["token"])).json()
    assert (answer["account"]["email"], answer["organization"]["id"]) == (BOB, shop)
    assert await (await person(api, BOB)).emails(shop) == ["ann@example.com", BOB]
    refused(await register(api, made["token"]))
    assert (await api.bare.put("/v1/accounts", json={"email": "x@y.z", "password": PASSWORD})).status_code == 403


async def test_one_link_makes_one_account_though_it_is_used_twice_at_once():
    api = await make_api(registration=False)
    ann, shop = await ann_and_her_organization(api)
    control = api.log.control
    commands = InvitationCommands(control, control, AccountCommands(control, control, cheap_passwords()))
    invitation = await commands.find((await ann.invite(shop))["token"])
    await commands.register(invitation, PASSWORD, request_id="r-1")
    with pytest.raises(Refused):
        await commands.register(invitation, PASSWORD, request_id="r-2")
    with pytest.raises(Refused, match="not valid any more"):
        await commands.accept(invitation, (await person(api, "eve@example.com")).id, request_id="r-3")
    assert len(control.state.organizations[shop].members) == 2


async def test_an_invitation_to_a_full_organization_makes_no_account(monkeypatch):
    api = await make_api(registration=False)
    ann, shop = await ann_and_her_organization(api)
    made = await ann.invite(shop)
    monkeypatch.setattr("broker.commands.invitations.MEMBERS_MAX", 1)
    full = await register(api, made["token"])
    assert (full.status_code, full.json()["type"]) == (422, "/problems/quota-reached")
    assert api.log.control.state.accounts.account(BOB) is None
    monkeypatch.undo()
    assert (await register(api, made["token"])).status_code == 200


async def test_somebody_who_has_an_account_already_signs_in_and_accepts():
    api = await make_api()
    ann, shop = await ann_and_her_organization(api)
    bob = await person(api, BOB)
    made = await ann.invite(shop)
    assert (await register(api, made["token"])).json()["type"] == "/problems/email-taken"
    assert (await bob.accept(made["token"])).status_code == 200


async def test_a_member_who_opens_the_link_does_not_use_it_up():
    api = await make_api()
    ann, shop = await ann_and_her_organization(api)
    made = await ann.invite(shop)
    assert (await ann.accept(made["token"])).json()["organization"]["id"] == shop
    assert (await (await person(api, BOB)).accept(made["token"])).status_code == 200


async def test_unknown_used_revoked_and_expired_tokens_get_the_same_answer(monkeypatch):
    api = await make_api()
    ann, shop = await ann_and_her_organization(api)
    bob = await person(api, BOB)
    used, revoked, late = [await ann.invite(shop, f"{name}@example.com") for name in ("used", "revoked", "late")]
    assert (await register(api, used["token"])).status_code == 200
    gone = await ann.ask("DELETE", f"/v1/organizations/{shop}/invitations/{revoked['id']}")
    assert gone.json()["invitation"]["email"] == "revoked@example.com"
    again = await ann.ask("DELETE", f"/v1/organizations/{shop}/invitations/{revoked['id']}")
    assert again.status_code == 404
    unknown = "evi_003aUlTJC7tjlCTQj2uNU3MFagCXG9LRKRcwGkBIDlf3LP1ya"
    monkeypatch.setattr("broker.commands.invitations.now_ms", lambda: now_ms() + VALID_S * 1000)
    assert (await ann.ask("GET", f"/v1/organizations/{shop}/invitations")).json() == {"invitations": []}
    expired = await ann.ask("DELETE", f"/v1/organizations/{shop}/invitations/{late['id']}")
    assert expired.status_code == 404
    tokens = [used["token"], revoked["token"], late["token"], unknown, "", "é", bob.headers["authorization"]]
    texts = {refused(await bob.accept(token)) for token in tokens}
    texts |= {refused(await register(api, token)) for token in tokens}
    assert len(texts) == 1
    assert api.log.control.state.accounts.account("late@example.com") is None
    assert await ann.emails(shop) == ["ann@example.com", "used@example.com"]


@pytest.mark.parametrize("ended", ["removed", "blocked", "deleted"])
async def test_the_invitations_of_a_removed_blocked_or_deleted_member_end(ended):
    api = await make_api()
    ann, shop = await ann_and_her_organization(api)
    bob = await person(api, BOB)
    await bob.accept((await ann.invite(shop))["token"])
    made, kept = await bob.invite(shop, "bob2@example.com"), await ann.invite(shop, "eve@example.com")
    people = AccountCommands(api.log.control, api.log.control, cheap_passwords())
    if ended == "removed":
        assert (await ann.ask("DELETE", f"/v1/organizations/{shop}/members/{bob.id}")).status_code == 200
    else:
        await (people.block if ended == "blocked" else people.delete)(bob.id)
    refused(await (await person(api, "bob2@example.com")).accept(made["token"]))
    listed = (await ann.ask("GET", f"/v1/organizations/{shop}/invitations")).json()["invitations"]
    assert [one["email"] for one in listed] == ["eve@example.com"]
    assert (await (await person(api, "eve@example.com")).accept(kept["token"])).status_code == 200


async def test_an_invitation_that_is_stored_after_the_inviters_removal_does_not_count():
    api = await make_api()
    ann, shop = await ann_and_her_organization(api)
    eve = await person(api, "eve@example.com")
    for account_id, expected in ((eve.id, False), (ann.id, True)):
        event = ev.InvitationCreated(
            at_ms=now_ms(),
            organization_id=shop,
            actor=f"account:{account_id}",
            invitation_id=f"i-{account_id}",
            email=BOB,
            token_sha256=f"sha of {account_id}",
            expires_at_ms=now_ms() + 1000,
        )
        assert api.log.control.state.apply(event) is expected


async def test_the_mail_has_the_link_and_no_log_or_event_has_the_token(inbox, caplog):
    caplog.set_level(logging.DEBUG)
    smtp = SmtpSettings(host="127.0.0.1", port=inbox.port, tls=False, sender="everput@example.com")
    api = await make_api(smtp=smtp, public_url="https://everput.example/", registration=False)
    ann, shop = await ann_and_her_organization(api)
    made = await ann.invite(shop)
    assert made["mailed"] is True
    await until(lambda: len(inbox.mails) == 1, what="the mail arrives")
    assert inbox.recipients == [BOB]
    found = re.search(
        r"^(https://everput\.example/console#/invitation/([\w-]+))\r?$", inbox.mails[0].get_content(), re.MULTILINE
    )
    assert found is not None
    assert found.groups() == (made["link"], made["token"])
    await until(lambda: "invitation.mailed" in caplog.text, what="the mail is logged")
    assert (await register(api, made["token"])).status_code == 200
    assert made["token"] not in caplog.text
    records = b"\n".join(api.log.control.records)
    assert made["token"].encode() not in records
    assert key_sha256(made["token"]).encode() in records
    key = await api.bare.put(
        f"/v1/organizations/{shop}/keys", json={"name": "audit", "scopes": ["audit"]}, headers=ann.headers
    )
    read = await api.bare.get("/v1/log?type=invitation", headers={"x-api-key": key.json()["key"]["secret"]})
    assert BOB in read.text
    assert key_sha256(made["token"]) not in read.text


async def test_an_organization_of_anybody_has_no_mail_sent_if_registration_is_open(inbox):
    smtp = SmtpSettings(host="127.0.0.1", port=inbox.port, tls=False, sender="everput@example.com")
    api = await make_api(smtp=smtp, public_url="https://everput.example", registration=True)
    ann, shop = await ann_and_her_organization(api)
    made = await ann.invite(shop)
    assert made["mailed"] is False
    assert made["link"] == f"https://everput.example/console#/invitation/{made['token']}"


async def test_a_members_address_and_text_that_is_no_address_are_refused():
    api = await make_api()
    ann, shop = await ann_and_her_organization(api)
    for email in ("Ann@example.com", "nobody", "", "a@b.c\r\nBcc: d@e.f"):
        answer = await ann.ask("PUT", f"/v1/organizations/{shop}/invitations", {"email": email})
        assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/email")


async def test_one_address_gets_few_mails(inbox):
    smtp = SmtpSettings(host="127.0.0.1", port=inbox.port, tls=False, sender="everput@example.com")
    api = await make_api(smtp=smtp, public_url="https://everput.example", registration=False)
    ann, shop = await ann_and_her_organization(api)
    path = f"/v1/organizations/{shop}/invitations"
    statuses = [(await ann.ask("PUT", path, {"email": BOB})).status_code for _ in range(EACH_AT_ONCE + 1)]
    assert statuses == [200] * EACH_AT_ONCE + [429]


async def test_one_organization_creates_few_invitations_at_once():
    api = await make_api()
    ann, shop = await ann_and_her_organization(api)
    path = f"/v1/organizations/{shop}/invitations"
    asked = [await ann.ask("PUT", path, {"email": f"{n}@example.com"}) for n in range(ORGANIZATION_AT_ONCE + 1)]
    assert [one.status_code for one in asked] == [200] * ORGANIZATION_AT_ONCE + [429]


async def test_one_client_tries_few_tokens_at_once():
    api = await make_api()
    body = {"token": "x", "password": PASSWORD}
    transport = httpx.ASGITransport(api.app, client=("203.0.113.7", 4711))
    async with httpx.AsyncClient(transport=transport, base_url="http://api.example.com") as stranger:
        tried = [await stranger.post("/v1/invitations/register", json=body) for _ in range(CLIENTS_AT_ONCE + 1)]
    assert [one.status_code for one in tried] == [422] * CLIENTS_AT_ONCE + [429]


async def test_an_organization_has_a_bounded_number_of_open_invitations():
    api = await make_api()
    commands = InvitationCommands(api.log.control, api.log.control)
    context = shell_context(api.organization_id)
    for number in range(OPEN_MAX):
        await commands.invite(context, f"{number}@example.com")
    with pytest.raises(QuotaReached):
        await commands.invite(context, BOB)
