"""Commands on listeners.

For: creating, updating, pausing, resuming, redriving and deleting listeners. Not for: their secrets after the creation
(secrets.py), replays (replays.py), what an event changes (broker/core/directory.py), who may call a command
(api/auth.py).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import uuid4

import msgspec

from broker.commands.context import (
    Context,
    Versions,
    check_name,
    check_version,
    event_fields,
    expected_version,
    find_listener,
    find_queue,
    queue_now,
    record,
)
from broker.core import events as ev
from broker.core import signing
from broker.core.alerts import ALERTS_QUEUE
from broker.core.entities import Listener, Queue
from broker.core.events import ControlEvent, ListenerSettings
from broker.core.names import shortened
from broker.core.origins import same_origin
from broker.errors import (
    ConfigurationError,
    NameTaken,
    NotFound,
    QuotaReached,
    Refused,
    Unavailable,
)
from broker.outbound.addresses import MAILTO, TUNNEL, refuse_url
from broker.ports import DirectoryView, Log
from broker.sealing import Sealer
from broker.settings import Network

# The names and unencrypted values of a listener's headers may have at most this many bytes in total.
# The headers are limited because each update of a listener stores all of its headers in the log again.
HEADERS_BYTES_MAX: Final = 8 << 10
_SIGNING_BYTES: Final = 32
# If another request changes the listener during an update, the update is tried again, up to ten times in all.
_UPDATES_TRIED: Final = 10
HIDDEN: Final = "…"  # shown instead of a header's value
LISTENERS_MAX: Final = 10_000  # listeners of one organization


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenerInput:
    """The values that a request gives for a listener. A field is None if the request does not give the value.
    `settings` holds the given settings by name. A header with the value HIDDEN keeps its stored value. A new listener
    gets the messages that were put at the time `begin_at_ms` or later. With 0, the listener gets all messages in the
    log; with None, only messages that are put after its creation.
    """

    name: str | None = None
    notify_url: str | None = None
    liveness_url: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    secret: str | None = field(default=None, repr=False)
    begin_at_ms: int | None = None


class ListenerCommands:
    """The commands on listeners. They write their events to the topic `control`.

    The IP address of a listener must be public, or in one of the networks in `allow_networks`. An organization may have
    at most `listeners_max` listeners. `mail_for` gets an organization's id, and returns whether the organization may
    get its alerts by e-mail.
    """

    def __init__(
        self,
        log: Log,
        view: DirectoryView,
        sealer: Sealer,
        *,
        allow_networks: Sequence[Network],
        listeners_max: int = LISTENERS_MAX,
        mail_for: Callable[[str], bool] = lambda _organization_id: False,
    ) -> None:
        self._log = log
        self._mail_for = mail_for
        self._view = view
        self._sealer = sealer
        self._allow_networks = allow_networks
        self._listeners_max = listeners_max

    async def create_listener(
        self, context: Context, queue_id: str, asked: ListenerInput, *, tunnel: bool = False
    ) -> tuple[Listener, str]:
        """Create a listener, and return it with its signing secret.

        Raises Refused if a value is not valid, and NameTaken if the queue has a listener with this name. Raises
        NotFound if the queue does not exist, and QuotaReached if the organization has too many listeners.

        If `tunnel` is true, the URLs are not checked, because this program itself has made them.
        """
        name, notify_url, liveness_url = asked.name or "", asked.notify_url or "", asked.liveness_url or ""
        check_name(name)
        if not tunnel:
            self._check_url("/notify_url", notify_url)
            self._check_url("/liveness_url", liveness_url)
        secret = signing_secret(asked.secret)
        queue = await find_queue(self._view, context.organization_id, queue_id)
        self._check_mail(queue, asked)
        await self._check_listener_name_free(queue, name, None)
        if self._view.state.listener_count(context.organization_id) >= self._listeners_max:
            raise QuotaReached(f"An organization may have at most {self._listeners_max} listeners. Delete one first.")
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
            settings=_checked(self._sealed(ListenerSettings(), asked.settings), notify_url),
        )
        if not await self._record(event):
            queue_now(self._view, context, queue_id)
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
        """Change the given values of a listener, and return it.

        Raises Refused if a value is not valid, and NameTaken if another listener of the queue has the name. Raises
        NotFound if the listener does not exist, and Changed if it does not have a version in `if_match`.

        If another request changes the listener at the same time, the update is tried again. After ten tries,
        Unavailable is raised. With `if_match`, Changed is raised instead of a second try.

        If `tunnel` is true, the URLs are not checked, because this program itself has made them. NameTaken is raised if
        the listener's stored notify_url is not the URL of a tunnel.
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
            expected_version(listener, if_match)
            if tunnel and not listener.notify_url.startswith(f"{TUNNEL}:"):
                raise NameTaken(
                    f"The listener {listener.name!r} of this queue sends its messages to a URL, so `everput listen` "
                    "can't use this listener. Choose another name with --name."
                )
            name = listener.name if asked.name is None else asked.name
            queue = queue_now(self._view, context, queue_id)
            self._check_mail(queue, asked)
            await self._check_listener_name_free(queue, name, listener_id)
            _check_headers_named(listener, asked)
            notify_url = listener.notify_url if asked.notify_url is None else asked.notify_url
            event = ev.ListenerUpdated(
                **event_fields(context),
                listener_id=listener_id,
                name=name,
                notify_url=notify_url,
                liveness_url=listener.liveness_url if asked.liveness_url is None else asked.liveness_url,
                settings=_checked(self._sealed(listener.settings, asked.settings), notify_url),
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
        raise Unavailable("Other requests keep changing this listener. This request changed nothing; try again.")

    async def delete_listener(
        self, context: Context, queue_id: str, listener_id: str, *, if_match: Versions | None = None
    ) -> None:
        """Delete a listener, and cancel its deliveries.

        Raises NotFound if there is no such listener, or Changed if it does not have a version in `if_match`.
        """
        if if_match is not None:
            await self._view.caught_up()
        listener = await find_listener(self._view, context.organization_id, queue_id, listener_id)
        if_version = expected_version(listener, if_match)
        if not await self._record(
            ev.ListenerDeleted(**event_fields(context), listener_id=listener_id, if_version=if_version)
        ):
            check_version(self._listener_now(context, listener_id), if_version)

    async def pause_listener(self, context: Context, queue_id: str, listener_id: str, *, reason: str) -> Listener:
        """Pause a listener, and return it. Record nothing if it is paused already. Raises NotFound if there is no
        such listener.
        """
        await self._view.caught_up()
        listener = await find_listener(self._view, context.organization_id, queue_id, listener_id)
        if listener.paused is None:
            await self._record(ev.ListenerPaused(**event_fields(context), listener_id=listener_id, reason=reason))
        return self._listener_now(context, listener_id)

    async def resume_listener(self, context: Context, queue_id: str, listener_id: str) -> Listener:
        """Resume a listener, and return it. Record nothing if it is not paused. Raises NotFound if there is no such
        listener.
        """
        await self._view.caught_up()
        listener = await find_listener(self._view, context.organization_id, queue_id, listener_id)
        if listener.paused is not None:
            await self._record(ev.ListenerResumed(**event_fields(context), listener_id=listener_id))
        return self._listener_now(context, listener_id)

    async def redrive_listener(
        self, context: Context, queue_id: str, listener_id: str, message_ids: Sequence[str]
    ) -> None:
        """Record a redrive: the listener's retrying and parked deliveries are to be attempted now. If `message_ids` is
        not empty, only the deliveries of these messages are redriven. Raises NotFound if there is no such listener.
        """
        await find_listener(self._view, context.organization_id, queue_id, listener_id)
        event = ev.ListenerRedriven(
            **event_fields(context), listener_id=listener_id, message_ids=tuple(dict.fromkeys(message_ids))
        )
        if not await self._record(event):
            raise NotFound("The listener was deleted while this request was running.")

    async def cancel_redrives(self, context: Context, queue_id: str, listener_id: str) -> None:
        """Cancel the listener's redrives. A delivery that was redriven, but not attempted since, is parked or retrying
        again, as before the redrive. Record nothing if there was no redrive since the previous cancellation. Raises
        NotFound if there is no such listener.
        """
        await self._view.caught_up()
        listener = await find_listener(self._view, context.organization_id, queue_id, listener_id)
        if listener.redrives.cancelled < listener.redrives.count:
            await self._record(ev.ListenerRedrivesCancelled(**event_fields(context), listener_id=listener_id))

    async def _check_listener_name_free(self, queue: Queue, name: str, own_id: str | None) -> None:
        for checked in (False, True):
            holder = self._view.state.listeners_by_name.get((queue.id, name))
            if holder is None or holder.id == own_id:
                return
            if not checked:
                await self._view.caught_up()
        raise NameTaken(f"This queue already has a listener named {name!r}. Choose another name.", pointer="/name")

    def _sealed(self, before: ListenerSettings, said: Mapping[str, Any]) -> ListenerSettings:
        """Return the listener's new settings with encrypted headers.

        Raises Refused if a header has the value HIDDEN but no stored value, or if the headers are too long.
        """
        known = before.sealed_headers | {name: self._sealer.seal(value) for name, value in before.headers.items()}
        changed = dict(said)
        asked: Mapping[str, str] | None = changed.pop("headers", None)
        headers = known if asked is None else {}
        size = 0
        for name, value in (asked or {}).items():
            if value == HIDDEN and name not in known:
                raise Refused(
                    f"The value `…` means that the header keeps its stored value. The header {shortened(name)} has no "
                    "stored value. Enter its value.",
                    pointer=f"/headers/{name}",
                )
            headers[name] = known[name] if value == HIDDEN else self._sealer.seal(value)
            size += len(name) + self._size(known[name] if value == HIDDEN else None, value)
        if size > HEADERS_BYTES_MAX:
            detail = f"Header names and values together may have at most {HEADERS_BYTES_MAX} bytes; these have {size}."
            raise Refused(detail, pointer="/headers")
        return msgspec.structs.replace(before, **changed, headers={}, sealed_headers=headers)

    def _size(self, sealed: str | None, value: str) -> int:
        """Return the length of a header's value, in characters. Return 0 if the value is encrypted with a sealing key
        that this process does not have.
        """
        if sealed is not None:
            try:
                value = self._sealer.open(sealed)
            except ConfigurationError:
                return 0
        return len(value)

    def _check_mail(self, queue: Queue, asked: ListenerInput) -> None:
        """Raise Refused if the request gives a `mailto:` URL that this listener must not have.

        Without this check, anybody could send e-mail to anybody.
        """
        for pointer, url in (("/notify_url", asked.notify_url), ("/liveness_url", asked.liveness_url)):
            if url is None or not url.startswith(MAILTO):
                continue
            if queue.name != ALERTS_QUEUE:
                raise Refused(
                    f"Only listeners of the queue {ALERTS_QUEUE} can have a mailto: URL. Use an http or https URL.",
                    pointer=pointer,
                )
            if not self._mail_for(queue.organization_id):
                raise Refused(
                    "Listeners of this organization can't have a mailto: URL. The operator must set --smtp-url and "
                    "--mail-from. The operator must also have created the organization, or set --no-registration. "
                    "Ask the operator, or use an http or https URL.",
                    pointer=pointer,
                )

    def _check_url(self, pointer: str, url: str) -> None:
        reason = refuse_url(url, self._allow_networks, mail=True)  # _check_mail() decides where it is allowed
        if reason is not None:
            raise Refused(reason, pointer=pointer)

    def _listener_now(self, context: Context, listener_id: str) -> Listener:
        listener = self._view.state.listener(context.organization_id, listener_id)
        if listener is None:
            raise NotFound("The listener was deleted while this request was running.")
        return listener

    async def _record(self, event: ControlEvent) -> bool:
        return await record(self._log.control, self._view, event)


def _checked(settings: ListenerSettings, notify_url: str) -> ListenerSettings:
    """Return the settings of a listener unchanged. Raises Refused if the settings turn batches on, but their `format`
    or a mailto: URL permits only one message in each request.
    """
    if settings.batch is not msgspec.UNSET:
        if settings.format is not msgspec.UNSET:
            raise Refused(
                f"In the format {settings.format}, each request carries one message. "
                "Set `batch` to null, or `format` to `standard`.",
                pointer="/batch",
            )
        if notify_url.startswith(MAILTO):
            raise Refused("A mailto: URL gets one message in each e-mail. Set `batch` to null.", pointer="/batch")
    return settings


def _check_headers_named(listener: Listener, asked: ListenerInput) -> None:
    """Raise Refused if stored header values, which may be secrets, would be sent to another origin. If the origin of
    the URL changes, the request must give all header values again.
    """
    settings = listener.settings
    if asked.notify_url is None or same_origin(asked.notify_url, listener.notify_url):
        return
    if not (settings.headers or settings.sealed_headers):
        return
    named: Mapping[str, str] | None = asked.settings.get("headers")
    if named is None:
        raise Refused(
            "The new notify_url has another scheme, host or port than the stored one. Everput does not send the stored "
            "header values to the new notify_url. Give all values of `headers` again, or {} for no headers.",
            pointer="/headers",
        )
    for name, value in named.items():
        if value == HIDDEN:
            raise Refused(
                "The new notify_url has another scheme, host or port than the stored one. Everput does not send the "
                f"stored value of the header {shortened(name)} to the new notify_url. Enter the value again.",
                pointer=f"/headers/{name}",
            )


def signing_secret(asked: str | None) -> str:
    """Return the requested signing secret, or a new random one. Raises Refused if the requested secret is not valid."""
    if asked is None:
        return signing.secret_text(os.urandom(_SIGNING_BYTES))
    try:
        signing.secret_bytes(asked)
    except ValueError as error:
        raise Refused(str(error), pointer="/secret") from None
    return asked
