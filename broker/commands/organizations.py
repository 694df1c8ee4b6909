"""Commands on organizations and their API keys.

For: creating both, and revoking keys. Not for: members (accounts.py), who may call a command (api/auth.py).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Final
from uuid import uuid4

from broker.clock import now_ms
from broker.commands.context import Context, check_name, event_fields, record
from broker.core import events as ev
from broker.core import keys
from broker.core.api_keys import ApiKey
from broker.core.entities import Organization
from broker.core.names import shortened
from broker.errors import (
    NotFound,
    QuotaReached,
    Refused,
)
from broker.ports import ControlLog, DirectoryView

SCOPES: Final = tuple(keys.SCOPES)
SCOPES_DEFAULT: Final = ("queues", "messages")
KEYS_MAX: Final = 1_000  # API keys of one organization


async def create_organization(
    control: ControlLog, view: DirectoryView, *, name: str, actor: str = "shell", request_id: str = ""
) -> Organization:
    """Create an organization without members. Raises Refused if the name is not valid."""
    check_name(name)
    context = Context(organization_id=str(uuid4()), actor=actor, request_id=request_id, at_ms=now_ms())
    await record(control, view, ev.OrganizationCreated(**event_fields(context), name=name))
    return view.state.organizations[context.organization_id]


async def create_key(
    control: ControlLog,
    view: DirectoryView,
    *,
    organization_id: str,
    name: str,
    scopes: Sequence[str] = SCOPES_DEFAULT,
    queue_ids: Sequence[str] | None = None,
    expires_at_ms: int | None = None,
    actor: str = "shell",
    request_id: str = "",
) -> tuple[ApiKey, str]:
    """Create an API key, and return it with the key's text. The text is not available later.

    The key is restricted to the queues in `queue_ids`; None means all queues. Raises Refused if a value is not valid,
    QuotaReached if there are too many keys, NotFound if there is no such organization.
    """
    check_name(name)
    for index, scope in enumerate(scopes):
        if scope not in SCOPES:
            raise Refused(
                f"{shortened(scope)!r} is no scope. Use one of {', '.join(SCOPES)}.", pointer=f"/scopes/{index}"
            )
        if queue_ids is not None and scope not in keys.SCOPES_OF_QUEUES:
            raise Refused(
                f"A key that is restricted to some queues can't have the scope {scope!r}. Leave out this scope, "
                "or the field `queues`.",
                pointer=f"/scopes/{index}",
            )
    if queue_ids is not None:
        await _check_queues(view, organization_id, queue_ids)
    if expires_at_ms is not None and expires_at_ms <= now_ms():
        raise Refused(
            "The time `expires_at` is in the past. Give a later time, or null for a key that does not expire.",
            pointer="/expires_at",
        )
    if sum(1 for _ in view.state.keys_of(organization_id)) >= KEYS_MAX:
        raise QuotaReached(f"An organization may have at most {KEYS_MAX} API keys. Revoke one first.")
    secret = keys.key_text(os.urandom(keys.RANDOM_BYTES))
    event = ev.KeyCreated(
        at_ms=now_ms(),
        organization_id=organization_id,
        actor=actor,
        request_id=request_id,
        key_id=str(uuid4()),
        name=name,
        prefix=keys.key_prefix(secret),
        secret_sha256=keys.key_sha256(secret),
        scopes=tuple(dict.fromkeys(scopes)),
        queue_ids=None if queue_ids is None else tuple(dict.fromkeys(queue_ids)),
        expires_at_ms=expires_at_ms,
    )
    api_key = view.state.keys.get(event.key_id) if await record(control, view, event) else None
    # There is no API key if the organization does not exist, or if the new key was revoked immediately.
    if api_key is None:
        raise NotFound(
            "The organization does not exist, or the new API key was revoked immediately. "
            "GET /v1/organizations lists your organizations."
        )
    return api_key, secret


async def _check_queues(view: DirectoryView, organization_id: str, queue_ids: Sequence[str]) -> None:
    if not 1 <= len(queue_ids) <= keys.QUEUES_MAX:
        raise Refused(
            f"The field `queues` must list 1 to {keys.QUEUES_MAX} queues. Leave it out for a key for all queues.",
            pointer="/queues",
        )
    await view.caught_up()
    for index, queue_id in enumerate(queue_ids):
        if view.state.queue(organization_id, queue_id) is None:
            raise Refused("No queue of this organization has this ID. Check the ID.", pointer=f"/queues/{index}")


async def revoke_key(control: ControlLog, view: DirectoryView, context: Context, key_id: str) -> None:
    """Revoke an API key. Each process refuses the key as soon as the process has read the event. Raises NotFound if
    there is no such key.
    """
    if not await record(control, view, ev.KeyRevoked(**event_fields(context), key_id=key_id)):
        raise NotFound(
            "No API key of this organization has this ID. It was revoked, it expired and was removed, or the ID is "
            "wrong."
        )
