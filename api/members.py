"""The members resource: the accounts that may act in an organization.

For: listing the members, changing a role, removing one, leaving. Not for: what ends with a membership
(broker/core/directory.py), who is signed in (auth.py).
"""

from __future__ import annotations

from typing import Any, Final

from api.auth import Sessions
from api.calls import Call
from api.changes import ChangeLimits
from api.pages import flag_parameter
from api.shapes import RoleBody
from broker.commands.members import MemberCommands
from broker.core.accounts import Account
from broker.core.roles import MEMBERS
from broker.errors import NotFound
from broker.ports import DirectoryView

_NO_MEMBER: Final = "No member of this organization has this ID. Check the ID."


class OrganizationMembers:
    """Handlers for the members of an organization. Only owners may change and remove other members."""

    def __init__(
        self, commands: MemberCommands, view: DirectoryView, sessions: Sessions, changes: ChangeLimits
    ) -> None:
        self._commands = commands
        self._changes = changes
        self._view = view
        self._sessions = sessions

    async def list(self, call: Call) -> Any:
        """List all members in the order in which they joined."""
        await as_member(call, self._sessions, self._view)
        state = self._view.state
        members = state.organizations[call.organization_id].members
        return {"members": [self._fields(call, state.accounts.by_id[member]) for member in members]}

    async def change(self, call: Call) -> Any:
        """Give a member another role."""
        await as_member(call, self._sessions, self._view, MEMBERS)
        body = await call.json(RoleBody, small=True)
        account_id = call.path("account_id")
        self._changes.take(call.headers, call.organization_id)
        await self._commands.change_role(call.context(), account_id, body.role)
        account = self._view.state.accounts.by_id.get(account_id)
        if account is None:
            raise NotFound(_NO_MEMBER)
        return {"member": self._fields(call, account)}

    async def remove(self, call: Call) -> Any:
        """Remove a member from the organization. Members may remove themselves. The last owner who can sign in is
        removed only with `even_if_last=true`. The answer shows the removed member.
        """
        await as_member(call, self._sessions, self._view)
        account_id = call.path("account_id")
        if call.actor != f"account:{account_id}":
            call.need(MEMBERS)
        even_if_last = flag_parameter(call.query(), "even_if_last")
        if not self._view.state.is_member(call.organization_id, account_id):
            raise NotFound(_NO_MEMBER)
        shown = self._fields(call, self._view.state.accounts.by_id[account_id])
        await self._commands.leave(call.context(), account_id, even_if_last=even_if_last)
        return {"member": shown}

    def _fields(self, call: Call, account: Account) -> dict[str, Any]:
        role = self._view.state.role_of(call.organization_id, account.id)
        return {"id": account.id, "email": account.email, "blocked": account.blocked, "role": role}


async def as_member(call: Call, sessions: Sessions, view: DirectoryView, scope: str | None = None) -> None:
    """Require the session of a member of the path's organization. With `scope`, the member's role must have this scope.

    Raises NoSession without a valid session, TooManyRequests beyond the rate limit, NotFound for an account that is no
    member, and Forbidden without the scope.
    """
    session = await sessions.find(call.scope, call.headers)
    organization_id = call.path("organization_id")
    if not view.state.is_member(organization_id, session.account_id):
        raise NotFound("None of your organizations has this ID. GET /v1/organizations lists them.")
    call.by_member(session, organization_id)
    if scope is not None:
        call.need(scope)
