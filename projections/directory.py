"""The directory as folded in this process, and waiting until the fold has passed an offset.

For: the state, how far it is, read-your-writes. The fold wakes the waiters, so nothing polls.
Not for: reading `control` (agents.py) or what an event changes (broker/core/directory.py).
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import logging
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Final

from broker.core.directory import Directory
from broker.core.events import Event
from broker.errors import ViewBehind
from broker.ports import ControlLog

log = logging.getLogger(__name__)

# Only the newest 10,000 events without effect are remembered.
# 10,000 are enough, because the writer of an event asks within milliseconds whether the event had an effect.
_PASSED_OVER_MAX: Final = 10_000


class DirectoryProjection:
    """The directory of queues, listeners, accounts and keys, built from the events of the topic `control`."""

    def __init__(self, control: ControlLog) -> None:
        self.state = Directory()
        self.position = 0  # the offset of the next event to apply
        self.complete = True
        self._control = control
        self._callbacks: list[Callable[[Event], None]] = []
        self._order = itertools.count()
        self._waiters: list[tuple[int, int, asyncio.Future[None]]] = []
        self._passed_over: set[int] = set()
        self._passed_over_order: deque[int] = deque()
        self._end_lookup: asyncio.Task[int] | None = None
        self._next_end_lookup: asyncio.Task[int] | None = None

    def on_change(self, callback: Callable[[Event], None]) -> None:
        """Call `callback` with each later event, in log order, right after the event was applied to the directory.
        Events without effect are included. Errors of the callback are logged.
        """
        self._callbacks.append(callback)

    def fold(self, offset: int, event: Event | None) -> None:
        """Apply the event at this offset of the topic `control` to the directory. The event is None if only a newer
        version of Everput can decode it. An event that was applied before changes nothing.
        """
        if offset < self.position:
            # After a rebalance, Faust reads records of `control` again. So skip events that were applied already.
            return
        if event is None:
            self.complete = False
        else:
            if not self.state.apply(event):
                self._remember_passed_over(offset)
            for callback in self._callbacks:
                try:
                    callback(event)
                except Exception:
                    log.exception("projection.callback_failed offset=%d", offset)
        self.position = offset + 1
        while self._waiters and self._waiters[0][0] <= offset:
            waiter = heapq.heappop(self._waiters)[2]
            if not waiter.done():
                waiter.set_result(None)

    def passed_over(self, offset: int) -> bool:
        """Return whether the event at this offset had no effect on the directory. Only the newest _PASSED_OVER_MAX
        events without effect are remembered: for earlier events, return False.
        """
        return offset in self._passed_over

    async def seen(self, offset: int, *, timeout_s: float | None = 2.0) -> None:
        """Wait until the event at this offset of the topic `control` was applied. Raises ViewBehind if that takes
        longer than `timeout_s` seconds.
        """
        if offset < self.position:
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiters, (offset, next(self._order), waiter))
        try:
            async with asyncio.timeout(timeout_s):
                await waiter
        except TimeoutError:
            raise ViewBehind(
                f"this process has not applied offset {offset} of the topic `control` yet: the next offset to apply is "
                f"{self.position}; repeat the request or command",
                public="This process has not yet read the newest part of the log. Try again.",
            ) from None

    async def caught_up(self, *, timeout_s: float = 2.0) -> None:
        """Wait until all events that the topic `control` has at the time of this call are applied. Raises ViewBehind if
        this takes too long, and LogUnavailable if Kafka does not answer.
        """
        try:
            async with asyncio.timeout(timeout_s):
                end = await self._end_offset()
        except TimeoutError:
            raise ViewBehind(
                f"Kafka did not return the end offset of the topic `control` within {timeout_s:g} s; repeat the "
                "request or command"
            ) from None
        await self.seen(end - 1, timeout_s=timeout_s)

    async def _end_offset(self) -> int:
        """Return the end offset of the topic `control`, as Kafka tells it after the start of this call. If a request to
        Kafka is already running, wait for the next request. All calls that wait share that next request.
        """
        if self._end_lookup is None or self._end_lookup.done():
            self._end_lookup = _shared(self._control.end_offset())
            return await asyncio.shield(self._end_lookup)
        if self._next_end_lookup is None or self._next_end_lookup.done():
            self._next_end_lookup = _shared(self._end_offset_after(self._end_lookup))
        return await asyncio.shield(self._next_end_lookup)

    async def _end_offset_after(self, earlier: asyncio.Task[int]) -> int:
        await asyncio.wait([earlier])
        self._end_lookup, self._next_end_lookup = self._next_end_lookup, None
        return await self._control.end_offset()

    def _remember_passed_over(self, offset: int) -> None:
        self._passed_over.add(offset)
        self._passed_over_order.append(offset)
        if len(self._passed_over_order) > _PASSED_OVER_MAX:
            self._passed_over.discard(self._passed_over_order.popleft())


def _shared(lookup: Coroutine[Any, Any, int]) -> asyncio.Task[int]:
    """Run a coroutine as a task that several callers await. If the task fails after all callers have gone, its error is
    dropped.
    """
    task = asyncio.create_task(lookup)
    task.add_done_callback(lambda done: done.cancelled() or done.exception())
    return task
