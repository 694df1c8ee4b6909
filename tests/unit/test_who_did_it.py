"""Every event that a request makes says who asked, and by which request; no event of a new type is forgotten."""

from __future__ import annotations

import asyncio
from ipaddress import ip_network
from typing import Any

import orjson
from api_client import Api, make_api

from broker.commands.accounts import AccountCommands
from broker.commands.context import shell_context
from broker.commands.invitations import InvitationCommands
from broker.commands.organizations import SCOPES
from broker.core.codec import CLASSES, encode

# What workers do by themselves, what the shell does (cli/commands/rotate.py, cli/commands/accounts.py), and what needs
# an OpenID Connect provider (test_oidc.py).
BY_THEMSELVES = {
    "alert.cleared", "alert.raised", "alert.told",
    "account.blocked", "account.identity_linked", "account.identity_unlinked", "account.password_reset",
    "account.unblocked",
    "answers.kept", "change.applied",
    "deliveries.settled", "delivery.attempted", "delivery.parked", "delivery.set_aside",
    "listener.resealed", "log.damaged", "log.mended", "partition.handed_over", "partition.taken_over",
    "replay.advanced", "statistics.counted", "volume.recorded",
}  # fmt: skip
WHO = {"email": "ann@example.com", "password": "correct horse battery"}
WHERE = {"name": "listener", "notify_url": "https://8.8.8.8/n", "liveness_url": "https://8.8.8.8/l"}


class Asking:
    """Each request has an id of its own. asked: the ids of all."""

    def __init__(self, api: Api) -> None:
        self.api = api
        self.headers: dict[str, str] = {}
        self.asked: list[str] = []

    async def __call__(self, method: str, path: str, body: object = None, **headers: str) -> Any:
        request_id = f"request-{len(self.asked)}"
        self.asked.append(request_id)
        sent = {**self.headers, "x-request-id": request_id, **headers}
        answer = await self.api.bare.request(method, path, json=body, headers=sent)
        self.api.bare.cookies.clear()
        assert answer.is_success, answer.text
        return answer.json()

    def events(self) -> list[dict[str, Any]]:
        log = self.api.log
        texts = [*log.control.records, *(one[1] for records in log.messages.records for one in records)]
        return [
            orjson.loads(one)
            for one in (*texts, *map(encode, (*log.changes.events, *log.tests.events, *log.claims.records)))
        ]


async def test_every_event_says_who_asked_for_it_and_by_which_request():
    api = await make_api(allow_networks=(ip_network("127.0.0.0/8"),))
    asking = Asking(api)
    account = (await asking("PUT", "/v1/accounts", WHO))["account"]["id"]
    session = (await asking("POST", "/v1/sessions", WHO))["session"]
    asking.headers = {"authorization": f"Bearer {session['token']}"}
    organization = (await asking("PUT", "/v1/organizations", {"name": "Ann's"}))["organization"]["id"]
    keys = f"/v1/organizations/{organization}/keys"
    secret = (await asking("PUT", keys, {"name": "k", "scopes": SCOPES}))["key"]["secret"]
    invitations = f"/v1/organizations/{organization}/invitations"
    invited = (await asking("PUT", invitations, {"email": "bob@example.com"}))["invitation"]
    await asking("DELETE", f"{invitations}/{invited['id']}")
    people = AccountCommands(api.log.control, api.log.control)
    colleague = await people.create_account("colleague@example.com", WHO["password"])
    await people.members.join(colleague.id, organization)
    await asking("PUT", f"/v1/organizations/{organization}/members/{colleague.id}", {"role": "auditor"})
    await people.members.leave(shell_context(organization), colleague.id)
    changed = {"password": WHO["password"], "new_password": "another password"}
    await asking("POST", "/v1/accounts/password", changed)
    await asking("DELETE", "/v1/sessions")
    by_account = len(asking.asked)

    asking.headers = {"x-api-key": secret}
    other = (await asking("PUT", keys, {"name": "other"}))["key"]["id"]
    await asking("DELETE", f"{keys}/{other}")
    queue = f"/v1/queues/{(await asking('PUT', '/v1/queues', {'name': 'orders'}))['queue']['id']}"
    await asking("PUT", queue, {"name": "renamed"})
    await asking("PUT", queue, {"alerts": {"parked": 3}})
    listener = f"{queue}/listeners/{(await asking('PUT', f'{queue}/listeners', WHERE))['listener']['id']}"
    await asking("PUT", listener, {"name": "renamed"})
    for verb in ("pause", "resume", "redrive", "secret/rotate"):
        await asking("POST", f"{listener}/{verb}", {} if verb in ("redrive", "secret/rotate") else None)
    await asking("DELETE", f"{listener}/redrive")
    await asking("PUT", listener, {"notify_url": "http://127.0.0.1:8/", "liveness_url": "http://127.0.0.1:8/"})
    await asking("POST", f"{listener}/test")
    message = f"{queue}/messages/{(await asking('PUT', f'{queue}/messages', {'data': 'x'}))['message']['id']}"
    await asking("POST", f"{queue}/messages/batch", {"messages": [{"data": "x"}]}, **{"idempotency-key": "k"})
    for only in ("all", "undelivered"):
        begun = (await asking("POST", f"{listener}/replay", {"from": "beginning", "only": only}))["replay"]["id"]
    await asking("POST", f"{listener}/replays/{begun}/pause")
    await asking("POST", f"{listener}/replays/{begun}/resume")
    await asking("DELETE", f"{listener}/replays/{begun}")
    await asking("PUT", message, {"data": "y"})
    await asking("DELETE", message)
    await asking("DELETE", listener)
    await asking("DELETE", queue)
    await asyncio.sleep(0)  # the use of a key is noted behind the request
    by_key = len(asking.asked)

    asking.headers = {}
    who = {**WHO, "password": changed["new_password"]}
    await asking("POST", "/v1/sessions", who)
    session = (await asking("POST", "/v1/sessions", who))["session"]
    asking.headers = {"authorization": f"Bearer {session['token']}"}
    await asking("DELETE", "/v1/sessions?which=others")
    await asking("DELETE", f"/v1/organizations/{organization}/members/{account}?even_if_last=true")
    control = api.log.control
    _, invited = await InvitationCommands(control, control).invite(shell_context(api.organization_id), WHO["email"])
    await asking("POST", "/v1/invitations/accept", {"token": invited})
    await asking("POST", "/v1/accounts/delete", {"password": who["password"], "even_if_last": True})

    events = [event for event in asking.events() if event["request_id"] or event["actor"] != "shell"]
    assert {event["type"] for event in events} == set(CLASSES) - BY_THEMSELVES
    key = next(event["key_id"] for event in events if event["type"] == "key.used")
    for event in events:
        by = asking.asked.index(event["request_id"])
        assert event["actor"] == (f"key:{key}" if by_account <= by < by_key else f"account:{account}"), event
