"""A single request on its own connection, and its answer: for probes and tests, not for deliveries.

For: connecting, sending, waiting, all within one timeout. Not for: what is sent, what an answer means.
"""

from __future__ import annotations

import asyncio
import ssl
from typing import NamedTuple

from broker.outbound.addresses import Resolver, Target
from broker.outbound.connection import REUSED, ConnectFailed, Connection, Times, connect


class SingleAnswer(NamedTuple):
    """The answer to a single HTTP request."""

    status: int | None  # the HTTP status of the answer; None if there was no valid answer
    error: str | None  # if there was no valid answer
    times: Times = REUSED  # durations of the steps of connecting
    at_s: float = 0.0  # when the answer's status line and headers had arrived, on the event loop's clock
    received: bytes = b""  # the first bytes of the HTTP answer, if the caller has asked for them


class _SingleRequest:
    """The receiver of the HTTP answer to a single request, which is not part of a listener's deliveries."""

    def __init__(self, *, keeps: bool) -> None:
        self._loop = asyncio.get_running_loop()
        self._keeps = keeps
        self.done: asyncio.Future[SingleAnswer] = self._loop.create_future()
        # The answer's status and times; None until the answer's status line and headers have arrived.
        self.answer: SingleAnswer | None = None

    def answered(self, connection: Connection, status: int, _retry_after_s: int | None) -> None:
        self.answer = answer = SingleAnswer(status, None, connection.times, self._loop.time())
        if self._keeps:
            connection.keep(lambda received: self._set(answer._replace(received=received)))
        else:
            self._set(answer)

    def failed(self, connection: Connection, error: str) -> None:
        self._set(SingleAnswer(None, error, connection.times))

    def released(self, connection: Connection) -> None:
        connection.close()

    def lost(self, _connection: Connection) -> None:
        self._set(SingleAnswer(None, "closed"))

    def _set(self, answer: SingleAnswer) -> None:
        if not self.done.done():
            self.done.set_result(answer)


async def ask(
    request: bytes,
    target: Target,
    resolver: Resolver,
    tls: ssl.SSLContext,
    *,
    timeout_s: float,
    keeps: bool = False,
) -> SingleAnswer:
    """Send one HTTP request to an allowed address of the target, and return the answer. If no answer comes, the result
    has an error and no status.

    If `keeps` is true, the field `received` of the result has the first bytes of the answer. For these bytes, the
    function waits until the answer's body ends, but at most one second.
    """
    once = _SingleRequest(keeps=keeps)
    try:
        async with asyncio.timeout(timeout_s):
            connection = await connect(once, target, resolver, tls)
            try:
                connection.send(request, once, 0.0)
                return await once.done
            finally:
                connection.close()
    except TimeoutError:
        return once.answer or SingleAnswer(None, "timeout")
    except ConnectFailed as error:
        return SingleAnswer(None, str(error), error.times)
