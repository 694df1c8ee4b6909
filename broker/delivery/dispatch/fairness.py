"""What a worker's couriers share: attempts under way, those that give way begin, memory, sockets, the processor.

For: the totals, and everybody's share of them, anew every few ticks. Not for: what one listener can take, and how much
is well for the slow (core/flow.py).
"""

from __future__ import annotations

import contextlib
import resource
import time
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from broker.core.flow import fair_share
from broker.delivery.dispatch.limits import ATTEMPTS_MAX, FIRST, SLOW

if TYPE_CHECKING:
    from broker.delivery.dispatch.courier import Courier

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


class Processor:
    """How much of the time this process's first thread has waited for a processor that others had (Linux; else 0)."""

    _TOLD = Path("/proc/self/schedstat")  # nanoseconds that it ran, and waited: Documentation/scheduler/sched-stats

    def __init__(self) -> None:
        self._at_s, self._waited_s = time.monotonic(), self._waited()

    def waited(self) -> float:
        """The part of the time since the last call, 0 to 1."""
        before_s, waited_s = self._at_s, self._waited_s
        self._at_s, self._waited_s = time.monotonic(), self._waited()
        return (self._waited_s - waited_s) / max(self._at_s - before_s, 1e-3)

    def _waited(self) -> float:
        with contextlib.suppress(OSError, ValueError, IndexError):
            return int(self._TOLD.read_text().split()[1]) / 1e9
        return 0.0


def share_out(couriers: Iterable[Courier]) -> None:
    """Attempts under way, and memory: the quick share all of it, the slow what those leave, then the others.

    couriers: those that have something to do.
    """
    ranks: tuple[list[Courier], ...] = ([], [], [])
    for courier in couriers:
        ranks[courier.limits.rank].append(courier)
    attempts_used = bytes_used = 0
    for rank in ranks:
        _share_out(rank, attempts_used=attempts_used, bytes_used=bytes_used)
        attempts_used += sum(courier.busy for courier in rank)
        bytes_used += sum(courier.held_bytes for courier in rank)


def _share_out(couriers: Collection[Courier], *, attempts_used: int, bytes_used: int) -> None:
    """Among these, those before them having used so much."""
    hungry, used = 0, attempts_used
    for courier in couriers:
        if courier.hungry:
            hungry += 1
        else:
            used += courier.busy
    attempts = fair_share(ATTEMPTS_MAX, used=used, hungry=hungry, least=ATTEMPTS_LEAST)
    held = fair_share(ALL_HELD_BYTES_MAX, used=bytes_used, hungry=len(couriers), least=HELD_BYTES_LEAST)
    for courier in couriers:
        courier.limits.share = attempts
        courier.bytes_share = min(HELD_BYTES_MAX, held)


def let_begin(couriers: Iterable[Courier], begins: int, *, turn: int) -> list[Courier]:
    """What those of them that give way may begin until they are here again: so many together. turn: for fairness.

    At least half of it is for the slow that take what they get, where there are such. To be pumped: those that got any.
    """
    slow: list[Courier] = []
    others: list[Courier] = []
    for courier in couriers:
        limits = courier.limits
        rank = limits.rank
        if rank != FIRST:
            limits.begins = 1  # should it get something to do meanwhile
            if courier.waits:
                (slow if rank == SLOW else others).append(courier)
    for_others = 0 if not others else begins // 2 if slow else begins
    _deal(slow, begins - for_others, turn)
    _deal(others, for_others, turn)
    return [courier for courier in (*slow, *others) if courier.limits.begins]


def _deal(couriers: Collection[Courier], begins: int, turn: int) -> None:
    if couriers:
        each, more = divmod(begins, len(couriers))
        for place, courier in enumerate(couriers):
            courier.limits.begins = each + ((place - turn * more) % len(couriers) < more)
