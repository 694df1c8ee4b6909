"""Commands on accounts and their sessions.

Not for: memberships (members.py), API keys (organizations.py), hashing passwords (broker/passwords.py), rate limits
(api/accounts.py), who may call a command (api/auth.py).
"""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from dataclasses import replace
from typing import Final
from uuid import uuid4

from broker.clock import now_ms
from broker.commands.context import account_context, event_fields, record
from broker.commands.members import LastMember, MemberCommands, without_owner
from broker.core import events as ev
from broker.core import keys
from broker.core.accounts import SESSIONS_MAX, Account, Session, refuse_email
from broker.core.entities import Organization
from broker.errors import BrokerError, Changed, NotFound, Refused, Unavailable
from broker.passwords import Passwords
from broker.ports import ControlLog, DirectoryView

SESSION_S: Final = 7 * 86_400
_ONE_TIME_S: Final = 86_400  # seconds until a one-time password expires
_ONE_TIME_BYTES: Final = 15
_BLOCKED: Final = "This account is blocked. Ask the operator of this server."
_NO_ACCOUNT: Final = "No account has this ID. Check the ID."
_WRONG: Final = "No account has this e-mail address and password."


_OfAnAccount = (
    ev.AccountPasswordReset | ev.AccountSessionsEnded | ev.AccountBlocked | ev.AccountUnblocked | ev.AccountDeleted
)


class EmailTaken(Refused):
    """Another account has this e-mail address already."""

    code = "email-taken"


class WrongPassword(BrokerError):
    """No account has this e-mail address and password."""

    code = "wrong-password"


class AccountBlocked(BrokerError):
    """The account is blocked, so nobody can sign in to it. Only the operator of this server can unblock the account."""

    code = "account-blocked"


class AccountCommands:
    """The commands on accounts and sessions. Their events are written to the topic `control`."""

    def __init__(self, control: ControlLog, view: DirectoryView, passwords: Passwords | None = None) -> None:
        self._control = control
        self._view = view
        self._passwords = passwords or Passwords()
        self.members = MemberCommands(control, view)

    async def create_account(self, email: str, password: str, *, random: bool = False, request_id: str = "") -> Account:
        """Create an account. `random` is true if Everput itself has drawn the password at random. Raises Refused if the
        e-mail address or password is not valid, EmailTaken if the address is in use.
        """
        check_email(email)
        await self._view.caught_up()
        taken = self._view.state.accounts.account(email) is not None
        if not taken:
            password_hash = await self._passwords.hash(password, about=(email,), random=random)
            account_id = str(uuid4())
            event = ev.AccountCreated(
                **event_fields(account_context(account_id, request_id)),
                account_id=account_id,
                email=email,
                password_hash=password_hash,
            )
            taken = not await record(self._control, self._view, event)
        if taken:
            raise EmailTaken(
                "An account with this e-mail address exists already. Sign in, or use another address.", pointer="/email"
            )
        return self._view.state.accounts.by_id[event.account_id]

    async def check_password(self, email: str, password: str) -> Account:
        """Return the account with this e-mail address and password.

        Raises WrongPassword if the address or the password is wrong, or if a temporary password was used or has
        expired. The check of an unknown address takes as long as that of a known address. So the duration does not show
        which addresses have an account. Raises AccountBlocked if the password is right but the account is blocked.
        """
        await self._view.caught_up()
        account = self._view.state.accounts.account(email)
        fits = await self._passwords.fits(password, None if account is None else account.password_hash or None)
        if account is None or not fits:
            raise WrongPassword(_WRONG)
        if account.blocked:
            raise AccountBlocked(_BLOCKED)
        if not account.may_sign_in(
            now_ms()
        ):  # Refuse a temporary password from the operator that was used before or has expired.
            raise WrongPassword(_WRONG)
        return account

    async def start_session(
        self, account: Account, *, by_identity: bool = False, request_id: str = ""
    ) -> tuple[Session, str]:
        """Start a session of the account. Return the session and its token, which is not available later.

        If `by_identity` is true, an OpenID Connect provider has signed the person in, and not a password.

        Raises AccountBlocked if the account is blocked by now. Raises WrongPassword if the account was deleted, or its
        password was changed, after the password was checked. Raises WrongPassword also if the account's temporary
        password was used or has expired. Raises Unavailable if the new session has ended already: for example, newer
        sessions of the account have replaced it.
        """
        token = keys.key_text(os.urandom(keys.RANDOM_BYTES), prefix=keys.SESSION_PREFIX)
        context = account_context(account.id, request_id)
        event = ev.SessionCreated(
            **event_fields(context),
            session_id=str(uuid4()),
            account_id=account.id,
            token_sha256=keys.key_sha256(token),
            expires_at_ms=context.at_ms + SESSION_S * 1000,
            by_identity=by_identity,
        )
        begun = await record(self._control, self._view, event)
        session = self._view.state.accounts.sessions.get(event.session_id)
        now = self._view.state.accounts.by_id.get(account.id)
        if now is not None and now.blocked:
            raise AccountBlocked(_BLOCKED)
        if not begun or now is None or now.password_hash != account.password_hash:
            if session is not None:
                await self.end_session(session, request_id=request_id)
            raise WrongPassword(_WRONG)
        # The new session may have ended already: newer sessions replaced it, or all the account's sessions were ended.
        if session is None:
            raise Unavailable(
                f"This new session has already ended. An account has at most {SESSIONS_MAX} sessions, and newer ones "
                "have replaced it; or all sessions of the account were ended. Sign in again."
            )
        return session, token

    async def change_password(
        self, session: Session, password: str, new_password: str, *, request_id: str = ""
    ) -> bool:
        """Change the password, and end the account's other sessions. Return False if this session has already ended.

        Raises Refused if the old password is wrong or the new one is not allowed.
        """
        account = self._view.state.accounts.by_id.get(session.account_id)
        if account is None:
            return False
        await self._check_own_password(account, password)
        event = ev.AccountPasswordChanged(
            **event_fields(account_context(account.id, request_id)),
            account_id=account.id,
            session_id=session.id,
            password_hash=await self._passwords.hash(new_password, about=(account.email,), pointer="/new_password"),
        )
        return await record(self._control, self._view, event)

    async def replace_password(self, account: Account, new_password: str, *, request_id: str = "") -> None:
        """Replace the password of an account after the person has proved their identity in another way, such as by
        e-mail.

        All sessions of the account end. This function resets the password to a one-time password, signs in with it, and
        changes the password. The log gets an event of each step. Raises Refused if the new password is not allowed.
        Raises WrongPassword or Changed if somebody else resets the password or ends the sessions meanwhile.
        """
        await self._passwords.hash(new_password, about=(account.email,), pointer="/new_password")
        password, _ = await self.reset_password(account.id, request_id=request_id)
        once = await self.check_password(account.email, password)
        session, _ = await self.start_session(once, request_id=request_id)
        if not await self.change_password(session, password, new_password, request_id=request_id):
            raise Changed("The password was not set, because the account changed meanwhile. Ask for another link.")
        await self.end_session(session, request_id=request_id)

    async def unlink_identity(self, session: Session, password: str, *, request_id: str = "") -> bool:
        """Unlink the account from its OpenID Connect provider, and end the account's other sessions. Return False if
        this session has already ended.

        Raises Refused if the password is wrong, if the account has no password except a temporary one, or if the
        account is linked to no provider.
        """
        await self._view.caught_up()
        account = self._view.state.accounts.by_id.get(session.account_id)
        if account is None:
            return False
        if account.identity is None:
            raise Refused("This account is not linked with an OpenID Connect provider, so there is no link to remove.")
        if not account.has_password:
            raise Refused(
                "This account has no permanent password. Without the link to its OpenID Connect provider, nobody could "
                "sign in to it. Set a password first: reset it by e-mail. Or ask the operator of this server for a "
                "one-time password, sign in with it, and change it."
            )
        await self._check_own_password(account, password)
        event = ev.AccountIdentityUnlinked(
            **event_fields(account_context(account.id, request_id)), account_id=account.id, session_id=session.id
        )
        if await record(self._control, self._view, event):
            return True
        # Return True also if another request of this session has unlinked the account meanwhile.
        accounts = self._view.state.accounts
        now = accounts.by_id.get(account.id)
        return now is not None and now.identity is None and session.id in accounts.sessions

    async def _check_own_password(self, account: Account, password: str) -> None:
        if not await self._passwords.fits(password, account.password_hash or None):
            raise Refused(
                "The password is wrong. Give the account's current password. If the account has no password, set one "
                "first: reset it by e-mail, or ask the operator of this server for a one-time password.",
                pointer="/password",
            )

    async def reset_password(self, account_id: str, *, request_id: str = "") -> tuple[str, int]:
        """Create a one-time password and end the account's sessions. Return the password and the time at which it
        expires.

        Raises NotFound if there is no such account.
        """
        password = secrets.token_urlsafe(_ONE_TIME_BYTES)
        context = account_context(account_id, request_id)
        event = ev.AccountPasswordReset(
            **event_fields(context),
            account_id=account_id,
            password_hash=await self._passwords.hash(password, random=True),
            expires_at_ms=context.at_ms + _ONE_TIME_S * 1000,
        )
        await self._record_of_account(event)
        return password, event.expires_at_ms

    async def end_sessions(self, account_id: str, *, but: str = "", request_id: str = "") -> None:
        """End all sessions of the account, except the one with the id `but`. Raises NotFound if there is no such
        account.
        """
        context = account_context(account_id, request_id)
        await self._record_of_account(
            ev.AccountSessionsEnded(**event_fields(context), account_id=account_id, kept_session_id=but)
        )

    async def block(self, account_id: str) -> bool:
        """End the account's sessions and refuse new ones. Return False if the account was blocked already.

        Raises NotFound if there is no such account.
        """
        event = ev.AccountBlocked(**event_fields(account_context(account_id, "")), account_id=account_id)
        return await self._record_of_account(event)

    async def unblock(self, account_id: str) -> bool:
        """Let the account sign in again. Return False if the account was not blocked. Raises NotFound if there is no
        such account.
        """
        event = ev.AccountUnblocked(**event_fields(account_context(account_id, "")), account_id=account_id)
        return await self._record_of_account(event)

    async def delete(self, account_id: str, *, even_if_last: bool = False, request_id: str = "") -> list[Organization]:
        """Delete the account, and return the organizations in which no owner can sign in any more.

        If there would be such an organization and `even_if_last` is not set, change nothing and raise LastMember.
        Raises NotFound if there is no such account. Raises Unavailable if, during this call, another request deleted
        the account, or the account became an organization's only owner who can sign in.

        Before the deletion, the account leaves each organization, with one event for each. If the call fails after such
        an event, the account still exists, but has left some or all organizations. Call again to complete the deletion.
        """
        await self._view.caught_up()
        left = [
            one for one in self._view.state.organizations_of(account_id) if self._view.state.is_last(one, account_id)
        ]
        if left and not even_if_last:
            raise LastMember(
                f"{without_owner(left)} Set `even_if_last` to true (command line: --even-if-last) to delete the "
                "account anyway."
            )
        context = account_context(account_id, request_id)
        for one in list(self._view.state.organizations_of(account_id)):
            within = replace(context, organization_id=one.id)
            with suppress(NotFound):  # Another request may have removed the account from the organization already.
                await self.members.leave(within, account_id, even_if_last=even_if_last)
        event = ev.AccountDeleted(**event_fields(context), account_id=account_id, even_if_last=even_if_last)
        if not await self._record_of_account(event):
            raise Unavailable(
                "This request did not delete the account: another request has deleted it already, or it is now an "
                "organization's last owner who can sign in. The account has left its other organizations. Try again."
            )
        return left

    async def delete_own(
        self, session: Session, password: str, *, even_if_last: bool = False, request_id: str = ""
    ) -> list[Organization]:
        """Delete the account of this session.

        Raises Refused if the password is wrong, and NotFound if the account does not exist any more. Raises LastMember
        if an organization would have no owner who can sign in, and `even_if_last` is not set.
        """
        account = self._view.state.accounts.by_id.get(session.account_id)
        if account is None:
            raise NotFound(_NO_ACCOUNT)
        await self._check_own_password(account, password)
        return await self.delete(account.id, even_if_last=even_if_last, request_id=request_id)

    async def _record_of_account(self, event: _OfAnAccount) -> bool:
        """Record an event of an account, and return whether it changed anything. Raises NotFound if there is no such
        account.
        """
        await self._view.caught_up()
        if event.account_id not in self._view.state.accounts.by_id:
            raise NotFound(_NO_ACCOUNT)
        return await record(self._control, self._view, event)

    async def end_session(self, session: Session, *, request_id: str = "") -> None:
        """End a session. If the session has already ended, the event has no effect."""
        event = ev.SessionEnded(**event_fields(account_context(session.account_id, request_id)), session_id=session.id)
        await record(self._control, self._view, event)


def check_email(email: str) -> None:
    """Raise Refused if the text is no e-mail address."""
    reason = refuse_email(email)
    if reason is not None:
        raise Refused(f"This is not a valid e-mail address. It {reason}.", pointer="/email")
