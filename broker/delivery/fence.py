"""The fence: whether a worker may still act for its partitions, which other workers may own by now.

For: asking Kafka whether the worker is still the member that was given them, and how long an answer holds. Not for: how
Kafka is asked (broker/kafka/tail.py), or for facts such as the outcome of an attempt, which are written unasked.
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
    raise LogUnavailable("the partitions were handed over")


class Fence:
    """The fence of one assignment. It begins closed: the worker may have stood still since it was given the partitions.

    ask: asks Kafka (NoMember: others own the partitions; LogUnavailable: Kafka can't tell).
    """

    def __init__(self, ask: Callable[[], Awaitable[None]], tuning: Tuning = TUNED) -> None:
        self._tuning = tuning
        self._ask = ask
        self._asked_at = float("-inf")  # when the request was sent that the last answer belongs to
        self._answer: asyncio.Future[None] | None = None  # while assure() asks

    def end(self) -> None:
        """Close the fence: the partitions are handed over."""
        self._ask, self._asked_at = _handed_over, float("-inf")

    async def confirm(self) -> None:
        """Ask Kafka now whether the worker owns the partitions.
        Raises LogUnavailable if it does not, or Kafka can't tell.
        """
        asked_at, ask = time.monotonic(), self._ask
        try:
            await ask()
        except NoMember:
            self._asked_at = float("-inf")
            raise
        if ask is not self._ask:
            raise LogUnavailable("the partitions were handed over meanwhile")
        self._asked_at = asked_at

    async def assure(self) -> None:
        """Make sure that no other worker owns the partitions yet. Raises LogUnavailable.

        Kafka is asked only when its last answer is too old. Callers at the same time share one answer.
        """
        if time.monotonic() - self._asked_at < self._tuning.sure_s:
            return
        if self._answer is not None:
            await asyncio.shield(self._answer)
            return
        answer = self._answer = asyncio.get_running_loop().create_future()
        try:
            await self.confirm()
            answer.set_result(None)
        except BaseException as error:
            answer.set_exception(error if isinstance(error, LogUnavailable) else LogUnavailable("nobody asks any more"))
            answer.exception()  # Nobody else may be waiting for this answer.
            raise
        finally:
            self._answer = None

    async def run(self) -> None:
        """Ask Kafka now and then, for ever, so that assure() seldom has to wait."""
        while True:
            await asyncio.sleep(self._tuning.ask_look_s)
            if time.monotonic() - self._asked_at >= self._tuning.ask_s:
                with contextlib.suppress(LogUnavailable):
                    await self.confirm()
