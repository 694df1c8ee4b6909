"""The filter of the events that a client of the log wants.

For: searching a record's bytes for ids first, so that most records need no decoding. Not for: where to read
(broker/audit/reader.py), which fields are shown (catalogue.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from broker.core.catalogue import TOPIC_OF, TOPICS
from broker.core.codec import CLASSES, decode, decode_message, wire_name
from broker.core.events import (
    AnswersKept,
    DeliveriesSettled,
    Event,
    ListenerRedriven,
    ListenerRedrivesCancelled,
    MessagePut,
    ReplayStarted,
)
from broker.core.story import replays
from broker.errors import UnknownEvent


class Unreadable(Event, frozen=True, kw_only=True, tag="unreadable"):
    """A placeholder for an event in the log that this version of Everput can't decode, because a newer one wrote it.

    `written` is the event's type in the log. Answers to clients show the placeholder in place of the event, so that
    clients know that the event exists. The placeholder itself is never stored.
    """

    written: str


class _Newer(msgspec.Struct):
    """The fields that every event of the log has, whichever version wrote it."""

    type: str
    at_ms: int
    organization_id: str
    v: int
    actor: str = ""
    request_id: str = ""


_newer_fields = msgspec.json.Decoder(_Newer)
# Events of these types can concern a message without its id: redrives, cancelled redrives and replays.
# So a search for the events of one message does not skip these events, even if they lack the message's id.
_OF_MANY: Final = frozenset(
    {wire_name(ListenerRedriven), wire_name(ListenerRedrivesCancelled), wire_name(ReplayStarted)}
)
# Everput writes an event's type first, so an event of an unwanted type can be skipped without decoding it.
# If a Kafka record begins with these bytes, the type of its event follows. Otherwise, decode the record.
_TYPED: Final = b'{"type":"'


def _beginning(name: str) -> bytes:
    return b'%b%b",' % (_TYPED, name.encode())


_MESSAGE: Final = _beginning(wire_name(MessagePut))
_MANY: Final = tuple(map(_beginning, sorted(_OF_MANY)))
_OF_A_LISTENER: Final = frozenset(name for name, kind in CLASSES.items() if "listener_id" in kind.__struct_fields__)
_OF_A_QUEUE: Final = tuple(_beginning(name) for name, kind in CLASSES.items() if "queue_id" in kind.__struct_fields__)


@dataclass(frozen=True, slots=True, kw_only=True)
class MessagePosition:
    """A message's id, queue and time, with its partition and offset in the topic `messages`."""

    id: str
    queue_id: str
    at_ms: int
    partition: int
    offset: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """A filter of the log's events. An event must match every field that is not None.

    Some events have the id of a listener or replay, but no queue. To match such events to `queue_id`,
    `queue_listener_ids` must have the ids of all listeners and replays that this queue has ever had. If `message` is
    given, only events about this message match.
    """

    organization_id: str
    types: frozenset[str] | None = None
    queue_id: str | None = None
    queue_listener_ids: frozenset[str] = frozenset()
    listener_id: str | None = None
    actor: str | None = None
    message: MessagePosition | None = None
    # `_needles` holds the ids of the wanted organization and listener, and the wanted actor.
    # A record can match only if its bytes contain every text in `_needles`.
    _needles: tuple[bytes, ...] = field(init=False, repr=False, compare=False)
    _beginnings: tuple[bytes, ...] = field(init=False, repr=False, compare=False)
    _queue: bytes = field(init=False, repr=False, compare=False)
    # `_places` holds the wanted message's id and offset, as records contain them. It is empty if no message is wanted.
    # If a record contains neither the id nor the offset, it can match only if its type is in `_OF_MANY`.
    _places: tuple[bytes, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        ids = (self.organization_id, self.listener_id, self.actor)
        made = {
            "_needles": tuple(one.encode() for one in ids if one is not None),
            "_beginnings": tuple(map(_beginning, self.types or ())),
            "_queue": (self.queue_id or "").encode(),
            "_places": () if self.message is None else (self.message.id.encode(), b"[%d," % self.message.offset),
        }
        for name, value in made.items():
            object.__setattr__(self, name, value)

    def topics(self) -> tuple[str, ...]:
        """Return the topics of the log that can hold events which match the filter."""
        types = frozenset(CLASSES) if self.types is None else self.types
        if self.listener_id is not None:
            types &= _OF_A_LISTENER
        wanted = {TOPIC_OF[name] for name in types}
        if self.message is not None and _OF_MANY.isdisjoint(types):
            wanted.discard("control")
        return tuple(topic for topic in TOPICS if topic in wanted)

    def take(self, value: bytes | None) -> Event | None:
        """Return the event of a record if it matches the filter, else None. If only a newer version of Everput can
        decode the event, return Unreadable in its place. If the filter is for one message, an event with the results or
        answers of several messages is returned with those of this message only.
        """
        if value is None or not self._may_be(value):
            return None
        try:
            event = decode_message(value) if value.startswith(_MESSAGE) else decode(value)
        except UnknownEvent:
            newer = _newer(value)
            if newer is None:
                return None
            event = newer
        return self._story_of(event) if self._is(event) else None

    def may_be_in(self, values: bytes) -> bool:
        """Return False if it is certain that none of several records matches the filter, else True. `values` holds the
        bytes of all these records, which are not decoded.

        Do not use this method for the topic `control`: some of its events concern a queue or message, but do not
        contain its id.
        """
        if not all(needle in values for needle in self._needles) or self._queue not in values:
            return False
        return not self._places or any(place in values for place in self._places)

    def _may_be(self, value: bytes) -> bool:
        for needle in self._needles:
            if needle not in value:
                return False
        if self._beginnings and not value.startswith(self._beginnings) and value.startswith(_TYPED):
            return False
        if self._queue not in value and value.startswith(_OF_A_QUEUE):
            return False
        return not self._places or any(place in value for place in self._places) or value.startswith(_MANY)

    def _is(self, event: Event) -> bool:
        fields: Any = event
        if event.organization_id != self.organization_id:
            return False
        if self.types is not None and wire_name(type(event)) not in self.types:
            return False
        if self.actor is not None and event.actor != self.actor:
            return False
        if self.listener_id is not None and getattr(fields, "listener_id", None) != self.listener_id:
            return False
        if self.queue_id is None:
            return True
        queue_id = getattr(fields, "queue_id", None)
        if queue_id is not None:
            return bool(queue_id == self.queue_id)
        about = getattr(fields, "listener_id", None) or getattr(fields, "replay_id", None)
        return about in self.queue_listener_ids

    def _story_of(self, event: Event) -> Event | None:
        """Return the event if it is about the filter's message, else None. An event with the results or answers of
        several messages is returned with those of this message only. If the filter is for no single message, return the
        event unchanged.
        """
        message = self.message
        if message is None:
            return event
        if isinstance(event, DeliveriesSettled):
            rows = tuple(row for row in event.rows if row[0] == message.offset)
            if event.partition != message.partition or not rows:
                return None
            return msgspec.structs.replace(event, rows=rows)
        if isinstance(event, AnswersKept):
            attempts = tuple(one for one in event.attempts if one[0] == message.offset)
            if event.partition != message.partition or not attempts:
                return None
            named = {one[2] for one in attempts}
            answers = tuple(one for one in event.answers if one[0] in named)
            return msgspec.structs.replace(event, attempts=attempts, answers=answers)
        if isinstance(event, ListenerRedriven):
            return event if not event.message_ids or message.id in event.message_ids else None
        if isinstance(event, ListenerRedrivesCancelled):
            return event
        if isinstance(event, ReplayStarted):
            return event if replays(event, message.partition, message.offset) else None
        return event if getattr(event, "message_id", None) == message.id else None


def _newer(value: bytes) -> Unreadable | None:
    """Decode the fields that every event has. Return None if the bytes are no event."""
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
