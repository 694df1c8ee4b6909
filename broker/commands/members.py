"""Commands on the members of organizations.

Not for: accounts (accounts.py), invitations (invitations.py), what a role permits (broker/core/roles.py), who may call
a command (api/auth.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from broker.commands.context import Context, account_actor, account_context, event_fields, record
from broker.commands.organizations import create_organization
from broker.core import events as ev
from broker.core.entities import Organization
from broker.core.names import shortened
from broker.core.roles import OWNER, ROLES
from broker.errors import Changed, NotFound, QuotaReached, Refused
from broker.ports import ControlLog, DirectoryView

ORGANIZATIONS_MAX: Final = 20  # organizations of one account
_NO_OWNER: Final = "You are no owner of this organization any more. Ask an owner."


class LastMember(Refused):
    """The change is refused: after it, an organization would have no owner who can sign in."""

    code = "last-member"


class MemberCommands:
    """The commands on the members of organizations. Their events are written to the topic `control`."""

    def __init__(self, control: ControlLog, view: DirectoryView) -> None:
        self._control = control
        self._view = view

    async def leave(self, context: Context, account_id: str, *, even_if_last: bool = False) -> None:
        """Remove the account from an organization.

        `context` names the organization and the author of the command. Raises NotFound if the account is not a member.
        Raises LastMember if the account is the last owner who can sign in, and `even_if_last` is not set. Raises
        Changed if the author is another member who is no owner any more.
        """
        event = ev.OrganizationLeft(**event_fields(context), account_id=account_id, even_if_last=even_if_last)
        if await record(self._control, self._view, event):
            return
        organization = self._view.state.organizations.get(context.organization_id)
        if organization is None or account_id not in organization.members:
            raise NotFound("No member of this organization has this ID. Check the ID.")
        if not self._view.state.is_last(organization, account_id):
            raise Changed(_NO_OWNER)
        raise LastMember(
            f"{without_owner([organization])} Set `even_if_last` to true (command line: --even-if-last) to remove this "
            "owner anyway."
        )

    async def change_role(self, context: Context, account_id: str, role: str) -> None:
        """Give a member of an organization another role.

        `context` names the organization and the author of the command. Raises Refused if the role does not exist, and
        NotFound if the account is no member. Raises LastMember if the member is the last owner who can sign in, and
        `role` is not `owner`. Raises Changed if the author is no owner any more.
        """
        check_role(role)
        if self._has_role(context.organization_id, account_id, role):
            return
        event = ev.MemberRoleChanged(**event_fields(context), account_id=account_id, role=role)
        if await record(self._control, self._view, event):
            return
        if not self._has_role(context.organization_id, account_id, role):
            raise Changed(_NO_OWNER)

    def _has_role(self, organization_id: str, account_id: str, role: str) -> bool:
        """Return whether a member has the role already. Raises NotFound if the account is no member. Raises LastMember
        if the member is the last owner who can sign in, and `role` is not `owner`.
        """
        state = self._view.state
        before = state.role_of(organization_id, account_id)
        if before is None:
            raise NotFound("No member of this organization has this ID. Check the ID.")
        organization = state.organizations[organization_id]
        if role != OWNER and state.is_last(organization, account_id):
            raise LastMember(
                f"{without_owner([organization])} First make another member an owner, or invite an owner and wait "
                "until the invitation is accepted.",
                pointer="/role",
            )
        return before == role

    async def create_organization(self, account_id: str, *, name: str, request_id: str = "") -> Organization:
        """Create an organization with this account as its only member.

        Raises Refused if the name is not valid. Raises QuotaReached if the account is in too many organizations, or has
        created too many organizations.
        """
        state = self._view.state
        joined = sum(1 for _ in state.organizations_of(account_id))
        if joined >= ORGANIZATIONS_MAX:
            raise QuotaReached(f"An account may be in at most {ORGANIZATIONS_MAX} organizations. Leave one first.")
        if state.founded_count(account_id) >= ORGANIZATIONS_MAX:
            raise QuotaReached(
                f"This account has created {ORGANIZATIONS_MAX} organizations, including those that it has left. This "
                "is the limit. Use one of its organizations, or ask another person to create one and invite you."
            )
        made = await create_organization(
            self._control, self._view, name=name, actor=account_actor(account_id, request_id), request_id=request_id
        )
        return await self.join(account_id, made.id, request_id=request_id)

    async def join(self, account_id: str, organization_id: str, *, request_id: str = "") -> Organization:
        """Make the account a member of the organization, with the role `owner`. If the account is a member already, it
        keeps its role. Raises NotFound if the organization or the account does not exist.
        """
        context = replace(account_context(account_id, request_id), organization_id=organization_id)
        await record(self._control, self._view, ev.OrganizationJoined(**event_fields(context), account_id=account_id))
        organization = self._view.state.organizations.get(organization_id)
        if organization is None or account_id not in organization.members:
            raise NotFound(
                "The organization or the account does not exist. GET /v1/organizations lists your organizations."
            )
        return organization


def check_role(role: str) -> None:
    """Raise Refused if the text is no role."""
    if role not in ROLES:
        raise Refused(f"{shortened(role)!r} is no role. Use one of {', '.join(ROLES)}.", pointer="/role")


def without_owner(organizations: Sequence[Organization]) -> str:
    """Return the sentence of an error which says that these organizations would have no owner who can sign in."""
    names = ", ".join(f"{one.name} ({one.id})" for one in organizations)
    return f"No owner who can sign in would be left in {names}."
