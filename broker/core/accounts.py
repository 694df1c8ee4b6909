"""Accounts and their sessions, computed from the events of the topic `control` as a part of the directory.

For: their state, and how an event changes it. If two accounts want the same e-mail address, the first one in the log
gets it. An account has at most SESSIONS_MAX sessions; a new one removes the oldest.

Not for: passwords (broker/passwords.py), members of organizations (organizations.py).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple

from broker.core import events as ev

SESSIONS_MAX: Final = 20
EMAIL_CHARS_MAX: Final = 254  # limit of RFC 5321, 4.5.3.1.3
# E-mail addresses are ASCII only, because comparing them must not depend on a version of Unicode. They have no quotes,
# brackets, commas, `?` or `%`. Otherwise, a mail header or a mail server could take the text for another address.
# This regular expression takes linear time on any input.
_EMAIL: Final = re.compile(r"[A-Za-z0-9.!#$&'*+/=_~-]{1,64}@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)+")


class Identity(NamedTuple):
    """A person whom an OpenID Connect provider has signed in. The provider has verified the e-mail address."""

    issuer: str
    subject: str
    email: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """A person's account, with an e-mail address, and a password, an identity or both.

    `identity` has the URL of the OpenID Connect provider that signs the person in, and the person's id at the provider.
    `identity` is None if the account is linked to no provider. If `password_hash` is empty, no password works.

    A blocked account has no session, and can't start one. A temporary password starts only one session, before the time
    `one_time_until_ms`. `one_time_until_ms` is 0 after the temporary password was used, and None if the password is not
    temporary.
    """

    id: str
    email: str
    password_hash: str
    created_at_ms: int
    blocked: bool = False
    one_time_until_ms: int | None = None
    identity: tuple[str, str] | None = None

    @property
    def has_password(self) -> bool:
        """Whether the account has a password that is not temporary."""
        return bool(self.password_hash) and self.one_time_until_ms is None

    def may_sign_in(self, at_ms: int) -> bool:
        """Return whether a correct password may start a session of the account at this time. The caller must check the
        password. A temporary password starts only one session, before it expires. A blocked account starts none.
        """
        return not self.blocked and (self.one_time_until_ms is None or at_ms < self.one_time_until_ms)


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    id: str
    account_id: str
    token_sha256: str
    expires_at_ms: int


def refuse_email(email: str) -> str | None:
    """Return the reason why a text is refused as an e-mail address, as the end of an error message. Return None if the
    text has the form of an address.
    """
    if len(email) > EMAIL_CHARS_MAX:
        return f"must have at most {EMAIL_CHARS_MAX} characters"
    return None if _EMAIL.fullmatch(email) else "must be an ASCII address such as name@example.com"


class Accounts:
    """All accounts and sessions, computed from the events of the topic `control`."""

    def __init__(self) -> None:
        self.by_id: dict[str, Account] = {}
        self.sessions: dict[str, Session] = {}
        self.sessions_by_sha256: dict[str, Session] = {}
        self._by_email: dict[str, Account] = {}
        self._by_identity: dict[tuple[str, str], str] = {}  # account ids
        self._sessions_of: dict[str, dict[str, Session]] = {}

    def account(self, email: str) -> Account | None:
        """Return the account with this e-mail address. Upper and lower case count as the same."""
        return self._by_email.get(email.lower())

    def by_identity(self, issuer: str, subject: str) -> Account | None:
        """Return the account that is linked to a person's id (`subject`) at an OpenID Connect provider (`issuer`).
        Return None if no account is linked to this person.
        """
        return self.by_id.get(self._by_identity.get((issuer, subject), ""))

    def sessions_of(self, account_id: str) -> list[Session]:
        """Return the account's sessions, oldest first. Some of them may have expired."""
        return list(self._sessions_of.get(account_id, {}).values())

    def apply(self, event: ev.AccountEvent | ev.SessionCreated | ev.SessionEnded) -> bool:
        """Update the accounts and sessions with one event of the log. Return False if the event changes nothing."""
        match event:
            case ev.AccountCreated():
                return self._created(event)
            case ev.SessionCreated():
                return self._session_created(event)
            case ev.SessionEnded():
                session = self.sessions.get(event.session_id)
                if session is not None:
                    self._end(session)
                return session is not None
            case ev.AccountEvent():
                account = self.by_id.get(event.account_id)
                return account is not None and self._changed(account, event)

    def everything(self) -> Any:
        """Return all accounts and sessions in a fixed order, so that two states can be compared by a hash."""
        return (
            sorted(self.by_id.values(), key=lambda account: account.id),
            sorted(self.sessions.values(), key=lambda session: session.id),
        )

    def _created(self, event: ev.AccountCreated) -> bool:
        email = event.email.lower()
        if event.account_id in self.by_id or email in self._by_email:
            return False
        self._is(
            Account(
                id=event.account_id, email=event.email, password_hash=event.password_hash, created_at_ms=event.at_ms
            )
        )
        return True

    def _changed(self, account: Account, event: ev.AccountEvent) -> bool:
        match event:
            case ev.AccountPasswordChanged():
                # Only a session that has not ended can change the password. All other sessions of the account then end.
                if event.session_id not in self._sessions_of.get(account.id, {}):
                    return False
                self._end_all(account, but=event.session_id)
                self._is(replace(account, password_hash=event.password_hash, one_time_until_ms=None))
            case ev.AccountPasswordReset():
                self._end_all(account)
                until_ms = event.expires_at_ms
                self._is(replace(account, password_hash=event.password_hash, one_time_until_ms=until_ms))
            case ev.AccountIdentityLinked():
                identity = (event.issuer, event.subject)
                if account.identity is not None or identity in self._by_identity:
                    return False
                self._end_all(account)
                self._by_identity[identity] = account.id
                self._is(replace(account, identity=identity, password_hash="", one_time_until_ms=None))
            case ev.AccountIdentityUnlinked():
                known = event.session_id in self._sessions_of.get(account.id, {})
                if account.identity is None or not account.has_password or not known:
                    return False
                self._end_all(account, but=event.session_id)
                del self._by_identity[account.identity]
                self._is(replace(account, identity=None))
            case ev.AccountSessionsEnded():
                self._end_all(account, but=event.kept_session_id)
            case ev.AccountBlocked() | ev.AccountUnblocked():
                blocked = isinstance(event, ev.AccountBlocked)
                if account.blocked == blocked:
                    return False
                self._end_all(account)
                self._is(replace(account, blocked=blocked))
            case ev.AccountDeleted():
                self._end_all(account)
                self._sessions_of.pop(account.id, None)
                del self.by_id[account.id], self._by_email[account.email.lower()]
                if account.identity is not None:
                    del self._by_identity[account.identity]
            case _:
                return False
        return True

    def _is(self, account: Account) -> None:
        self.by_id[account.id] = self._by_email[account.email.lower()] = account

    def _session_created(self, event: ev.SessionCreated) -> bool:
        taken = event.session_id in self.sessions or event.token_sha256 in self.sessions_by_sha256
        account = self.by_id.get(event.account_id)
        if taken or account is None:
            return False
        if account.blocked if event.by_identity else not account.may_sign_in(event.at_ms):
            return False
        if account.one_time_until_ms is not None and not event.by_identity:
            self._is(replace(account, one_time_until_ms=0))
        session = Session(
            id=event.session_id,
            account_id=event.account_id,
            token_sha256=event.token_sha256,
            expires_at_ms=event.expires_at_ms,
        )
        others = self._sessions_of.setdefault(session.account_id, {})
        for other in [other for other in others.values() if other.expires_at_ms <= event.at_ms]:
            self._end(other)
        while len(others) >= SESSIONS_MAX:
            self._end(next(iter(others.values())))
        self.sessions[session.id] = self.sessions_by_sha256[session.token_sha256] = others[session.id] = session
        return True

    def _end_all(self, account: Account, *, but: str = "") -> None:
        for session in self.sessions_of(account.id):
            if session.id != but:
                self._end(session)

    def _end(self, session: Session) -> None:
        del self.sessions[session.id], self.sessions_by_sha256[session.token_sha256]
        del self._sessions_of[session.account_id][session.id]
