"""The events of the topic `control`: accounts, organizations, keys, queues, listeners, replays, damage.

For: their fields and wire names. Not for: what an event changes (directory.py)."""

from __future__ import annotations

from typing import ClassVar

import msgspec
from msgspec import UNSET, UnsetType

from broker.core.alert_events import AlertCleared, AlertRaised, AlertThresholds, AlertTold, QueueAlertsSet
from broker.core.event import Event


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
    alerts: from when on Everput alerts about the listener.
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
    alerts: AlertThresholds | UnsetType = UNSET


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
    | QueueAlertsSet
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
    | AlertRaised
    | AlertCleared
    | AlertTold
)
