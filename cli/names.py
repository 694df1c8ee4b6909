"""Queues by name or ID.

For: recognizing an ID, and the error for a key that may not look names up. Not for: requests (api_commands.py)."""

from __future__ import annotations

from uuid import UUID

from broker.errors import ConfigurationError


def is_id(text: str) -> bool:
    """Tell whether the text has the form of an ID. A queue's name may have it, too."""
    try:
        return str(UUID(text)) == text.lower()
    except ValueError:
        return False


class NoNames(ConfigurationError):
    """The key may not read queues. It can use a queue by its ID."""

    def __init__(self, queue: str) -> None:
        super().__init__(f"this API key lacks the scope 'queues', so it can't look up {queue}: give the queue's ID")
