"""Commands: what a client asks for, checked against the projection, appended, and answered when it is folded.

For: changes of queues and listeners, of organizations and keys. Each waits until this process has folded its own event
and then looks whether the fold took it: of two writers who want one name the first in the log has it, and the other is
told here. Not for: accounts (broker/commands/accounts.py), messages (broker/commands/puts.py), what an event changes
(broker/core/directory.py), who may ask (api/auth.py).
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import uuid4

import msgspec
from msgspec import UNSET, UnsetType

from broker.core import events as ev
from broker.core import keys, signing
from broker.core.directory import ApiKey, Listener, Organization, Queue
from broker.core.events import ControlEvent, ListenerSettings
from broker.core.names import refuse_name, shortened
from broker.core.origins import same_origin
from broker.errors import (
    Changed,
    ConfigurationError,
    InDoubt,
    NameTaken,
    NotFound,
    QuotaReached,
    Refused,
    Unavailable,
    ViewBehind,
)
from broker.outbound.addresses import TUNNEL, refuse_url
from broker.ports import ControlLog, DirectoryView, Log
from broker.sealing import Sealer
from broker.settings import Network

SCOPES: Final = tuple(keys.SCOPES)
SCOPES_DEFAULT: Final = ("queues", "messages")
KEYS_MAX: Final = 1_000  # of one organization
# The limit is for one listener in the clear. Each of its events holds all of its headers, encrypted.
HEADERS_BYTES_MAX: Final = 8 << 10
_SIGNING_BYTES: Final = 32
_FOLD_S: Final = 2.0
_UPDATES_TRIED: Final = 10  # of a listener, while others change it
_CHANGED: Final = "The resource has changed since. Read it again, and repeat the change with its new ETag."
Versions = Collection[int]  # The versions that a change may be made to.
HIDDEN: Final = "…"  # what is shown of a header's value
# linear: fixed lengths
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Quotas:
    """The limits of one organization. They are checked before the event is made, so concurrent requests may exceed them
    a little.
    """

    queues_max: int = 10_000
    listeners_max: int = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """The requester of a command.

    actor: `key:<id>`, `account:<id>`, `worker` or `shell`.
    at_ms: the time of the request, by this process's clock.
    """

    organization_id: str
    actor: str
    request_id: str
    at_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenerInput:
    """The values of a listener that a request gives. None: not given.

    begin_at_ms: 0 is the beginning of the log, None is now.
    settings: the given ones, by the names of ListenerSettings, with headers in the clear. A header with the value
        HIDDEN keeps its value.
    """

    name: str | None = None
    notify_url: str | None = None
    liveness_url: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    secret: str | None = field(default=None, repr=False)
    begin_at_ms: int | None = None


def now_ms() -> int:
    """Return milliseconds since the UTC epoch, by this machine's clock."""
    return time.time_ns() // 1_000_000


async def create_organization(
    control: ControlLog, view: DirectoryView, *, name: str, actor: str = "shell", request_id: str = ""
) -> Organization:
    """Create an organization without members (Refused: the name)."""
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
    """Create an API key. Return it with its secret, which is shown only here (Refused: name or scope; NotFound:
    organization).

    queue_ids: the queues that the key is for; None: all.
    expires_at_ms: None: never.
    """
    check_name(name)
    for index, scope in enumerate(scopes):
        if scope not in SCOPES:
            raise Refused(
                f"{shortened(scope)!r} is no scope; use some of {', '.join(SCOPES)}", pointer=f"/scopes/{index}"
            )
        if queue_ids is not None and scope not in keys.SCOPES_OF_QUEUES:
            raise Refused(
                f"A key that is restricted to some queues can't have the scope {scope!r}.", pointer=f"/scopes/{index}"
            )
    if queue_ids is not None:
        await _check_queues(view, organization_id, queue_ids)
    if expires_at_ms is not None and expires_at_ms <= now_ms():
        raise Refused("This time is in the past.", pointer="/expires_at")
    if sum(1 for _ in view.state.keys_of(organization_id)) >= KEYS_MAX:
        raise QuotaReached(f"An organization may have at most {KEYS_MAX} keys. Revoke one first.")
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
    if api_key is None:  # The organization does not exist, or has revoked the key already.
        raise NotFound("You can reach no organization with this ID.")
    return api_key, secret


async def _check_queues(view: DirectoryView, organization_id: str, queue_ids: Sequence[str]) -> None:
    if not 1 <= len(queue_ids) <= keys.QUEUES_MAX:
        raise Refused(f"List 1 to {keys.QUEUES_MAX} queues, or leave the field out for all queues.", pointer="/queues")
    await view.caught_up()
    for index, queue_id in enumerate(queue_ids):
        if view.state.queue(organization_id, queue_id) is None:
            raise Refused("No queue of this organization has this ID.", pointer=f"/queues/{index}")


async def revoke_key(control: ControlLog, view: DirectoryView, context: Context, key_id: str) -> None:
    """Revoke the key in every process as soon as it has folded the event (NotFound)."""
    if not await record(control, view, ev.KeyRevoked(**event_fields(context), key_id=key_id)):
        raise NotFound("No API key of this organization has this ID.")


async def find_queue(view: DirectoryView, organization_id: str, queue_id: str) -> Queue:
    """Find the queue (NotFound). Before a miss is reported, catch up with the log: another process may have just
    created it.
    """
    queue = view.state.queue(organization_id, queue_id)
    if queue is None and _UUID.fullmatch(queue_id):
        await view.caught_up()
        queue = view.state.queue(organization_id, queue_id)
    if queue is None:
        raise NotFound("No queue of this organization has this ID.")
    return queue


async def find_listener(view: DirectoryView, organization_id: str, queue_id: str, listener_id: str) -> Listener:
    """Find the queue's listener (NotFound). A miss is checked, as in find_queue()."""
    listener = view.state.listener(organization_id, listener_id)
    if listener is None and _UUID.fullmatch(listener_id):
        await view.caught_up()
        listener = view.state.listener(organization_id, listener_id)
    if listener is None or listener.queue_id != queue_id:
        raise NotFound("No listener of this queue has this ID.")
    return listener


class Commands:
    """The commands on queues and listeners. allow_networks: listeners' addresses that are allowed although not public.

    A command that depends on an item's values catches up with the log first, because another process may have changed
    them.
    """

    def __init__(
        self,
        log: Log,
        view: DirectoryView,
        sealer: Sealer,
        *,
        allow_networks: Sequence[Network],
        quotas: Quotas | None = None,
    ) -> None:
        self._log = log
        self._view = view
        self._sealer = sealer
        self._allow_networks = allow_networks
        self._quotas = quotas or Quotas()

    async def create_queue(self, context: Context, *, name: str) -> Queue:
        """Create a queue (Refused, NameTaken)."""
        check_name(name)
        await self._check_queue_name_free(context.organization_id, name, None)
        if self._view.state.queue_count(context.organization_id) >= self._quotas.queues_max:
            raise QuotaReached(f"An organization may have at most {self._quotas.queues_max} queues. Delete one first.")
        event = ev.QueueCreated(**event_fields(context), queue_id=str(uuid4()), name=name)
        if not await self._record(event):
            raise NameTaken(f"A queue named {name!r} exists already. Choose another name.", pointer="/name")
        return self._queue_now(context, event.queue_id)

    async def rename_queue(
        self, context: Context, queue_id: str, *, name: str, if_match: Versions | None = None
    ) -> Queue:
        """Rename the queue (Refused, NameTaken, NotFound, Changed)."""
        check_name(name)
        await self._view.caught_up()
        queue = await find_queue(self._view, context.organization_id, queue_id)
        if_version = _expected(queue, if_match)
        if queue.name == name:
            return queue
        await self._check_queue_name_free(context.organization_id, name, queue_id)
        lost = not await self._record(
            ev.QueueRenamed(**event_fields(context), queue_id=queue_id, name=name, if_version=if_version)
        )
        queue = self._queue_now(context, queue_id)
        if lost:
            _check_version(queue, if_version)
            raise NameTaken(f"A queue named {name!r} exists already. Choose another name.", pointer="/name")
        return queue

    async def delete_queue(self, context: Context, queue_id: str, *, if_match: Versions | None = None) -> None:
        """End the queue and its listeners (NotFound, Changed)."""
        if if_match is not None:
            await self._view.caught_up()
        if_version = _expected(await find_queue(self._view, context.organization_id, queue_id), if_match)
        if not await self._record(ev.QueueDeleted(**event_fields(context), queue_id=queue_id, if_version=if_version)):
            _check_version(self._queue_now(context, queue_id), if_version)

    async def create_listener(
        self, context: Context, queue_id: str, asked: ListenerInput, *, tunnel: bool = False
    ) -> tuple[Listener, str]:
        """Create a listener. Return it with its signing secret (Refused, NameTaken, NotFound).

        tunnel: the URLs are this program's own (api/tunnel.py), not a client's.
        """
        name, notify_url, liveness_url = asked.name or "", asked.notify_url or "", asked.liveness_url or ""
        check_name(name)
        if not tunnel:
            self._check_url("/notify_url", notify_url)
            self._check_url("/liveness_url", liveness_url)
        secret = signing_secret(asked.secret)
        queue = await find_queue(self._view, context.organization_id, queue_id)
        await self._check_listener_name_free(queue, name, None)
        if self._view.state.listener_count(context.organization_id) >= self._quotas.listeners_max:
            raise QuotaReached(
                f"An organization may have at most {self._quotas.listeners_max} listeners. Delete one first."
            )
        messages = self._log.messages
        begin_at_ms = asked.begin_at_ms
        offsets = await (messages.end_offsets() if begin_at_ms is None else messages.offsets_at(begin_at_ms))
        event = ev.ListenerCreated(
            **event_fields(context),
            listener_id=str(uuid4()),
            queue_id=queue_id,
            name=name,
            notify_url=notify_url,
            liveness_url=liveness_url,
            sealed_secret=self._sealer.seal(secret),
            start_offsets=offsets,
            settings=self._sealed(ListenerSettings(), asked.settings),
        )
        if not await self._record(event):
            self._queue_now(context, queue_id)
            raise NameTaken(f"This queue already has a listener named {name!r}. Choose another name.", pointer="/name")
        return self._listener_now(context, event.listener_id), secret

    async def update_listener(
        self,
        context: Context,
        queue_id: str,
        listener_id: str,
        asked: ListenerInput,
        *,
        if_match: Versions | None = None,
        tunnel: bool = False,
    ) -> Listener:
        """Update the given values of the listener (Refused, NameTaken, NotFound, Changed).

        The event has all values, so it counts for one version only. If another change came first, and no version was
        asked for, it is made again from the new state (Unavailable when that repeats too often).
        tunnel: as for create_listener(); NameTaken when the listener has a URL of its own.
        """
        if asked.name is not None:
            check_name(asked.name)
        if asked.notify_url is not None and not tunnel:
            self._check_url("/notify_url", asked.notify_url)
        if asked.liveness_url is not None and not tunnel:
            self._check_url("/liveness_url", asked.liveness_url)
        for _ in range(_UPDATES_TRIED):
            await self._view.caught_up()
            listener = await find_listener(self._view, context.organization_id, queue_id, listener_id)
            _expected(listener, if_match)
            if tunnel and not listener.notify_url.startswith(f"{TUNNEL}:"):
                raise NameTaken(
                    f"This queue already has a listener named {listener.name!r} with a URL. Choose another name."
                )
            name = listener.name if asked.name is None else asked.name
            await self._check_listener_name_free(self._queue_now(context, queue_id), name, listener_id)
            _check_headers_named(listener, asked)
            event = ev.ListenerUpdated(
                **event_fields(context),
                listener_id=listener_id,
                name=name,
                notify_url=listener.notify_url if asked.notify_url is None else asked.notify_url,
                liveness_url=listener.liveness_url if asked.liveness_url is None else asked.liveness_url,
                settings=self._sealed(listener.settings, asked.settings),
                if_version=listener.version,
            )
            taken = await self._record(event)
            now = self._listener_now(context, listener_id)
            if taken:
                return now
            if now.version == listener.version:
                raise NameTaken(
                    f"This queue already has a listener named {name!r}. Choose another name.", pointer="/name"
                )
        raise Unavailable("Other requests keep changing this listener. Nothing was changed; try again.")

    async def delete_listener(
        self, context: Context, queue_id: str, listener_id: str, *, if_match: Versions | None = None
    ) -> None:
        """Delete the listener and cancel its deliveries (NotFound, Changed)."""
        if if_match is not None:
            await self._view.caught_up()
        listener = await find_listener(self._view, context.organization_id, queue_id, listener_id)
        if_version = _expected(listener, if_match)
        if not await self._record(
            ev.ListenerDeleted(**event_fields(context), listener_id=listener_id, if_version=if_version)
        ):
            _check_version(self._listener_now(context, listener_id), if_version)

    async def pause_listener(self, context: Context, queue_id: str, listener_id: str, *, reason: str) -> Listener:
        """Pause the listener. Record nothing if it is paused already (NotFound)."""
        await self._view.caught_up()
        listener = await find_listener(self._view, context.organization_id, queue_id, listener_id)
        if listener.paused is None:
            await self._record(ev.ListenerPaused(**event_fields(context), listener_id=listener_id, reason=reason))
        return self._listener_now(context, listener_id)

    async def resume_listener(self, context: Context, queue_id: str, listener_id: str) -> Listener:
        """Resume the listener. Record nothing if it is not paused (NotFound)."""
        await self._view.caught_up()
        listener = await find_listener(self._view, context.organization_id, queue_id, listener_id)
        if listener.paused is not None:
            await self._record(ev.ListenerResumed(**event_fields(context), listener_id=listener_id))
        return self._listener_now(context, listener_id)

    async def redrive_listener(
        self, context: Context, queue_id: str, listener_id: str, message_ids: Sequence[str]
    ) -> None:
        """Redrive the listener's retrying and parked deliveries, of these messages or all (NotFound)."""
        await find_listener(self._view, context.organization_id, queue_id, listener_id)
        event = ev.ListenerRedriven(
            **event_fields(context), listener_id=listener_id, message_ids=tuple(dict.fromkeys(message_ids))
        )
        if not await self._record(event):
            raise NotFound("No listener of this queue has this ID.")

    async def _record(self, event: ControlEvent) -> bool:
        return await record(self._log.control, self._view, event)

    async def _check_queue_name_free(self, organization_id: str, name: str, own_id: str | None) -> None:
        """Refuse a taken name early, but only if this process has caught up: another process may have freed the
        name.
        """
        for checked in (False, True):
            holder = self._view.state.queues_by_name.get((organization_id, name))
            if holder is None or holder.id == own_id:
                return
            if not checked:
                await self._view.caught_up()
        raise NameTaken(f"A queue named {name!r} exists already. Choose another name.", pointer="/name")

    async def _check_listener_name_free(self, queue: Queue, name: str, own_id: str | None) -> None:
        for checked in (False, True):
            holder = self._view.state.listeners_by_name.get((queue.id, name))
            if holder is None or holder.id == own_id:
                return
            if not checked:
                await self._view.caught_up()
        raise NameTaken(f"This queue already has a listener named {name!r}. Choose another name.", pointer="/name")

    def _sealed(self, before: ListenerSettings, said: Mapping[str, Any]) -> ListenerSettings:
        """Return the new settings with sealed headers (Refused: a hidden value for a header that does not exist)."""
        known = before.sealed_headers | {name: self._sealer.seal(value) for name, value in before.headers.items()}
        changed = dict(said)
        asked: Mapping[str, str] | None = changed.pop("headers", None)
        headers = known if asked is None else {}
        size = 0
        for name, value in (asked or {}).items():
            if value == HIDDEN and name not in known:
                raise Refused("This header has no saved value yet. Enter its value.", pointer=f"/headers/{name}")
            headers[name] = known[name] if value == HIDDEN else self._sealer.seal(value)
            size += len(name) + self._size(known[name] if value == HIDDEN else None, value)
        if size > HEADERS_BYTES_MAX:
            detail = f"All header names and values together may have {HEADERS_BYTES_MAX} bytes; these have {size}."
            raise Refused(detail, pointer="/headers")
        return msgspec.structs.replace(before, **changed, headers={}, sealed_headers=headers)

    def _size(self, sealed: str | None, value: str) -> int:
        """Return the length of a header's value. A sealed one that this process can't open counts 0."""
        if sealed is not None:
            try:
                value = self._sealer.open(sealed)
            except ConfigurationError:
                return 0
        return len(value)

    def _check_url(self, pointer: str, url: str) -> None:
        reason = refuse_url(url, self._allow_networks)
        if reason is not None:
            raise Refused(f"The URL {reason}.", pointer=pointer)

    def _queue_now(self, context: Context, queue_id: str) -> Queue:
        """Return the queue from memory, because it existed a moment ago."""
        queue = self._view.state.queue(context.organization_id, queue_id)
        if queue is None:
            raise NotFound("No queue of this organization has this ID.")
        return queue

    def _listener_now(self, context: Context, listener_id: str) -> Listener:
        listener = self._view.state.listener(context.organization_id, listener_id)
        if listener is None:
            raise NotFound("No listener of this queue has this ID.")
        return listener


async def record(control: ControlLog, view: DirectoryView, event: ControlEvent) -> bool:
    """Append an event, wait until this process has folded it, and return whether it counts (LogUnavailable,
    InDoubt).
    """
    offset = await control.append(event)
    try:
        await view.seen(offset, timeout_s=_FOLD_S)
    except ViewBehind as error:
        raise InDoubt(
            "The change is stored, but not applied yet. Read the resource again before you repeat the request."
        ) from error
    return not view.passed_over(offset)


def event_fields(context: Context) -> ev.Fields:
    """Return the fields of an event that say who asked."""
    return {
        "at_ms": context.at_ms,
        "organization_id": context.organization_id,
        "actor": context.actor,
        "request_id": context.request_id,
    }


def _expected(item: Queue | Listener, if_match: Versions | None) -> int | UnsetType:
    """Return the version that the event is for, because another process may change the item first (Changed)."""
    if if_match is None:
        return UNSET
    if item.version not in if_match:
        raise Changed(_CHANGED)
    return item.version


def _check_version(item: Queue | Listener, if_version: int | UnsetType) -> None:
    if if_version is not UNSET and item.version != if_version:
        raise Changed(_CHANGED)


def _check_headers_named(listener: Listener, asked: ListenerInput) -> None:
    """Raise Refused if header values given for one origin would be sent to another (docs/decisions/0042)."""
    settings = listener.settings
    if asked.notify_url is None or same_origin(asked.notify_url, listener.notify_url):
        return
    if not (settings.headers or settings.sealed_headers):
        return
    named: Mapping[str, str] | None = asked.settings.get("headers")
    if named is None:
        raise Refused(
            "this notify_url has another origin: give the values of `headers` again, or {} for none", pointer="/headers"
        )
    for name, value in named.items():
        if value == HIDDEN:
            raise Refused(
                "The notify_url has another scheme, host or port. Enter this header's value again.",
                pointer=f"/headers/{name}",
            )


def check_name(name: str) -> None:
    """Refused when it is none."""
    reason = refuse_name(name)
    if reason is not None:
        raise Refused(f"The name {reason}.", pointer="/name")


def signing_secret(asked: str | None) -> str:
    """Return the requested secret, or a new one (Refused)."""
    if asked is None:
        return signing.secret_text(os.urandom(_SIGNING_BYTES))
    try:
        signing.secret_bytes(asked)
    except ValueError as error:
        raise Refused(str(error), pointer="/secret") from None
    return asked
