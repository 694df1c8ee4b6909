"""Invitations to an organization: the requests to invite, to list and revoke invitations, and to accept one.

For: the requests and answers, their limits, and the mail with the link. The log stores only the SHA-256 of the token in
the link. Not for: what the commands refuse (broker/commands/invitations.py), sending mail (broker/outbound/mail.py).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Final

from api.auth import Sessions
from api.calls import Call
from api.clients import Clients
from api.limits import EVERYBODY, Limit
from api.members import as_member
from api.pages import rfc3339
from api.shapes import InvitationBody, InvitedAccountBody, TokenBody
from broker.commands.accounts import check_email
from broker.commands.invitations import InvitationCommands, invitation_mail
from broker.commands.members import check_role
from broker.core.entities import Organization
from broker.core.invitations import Invitation
from broker.core.roles import MEMBERS
from broker.outbound.mail import Mailer
from broker.ports import DirectoryView

log = logging.getLogger(__name__)

# In each process, an organization may create 20 invitations at once, and after that one each minute.
# A process mails at most EACH_AT_ONCE invitations at once to one address, and ALL_AT_ONCE to all addresses together.
ORGANIZATION_AT_ONCE, ORGANIZATION_PER_S = 20, 1 / 60
EACH_AT_ONCE, EACH_PER_S = 3, 1 / 1_200
ALL_AT_ONCE, ALL_PER_S = 20, 0.2
# The rate limit on uses of invitation links from one client's IPv4 address or IPv6 network.
# Registrations with invitation links also have one rate limit for all clients together: ALL_AT_ONCE and ALL_PER_S.
CLIENTS_AT_ONCE, CLIENTS_PER_S = 20, 0.1
_REFUSAL: Final = "Too many invitations. Try again later."
_REFUSAL_USE: Final = "Too many uses of invitations. Try again later."


class Invitations:
    """Handlers for the invitations of an organization, and for /v1/invitations.

    `mailer` is None if the operator has set no mail server, and `public_url` is None if the operator has set no public
    URL. `may_mail` says whether Everput may send e-mail for an organization.
    """

    def __init__(
        self,
        commands: InvitationCommands,
        view: DirectoryView,
        sessions: Sessions,
        clients: Clients,
        *,
        mailer: Mailer | None,
        may_mail: Callable[[str], bool],
        public_url: str | None,
    ) -> None:
        self._commands = commands
        self._view = view
        self._sessions = sessions
        self._clients = clients
        self._mailer = mailer
        self._may_mail = may_mail
        self._public_url = public_url
        self._of_organizations = Limit("invitations", ORGANIZATION_AT_ONCE, per_s=ORGANIZATION_PER_S, refusal=_REFUSAL)
        self._each = Limit("invited-address", EACH_AT_ONCE, per_s=EACH_PER_S, refusal=_REFUSAL)
        self._all = Limit("all-invitations", ALL_AT_ONCE, per_s=ALL_PER_S, refusal=_REFUSAL)
        self._of_clients = Limit("network-invited", CLIENTS_AT_ONCE, per_s=CLIENTS_PER_S, refusal=_REFUSAL_USE)
        self._registrations = Limit("all-invited", ALL_AT_ONCE, per_s=ALL_PER_S, refusal=_REFUSAL_USE)
        self._sending: set[asyncio.Task[None]] = set()

    async def create(self, call: Call) -> Any:
        """Create an invitation for an e-mail address. If Everput has a public URL and may send e-mail for the
        organization, begin to mail the link. The answer holds the invitation's token and, if there is a public URL, the
        link. Later answers have neither the token nor the link.
        """
        await as_member(call, self._sessions, self._view, MEMBERS)
        body = await call.json(InvitationBody, small=True)
        check_email(body.email)
        check_role(body.role)
        mailer = self._mailer if self._public_url is not None and self._may_mail(call.organization_id) else None
        if mailer is not None:
            self._all.check(call.headers, EVERYBODY)
            self._each.check(call.headers, body.email.lower())
        self._of_organizations.take(call.headers, call.organization_id)
        if mailer is not None:
            self._each.take(call.headers, body.email.lower())
            self._all.take(call.headers, EVERYBODY)
        invitation, token = await self._commands.invite(call.context(), body.email, body.role)
        link = None if self._public_url is None else f"{self._public_url}/console#/invitation/{token}"
        if mailer is not None and link is not None:
            name = self._view.state.organizations[call.organization_id].name
            task = asyncio.create_task(_send(mailer, invitation, *invitation_mail(name, link)))
            self._sending.add(task)
            task.add_done_callback(self._sending.discard)
        call.headers.append((b"cache-control", b"no-store"))
        return {"invitation": {**_fields(invitation), "token": token, "link": link, "mailed": mailer is not None}}

    async def list(self, call: Call) -> Any:
        """List the open invitations, oldest first."""
        await as_member(call, self._sessions, self._view, MEMBERS)
        return {"invitations": [_fields(one) for one in self._commands.open(call.organization_id)]}

    async def revoke(self, call: Call) -> Any:
        await as_member(call, self._sessions, self._view, MEMBERS)
        return {"invitation": _fields(await self._commands.revoke(call.context(), call.path("invitation_id")))}

    async def accept(self, call: Call) -> Any:
        """Make the signed-in account a member of the organization that the token is for."""
        session = await self._sessions.find(call.scope, call.headers)
        call.by_session(session)
        body = await call.json(TokenBody, small=True)
        self._count_use(call)
        invitation = await self._commands.find(body.token)
        made = await self._commands.accept(invitation, session.account_id, request_id=call.request_text)
        return {"organization": _named(made)}

    async def register(self, call: Call) -> Any:
        """Create the account of the invited e-mail address and make it a member, even if registration is closed."""
        body = await call.json(InvitedAccountBody, small=True)
        self._count_use(call)
        invitation = await self._commands.find(body.token)
        self._registrations.take(call.headers, EVERYBODY)
        account, made = await self._commands.register(invitation, body.password, request_id=call.request_text)
        return {"account": {"id": account.id, "email": account.email}, "organization": _named(made)}

    def _count_use(self, call: Call) -> None:
        client = self._clients.name(call.scope)
        if client is not None:
            self._of_clients.take(call.headers, client)


async def _send(mailer: Mailer, invitation: Invitation, subject: str, text: str) -> None:
    status, said = await mailer.send(invitation.email, subject, text)
    log.info("invitation.mailed invitation=%s status=%d reply=%s", invitation.id, status, said)


def _fields(invitation: Invitation) -> dict[str, Any]:
    return {
        "id": invitation.id,
        "email": invitation.email,
        "role": invitation.role,
        "created_at": rfc3339(invitation.created_at_ms),
        "expires_at": rfc3339(invitation.expires_at_ms),
    }


def _named(organization: Organization) -> dict[str, Any]:
    return {"id": organization.id, "name": organization.name}
