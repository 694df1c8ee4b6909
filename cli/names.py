"""A queue is given by its name or by its id: what the commands that find one have in common.

For: telling an id, and the error for a key that may not look names up. Not for: asking (publish.py)."""

from __future__ import annotations

from uuid import UUID

from broker.errors import ConfigurationError


def is_id(text: str) -> bool:
    """Whether it may be an id; it may be the name of a queue all the same."""
    try:
        return str(UUID(text)) == text.lower()
    except ValueError:
        return False


class NoNames(ConfigurationError):
    """The key may not see the queues: it can use one, by its id."""

    def __init__(self, queue: str) -> None:
        super().__init__(f"this API key lacks the scope 'queues', and so can't look up {queue}: give the queue's id")
