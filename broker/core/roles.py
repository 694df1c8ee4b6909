"""The roles of the members of an organization: what each role may do there, as a set of scopes.

For: the roles and their scopes. Not for: the scopes of API keys (keys.py), who has which role (organizations.py), the
check of a request (api/calls.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

# The scope to manage invitations, change the roles of members, and remove members. API keys can't have it.
MEMBERS: Final = "members"
OWNER: Final = "owner"
ROLES: Final[Mapping[str, tuple[str, ...]]] = {
    OWNER: ("queues", "messages", "keys", "audit", MEMBERS),
    "developer": ("queues", "messages", "keys", "audit"),
    "operator": ("queues:read", "queues:operate", "messages:read", "audit"),
    "auditor": ("queues:read", "messages:read", "audit"),
}
