"""Events to bytes and back.

For: JSON, the wire name and version of each class, the upcasters from old versions. Not for: the events (events.py)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, get_args

import msgspec
import orjson
from msgspec import UNSET, UnsetType

from broker.core.event import Event
from broker.core.events import AnyEvent, MessagePut
from broker.errors import UnknownEvent

Fields = dict[str, Any]
Upcaster = Callable[[Fields], Fields]
# (wire name, version) -> the upcaster to the next version. Old versions are always read and never written.
UPCASTERS: Final[dict[tuple[str, int], Upcaster]] = {
    # queue_ids and expires_at_ms came
    ("key.created", 1): lambda fields: fields | {"v": 2},
    # sealed_headers came
    ("listener.created", 1): lambda fields: fields | {"v": 2},
    ("listener.updated", 1): lambda fields: fields | {"v": 2},
    # if_version came
    ("message.updated", 1): lambda fields: fields | {"v": 2},
    ("message.deleted", 1): lambda fields: fields | {"v": 2},
    # after_offsets came
    ("replay.started", 1): lambda fields: fields | {"v": 2},
    # Before send_headers, the listener's headers were sent to any notify_url.
    ("replay.started", 2): lambda fields: fields | {"v": 3},
}


def wire_name(kind: type[Event]) -> str:
    """Return the event's type as the log has it, such as `queue.created`."""
    return str(kind.__struct_config__.tag)


CLASSES: Final[Mapping[str, type[Event]]] = {wire_name(kind): kind for kind in get_args(AnyEvent)}


def version_of(kind: type[Event]) -> int:
    """Return the version that this program writes: the default of the field `v`."""
    return next(int(field.default) for field in msgspec.structs.fields(kind) if field.name == "v")


VERSIONS: Final[Mapping[str, int]] = {name: version_of(kind) for name, kind in CLASSES.items()}


class MessageTexts(msgspec.Struct, frozen=True, tag_field="type", tag="message.put"):
    """The name and data of a message, still as JSON texts with their quotes."""

    v: int
    name: msgspec.Raw
    data: msgspec.Raw
    key: str | None = None
    deliver_at_ms: int | UnsetType = UNSET


_NAMES: Final = {kind: name for name, kind in CLASSES.items()}
# Invalid UTF-8 is a ValueError, too; nesting that is far too deep is a RecursionError.
_UNDECODED: Final = (ValueError, RecursionError)
_encoder = msgspec.json.Encoder()
_any_event = msgspec.json.Decoder(AnyEvent)
_message_put = msgspec.json.Decoder(MessagePut)
_message_texts = msgspec.json.Decoder(MessageTexts)


def encode(event: Event) -> bytes:
    """Encode the event as it is stored: one JSON object with `type` first."""
    return _encoder.encode(event)


def decode(value: bytes) -> Event:
    """Decode a stored record into today's version of its event.

    Raise UnknownEvent for a type or version of a newer program, and for bytes that are no event.
    """
    try:
        event: Event = _any_event.decode(value)
    except _UNDECODED:
        return _decode_other(value)
    # The class has filled in a missing `v`.
    if event.v == VERSIONS[_NAMES[type(event)]] and b'"v":' in value:
        return event
    return _decode_other(value)


def _decode_other(value: bytes) -> Event:
    """Decode an event of an old version, or raise UnknownEvent."""
    try:
        fields = orjson.loads(value)
        name, version = fields["type"], fields["v"]
        kind = CLASSES[name]
        while version < VERSIONS[name]:
            fields = UPCASTERS[name, version](fields)
            version = fields["v"]
        if version > VERSIONS[name]:
            raise UnknownEvent(f"{name} version {version} is newer than this program")
        return msgspec.convert(fields, kind)
    except (KeyError, TypeError, ValueError) as error:  # ValueError includes the errors of orjson and msgspec.
        raise UnknownEvent(f"not an event this program knows: {error}") from error


def decode_message(value: bytes) -> MessagePut:
    """Decode a record of the `messages` topic. This is the hot path."""
    try:
        event = _message_put.decode(value)
    except _UNDECODED:
        event = None
    if event is not None and event.v == VERSIONS["message.put"]:
        return event
    other = decode(value)
    if not isinstance(other, MessagePut):
        raise UnknownEvent(f"{wire_name(type(other))} does not belong in the messages topic")
    return other


def message_texts(value: bytes) -> MessageTexts:
    """Decode a record like decode_message(), but leave the texts encoded, because they are only joined again.
    Raises UnknownEvent.
    """
    try:
        texts = _message_texts.decode(value)
    except _UNDECODED:
        texts = None
    if texts is not None and texts.v == VERSIONS["message.put"]:
        return texts
    return _message_texts.decode(encode(decode_message(value)))
