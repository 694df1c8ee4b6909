"""The description of every event and every event field, and the list of fields that clients never see.

For: the table behind `GET /v1/log`, exports and docs/events.md. A field is shown only if it is in FIELDS and neither in
SECRET nor in INTERNAL, so a new field stays hidden until somebody describes it here. Not for: encoding (codec.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple, get_args

import msgspec
import orjson

from broker.core.codec import CLASSES, encode, wire_name
from broker.core.events import AlertThresholds, BatchSetting, ControlEvent, Event, ListenerSettings
from broker.core.ids import parse_damaged_id

# The topics that clients read as one log. Events with the same log time are sorted by this order of topics.
TOPICS: Final = ("control", "messages", "changes", "deliveries")
# The log that clients read does not include these topics, because Kafka deletes or compacts their records.
# Kafka compacts `outstanding`, keeps records of `claims` for two days, and records of `statistics` for thirty days.
PASSING: Final = ("outstanding", "claims", "statistics")

_ELSEWHERE: Final[Mapping[str, str]] = {
    "message.put": "messages",
    "message.updated": "changes",
    "message.deleted": "changes",
    "change.applied": "deliveries",
    "partition.taken_over": "deliveries",
    "partition.handed_over": "deliveries",
    "answers.kept": "deliveries",
    "listener.tested": "deliveries",
    "deliveries.settled": "deliveries",
    "delivery.attempted": "deliveries",
    "delivery.set_aside": "outstanding",
    "delivery.parked": "outstanding",
    "put.claimed": "claims",
    "statistics.counted": "statistics",
}
TOPIC_OF: Final[Mapping[str, str]] = {**{wire_name(kind): "control" for kind in get_args(ControlEvent)}, **_ELSEWHERE}

# The description of each event field, by the field's name. The description holds for all events that have the field.
FIELDS: Final[Mapping[str, str]] = {
    "type": "the event's name",
    "v": "the version of the event's fields",
    "written": "the type of an event that this version of Everput is too old to read",
    "at_ms": "the time of the event in milliseconds since the UTC epoch, by the clock of the process that wrote it",
    "organization_id": "the organization of the event; empty for events of accounts and of the installation",
    "actor": "the author: `key:<id>`, `account:<id>`, `worker` or `shell`; empty in `volume.recorded`, and in "
    "some events of the first versions",
    "request_id": "the request that caused the event, as in the answer's `X-Request-Id`; empty when none did",
    "name": "the name from now on",
    "bytes": "the bytes, at most, that one process has stored for the organization since the process's previous event "
    "of this kind about this organization",
    "account_id": "the account",
    "issuer": "the URL that names the OpenID Connect provider",
    "subject": "the person's id at the provider",
    "by_identity": "whether an OpenID Connect provider signed the person in, and not a password",
    "role": "the role of the member: `owner`, `developer`, `operator` or `auditor`",
    "email": "the e-mail address of the account or of the invited person, as it was given",
    "password_hash": "argon2id of the password, in PHC form; empty for an account without a password",
    "session_id": "the session; for a change of password or an unlinked identity, the session that made it",
    "token_sha256": "SHA-256 of the token of the session or the invitation, in hex",
    "expires_at_ms": "the time at which the session, one-time password, invitation or key ends; null for never",
    "queue_ids": "the queues that the key is restricted to; null for all",
    "kept_session_id": "the session that stays while the account's other sessions end; empty when all end",
    "even_if_last": "whether the event counts even if an organization then has no owner who is not blocked",
    "invitation_id": "the invitation",
    "key_id": "the API key",
    "prefix": "the key's first characters",
    "secret_sha256": "SHA-256 of the whole key, in hex",
    "scopes": "the rights of the key",
    "queue_id": "the queue",
    "listener_id": "the listener",
    "notify_url": "the URL that messages are sent to; readers of the log are shown the values of its query as `…`",
    "liveness_url": "the URL that is probed while the listener is down",
    "sealed_secret": "the signing secret, encrypted with the sealing key",
    "sealed": "each encrypted text, with the text that replaces it",
    "former_end_at_ms": "the latest time until which former secrets also sign",
    "start_offsets": "the first offset that the listener or the replay gets, by partition of `messages`",
    "settings": "the delivery settings of the listener",
    "max_in_flight": "the most concurrent requests, over all workers; each worker may have at least one",
    "rate_per_s": "the most deliveries a second; null for no limit",
    "timeout_ms": "the time that one attempt may take",
    "max_attempts": "the attempts after which the delivery is parked; null for no limit",
    "max_age_s": "the seconds after its first attempt, or its last redrive, from which a failing delivery is parked",
    "retry_first_ms": "the longest wait after the first failure; it doubles with each failure up to `retry_max_s`. A "
    "Retry-After in the answer can make a wait longer",
    "retry_max_s": "the longest wait after any failure",
    "headers": "the names and values added to each request; readers of the log are shown the names only",
    "sealed_headers": "the headers, with values encrypted with the sealing key",
    "reason": "the reason, in words for people",
    "replay_id": "the replay",
    "from_ms": "the start of the time range that is replayed, in milliseconds since the UTC epoch",
    "to_ms": "the end of the time range, which is excluded",
    "only": "the choice of messages: `all`, those that have `failed`, or those that are `undelivered`",
    "end_offsets": "the offset at which the replay ends, by partition of `messages`",
    "before_offsets": "the offset below which a replay that picks takes all messages, by partition",
    "after_offsets": "the offset from which on a replay that picks takes all messages, by partition",
    "picked": "the packed offsets that the replay picks, by partition; null when it takes all",
    "count": "the number of messages when the replay began",
    "counted_all": "whether the count is exact",
    "send_headers": "whether a `notify_url` of another origin (scheme, host, port) gets the listener's headers",
    "partitions": "partitions of `messages`",
    "message_id": "the message",
    "message_ids": "the messages whose deliveries are meant; `damaged` for unreadable ones; empty for all",
    "data": "the data of the message",
    "key": "the ordering key; null when the message has none",
    "deliver_at_ms": "the time before which the message is not delivered",
    "traceparent": "the place in a trace that attempts belong to, as in W3C Trace Context; absent for none",
    "partition": "the partition of `messages`, which is also the event's own; for damage, the partition of its topic",
    "topic": "the topic whose records can't be read, without the installation's prefix",
    "first_offset": "the first offset that can't be read",
    "last_offset": "the last offset that can't be read",
    "given_up": "false when the range can be read again; true when the operator has given it up, or retention "
    "has deleted its records",
    "rows": "first attempts that succeeded, each as (offset, at_ms, status, took_ms)",
    "attempts": "failed attempts, each as (offset of the message, number of the attempt, id, partition and time of the "
    "stored answer, duration of the DNS look-up, of connecting, of the TLS handshake). The id is empty if no answer is "
    "stored. A duration is null for a step that did not happen",
    "answers": "stored answers, each as (id of the answer, HTTP status, headers, the first 2 KiB of the body, whether "
    "the body was cut, URL, the request's headers). Secrets are shown as `…`",
    "offset": "the message's offset, in its partition of `messages`",
    "if_version": "the version of the queue, listener or message that the change is for; it counts for no other",
    "number": "the number of the attempt or of the claim, from 1",
    "outcome": "the result of the attempt: `delivered`, `failed` or `parked`",
    "status": "the HTTP status of the answer; null when there was none",
    "error": "the reason why there was no answer or no attempt, in a word; `failed-in-batch` when the answer to a "
    "batch rejects the message; null otherwise",
    "took_ms": "the duration of the attempt",
    "dns_ms": "the duration of the DNS look-up; null if there was none",
    "connect_ms": "the duration of connecting; null if there was no connection",
    "tls_ms": "the duration of the TLS handshake; null if there was none",
    "next_at_ms": "the time of the next attempt; null when none is due",
    "put_at_ms": "the time at which the message was put",
    "redrives": "the number of the listener's redrives that the worker had seen when it wrote the event",
    "forgiven": "the attempts before the last redrive, which no longer count",
    "since_ms": "the time of the last redrive, or the message's `deliver_at`; 0 for neither",
    "first_at_ms": "the time of the first attempt; 0 before it. The age counts from the later of this and since_ms",
    "change_offset": "the offset in `changes` of the update or deletion that is answered",
    "applied": "false when the change does not count, for example because the message had been deleted",
    "listeners": "(listener, state of its delivery at that moment); `delivered` means that it has the former data",
    "in_doubt_below": "the offset of `messages` below which more may have been sent than was recorded",
    "changes_below": "the offset of `changes` below which all changes were honored",
    "waited_ms": "time from the put, or from `deliver_at_ms`, to the answer that accepted the message, in "
    "milliseconds; a list is in the order of `rows`. If an attempt failed after a redrive, the time begins at the "
    "redrive",
    "after": "the offset of `statistics` below which the process that wrote the event had read everything",
    "ranges": "the counted offsets, each as (topic, partition, first offset, offset after the last, minute of the "
    "newest record)",
    "minutes": "the rows of counts. Each is (minute since the epoch, queue, listener, put, delivered, parked, sum of "
    "`waited_ms`, failed attempts by answer, deliveries by step of `waited_ms`). A row without a listener counts puts. "
    "A row without a queue counts records that could not be read",
    "alerts": "the thresholds from which Everput alerts; absent, or without a value: as for the queue, or the default",
    "lag_messages": "the number of waiting messages; 0 for never",
    "lag_s": "the age in seconds of the oldest waiting message; 0 for never",
    "parked": "the number of parked deliveries; 0 for never",
    "down_s": "the seconds for which the listener is down; 0 for never",
    "failing_s": "the seconds for which the listener is failing; 0 for never",
    "format": "the format of requests, such as `slack`; absent for Everput's own",
    "batch": "the limits of a request with several messages; absent when each request carries one message",
    "max_messages": "the most messages in a request",
    "max_bytes": "the most bytes in the body of a request; a larger message is sent alone",
    "wait_ms": "how long the first message of a request waits for others",
    "alert": "the kind of the alert, such as `listener.down`",
    "alert_id": "the episode of the alert, from its beginning to its end",
    "began_at_ms": "the time at which the condition began",
    "facts": "what was known then, by name",
    "quiet": "whether no message tells of the event",
    "claim_id": "the claim",
    "of": "the id of the claim with number 1; empty in claim number 1 itself",
    "digest": "SHA-256 of organization and Idempotency-Key, in hex",
    "body_sha256": "SHA-256 of the values that a repeat must have in common, in hex",
    "ids_at_ms": "the time in the ids of the messages",
    "ids_seed": "the seed of the random bits in the ids of the messages",
}
# Clients do not see these fields of events, because they hold offsets in partitions that organizations share.
INTERNAL: Final = frozenset(
    {
        *("start_offsets", "end_offsets", "before_offsets", "after_offsets", "picked", "first_offset", "last_offset"),
        *("after", "ranges"),
    }
)
SECRET: Final = frozenset(
    {
        "sealed_secret",
        "sealed",
        "sealed_headers",
        "secret_sha256",
        "password_hash",
        "token_sha256",
        "digest",
        "body_sha256",
        "ids_seed",
    }
)


class Former(NamedTuple):
    """An earlier version of an event type. Everput does not write this version any more, but the log may have events of
    it. `lacks` names the fields that the next version added. `read_as` says how an event without these fields is
    understood.
    """

    lacks: frozenset[str]
    read_as: str


_UNSEALED: Final = Former(
    frozenset({"settings.sealed_headers"}),
    "the header values in `settings.headers` are plain text, and requests to the listener carry these values",
)
_IF_VERSION: Final = frozenset({"if_version"})
# Descriptions of events' earlier versions, for docs/events.md. (codec.py has the functions that convert them.)
FORMER: Final[Mapping[tuple[str, int], Former]] = {
    ("invitation.created", 1): Former(frozenset({"role"}), "the event invites a person to become an owner"),
    ("key.created", 1): Former(
        frozenset({"queue_ids", "expires_at_ms"}), "the key is for all queues, and does not expire"
    ),
    ("listener.created", 1): _UNSEALED,
    ("listener.updated", 1): _UNSEALED,
    ("message.updated", 1): Former(
        _IF_VERSION, "the message is updated, whatever its present version is, unless it was deleted before"
    ),
    ("message.deleted", 1): Former(
        _IF_VERSION, "the message is deleted, whatever its present version is, unless it was deleted before"
    ),
    ("replay.started", 1): Former(
        frozenset({"after_offsets"}),
        "if `picked` is not null, the replay delivers the messages at the offsets in `picked`. In each partition, it "
        "also delivers the queue's messages from the partition's offset in `start_offsets` to just before its offset "
        "in `before_offsets`",
    ),
    ("replay.started", 2): Former(
        frozenset({"send_headers"}),
        "the replay sends the listener's headers, even if the replay's `notify_url` has another scheme, host or port "
        "than the listener's",
    ),
}
_HIDDEN: Final = SECRET | INTERNAL
_MASKED: Final = "…"
_DAMAGED: Final = "damaged"  # replaces offsets in shared partitions
_TUNNEL: Final = "tunnel://"


def shown(event: Event) -> dict[str, Any]:
    """Return an event as JSON for clients who read the log, without secrets and internal fields.

    An ellipsis replaces the header values of listeners, and the parts of URLs that masked_url() hides.
    """
    return {"type": wire_name(type(event)), **_visible(event)}


def shown_json(event: Event) -> bytes:
    """Return an event as JSON text for clients who read the log, without secrets.

    If no field of the event must be hidden, the text is the stored one.
    """
    return encode(event) if type(event) in _ALL_SHOWN else orjson.dumps(shown(event))


def fields_of(kind: type[msgspec.Struct]) -> list[str]:
    """Return the names of the fields of an event class. Fields of listener settings, alert thresholds and batch
    settings inside the event are included.
    """
    names: list[str] = []
    for field in msgspec.structs.fields(kind):
        names.append(field.name)
        nested = struct_of(field.type)
        if nested is not None:
            names += fields_of(nested)
    return names


def struct_of(kind: Any) -> type[msgspec.Struct] | None:
    """Return the class of settings that a field of this type may hold: ListenerSettings, AlertThresholds or
    BatchSetting. Return None for any other type.
    """
    return next(
        (one for one in (ListenerSettings, AlertThresholds, BatchSetting) if kind is one or one in get_args(kind)), None
    )


def shown_url(url: str) -> str:
    """Return a tunnel's URL as `tunnel://…`, and any other URL unchanged. The hidden part of a tunnel's URL gives
    access to a developer's machine.
    """
    return _TUNNEL + _MASKED if url.startswith(_TUNNEL) else url


def masked_url(url: str) -> str:
    """Return a URL without its user name, its password and the values of its query, which may be secrets:
    `https://…@host/path?name=…`.

    The path is shown unchanged. A tunnel's URL is returned as `tunnel://…`.
    """
    if url.startswith(_TUNNEL):
        return shown_url(url)
    place, mark, query = url.partition("?")
    scheme, slashes, rest = place.partition("://")
    authority, slash, path = rest.partition("/")
    user, at, host = authority.rpartition("@")
    place = f"{scheme}{slashes}{_MASKED if user else ''}{at}{host}{slash}{path}"
    parts = (part.partition("=") for part in query.partition("#")[0].split("&"))
    masked = "&".join(f"{name}={_MASKED}" if equals else _MASKED for name, equals, _ in parts)
    return f"{place}?{masked}" if mark and query else place + mark


def _visible(struct: msgspec.Struct) -> dict[str, Any]:
    shown = {
        name: _value(name, getattr(struct, name))
        for name in struct.__struct_fields__
        if name in FIELDS and name not in _HIDDEN and getattr(struct, name) is not msgspec.UNSET
    }
    if isinstance(struct, ListenerSettings):
        shown["headers"] = dict.fromkeys([*struct.headers, *struct.sealed_headers], _MASKED)
    return shown


def _value(name: str, value: Any) -> Any:
    if isinstance(value, msgspec.Struct):
        return _visible(value)
    if name == "message_ids":
        return [_DAMAGED if parse_damaged_id(one) is not None else one for one in value]
    return masked_url(value) if name.endswith("_url") and value is not None else value


def _all_shown(kind: type[Event]) -> bool:
    """Return whether events of this class are shown in full: all of their fields, without a mask."""
    return all(
        field.name in FIELDS
        and field.name not in _HIDDEN
        and not field.name.endswith("_url")
        and field.name != "message_ids"
        and field.type is not ListenerSettings
        for field in msgspec.structs.fields(kind)
    )


_ALL_SHOWN: Final = frozenset(kind for kind in CLASSES.values() if _all_shown(kind))


def types_named(text: str) -> frozenset[str] | None:
    """Return the event types that a filter text selects: one type such as `queue.created`, or all types of a noun such
    as `queue`. Only types in the log that clients read are selected.

    Return None if the text selects no type.
    """
    here = (name for name, topic in TOPIC_OF.items() if topic in TOPICS)
    found = frozenset(name for name in here if name == text or name.startswith(text + "."))
    return found or None
