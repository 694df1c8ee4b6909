"""The encoding of events as JSON, and their decoding.

For: the wire name and version of each event class, and the upcasters from old versions. Not for: the events
(events.py).
"""

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
# The functions that convert an event of an old version to the next version, by the event's name and old version.
UPCASTERS: Final[dict[tuple[str, int], Upcaster]] = {
    # added role
    ("invitation.created", 1): lambda fields: fields | {"v": 2},
    # added queue_ids and expires_at_ms
    ("key.created", 1): lambda fields: fields | {"v": 2},
    # added sealed_headers
    ("listener.created", 1): lambda fields: fields | {"v": 2},
    ("listener.updated", 1): lambda fields: fields | {"v": 2},
    # added if_version
    ("message.updated", 1): lambda fields: fields | {"v": 2},
    ("message.deleted", 1): lambda fields: fields | {"v": 2},
    # added after_offsets
    ("replay.started", 1): lambda fields: fields | {"v": 2},
    # Version 3 of `replay.started` added send_headers. It is true by default: replays of version 2 send the headers.
    ("replay.started", 2): lambda fields: fields | {"v": 3},
}


def wire_name(kind: type[Event]) -> str:
    """Return the name that stands for an event type in the Kafka records of its events, such as `queue.created`."""
    return str(kind.__struct_config__.tag)


CLASSES: Final[Mapping[str, type[Event]]] = {wire_name(kind): kind for kind in get_args(AnyEvent)}


def version_of(kind: type[Event]) -> int:
    """Return the version of an event type that this program writes."""
    return next(int(field.default) for field in msgspec.structs.fields(kind) if field.name == "v")


VERSIONS: Final[Mapping[str, int]] = {name: version_of(kind) for name, kind in CLASSES.items()}


class MessageTexts(msgspec.Struct, frozen=True, tag_field="type", tag="message.put"):
    """A message whose name and data are not decoded: they are left as JSON text."""

    v: int
    name: msgspec.Raw
    data: msgspec.Raw
    key: str | None = None
    deliver_at_ms: int | UnsetType = UNSET
    traceparent: str | UnsetType = UNSET


_NAMES: Final = {kind: name for name, kind in CLASSES.items()}
# Decoders raise ValueError if the bytes are no event in JSON, and RecursionError if the JSON is nested too deeply.
_UNDECODED: Final = (ValueError, RecursionError)
_encoder = msgspec.json.Encoder()
_any_event = msgspec.json.Decoder(AnyEvent)
_message_put = msgspec.json.Decoder(MessagePut)
_message_texts = msgspec.json.Decoder(MessageTexts)


def encode(event: Event) -> bytes:
    """Encode an event as it is stored: one JSON object, with `type` first."""
    return _encoder.encode(event)


def decode(value: bytes) -> Event:
    """Decode a stored record into the current version of its event.

    Raises UnknownEvent for bytes that are no event, or for an event that only a newer version of Everput knows.
    """
    try:
        event: Event = _any_event.decode(value)
    except _UNDECODED:
        return _decode_other(value)
    # Check that the JSON has the field `v`, because msgspec sets a missing `v` to the newest version.
    if event.v == VERSIONS[_NAMES[type(event)]] and b'"v":' in value:
        return event
    return _decode_other(value)


def _decode_other(value: bytes) -> Event:
    """Decode an event of an old version. Raises UnknownEvent for bytes that are no event of a known version."""
    try:
        fields = orjson.loads(value)
        name, version = fields["type"], fields["v"]
        kind = CLASSES[name]
        while version < VERSIONS[name]:
            fields = UPCASTERS[name, version](fields)
            version = fields["v"]
        if version > VERSIONS[name]:
            raise UnknownEvent(
                f"the event {name} has version {version}, which is newer than this program can read; upgrade Everput"
            )
        return msgspec.convert(fields, kind)
    # orjson and msgspec raise subclasses of ValueError for wrong JSON.
    except (KeyError, TypeError, ValueError) as error:
        raise UnknownEvent(
            f"the record is damaged, was not written by Everput, or needs a newer version of Everput: {error}"
        ) from error


def decode_message(value: bytes) -> MessagePut:
    """Decode a record of the topic `messages`. This function must be fast, because a search or check decodes many
    messages.

    Raises UnknownEvent if the record is no message that this version of Everput knows.
    """
    try:
        event = _message_put.decode(value)
    except _UNDECODED:
        event = None
    if event is not None and event.v == VERSIONS["message.put"]:
        return event
    other = decode(value)
    if not isinstance(other, MessagePut):
        raise UnknownEvent(f"the event {wire_name(type(other))} does not belong in the topic messages")
    return other


def message_texts(value: bytes) -> MessageTexts:
    """Decode a message, but leave its name and data as JSON text. The name and data are copied into another JSON text,
    so decoding them would be a waste. Raises UnknownEvent if the record is no message that this version knows.
    """
    try:
        texts = _message_texts.decode(value)
    except _UNDECODED:
        texts = None
    if texts is not None and texts.v == VERSIONS["message.put"]:
        return texts
    return _message_texts.decode(encode(decode_message(value)))
