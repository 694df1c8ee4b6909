"""Accounts and their sessions, folded from the `control` topic as a part of the directory.

For: the state and the fold. Of two accounts that want one e-mail address the first in the log has it.
Not for: passwords (broker/passwords.py), whose organization is whose (broker/core/directory.py).

What has ended is let go in the fold: an account holds at most SESSIONS_MAX sessions, the oldest leaves first.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any, Final

from broker.core import events as ev

SESSIONS_MAX: Final = 20
EMAIL_CHARS_MAX: Final = 254  # RFC 5321, 4.5.3.1.3, without its angle brackets
_EMAIL = re.compile(r"[!-?A-~]+@[!-?A-~]+\.[!-?A-~]+")  # ASCII: what is equal must not depend on Unicode's version


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    id: str
    email: str
    password_hash: str
    created_at_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    id: str
    account_id: str
    token_sha256: str
    expires_at_ms: int


def refuse_email(email: str) -> str | None:
    """Why this is no e-mail address, as the end of a sentence about it; None when it may be one."""
    if len(email) > EMAIL_CHARS_MAX:
        return f"must have at most {EMAIL_CHARS_MAX} characters"
    return None if _EMAIL.fullmatch(email) else "must be one such as name@example.com, in ASCII"


class Accounts:
    """The state. by_email: looked up through account()."""

    def __init__(self) -> None:
        self.by_id: dict[str, Account] = {}
        self.sessions: dict[str, Session] = {}
        self.sessions_by_sha256: dict[str, Session] = {}
        self._by_email: dict[str, Account] = {}
        self._sessions_of: dict[str, dict[str, Session]] = {}

    def account(self, email: str) -> Account | None:
        """Whose address this is; upper and lower case are one."""
        return self._by_email.get(email.lower())

    def apply(self, event: ev.AccountCreated | ev.AccountPasswordChanged | ev.SessionCreated | ev.SessionEnded) -> bool:
        """Fold one event; False when it was passed over (Directory.apply)."""
        match event:
            case ev.AccountCreated():
                return self._created(event)
            case ev.AccountPasswordChanged():
                return self._password_changed(event)
            case ev.SessionCreated():
                return self._session_created(event)
            case ev.SessionEnded():
                session = self.sessions.get(event.session_id)
                if session is not None:
                    self._end(session)
                return session is not None

    def everything(self) -> Any:
        """For Directory.state_hash()."""
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

    def _password_changed(self, event: ev.AccountPasswordChanged) -> bool:
        """Of two changes in different sessions the first in the log ends the session of the second."""
        others = self._sessions_of.get(event.account_id, {})
        if event.session_id not in others:
            return False
        for other in [other for other in others.values() if other.id != event.session_id]:
            self._end(other)
        self._is(replace(self.by_id[event.account_id], password_hash=event.password_hash))
        return True

    def _is(self, account: Account) -> None:
        self.by_id[account.id] = self._by_email[account.email.lower()] = account

    def _session_created(self, event: ev.SessionCreated) -> bool:
        taken = event.session_id in self.sessions or event.token_sha256 in self.sessions_by_sha256
        if taken or event.account_id not in self.by_id:
            return False
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

    def _end(self, session: Session) -> None:
        del self.sessions[session.id], self.sessions_by_sha256[session.token_sha256]
        del self._sessions_of[session.account_id][session.id]
