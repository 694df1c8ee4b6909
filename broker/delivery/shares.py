"""What a worker's couriers share: attempts under way at once, those the slow begin, and memory for what they hold.

For: the totals, and everybody's share of them, anew at each tick. Not for: what one listener can take, and how much is
well for the slow (core/flow.py).
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Final

from broker.core.flow import fair_share

if TYPE_CHECKING:
    from broker.delivery.courier import Courier

ATTEMPTS_MAX: Final = 1024  # under way in one worker: docs/decisions/0007
ATTEMPTS_LEAST: Final = 2  # but each may have as many
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
        courier.attempts_share = attempts
        courier.bytes_share = held
        if courier.slow:
            courier.begins = 1  # should it get something to do before the next tick
            if courier.hungry:
                slow.append(courier)
    if slow:
        each, more = divmod(begins, len(slow))
        for place, courier in enumerate(slow):
            courier.begins = each + ((place - tick * more) % len(slow) < more)
