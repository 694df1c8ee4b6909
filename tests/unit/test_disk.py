"""Too little room on the disk: said once, and taken back by itself."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

from broker import disk


async def test_puts_are_refused_below_the_limit_and_taken_again_above_it(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(disk, "LOOK_S", 0.001)
    said: list[str | None] = []
    free = shutil.disk_usage(tmp_path).free

    async def reaches(count: int) -> None:
        async with asyncio.timeout(5):
            while len(said) < count:
                await asyncio.sleep(0.001)

    watching = asyncio.create_task(disk.watch(tmp_path, 2 * free, said.append))
    await reaches(1)
    assert "nearly full" in (said[0] or "")
    real = shutil.disk_usage
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: real(folder)._replace(free=3 * free))
    await reaches(2)
    assert said[1] is None
    monkeypatch.undo()
    monkeypatch.setattr(disk, "LOOK_S", 0.001)
    await reaches(3)
    watching.cancel()
    assert len(said) == 3


async def test_enough_room_is_not_worth_a_word(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(disk, "LOOK_S", 0.001)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await disk.watch(tmp_path, 0, pytest.fail)
