"""Too little room on the disk: what is refused below each mark, said once for each, and taken back by itself."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from broker import disk
from broker.disk import Marks, Refusal
from broker.errors import DiskNearlyFull


async def test_what_is_refused_follows_the_free_space(tmp_path: Path):
    said: list[Refusal | None] = []
    free = 500

    async def reaches(count: int) -> None:
        async with asyncio.timeout(5):
            while len(said) < count:
                await asyncio.sleep(0.001)

    looking = disk.watch(tmp_path, Marks(1000, 200), said.append, look_s=0.001, free_bytes=lambda _: free)
    watching = asyncio.create_task(looking)
    await reaches(1)
    free = 100
    await reaches(2)
    free = 1000
    await reaches(3)
    free = 199
    await reaches(4)
    watching.cancel()
    assert [None if one is None else one.urgent for one in said] == [False, True, None, True]
    assert all("nearly full" in one.reason for one in said if one is not None)


def test_the_first_mark_lets_urgent_events_pass_and_the_second_none():
    for refusal, urgent in ((Refusal("x", urgent=False), False), (Refusal("x", urgent=True), True)):
        with pytest.raises(DiskNearlyFull):
            refusal.check(urgent=urgent)
    Refusal("x", urgent=False).check(urgent=True)


async def test_enough_room_is_not_worth_a_word(tmp_path: Path):
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await disk.watch(tmp_path, Marks(0, 0), pytest.fail, look_s=0.001)
