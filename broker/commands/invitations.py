"""Commands on invitations to organizations: invite, revoke, accept.

For: the token, and what each command refuses. Not for: rate limits and mails (api/invitations.py), how the events
change the members (broker/core/organizations.py).
"""

from __future__ import annotations

import os
from typing import Final
from uuid import uuid4

from broker.clock import now_ms
from broker.commands.accounts import AccountCommands, check_email
from broker.commands.context import Context, event_fields, record
from broker.commands.members import ORGANIZATIONS_MAX, check_role
from broker.core import events as ev
from broker.core import keys
from broker.core.accounts import Account
from broker.core.entities import Organization
from broker.core.invitations import Invitation
from broker.core.roles import OWNER
from broker.errors import NotFound, QuotaReached, Refused
from broker.ports import ControlLog, DirectoryView

VALID_S: Final = 7 * 86_400  # how long a link works
OPEN_MAX: Final = 100  # open invitations of one organization
# While an organization has this many members, nobody can accept an invitation to it.
MEMBERS_MAX: Final = 1_000
_SUBJECT: Final = "Everput: invitation to an organization"
_TEXT: Final = """\
You are invited to the organization "{name}" on Everput. To accept, open this page within seven days:

{link}

If you do not expect this invitation, ignore this mail.
"""


class InvitationCommands:
    """The commands on invitations. They write their events to the topic `control`."""

    def __init__(self, control: ControlLog, view: DirectoryView, accounts: AccountCommands | None = None) -> None:
        self._control = control
        self._view = view
        self._accounts = accounts or AccountCommands(control, view)

    async def invite(self, context: Context, email: str, role: str = OWNER) -> tuple[Invitation, str]:
        """Create an invitation, and return it with its token. The token is not available later.

        Raises Refused if `email` is no e-mail address or the address of a member, or if the role does not exist. Raises
        QuotaReached if the organization has too many open invitations. Raises NotFound if the organization does not
        exist, or if the author of the invitation is no owner any more.
        """
        check_email(email)
        check_role(role)
        await self._view.caught_up()
        account = self._view.state.accounts.account(email)
        if account is not None and self._view.state.is_member(context.organization_id, account.id):
            raise Refused(
                "A member of this organization has this e-mail address already, and needs no invitation.",
                pointer="/email",
            )
        if len(self.open(context.organization_id)) >= OPEN_MAX:
            raise QuotaReached(f"An organization may have at most {OPEN_MAX} open invitations. Revoke one first.")
        token = keys.key_text(os.urandom(keys.RANDOM_BYTES), prefix=keys.INVITATION_PREFIX)
        event = ev.InvitationCreated(
            **event_fields(context),
            invitation_id=str(uuid4()),
            email=email,
            token_sha256=keys.key_sha256(token),
            expires_at_ms=context.at_ms + VALID_S * 1000,
            role=role,
        )
        made = await record(self._control, self._view, event)
        invitation = self._view.state.invitations.by_id.get(event.invitation_id)
        if not made or invitation is None:
            raise NotFound(
                "The organization does not exist, or you are not one of its owners any more. "
                "GET /v1/organizations lists your organizations with your role."
            )
        return invitation, token

    def open(self, organization_id: str) -> list[Invitation]:
        """Return the organization's invitations that can be accepted, oldest first."""
        at_ms = now_ms()
        return [one for one in self._view.state.invitations.of(organization_id) if not one.has_expired(at_ms)]

    async def revoke(self, context: Context, invitation_id: str) -> Invitation:
        """Revoke an invitation, and return it as it was. Raises NotFound if there is no such invitation, or if it was
        accepted or revoked before, or has expired.
        """
        invitation = self._view.state.invitations.find(context.organization_id, invitation_id)
        event = ev.InvitationRevoked(**event_fields(context), invitation_id=invitation_id)
        # An expired invitation stays in memory until the organization's next one is created, so check the expiry here.
        if invitation is None or invitation.has_expired(now_ms()) or not await record(self._control, self._view, event):
            raise NotFound(
                "No open invitation of this organization has this ID. It was accepted, revoked or removed, it has "
                "expired, or the ID is wrong."
            )
        return invitation

    async def find(self, token: str) -> Invitation:
        """Return the invitation with this token. Raises Refused if the token is wrong, or if the invitation was
        accepted or revoked, or has expired. The error's text does not say which.
        """
        if keys.is_key(token, prefix=keys.INVITATION_PREFIX):
            await self._view.caught_up()
            found = self._view.state.invitations.by_sha256.get(keys.key_sha256(token))
            if found is not None and not found.has_expired(now_ms()):
                return found
        raise _invalid()

    async def accept(self, invitation: Invitation, account_id: str, *, request_id: str) -> Organization:
        """Make the account a member of the organization, and use up the invitation.

        If the account is a member already, do nothing: the invitation stays open. Raises Refused if the invitation is
        not open any more. Raises QuotaReached if the account is in too many organizations, or if the organization has
        too many members.
        """
        state = self._view.state
        if not state.is_member(invitation.organization_id, account_id):
            if sum(1 for _ in state.organizations_of(account_id)) >= ORGANIZATIONS_MAX:
                raise QuotaReached(f"An account may be in at most {ORGANIZATIONS_MAX} organizations. Leave one first.")
            self._check_room(invitation.organization_id)
            event = ev.InvitationAccepted(
                at_ms=now_ms(),
                organization_id=invitation.organization_id,
                actor=f"account:{account_id}",
                request_id=request_id,
                invitation_id=invitation.id,
                account_id=account_id,
            )
            await record(self._control, self._view, event)
        if not state.is_member(invitation.organization_id, account_id):
            raise _invalid()
        return state.organizations[invitation.organization_id]

    async def register(self, invitation: Invitation, password: str, *, request_id: str) -> tuple[Account, Organization]:
        """Create the account of the invited e-mail address, and then make it a member.

        Raises QuotaReached if the organization has too many members, Refused if the password is not valid, and
        EmailTaken if the account exists already. If the invitation ends after the account was created, Refused is
        raised. If the organization becomes full, QuotaReached is raised. In both cases, the account remains, but is not
        a member.
        """
        self._check_room(invitation.organization_id)
        account = await self._accounts.create_account(invitation.email, password, request_id=request_id)
        return account, await self.accept(invitation, account.id, request_id=request_id)

    def _check_room(self, organization_id: str) -> None:
        """Raise QuotaReached if the organization has no room for another member."""
        if len(self._view.state.organizations[organization_id].members) >= MEMBERS_MAX:
            raise QuotaReached(
                f"An organization may have at most {MEMBERS_MAX} members. Ask an owner to remove one first."
            )


def invitation_mail(organization: str, link: str) -> tuple[str, str]:
    """Return the subject and the text of the mail with an invitation's link."""
    return _SUBJECT, _TEXT.format(name=organization, link=link)


def _invalid() -> Refused:
    return Refused(
        "This link is not valid any more. Ask an owner of the organization for another one.", pointer="/token"
    )
