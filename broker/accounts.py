"""Commands on accounts and sessions, and an account's organizations.

For: who people are. Not for: keys (broker/commands.py), how a password is hashed (broker/passwords.py), how often
somebody may try (api/accounts.py), who may ask (api/auth.py)."""

from __future__ import annotations

import os
from typing import Final
from uuid import uuid4

from broker.commands import Context, by, create_organization, now_ms, record
from broker.core import events as ev
from broker.core import keys
from broker.core.accounts import Account, Session, refuse_email
from broker.core.directory import Organization
from broker.errors import BrokerError, NotFound, QuotaReached, Refused, Unavailable
from broker.passwords import Passwords
from broker.ports import ControlLog, DirectoryView

SESSION_S: Final = 7 * 86_400
ORGANIZATIONS_MAX: Final = 20  # of one account
_WRONG: Final = "No account has this e-mail address and password."


class EmailTaken(Refused):
    """An account has this e-mail address already."""

    code = "email-taken"


class WrongPassword(BrokerError):
    """There is no account with this e-mail address and password."""

    code = "wrong-password"


class AccountCommands:
    """The commands; control: where their events go."""

    def __init__(self, control: ControlLog, view: DirectoryView) -> None:
        self._control = control
        self._view = view
        self._passwords = Passwords()

    async def create_account(self, email: str, password: str, *, request_id: str = "") -> Account:
        """A new account (Refused, EmailTaken)."""
        check_email(email)
        await self._view.caught_up()
        taken = self._view.state.accounts.account(email) is not None
        if not taken:
            password_hash = await self._passwords.hash(password)
            account_id = str(uuid4())
            event = ev.AccountCreated(
                **by(_nobodys(account_id, request_id)), account_id=account_id, email=email, password_hash=password_hash
            )
            taken = not await record(self._control, self._view, event)
        if taken:
            raise EmailTaken("an account has this e-mail address already", pointer="/email")
        return self._view.state.accounts.by_id[event.account_id]

    async def check_password(self, email: str, password: str) -> Account:
        """The account (WrongPassword, after the same time whether there is one or not)."""
        await self._view.caught_up()
        account = self._view.state.accounts.account(email)
        fits = await self._passwords.fits(password, None if account is None else account.password_hash)
        if account is None or not fits:
            raise WrongPassword(_WRONG)
        return account

    async def start_session(self, account: Account, *, request_id: str = "") -> tuple[Session, str]:
        """A new session and its token, which is shown this once (WrongPassword: it was changed since it was checked;
        Unavailable: the session has ended already)."""
        token = keys.key_text(os.urandom(keys.RANDOM_BYTES), prefix=keys.SESSION_PREFIX)
        context = _nobodys(account.id, request_id)
        event = ev.SessionCreated(
            **by(context),
            session_id=str(uuid4()),
            account_id=account.id,
            token_sha256=keys.key_sha256(token),
            expires_at_ms=context.at_ms + SESSION_S * 1000,
        )
        await record(self._control, self._view, event)
        session = self._view.state.accounts.sessions.get(event.session_id)
        if self._view.state.accounts.by_id[account.id].password_hash != account.password_hash:
            if session is not None:
                await self.end_session(session, request_id=request_id)
            raise WrongPassword(_WRONG)
        if session is None:  # an account has so many at most, and the oldest goes
            raise Unavailable("this account is signed in so often at the moment that the session has ended already")
        return session, token

    async def change_password(
        self, session: Session, password: str, new_password: str, *, request_id: str = ""
    ) -> bool:
        """The account's other sessions end; False when this one has ended meanwhile (Refused: it or the new one)."""
        account = self._view.state.accounts.by_id[session.account_id]
        if not await self._passwords.fits(password, account.password_hash):
            raise Refused("this is not the account's password", pointer="/password")
        event = ev.AccountPasswordChanged(
            **by(_nobodys(account.id, request_id)),
            account_id=account.id,
            session_id=session.id,
            password_hash=await self._passwords.hash(new_password, pointer="/new_password"),
        )
        return await record(self._control, self._view, event)

    async def end_session(self, session: Session, *, request_id: str = "") -> None:
        """No event if it has ended already."""
        event = ev.SessionEnded(**by(_nobodys(session.account_id, request_id)), session_id=session.id)
        await record(self._control, self._view, event)

    async def create_organization(self, account_id: str, *, name: str, request_id: str = "") -> Organization:
        """A new organization with this account as its member (Refused, QuotaReached)."""
        if sum(1 for _ in self._view.state.organizations_of(account_id)) >= ORGANIZATIONS_MAX:
            raise QuotaReached(f"an account may have at most {ORGANIZATIONS_MAX} organizations")
        made = await create_organization(
            self._control, self._view, name=name, actor=_actor(account_id, request_id), request_id=request_id
        )
        return await self.join(account_id, made.id, request_id=request_id)

    async def join(self, account_id: str, organization_id: str, *, request_id: str = "") -> Organization:
        """The organization, with this account as a member (NotFound)."""
        context = Context(
            organization_id=organization_id, actor=_actor(account_id, request_id), request_id=request_id, at_ms=now_ms()
        )
        await record(self._control, self._view, ev.OrganizationJoined(**by(context), account_id=account_id))
        organization = self._view.state.organizations.get(organization_id)
        if organization is None or account_id not in organization.members:
            raise NotFound("no organization has this id")
        return organization


def check_email(email: str) -> None:
    """Refused when it is no e-mail address."""
    reason = refuse_email(email)
    if reason is not None:
        raise Refused(f"the e-mail address {reason}", pointer="/email")


def _actor(account_id: str, request_id: str) -> str:
    """Where no request asks it is the shell (cli/init.py)."""
    return f"account:{account_id}" if request_id else "shell"


def _nobodys(account_id: str, request_id: str) -> Context:
    """Of an event that is no organization's."""
    return Context(organization_id="", actor=_actor(account_id, request_id), request_id=request_id, at_ms=now_ms())
