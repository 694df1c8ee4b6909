"""Watches the disk that the embedded Kafka writes to, so that Everput refuses changes before Kafka fails.

For: the two limits of free space, and what is refused below each. Below the first limit, only events that make the log
grow are refused: revoking keys, signing in, deleting and pausing are allowed until the second limit.

Not for: refusing events (broker/kafka/log.py), which events are urgent (broker/core/events.py), a cluster given with
--kafka, whose operator watches its disks.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

from broker.errors import DiskNearlyFull

log = logging.getLogger(__name__)

LOOK_S: Final = 1.0


class Marks(NamedTuple):
    """Two limits of free disk space, in bytes. If less than `growth` bytes are free, the API stores only urgent events.
    If less than `reserve` bytes are free, the API stores no events. `reserve` is lower than `growth`. Workers may
    always store events.
    """

    growth: int
    reserve: int


class Refusal(NamedTuple):
    """The reason why events are refused at the moment. If `urgent` is true, all events are refused. Otherwise, urgent
    events are still stored.
    """

    reason: str
    urgent: bool

    def check(self, *, urgent: bool) -> None:
        """Raise DiskNearlyFull if an event must not be stored now. The parameter `urgent` says whether the event is
        urgent. Urgent events are refused only if `self.urgent` is true.
        """
        if self.urgent or not urgent:
            raise DiskNearlyFull(self.reason)


def free_bytes(folder: Path) -> int:
    return shutil.disk_usage(folder).free


async def watch(
    folder: Path,
    marks: Marks,
    refuse: Callable[[Refusal | None], None],
    *,
    look_s: float = LOOK_S,
    free_bytes: Callable[[Path], int] = free_bytes,
) -> None:
    """Check the free disk space every `look_s` seconds.

    Whenever the space crosses one of the two limits, call refuse() with the new refusal, or with None if nothing is
    refused any more.
    """
    before: bool | None = None  # True: all events are refused; False: all except urgent ones; None: none
    while True:
        free = free_bytes(folder)
        now = free < marks.reserve if free < marks.growth else None
        if now != before:
            before = now
            refuse(None if now is None else Refusal(_reason(free, marks, urgent=now), now))
            state = "has_room_again" if now is None else "full" if now else "nearly_full"
            log.warning("disk.%s free_bytes=%d", state, free)
        await asyncio.sleep(look_s)


def _reason(free: int, marks: Marks, *, urgent: bool) -> str:
    must = marks.reserve if urgent else marks.growth
    still = "" if urgent else "urgent changes are still stored, such as sign-ins, revoked keys, pauses and deletions; "
    return (
        f"the disk is nearly full: {free >> 20} MiB are free, {must >> 20} MiB must stay free; "
        f"nothing was stored; {still}deliveries continue; the operator of this server must free disk space"
    )
