"""Probes: a GET of the `liveness_url` of each listener that is down. After a 2xx answer, messages are attempted again.

For: sending probes, and how many a worker sends in a tick. Not for: when a listener counts as down
(broker/core/circuit.py), how often it is probed, and which listener is first (broker/core/probes.py).

If a replay to another URL has no `liveness_url`, that other URL is probed. Any status from 200 to 499 will do, because
a URL that accepts POST may reject GET.

A worker has at most one probe of a listener in flight. At most `probes_max` start in a tick, and fewer while the
machine is busy. If more probes are due, every other one goes to the listener that went down last (docs/operations.md).
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable
from functools import partial

from broker.clock import now_ms
from broker.core.circuit import State
from broker.core.probes import Probes, interval_ms
from broker.delivery.dispatch.dispatcher import Dispatcher
from broker.delivery.tuning import TUNED, Tuning
from broker.outbound.addresses import Resolver, parse_url
from broker.outbound.single_request import ask

log = logging.getLogger(__name__)


async def alive(
    url: str, resolver: Resolver, tls: ssl.SSLContext, *, below: int = 300, timeout_s: float = TUNED.probe_timeout_s
) -> bool:
    """Send a GET request to `url`. Return whether an answer arrives in time, with a status of at least 200 and less
    than `below`.
    """
    target = parse_url(url)
    head = f"GET {target.target} HTTP/1.1\r\nhost: {target.authority}\r\nuser-agent: everput\r\n"
    request = f"{head}connection: close\r\n\r\n".encode("latin-1")
    status = (await ask(request, target, resolver, tls, timeout_s=timeout_s)).status
    return status is not None and 200 <= status < below


class Liveness:
    """The probes that one worker sends to listeners that are down."""

    def __init__(
        self, resolver: Resolver, tls: ssl.SSLContext, dice: Callable[[], float], tuning: Tuning = TUNED
    ) -> None:
        self._tuning = tuning
        self._dice = dice
        self.alive = alive
        self._resolver = resolver
        self._tls = tls
        self._probes: Probes[Dispatcher] = Probes()
        self.probes_under_way: set[asyncio.Task[None]] = set()
        self._per_s = round(tuning.probes_calm / tuning.tick_s)
        # The dispatchers of listeners that are down. Each of these listeners waits for a probe, or is being probed.
        self.down: set[Dispatcher] = set()

    def watch(self, dispatcher: Dispatcher) -> None:
        """Probe the listener of this dispatcher from now on, because it is down. Do nothing if it is being probed
        already.
        """
        if dispatcher not in self.down:
            self.down.add(dispatcher)
            self._wait(dispatcher)

    def tick(self, *, permits: int) -> None:
        """Start the probes whose time has come, but not more than `probes_max`. `permits` is the number of attempts
        that slow and failing listeners may start. On a busy machine, `permits` is small, and fewer probes start.
        """
        at_ms, tuning = now_ms(), self._tuning
        most = max(tuning.probes_min, min(tuning.probes_max, permits // tuning.permits_per_probe))
        self._per_s = round(min(most, tuning.probes_calm) / tuning.tick_s)
        while most:
            dispatcher = self._probes.next(at_ms)
            if dispatcher is None:
                return
            if self._still_down(dispatcher):
                most -= 1
                task = asyncio.create_task(self._ask(dispatcher))
                self.probes_under_way.add(task)
                task.add_done_callback(partial(self._asked, dispatcher))

    def _still_down(self, dispatcher: Dispatcher) -> bool:
        """Return whether the listener must still be probed: it is down and not paused. If not, stop probing it."""
        if dispatcher.circuit.state is not State.OPEN or dispatcher.listener.paused is not None:
            self.down.discard(dispatcher)
        return dispatcher in self.down

    def _wait(self, dispatcher: Dispatcher) -> None:
        circuit = dispatcher.circuit
        self._probes.add(dispatcher, at_ms=circuit.probe_at_ms, since_ms=circuit.down_since_ms)

    def _asked(self, dispatcher: Dispatcher, task: asyncio.Task[None]) -> None:
        self.probes_under_way.discard(task)
        if self._still_down(dispatcher):
            self._wait(dispatcher)

    async def _ask(self, dispatcher: Dispatcher) -> None:
        listener, circuit = dispatcher.listener, dispatcher.circuit
        below = 300 if listener.has_liveness_url else 500
        answer = await self.alive(
            listener.liveness_url, self._resolver, self._tls, below=below, timeout_s=self._tuning.probe_timeout_s
        )
        at_ms = now_ms()
        wait_ms = interval_ms(at_ms - circuit.down_since_ms, listeners=len(self.down), per_s=self._per_s)
        spread_ms = int(wait_ms * (1 - self._tuning.probe_jitter * self._dice()))
        if circuit.probed(alive=answer, at_ms=at_ms, interval_ms=spread_ms):
            log.warning("circuit.probation listener=%s", listener.id)
            dispatcher.assignment.changed(listener.id)
            dispatcher.wake()

    async def stop(self) -> None:
        tasks = list(self.probes_under_way)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
