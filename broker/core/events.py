"""The events: what happened, in the past tense, as written to the log.

For: every event's fields, wire name and version; encode and decode. A class may be renamed, its wire name and
fields never: a change of fields is a new version with an upcaster, and a golden record in tests/golden.
Not for: what an event changes (broker/core/directory.py) or where it is stored (broker/kafka/topics.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Final, get_args

import msgspec
import orjson
from msgspec import UNSET, UnsetType

from broker.errors import UnknownEvent


class Event(msgspec.Struct, frozen=True, kw_only=True, tag_field="type"):
    """A recorded fact.

    at_ms: when it was recorded, milliseconds since the UTC epoch, by the writer's clock.
    organization_id: the organization of the event; empty for accounts and for the installation.
    actor: `key:<id>`, `account:<id>`, `worker` or `shell`.
    request_id: the request that caused it; empty when none did.
    urgent: the API still records it when disk space is between the two marks (broker/disk.py). An urgent event revokes
        a right, ends some work, or lets a person in to do so.
    """

    urgent: ClassVar[bool] = False

    at_ms: int
    organization_id: str
    actor: str = ""
    request_id: str = ""
    v: int = 1


class OrganizationCreated(Event, frozen=True, kw_only=True, tag="organization.created"):
    name: str


class AccountEvent(Event, frozen=True, kw_only=True):
    """The base class of account events. It is not an event itself."""

    urgent: ClassVar[bool] = True

    account_id: str


class AccountCreated(AccountEvent, frozen=True, kw_only=True, tag="account.created"):
    """The event that an account was created.

    email: as it was given.
    password_hash: argon2id in PHC form; no event holds the password.
    """

    urgent: ClassVar[bool] = False

    email: str
    password_hash: str


class AccountPasswordChanged(AccountEvent, frozen=True, kw_only=True, tag="account.password_changed"):
    """The event that a password was changed.

    session_id: the session that changed it; the account's other sessions end.
    """

    session_id: str
    password_hash: str


class AccountPasswordReset(AccountEvent, frozen=True, kw_only=True, tag="account.password_reset"):
    """The event that the operator gave the account a one-time password. The account's sessions end.

    expires_at_ms: the password opens one session, and only before this time.
    """

    password_hash: str
    expires_at_ms: int


class AccountSessionsEnded(AccountEvent, frozen=True, kw_only=True, tag="account.sessions_ended"):
    """The event that the account's sessions ended.

    kept_session_id: the session that goes on; empty for none.
    """

    kept_session_id: str = ""


class AccountBlocked(AccountEvent, frozen=True, kw_only=True, tag="account.blocked"):
    """The event that the account was blocked. Its sessions end, and it gets no new one. Memberships and API keys
    stay.
    """


class AccountUnblocked(AccountEvent, frozen=True, kw_only=True, tag="account.unblocked"):
    """The account may sign in again."""


class AccountDeleted(AccountEvent, frozen=True, kw_only=True, tag="account.deleted"):
    """The event that the account was deleted: its sessions and memberships end, and its e-mail address is free.

    even_if_last: as in OrganizationLeft, for each of its organizations.
    """

    even_if_last: bool = False


class SessionCreated(Event, frozen=True, kw_only=True, tag="session.created"):
    """The event that a session began.

    token_sha256: hex SHA-256 of the whole token; no event holds the token.
    """

    urgent: ClassVar[bool] = True

    session_id: str
    account_id: str
    token_sha256: str
    expires_at_ms: int


class SessionEnded(Event, frozen=True, kw_only=True, tag="session.ended"):
    urgent: ClassVar[bool] = True

    session_id: str


class OrganizationJoined(Event, frozen=True, kw_only=True, tag="organization.joined"):
    """The event that an account became a member of the organization."""

    account_id: str


class OrganizationLeft(Event, frozen=True, kw_only=True, tag="organization.left"):
    """The event that an account left the organization, or that the actor removed it.

    even_if_last: if false, the event counts only while another member exists who is not blocked.
    """

    urgent: ClassVar[bool] = True

    account_id: str
    even_if_last: bool = False


class VolumeRecorded(Event, frozen=True, kw_only=True, tag="volume.recorded"):
    """The event that an organization stored bytes.

    bytes: of messages, by one process, since its last event of this kind.
    """

    urgent: ClassVar[bool] = True

    bytes: int


class KeyCreated(Event, frozen=True, kw_only=True, tag="key.created"):
    """The event that an API key was created.

    secret_sha256: hex SHA-256 of the whole key; no event holds the key.
    prefix: the key's first characters.
    queue_ids: the queues that the key is for; None: all.
    expires_at_ms: the key is invalid from then on; None: never.
    """

    key_id: str
    name: str
    prefix: str
    secret_sha256: str
    scopes: tuple[str, ...]
    queue_ids: tuple[str, ...] | None = None
    expires_at_ms: int | None = None
    v: int = 2  # Version 2, so that an older program does not take a restricted key for an unrestricted one.


class KeyRevoked(Event, frozen=True, kw_only=True, tag="key.revoked"):
    urgent: ClassVar[bool] = True

    key_id: str


class KeyUsed(Event, frozen=True, kw_only=True, tag="key.used"):
    """The event that an API key was used. It is recorded about once an hour at most."""

    key_id: str


class QueueCreated(Event, frozen=True, kw_only=True, tag="queue.created"):
    queue_id: str
    name: str


class QueueRenamed(Event, frozen=True, kw_only=True, tag="queue.renamed"):
    """The event that a queue was renamed.

    if_version: the event counts only if the queue is at this version. Other events use the field in the same way.
    """

    queue_id: str
    name: str
    if_version: int | UnsetType = UNSET


class QueueDeleted(Event, frozen=True, kw_only=True, tag="queue.deleted"):
    urgent: ClassVar[bool] = True

    queue_id: str
    if_version: int | UnsetType = UNSET


class ListenerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The settings of a listener's deliveries. All are optional in a request, with these defaults.

    max_in_flight: concurrent requests over all workers; each worker may have at least one.
    rate_per_s: None for no limit.
    timeout_ms: for one attempt.
    max_attempts: None for no limit.
    max_age_s: a delivery that still fails so long after its first attempt is parked.
    sealed_headers: added to each request, by name, with encrypted values (broker/sealing.py).
    headers: the same in the clear, in older events.
    retry_first_ms: the longest wait after the first failure; it doubles with each failure, up to retry_max_s.
    """

    max_in_flight: int = 64
    rate_per_s: float | None = None
    timeout_ms: int = 15_000
    max_attempts: int | None = None
    max_age_s: int = 72 * 3600
    headers: dict[str, str] = {}
    sealed_headers: dict[str, str] = {}
    retry_first_ms: int = 1_000
    retry_max_s: int = 3_600


class ListenerCreated(Event, frozen=True, kw_only=True, tag="listener.created"):
    """The event that a listener was created.

    sealed_secret: the signing secret, encrypted (broker/sealing.py).
    start_offsets: by partition of `messages`, the first offset that the listener gets.
    """

    listener_id: str
    queue_id: str
    name: str
    notify_url: str
    liveness_url: str
    sealed_secret: str
    start_offsets: tuple[int, ...]
    settings: ListenerSettings = ListenerSettings()
    v: int = 2


class ListenerUpdated(Event, frozen=True, kw_only=True, tag="listener.updated"):
    """All values as they are from now on."""

    listener_id: str
    name: str
    notify_url: str
    liveness_url: str
    settings: ListenerSettings
    if_version: int | UnsetType = UNSET
    v: int = 2


class ListenerSecretRotated(Event, frozen=True, kw_only=True, tag="listener.secret_rotated"):
    """The event that a listener got another signing secret.

    sealed_secret: the new one.
    former_end_at_ms: the latest time until which former secrets also sign.
    """

    urgent: ClassVar[bool] = True

    listener_id: str
    sealed_secret: str
    former_end_at_ms: int


class ListenerResealed(Event, frozen=True, kw_only=True, tag="listener.resealed"):
    """The event that a listener's secrets were encrypted with another sealing key.

    sealed: each old sealed text with the new one that replaces it; others stay.
    """

    listener_id: str
    sealed: dict[str, str]


class ListenerPaused(Event, frozen=True, kw_only=True, tag="listener.paused"):
    """The event that a listener was paused.

    reason: for people, such as `the listener answered 410 Gone`.
    """

    urgent: ClassVar[bool] = True

    listener_id: str
    reason: str


class ListenerResumed(Event, frozen=True, kw_only=True, tag="listener.resumed"):
    listener_id: str


class ListenerRedriven(Event, frozen=True, kw_only=True, tag="listener.redriven"):
    """The event that a listener's retrying and parked deliveries are attempted now.

    message_ids: only the deliveries of these messages; empty: all.
    """

    listener_id: str
    message_ids: tuple[str, ...] = ()


class ListenerDeleted(Event, frozen=True, kw_only=True, tag="listener.deleted"):
    urgent: ClassVar[bool] = True

    listener_id: str
    if_version: int | UnsetType = UNSET


class ReplayEvent(Event, frozen=True, kw_only=True):
    """The base class of replay events. It is not an event itself."""

    replay_id: str


class ReplayStarted(ReplayEvent, frozen=True, kw_only=True, tag="replay.started"):
    """The event that a range of a queue's messages is delivered again. broker/core/replays.py describes the fields."""

    listener_id: str
    from_ms: int
    to_ms: int
    only: str
    notify_url: str | None
    liveness_url: str | None
    rate_per_s: float | None
    start_offsets: tuple[int, ...]
    end_offsets: tuple[int, ...]
    before_offsets: tuple[int, ...]
    picked: tuple[str, ...] | None
    count: int
    counted_all: bool
    after_offsets: tuple[int, ...] = ()
    send_headers: bool = True
    v: int = 3


class ReplayAdvanced(ReplayEvent, frozen=True, kw_only=True, tag="replay.advanced"):
    """The event that a replay has settled everything in these partitions. It has finished when all partitions are
    named.
    """

    partitions: tuple[int, ...]


class ReplayPaused(ReplayEvent, frozen=True, kw_only=True, tag="replay.paused"):
    """The event that a replay was paused. reason: as in ListenerPaused."""

    urgent: ClassVar[bool] = True

    reason: str


class ReplayResumed(ReplayEvent, frozen=True, kw_only=True, tag="replay.resumed"):
    """The event that a replay continues where it was."""


class ReplayCancelled(ReplayEvent, frozen=True, kw_only=True, tag="replay.cancelled"):
    """The event that a replay was cancelled. Its undelivered messages are not delivered."""

    urgent: ClassVar[bool] = True


class MessagePut(Event, frozen=True, kw_only=True, tag="message.put"):
    """The event that a message was put.

    key: the ordering key; messages of one key are delivered one at a time, in order.
    deliver_at_ms: the message is not delivered before this time; absent for at once. A message has at most one of the
        two.
    """

    message_id: str
    queue_id: str
    name: str
    data: str
    key: str | None = None
    deliver_at_ms: int | UnsetType = UNSET


class PutClaimed(Event, frozen=True, kw_only=True, tag="put.claimed"):
    """The event that a request with an Idempotency-Key is about to put its messages, if it is the first claim of its
    number.

    digest: hex SHA-256 of organization and key.
    body_sha256: of the request's values, which a repeat must have, too.
    number: 1, or one more than the claim that it takes over from.
    of: the claim_id of number 1; empty in that one itself.
    ids_at_ms, ids_seed, partition: what the messages' ids are made from.
    """

    claim_id: str
    queue_id: str
    digest: str
    body_sha256: str
    ids_at_ms: int
    ids_seed: str
    partition: int
    number: int = 1
    of: str = ""


class MessageChange(Event, frozen=True, kw_only=True):
    """The base class of the events of `changes`. It is not an event itself.

    partition, offset: the message's place in `messages`.
    if_version: the event counts only if the message is at this version (broker/core/changes.py).
    """

    message_id: str
    queue_id: str
    partition: int
    offset: int
    if_version: int | UnsetType = UNSET
    v: int = 2


class MessageUpdated(MessageChange, frozen=True, kw_only=True, tag="message.updated"):
    """The event that a message's data was changed. Later attempts send the new data. After a deletion it changes
    nothing.
    """

    data: str


class MessageDeleted(MessageChange, frozen=True, kw_only=True, tag="message.deleted"):
    """The event that a message was deleted. Deliveries that have not been sent are cancelled."""

    urgent: ClassVar[bool] = True


class ChangeApplied(Event, frozen=True, kw_only=True, tag="change.applied"):
    """The event that the owner of the partition has begun to honor a change. It is kept in `deliveries`.

    change_offset: the change's, in `changes`.
    applied: False when the change does not count (broker/core/changes.py).
    listeners: (id, state) at that moment: `delivered`, `retrying`, `parked`, `pending` or `unknown`.
    """

    queue_id: str
    message_id: str
    partition: int
    change_offset: int
    applied: bool
    listeners: tuple[tuple[str, str], ...]


class PartitionTakenOver(Event, frozen=True, kw_only=True, tag="partition.taken_over"):
    """The event that a worker owns a partition, and may send from now on. It is kept in `deliveries`.

    While no event follows it, that worker still owns the partition, or has crashed.
    """

    partition: int


class PartitionHandedOver(Event, frozen=True, kw_only=True, tag="partition.handed_over"):
    """The event that an owner gave a partition up with everything written. It is kept in `deliveries`.

    in_doubt_below: an earlier owner crashed; what was open below this offset of `messages` may have been sent.
    changes_below: all changes below this offset of `changes` were honored; unset by older programs.
    """

    partition: int
    in_doubt_below: int
    changes_below: int | UnsetType = UNSET


class LogDamaged(Event, frozen=True, kw_only=True, tag="log.damaged"):
    """The event that a range of the log is damaged: no copy gives it as it was written. A repeat for the same range
    changes nothing.

    topic: without the installation's prefix.
    first_offset, last_offset: both included.
    """

    topic: str
    partition: int
    first_offset: int
    last_offset: int


class LogMended(Event, frozen=True, kw_only=True, tag="log.mended"):
    """The event that a damaged range can be read again, or that an operator has given it up (given_up)."""

    topic: str
    partition: int
    first_offset: int
    last_offset: int
    given_up: bool


class DeliveriesSettled(Event, frozen=True, kw_only=True, tag="deliveries.settled"):
    """The event of first attempts that succeeded, gathered per stream and checkpoint.

    partition: of `messages`.
    rows: (offset, at_ms, status, took_ms), each a delivery accepted at attempt 1.
    """

    listener_id: str
    queue_id: str
    partition: int
    rows: tuple[tuple[int, int, int, int], ...]


class DeliveryAttempted(Event, frozen=True, kw_only=True, tag="delivery.attempted"):
    """The event of one attempt that failed, or that succeeded after failures.

    offset: the message's, in its partition of `messages`.
    number: 1 for the first attempt.
    status: None when there was no answer; `error` then names the reason in a word (`refused`, `timeout`, …).
    next_at_ms: when the next attempt is due, if there is one.
    outcome: `delivered`, `failed` or `parked`.
    """

    listener_id: str
    queue_id: str
    message_id: str
    partition: int
    offset: int
    number: int
    outcome: str
    status: int | None
    error: str | None
    took_ms: int
    next_at_ms: int | None


# The error of a delivery whose message only a newer program can read; its record has no payload.
UNDECODABLE: Final = "undecodable"
DAMAGED: Final = "damaged"  # the error of a delivery whose message can't be read; its record has no payload
BARE: Final = (UNDECODABLE, DAMAGED)  # errors of records without a payload


class KeptDelivery(Event, frozen=True, kw_only=True):
    """The base class of the events of `outstanding`: a delivery with a copy of its message. It is not an event itself.

    number: attempts made.
    status, error: of the last attempt.
    redrives: how many redrives of its listener the writer had seen.
    forgiven: attempts before the last redrive, which no longer count.
    since_ms: the last redrive, or the message's `deliver_at`; 0 for neither.
    first_at_ms: the first attempt; 0 before it. The delivery's age counts from the later of the two.
    """

    listener_id: str
    queue_id: str
    message_id: str
    partition: int
    offset: int
    number: int
    status: int | None
    error: str | None
    put_at_ms: int
    name: str
    data: str
    key: str | None = None
    redrives: int = 0
    forgiven: int = 0
    since_ms: int = 0
    first_at_ms: int = 0

    def put(self) -> MessagePut:
        """Return the message's put event, as the message was when the delivery was set aside. Not for an UNDECODABLE
        message.
        """
        return MessagePut(
            at_ms=self.put_at_ms,
            organization_id=self.organization_id,
            message_id=self.message_id,
            queue_id=self.queue_id,
            name=self.name,
            data=self.data,
            key=self.key,
            deliver_at_ms=self.since_ms if self.since_ms and not self.number else UNSET,
        )


class DeliverySetAside(KeptDelivery, frozen=True, kw_only=True, tag="delivery.set_aside"):
    """The event that a delivery waits in `outstanding` for an attempt that is later than its stream can wait.

    number: 0 before the first attempt. The message then has a `deliver_at`, waits for its ordering key, or is too old
        for the log.
    """

    next_at_ms: int


class DeliveryParked(KeptDelivery, frozen=True, kw_only=True, tag="delivery.parked"):
    """The event that a delivery has no attempt left. It stays in `outstanding` until it is redriven or cancelled."""


ControlEvent = (
    AccountCreated
    | AccountPasswordChanged
    | AccountPasswordReset
    | AccountSessionsEnded
    | AccountBlocked
    | AccountUnblocked
    | AccountDeleted
    | SessionCreated
    | SessionEnded
    | OrganizationCreated
    | OrganizationJoined
    | OrganizationLeft
    | VolumeRecorded
    | KeyCreated
    | KeyRevoked
    | KeyUsed
    | QueueCreated
    | QueueRenamed
    | QueueDeleted
    | ListenerCreated
    | ListenerUpdated
    | ListenerSecretRotated
    | ListenerResealed
    | ListenerPaused
    | ListenerResumed
    | ListenerRedriven
    | ListenerDeleted
    | ReplayStarted
    | ReplayAdvanced
    | ReplayPaused
    | ReplayResumed
    | ReplayCancelled
    | LogDamaged
    | LogMended
)
AnyEvent = (
    ControlEvent
    | MessagePut
    | PutClaimed
    | MessageUpdated
    | MessageDeleted
    | ChangeApplied
    | PartitionTakenOver
    | PartitionHandedOver
    | DeliveriesSettled
    | DeliveryAttempted
    | DeliverySetAside
    | DeliveryParked
)

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
    """Decode a record like decode_message(), but leave the texts encoded, because they are only joined again
    (UnknownEvent).
    """
    try:
        texts = _message_texts.decode(value)
    except _UNDECODED:
        texts = None
    if texts is not None and texts.v == VERSIONS["message.put"]:
        return texts
    return _message_texts.decode(encode(decode_message(value)))
