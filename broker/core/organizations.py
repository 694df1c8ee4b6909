"""Organizations, their members and the bytes that they store, computed from the events of the topic `control`.

For: how an event changes an organization, and which account pays for it. Not for: its fields (entities.py), its queues
and listeners (directory.py), its API keys (api_keys.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

from broker.core import events as ev
from broker.core.accounts import Accounts
from broker.core.entities import DAY_MS, Organization
from broker.core.events import Event
from broker.core.invitations import Invitations
from broker.core.roles import MEMBERS, OWNER, ROLES


class Organizations:
    """All organizations, computed from the events of the topic `control`."""

    def __init__(self, accounts: Accounts) -> None:
        self._accounts = accounts
        self.by_id: dict[str, Organization] = {}
        self.invitations = Invitations()
        self._of_account: dict[str, dict[str, None]] = {}  # organization ids by account id
        self._founded: Counter[str] = Counter()  # organizations created, by account id
        self._bytes_of: dict[str, Counter[int]] = {}  # stored bytes by tenant and day

    def of_account(self, account_id: str) -> Iterator[Organization]:
        """Yield the organizations of an account, in the order in which it joined them."""
        return (self.by_id[each] for each in self._of_account.get(account_id, ()))

    def is_member(self, organization_id: str, account_id: str) -> bool:
        organization = self.by_id.get(organization_id)
        return organization is not None and account_id in organization.members

    def role_of(self, organization_id: str, account_id: str) -> str | None:
        """Return the role of a member; None for an account that is no member."""
        if not self.is_member(organization_id, account_id):
            return None
        return self.by_id[organization_id].roles.get(account_id, OWNER)

    def scopes_of(self, organization_id: str, account_id: str) -> tuple[str, ...]:
        """Return the scopes of an account in the organization. Return an empty tuple if the account is not a member."""
        role = self.role_of(organization_id, account_id)
        return () if role is None else ROLES.get(role, ())

    def is_last(self, organization: Organization, account_id: str) -> bool:
        """Return whether the account is an owner of the organization, and no other owner can sign in: there is no other
        owner, or all other owners are blocked.
        """
        owners = [member for member in organization.members if member not in organization.roles]
        return account_id in owners and all(
            self._accounts.by_id[owner].blocked for owner in owners if owner != account_id
        )

    def tenant_of(self, organization_id: str) -> str:
        """Return the tenant whose limits apply to the organization: the account that created the organization. If no
        account did, the organization itself is the tenant.
        """
        organization = self.by_id.get(organization_id)
        return organization_id if organization is None else organization.founder or organization_id

    def founded_count(self, account_id: str) -> int:
        """Return how many organizations the account has created, including those that it has left."""
        return self._founded[account_id]

    def bytes_of(self, tenant: str, at_ms: int) -> int:
        """Return how many bytes all organizations of a tenant have stored since the start of the UTC day of `at_ms`.
        The number is the sum of the events `volume.recorded`. Bytes that no such event has reported yet are not
        included.
        """
        day = at_ms // DAY_MS
        return sum(size for one, size in self._bytes_of.get(tenant, {}).items() if one >= day)

    def apply(
        self,
        event: ev.OrganizationCreated
        | ev.OrganizationJoined
        | ev.OrganizationLeft
        | ev.MemberRoleChanged
        | ev.InvitationEvent
        | ev.VolumeRecorded,
    ) -> bool:
        """Update the organizations with one event of the log. Return False if the event changes nothing."""
        match event:
            case ev.OrganizationCreated():
                return self._created(event)
            case ev.OrganizationJoined():
                return self._join(event.organization_id, event.account_id)
            case ev.OrganizationLeft():
                return self._left(event)
            case ev.MemberRoleChanged():
                return self._role_changed(event)
            case ev.InvitationCreated():
                return self._invitation_created(event)
            case ev.InvitationEvent():
                return self._invitation_ended(event)
            case ev.VolumeRecorded():
                return self._volume_recorded(event)

    def account_deleted(self, event: ev.AccountDeleted) -> bool:
        """Remove a deleted account from all its organizations, and return True. If the account is the last owner of an
        organization and the event's `even_if_last` is false, change nothing and return False.
        """
        organizations = list(self.of_account(event.account_id))
        if not event.even_if_last and any(self.is_last(one, event.account_id) for one in organizations):
            return False
        for one in organizations:
            self._leave(one, event.account_id)
        return True

    def _created(self, event: ev.OrganizationCreated) -> bool:
        if event.organization_id in self.by_id:
            return False
        self.by_id[event.organization_id] = Organization(
            id=event.organization_id, name=event.name, founder=_account_of(event), by_shell=by_shell(event)
        )
        if founder := _account_of(event):
            self._founded[founder] += 1
        return True

    def _join(self, organization_id: str, account_id: str, role: str = OWNER) -> bool:
        """Make the account a member of the organization with this role.

        Return False if the organization or the account does not exist, or if the account is a member already.
        """
        organization = self.by_id.get(organization_id)
        if organization is None or account_id in organization.members or account_id not in self._accounts.by_id:
            return False
        roles = organization.roles if role == OWNER else {**organization.roles, account_id: role}
        self.by_id[organization.id] = replace(organization, members=(*organization.members, account_id), roles=roles)
        self._of_account.setdefault(account_id, {})[organization.id] = None
        return True

    def _invitation_created(self, event: ev.InvitationCreated) -> bool:
        inviter = _account_of(event)
        may = MEMBERS in self.scopes_of(event.organization_id, inviter) and not self._accounts.by_id[inviter].blocked
        if event.organization_id not in self.by_id or (inviter and not may):
            return False
        return self.invitations.create(event)

    def _invitation_ended(self, event: ev.InvitationEvent) -> bool:
        invitation = self.invitations.find(event.organization_id, event.invitation_id)
        if invitation is None:
            return False
        if isinstance(event, ev.InvitationAccepted) and (
            invitation.has_expired(event.at_ms)
            or not self._join(event.organization_id, event.account_id, invitation.role)
        ):
            return False
        self.invitations.forget(invitation)
        return True

    def _left(self, event: ev.OrganizationLeft) -> bool:
        organization = self.by_id.get(event.organization_id)
        if organization is None or event.account_id not in organization.members:
            return False
        if not event.even_if_last and self.is_last(organization, event.account_id):
            return False
        remover = _account_of(event)
        # Refuse to remove another member if the account that requested the removal is a member, but not an owner.
        # If the account that requested the removal has left the organization meanwhile, remove the member all the same.
        if remover not in ("", event.account_id) and remover in organization.roles:
            return False
        self._leave(organization, event.account_id)
        if remover != event.account_id:
            # End all invitations to the removed member's address: one of them could make the account a member again.
            self.invitations.forget_all_to(self._accounts.by_id[event.account_id].email, organization.id)
        return True

    def _role_changed(self, event: ev.MemberRoleChanged) -> bool:
        organization, author = self.by_id.get(event.organization_id), _account_of(event)
        may = not author or MEMBERS in self.scopes_of(event.organization_id, author)
        before = self.role_of(event.organization_id, event.account_id)
        if organization is None or not may or before in (None, event.role) or event.role not in ROLES:
            return False
        if self.is_last(organization, event.account_id):
            return False
        roles = {member: role for member, role in organization.roles.items() if member != event.account_id}
        if event.role != OWNER:
            roles[event.account_id] = event.role
            # If the account was an owner, end all invitations that it created: one could make it an owner again.
            self.invitations.forget_all_by(event.account_id, organization.id)
        # After a change of role, end all invitations to the member's address: one of them could restore the old role.
        self.invitations.forget_all_to(self._accounts.by_id[event.account_id].email, organization.id)
        self.by_id[organization.id] = replace(organization, roles=roles)
        return True

    def _leave(self, organization: Organization, account_id: str) -> None:
        members = tuple(member for member in organization.members if member != account_id)
        roles = {member: role for member, role in organization.roles.items() if member != account_id}
        self.by_id[organization.id] = replace(organization, members=members, roles=roles)
        del self._of_account[account_id][organization.id]
        # End all invitations that the former member created: one of them could make the account a member again.
        self.invitations.forget_all_by(account_id, organization.id)

    def _volume_recorded(self, event: ev.VolumeRecorded) -> bool:
        organization = self.by_id.get(event.organization_id)
        if organization is None:
            return False
        day = event.at_ms // DAY_MS
        size = organization.bytes_by_day.get(day, 0) + event.bytes
        days = {**organization.bytes_by_day, day: size}
        self.by_id[organization.id] = replace(organization, bytes_by_day=days)
        self._bytes_of.setdefault(self.tenant_of(organization.id), Counter())[day] += event.bytes
        return True


def _account_of(event: Event) -> str:
    """Return the id of the account that caused the event; empty if no account did."""
    kind, _, account_id = event.actor.partition(":")
    return account_id if kind == "account" else ""


def by_shell(event: Event) -> bool:
    """Return whether the operator caused the event by a command. The first versions of Everput left the event's `actor`
    empty in this case.
    """
    return event.actor in ("shell", "")
