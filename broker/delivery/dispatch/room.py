"""The memory of one dispatcher: how many messages it holds, and how many it may hold.

For: the bounds, so that no listener takes the others' room, and what waits or fails not the room of what would be
delivered. Not for: which messages are held (delivery_queue.py), the shares of all dispatchers (fairness.py).
"""

from __future__ import annotations

from broker.core.circuit import Circuit
from broker.delivery.dispatch.delivery_queue import DeliveryQueue
from broker.delivery.dispatch.limits import Limits
from broker.delivery.dispatch.stream import Delivery
from broker.delivery.tuning import Tuning


class Room:
    """The messages that one dispatcher holds.

    held, held_bytes: how many, and their bytes.
    bytes_share: the bytes it may hold, as fairness.py says.
    setting_aside: deliveries on their way to `outstanding` because the log is to go, and their bytes.
    """

    __slots__ = ("_circuit", "_deliveries", "_limits", "bytes_share", "held", "held_bytes", "setting_aside", "tuning")

    def __init__(self, circuit: Circuit, limits: Limits, deliveries: DeliveryQueue, tuning: Tuning) -> None:
        self.tuning = tuning
        self._circuit = circuit
        self._limits = limits
        self._deliveries = deliveries
        self.held = self.held_bytes = 0
        self.bytes_share = tuning.held_bytes_max
        self.setting_aside: dict[Delivery, int] = {}

    @property
    def held_max(self) -> int:
        """The number of messages that it may hold now: few for a new listener or one on probation, none while it is
        down.
        """
        allowance, limits = self._circuit.allowance, self._limits
        if allowance == 0:
            return 0
        if limits.took_ms is None or allowance is not None:
            return self.tuning.held_per_attempt * limits.able + len(self._deliveries.retries)
        held_max = self.tuning.held_max
        return held_max if limits.quick else min(held_max, held_max // 2 + len(self._deliveries.retries))

    @property
    def running_low(self) -> bool:
        """Whether to fetch messages of lagging streams: many at a time, not one for each that is settled."""
        return self.held <= self.held_max // 2 and self.held_bytes <= self.bytes_share // 2

    @property
    def many_fail(self) -> bool:
        """True if the deliveries that wait for a retry take too much of the room."""
        most = self.held_max
        return most > 0 and len(self._deliveries.retries) >= max(1, min(self.tuning.retries_max, most // 2))

    @property
    def many_wait(self) -> bool:
        """Whether those that wait for their ordering keys take too much of it."""
        waiting = self._deliveries.keys.waiting
        if not waiting:  # nearly always
            return False
        most = self.held_max
        return most > 0 and not self._limits.new and waiting >= min(self.tuning.key_waiting_max, most // 2)

    @property
    def sets_aside_more(self) -> bool:
        """Whether one more delivery may be on its way to `outstanding` because the log is to go."""
        leaving, tuning = self.setting_aside, self.tuning
        return len(leaving) < tuning.set_aside_at_once and sum(leaving.values()) < tuning.set_aside_bytes_max
