"""Accounts, sessions and organizations: the requests and answers for them.

For: registration, sign-in and organizations, and how often a client may try. Not for: what a command does
(broker/commands/accounts.py), API keys (keys.py), the authentication of a request (auth.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from api.auth import ApiKeys, Sessions
from api.browsers import Browsers
from api.calls import Call
from api.clients import Clients
from api.limits import EVERYBODY, Limit, Recent
from api.pages import rfc3339
from api.problems import BadParameter, Forbidden, NoSession
from api.shapes import AccountBody, DeletionBody, NameBody, PasswordBody, UnlinkBody
from broker.commands.accounts import SESSION_S, AccountCommands, check_email
from broker.core.accounts import Account, Session
from broker.core.entities import Organization
from broker.ports import DirectoryView
from broker.volume import StoredBytes


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountLimits:
    """The rate limits on checks of passwords and on registrations. Each process counts on its own.

    A field `*_at_once` is the largest burst. A field `*_per_s` is the rate per second after the burst.

    Known requests have a session, or come from a browser that has signed in to the account before. Two limits apply to
    their password checks: one for each e-mail address, and one for all clients together. Separate limits of the same
    size apply to the password checks of all other requests.
    """

    # Password checks for one e-mail address.
    guesses_at_once: int = 10
    guesses_per_s: float = 0.1
    # Password checks of all clients together.
    all_guesses_at_once: int = 50
    all_guesses_per_s: float = 3.0
    # Sign-ins from one client's IPv4 address or IPv6 network, unless the browser has signed in to the account before.
    clients_guesses_at_once: int = 20
    clients_guesses_per_s: float = 0.5
    # Registrations from one client's network address.
    clients_registrations_at_once: int = 5
    clients_registrations_per_s: float = 1 / 60
    # Registrations from all clients together.
    registrations_at_once: int = 20
    registrations_per_s: float = 1.0
    # Each process counts the recent password checks and registrations of each network.
    # Every `recent_s` seconds, the count of each network falls by one.
    # A request from a network with a count of 5 must leave 5 uses of a shared limit to others. Otherwise, refuse it.
    # A network never has to leave more than half of a limit's burst free.
    recent_s: float = 600.0


DEFAULT_LIMITS: Final = AccountLimits()


class Accounts:
    """Handlers for /v1/sessions, /v1/organizations, /v1/accounts, /v1/accounts/password, /v1/accounts/unlink and
    /v1/accounts/delete.

    `registration` is true if a person may register without an invitation.
    """

    def __init__(
        self,
        commands: AccountCommands,
        view: DirectoryView,
        api_keys: ApiKeys,
        sessions: Sessions,
        stored: StoredBytes,
        clients: Clients,
        browsers: Browsers,
        *,
        registration: bool,
        limits: AccountLimits = DEFAULT_LIMITS,
    ) -> None:
        self._commands = commands
        self._view = view
        self._api_keys = api_keys
        self._sessions = sessions
        self._stored = stored
        self._clients = clients
        self._browsers = browsers
        self._registration = registration
        self._guesses = Limit(
            "address",
            limits.guesses_at_once,
            per_s=limits.guesses_per_s,
            refusal="Too many attempts for this e-mail address. Try again later.",
        )
        self._known_guesses = Limit(
            "known",
            limits.guesses_at_once,
            per_s=limits.guesses_per_s,
            refusal="Too many attempts for this account. Try again later.",
        )
        self._clients_guesses = Limit(
            "client",
            limits.clients_guesses_at_once,
            per_s=limits.clients_guesses_per_s,
            refusal="Too many attempts from this network address. Try again later.",
        )
        self._clients_registrations = Limit(
            "client",
            limits.clients_registrations_at_once,
            per_s=limits.clients_registrations_per_s,
            refusal="Too many accounts were registered from this network address. Try again later.",
        )
        self._all_guesses = Limit(
            "sessions",
            limits.all_guesses_at_once,
            per_s=limits.all_guesses_per_s,
            refusal="Too many people are signing in at the moment. Try again later.",
        )
        self._all_known_guesses = Limit(
            "known-sessions",
            limits.all_guesses_at_once,
            per_s=limits.all_guesses_per_s,
            refusal="Too many people are signing in at the moment. Try again later.",
        )
        self._recent = Recent(limits.all_guesses_at_once // 2, each_s=limits.recent_s)
        self._registrations = Limit(
            "accounts",
            limits.registrations_at_once,
            per_s=limits.registrations_per_s,
            refusal="Too many accounts are being registered at the moment. Try again later.",
        )

    async def register(self, call: Call) -> Any:
        if not self._registration:
            raise Forbidden(
                "Registration is closed on this server. Ask an owner of an organization for an invitation, or the "
                "operator for an account (`everput init --email ADDRESS`)."
            )
        if not self._view.state.initialized:
            await self._view.caught_up()
        if not self._view.state.initialized:
            raise Forbidden(
                "Nobody can register before the operator has created an organization (by `everput init`, or by the "
                "first start of `everput serve`)."
            )
        body = await call.json(AccountBody, small=True)
        self._count_registration(call)
        account = await self._commands.create_account(body.email, body.password, request_id=call.request_text)
        return {"account": _account_fields(account)}

    async def start_session(self, call: Call) -> Any:
        """Sign in, and answer with a new session. The answer has the token twice: in the body, and in a cookie for
        browsers.
        """
        body = await call.json(AccountBody, small=True)
        check_email(body.email)
        https = self._sessions.https(call.scope)
        self._guess(call, body.email, known=self._browsers.knows(call.scope, body.email, https=https))
        account = await self._commands.check_password(body.email, body.password)
        session, token = await self._commands.start_session(account, request_id=call.request_text)
        self._set_cookie(call, token, SESSION_S)
        call.headers.append(self._browsers.cookie(account.email, https=https))
        return {"session": {**_session_fields(session), "token": token}, "account": _account_fields(account)}

    async def change_password(self, call: Call) -> Any:
        session = await self._sessions.find(call.scope, call.headers)
        call.by_session(session)
        body = await call.json(PasswordBody, small=True)
        account = self._account(session)
        self._guess(call, account.email, known=True)
        if not await self._commands.change_password(
            session, body.password, body.new_password, request_id=call.request_text
        ):
            raise NoSession("This session is unknown or has ended. Sign in again.")
        return {"account": _account_fields(self._account(session))}

    async def unlink(self, call: Call) -> Any:
        """Unlink the account from the OpenID Connect provider, and end all other sessions of the account. The person
        can still sign in with the account's password. If the person signs in with the provider again, the account is
        linked again.
        """
        session = await self._sessions.find(call.scope, call.headers)
        call.by_session(session)
        body = await call.json(UnlinkBody, small=True)
        self._guess(call, self._account(session).email, known=True)
        if not await self._commands.unlink_identity(session, body.password, request_id=call.request_text):
            raise NoSession("This session is unknown or has ended. Sign in again.")
        return {"account": _account_fields(self._account(session))}

    async def delete(self, call: Call) -> Any:
        """Delete the account. If it is the last owner of an organization who can sign in, refuse the request, unless
        its body sets `even_if_last`. The answer lists the organizations that now have no owner who can sign in.
        """
        session = await self._sessions.find(call.scope, call.headers)
        call.by_session(session)
        body = await call.json(DeletionBody, small=True)
        account = self._account(session)
        self._guess(call, account.email, known=True)
        left = await self._commands.delete_own(
            session, body.password, even_if_last=body.even_if_last, request_id=call.request_text
        )
        self._set_cookie(call, "", 0)
        return {
            "account": _account_fields(account),
            "without_members": [{"id": one.id, "name": one.name} for one in left],
        }

    async def session(self, call: Call) -> Any:
        session = await self._sessions.find(call.scope, call.headers)
        return {"session": _session_fields(session), "account": _account_fields(self._account(session))}

    async def end_session(self, call: Call) -> Any:
        """End the sessions that the parameter `which` selects: the session of this request (`this`), all other sessions
        of its account (`others`), or all sessions of its account (`all`).
        """
        session = await self._sessions.find(call.scope, call.headers)
        which = call.query().get("which", "this")
        if which not in ("this", "others", "all"):
            raise BadParameter(
                "The parameter `which` says which sessions to end. It must be `this`, `others` or `all`.",
                parameter="which",
            )
        if which == "this":
            await self._commands.end_session(session, request_id=call.request_text)
        else:
            kept = session.id if which == "others" else ""
            every = self._view.state.accounts.sessions_of(session.account_id)
            # end_sessions() always stores an event in the log. So call it only if there is a session to end.
            if any(one.id != kept for one in every):
                await self._commands.end_sessions(session.account_id, but=kept, request_id=call.request_text)
        if which != "others":
            self._set_cookie(call, "", 0)
        return {"session": _session_fields(session)}

    def _account(self, session: Session) -> Account:
        """Return the session's account. Raises NoSession if the account has been deleted."""
        account = self._view.state.accounts.by_id.get(session.account_id)
        if account is None:
            raise NoSession("This session is unknown or has ended. Sign in again.")
        return account

    async def create_organization(self, call: Call) -> Any:
        session = await self._sessions.find(call.scope, call.headers)
        call.by_session(session)
        body = await call.json(NameBody, small=True)
        organization = await self._commands.members.create_organization(
            session.account_id, name=body.name, request_id=call.request_text
        )
        return {"organization": self._membership_fields(organization, session.account_id)}

    async def list_organizations(self, call: Call) -> Any:
        """Answer with all organizations of the signed-in account, or with the organization of the API key."""
        if call.api_key_text:
            api_key = await self._api_keys.find(call.api_key_text, call.headers, call.request_id)
            organization = self._view.state.organizations[api_key.organization_id]
            return {"organizations": [{**self._organization_fields(organization), "scopes": api_key.scopes}]}
        session = await self._sessions.find(call.scope, call.headers)
        found = self._view.state.organizations_of(session.account_id)
        return {"organizations": [self._membership_fields(one, session.account_id) for one in found]}

    def _guess(self, call: Call, email: str, *, known: bool) -> None:
        """Count one check of a password against the rate limits. If a limit is exceeded, raise TooManyRequests, and do
        not count the check.

        `known` is true if the request has a session of this account, or a cookie that proves an earlier sign-in to it.
        Known requests have separate limits, so that strangers who guess passwords can't lock out the account's owner.
        """
        network = self._clients.network(call.scope)
        recent = self._recent.count(network)
        if known:
            self._all_known_guesses.check(call.headers, EVERYBODY, left=recent)
            self._known_guesses.take(call.headers, email.lower())
            self._all_known_guesses.take(call.headers, EVERYBODY)
            self._recent.add(network)
            return
        client = self._clients.name(call.scope)
        if client is not None:
            self._clients_guesses.check(call.headers, client)
        self._all_guesses.check(call.headers, EVERYBODY, left=recent)
        self._guesses.take(call.headers, email.lower(), left=recent)
        self._all_guesses.take(call.headers, EVERYBODY)
        self._recent.add(network)
        if client is not None:
            self._clients_guesses.take(call.headers, client)

    def _count_registration(self, call: Call) -> None:
        """Count the registration of an account. Raises TooManyRequests if a rate limit is exceeded."""
        client = self._clients.name(call.scope)
        if client is not None:
            self._clients_registrations.check(call.headers, client)
        network = self._clients.network(call.scope)
        self._registrations.take(call.headers, EVERYBODY, left=self._recent.count(network))
        self._recent.add(network)
        if client is not None:
            self._clients_registrations.take(call.headers, client)

    def _organization_fields(self, organization: Organization) -> dict[str, Any]:
        return {
            "id": organization.id,
            "name": organization.name,
            "stored_bytes": self._stored.stored(organization.id),
            "stored_bytes_max": self._stored.bound(organization.id),
            "log_damaged": bool(self._view.state.damage),
        }

    def _membership_fields(self, organization: Organization, account_id: str) -> dict[str, Any]:
        state = self._view.state
        return {
            **self._organization_fields(organization),
            "role": state.role_of(organization.id, account_id),
            "scopes": state.scopes_of(organization.id, account_id),
        }

    def _set_cookie(self, call: Call, token: str, age_s: int) -> None:
        call.headers += [self._sessions.cookie(call.scope, token, age_s), (b"cache-control", b"no-store")]


def _account_fields(account: Account) -> dict[str, Any]:
    fields = {"id": account.id, "email": account.email}
    if account.identity is None:
        return fields
    return {**fields, "identity": {"issuer": account.identity[0], "has_password": account.has_password}}


def _session_fields(session: Session) -> dict[str, Any]:
    return {"id": session.id, "expires_at": rfc3339(session.expires_at_ms)}
