"""Reports in the log which partitions of a replay are done, so that the replay ends when all of them are.

For: the replays that this worker delivers a part of. Each worker knows only its own partitions. The directory combines
the reports of all workers (ReplayAdvanced). Not for: delivering replays (dispatcher.py, as for any listener),
requesting them (broker/commands/replays.py).

A partition is done when its committed cursor is at the replay's end, and no delivery of the replay waits in
`outstanding` for an attempt. Parked deliveries of a replay do not delay its end.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

from broker.clock import now_ms
from broker.core.events import ControlEvent, ReplayAdvanced
from broker.delivery.dispatch.dispatcher import Dispatcher
from broker.delivery.reading.partition import Partition
from broker.delivery.tuning import TUNED, Tuning
from broker.errors import BrokerError


class Outstanding(Protocol):
    def retrying(self, partition: int, listener_id: str) -> bool: ...


class ReplayProgress:
    """The part of a worker that records in the topic `control` when a replay is finished in one of the worker's
    partitions.
    """

    def __init__(
        self,
        append: Callable[[ControlEvent], Awaitable[int]],
        partitions: Mapping[int, Partition],
        dispatchers: Mapping[str, Dispatcher],
        outstanding: Outstanding,
        tuning: Tuning = TUNED,
    ) -> None:
        self._look_s = tuning.replay_look_s
        self._append = append
        self._partitions = partitions
        self._dispatchers = dispatchers
        self._outstanding = outstanding

    async def run(self) -> None:
        """Record regularly, in an endless loop, in which partitions replays are finished."""
        while True:
            await asyncio.sleep(self._look_s)
            for replay_id in [
                one for one, dispatcher in self._dispatchers.items() if dispatcher.listener.replay is not None
            ]:
                with contextlib.suppress(BrokerError):  # The next round repeats it.
                    await self._look(replay_id)

    async def _look(self, replay_id: str) -> None:
        dispatcher = self._dispatchers.get(replay_id)
        replay = None if dispatcher is None else dispatcher.listener.replay
        if dispatcher is None or replay is None or replay.ended is not None:
            return
        done = tuple(
            number
            for number, partition in self._partitions.items()
            if number not in replay.finished
            and partition.placed(dispatcher)
            and number not in dispatcher.streams
            and not self._outstanding.retrying(number, replay_id)
        )
        if done:
            await self._append(
                ReplayAdvanced(
                    at_ms=now_ms(),
                    organization_id=replay.organization_id,
                    actor="worker",
                    replay_id=replay_id,
                    partitions=done,
                )
            )
