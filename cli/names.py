"""Queues by name or id.

For: recognizing an id, and the error for a key that may not look names up. Not for: requests (api_commands.py).
"""

from __future__ import annotations

from uuid import UUID

from broker.errors import ConfigurationError


def is_id(text: str) -> bool:
    """Return whether the text is a UUID with hyphens. A queue's id is such a UUID, but its name may also be one."""
    try:
        return str(UUID(text)) == text.lower()
    except ValueError:
        return False


class NoNames(ConfigurationError):
    """The error that the API key may not look up a queue by its name. The user can give the queue's ID instead, which
    needs no look-up.
    """

    def __init__(self, queue: str) -> None:
        super().__init__(
            f"this API key lacks the scope 'queues:read', so it can't look up {queue}: give the queue's ID"
        )
