"""The changes resource: server-sent events that say what has changed in an organization.

For: a page that shows queues and listeners, so that it asks again only for what has changed. Not for: the values, which
the page asks for, or finding the changes (broker/audit/feed.py).

An event has an id. A client that sends it as `Last-Event-ID` gets the changes since then, if this process still has
them. Otherwise, the first event says that the changes are unknown (`all`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable
from contextlib import AsyncExitStack
from typing import Any, Final

import orjson

from api.calls import Call
from api.streams import Stream
from broker.audit.feed import Change, Changes, LogFeed
from broker.errors import BrokerError, Busy
from broker.ports import DirectoryView
from broker.tenant_slots import TenantSlots

MEDIA: Final = b"text/event-stream"
_LAST_EVENT_ID: Final = b"last-event-id"
_STREAMS_MAX: Final = 256  # In each process, at most this many clients can read /v1/changes at once.
_STREAMS_EACH_MAX: Final = 32  # In each process, at most this many clients of one organization can read /v1/changes.
# If nothing changes, send a comment after this many seconds: many proxies close a connection that is silent for 60 s.
_HEARTBEAT_S: Final = 15.0
_CHECK_S: Final = 1.0
# A stream of changes ends after this many seconds, so that load balancers can move clients. Browsers connect again.
_STREAM_S: Final = 15 * 60.0
_KINDS: Final = frozenset({"queue", "listener", "message", "delivery", "replay", "alert"})
_KINDS_OF_MEMBERS: Final = _KINDS | {"key", "organization", "invitation"}  # API keys may not watch these


class Watch:
    """Handler for /v1/changes."""

    def __init__(self, feed: LogFeed, view: DirectoryView) -> None:
        self._feed = feed
        self._slots = TenantSlots(
            _STREAMS_MAX,
            _STREAMS_EACH_MAX,
            tenant_of=view.state.tenant_of,
            refusal=lambda: Busy("Too many clients wait for changes at the moment. Try again later."),
        )

    async def watch(self, call: Call) -> Any:
        """Stream the changes to the client for up to 15 minutes. End earlier if the client disconnects, if this process
        stops, or if the client's key, session or role does not permit the request any more.

        If the API key is restricted to some queues, stream only the changes of these queues. Raises Busy if too many
        streams are open, and LogUnavailable if Kafka does not answer.
        """
        async with AsyncExitStack() as stack:
            stack.enter_context(self._slots.slot(call.organization_id))
            await stack.enter_async_context(self._feed.waiting(call.organization_id))
            held = stack.pop_all()
        last = call.sent.get(_LAST_EVENT_ID, b"").decode("latin-1")
        return Stream(MEDIA, self._events(call, last), held.aclose)

    async def _events(self, call: Call, last: str) -> AsyncGenerator[bytes, None]:
        now = asyncio.get_running_loop().time
        ends_at, quiet_at = now() + _STREAM_S, now() + _HEARTBEAT_S
        told = self._feed.since(call.organization_id, last)
        yield b"retry: 3000\n" + _event(told.position, _seen(call, told))
        while now() < ends_at and not self._feed.stopped:
            await self._feed.looked(_CHECK_S)
            try:
                call.check_still_in()
            except BrokerError:
                # End the stream. When the client connects again, it gets an error that says why it has no access.
                return
            told = self._feed.since(call.organization_id, told.position)
            changes = _seen(call, told)
            if changes is None or changes:
                yield _event(told.position, changes)
            elif now() >= quiet_at:
                yield b": nothing has changed\n\n"
            else:
                continue
            quiet_at = now() + _HEARTBEAT_S


def _seen(call: Call, told: Changes) -> list[Change] | None:
    """Return the changes that the client has the right to see. Return None if it is unknown what has changed. The
    client must then assume that everything has changed.
    """
    if told.changes is None:
        return None
    key = call.api_key
    kinds = _KINDS_OF_MEMBERS if key is None else _KINDS
    seen: Iterable[Change] = (one for one in told.changes if one.kind in kinds)
    if key is not None and key.queue_ids is not None:
        seen = (one for one in seen if one.queue_id is not None and key.is_for(one.queue_id))
    return sorted(seen, key=str)


def _event(position: str, changes: list[Change] | None) -> bytes:
    """Return one server-sent event, as the HTML standard says (9.2.6)."""
    fields = [{name: value for name, value in one._asdict().items() if value is not None} for one in changes or ()]
    data = orjson.dumps({"all": changes is None, "changes": fields})
    return b"id: %b\nevent: changed\ndata: %b\n\n" % (position.encode(), data)
