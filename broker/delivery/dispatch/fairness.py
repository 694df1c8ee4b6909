"""The resources that the dispatchers of a worker share: attempts in flight, memory, sockets and processor time.

For: the totals, and each dispatcher's share, calculated again every few ticks. Not for: how much one listener can take,
nor how many attempts low-priority listeners may start (core/flow.py).
"""

from __future__ import annotations

import contextlib
import resource
import time
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Final, Protocol, TypeVar

from broker.core.flow import fair_share
from broker.delivery.dispatch.limits import Limits, Priority
from broker.delivery.dispatch.room import Room
from broker.delivery.tuning import TUNED, Tuning

# This Linux file begins with two times of the main thread, in ns: how long it ran, and how long it waited to run.
SCHEDSTAT: Final = Path("/proc/self/schedstat")


class Sharing(Protocol):
    """The part of a dispatcher (the sender of one listener's messages) that is used to divide a worker's attempts and
    memory among listeners.
    """

    limits: Limits
    memory: Room

    @property
    def busy(self) -> int: ...
    @property
    def waits(self) -> bool: ...
    @property
    def wants_more(self) -> bool: ...
    def pump(self) -> None: ...


DispatcherT = TypeVar("DispatcherT", bound=Sharing)


class Sockets:
    """The count of a worker's open connections to all listeners, and its limit, which depends on how many files the
    process may open.
    """

    __slots__ = ("_crowded", "_most", "open")

    def __init__(self, most: int | None = None, tuning: Tuning = TUNED) -> None:
        files_max = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._most = files_max - tuning.sockets_kept if most is None else most
        self._crowded = self._most * 3 // 4
        self.open = 0  # includes connections that are being opened

    @property
    def crowded(self) -> bool:
        """Whether a connection must be closed after an answer instead of being kept idle, because more than three
        quarters of the worker's sockets for listeners are in use.
        """
        return self.open > self._crowded

    @property
    def used_up(self) -> bool:
        """Whether the worker has as many connections open as it may. An attempt without an idle connection then waits,
        which is not a failure of the listener.
        """
        return self.open >= self._most


class Processor:
    """A measure of how long this process's main thread waits for a processor. Where Linux's file /proc/self/schedstat
    can't be read, the measure is always 0.
    """

    def __init__(self, schedstat: Path = SCHEDSTAT, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._schedstat = schedstat
        self._monotonic = monotonic
        self._at_s, self._waited_s = monotonic(), self._waited()

    def waited(self) -> float:
        """Return the fraction of the time since the last call, from 0 to 1, in which this process's main thread waited
        for a processor.
        """
        before_s, waited_s = self._at_s, self._waited_s
        self._at_s, self._waited_s = self._monotonic(), self._waited()
        return (self._waited_s - waited_s) / max(self._at_s - before_s, 1e-3)

    def _waited(self) -> float:
        with contextlib.suppress(OSError, ValueError, IndexError):
            return int(self._schedstat.read_text().split()[1]) / 1e9
        return 0.0


def share_out(dispatchers: Iterable[Sharing], tuning: Tuning = TUNED) -> None:
    """Divide a worker's attempts in flight and its memory among the listeners that have work. Fast listeners get what
    they need first, then slow ones, and then failing ones. Listeners of the same priority get equal shares of what is
    left for them. Each share is at least `attempts_min` attempts and `held_bytes_min` bytes.
    """
    by_priority: tuple[list[Sharing], ...] = ([], [], [])
    for dispatcher in dispatchers:
        by_priority[dispatcher.limits.priority].append(dispatcher)
    attempts_used = bytes_used = 0
    for equals in by_priority:
        _share_out(equals, tuning, attempts_used=attempts_used, bytes_used=bytes_used)
        attempts_used += sum(dispatcher.busy for dispatcher in equals)
        bytes_used += sum(dispatcher.memory.held_bytes for dispatcher in equals)


def _share_out(dispatchers: Collection[Sharing], tuning: Tuning, *, attempts_used: int, bytes_used: int) -> None:
    """Divide attempts and memory among the listeners of one priority. Of the worker's total, listeners of higher
    priorities already use `attempts_used` attempts and `bytes_used` bytes.
    """
    wanting, used = 0, attempts_used
    for dispatcher in dispatchers:
        if dispatcher.wants_more:
            wanting += 1
        else:
            used += dispatcher.busy
    attempts = fair_share(tuning.attempts_max, used=used, wanting=wanting, least=tuning.attempts_min)
    held = fair_share(tuning.all_held_bytes_max, used=bytes_used, wanting=len(dispatchers), least=tuning.held_bytes_min)
    for dispatcher in dispatchers:
        dispatcher.limits.share = attempts
        dispatcher.memory.bytes_share = min(tuning.held_bytes_max, held)


def deal_permits(dispatchers: Iterable[DispatcherT], permits: int, *, turn: int) -> list[DispatcherT]:
    """Divide `permits` attempts among the slow and failing listeners whose deliveries wait. Return the dispatchers of
    the listeners that got at least one. A slow or failing listener without a waiting delivery is permitted one attempt.

    If the attempts can't be divided equally, some listeners get one more. The caller counts `turn` up, so that these
    are other listeners each time.
    """
    slow: list[DispatcherT] = []
    others: list[DispatcherT] = []
    for dispatcher in dispatchers:
        limits = dispatcher.limits
        if limits.priority is not Priority.FAST:
            # A listener without a waiting delivery keeps this one permit, for a message that may come soon.
            limits.permits = 1
            if dispatcher.waits:
                (slow if limits.priority is Priority.SLOW else others).append(dispatcher)
    # Slow listeners get half of the permitted attempts, and failing listeners get the other half.
    # If only slow or only failing listeners have waiting deliveries, they get all permitted attempts.
    for_others = 0 if not others else permits // 2 if slow else permits
    _deal(slow, permits - for_others, turn)
    _deal(others, for_others, turn)
    return [dispatcher for dispatcher in (*slow, *others) if dispatcher.limits.permits]


def _deal(dispatchers: Collection[Sharing], permits: int, turn: int) -> None:
    if dispatchers:
        each, more = divmod(permits, len(dispatchers))
        for place, dispatcher in enumerate(dispatchers):
            dispatcher.limits.permits = each + ((place - turn * more) % len(dispatchers) < more)
