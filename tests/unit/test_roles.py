"""The roles of members: what each role may do, on every route, and how a role is given and taken."""

from __future__ import annotations

from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from api_client import Api, Socket, make_api, problem
from test_invitations import BOB, Person, ann_and_her_organization, person
from test_isolation import OF_MEMBERS, OF_THE_ASKER, OWNED, SOCKETS, STREAMS, Tenant, all_there_is, ask, tenant

from api.app import operations
from api.reference import OPERATION_DOCS
from api.tunnel import Tunnels
from broker.clock import now_ms
from broker.commands.accounts import AccountCommands
from broker.commands.context import Context, shell_context
from broker.core import events as ev
from broker.core.directory import Directory
from broker.core.keys import SCOPES, covers
from broker.core.roles import MEMBERS, OWNER, ROLES
from tests.apps import cheap_passwords

PAGE = (Path(__file__).parents[2] / "docs" / "security.md").read_text()
BODIES = {**OWNED, **OF_THE_ASKER, **OF_MEMBERS}
ROLES_OF_OTHERS = [role for role in ROLES if role != OWNER]


def needed(api: Api) -> dict[str, str]:
    """The scope that a member needs for each route that needs one."""
    found = {
        f"{method} {path}": scope or OPERATION_DOCS[method, path].needs for method, path, scope in operations(api.app)
    }
    return {route: scope for route, scope in found.items() if scope is not None}


@pytest.fixture
async def api() -> Api:
    return await make_api(allow_networks=(ip_network("127.0.0.0/8"),), tunnels=Tunnels("tunnel://127.0.0.1:8"))


async def as_role(api: Api, role: str) -> Tenant:
    """An organization whose other member is an owner, too, and who has signed in with this role."""
    found = await tenant(api, "anna")
    control = api.log.control
    people = AccountCommands(control, control, cheap_passwords())
    account = control.state.accounts.account("anna@example.com")
    await people.members.change_role(shell_context(found.ids["organization_id"]), account.id, role)
    return found


def test_every_route_that_needs_a_scope_is_tried_with_each_role(api):
    assert set(needed(api)) | {"GET /v1/organizations/{organization_id}/members"} == {*BODIES, *STREAMS}
    assert all(covers(scopes, needed(api)[route]) for route in STREAMS for scopes in ROLES.values())


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("route", BODIES)
async def test_a_role_may_what_its_scopes_cover_and_nothing_else(api, route, role):
    member = await as_role(api, role)
    scope = needed(api).get(route)
    before = all_there_is(api)
    answer = await ask(api, route, member.ids, BODIES[route], member.member())
    if scope is None or covers(ROLES[role], scope):
        taken = BODIES[route] == {"name": "anna's queue"}
        assert answer.status_code == (422 if taken else 200), answer.text
    else:
        told = problem(answer, 403, "forbidden")
        assert f"{scope!r}" in told["detail"]
        assert all_there_is(api) == before


def test_the_security_page_says_what_each_role_may(api):
    documents = {f"{method} {path}": one.summary for (method, path), one in OPERATION_DOCS.items()}
    by_scope: dict[str, list[str]] = {}
    for route, scope in needed(api).items():
        by_scope.setdefault(scope, []).append(documents[route].lower().replace("api key", "API key"))
    for scope, summaries in by_scope.items():
        marks = " | ".join("yes" if covers(scopes, scope) else "no" for scopes in ROLES.values())
        assert f"| `{scope}` | {marks} | {'; '.join(sorted(summaries))} |" in PAGE
    assert f"| scope | {' | '.join(ROLES)} | operations |" in PAGE


def test_each_role_has_the_scopes_of_keys_only_and_owners_have_all():
    assert {scope for scopes in ROLES.values() for scope in scopes} <= {*SCOPES, MEMBERS}
    assert all(covers(ROLES[OWNER], scope) for scope in (*SCOPES, MEMBERS))
    assert MEMBERS not in SCOPES, "no API key may manage members"


@pytest.mark.parametrize("role", ROLES)
async def test_a_tunnel_is_for_roles_that_may_create_listeners_and_ends_with_the_role(api, role):
    member = await as_role(api, role)
    ((route, query),) = SOCKETS.items()
    socket = Socket(api, route.removeprefix("GET ").format(**member.ids), query, member.member())
    told = await socket.next()
    if not covers(ROLES[role], "queues"):
        assert (told["type"], told["status"]) == ("websocket.http.response.start", 403)
        return
    assert told["type"] == "websocket.accept"
    control = api.log.control
    account = control.state.accounts.account("anna@example.com")
    context = shell_context(member.ids["organization_id"])
    await AccountCommands(control, control, cheap_passwords()).members.change_role(context, account.id, "auditor")
    while told["type"] != "websocket.close":
        told = await socket.next()


async def invited(api: Api, inviter: Person, organization_id: str, role: str, email: str = BOB) -> Person:
    answer = await inviter.ask(
        "PUT", f"/v1/organizations/{organization_id}/invitations", {"email": email, "role": role}
    )
    made = answer.json()["invitation"]
    assert made["role"] == role
    found = await person(api, email)
    assert (await found.accept(made["token"])).status_code == 200
    return found


async def change(by: Person, organization_id: str, who: Person, role: str) -> Any:
    return await by.ask("PUT", f"/v1/organizations/{organization_id}/members/{who.id}", {"role": role})


async def roles(by: Person, organization_id: str) -> dict[str, str]:
    answer = await by.ask("GET", f"/v1/organizations/{organization_id}/members")
    return {one["email"]: one["role"] for one in answer.json()["members"]}


@pytest.mark.parametrize("role", ROLES)
async def test_an_invited_person_gets_the_role_of_the_invitation_and_learns_it(api, role):
    ann, shop = await ann_and_her_organization(api)
    bob = await invited(api, ann, shop, role)
    assert await roles(ann, shop) == {"ann@example.com": "owner", BOB: role}
    (told,) = (await bob.ask("GET", "/v1/organizations")).json()["organizations"]
    assert (told["role"], told["scopes"]) == (role, list(ROLES[role]))


async def test_members_from_before_there_were_roles_are_owners():
    directory = Directory()
    by = {"at_ms": 1, "organization_id": "o"}
    for account in ("a", "b"):
        made = {"account_id": account, "email": f"{account}@example.com", "password_hash": "x"}
        directory.apply(ev.AccountCreated(at_ms=1, organization_id="", **made))
    directory.apply(ev.OrganizationCreated(**by, name="acme"))
    directory.apply(ev.OrganizationJoined(**by, account_id="a"))
    directory.apply(
        ev.InvitationCreated(**by, invitation_id="i", email="b@example.com", token_sha256="t", expires_at_ms=9)
    )
    directory.apply(ev.InvitationAccepted(**by, invitation_id="i", account_id="b"))
    assert [directory.role_of("o", account) for account in ("a", "b", "c")] == ["owner", "owner", None]


async def test_an_unknown_role_is_refused_and_nothing_happens(api):
    ann, shop = await ann_and_her_organization(api)
    bob = await invited(api, ann, shop, "auditor")
    before = all_there_is(api)
    for answer in (
        await change(ann, shop, bob, "root"),
        await ann.ask("PUT", f"/v1/organizations/{shop}/invitations", {"email": "eve@example.com", "role": ""}),
    ):
        assert problem(answer, 422)["errors"][0]["pointer"] == "/role"
    assert all_there_is(api) == before


@pytest.mark.parametrize("role", ROLES_OF_OTHERS)
async def test_the_last_owner_stays_an_owner_and_a_member(api, role):
    ann, shop = await ann_and_her_organization(api)
    bob = await invited(api, ann, shop, role)
    assert (await change(ann, shop, ann, role)).json()["type"] == "/problems/last-member"
    gone = await ann.ask("DELETE", f"/v1/organizations/{shop}/members/{ann.id}")
    assert gone.json()["type"] == "/problems/last-member"
    assert (await ann.ask("POST", "/v1/accounts/delete", {"password": "correct horse battery"})).status_code == 422
    assert await roles(bob, shop) == {"ann@example.com": "owner", BOB: role}
    assert (await change(ann, shop, bob, "owner")).status_code == 200
    assert (await change(bob, shop, ann, role)).status_code == 200
    assert await roles(bob, shop) == {"ann@example.com": role, BOB: "owner"}


async def test_an_owner_who_is_blocked_does_not_count_as_the_one_who_stays(api):
    ann, shop = await ann_and_her_organization(api)
    bob = await invited(api, ann, shop, "owner")
    people = AccountCommands(api.log.control, api.log.control, cheap_passwords())
    await people.block(bob.id)
    assert (await change(ann, shop, ann, "auditor")).status_code == 422
    await people.unblock(bob.id)
    assert (await change(ann, shop, ann, "auditor")).status_code == 200


@pytest.mark.parametrize("role", ROLES_OF_OTHERS)
async def test_every_member_may_leave_and_only_owners_remove_others(api, role):
    ann, shop = await ann_and_her_organization(api)
    bob, eve = await invited(api, ann, shop, role), await invited(api, ann, shop, "auditor", "eve@example.com")
    path = f"/v1/organizations/{shop}/members"
    assert (await bob.ask("DELETE", f"{path}/{eve.id}?even_if_last=true")).status_code == 403
    assert (await bob.ask("DELETE", f"{path}/{ann.id}?even_if_last=true")).status_code == 403
    assert (await change(bob, shop, bob, "owner")).status_code == 403
    assert len(await roles(ann, shop)) == 3
    assert (await bob.ask("DELETE", f"{path}/{bob.id}")).status_code == 200
    assert (await bob.ask("GET", path)).status_code == 404


async def test_a_role_counts_from_the_next_request_on_and_before_a_body_has_arrived(api):
    ann, shop = await ann_and_her_organization(api)
    bob = await invited(api, ann, shop, "developer")
    bob.headers["everput-organization"] = shop
    assert (await bob.ask("PUT", "/v1/queues", {"name": "a"})).status_code == 200

    async def slow() -> Any:
        yield b'{"name": '
        assert (await change(ann, shop, bob, "auditor")).status_code == 200
        yield b'"b"}'

    headers = {**bob.headers, "content-type": "application/json"}
    problem(await api.bare.put("/v1/queues", content=slow(), headers=headers), 403)
    assert (await bob.ask("PUT", "/v1/queues", {"name": "c"})).status_code == 403
    assert [queue["name"] for queue in (await bob.ask("GET", "/v1/queues")).json()["queues"]] == ["a"]


async def test_a_member_gives_no_key_a_scope_that_the_role_lacks(api, monkeypatch):
    monkeypatch.setattr("broker.core.organizations.ROLES", {**ROLES, "developer": ("keys", "messages:put")})
    ann, shop = await ann_and_her_organization(api)
    bob = await invited(api, ann, shop, "developer")
    path = f"/v1/organizations/{shop}/keys"
    assert (await bob.ask("PUT", path, {"name": "x", "scopes": ["messages:put"]})).status_code == 200
    for scope in ("messages", "queues:read", "audit"):
        problem(await bob.ask("PUT", path, {"name": "x", "scopes": [scope]}), 403)
    problem(await bob.ask("PUT", path, {"name": "x"}), 403)
    assert problem(await ann.ask("PUT", path, {"name": "x", "scopes": [MEMBERS]}), 422)


async def test_the_invitations_of_an_owner_end_with_the_role(api):
    ann, shop = await ann_and_her_organization(api)
    bob = await invited(api, ann, shop, "owner")
    token = (await bob.invite(shop, "bob2@example.com"))["token"]
    assert (await change(ann, shop, bob, "developer")).status_code == 200
    assert (await (await person(api, "bob2@example.com")).accept(token)).status_code == 422


@pytest.mark.parametrize("removed", [False, True])
async def test_a_second_invitation_gives_nobody_a_role_back_that_an_owner_has_taken(api, removed: bool):
    ann, shop = await ann_and_her_organization(api)
    path = f"/v1/organizations/{shop}/invitations"
    second, others = [
        (await ann.ask("PUT", path, {"email": email, "role": "owner"})).json()["invitation"]["token"]
        for email in (BOB.upper(), "carl@example.com")
    ]
    bob = await invited(api, ann, shop, "owner")
    member = f"/v1/organizations/{shop}/members/{bob.id}"
    if removed:
        assert (await ann.ask("DELETE", member)).status_code == 200
    else:
        assert (await change(ann, shop, bob, "auditor")).status_code == 200
        assert (await bob.ask("DELETE", member)).status_code == 200
    assert (await bob.accept(second)).status_code == 422
    assert (await bob.ask("GET", "/v1/organizations")).json()["organizations"] == []
    assert (await (await person(api, "carl@example.com")).accept(others)).status_code == 200
    again = (await bob.accept((await ann.invite(shop))["token"])).status_code
    assert again == 200


async def test_an_event_of_somebody_who_is_no_owner_any_more_does_not_count(api):
    ann, shop = await ann_and_her_organization(api)
    bob = await invited(api, ann, shop, "developer")
    eve = await invited(api, ann, shop, "auditor", "eve@example.com")
    by = {"at_ms": now_ms(), "organization_id": shop, "actor": f"account:{bob.id}"}
    state = api.log.control.state
    for event in (
        ev.MemberRoleChanged(**by, account_id=bob.id, role="owner"),
        ev.OrganizationLeft(**by, account_id=eve.id),
        ev.InvitationCreated(**by, invitation_id="i", email="x@y.z", token_sha256="t", expires_at_ms=2 * now_ms()),
    ):
        assert state.apply(event) is False
    context = Context(organization_id=shop, actor=f"account:{bob.id}", request_id="r", at_ms=now_ms())
    with pytest.raises(Exception, match="no owner of this organization any more"):
        await AccountCommands(api.log.control, api.log.control).members.leave(context, eve.id)
    assert await roles(ann, shop) == {"ann@example.com": "owner", BOB: "developer", "eve@example.com": "auditor"}


@pytest.mark.parametrize("role", ["operator", "developer"])
async def test_a_replay_to_another_url_needs_the_whole_scope_of_queues(api, role):
    member = await as_role(api, role)
    body = {"from": "beginning", "notify_url": "http://127.0.0.1:8/elsewhere"}
    route = "POST /v1/queues/{queue_id}/listeners/{listener_id}/replay"
    answer = await ask(api, route, member.ids, body, member.member())
    assert answer.status_code == (403 if role == "operator" else 200)
