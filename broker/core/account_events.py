"""The events of accounts, organizations, invitations and API keys in the topic `control`.

For: their fields and wire names. Not for: what an event changes (accounts.py, organizations.py, api_keys.py).
"""

from __future__ import annotations

from typing import ClassVar

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
    PHC form. The hash is empty if the account was created at a sign-in with an OpenID Connect provider.
    """

    urgent: ClassVar[bool] = False

    email: str
    password_hash: str


class AccountPasswordChanged(AccountEvent, frozen=True, kw_only=True, tag="account.password_changed"):
    """The event that an account's password was changed. All other sessions of the account end.

    `session_id` is the session in which the password was changed. If this session ended before, the event has no
    effect.
    """

    session_id: str
    password_hash: str


class AccountPasswordReset(AccountEvent, frozen=True, kw_only=True, tag="account.password_reset"):
    """The event which says that an account got a one-time password. All sessions of the account end. The password can
    start only one session, before `expires_at_ms`. The operator can create a one-time password with a command. A reset
    of the password by e-mail also records this event.
    """

    password_hash: str
    expires_at_ms: int


class AccountIdentityLinked(AccountEvent, frozen=True, kw_only=True, tag="account.identity_linked"):
    """The event which says that a person may now sign in to an account with an OpenID Connect provider.

    `subject` is the person's id at the provider `issuer`. The account's sessions end and its password stops working,
    because somebody else may have registered the e-mail address. The event has no effect if the account is linked to a
    person already, or if the person is linked to an account already.
    """

    issuer: str
    subject: str


class AccountIdentityUnlinked(AccountEvent, frozen=True, kw_only=True, tag="account.identity_unlinked"):
    """The event which says that a person may no longer sign in to an account with an OpenID Connect provider. The other
    sessions of the account end.

    `session_id` is the session in which the provider was unlinked. The event has no effect if this session ended
    before, if the account is linked to no provider, or if it has no password except a temporary one.
    """

    session_id: str


class AccountSessionsEnded(AccountEvent, frozen=True, kw_only=True, tag="account.sessions_ended"):
    """The event which says that an account's sessions ended.

    The session with the id `kept_session_id` continues; the field is empty if all sessions ended.
    """

    kept_session_id: str = ""


class AccountBlocked(AccountEvent, frozen=True, kw_only=True, tag="account.blocked"):
    """The event that an account was blocked.

    The account's sessions end, and no new session can begin until the account is unblocked. Open invitations that the
    account created also end. The account's memberships stay, and so do the API keys that it created.
    """


class AccountUnblocked(AccountEvent, frozen=True, kw_only=True, tag="account.unblocked"):
    """The event which says that a blocked account may sign in again."""


class AccountDeleted(AccountEvent, frozen=True, kw_only=True, tag="account.deleted"):
    """The event that an account was deleted. Its sessions and memberships end, and its e-mail address becomes free.

    Without `even_if_last`, the event has no effect if the account is the only owner of an organization, or if all other
    owners are blocked.
    """

    even_if_last: bool = False


class SessionCreated(Event, frozen=True, kw_only=True, tag="session.created"):
    """The event which says that a session began.

    No event holds the session's token: `token_sha256` is its SHA-256 in hex.
    """

    urgent: ClassVar[bool] = True

    session_id: str
    account_id: str
    token_sha256: str
    expires_at_ms: int
    by_identity: bool = False  # True if the person signed in with an OpenID Connect provider, not with a password


class SessionEnded(Event, frozen=True, kw_only=True, tag="session.ended"):
    urgent: ClassVar[bool] = True

    session_id: str


class OrganizationJoined(Event, frozen=True, kw_only=True, tag="organization.joined"):
    """The event which says that an account became a member of an organization without an invitation, with the role
    `owner`. For example, the account created the organization.
    """

    account_id: str


class OrganizationLeft(Event, frozen=True, kw_only=True, tag="organization.left"):
    """The event which says that an account left an organization, or was removed from it.

    Without `even_if_last`, an owner can't leave if no other owner can sign in: there is none, or all are blocked. The
    event then has no effect.
    """

    urgent: ClassVar[bool] = True

    account_id: str
    even_if_last: bool = False


class MemberRoleChanged(Event, frozen=True, kw_only=True, tag="member.role_changed"):
    """The event which says that a member of an organization got another role.

    The event has no effect if it was caused by an account that is no owner any more. It also has no effect if the
    member is the only owner of the organization, or if all other owners are blocked.
    """

    urgent: ClassVar[bool] = True

    account_id: str
    role: str  # a name in roles.py


class InvitationEvent(Event, frozen=True, kw_only=True):
    """The base class of invitation events. No event has this class itself."""

    invitation_id: str


class InvitationCreated(InvitationEvent, frozen=True, kw_only=True, tag="invitation.created"):
    """The event that a person was invited to an organization.

    No event holds the invitation's token: `token_sha256` is its SHA-256 in hex. The token is invalid from
    `expires_at_ms` on. `email` is the address that was invited, but any account can accept the invitation with the
    token. The account that accepts the invitation gets the role `role`, one of the names in roles.py.
    """

    email: str
    token_sha256: str
    expires_at_ms: int
    role: str = "owner"
    # Older programs would make every invited person an owner. They refuse this event, because its version is 2.
    v: int = 2


class InvitationRevoked(InvitationEvent, frozen=True, kw_only=True, tag="invitation.revoked"):
    """The event that an invitation was revoked. Nobody can accept this invitation any more."""

    urgent: ClassVar[bool] = True


class InvitationAccepted(InvitationEvent, frozen=True, kw_only=True, tag="invitation.accepted"):
    """The event which says that an account accepted an invitation and became a member of the organization.

    The event has no effect if the account is a member already. It also has no effect if the invitation is not open any
    more: for example, it was revoked or has expired.
    """

    account_id: str


class VolumeRecorded(Event, frozen=True, kw_only=True, tag="volume.recorded"):
    """The event by which a process reports how many bytes it has stored for an organization. `bytes` counts from the
    process's previous event of this kind about this organization. It can include bytes that were not stored in the end.
    """

    urgent: ClassVar[bool] = True

    bytes: int


class KeyCreated(Event, frozen=True, kw_only=True, tag="key.created"):
    """The event that an API key was created.

    No event holds the key: `secret_sha256` is its SHA-256 in hex, and `prefix` its first characters. The key is
    restricted to the queues in `queue_ids`; None means all queues. The key is invalid from `expires_at_ms` on; None
    means that it does not expire.
    """

    key_id: str
    name: str
    prefix: str
    secret_sha256: str
    scopes: tuple[str, ...]
    queue_ids: tuple[str, ...] | None = None
    expires_at_ms: int | None = None
    # Older programs would permit all queues to every API key. They refuse this event, because its version is 2.
    v: int = 2


class KeyRevoked(Event, frozen=True, kw_only=True, tag="key.revoked"):
    urgent: ClassVar[bool] = True

    key_id: str


class KeyUsed(Event, frozen=True, kw_only=True, tag="key.used"):
    """The event that an API key was used. For each key, at most about two uses an hour are recorded."""

    key_id: str
