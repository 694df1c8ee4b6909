"""Ticks: the regular work of a worker for its dispatchers, several times a second.

For: timeouts, retries that are due, the share of each dispatcher, probes, closing idle connections. Not for: what one
dispatcher does in a tick (dispatcher.py), the shares themselves (fairness.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Iterable, Mapping

from broker.clock import now_ms
from broker.core.flow import Gate
from broker.delivery.dispatch.dispatcher import Dispatcher
from broker.delivery.dispatch.fairness import Processor, deal_permits, share_out
from broker.delivery.dispatch.liveness import Liveness
from broker.delivery.tuning import Tuning


class Ticks:
    """The regular calls of tick() for dispatchers that have work to do. A dispatcher sends one listener's messages."""

    def __init__(
        self, liveness: Liveness, tuning: Tuning, *, gate: Gate | None = None, processor: Processor | None = None
    ) -> None:
        self._tuning = tuning
        self._gate = gate or Gate()
        self._processor = processor or Processor()
        self._liveness = liveness
        self._active: dict[Dispatcher, None] = {}
        # While no dispatcher needs ticks, the tick loop waits for this event. At other times, this attribute is None.
        self._rested: asyncio.Event | None = None

    def __len__(self) -> int:
        """Return the number of dispatchers that need regular calls of tick()."""
        return len(self._active)

    def add(self, dispatcher: Dispatcher) -> None:
        """Call tick() of the dispatcher regularly from now on, until it returns False."""
        self._active[dispatcher] = None
        if self._rested is not None:
            self._rested.set()

    def remove(self, dispatcher: Dispatcher) -> None:
        """Stop calling tick() of this dispatcher, and stop probing its listener, because this worker stops delivery to
        it.
        """
        self._liveness.down.discard(dispatcher)
        self._active.pop(dispatcher, None)

    async def run(self, dispatchers: Mapping[str, Dispatcher]) -> None:
        """Call tick() of the dispatchers that have something to do, in an endless loop. Now and then, close those
        connections of all `dispatchers` that have been idle for too long.
        """
        tuning = self._tuning
        gate, processor, time = self._gate, self._processor, asyncio.get_running_loop().time
        pumped: list[Dispatcher] = []
        for number in itertools.count():
            if tuning.rest_s and not (self._active or pumped or self._liveness.down):
                await self._rest(dispatchers)
                # waited() measures from its last call on. Call it now, so that its next result leaves out this pause.
                processor.waited()
            late_s = 0.0
            (due, every), ticked = self._due(number), list[Dispatcher]()
            for part in range(tuning.tick_parts):
                before_s = time()
                await asyncio.sleep(tuning.tick_s / tuning.tick_parts)
                part_late_s = time() - before_s - tuning.tick_s / tuning.tick_parts
                late_s += part_late_s
                ticked += await self._tick_some(due[part :: tuning.tick_parts], late=part_late_s > tuning.stood_still_s)
                await pump(pumped[part :: tuning.tick_parts], tuning.begun_at_once)
            permits = gate.tick(late_s / tuning.tick_parts, waited=processor.waited())
            pumped = deal_permits(ticked, permits, turn=number // every)
            if number % tuning.share_ticks == 0:
                share_out(self._active, tuning)
            self._liveness.tick(permits=permits)
            for dispatcher in list(dispatchers.values())[number % tuning.tidy_ticks :: tuning.tidy_ticks]:
                dispatcher.connections.tidy()

    async def _rest(self, dispatchers: Mapping[str, Dispatcher]) -> None:
        """Wait until a dispatcher (the sender of one listener's messages) has work, and needs regular calls of tick().
        Meanwhile, close connections that have been idle for too long, about every `rest_s` seconds.
        """
        self._rested = asyncio.Event()
        while not self._active:
            self._rested.clear()  # A dispatcher may have been added and removed before this loop could continue.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._tuning.rest_s):
                    await self._rested.wait()
            for dispatcher in dispatchers.values():
                dispatcher.connections.tidy()
        self._rested = None

    def _due(self, number: int) -> tuple[list[Dispatcher], int]:
        """Return the dispatchers that take part in the tick with this number, and in which ticks those of slow and
        failing listeners take part: 1 means every tick, 2 means every second tick, and so on. The more of them have
        work, the less often each takes part.
        """
        fast, slow = list[Dispatcher](), list[Dispatcher]()
        for dispatcher in self._active:
            (slow if dispatcher.limits.low_priority else fast).append(dispatcher)
        every = min(self._tuning.share_ticks, 1 + len(slow) // self._tuning.ticked_together)
        return fast + slow[number % every :: every], every

    async def _tick_some(self, dispatchers: Iterable[Dispatcher], *, late: bool) -> list[Dispatcher]:
        """Call tick() of these dispatchers, and return those for which it returned True: they still have something to
        do. Whenever the calls have taken `turn_s` seconds, yield to the event loop: hundreds of attempts may time out
        together.
        """
        time, still_active = asyncio.get_running_loop().time, list[Dispatcher]()
        at_ms, began_s = now_ms(), time()
        for dispatcher in dispatchers:
            if dispatcher not in self._active:  # remove() was called meanwhile.
                continue
            if dispatcher.tick(at_ms, late=late):
                still_active.append(dispatcher)
            else:
                del self._active[dispatcher]
            if dispatcher.circuit.allowance == 0:
                self._liveness.watch(dispatcher)
            if time() - began_s >= self._tuning.turn_s:
                await asyncio.sleep(0)
                began_s = time()
        return still_active


async def pump(dispatchers: Iterable[Dispatcher], at_once: int) -> None:
    """Let these dispatchers begin the attempts that deal_permits() has permitted. Yield to the event loop after each
    group of dispatchers with at least `at_once` permitted attempts together.
    """
    begun = 0
    for dispatcher in dispatchers:
        begun += dispatcher.limits.permits
        dispatcher.pump()
        if begun >= at_once:
            begun = 0
            await asyncio.sleep(0)
