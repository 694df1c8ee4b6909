"""What a worker's couriers share: attempts under way at once, and memory for the messages they hold.

For: the totals, and everybody's share of them, anew at each tick. Not for: what one listener can take (core/flow.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from broker.core.flow import fair_share

if TYPE_CHECKING:
    from broker.delivery.courier import Courier

ATTEMPTS_MAX: Final = 1024  # under way in one worker: docs/decisions/0007
ATTEMPTS_LEAST: Final = 2  # but each may have as many
HELD_BYTES_MAX: Final = 4 << 20  # of messages that one courier holds
ALL_HELD_BYTES_MAX: Final = 128 << 20
HELD_BYTES_LEAST: Final = 64 << 10


def share_out(couriers: Sequence[Courier]) -> None:
    """couriers: those that have something to do."""
    hungry = sum(courier.hungry for courier in couriers)
    used = sum(courier.busy for courier in couriers if not courier.hungry)
    attempts = fair_share(ATTEMPTS_MAX, used=used, hungry=hungry, least=ATTEMPTS_LEAST)
    held = fair_share(ALL_HELD_BYTES_MAX, used=0, hungry=len(couriers), least=HELD_BYTES_LEAST)
    for courier in couriers:
        courier.attempts_share = attempts
        courier.bytes_share = min(held, HELD_BYTES_MAX)
