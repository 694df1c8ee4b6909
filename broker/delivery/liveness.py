"""Asks the liveness_url of listeners that are down, and lets their deliveries flow again when it answers 2xx.

For: when to ask and asking. Not for: when a listener counts as down (broker/core/circuit.py).

A replay to a URL without a liveness_url has that URL asked instead, and whatever it answers will do, but for 5xx: what
takes a POST may well refuse a GET.

One probe per listener and worker, every half second while few are down. So that hundreds of dead listeners cost
little, a worker makes at most PROBES_PER_S, a fifth of it while the machine is busy, and asks each less often instead,
down to once in ten seconds.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from functools import partial
from random import random
from typing import Final

from broker.core.circuit import PROBE_MS_FIRST, PROBE_MS_MAX, State
from broker.delivery.courier import Courier
from broker.delivery.guard import Resolver, parse_url
from broker.delivery.once import ask
from broker.delivery.stream import now_ms

log = logging.getLogger(__name__)

PROBES_PER_S: Final = 200
_PROBES_PER_BEGIN: Final = 10  # a second, for each attempt that the slow may begin in a tick: both give way together
_TURNS: Final = 5  # ticks in which all of them are looked at
PROBE_TIMEOUT_S: Final = 3.0
_JITTER: Final = 0.2


async def alive(url: str, resolver: Resolver, tls: ssl.SSLContext, *, below: int = 300) -> bool:
    """Whether a GET of the liveness_url is answered in time, with 200 to below."""
    target = parse_url(url)
    head = f"GET {target.target} HTTP/1.1\r\nhost: {target.authority}\r\nuser-agent: everput\r\n"
    request = f"{head}connection: close\r\n\r\n".encode("latin-1")
    status = (await ask(request, target, resolver, tls, timeout_s=PROBE_TIMEOUT_S)).status
    return status is not None and 200 <= status < below


class Liveness:
    """The listeners of one worker that are down."""

    def __init__(self, resolver: Resolver, tls: ssl.SSLContext) -> None:
        self._resolver = resolver
        self._tls = tls
        self._asking: dict[Courier, asyncio.Task[None]] = {}
        self._ticks = 0

    def tick(self, down: set[Courier], *, begins: int) -> None:
        """Ask those of a fifth of them whose probe is due.

        down: couriers whose circuit was open; those that no longer are leave it. begins: as core/flow.py's Gate says.
        """
        self._ticks += 1
        at_ms = now_ms()
        per_s = min(PROBES_PER_S, _PROBES_PER_BEGIN * begins)
        interval_ms = min(PROBE_MS_MAX, max(PROBE_MS_FIRST, 1000 * len(down) // per_s))
        for courier in list(down)[self._ticks % _TURNS :: _TURNS]:
            if courier.circuit.state is not State.OPEN or courier.listener.paused is not None:
                down.discard(courier)
            elif courier.circuit.probe_at_ms <= at_ms and courier not in self._asking:
                task = asyncio.create_task(self._ask(courier, interval_ms))
                self._asking[courier] = task
                task.add_done_callback(partial(self._asked, courier))

    def _asked(self, courier: Courier, _task: asyncio.Task[None]) -> None:
        self._asking.pop(courier, None)

    async def _ask(self, courier: Courier, interval_ms: int) -> None:
        listener = courier.listener
        below = 300 if listener.has_liveness_url else 500
        answer = await alive(listener.liveness_url, self._resolver, self._tls, below=below)
        spread_ms = int(interval_ms * (1 - _JITTER * random()))  # noqa: S311 - it spreads probes, it guards nothing
        if courier.circuit.probed(alive=answer, at_ms=now_ms(), interval_ms=spread_ms):
            log.warning("circuit.probation listener=%s", courier.listener.id)
            courier.wake()

    async def stop(self) -> None:
        tasks = list(self._asking.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
