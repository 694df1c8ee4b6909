"""The keys resource: its requests and answers.

For: an organization's keys, made and revoked by its members and by keys that may. Not for: what makes a key
(broker/commands.py), finding the one that a request is made with (auth.py)."""

from __future__ import annotations

from typing import Any, NamedTuple

from api.auth import Keys, Sessions, check_scope
from api.calls import Call
from api.changes import Changes
from api.pages import moment, optional_moment, page
from api.past import Views
from api.problems import Forbidden
from api.shapes import KeyBody
from broker.commands import SCOPES, SCOPES_DEFAULT, Context, create_key, now_ms, revoke_key
from broker.core.directory import Key
from broker.errors import NotFound
from broker.ports import ControlLog, DirectoryView


class _Administrator(NamedTuple):
    """Who may make and revoke an organization's keys. scopes: those that may be given away."""

    organization_id: str
    actor: str
    scopes: tuple[str, ...]


class OrganizationKeys:
    """Handlers for /v1/organizations/{organization_id}/keys and below."""

    def __init__(
        self, control: ControlLog, view: DirectoryView, keys: Keys, sessions: Sessions, views: Views, changes: Changes
    ) -> None:
        self._control = control
        self._view = view
        self._keys = keys
        self._sessions = sessions
        self._views = views
        self._changes = changes

    async def create(self, call: Call) -> Any:
        """The only answer that holds the key itself."""
        who = await self._administrator(call)
        body = await call.json(KeyBody, small=True)
        self._changes.take(call.headers, who.organization_id)
        scopes = SCOPES_DEFAULT if body.scopes is None else body.scopes
        missing = [scope for scope in scopes if scope in SCOPES and scope not in who.scopes]
        if missing:
            raise Forbidden(f"This API key lacks the scope {missing[0]!r}, and so can't give it to another.")
        key, secret = await create_key(
            self._control,
            self._view,
            organization_id=who.organization_id,
            name=body.name,
            scopes=scopes,
            actor=who.actor,
            request_id=call.request_text,
        )
        call.headers.append((b"cache-control", b"no-store"))
        return _answer(call, key, {"secret": secret})

    async def list(self, call: Call) -> Any:
        who = await self._administrator(call)
        query = call.query()
        view = await self._views.of(call, who.organization_id)
        shown, cursor = page(view.state.keys_of(who.organization_id), query)
        path = f"/v1/organizations/{who.organization_id}/keys"
        return {"keys": [_fields(key) for key in shown], "_links": call.links(path, query, cursor)}

    async def get(self, call: Call) -> Any:
        who = await self._administrator(call)
        return _answer(call, self._find(who, call, await self._views.of(call, who.organization_id)), {})

    async def revoke(self, call: Call) -> Any:
        """The answer shows the key as it was."""
        who = await self._administrator(call)
        key = self._find(who, call, self._view)
        context = Context(
            organization_id=who.organization_id, actor=who.actor, request_id=call.request_text, at_ms=now_ms()
        )
        await revoke_key(self._control, self._view, context, key.id)
        return _answer(call, key, {})

    async def _administrator(self, call: Call) -> _Administrator:
        """A key of this organization with the scope `keys`, else a member's session (NotFound for all others)."""
        await self._view.caught_up()
        organization_id = call.path("organization_id")
        if call.key_text:
            key = await self._keys.find(call.key_text, call.headers, call.request_id)
            check_scope(key, "keys")
            if key.organization_id != organization_id:
                raise NotFound("no organization has this id")
            call.by_key(key)
            return _Administrator(organization_id, call.actor, key.scopes)
        session = await self._sessions.find(call.scope, call.headers)
        if not self._view.state.is_member(organization_id, session.account_id):
            raise NotFound("no organization has this id")
        call.by_member(session, organization_id)
        return _Administrator(organization_id, call.actor, SCOPES)

    def _find(self, who: _Administrator, call: Call, view: DirectoryView) -> Key:
        key = view.state.keys.get(call.path("key_id"))
        if key is None or key.organization_id != who.organization_id:
            raise NotFound("no key has this id")
        return key


def _fields(key: Key) -> dict[str, Any]:
    return {
        "id": key.id,
        "name": key.name,
        "prefix": key.prefix,
        "scopes": key.scopes,
        "created_at": moment(key.created_at_ms),
        "last_used_at": optional_moment(key.last_used_at_ms),
    }


def _answer(call: Call, key: Key, more: dict[str, Any]) -> dict[str, Any]:
    href = call.href(f"/v1/organizations/{key.organization_id}/keys/{key.id}")
    return {"key": {**_fields(key), **more}, "_links": {"self": {"href": href}}}
