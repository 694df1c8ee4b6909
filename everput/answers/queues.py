"""The shapes of the answers about queues."""

from __future__ import annotations

from msgspec import UNSET, UnsetType, field

from everput.answers.base import Answer, Count, Links, Named, PageLinks, Time


class AlertFields(Answer):
    """The alert thresholds of a listener, or those of a queue for all its listeners. The value 0 turns an alert off. If
    a listener has no threshold of its own, the threshold of its queue applies. If the queue has none, the default
    applies.
    """

    lag_messages: int | UnsetType = UNSET
    """The messages that wait for a listener."""
    lag_s: int | UnsetType = UNSET
    """The age of the oldest waiting message, in seconds."""
    parked: int | UnsetType = UNSET
    """The parked deliveries."""
    down_s: int | UnsetType = UNSET
    """The seconds for which a listener is down."""
    failing_s: int | UnsetType = UNSET
    """The seconds for which a listener is failing."""


class QueueFields(Named, kw_only=True):
    """A queue."""

    listeners: list[Named]
    """The queue's listeners, oldest first."""
    alerts: AlertFields | UnsetType = UNSET
    """The thresholds for alerts about its listeners; absent if none is set."""


class QueueAnswer(Answer):
    """A queue with its links."""

    queue: QueueFields
    """The queue."""
    links: Links = field(name="_links")
    """Links of the queue."""


class QueueHealth(QueueFields, kw_only=True):
    """A queue with the health and the backlog of its listeners. With `health=true`, it has the fields `health`,
    `parked` and `retrying`. With `backlog=true`, it has the fields `lag` and `oldest_pending_at`. These fields are
    missing while Everput can't read their values, and if the request asks about a past time (`at`).
    """

    health: dict[str, Count] | UnsetType = UNSET
    """The number of listeners by state: `healthy`, `failing`, `down`, `paused`, `replaying`, `new`. A state of no
    listener is missing.
    """
    parked: Count | UnsetType = UNSET
    """The number of parked deliveries of all its listeners."""
    retrying: Count | UnsetType = UNSET
    """The number of deliveries with a failed attempt that are retried, of all its listeners."""
    lag: Count | UnsetType = UNSET
    """The number of messages still to be delivered, of all its listeners. A message counts for each listener."""
    oldest_pending_at: Time | UnsetType | None = UNSET
    """The time at which the oldest message that `lag` counts was put; null if there is none."""


class QueuesAnswer(Answer):
    """A page of the organization's queues."""

    queues: list[QueueHealth]
    """The queues, oldest first."""
    links: PageLinks = field(name="_links")
    """Links to this page and the next."""
