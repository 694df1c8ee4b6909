"""The events of alerts in the topic `control`, and the thresholds of queues and listeners.

For: their fields and wire names. Not for: when an alert begins or ends (alerts.py).
"""

from __future__ import annotations

import msgspec
from msgspec import UNSET, UnsetType

from broker.core.event import Event


class AlertThresholds(msgspec.Struct, frozen=True, kw_only=True):
    """The thresholds at which alerts about a listener begin. With a threshold of 0, no alert begins. If a listener's
    threshold is None, the queue's threshold applies. If the queue's threshold is None, too, the default applies.
    """

    lag_messages: int | None = None  # messages that wait
    lag_s: int | None = None  # age of the oldest waiting message
    parked: int | None = None  # parked deliveries
    down_s: int | None = None  # how long the listener is down
    failing_s: int | None = None  # how long the listener is failing


class QueueAlertsSet(Event, frozen=True, kw_only=True, tag="queue.alerts_set"):
    """The event that the thresholds for alerts about a queue's listeners were changed."""

    queue_id: str
    alerts: AlertThresholds
    if_version: int | UnsetType = UNSET


class AlertEvent(Event, frozen=True, kw_only=True):
    """The base class of the events about alerts. No event has this class itself.

    `alert` is the kind of alert, such as `listener.down`. Each time an alert begins, it gets a new `alert_id`.
    `listener_id` and `queue_id` are empty if the alert is not about a listener. `key_id` is empty if the alert is not
    about an API key.
    """

    alert: str
    alert_id: str
    listener_id: str = ""
    queue_id: str = ""
    key_id: str = ""
    began_at_ms: int = 0  # when the condition began
    facts: dict[str, int | str] = msgspec.field(default_factory=dict)  # facts about the subject, by name
    quiet: bool = False  # the event gets no message


class AlertRaised(AlertEvent, frozen=True, kw_only=True, tag="alert.raised"):
    """The event which says that an alert began."""


class AlertCleared(AlertEvent, frozen=True, kw_only=True, tag="alert.cleared"):
    """The event which says that an alert ended."""


class AlertTold(Event, frozen=True, kw_only=True, tag="alert.told"):
    """The event which says that Everput has put the message about an alert's beginning or end. `message_id` is the id
    of the message.
    """

    alert_id: str
    message_id: str
