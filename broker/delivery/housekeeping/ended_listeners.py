"""The removal of what deleted listeners leave behind: their cursors in Kafka, and their records in `outstanding`.

For: finding these by a comparison with the directory, when a listener is deleted, at a take-over, and regularly. So the
cleanup also finds listeners that were deleted while no worker ran, or whose cursor was committed once more. Not for:
ending deliveries (the roster stops the streams).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Collection
from typing import Final, Protocol

from broker.delivery.tuning import TUNED, Tuning
from broker.errors import LogUnavailable, ViewBehind
from broker.ports import DirectoryView

log = logging.getLogger(__name__)

# The worker that owns partition 0 of `messages` deletes the committed offsets of all deleted listeners.
_DELETES_CURSORS: Final = 0


class Cursors(Protocol):
    async def listeners(self) -> set[str]: ...

    async def delete(self, listener_id: str) -> None: ...


class Checkpoints(Protocol):
    quiet: asyncio.Lock


class Outstanding(Protocol):
    def listeners(self) -> set[str]: ...

    async def bury(self, listeners: Collection[str]) -> None: ...


class EndedListeners:
    """The deletion of the data that deleted listeners and ended replays have left in Kafka. Each worker deletes the
    stored deliveries in its own partitions. The worker that owns partition 0 also deletes the committed offsets.
    """

    def __init__(
        self,
        cursors: Cursors,
        view: DirectoryView,
        checkpoints: Checkpoints,
        outstanding: Outstanding,
        partitions: Collection[int],
        dispatchers: Collection[str],
        tuning: Tuning = TUNED,
    ) -> None:
        self._tuning = tuning
        self._cursors = cursors
        self._view = view
        self._checkpoints = checkpoints
        self._outstanding = outstanding
        self._partitions = partitions
        self._dispatchers = dispatchers
        self._wake = asyncio.Event()

    def look(self) -> None:
        """Wake run(), so that it looks for deleted listeners now, without its usual wait."""
        self._wake.set()

    async def run(self) -> None:
        """Delete the stored deliveries and committed offsets of deleted listeners regularly, in an endless loop."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._tuning.ended_look_s):
                    await self._wake.wait()
            self._wake.clear()
            try:
                again = await self.clear()
            except (LogUnavailable, ViewBehind) as error:
                log.warning("endings.wait error=%s", error)
                again = True
            if again:
                await asyncio.sleep(self._tuning.ended_again_s)
                self.look()

    async def clear(self) -> bool:
        """Delete the stored deliveries that deleted listeners and ended replays have left in the worker's partitions.
        If the worker owns partition 0, also delete the committed offsets of all deleted listeners and ended replays.
        Return True if there were any such offsets. The caller must then call clear() again later, because a deletion
        may have failed.

        Raises LogUnavailable if Kafka does not answer, and ViewBehind if this process has not read the topic `control`
        to its end. Delete nothing if `control` has an event that only a newer version of Everput can read.
        """
        if not self._partitions:
            return False
        with_cursors = await self._cursors.listeners() if _DELETES_CURSORS in self._partitions else set()
        with_records = self._outstanding.listeners()
        await self._view.caught_up()
        # If this process can't read an event, delete nothing: the data may be of a listener that the event created.
        if not self._view.complete:
            return False
        known = self._view.state.listeners.keys()
        await self._outstanding.bury(with_records - known)
        ended = with_cursors - known
        for listener_id in ended:
            await self._delete(listener_id)
        return bool(ended)

    async def _delete(self, listener_id: str) -> None:
        async with self._checkpoints.quiet:
            if listener_id in self._dispatchers:  # Its streams are not stopped yet.
                return
            try:
                await self._cursors.delete(listener_id)
            # If the deletion fails, try again later. Kafka refuses it while another consumer uses the listener's group.
            except LogUnavailable as error:
                log.warning("endings.wait listener=%s error=%s", listener_id, error)
            else:
                log.info("listener.ended listener=%s", listener_id)
