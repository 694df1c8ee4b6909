"""Queues by name or id.

For: recognizing an id, and the error for a key that may not look names up. Not for: requests (api_commands.py).
"""

from __future__ import annotations

from uuid import UUID

from broker.errors import ConfigurationError


def is_id(text: str) -> bool:
    """Return whether the text has the form of an id. The name of a queue may also have this form."""
    try:
        return str(UUID(text)) == text.lower()
    except ValueError:
        return False


class NoNames(ConfigurationError):
    """The error that an API key has no right to look up queues by name.

    With the id of a queue, the key can still use the queue.
    """

    def __init__(self, queue: str) -> None:
        super().__init__(
            f"this API key lacks the scope 'queues:read', so it can't look up {queue}: give the queue's ID"
        )
