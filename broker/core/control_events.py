"""The events of the topic `control`: accounts, organizations, API keys, queues, listeners, replays, damage.

For: their fields and wire names. Not for: what an event changes (directory.py).
"""

from __future__ import annotations

from typing import ClassVar

import msgspec
from msgspec import UNSET, UnsetType

from broker.core.alert_events import AlertCleared, AlertRaised, AlertThresholds, AlertTold, QueueAlertsSet
from broker.core.event import Event


class OrganizationCreated(Event, frozen=True, kw_only=True, tag="organization.created"):
    name: str


class AccountEvent(Event, frozen=True, kw_only=True):
    """The base class of account events. No event has this class itself."""

    urgent: ClassVar[bool] = True

    account_id: str


class AccountCreated(AccountEvent, frozen=True, kw_only=True, tag="account.created"):
    """The event that an account was created.

    The e-mail address is stored as it was given. No event holds the password: `password_hash` is its argon2id hash in
    PHC form.
    """

    urgent: ClassVar[bool] = False

    email: str
    password_hash: str


class AccountPasswordChanged(AccountEvent, frozen=True, kw_only=True, tag="account.password_changed"):
    """The event that an account's password was changed. All other sessions of the account end.

    `session_id` is the session in which it was changed.
    """

    session_id: str
    password_hash: str


class AccountPasswordReset(AccountEvent, frozen=True, kw_only=True, tag="account.password_reset"):
    """The event that the operator gave an account a one-time password. All its sessions end.

    The password opens one session, and only before `expires_at_ms`.
    """

    password_hash: str
    expires_at_ms: int


class AccountSessionsEnded(AccountEvent, frozen=True, kw_only=True, tag="account.sessions_ended"):
    """The event that an account's sessions ended.

    The session with the id `kept_session_id` continues; the field is empty if all sessions ended.
    """

    kept_session_id: str = ""


class AccountBlocked(AccountEvent, frozen=True, kw_only=True, tag="account.blocked"):
    """The event that an account was blocked.

    Its sessions end and no new session can begin, but its memberships and API keys stay.
    """


class AccountUnblocked(AccountEvent, frozen=True, kw_only=True, tag="account.unblocked"):
    """The event that a blocked account may sign in again."""


class AccountDeleted(AccountEvent, frozen=True, kw_only=True, tag="account.deleted"):
    """The event that an account was deleted. Its sessions and memberships end, and its e-mail address becomes free.

    Without `even_if_last`, it counts only if each of the account's organizations has another member who can sign in.
    """

    even_if_last: bool = False


class SessionCreated(Event, frozen=True, kw_only=True, tag="session.created"):
    """The event that a session began.

    No event holds the session's token: `token_sha256` is its SHA-256 in hex.
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
    """The event that an account became a member of an organization."""

    account_id: str


class OrganizationLeft(Event, frozen=True, kw_only=True, tag="organization.left"):
    """The event that an account left an organization, or was removed from it.

    Without `even_if_last`, it counts only if the organization has another member who is not blocked.
    """

    urgent: ClassVar[bool] = True

    account_id: str
    even_if_last: bool = False


class InvitationEvent(Event, frozen=True, kw_only=True):
    """The base class of invitation events. No event has this class itself."""

    invitation_id: str


class InvitationCreated(InvitationEvent, frozen=True, kw_only=True, tag="invitation.created"):
    """The event that a person was invited to an organization.

    No event holds the invitation's token: `token_sha256` is its SHA-256 in hex. `email` is the address that was
    invited. The token is invalid from `expires_at_ms` on.
    """

    email: str
    token_sha256: str
    expires_at_ms: int


class InvitationRevoked(InvitationEvent, frozen=True, kw_only=True, tag="invitation.revoked"):
    """The event that an invitation was revoked. Nobody can accept it any more."""

    urgent: ClassVar[bool] = True


class InvitationAccepted(InvitationEvent, frozen=True, kw_only=True, tag="invitation.accepted"):
    """The event that an account accepted an invitation and became a member of the organization.

    It counts only if the invitation is open: not accepted or revoked before, and not expired.
    """

    account_id: str


class VolumeRecorded(Event, frozen=True, kw_only=True, tag="volume.recorded"):
    """The event of how many bytes of messages one process has stored for an organization since its previous event of
    this kind.
    """

    urgent: ClassVar[bool] = True

    bytes: int


class KeyCreated(Event, frozen=True, kw_only=True, tag="key.created"):
    """The event that an API key was created.

    No event holds the key: `secret_sha256` is its SHA-256 in hex, and `prefix` its first characters. The key is
    restricted to the queues in `queue_ids`; None means all queues. It is invalid from `expires_at_ms` on; None means
    that it does not expire.
    """

    key_id: str
    name: str
    prefix: str
    secret_sha256: str
    scopes: tuple[str, ...]
    queue_ids: tuple[str, ...] | None = None
    expires_at_ms: int | None = None
    # The version was raised so that an older program does not read a restricted API key as an unrestricted one.
    v: int = 2


class KeyRevoked(Event, frozen=True, kw_only=True, tag="key.revoked"):
    urgent: ClassVar[bool] = True

    key_id: str


class KeyUsed(Event, frozen=True, kw_only=True, tag="key.used"):
    """The event that an API key was used. It is recorded at most about once an hour for each key."""

    key_id: str


class QueueCreated(Event, frozen=True, kw_only=True, tag="queue.created"):
    queue_id: str
    name: str


class QueueRenamed(Event, frozen=True, kw_only=True, tag="queue.renamed"):
    """The event that a queue was renamed.

    With `if_version`, the event counts only if the queue still has this version.
    """

    queue_id: str
    name: str
    if_version: int | UnsetType = UNSET


class QueueDeleted(Event, frozen=True, kw_only=True, tag="queue.deleted"):
    urgent: ClassVar[bool] = True

    queue_id: str
    if_version: int | UnsetType = UNSET


class ListenerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The settings for deliveries to a listener.

    A request may leave out each setting. None means no limit. `sealed_headers` holds encrypted header values. In old
    events, `headers` holds unencrypted header values.
    """

    max_in_flight: int = 64  # over all workers
    rate_per_s: float | None = None
    timeout_ms: int = 15_000  # for one attempt
    max_attempts: int | None = None
    max_age_s: int = 72 * 3600  # then a failing delivery is parked
    headers: dict[str, str] = {}
    sealed_headers: dict[str, str] = {}
    retry_first_ms: int = 1_000  # longest first wait, doubles each time
    retry_max_s: int = 3_600  # longest wait after any failure
    alerts: AlertThresholds | UnsetType = UNSET  # when Everput alerts about the listener
    format: str | UnsetType = UNSET  # a name in formats.py; if it is not set, bodies are Everput's own JSON


class ListenerCreated(Event, frozen=True, kw_only=True, tag="listener.created"):
    """The event that a listener was created.

    `sealed_secret` is its signing secret, encrypted with the sealing key. The listener gets the messages from
    `start_offsets` on, which has an offset for each partition of `messages`.
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
    """The event that a listener was changed. It holds all values, changed or not."""

    listener_id: str
    name: str
    notify_url: str
    liveness_url: str
    settings: ListenerSettings
    if_version: int | UnsetType = UNSET
    v: int = 2


class ListenerSecretRotated(Event, frozen=True, kw_only=True, tag="listener.secret_rotated"):
    """The event that a listener got a new signing secret.

    `sealed_secret` is the new secret, encrypted. Requests are also signed with former secrets until `former_end_at_ms`
    at the latest.
    """

    urgent: ClassVar[bool] = True

    listener_id: str
    sealed_secret: str
    former_end_at_ms: int


class ListenerResealed(Event, frozen=True, kw_only=True, tag="listener.resealed"):
    """The event that a listener's secrets were encrypted with another sealing key.

    `sealed` maps each old encrypted text to the new one. Texts that it does not name stay unchanged.
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
    """The event that a listener's retrying and parked deliveries are attempted again now.

    With `message_ids`, it concerns only the deliveries of these messages; without, all of them.
    """

    listener_id: str
    message_ids: tuple[str, ...] = ()


class ListenerDeleted(Event, frozen=True, kw_only=True, tag="listener.deleted"):
    urgent: ClassVar[bool] = True

    listener_id: str
    if_version: int | UnsetType = UNSET


class ReplayEvent(Event, frozen=True, kw_only=True):
    """The base class of replay events. No event has this class itself."""

    replay_id: str


class ReplayStarted(ReplayEvent, frozen=True, kw_only=True, tag="replay.started"):
    """The event that a replay began: a range of a queue's messages is delivered again."""

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
    """The event that a replay has settled every delivery in these partitions.

    The replay has finished when its events have named all partitions.
    """

    partitions: tuple[int, ...]


class ReplayPaused(ReplayEvent, frozen=True, kw_only=True, tag="replay.paused"):
    """The event that a replay was paused. `reason` is a text for people."""

    urgent: ClassVar[bool] = True

    reason: str


class ReplayResumed(ReplayEvent, frozen=True, kw_only=True, tag="replay.resumed"):
    """The event that a paused replay continues where it stopped."""


class ReplayCancelled(ReplayEvent, frozen=True, kw_only=True, tag="replay.cancelled"):
    """The event that a replay was cancelled. The rest of its messages are not delivered."""

    urgent: ClassVar[bool] = True


class LogDamaged(Event, frozen=True, kw_only=True, tag="log.damaged"):
    """The event that a range of the log is damaged: no replica still has it as it was written.

    The topic is named without the installation's prefix. `first_offset` and `last_offset` both belong to the range. A
    repeated event for the same range changes nothing.
    """

    topic: str
    partition: int
    first_offset: int
    last_offset: int


class LogMended(Event, frozen=True, kw_only=True, tag="log.mended"):
    """The event that a damaged range of the log can be read again, or that an operator has given it up (`given_up`)."""

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
