"""Java's class archive is made when the machine has nothing better to do."""

from __future__ import annotations

import asyncio
import os

import pytest

from broker.kafka.embedded.archive import until_idle

IDLE, BUSY = 0.0, 1000.0


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The load averages that the machine is found to have, one after another."""
    found: list[float] = []
    monkeypatch.setattr(os, "getloadavg", lambda: (found.pop(0), 0.0, 0.0))
    return found


async def test_it_waits_until_the_machine_is_idle(loads: list[float]):
    loads += [BUSY, BUSY, BUSY, IDLE, BUSY]
    async with asyncio.timeout(60):
        await until_idle(within_s=60, look_s=0.001)
    assert loads == [BUSY]


async def test_an_idle_machine_is_not_kept_waiting(loads: list[float]):
    loads += [IDLE]
    async with asyncio.timeout(60):
        await until_idle(within_s=60, look_s=600)


async def test_a_machine_that_stays_busy_is_not_waited_for_for_ever(loads: list[float]):
    loads += [BUSY] * 1000
    async with asyncio.timeout(60):
        await until_idle(within_s=0.01, look_s=0.001)
