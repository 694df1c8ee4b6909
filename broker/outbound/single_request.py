"""A single request on its own connection, and its answer: for probes and tests, not for deliveries.

For: connecting, sending, waiting, all within one timeout. Not for: what is sent, what an answer means.
"""

from __future__ import annotations

import asyncio
import ssl
from typing import NamedTuple

from broker.outbound.addresses import Resolver, Target
from broker.outbound.connection import ConnectFailed, Connection, connect


class Answer(NamedTuple):
    """The answer to a single HTTP request."""

    status: int | None  # None if there was no valid answer
    error: str | None  # if there was no valid answer


class _SingleRequest:
    """The receiver of the answer to a single request."""

    def __init__(self) -> None:
        self.done: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

    def answered(self, _connection: Connection, status: int, _retry_after_s: int | None) -> None:
        self._set(Answer(status, None))

    def failed(self, _connection: Connection, error: str) -> None:
        self._set(Answer(None, error))

    def released(self, connection: Connection) -> None:
        connection.close()

    def lost(self, _connection: Connection) -> None:
        self._set(Answer(None, "closed"))

    def _set(self, answer: Answer) -> None:
        if not self.done.done():
            self.done.set_result(answer)


async def ask(request: bytes, target: Target, resolver: Resolver, tls: ssl.SSLContext, *, timeout_s: float) -> Answer:
    """Send one HTTP request to an allowed address of the target, and return the answer."""
    once = _SingleRequest()
    try:
        async with asyncio.timeout(timeout_s):
            connection = await connect(once, target, resolver, tls)
            try:
                connection.send(request, once, 0.0)
                return await once.done
            finally:
                connection.close()
    except TimeoutError:
        return Answer(None, "timeout")
    except ConnectFailed as error:
        return Answer(None, str(error))
