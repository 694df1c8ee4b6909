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
    organization_id: whose event it is, empty for an account's and for the installation's.
    actor: who did it: `key:<id>`, `account:<id>`, `worker` or `shell`.
    request_id: the request that caused it, empty when none did.
    urgent: whether the API still records it between the two marks of free disk space (broker/disk.py). An urgent event
    takes a right or some work away, or lets a person in who may do so.
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
    """What happens to an account. Is no event itself."""

    urgent: ClassVar[bool] = True

    account_id: str


class AccountCreated(AccountEvent, frozen=True, kw_only=True, tag="account.created"):
    """email: as it was given. password_hash: argon2id in PHC form; the password itself is in no event."""

    urgent: ClassVar[bool] = False

    email: str
    password_hash: str


class AccountPasswordChanged(AccountEvent, frozen=True, kw_only=True, tag="account.password_changed"):
    """session_id: in which it was changed; the account's other sessions end with this."""

    session_id: str
    password_hash: str


class AccountPasswordReset(AccountEvent, frozen=True, kw_only=True, tag="account.password_reset"):
    """The operator gave the account a one-time password; its sessions end.

    expires_at_ms: the password opens one session, and only before this time.
    """

    password_hash: str
    expires_at_ms: int


class AccountSessionsEnded(AccountEvent, frozen=True, kw_only=True, tag="account.sessions_ended"):
    """All sessions of the account ended. kept_session_id: but for this one; empty for none."""

    kept_session_id: str = ""


class AccountBlocked(AccountEvent, frozen=True, kw_only=True, tag="account.blocked"):
    """The account's sessions end, and it gets no new one. It stays a member; the keys of organizations stay valid."""


class AccountUnblocked(AccountEvent, frozen=True, kw_only=True, tag="account.unblocked"):
    """The account may sign in again."""


class AccountDeleted(AccountEvent, frozen=True, kw_only=True, tag="account.deleted"):
    """The account, its sessions and its memberships end; its e-mail address is free.

    even_if_last: as of OrganizationLeft, for each of its organizations.
    """

    even_if_last: bool = False


class SessionCreated(Event, frozen=True, kw_only=True, tag="session.created"):
    """token_sha256: hex SHA-256 of the whole token, which itself is in no event."""

    urgent: ClassVar[bool] = True

    session_id: str
    account_id: str
    token_sha256: str
    expires_at_ms: int


class SessionEnded(Event, frozen=True, kw_only=True, tag="session.ended"):
    urgent: ClassVar[bool] = True

    session_id: str


class OrganizationJoined(Event, frozen=True, kw_only=True, tag="organization.joined"):
    """The account is a member of the organization from now on."""

    account_id: str


class OrganizationLeft(Event, frozen=True, kw_only=True, tag="organization.left"):
    """The account is no member of the organization any more: it left, or the actor removed it.

    even_if_last: false, and the event counts only if another member is there who is not blocked.
    """

    urgent: ClassVar[bool] = True

    account_id: str
    even_if_last: bool = False


class VolumeRecorded(Event, frozen=True, kw_only=True, tag="volume.recorded"):
    """bytes: of messages that one process has stored for the organization since its event before this one."""

    urgent: ClassVar[bool] = True

    bytes: int


class KeyCreated(Event, frozen=True, kw_only=True, tag="key.created"):
    """secret_sha256: hex SHA-256 of the whole key, which itself is in no event. prefix: its first characters.

    queue_ids: the queues that it is for; None: all. expires_at_ms: it opens nothing from then on; None: never.
    """

    key_id: str
    name: str
    prefix: str
    secret_sha256: str
    scopes: tuple[str, ...]
    queue_ids: tuple[str, ...] | None = None
    expires_at_ms: int | None = None
    v: int = 2  # a program that knows no restrictions must not take the key for an unrestricted one


class KeyRevoked(Event, frozen=True, kw_only=True, tag="key.revoked"):
    urgent: ClassVar[bool] = True

    key_id: str


class KeyUsed(Event, frozen=True, kw_only=True, tag="key.used"):
    """A request was made with it. Seldom recorded: at most about once an hour."""

    key_id: str


class QueueCreated(Event, frozen=True, kw_only=True, tag="queue.created"):
    queue_id: str
    name: str


class QueueRenamed(Event, frozen=True, kw_only=True, tag="queue.renamed"):
    """if_version: counts only if the queue is at this version; so in the other events that have it."""

    queue_id: str
    name: str
    if_version: int | UnsetType = UNSET


class QueueDeleted(Event, frozen=True, kw_only=True, tag="queue.deleted"):
    urgent: ClassVar[bool] = True

    queue_id: str
    if_version: int | UnsetType = UNSET


class ListenerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How a listener wants its deliveries. All optional in a request; these are the defaults.

    max_in_flight: requests under way at once, over all workers, of which each has one at least.
    rate_per_s: None for no limit. timeout_ms: for one attempt.
    max_attempts: None for no limit. max_age_s: what fails so long after its first attempt is parked.
    sealed_headers: added to each request, by name, their values encrypted (broker/sealing.py).
    headers: likewise, in the clear, in events of before that.
    retry_first_ms: the longest wait after the first failure; it doubles with each, up to retry_max_s.
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
    """sealed_secret: the signing secret, encrypted (broker/sealing.py).

    start_offsets: by partition of `messages`, the first offset this listener gets.
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
    """sealed_secret: the new one. former_end_at_ms: those before it sign until then, at the longest."""

    urgent: ClassVar[bool] = True

    listener_id: str
    sealed_secret: str
    former_end_at_ms: int


class ListenerResealed(Event, frozen=True, kw_only=True, tag="listener.resealed"):
    """The same secrets under another sealing key. sealed: by each old sealed text the new one; others stay."""

    listener_id: str
    sealed: dict[str, str]


class ListenerPaused(Event, frozen=True, kw_only=True, tag="listener.paused"):
    """reason: in words for people, such as `the listener answered 410 Gone`."""

    urgent: ClassVar[bool] = True

    listener_id: str
    reason: str


class ListenerResumed(Event, frozen=True, kw_only=True, tag="listener.resumed"):
    listener_id: str


class ListenerRedriven(Event, frozen=True, kw_only=True, tag="listener.redriven"):
    """Its deliveries that retry or are parked are tried now. message_ids: only those of these messages; empty: all."""

    listener_id: str
    message_ids: tuple[str, ...] = ()


class ListenerDeleted(Event, frozen=True, kw_only=True, tag="listener.deleted"):
    urgent: ClassVar[bool] = True

    listener_id: str
    if_version: int | UnsetType = UNSET


class ReplayEvent(Event, frozen=True, kw_only=True):
    """What happens to a replay. Is no event itself."""

    replay_id: str


class ReplayStarted(ReplayEvent, frozen=True, kw_only=True, tag="replay.started"):
    """A stretch of a queue's messages is delivered once more: broker/core/replays.py has the fields."""

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
    """Everything of it in these partitions is settled. It has finished when that is said of all of them."""

    partitions: tuple[int, ...]


class ReplayPaused(ReplayEvent, frozen=True, kw_only=True, tag="replay.paused"):
    """reason: as of ListenerPaused."""

    urgent: ClassVar[bool] = True

    reason: str


class ReplayResumed(ReplayEvent, frozen=True, kw_only=True, tag="replay.resumed"):
    """It goes on where it was."""


class ReplayCancelled(ReplayEvent, frozen=True, kw_only=True, tag="replay.cancelled"):
    """What it has not delivered by now it does not."""

    urgent: ClassVar[bool] = True


class MessagePut(Event, frozen=True, kw_only=True, tag="message.put"):
    """key: the ordering key; messages of one key are delivered one at a time, in order.

    deliver_at_ms: not delivered before; absent when it is delivered at once. A message has one of the two at most.
    """

    message_id: str
    queue_id: str
    name: str
    data: str
    key: str | None = None
    deliver_at_ms: int | UnsetType = UNSET


class PutClaimed(Event, frozen=True, kw_only=True, tag="put.claimed"):
    """A request with an Idempotency-Key is about to put its messages, if this is the first claim of its number.

    digest: hex SHA-256 of organization and key. body_sha256: of what must be the same in a repeat. number: 1, or
    more where it takes over from the claim before. of: the claim_id of number 1, empty in that one itself.
    ids_at_ms, ids_seed, partition: what the messages' ids are made of.
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
    """What the events of `changes` share. Is no event itself. partition, offset: the message's place in `messages`.

    if_version: counts only if the message is at this version (broker/core/changes.py).
    """

    message_id: str
    queue_id: str
    partition: int
    offset: int
    if_version: int | UnsetType = UNSET
    v: int = 2


class MessageUpdated(MessageChange, frozen=True, kw_only=True, tag="message.updated"):
    """What is sent from now on has this data. One after the message was deleted changes nothing."""

    data: str


class MessageDeleted(MessageChange, frozen=True, kw_only=True, tag="message.deleted"):
    """What has not been sent is cancelled, for good."""

    urgent: ClassVar[bool] = True


class ChangeApplied(Event, frozen=True, kw_only=True, tag="change.applied"):
    """The owner of the partition honours a change from now on. Kept in `deliveries`.

    change_offset: the change's, in `changes`. applied: False when it does not count (broker/core/changes.py).
    listeners: (id, state) as it was then: `delivered`, `retrying`, `parked`, `pending`, or `unknown`.
    """

    queue_id: str
    message_id: str
    partition: int
    change_offset: int
    applied: bool
    listeners: tuple[tuple[str, str], ...]


class PartitionTakenOver(Event, frozen=True, kw_only=True, tag="partition.taken_over"):
    """A worker owns a partition, and may send from now on. Kept in `deliveries`.

    While nothing follows it, that worker is there, or has ended without a word.
    """

    partition: int


class PartitionHandedOver(Event, frozen=True, kw_only=True, tag="partition.handed_over"):
    """Its owner gave a partition up with everything written that it knew. Kept in `deliveries`.

    in_doubt_below: an owner before it did not; what was open below this offset of `messages` may have been sent.
    changes_below: it has honoured all changes below this offset of `changes`; unset by an older program.
    """

    partition: int
    in_doubt_below: int
    changes_below: int | UnsetType = UNSET


class LogDamaged(Event, frozen=True, kw_only=True, tag="log.damaged"):
    """Offsets that no copy of the log gives as they were written. Of two that tell of the same, the later counts not.

    topic: without the installation's prefix. first_offset, last_offset: both included.
    """

    topic: str
    partition: int
    first_offset: int
    last_offset: int


class LogMended(Event, frozen=True, kw_only=True, tag="log.mended"):
    """Offsets that were damaged can be read again, or nobody waits for them any more (given_up)."""

    topic: str
    partition: int
    first_offset: int
    last_offset: int
    given_up: bool


class DeliveriesSettled(Event, frozen=True, kw_only=True, tag="deliveries.settled"):
    """First attempts that succeeded, gathered per stream and checkpoint.

    partition: of `messages`; rows: (offset, at_ms, status, took_ms), each a delivery taken at attempt 1.
    """

    listener_id: str
    queue_id: str
    partition: int
    rows: tuple[tuple[int, int, int, int], ...]


class DeliveryAttempted(Event, frozen=True, kw_only=True, tag="delivery.attempted"):
    """One attempt that failed, or that succeeded after others had failed.

    offset: the message's, in its partition of `messages`. number: 1 for the first. status: None when there was no
    answer; error: why not, in a word (`refused`, `timeout`, …). next_at_ms: when the next attempt is due, if any is.
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


UNDECODABLE: Final = "undecodable"  # the error of a delivery whose message only a newer program can read: no payload
DAMAGED: Final = "damaged"  # the error of a delivery whose message can't be read: no payload
BARE: Final = (UNDECODABLE, DAMAGED)  # errors of records without a payload


class KeptDelivery(Event, frozen=True, kw_only=True):
    """What the events of `outstanding` share: the delivery, with its message. Is no event itself.

    number: attempts made. status, error: of the last one. redrives: how many of its listener's it has seen. forgiven:
    attempts before the last redrive, which no longer count. since_ms: the last redrive, or the time before which it was
    not to be delivered, 0 for neither. first_at_ms: its first attempt, 0 before it. Its age counts from the later.
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
        """The message as it was put, or as it was changed before it came here; not of one that is UNDECODABLE."""
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
    """It is to be tried later than its stream can wait, from `outstanding`, the next time at next_at_ms.

    number: 0 when that is its first attempt: its message is not to be delivered before, waits for another of its
    ordering key, or is to be kept no longer in the log.
    """

    next_at_ms: int


class DeliveryParked(KeptDelivery, frozen=True, kw_only=True, tag="delivery.parked"):
    """No attempt is left; it stays in `outstanding` until it is redriven or cancelled."""


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

# (wire name, version) -> what makes it the next version. Old versions are read for ever and never written.
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
    # send_headers came: until then the listener's headers were sent to any notify_url
    ("replay.started", 2): lambda fields: fields | {"v": 3},
}


def wire_name(kind: type[Event]) -> str:
    """The type as it stands in the log, such as `queue.created`."""
    return str(kind.__struct_config__.tag)


CLASSES: Final[Mapping[str, type[Event]]] = {wire_name(kind): kind for kind in get_args(AnyEvent)}


def version_of(kind: type[Event]) -> int:
    """The version this program writes: the default of the class's field `v`."""
    return next(int(field.default) for field in msgspec.structs.fields(kind) if field.name == "v")


VERSIONS: Final[Mapping[str, int]] = {name: version_of(kind) for name, kind in CLASSES.items()}


class MessageTexts(msgspec.Struct, frozen=True, tag_field="type", tag="message.put"):
    """What a listener gets of a message.put: name and data still JSON texts, quotes and all."""

    v: int
    name: msgspec.Raw
    data: msgspec.Raw
    key: str | None = None
    deliver_at_ms: int | UnsetType = UNSET


_NAMES: Final = {kind: name for name, kind in CLASSES.items()}
_UNDECODED: Final = (ValueError, RecursionError)  # no UTF-8 is a ValueError, too; far too deep the other

_encoder = msgspec.json.Encoder()
_any_event = msgspec.json.Decoder(AnyEvent)
_message_put = msgspec.json.Decoder(MessagePut)
_message_texts = msgspec.json.Decoder(MessageTexts)


def encode(event: Event) -> bytes:
    """The event as it is stored: one JSON object, `type` first."""
    return _encoder.encode(event)


def decode(value: bytes) -> Event:
    """The event of a stored record, brought up to today's version.

    Raises UnknownEvent for a type or version that only a newer program knows, and for what is no event at all.
    """
    try:
        event: Event = _any_event.decode(value)
    except _UNDECODED:
        return _decode_other(value)
    # Where `v` is missing the class has filled it in.
    if event.v == VERSIONS[_NAMES[type(event)]] and b'"v":' in value:
        return event
    return _decode_other(value)


def _decode_other(value: bytes) -> Event:
    """decode() for what is not as this program writes it: an old version, or no event."""
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
    except (KeyError, TypeError, ValueError) as error:  # ValueError: orjson's and msgspec's errors derive from it
        raise UnknownEvent(f"not an event this program knows: {error}") from error


def decode_message(value: bytes) -> MessagePut:
    """decode() for the hot path: a record of the `messages` topic."""
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
    """What decode_message() gives, without taking the texts apart that are only put together again (UnknownEvent)."""
    try:
        texts = _message_texts.decode(value)
    except _UNDECODED:
        texts = None
    if texts is not None and texts.v == VERSIONS["message.put"]:
        return texts
    return _message_texts.decode(encode(decode_message(value)))
