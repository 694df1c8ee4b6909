"""The events of alerts in the topic `control`, and the thresholds of queues and listeners.

For: their fields and wire names. Not for: when an alert begins or ends (alerts.py).
"""

from __future__ import annotations

import msgspec
from msgspec import UNSET, UnsetType

from broker.core.event import Event


class AlertThresholds(msgspec.Struct, frozen=True, kw_only=True):
    """The thresholds from which Everput alerts about a listener. None: as for the queue, or else the default. 0: never.

    lag_messages: messages that wait.
    lag_s: the age of the oldest message that waits.
    parked: parked deliveries.
    down_s: how long the listener is down.
    failing_s: how long the listener is failing.
    """

    lag_messages: int | None = None
    lag_s: int | None = None
    parked: int | None = None
    down_s: int | None = None
    failing_s: int | None = None


class QueueAlertsSet(Event, frozen=True, kw_only=True, tag="queue.alerts_set"):
    """The event that a queue got other thresholds for alerts about its listeners."""

    queue_id: str
    alerts: AlertThresholds
    if_version: int | UnsetType = UNSET


class AlertEvent(Event, frozen=True, kw_only=True):
    """The base class of the events of alerts. It is not an event itself.

    alert: the kind, such as `listener.down` (alerts.py).
    alert_id: one for each episode.
    listener_id, queue_id, key_id: the subject; empty where it is none.
    began_at_ms: when the condition began.
    facts: what was known of the subject, by name.
    quiet: no message tells it.
    """

    alert: str
    alert_id: str
    listener_id: str = ""
    queue_id: str = ""
    key_id: str = ""
    began_at_ms: int = 0
    facts: dict[str, int | str] = msgspec.field(default_factory=dict)
    quiet: bool = False


class AlertRaised(AlertEvent, frozen=True, kw_only=True, tag="alert.raised"):
    """The event that an alert began."""


class AlertCleared(AlertEvent, frozen=True, kw_only=True, tag="alert.cleared"):
    """The event that an alert ended."""


class AlertTold(Event, frozen=True, kw_only=True, tag="alert.told"):
    """The event that the message of an alert's beginning or end was put. message_id: that message."""

    alert_id: str
    message_id: str
