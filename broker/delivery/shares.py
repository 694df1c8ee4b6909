"""What a worker's couriers share: attempts under way at once, those that give way begin, memory, and sockets.

For: the totals, and everybody's share of them, anew at each tick. Not for: what one listener can take, and how much is
well for the slow (core/flow.py).
"""

from __future__ import annotations

import resource
from collections.abc import Collection
from typing import TYPE_CHECKING, Final

from broker.core.flow import fair_share
from broker.delivery.limits import ATTEMPTS_MAX

if TYPE_CHECKING:
    from broker.delivery.courier import Courier

ATTEMPTS_LEAST: Final = 2  # under way, however many there are
HELD_BYTES_MAX: Final = 4 << 20  # of messages that one courier holds
ALL_HELD_BYTES_MAX: Final = 128 << 20
HELD_BYTES_LEAST: Final = 64 << 10
SOCKETS_KEPT: Final = 256  # of the files that the process may have open: for Kafka, probes, logs


class Sockets:
    """The connections of a worker to all listeners: as many as the process may have open, but for some that are kept.

    open: how many there are, those that are being made included.
    """

    __slots__ = ("_crowded", "_most", "open")

    def __init__(self, most: int | None = None) -> None:
        self._most = resource.getrlimit(resource.RLIMIT_NOFILE)[0] - SOCKETS_KEPT if most is None else most
        self._crowded = self._most * 3 // 4
        self.open = 0

    @property
    def crowded(self) -> bool:
        """Whether none is to be kept open while nothing is sent on it."""
        return self.open > self._crowded

    @property
    def used_up(self) -> bool:
        """Whether none may be opened: the listener would be blamed for what is not its fault."""
        return self.open >= self._most


def share_out(couriers: Collection[Courier], *, begins: int, tick: int) -> None:
    """couriers: those that have something to do. begins: what those that give way may begin. tick: for fairness."""
    hungry = sum(courier.hungry for courier in couriers)
    used = sum(courier.busy for courier in couriers if not courier.hungry)
    attempts = fair_share(ATTEMPTS_MAX, used=used, hungry=hungry, least=ATTEMPTS_LEAST)
    held = min(HELD_BYTES_MAX, fair_share(ALL_HELD_BYTES_MAX, used=0, hungry=len(couriers), least=HELD_BYTES_LEAST))
    slow = []
    for courier in couriers:
        limits = courier.limits
        limits.share = attempts
        courier.bytes_share = held
        if limits.gives_way:
            limits.begins = 1  # should it get something to do before the next tick
            if courier.hungry:
                slow.append(limits)
    if slow:
        each, more = divmod(begins, len(slow))
        for place, limits in enumerate(slow):
            limits.begins = each + ((place - tick * more) % len(slow) < more)
