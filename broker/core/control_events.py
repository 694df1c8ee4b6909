"""The events of the topic `control`: queues, listeners, replays, damage, and the list of all its events.

For: their fields and wire names. Not for: events of accounts and organizations (account_events.py), what an event
changes (directory.py).
"""

from __future__ import annotations

from typing import ClassVar

import msgspec
from msgspec import UNSET, UnsetType

from broker.core.account_events import (
    AccountBlocked,
    AccountCreated,
    AccountDeleted,
    AccountIdentityLinked,
    AccountIdentityUnlinked,
    AccountPasswordChanged,
    AccountPasswordReset,
    AccountSessionsEnded,
    AccountUnblocked,
    InvitationAccepted,
    InvitationCreated,
    InvitationRevoked,
    KeyCreated,
    KeyRevoked,
    KeyUsed,
    MemberRoleChanged,
    OrganizationCreated,
    OrganizationJoined,
    OrganizationLeft,
    SessionCreated,
    SessionEnded,
    VolumeRecorded,
)
from broker.core.alert_events import AlertCleared, AlertRaised, AlertThresholds, AlertTold, QueueAlertsSet
from broker.core.event import Event


class QueueCreated(Event, frozen=True, kw_only=True, tag="queue.created"):
    queue_id: str
    name: str


class QueueRenamed(Event, frozen=True, kw_only=True, tag="queue.renamed"):
    """The event that a queue was renamed.

    If `if_version` is set, the event has an effect only if the queue still has this version.
    """

    queue_id: str
    name: str
    if_version: int | UnsetType = UNSET


class QueueDeleted(Event, frozen=True, kw_only=True, tag="queue.deleted"):
    urgent: ClassVar[bool] = True

    queue_id: str
    if_version: int | UnsetType = UNSET


class BatchSetting(msgspec.Struct, frozen=True, kw_only=True):
    """The settings of a listener that gets several messages in one request (a batch).

    A batch is sent when it has `max_messages` messages or `max_bytes` bytes, or when its first message has waited for
    `wait_ms`. If no request to the listener is in flight, a batch is sent earlier in two cases: the memory for the
    listener's deliveries is full, or a delivery waits for an earlier one with the same ordering key. The listener's
    limits apply in all cases. A message that is larger than `max_bytes` is sent alone.
    """

    max_messages: int = 100
    max_bytes: int = 1 << 20  # the most bytes of a request's body; a larger message is sent alone
    wait_ms: int = 100


class ListenerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The settings for deliveries to a listener.

    A setting that a request omits gets its default in a new listener, and keeps its value in a changed one. None means
    no limit. `sealed_headers` holds encrypted header values. In old events, `headers` holds unencrypted header values.
    """

    max_in_flight: int = 64  # over all workers
    rate_per_s: float | None = None
    timeout_ms: int = 15_000  # time limit of one attempt
    max_attempts: int | None = None
    # If an attempt fails this long (or longer) after the first attempt or the last redrive, the delivery is parked.
    max_age_s: int = 72 * 3600
    headers: dict[str, str] = {}
    sealed_headers: dict[str, str] = {}
    # The wait before a retry is random. Before the first retry, it is at most this long.
    # The longest possible wait before a retry doubles with each retry, up to `retry_max_s`.
    # A Retry-After in the listener's answer can make the wait before a retry longer, but not longer than `retry_max_s`.
    retry_first_ms: int = 1_000
    retry_max_s: int = 3_600  # the longest pause before any retry
    alerts: AlertThresholds | UnsetType = UNSET  # when Everput alerts about the listener
    # The name of the format of request bodies (formats.py). If it is not set, requests carry Everput's own JSON.
    format: str | UnsetType = UNSET
    batch: BatchSetting | UnsetType = UNSET  # if `batch` is not set, each request carries one message


class ListenerCreated(Event, frozen=True, kw_only=True, tag="listener.created"):
    """The event that a listener was created.

    `sealed_secret` is its signing secret, encrypted with the sealing key. `start_offsets` has, for each partition of
    `messages`, the offset of the first message that the listener may get.
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
    """The event that a listener was changed. It holds the name, the URLs and all settings, changed or not."""

    listener_id: str
    name: str
    notify_url: str
    liveness_url: str
    settings: ListenerSettings
    if_version: int | UnsetType = UNSET
    v: int = 2


class ListenerSecretRotated(Event, frozen=True, kw_only=True, tag="listener.secret_rotated"):
    """The event which says that a listener got a new signing secret.

    `sealed_secret` is the new secret, encrypted. Requests are also signed with the listener's former secrets, at the
    latest until `former_end_at_ms`.
    """

    urgent: ClassVar[bool] = True

    listener_id: str
    sealed_secret: str
    former_end_at_ms: int


class ListenerResealed(Event, frozen=True, kw_only=True, tag="listener.resealed"):
    """The event that a listener's signing secrets and header values were encrypted with another sealing key.

    `sealed` maps each old encrypted text to the new one. An encrypted text that is not in `sealed` stays unchanged.
    """

    listener_id: str
    sealed: dict[str, str]


class ListenerPaused(Event, frozen=True, kw_only=True, tag="listener.paused"):
    """The event that a listener was paused. `reason` is a text for people, such as `the listener answered 410 Gone`."""

    urgent: ClassVar[bool] = True

    listener_id: str
    reason: str


class ListenerResumed(Event, frozen=True, kw_only=True, tag="listener.resumed"):
    listener_id: str


class ListenerRedriven(Event, frozen=True, kw_only=True, tag="listener.redriven"):
    """The event of a redrive: a listener's retrying and parked deliveries are due now, and get all their attempts and
    time again.

    With `message_ids`, the redrive concerns only the deliveries of these messages. Without `message_ids`, it concerns
    all retrying and parked deliveries of the listener. A retrying delivery that is still in a worker's memory is only
    attempted earlier: its earlier attempts and its age still count.
    """

    listener_id: str
    message_ids: tuple[str, ...] = ()


class ListenerRedrivesCancelled(Event, frozen=True, kw_only=True, tag="listener.redrives_cancelled"):
    """The event which says that all earlier redrives of a listener (the events `listener.redriven`) were cancelled.

    If a redriven delivery was not attempted since the redrive, it is parked or retrying again, as before the redrive.
    """

    urgent: ClassVar[bool] = True

    listener_id: str


class ListenerDeleted(Event, frozen=True, kw_only=True, tag="listener.deleted"):
    urgent: ClassVar[bool] = True

    listener_id: str
    if_version: int | UnsetType = UNSET


class ReplayEvent(Event, frozen=True, kw_only=True):
    """The base class of replay events. No event has this class itself."""

    replay_id: str


class ReplayStarted(ReplayEvent, frozen=True, kw_only=True, tag="replay.started"):
    """The event which says that a replay began. A replay delivers a range of a queue's messages again."""

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
    """The event which says that a replay has finished in these partitions: every delivery there is delivered, parked or
    cancelled. When events of this kind have named all partitions, the whole replay has finished.
    """

    partitions: tuple[int, ...]


class ReplayPaused(ReplayEvent, frozen=True, kw_only=True, tag="replay.paused"):
    """The event that a replay was paused. `reason` is a text for people."""

    urgent: ClassVar[bool] = True

    reason: str


class ReplayResumed(ReplayEvent, frozen=True, kw_only=True, tag="replay.resumed"):
    """The event which says that a paused replay continues where it stopped."""


class ReplayCancelled(ReplayEvent, frozen=True, kw_only=True, tag="replay.cancelled"):
    """The event that a replay was cancelled. The rest of its messages are not delivered."""

    urgent: ClassVar[bool] = True


class LogDamaged(Event, frozen=True, kw_only=True, tag="log.damaged"):
    """The event which says that a range of the log is damaged: some of its records are missing, or no replica has an
    intact copy of them. `first_offset` and `last_offset` both belong to the range. The event has no effect if this
    range is already recorded as damaged, or if it was given up as lost.

    `topic` is the name of the topic without the prefix of the installation's topics.
    """

    topic: str
    partition: int
    first_offset: int
    last_offset: int


class LogMended(Event, frozen=True, kw_only=True, tag="log.mended"):
    """The event which says that a damaged range of the log can be read again, or that it was given up (`given_up`).

    `given_up` is True if the operator gave up the range as lost, or if retention has deleted its records.
    """

    topic: str
    partition: int
    first_offset: int
    last_offset: int
    given_up: bool


ControlEvent = (
    AccountCreated
    | AccountPasswordChanged
    | AccountPasswordReset
    | AccountIdentityLinked
    | AccountIdentityUnlinked
    | AccountSessionsEnded
    | AccountBlocked
    | AccountUnblocked
    | AccountDeleted
    | SessionCreated
    | SessionEnded
    | OrganizationCreated
    | OrganizationJoined
    | OrganizationLeft
    | MemberRoleChanged
    | InvitationCreated
    | InvitationRevoked
    | InvitationAccepted
    | VolumeRecorded
    | KeyCreated
    | KeyRevoked
    | KeyUsed
    | QueueCreated
    | QueueRenamed
    | QueueAlertsSet
    | QueueDeleted
    | ListenerCreated
    | ListenerUpdated
    | ListenerSecretRotated
    | ListenerResealed
    | ListenerPaused
    | ListenerResumed
    | ListenerRedriven
    | ListenerRedrivesCancelled
    | ListenerDeleted
    | ReplayStarted
    | ReplayAdvanced
    | ReplayPaused
    | ReplayResumed
    | ReplayCancelled
    | LogDamaged
    | LogMended
    | AlertRaised
    | AlertCleared
    | AlertTold
)
