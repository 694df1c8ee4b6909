"""The fence: asks Kafka whether a worker still owns its partitions, before the worker sends newly read messages,
commits offsets, writes to `outstanding` or deletes old records.

For: asking, and reusing a recent answer. Not for: how Kafka is asked (broker/kafka/tail.py), nor for outcomes of
attempts, which are written without asking, because they are facts.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable

from broker.delivery.tuning import TUNED, Tuning
from broker.errors import LogUnavailable
from broker.ports import NoMember


async def _handed_over() -> None:
    raise LogUnavailable(
        "this worker does not own the partitions any more; their next owner sends the messages, so nothing need be done"
    )


class Fence:
    """The check that this worker still owns its partitions. If the process was suspended, another worker may have taken
    the partitions over meanwhile.

    assure() raises LogUnavailable if the ownership is not certain. It asks Kafka, but only if Kafka has not confirmed
    the ownership in the last `sure_s` seconds.
    """

    def __init__(
        self,
        ask: Callable[[], Awaitable[None]],
        tuning: Tuning = TUNED,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tuning = tuning
        self._monotonic = monotonic
        self._ask = ask  # raises NoMember if partitions are lost
        self._asked_at = float("-inf")  # send time of the newest request in which Kafka confirmed the ownership
        self._answer: asyncio.Future[None] | None = None  # set while assure() asks Kafka

    def end(self) -> None:
        """Let every later check of ownership fail, because this worker does not own its partitions any more."""
        self._ask, self._asked_at = _handed_over, float("-inf")

    async def confirm(self) -> None:
        """Ask Kafka now whether this worker still owns its partitions. Raises LogUnavailable if the worker does not, or
        if Kafka does not answer.
        """
        asked_at, ask = self._monotonic(), self._ask
        try:
            await ask()
        except NoMember:
            self._asked_at = float("-inf")
            raise
        if ask is not self._ask:
            raise LogUnavailable(
                "this worker handed over or lost its partitions while it asked Kafka whether it owns them; the worker "
                "that owns them next sends their messages, so nothing need be done"
            )
        self._asked_at = asked_at

    async def assure(self) -> None:
        """Make sure that this worker still owns its partitions. Raises LogUnavailable if that is not certain.

        Kafka is asked only if it has not confirmed this in the last `sure_s` seconds. Calls at the same time share one
        request.
        """
        if self._monotonic() - self._asked_at < self._tuning.sure_s:
            return
        if self._answer is not None:
            await asyncio.shield(self._answer)
            return
        answer = self._answer = asyncio.get_running_loop().create_future()
        try:
            await self.confirm()
            answer.set_result(None)
        except BaseException as error:
            answer.set_exception(
                error if isinstance(error, LogUnavailable) else LogUnavailable("the ownership check was aborted")
            )
            # Read the exception here: asyncio logs every exception that no caller has read.
            answer.exception()
            raise
        finally:
            self._answer = None

    async def run(self) -> None:
        """Ask Kafka regularly whether this worker still owns its partitions, so that `assure()` seldom has to wait for
        an answer. This loop is endless.
        """
        while True:
            await asyncio.sleep(self._tuning.ask_look_s)
            if self._monotonic() - self._asked_at >= self._tuning.ask_s:
                with contextlib.suppress(LogUnavailable):
                    await self.confirm()
