"""A dispatcher's connections to its listener: those that carry a request, those being opened, and idle ones.

For: opening as many as the process may have, keeping idle ones for a while, closing those to a former address.
Not for: what is sent when (dispatcher.py), one connection (broker/outbound/connection.py).
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

from broker.delivery.dispatch.fairness import Sockets
from broker.delivery.dispatch.stream import Delivery
from broker.delivery.tuning import TUNED, Tuning
from broker.outbound.addresses import Resolver, Target
from broker.outbound.connection import ConnectFailed, Connection, Owner, connect
from broker.ports import Tracing


@dataclass(frozen=True, slots=True)
class Network:
    """The resources that a worker's connections to all of its listeners share, such as DNS, TLS settings, and a limit
    on sockets.
    """

    resolver: Resolver
    sockets: Sockets  # counts the open connections
    tls: ssl.SSLContext
    connect: Callable[[Owner, Target, Resolver, ssl.SSLContext], Awaitable[Connection]] = connect
    tracing: Tracing | None = None  # None if tracing is off


class Connections:
    """The connections of a worker to one listener."""

    __slots__ = ("_idle", "_loop", "_owner", "idle_s", "making", "network", "sent", "target")

    def __init__(self, owner: Owner, network: Network, target: Target, tuning: Tuning = TUNED) -> None:
        self._owner = owner
        self._loop = asyncio.get_running_loop()
        self._idle: list[Connection] = []
        self.idle_s = tuning.connection_idle_s
        self.network = network
        self.target = target
        self.sent: dict[Connection, None] = {}  # connections with a request, oldest first
        # The tasks that open connections, oldest first. Each has the deliveries of its first request, and a start time.
        # The start of a task that opens a connection is in seconds of the event loop's clock.
        self.making: dict[asyncio.Task[None], tuple[Sequence[Delivery], float]] = {}

    @property
    def busy(self) -> int:
        """The number of connections that carry a request or are being opened for one."""
        return len(self.sent) + len(self.making)

    def busy_since(self, at_s: float) -> bool:
        """Return whether a request was sent at the time `at_s` or later, and still waits for its answer. If a
        connection is being opened for a request, the request counts as sent when the opening started.
        """
        sent = next(reversed(self.sent), None)
        _, making_s = next(reversed(self.making.values()), ((), -inf))
        return making_s >= at_s or (sent is not None and sent.at >= at_s)

    @property
    def idle(self) -> int:
        return len(self._idle)

    @property
    def may_have_one(self) -> bool:
        """Return whether the next attempt can have a connection: one is idle, or a socket is free for a new one."""
        return bool(self._idle) or not self.network.sockets.used_up

    def take_idle(self) -> Connection | None:
        return self._idle.pop() if self._idle else None

    def make(self, deliveries: Sequence[Delivery], work: Coroutine[Any, Any, None]) -> None:
        """Start a task that opens a connection for an attempt of these deliveries."""
        self.network.sockets.open += 1
        task = self._loop.create_task(work)
        self.making[task] = deliveries, self._loop.time()
        task.add_done_callback(self._made)

    def _made(self, task: asyncio.Task[None]) -> None:
        del self.making[task]
        if task.cancelled():
            self.network.sockets.open -= 1

    async def connect(self) -> tuple[Target, Connection | ConnectFailed]:
        """Connect to the listener's current address. Return the address, and the connection or the error."""
        network = self.network
        while True:
            target = self.target
            try:
                connection = await network.connect(self._owner, target, network.resolver, network.tls)
            except ConnectFailed as error:
                network.sockets.open -= 1
                return target, error
            if target is self.target:
                return target, connection
            connection.close()  # The address was changed while connecting.
            network.sockets.open += 1

    def aim(self, target: Target) -> None:
        """Connect to this address from now on. Idle connections to the old address are closed now, and busy ones after
        their answers.
        """
        if target != self.target:
            self.target = target
            for connection in self._idle:
                connection.close()
            self._idle.clear()

    def release(self, connection: Connection) -> None:
        """After an answer was read, keep the connection idle for the next request. Close the connection instead if the
        listener has another address now, or if the worker is short of sockets.
        """
        self.sent.pop(connection, None)
        if connection.target is self.target and not self.network.sockets.crowded:
            self._idle.append(connection)
        else:
            connection.close()

    def lost(self, connection: Connection) -> bool:
        """Forget a closed connection. Return whether a request on the connection still waited for its answer. A request
        that has timed out does not wait any more.
        """
        self.network.sockets.open -= 1
        if connection in self.sent:
            del self.sent[connection]
            return True
        if connection in self._idle:
            self._idle.remove(connection)
        return False

    def expired(self, before_s: float) -> Connection | None:
        """Return the connection whose request has waited longest for an answer, if the request was sent at the time
        `before_s` or earlier. The connection does not count as busy any more. If there is no such request, return None.
        """
        connection = next(iter(self.sent), None)
        if connection is None or connection.at > before_s:
            return None
        del self.sent[connection]
        return connection

    def tidy(self) -> None:
        """Close connections that have been idle for longer than `idle_s`."""
        before_s = self._loop.time() - self.idle_s
        while self._idle and self._idle[0].at < before_s:
            self._idle.pop(0).close()

    def close(self) -> None:
        """Close all connections, and cancel those that are being opened. After this, lost() is called for each closed
        connection.
        """
        for task in list(self.making):
            task.cancel()
        for connection in (*self._idle, *self.sent):
            connection.close()
