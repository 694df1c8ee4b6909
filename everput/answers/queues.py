"""The shapes of the answers about queues."""

from __future__ import annotations

from msgspec import field

from everput.answers.base import Answer, Links, Named, PageLinks


class QueueFields(Named):
    """A queue.

    listeners: The queue's listeners, oldest first.
    """

    listeners: list[Named]


class QueueAnswer(Answer):
    """A queue with its links.

    queue: The queue.
    links: Links of the queue.
    """

    queue: QueueFields
    links: Links = field(name="_links")


class QueuesAnswer(Answer):
    """A page of the organization's queues.

    queues: The queues, oldest first.
    links: Links to this page and the next.
    """

    queues: list[QueueFields]
    links: PageLinks = field(name="_links")
