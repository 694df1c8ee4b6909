"""Watches the disk that the embedded Kafka writes to, so that puts end before Kafka does.

For: when there is too little room, in words, and when there is enough again. Not for: refusing (broker/kafka/log.py);
a cluster of others: whoever runs it watches its disks."""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final

log = logging.getLogger(__name__)

LOOK_S: Final = 1.0


async def watch(folder: Path, free_bytes_min: int, refuse: Callable[[str | None], None]) -> None:
    """For ever: refuse() is called with the reason when less is free, and with None when there is enough again."""
    refused = False
    while True:
        free = shutil.disk_usage(folder).free
        if (free < free_bytes_min) != refused:
            refused = not refused
            refuse(_reason(free, free_bytes_min) if refused else None)
            log.warning("disk.%s free_bytes=%d", "nearly_full" if refused else "has_room_again", free)
        await asyncio.sleep(LOOK_S)


def _reason(free: int, free_bytes_min: int) -> str:
    return (
        f"the disk is nearly full: {free >> 20} MiB are free, {free_bytes_min >> 20} must stay free; "
        "nothing was stored, deliveries go on"
    )
