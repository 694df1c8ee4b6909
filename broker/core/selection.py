"""Which events a reader of the log wants.

For: the filters, on a record's bytes first: an id stands in them as it is, so most records need no decoding.
Not for: where to look (broker/audit/reader.py), what of an event is shown (broker/core/catalogue.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import msgspec

from broker.core.catalogue import TOPIC_OF, TOPICS
from broker.core.events import CLASSES, DeliveriesSettled, Event, ListenerRedriven, decode, wire_name
from broker.errors import UnknownEvent


class Unreadable(Event, frozen=True, kw_only=True, tag="unreadable"):
    """Stands for an event of a type or version that only a newer program can read. written: its type.

    Is never stored. Without it a reader who goes on by its cursor would never hear that there is something.
    """

    written: str


class _Newer(msgspec.Struct):
    """What every event has, whatever wrote it."""

    type: str
    at_ms: int
    organization_id: str
    v: int
    actor: str = ""
    request_id: str = ""


_newer_fields = msgspec.json.Decoder(_Newer)
_REDRIVEN: Final = wire_name(ListenerRedriven)


@dataclass(frozen=True, slots=True, kw_only=True)
class MessagePlace:
    """A message: its id, and where it is in `messages`."""

    id: str
    partition: int
    offset: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """All of it must fit; None: whatever. organization_id: whose events, and nobody else's.

    queue_listener_ids: with queue_id, all listeners the queue ever had, and their replays, for events that name only
    those.
    """

    organization_id: str
    types: frozenset[str] | None = None
    queue_id: str | None = None
    queue_listener_ids: frozenset[str] = frozenset()
    listener_id: str | None = None
    actor: str | None = None
    message: MessagePlace | None = None

    def topics(self) -> tuple[str, ...]:
        """Those that may hold what is wanted."""
        types = CLASSES if self.types is None else self.types
        wanted = {TOPIC_OF[name] for name in types}
        if self.message is not None and _REDRIVEN not in types:  # nothing else in it names messages
            wanted.discard("control")
        return tuple(topic for topic in TOPICS if topic in wanted)

    def take(self, value: bytes | None) -> Event | None:
        """The event of a record, if it is wanted; Unreadable for what only a newer program can read."""
        if value is None or not self._may_be(value):
            return None
        try:
            event = decode(value)
        except UnknownEvent:
            newer = _newer(value)
            if newer is None:
                return None
            event = newer
        return self._story_of(event) if self._is(event) else None

    def _may_be(self, value: bytes) -> bool:
        if self.organization_id.encode() not in value:
            return False
        if self.listener_id is not None and self.listener_id.encode() not in value:
            return False
        if self.actor is not None and self.actor.encode() not in value:
            return False
        if self.queue_id is not None and self.queue_id.encode() not in value:
            return any(listener_id.encode() in value for listener_id in self.queue_listener_ids)
        message = self.message
        return message is None or message.id.encode() in value or b"[%d," % message.offset in value

    def _is(self, event: Event) -> bool:
        fields: Any = event
        if event.organization_id != self.organization_id:
            return False
        if self.types is not None and wire_name(type(event)) not in self.types:
            return False
        if self.actor is not None and event.actor != self.actor:
            return False
        listener_id = getattr(fields, "listener_id", None)
        if self.listener_id is not None and listener_id != self.listener_id:
            return False
        if self.queue_id is not None:
            queue_id = getattr(fields, "queue_id", None)
            about = listener_id or getattr(fields, "replay_id", None)
            return queue_id == self.queue_id or (queue_id is None and about in self.queue_listener_ids)
        return True

    def _story_of(self, event: Event) -> Event | None:
        """The event, if it tells of the message; of those that tell of many, what it tells of this one."""
        message = self.message
        if message is None:
            return event
        if isinstance(event, DeliveriesSettled):
            rows = tuple(row for row in event.rows if row[0] == message.offset)
            if event.partition != message.partition or not rows:
                return None
            return msgspec.structs.replace(event, rows=rows)
        if isinstance(event, ListenerRedriven):
            return event if message.id in event.message_ids else None
        return event if getattr(event, "message_id", None) == message.id else None


def _newer(value: bytes) -> Unreadable | None:
    """None for what is no event at all."""
    try:
        fields = _newer_fields.decode(value)
    except msgspec.MsgspecError:
        return None
    return Unreadable(
        at_ms=fields.at_ms,
        organization_id=fields.organization_id,
        actor=fields.actor,
        request_id=fields.request_id,
        v=fields.v,
        written=fields.type,
    )
