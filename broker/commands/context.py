"""The parts that all commands share: the author of a command, and recording an event.

For: the context of a request, finding the item that a command names, and waiting until this process has applied the
event. A writer learns only then whether its event counts: if two writers want the same name, the first one in the log
gets it. Not for: the commands (the modules beside this one), what an event changes (broker/core/directory.py).
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from msgspec import UNSET, UnsetType

from broker.clock import now_ms
from broker.core import codec
from broker.core.entities import Listener, Queue
from broker.core.events import ControlEvent
from broker.core.names import refuse_name
from broker.errors import (
    Changed,
    InDoubt,
    NotFound,
    Refused,
    ViewBehind,
)
from broker.ports import ControlLog, DirectoryView

_FOLD_S: Final = 2.0
_CHANGED: Final = "The resource has changed since. Read it again, and repeat the change with its new ETag."
Versions = Collection[int]  # versions that may be changed
# This regular expression takes constant time, because it has matched or failed after at most 36 characters.
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """The facts about a request that the events of its command store.

    `actor` is the author of the command: `key:<id>`, `account:<id>`, `worker` or `shell`. `at_ms` is the time of the
    request by this process's clock.
    """

    organization_id: str
    actor: str
    request_id: str
    at_ms: int


def shell_context(organization_id: str) -> Context:
    """Return the author and the time for the events of a command that the operator calls in a shell. The author is
    `shell`.
    """
    return Context(organization_id=organization_id, actor="shell", request_id="", at_ms=now_ms())


def account_actor(account_id: str, request_id: str) -> str:
    """Return the author of an event about accounts: the account itself, or `shell` (a command of the operator) if there
    is no HTTP request.
    """
    return f"account:{account_id}" if request_id else "shell"


def account_context(account_id: str, request_id: str) -> Context:
    """Return the context (author, time and request id) of an event that belongs to no organization."""
    return Context(
        organization_id="", actor=account_actor(account_id, request_id), request_id=request_id, at_ms=now_ms()
    )


def event_fields(context: Context) -> codec.Fields:
    """Return the event fields for the time, the organization, the author and the id of the request."""
    return {
        "at_ms": context.at_ms,
        "organization_id": context.organization_id,
        "actor": context.actor,
        "request_id": context.request_id,
    }


async def find_queue(view: DirectoryView, organization_id: str, queue_id: str) -> Queue:
    """Return the queue with this id. If the id is a UUID that this process does not know, first wait until all events
    in the topic `control` are applied, because another process may have just created the queue. Raises NotFound if
    there is no such queue.
    """
    queue = view.state.queue(organization_id, queue_id)
    if queue is None and _UUID.fullmatch(queue_id):
        await view.caught_up()
        queue = view.state.queue(organization_id, queue_id)
    if queue is None:
        raise NotFound("No queue of this organization has this ID. Check the ID.")
    return queue


async def find_listener(view: DirectoryView, organization_id: str, queue_id: str, listener_id: str) -> Listener:
    """Return the queue's listener with this id. If the id is a UUID that this process does not know, first wait until
    all events in the topic `control` are applied, because another process may have just created the listener. Raises
    NotFound if there is no such listener.
    """
    listener = view.state.listener(organization_id, listener_id)
    if listener is None and _UUID.fullmatch(listener_id):
        await view.caught_up()
        listener = view.state.listener(organization_id, listener_id)
    if listener is None or listener.queue_id != queue_id:
        raise NotFound("No listener of this queue has this ID. Check the ID.")
    return listener


def queue_now(view: DirectoryView, context: Context, queue_id: str) -> Queue:
    """Return the queue as this process knows it now. Raises NotFound if the queue was deleted."""
    queue = view.state.queue(context.organization_id, queue_id)
    if queue is None:
        raise NotFound("The queue was deleted while this request was running.")
    return queue


async def record(control: ControlLog, view: DirectoryView, event: ControlEvent) -> bool:
    """Append an event, wait until this process has applied it, and return whether the event changed anything.

    Raises InDoubt if it is unknown whether the event was stored or applied. Any other Unavailable error means that the
    event was not stored.
    """
    offset = await control.append(event)
    try:
        await view.seen(offset, timeout_s=_FOLD_S)
    except ViewBehind as error:
        raise InDoubt(
            "The change is stored, but this server has not applied it yet. Before you repeat the request, read the "
            "resource to see whether the change had an effect."
        ) from error
    return not view.passed_over(offset)


def expected_version(item: Queue | Listener, if_match: Versions | None) -> int | UnsetType:
    """Return the version that the queue or listener must still have when a change is applied. If another request
    changes the queue or listener first, the change has no effect. If `if_match` is None, return UNSET: the change is
    applied to any version.

    Raises Changed if the present version of the queue or listener is not in `if_match`.
    """
    if if_match is None:
        return UNSET
    if item.version not in if_match:
        raise Changed(_CHANGED)
    return item.version


def check_version(item: Queue | Listener, if_version: int | UnsetType) -> None:
    if if_version is not UNSET and item.version != if_version:
        raise Changed(_CHANGED)


def check_name(name: str) -> None:
    """Raise Refused if the text is no valid name."""
    reason = refuse_name(name)
    if reason is not None:
        raise Refused(f"This name can't be used. It {reason}.", pointer="/name")
