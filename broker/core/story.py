"""The rule that tells which events belong to a message's history although they do not name the message.

For: redrives of all deliveries of a listener and their cancellation, which concern the message only if it was
outstanding, and replays that include the message. Pure; events must come in the order of their times (`at_ms`).
Not for: finding the events (selection.py, broker/audit/reader.py).
"""

from __future__ import annotations

from broker.core.events import (
    DeliveriesSettled,
    DeliveryAttempted,
    Event,
    ListenerRedriven,
    ListenerRedrivesCancelled,
    ReplayStarted,
)
from broker.core.replays import started


class Story:
    """The rule that tells which events belong to the history of one message. If `whole` is true, the caller reads all
    events since the message was put. If `whole` is false, the caller may lack the first of these events. The rule then
    accepts an event in case of doubt.
    """

    def __init__(self, *, whole: bool) -> None:
        self._owed: dict[str, bool] = {}  # last attempt failed, by listener
        # By listener id: whether a redrive came after the newest attempt of the message's delivery to the listener
        self._redriven: dict[str, bool] = {}
        self._whole = whole

    def tells(self, event: Event) -> bool:
        """Return whether an event belongs to the message's history. The caller must pass all events that may belong to
        the history, in the order of their times (`at_ms`).

        Return False only for two kinds of events. The first is a redrive of all deliveries of a listener, if this
        message's delivery to the listener was not retrying or parked. The second is a cancellation of a listener's
        redrives, if this message's delivery to the listener did not wait for an attempt after a redrive.
        """
        if isinstance(event, DeliveriesSettled | DeliveryAttempted):
            self._owed[event.listener_id] = isinstance(event, DeliveryAttempted) and event.outcome != "delivered"
            self._redriven[event.listener_id] = False
        elif isinstance(event, ListenerRedriven):
            redriven = bool(event.message_ids) or self._owed.get(event.listener_id, not self._whole)
            self._redriven[event.listener_id] = redriven or self._redriven.get(event.listener_id, False)
            return redriven
        elif isinstance(event, ListenerRedrivesCancelled):
            redriven = self._redriven.get(event.listener_id, not self._whole)
            self._redriven[event.listener_id] = False
            return redriven
        return True

    def doubted(self, event: Event) -> str | None:
        """Return the event's listener id if the event belongs to the message's history only when this listener belongs
        to the message's queue. The caller must check that. Return None if no check is needed.
        """
        if isinstance(event, ListenerRedriven) and event.message_ids:
            return None
        if isinstance(event, ListenerRedriven | ListenerRedrivesCancelled | ReplayStarted):
            return None if event.listener_id in self._owed else event.listener_id
        return None


def replays(event: ReplayStarted, partition: int, offset: int) -> bool:
    """Return whether a replay of the message's queue includes the message at this offset."""
    replay = started(event)
    if (
        partition >= len(replay.start_offsets)
        or not replay.start_offsets[partition] <= offset < replay.end_offsets[partition]
    ):
        return False
    chosen = replay.chooser(partition)
    return chosen is None or chosen(offset)
