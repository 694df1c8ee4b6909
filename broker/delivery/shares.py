"""What a worker's couriers share: attempts under way at once, those the slow begin, and memory for what they hold.

For: the totals, and everybody's share of them, anew at each tick. Not for: what one listener can take, and how much is
well for the slow (core/flow.py).
"""

from __future__ import annotations

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


def share_out(couriers: Collection[Courier], *, begins: int, tick: int) -> None:
    """couriers: those that have something to do. begins: what the slow may begin. tick: its number, for fairness."""
    hungry = sum(courier.hungry for courier in couriers)
    used = sum(courier.busy for courier in couriers if not courier.hungry)
    attempts = fair_share(ATTEMPTS_MAX, used=used, hungry=hungry, least=ATTEMPTS_LEAST)
    held = min(HELD_BYTES_MAX, fair_share(ALL_HELD_BYTES_MAX, used=0, hungry=len(couriers), least=HELD_BYTES_LEAST))
    slow = []
    for courier in couriers:
        limits = courier.limits
        limits.share = attempts
        courier.bytes_share = held
        if limits.slow:
            limits.begins = 1  # should it get something to do before the next tick
            if courier.hungry:
                slow.append(limits)
    if slow:
        each, more = divmod(begins, len(slow))
        for place, limits in enumerate(slow):
            limits.begins = each + ((place - tick * more) % len(slow) < more)
