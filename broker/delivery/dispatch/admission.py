"""Admission: decides whether an attempt of a delivery may begin now, and if not, what happens to the delivery.

For: deciding. Nothing changes except that the delivery joins the queue of its ordering key.
Not for: carrying the decision out (dispatcher.py), the limits of the listener (limits.py).
"""

from __future__ import annotations

import asyncio
import logging
from enum import Enum
from typing import Final

from broker.clock import now_ms
from broker.core.entities import Queue
from broker.delivery.dispatch.delivery_queue import DeliveryQueue
from broker.delivery.dispatch.room import Room
from broker.delivery.dispatch.stream import Delivery, message_of
from broker.delivery.reading.message import Message
from broker.errors import UnknownEvent

log = logging.getLogger(__name__)


class Admission(Enum):
    """The decision about a delivery. Either an attempt may begin now, or the delivery waits in memory, or it is kept in
    the topic `outstanding`.
    """

    BEGIN = "an attempt may begin"
    KEPT = "its record in `outstanding` was written, but a crash came before the offset was committed"
    UNDECODABLE = "its message can't be decoded: it is parked"
    RELEASED = "its message will soon be deleted by age: it moves to `outstanding` without an attempt"
    QUEUED = "an earlier delivery with its ordering key must end first"
    FOLLOWS = "an earlier delivery of its key is in `outstanding`, or many wait for a slow key: it moves there, due now"
    RETURNED = "it came from `outstanding`: an earlier delivery of its key waits there, or its redrive is cancelled"
    NEAR = "its message's `deliver_at` is near: it waits in memory"
    FAR = "its message's `deliver_at` is far: it moves to `outstanding` until then"


# Reading a member of an enumeration is slow, and each delivery is compared with these two. So read both only once.
BEGIN: Final = Admission.BEGIN
_QUEUED: Final = Admission.QUEUED


class Admissions:
    """The check whether an attempt of a listener's delivery may begin now."""

    __slots__ = ("_deliveries", "_loop", "_queue", "_room")

    def __init__(self, queue: Queue, deliveries: DeliveryQueue, room: Room, loop: asyncio.AbstractEventLoop) -> None:
        self._queue = queue
        self._deliveries = deliveries
        self._room = room
        self._loop = loop

    def of(self, delivery: Delivery) -> Admission:
        """Decide whether an attempt of this delivery may begin now. If not, decide what happens to the delivery. This
        method does not check the listener's limits, nor updates and deletions of the message.
        """
        message, stream, in_window = message_of(delivery), delivery.stream, delivery.entry is None
        if not in_window and is_cancelled(delivery):
            return Admission.RETURNED
        if in_window and not delivery.first_at_ms and stream.assignment.is_outstanding(delivery):
            return Admission.KEPT
        try:
            message.body(self._queue)
        except UnknownEvent:
            listener_id = stream.dispatcher.listener.id
            log.exception("delivery.undecodable listener=%s message=%s", listener_id, message.id.decode())
            return Admission.UNDECODABLE
        if in_window and delivery.offset < stream.set_aside_below:
            return Admission.RELEASED
        if message.key is not None:
            admission = self._by_key(delivery, message.key)
            if admission is not BEGIN:
                return admission
        if message.deliver_at_ms:
            return self._by_time(message)
        return BEGIN

    def _by_key(self, delivery: Delivery, key: str) -> Admission:
        """Decide whether the message's ordering key allows an attempt now. Messages with the same key are sent to a
        listener one at a time, in order.
        """
        assignment, at_s = delivery.stream.assignment, self._loop.time()
        in_window = delivery.entry is None
        if in_window and (assignment.overtakes(delivery) or (not delivery.first_of_key and self._is_slow(key, at_s))):
            return Admission.FOLLOWS
        if not delivery.first_of_key:
            delivery.first_of_key = self._deliveries.keys.take(key, delivery, at_s)
            if not delivery.first_of_key:
                return _QUEUED
        # If a delivery came from `outstanding`, put it back there if an earlier one with its ordering key is there.
        if not in_window and assignment.overtakes(delivery):
            return Admission.RETURNED
        return BEGIN

    def _is_slow(self, key: str, at_s: float) -> bool:
        """Return whether a delivery with this ordering key must move to `outstanding`, because it may not wait in
        memory. Two conditions must hold. Another delivery has blocked this key for `key_slow_s` seconds. Also, too many
        of the listener's deliveries wait in memory until an earlier delivery with the same key has ended.
        """
        return self._room.many_wait and self._deliveries.keys.taken_for_s(key, at_s) >= self._room.tuning.key_slow_s

    def _by_time(self, message: Message) -> Admission:
        """Decide whether the message's `deliver_at` time allows an attempt now."""
        wait_ms = message.deliver_at_ms - now_ms()
        if wait_ms <= 0:
            return BEGIN
        room = self._room
        near = wait_ms <= room.tuning.near_ms and room.held <= room.held_max // 2
        return Admission.NEAR if near else Admission.FAR

    def crowd(self) -> list[Delivery]:
        """Remove and return the waiting deliveries whose ordering key has been blocked by an earlier delivery for
        `key_slow_s` seconds. Deliveries that came from the topic `outstanding` stay, because they are few. Call this
        method only if `many_wait` of the listener's memory is True.
        """
        at_s, keys = self._loop.time(), self._deliveries.keys
        leave = list[Delivery]()
        for key in keys.held_for(at_s, self._room.tuning.key_slow_s):
            for delivery in keys.send_away(key):
                if delivery.entry is None:
                    leave.append(delivery)
                else:
                    keys.take(key, delivery, at_s)
        return leave


def is_cancelled(delivery: Delivery) -> bool:
    """Return True if the delivery came from the topic `outstanding` because of a redrive (a request to retry now), and
    the redrive was cancelled before this attempt began. Otherwise, return False.
    """
    entry = delivery.entry
    if entry is None or delivery.number != entry.number:
        return False
    return entry.is_cancelled(delivery.stream.dispatcher.listener.redrives)
