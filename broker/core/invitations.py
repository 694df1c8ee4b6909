"""Invitations to organizations, computed from the events of the topic `control` as a part of the directory.

For: the open invitations, and how an event changes them. An invitation that was accepted or revoked is forgotten. Not
for: how an accepted invitation makes a member (organizations.py), sending the link (api/invitations.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from broker.core import events as ev


@dataclass(frozen=True, slots=True, kw_only=True)
class Invitation:
    """An invitation to an organization, which is neither accepted nor revoked. The invitation may have expired.

    The invitation's token makes one account a member. Only the SHA-256 of the token is stored. `email` is the invited
    address, and `role` the role of the new member.
    """

    id: str
    organization_id: str
    email: str
    token_sha256: str
    created_at_ms: int
    expires_at_ms: int
    created_by: str
    role: str

    def has_expired(self, at_ms: int) -> bool:
        return self.expires_at_ms <= at_ms


class Invitations:
    """The open invitations of all organizations, and some that have expired."""

    def __init__(self) -> None:
        self.by_id: dict[str, Invitation] = {}
        self.by_sha256: dict[str, Invitation] = {}
        self._of: dict[str, dict[str, Invitation]] = {}  # by organization id

    def of(self, organization_id: str) -> Iterator[Invitation]:
        """Yield the organization's invitations in the order of their creation. Some of them may have expired."""
        return iter(self._of.get(organization_id, {}).values())

    def find(self, organization_id: str, invitation_id: str) -> Invitation | None:
        """Return the organization's invitation with this ID, which may have expired. Return None for an invitation that
        was accepted or revoked, and if there is no such invitation.
        """
        found = self.by_id.get(invitation_id)
        return found if found is not None and found.organization_id == organization_id else None

    def create(self, event: ev.InvitationCreated) -> bool:
        """Add an invitation, and forget the expired invitations of its organization.

        Return False if the event changes nothing.
        """
        if event.invitation_id in self.by_id or event.token_sha256 in self.by_sha256:
            return False
        for other in list(self.of(event.organization_id)):
            if other.has_expired(event.at_ms):
                self.forget(other)
        made = Invitation(
            id=event.invitation_id,
            organization_id=event.organization_id,
            email=event.email,
            token_sha256=event.token_sha256,
            created_at_ms=event.at_ms,
            expires_at_ms=event.expires_at_ms,
            created_by=event.actor,
            role=event.role,
        )
        self.by_id[made.id] = self.by_sha256[made.token_sha256] = made
        self._of.setdefault(made.organization_id, {})[made.id] = made
        return True

    def forget(self, invitation: Invitation) -> None:
        """Remove an invitation. Nobody can become a member with its token any more."""
        del self.by_id[invitation.id], self.by_sha256[invitation.token_sha256]
        del self._of[invitation.organization_id][invitation.id]

    def forget_all_by(self, account_id: str, organization_id: str | None = None) -> None:
        """Remove all invitations that the account has created in this organization, or in all organizations if
        `organization_id` is None.
        """
        of = self.by_id.values() if organization_id is None else self.of(organization_id)
        for one in [one for one in of if one.created_by == f"account:{account_id}"]:
            self.forget(one)

    def forget_all_to(self, email: str, organization_id: str) -> None:
        """Remove all invitations of an organization to this e-mail address."""
        for one in [one for one in self.of(organization_id) if one.email.lower() == email.lower()]:
            self.forget(one)

    def everything(self) -> Any:
        """Return all invitations in a fixed order, so that two states can be compared by a hash."""
        return sorted(self.by_id.values(), key=lambda one: one.id)
