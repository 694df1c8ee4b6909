"""Queues by name or id.

For: recognizing an id, and the error for a key that may not look names up. Not for: requests (api_commands.py).
"""

from __future__ import annotations

from uuid import UUID

from broker.errors import ConfigurationError


def is_id(text: str) -> bool:
    """Return whether the text has the form of an id. A queue's name may have this form, too."""
    try:
        return str(UUID(text)) == text.lower()
    except ValueError:
        return False


class NoNames(ConfigurationError):
    """The error that an API key may not look up queues by name. It may still use a queue by its id."""

    def __init__(self, queue: str) -> None:
        super().__init__(f"this API key lacks the scope 'queues', so it can't look up {queue}: give the queue's ID")
