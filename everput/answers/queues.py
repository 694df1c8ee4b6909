"""The shapes of the answers about queues."""

from __future__ import annotations

from msgspec import UNSET, UnsetType, field

from everput.answers.base import Answer, Links, Named, PageLinks


class AlertFields(Answer):
    """The thresholds for alerts that are set. 0 means never. Others are those of the queue, or the defaults.

    lag_messages: The messages that wait for a listener.
    lag_s: The age of the oldest waiting message, in seconds.
    parked: The parked deliveries.
    down_s: The seconds for which a listener is down.
    failing_s: The seconds for which a listener is failing.
    """

    lag_messages: int | UnsetType = UNSET
    lag_s: int | UnsetType = UNSET
    parked: int | UnsetType = UNSET
    down_s: int | UnsetType = UNSET
    failing_s: int | UnsetType = UNSET


class QueueFields(Named, kw_only=True):
    """A queue.

    listeners: The queue's listeners, oldest first.
    alerts: The thresholds for alerts about its listeners; absent if none is set.
    """

    listeners: list[Named]
    alerts: AlertFields | UnsetType = UNSET


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
