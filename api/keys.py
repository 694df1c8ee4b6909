"""The keys resource: the requests and answers for an organization's API keys.

For: members, and API keys with the scope `keys`, which create and revoke keys. Not for: what a key consists of
(broker/commands/organizations.py), finding the key that a request is made with (auth.py).
"""

from __future__ import annotations

from typing import Any, NamedTuple

from api.auth import Sessions
from api.calls import Call
from api.changes import ChangeLimits
from api.pages import optional_rfc3339, page, rfc3339
from api.past import Views
from api.problems import Forbidden
from api.shapes import KeyBody
from broker.clock import now_ms
from broker.commands.context import Context
from broker.commands.organizations import SCOPES, SCOPES_DEFAULT, create_key, revoke_key
from broker.core.api_keys import ApiKey
from broker.core.keys import covers
from broker.errors import NotFound
from broker.ports import ControlLog, DirectoryView


class _Administrator(NamedTuple):
    """The requester who lists, creates or revokes API keys of an organization: an API key or a member's session."""

    organization_id: str
    actor: str
    # The scopes (rights) of the requester. A new API key may get only these scopes and parts of them.
    scopes: tuple[str, ...]
    # The latest expiry that this request may give to a new API key, in ms since the UTC epoch; None for no limit.
    expires_at_ms: int | None = None


class OrganizationKeys:
    """Handlers for an organization's API keys."""

    def __init__(
        self, control: ControlLog, view: DirectoryView, sessions: Sessions, views: Views, changes: ChangeLimits
    ) -> None:
        self._control = control
        self._view = view
        self._sessions = sessions
        self._views = views
        self._changes = changes

    async def create(self, call: Call) -> Any:
        """Create an API key. The answer holds the key itself, which later answers leave out."""
        who = await self._administrator(call)
        body = await call.json(KeyBody, small=True)
        self._changes.take(call.headers, who.organization_id)
        scopes = SCOPES_DEFAULT if body.scopes is None else body.scopes
        missing = [scope for scope in scopes if scope in SCOPES and not covers(who.scopes, scope)]
        if missing:
            who_lacks = "This API key" if call.api_key is not None else "Your role in this organization"
            raise Forbidden(
                f"{who_lacks} lacks the scope {missing[0]!r}, so you can't create a key with this scope. "
                "Set `scopes` to a list without it."
            )
        expires_at_ms = None if body.expires_at is None else int(body.expires_at.timestamp() * 1000)
        if who.expires_at_ms is not None and (expires_at_ms is None or expires_at_ms > who.expires_at_ms):
            last = rfc3339(who.expires_at_ms)
            raise Forbidden(
                f"This API key expires, so a key that it creates must expire, too. Set `expires_at` to {last} or "
                "earlier."
            )
        api_key, secret = await create_key(
            self._control,
            self._view,
            organization_id=who.organization_id,
            name=body.name,
            scopes=scopes,
            queue_ids=body.queues,
            expires_at_ms=expires_at_ms,
            actor=who.actor,
            request_id=call.request_text,
        )
        call.headers.append((b"cache-control", b"no-store"))
        return _answer(call, api_key, {"secret": secret})

    async def list(self, call: Call) -> Any:
        who = await self._administrator(call)
        query = call.query()
        view = await self._views.of(call, who.organization_id)
        shown, page_token = page(view.state.keys_of(who.organization_id), query)
        path = f"/v1/organizations/{who.organization_id}/keys"
        return {"keys": [_fields(api_key) for api_key in shown], "_links": call.links(path, query, page_token)}

    async def get(self, call: Call) -> Any:
        who = await self._administrator(call)
        return _answer(call, self._find(who, call, await self._views.of(call, who.organization_id)), {})

    async def revoke(self, call: Call) -> Any:
        """Revoke an API key. The answer shows the key as it was before."""
        who = await self._administrator(call)
        api_key = self._find(who, call, self._view)
        context = Context(
            organization_id=who.organization_id, actor=who.actor, request_id=call.request_text, at_ms=now_ms()
        )
        await revoke_key(self._control, self._view, context, api_key.id)
        return _answer(call, api_key, {})

    async def _administrator(self, call: Call) -> _Administrator:
        """Return the sender of this request: an API key or a member of the organization in the path.

        Raises Unauthenticated or NoSession if the request has no valid credentials, and TooManyRequests if a rate limit
        is exceeded. Raises NotFound if the sender does not belong to the organization. Raises Forbidden if the sender
        lacks the scope `keys`, or is an API key that is restricted to some queues.
        """
        await self._view.caught_up()
        organization_id = call.path("organization_id")
        if call.api_key_text:
            api_key = await call.admit_api_key("keys")
            if api_key.organization_id != organization_id:
                raise NotFound("None of your organizations has this ID. GET /v1/organizations lists them.")
            return _Administrator(organization_id, call.actor, api_key.scopes, api_key.expires_at_ms)
        session = await self._sessions.find(call.scope, call.headers)
        if not self._view.state.is_member(organization_id, session.account_id):
            raise NotFound("None of your organizations has this ID. GET /v1/organizations lists them.")
        call.by_member(session, organization_id)
        call.need("keys")
        return _Administrator(organization_id, call.actor, call.scopes)

    def _find(self, who: _Administrator, call: Call, view: DirectoryView) -> ApiKey:
        api_key = view.state.keys.get(call.path("key_id"))
        if api_key is None or api_key.organization_id != who.organization_id:
            raise NotFound("No API key of this organization has this ID. Check the ID.")
        return api_key


def _fields(api_key: ApiKey) -> dict[str, Any]:
    return {
        "id": api_key.id,
        "name": api_key.name,
        "prefix": api_key.prefix,
        "scopes": api_key.scopes,
        "queues": api_key.queue_ids,
        "expires_at": optional_rfc3339(api_key.expires_at_ms),
        "created_at": rfc3339(api_key.created_at_ms),
        "last_used_at": optional_rfc3339(api_key.last_used_at_ms),
    }


def _answer(call: Call, api_key: ApiKey, more: dict[str, Any]) -> dict[str, Any]:
    href = call.href(f"/v1/organizations/{api_key.organization_id}/keys/{api_key.id}")
    return {"key": {**_fields(api_key), **more}, "_links": {"self": {"href": href}}}
