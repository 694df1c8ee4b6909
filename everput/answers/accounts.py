"""The shapes of the answers about accounts, sessions, organizations, members and API keys."""

from __future__ import annotations

from msgspec import UNSET, UnsetType, field

from everput.answers.base import Answer, Count, Id, Links, Named, PageLinks, Time


class AccountFields(Answer):
    """An account: a person who can sign in.

    id: The account's ID.
    email: The e-mail address to sign in with.
    """

    id: Id
    email: str


class AccountAnswer(Answer):
    """An account.

    account: The account.
    """

    account: AccountFields


class DeletedAccountAnswer(Answer):
    """A deleted account.

    account: The account as it was.
    without_members: The organizations that now have no member who can sign in.
    """

    account: AccountFields
    without_members: list[Named]


class MemberFields(AccountFields):
    """A member of an organization.

    blocked: Whether the operator has blocked the account, so that it can't sign in.
    """

    blocked: bool


class MemberAnswer(Answer):
    """A member.

    member: The member.
    """

    member: MemberFields


class MembersAnswer(Answer):
    """The members of an organization.

    members: The members, in the order in which they joined.
    """

    members: list[MemberFields]


class SessionFields(Answer):
    """A session of a signed-in account.

    id: The session's ID.
    expires_at: The time at which the session ends.
    """

    id: Id
    expires_at: Time


class NewSessionFields(SessionFields):
    """A new session with its token.

    token: The token for the header `Authorization: Bearer evs_…`. It is shown only once.
    """

    token: str


class NewSessionAnswer(Answer):
    """A new session and its account.

    session: The session.
    account: The account that signed in.
    """

    session: NewSessionFields
    account: AccountFields


class SessionAnswer(Answer):
    """The current session and its account.

    session: The session.
    account: The account that is signed in.
    """

    session: SessionFields
    account: AccountFields


class EndedSessionAnswer(Answer):
    """The session of the request that ended sessions.

    session: The session.
    """

    session: SessionFields


class OrganizationFields(Named):
    """An organization, which owns queues, listeners, messages and keys.

    stored_bytes: The bytes that the organization stores, as far as the answering process knows.
    stored_bytes_max: The most bytes that the organization may store: what the other organizations of the account that
        created it leave of the account's limit. null for no limit.
    log_damaged: Whether a part of the installation's log can't be read, of this or another organization. Missing from
        an older server.
    """

    stored_bytes: Count
    stored_bytes_max: Count | None
    log_damaged: bool | UnsetType = UNSET


class OrganizationAnswer(Answer):
    """An organization.

    organization: The organization.
    """

    organization: OrganizationFields


class OrganizationsAnswer(Answer):
    """The organizations of an account, or the organization of a key.

    organizations: The organizations.
    """

    organizations: list[OrganizationFields]


class KeyFields(Named):
    """An API key, without its secret.

    prefix: The first characters of the key, by which to recognize it.
    scopes: The scopes of the key: what it may do.
    queues: The IDs of the queues that the key is restricted to; null for all.
    expires_at: The time from which the key is refused; null for never.
    created_at: The time at which the key was created.
    last_used_at: The time at which the key was last used, up to an hour behind; null if never.
    """

    prefix: str
    scopes: list[str]
    queues: list[Id] | None
    expires_at: Time | None
    created_at: Time
    last_used_at: Time | None


class KeyAnswer(Answer):
    """An API key with its links.

    key: The key.
    links: Links of the key.
    """

    key: KeyFields
    links: Links = field(name="_links")


class NewKeyFields(KeyFields):
    """A new API key with its secret.

    secret: The key itself, for the header `X-API-KEY`. It is shown only once.
    """

    secret: str


class NewKeyAnswer(Answer):
    """A new API key with its links.

    key: The key.
    links: Links of the key.
    """

    key: NewKeyFields
    links: Links = field(name="_links")


class KeysAnswer(Answer):
    """A page of the organization's API keys.

    keys: The keys, oldest first.
    links: Links to this page and the next.
    """

    keys: list[KeyFields]
    links: PageLinks = field(name="_links")
