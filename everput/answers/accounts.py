"""The shapes of the answers about accounts, sessions, organizations, members and API keys."""

from __future__ import annotations

from msgspec import UNSET, UnsetType, field

from everput.answers.base import Answer, Count, Id, Links, Named, PageLinks, Time


class IdentityFields(Answer):
    """The OpenID Connect provider with which a person may sign in."""

    issuer: str
    """The URL that names the provider."""
    has_password: bool
    """Whether the account also has a password. Without a password, the account can't be unlinked from the provider."""


class AccountFields(Answer):
    """A person's account."""

    id: Id
    """The account's ID."""
    email: str
    """The e-mail address to sign in with."""


class OwnAccountFields(AccountFields):
    """The account of the person who sends the request."""

    identity: IdentityFields | UnsetType = UNSET
    """The OpenID Connect provider that the account is linked with; absent if there is none."""


class AccountAnswer(Answer):
    """An account."""

    account: OwnAccountFields
    """The account."""


class ResetAskedAnswer(Answer):
    """The answer to a request for a password reset. The answer is the same whether the account exists or not."""

    sent_if_known: bool
    """True. A mail is sent if an account has this e-mail address and is not blocked."""


class SignInUrlAnswer(Answer):
    """The answer with the URL of the page at the OpenID Connect provider where the person signs in."""

    url: str
    """The URL to send the browser to. The person must sign in there within ten minutes."""


class DeletedAccountAnswer(Answer):
    """A deleted account."""

    account: OwnAccountFields
    """The account as it was."""
    without_members: list[Named]
    """The organizations that now have no owner who can sign in."""


class MemberFields(AccountFields):
    """A member of an organization."""

    blocked: bool
    """Whether the operator has blocked the account, so that it can't sign in."""
    role: str | UnsetType = UNSET
    """The role: `owner`, `developer`, `operator` or `auditor`. Missing from an older server."""


class MemberAnswer(Answer):
    """A member."""

    member: MemberFields
    """The member."""


class MembersAnswer(Answer):
    """The members of an organization."""

    members: list[MemberFields]
    """The members, in the order in which they joined."""


class SessionFields(Answer):
    """A session of a signed-in account."""

    id: Id
    """The session's ID."""
    expires_at: Time
    """The time at which the session ends."""


class NewSessionFields(SessionFields):
    """A new session with its token."""

    token: str
    """The token for the header `Authorization: Bearer evs_…`. It is shown only once."""


class NewSessionAnswer(Answer):
    """A new session and its account."""

    session: NewSessionFields
    """The session."""
    account: OwnAccountFields
    """The account that signed in."""


class SessionAnswer(Answer):
    """The current session and its account."""

    session: SessionFields
    """The session."""
    account: OwnAccountFields
    """The account that is signed in."""


class EndedSessionAnswer(Answer):
    """The session of the request that ended sessions."""

    session: SessionFields
    """The session."""


class OrganizationFields(Named):
    """An organization, which owns queues, listeners, messages and keys."""

    stored_bytes: Count
    """The bytes that the organization stores, as far as the answering process knows."""
    stored_bytes_max: Count | None
    """The most bytes that the organization may store: what the other organizations of the account that created it leave
    of the account's limit. null for no limit.
    """
    log_damaged: bool | UnsetType = UNSET
    """Whether a part of the installation's log can't be read, of this or another organization. Missing from an older
    server.
    """
    role: str | UnsetType = UNSET
    """The role of the signed-in account: `owner`, `developer`, `operator` or `auditor`. Missing for an API key."""
    scopes: list[str] | UnsetType = UNSET
    """The scopes of the role or of the API key: what it may do. Missing from an older server."""


class OrganizationAnswer(Answer):
    """An organization."""

    organization: OrganizationFields
    """The organization."""


class OrganizationsAnswer(Answer):
    """The organizations of an account, or the organization of an API key."""

    organizations: list[OrganizationFields]
    """The organizations."""


class InvitationFields(Answer, kw_only=True):
    """An open invitation to an organization, without its token."""

    id: Id
    """The invitation's ID."""
    email: str
    """The e-mail address that was invited."""
    role: str | UnsetType = UNSET
    """The role that the person gets. Missing from an older server."""
    created_at: Time
    """The time at which the invitation was created."""
    expires_at: Time
    """The time from which the link does not work any more."""


class InvitationAnswer(Answer):
    """An invitation."""

    invitation: InvitationFields
    """The invitation."""


class InvitationsAnswer(Answer):
    """The open invitations of an organization."""

    invitations: list[InvitationFields]
    """The invitations, oldest first."""


class NewInvitationFields(InvitationFields, kw_only=True):
    """A new invitation with its token."""

    token: str
    """The token, which makes one account a member. It is shown only once."""
    link: str | None
    """The page of the console that accepts the invitation; null if the operator has set no public URL. Then append
    `/console#/invitation/` and the token to the API's address.
    """
    mailed: bool
    """Whether the mail server is being given a mail with the link."""


class NewInvitationAnswer(Answer):
    """A new invitation with its token."""

    invitation: NewInvitationFields
    """The invitation."""


class AcceptedInvitationAnswer(Answer):
    """The organization that the account is now a member of."""

    organization: Named
    """The organization."""


class InvitedAccountAnswer(AcceptedInvitationAnswer):
    """A new account and the organization that it is a member of."""

    account: AccountFields
    """The account."""


class KeyFields(Named):
    """An API key, without its secret."""

    prefix: str
    """The first characters of the key, by which to recognize it."""
    scopes: list[str]
    """The scopes of the key: what it may do."""
    queues: list[Id] | None
    """The IDs of the queues that the key is restricted to; null for all."""
    expires_at: Time | None
    """The time from which the key is refused; null for never."""
    created_at: Time
    """The time at which the key was created."""
    last_used_at: Time | None
    """The time at which a use of the key was last recorded; null if never. The newest use may be 1.5 hours later."""


class KeyAnswer(Answer):
    """An API key with its links."""

    key: KeyFields
    """The key."""
    links: Links = field(name="_links")
    """Links of the key."""


class NewKeyFields(KeyFields):
    """A new API key with its secret."""

    secret: str
    """The key itself, for the header `X-API-KEY`. It is shown only once."""


class NewKeyAnswer(Answer):
    """A new API key with its links."""

    key: NewKeyFields
    """The key."""
    links: Links = field(name="_links")
    """Links of the key."""


class KeysAnswer(Answer):
    """A page of the organization's API keys."""

    keys: list[KeyFields]
    """The keys, oldest first."""
    links: PageLinks = field(name="_links")
    """Links to this page and the next."""
