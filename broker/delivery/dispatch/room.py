"""The memory of one dispatcher: how many messages it holds, and how many it is allowed to hold.

For: the limits, so that no listener takes the memory of others, and waiting or failing deliveries leave memory for new
ones. Not for: which messages are held (delivery_queue.py), the shares of all dispatchers (fairness.py).
"""

from __future__ import annotations

from broker.core.circuit import Circuit
from broker.delivery.dispatch.delivery_queue import DeliveryQueue
from broker.delivery.dispatch.limits import Limits
from broker.delivery.dispatch.stream import Delivery
from broker.delivery.tuning import Tuning


class Room:
    """The memory for one listener's messages in a worker, and its limits."""

    __slots__ = (
        *("_circuit", "_deliveries", "_limits", "batch_max", "bytes_share", "held", "held_bytes", "setting_aside"),
        "tuning",
    )

    def __init__(self, circuit: Circuit, limits: Limits, deliveries: DeliveryQueue, tuning: Tuning) -> None:
        self.tuning = tuning
        self._circuit = circuit
        self._limits = limits
        self._deliveries = deliveries
        self.held = self.held_bytes = 0  # messages in memory, and their size
        self.bytes_share = tuning.held_bytes_max  # the limit of `held_bytes`
        self.batch_max = 0  # the most messages in a batch of the listener; 0 if the listener gets no batches
        # The deliveries that move to the topic `outstanding` now, because Kafka will delete their messages soon.
        # `setting_aside` maps each of these deliveries to the size of its message in bytes.
        self.setting_aside: dict[Delivery, int] = {}

    @property
    def held_max(self) -> int:
        """The largest number of the listener's messages that are allowed in memory now. The number is small for a
        listener that is new or has just come up, and 0 while the listener is down.
        """
        allowance, limits = self._circuit.allowance, self._limits
        if allowance == 0:
            return 0
        if limits.took_ms is None or allowance is not None:
            return self.tuning.held_per_attempt * limits.able + len(self._deliveries.retries)
        held_max = max(self.tuning.held_max, self.tuning.batches_held * self.batch_max)
        return held_max if limits.quick else min(held_max, held_max // 2 + len(self._deliveries.retries))

    @property
    def running_low(self) -> bool:
        """Whether at most half of the listener's memory is in use. If so, and if the listener lags, older messages
        should be fetched.
        """
        return self.held <= self.held_max // 2 and self.held_bytes <= self.bytes_share // 2

    @property
    def many_fail(self) -> bool:
        """Whether deliveries that wait until a certain time, such as the time of their retry, take too much of the
        listener's memory.
        """
        most = self.held_max
        retries_max = max(self.tuning.retries_max, self.batch_max)
        return most > 0 and len(self._deliveries.retries) >= max(1, min(retries_max, most // 2))

    @property
    def many_wait(self) -> bool:
        """Whether too many of the listener's deliveries wait in memory until an earlier delivery with the same ordering
        key has ended. False for a listener that is new or down.
        """
        waiting = self._deliveries.keys.waiting
        if not waiting:  # the usual case
            return False
        most = self.held_max
        return most > 0 and not self._limits.new and waiting >= min(self.tuning.key_waiting_max, most // 2)

    @property
    def sets_aside_more(self) -> bool:
        """Whether one more message may be loaded and moved to the topic `outstanding` before Kafka deletes it, although
        the listener has no room in memory. Only a few such messages are loaded at a time.
        """
        leaving, tuning = self.setting_aside, self.tuning
        return len(leaving) < tuning.set_aside_together and sum(leaving.values()) < tuning.set_aside_bytes_max
