"""The members resource: the accounts that may act in an organization.

For: listing the members, removing one, leaving. Not for: what ends with a membership (broker/core/directory.py), who is
signed in (auth.py).
"""

from __future__ import annotations

from typing import Any

from api.auth import Sessions
from api.calls import Call
from api.pages import flag_parameter
from broker.commands.accounts import AccountCommands
from broker.core.accounts import Account
from broker.errors import NotFound
from broker.ports import DirectoryView


class OrganizationMembers:
    """Handlers for the members of an organization. All members have the same rights."""

    def __init__(self, commands: AccountCommands, view: DirectoryView, sessions: Sessions) -> None:
        self._commands = commands
        self._view = view
        self._sessions = sessions

    async def list(self, call: Call) -> Any:
        """List all members in the order in which they joined."""
        await as_member(call, self._sessions, self._view)
        state = self._view.state
        members = state.organizations[call.organization_id].members
        return {"members": [_fields(state.accounts.by_id[member]) for member in members]}

    async def remove(self, call: Call) -> Any:
        """Remove a member from the organization. Members may remove themselves. The answer shows the removed member."""
        await as_member(call, self._sessions, self._view)
        even_if_last = flag_parameter(call.query(), "even_if_last")
        account_id = call.path("account_id")
        if not self._view.state.is_member(call.organization_id, account_id):
            raise NotFound("No member of this organization has this ID.")
        shown = _fields(self._view.state.accounts.by_id[account_id])
        await self._commands.leave(call.context(), account_id, even_if_last=even_if_last)
        return {"member": shown}


async def as_member(call: Call, sessions: Sessions, view: DirectoryView) -> None:
    """Require the session of a member of the path's organization. Raises NoSession without a session, and NotFound for
    an account that is no member.
    """
    session = await sessions.find(call.scope, call.headers)
    organization_id = call.path("organization_id")
    if not view.state.is_member(organization_id, session.account_id):
        raise NotFound("None of your organizations has this ID. GET /v1/organizations lists them.")
    call.by_member(session, organization_id)


def _fields(account: Account) -> dict[str, Any]:
    return {"id": account.id, "email": account.email, "blocked": account.blocked}
