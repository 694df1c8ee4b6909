"""The listeners resource: its requests and answers. Not for: what a command does (broker/commands/listeners.py)."""

from __future__ import annotations

import asyncio
import re
from typing import Any, Final

import msgspec
from msgspec import UNSET

from api.calls import Call
from api.etags import Item
from api.health import backlog_fields, health_fields, listener_health
from api.pages import flag_parameter, optional_rfc3339, page, rfc3339, rfc3339_ms
from api.past import Views
from api.queues import threshold_fields, thresholds_of
from api.shapes import AlertsBody, ListenerBody, ListenerSettingsBody, NewListenerBody
from broker.commands.context import find_listener, find_queue
from broker.commands.listeners import HIDDEN, ListenerCommands, ListenerInput
from broker.core.catalogue import shown_url
from broker.core.entities import Listener
from broker.core.events import BatchSetting
from broker.errors import Refused
from broker.ports import DirectoryView, ListenerStatus

_STANDARD: Final = "standard"  # Without another setting, requests to a listener have this format.
_HEADERS_MAX: Final = 32
_HEADER_VALUE_CHARS_MAX: Final = 1024
# This regular expression takes linear time on any input: it is one set of characters, repeated at most 100 times.
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,100}")  # RFC 9110, 5.6.2
# This regular expression takes linear time on any input: it is matched once, from the start, with one repetition.
_HEADER_VALUE = re.compile(r"[\x21-\x7e](?:[\x20-\x7e\t]*[\x21-\x7e])?|")  # RFC 9110, 5.5, without obs-text
# The settings of a listener can't set these headers: they belong to Everput or to the HTTP connection.
_HEADERS_OURS: Final = frozenset(
    [
        *("connection", "content-encoding", "content-length", "content-type", "expect", "host", "keep-alive"),
        *("te", "trailer", "transfer-encoding", "upgrade", "user-agent"),
    ]
)
_HEADER_PREFIXES_OURS: Final = ("webhook-", "everput-", "proxy-")


class Listeners:
    """Handlers for the listeners of a queue."""

    def __init__(self, commands: ListenerCommands, view: DirectoryView, status: ListenerStatus, views: Views) -> None:
        self._commands = commands
        self._view = view
        self._status = status
        self._views = views

    async def create(self, call: Call) -> Any:
        """Create a listener. The answer holds its signing secret. Later, only the listener's path `/secret` shows the
        secret.
        """
        body = await call.json(NewListenerBody)
        listener_input = ListenerInput(
            name=body.name,
            notify_url=body.notify_url,
            liveness_url=body.liveness_url,
            settings=_settings(body),
            secret=body.secret,
            begin_at_ms=_begin_at_ms(body.begin),
        )
        listener, secret = await self._commands.create_listener(call.context(), call.path("queue_id"), listener_input)
        return _answer(call, listener, {"secret": secret})

    async def list(self, call: Call) -> Any:
        """List the listeners of a queue with their health. With `backlog=true`, also say how many messages wait for
        each listener. With `at`, list the listeners as they were at that time, without health and backlog.
        """
        query = call.query()
        queue = await find_queue(await self._views.of(call), call.organization_id, call.path("queue_id"))
        shown, page_token = page(queue.listeners.values(), query)
        links = call.links(f"/v1/queues/{queue.id}/listeners", query, page_token)
        answer = [listener_fields(listener) for listener in shown]
        if "at" not in query:
            with_backlog = flag_parameter(query, "backlog")
            reads = [health_fields(self._view, self._status, shown)]
            if with_backlog:
                reads.append(backlog_fields(self._status, shown))
            for read in await asyncio.gather(*reads):
                answer = [fields | now for fields, now in zip(answer, read, strict=True)]
        return {"listeners": answer, "_links": links}

    async def get(self, call: Call) -> Any:
        """Return a listener with its present state, health, lag and last error. With the parameter `at`, return the
        listener as it was at that time, without state, health, lag and last error.
        """
        view = await self._views.of(call)
        listener = await self._find(call, view)
        if view is not self._view:
            return _answer(call, listener, {})
        condition = await self._status.condition(listener)
        now = {
            "state": condition.state,
            "lag": condition.lag,
            "oldest_pending_at": optional_rfc3339(condition.oldest_pending_at_ms),
            **listener_health(self._view, listener, condition.facts),
            "last_error": condition.last_error,
        }
        return _answer(call, listener, now)

    async def update(self, call: Call) -> Any:
        body = await call.json(ListenerBody)
        listener_input = ListenerInput(
            name=body.name,
            notify_url=body.notify_url,
            liveness_url=body.liveness_url,
            settings=_settings(body, hidden=True),
        )
        ids = call.path("queue_id"), call.path("listener_id")
        return _answer(
            call,
            await self._commands.update_listener(call.context(), *ids, listener_input, if_match=call.if_match()),
            {},
        )

    async def delete(self, call: Call) -> Any:
        """Delete the listener. The answer shows the listener as it was before."""
        listener = await self._find(call)
        await self._commands.delete_listener(call.context(), listener.queue_id, listener.id, if_match=call.if_match())
        return _answer(call, listener, {}).fields

    async def pause(self, call: Call) -> Any:
        ids = call.path("queue_id"), call.path("listener_id")
        return _answer(call, await self._commands.pause_listener(call.context(), *ids, reason="asked for"), {})

    async def resume(self, call: Call) -> Any:
        ids = call.path("queue_id"), call.path("listener_id")
        return _answer(call, await self._commands.resume_listener(call.context(), *ids), {})

    async def _find(self, call: Call, view: DirectoryView | None = None) -> Listener:
        return await find_listener(
            view or self._view, call.organization_id, call.path("queue_id"), call.path("listener_id")
        )


def listener_fields(listener: Listener) -> dict[str, Any]:
    """Return a listener as JSON, with `…` for the values of its headers and without its signing secret. `paused` is
    null, or the reason why the listener is paused.
    """
    settings = msgspec.structs.asdict(listener.settings)
    alerts = threshold_fields(settings.pop("alerts"))
    settings["batch"] = None if listener.batch is None else msgspec.structs.asdict(listener.batch)
    if settings["format"] is UNSET:
        settings["format"] = _STANDARD
    settings["headers"] = dict.fromkeys([*settings["headers"], *settings.pop("sealed_headers")], HIDDEN)
    return {
        "id": listener.id,
        "name": listener.name,
        "notify_url": shown_url(listener.notify_url),
        "liveness_url": shown_url(listener.liveness_url),
        **settings,
        **({"alerts": alerts} if alerts else {}),
        "paused": listener.paused,
        "created_at": rfc3339(listener.created_at_ms),
    }


def _answer(call: Call, listener: Listener, more: dict[str, Any]) -> Item:
    href = call.href(f"/v1/queues/{listener.queue_id}/listeners/{listener.id}")
    fields = {"listener": {**listener_fields(listener), **more}, "_links": {"self": {"href": href}}}
    return Item(fields, listener.version)


def _settings(body: ListenerSettingsBody, *, hidden: bool = False) -> dict[str, Any]:
    """Return the delivery settings in a request's body. Raises Refused if the listener may not have these headers.

    With `hidden`, a header's value may be the placeholder `…`. The header then keeps its stored value.
    """
    fields = {name: getattr(body, name) for name in ListenerSettingsBody.__struct_fields__}
    said = {name: value for name, value in fields.items() if value is not UNSET}
    if isinstance(body.alerts, AlertsBody):
        said["alerts"] = thresholds_of(body.alerts)
    if said.get("format") == _STANDARD:
        said["format"] = UNSET
    if "batch" in said:
        said["batch"] = UNSET if body.batch in (None, UNSET) else BatchSetting(**msgspec.structs.asdict(body.batch))
    _check_headers(said.get("headers", {}), hidden=hidden)
    return said


def _check_headers(headers: dict[str, str], *, hidden: bool) -> None:
    if len(headers) > _HEADERS_MAX:
        raise Refused(f"A listener may have at most {_HEADERS_MAX} headers. Leave some out.", pointer="/headers")
    seen: set[str] = set()
    for name, value in headers.items():
        pointer = "/headers/" + name.replace("~", "~0").replace("/", "~1")
        if name.lower() in seen:
            raise Refused(
                "Two headers have the same name, apart from upper and lower case. Remove one of them.", pointer=pointer
            )
        seen.add(name.lower())
        if not _HEADER_NAME.fullmatch(name):
            raise Refused(
                "This is not a valid name of an HTTP header. Use 1 to 100 letters, digits and hyphens.", pointer=pointer
            )
        if name.lower() in _HEADERS_OURS or name.lower().startswith(_HEADER_PREFIXES_OURS):
            raise Refused(
                "This header is reserved for Everput or for the HTTP connection. Choose another name.", pointer=pointer
            )
        if hidden and value == HIDDEN:
            continue
        if len(value) > _HEADER_VALUE_CHARS_MAX or not _HEADER_VALUE.fullmatch(value):
            raise Refused(
                f"The value of this header is not valid. Use at most {_HEADER_VALUE_CHARS_MAX} printable ASCII "
                "characters, with no space at the beginning or end.",
                pointer=pointer,
            )


def _begin_at_ms(begin: str) -> int | None:
    """Convert the field `from` of a new listener to a time in milliseconds since the epoch. `beginning` becomes 0, and
    `now` becomes None. Raises Refused if the field is neither of these words nor a time.
    """
    if begin == "now":
        return None
    if begin == "beginning":
        return 0
    try:
        return rfc3339_ms(begin)
    except ValueError:
        detail = "The field `from` must be now, beginning, or a time with a time zone, such as 2026-01-31T12:00:00Z."
        raise Refused(detail, pointer="/from") from None
