"""One Idempotency-Key, several processes, each of which may die at any step: one message, one answer.

The logs are in memory and let others run at every call, as a real one does. A process dies by being cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from itertools import cycle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.commands.idempotency import Idempotency
from broker.commands.puts import new_put
from broker.core.claims import KEPT_MS
from broker.core.codec import decode_message
from broker.core.entities import Queue
from broker.errors import KeyInFlight, KeyReused
from tests.unit.memory import MemoryLog

QUEUE = Queue(id="q", organization_id="o", name="orders", created_at_ms=0)
APPEND_MS = 5_000
TAKE_OVER_MS = 2 * APPEND_MS + 10_000


class Processes:
    """Any number of API processes over one log, and one clock."""

    def __init__(self, pauses: Sequence[int] = (0,)) -> None:
        self.log = MemoryLog()
        self.pauses = cycle(pauses)
        self.now_ms = 1_767_225_600_000
        self.answers: list[list[str]] = []

    async def ask(self, count: int = 1, key: bytes = b"k", body: str = "same") -> list[str]:
        """A process of its own: nothing is shared but the log."""
        idempotency = Idempotency(
            Slow(self.log.claims, self.pauses),
            Slow(self.log.messages, self.pauses),
            append_timeout_ms=APPEND_MS,
            clock=lambda: self.now_ms,
        )
        puts = [
            new_put(QUEUE, f"{body} {number}", None, "odd" if number % 3 else None, "", "") for number in range(count)
        ]
        stored = await idempotency.put(QUEUE, puts, idempotency_key=key, body_sha256=body, actor="", request_id="")
        self.answers.append([one.id for one in stored])
        return self.answers[-1]

    def stored(self) -> list[str]:
        return [decode_message(value).data for records in self.log.messages.records for _, value, _ in records]


class Slow:
    """A log whose calls take as many turns of the event loop as `pauses` says, one number after the other."""

    def __init__(self, log, pauses: Iterator[int]) -> None:
        self._log = log
        self._pauses = pauses

    def __getattr__(self, name: str):
        called = getattr(self._log, name)
        if name in ("some_partition", "partition_of"):
            return called

        async def slowly(*args, **more):
            for _ in range(next(self._pauses)):
                await asyncio.sleep(0)
            return await called(*args, **more)

        return slowly


async def storm(processes: Processes, waves, count: int) -> None:
    """waves: at which step which of several processes dies, and how much later the next ones ask."""
    for deaths, later_ms in waves:
        tasks = [asyncio.create_task(processes.ask(count)) for _ in deaths]
        step = 0
        while not all(task.done() for task in tasks):
            for task, death in zip(tasks, deaths, strict=True):
                if death == step:
                    task.cancel()
            await asyncio.sleep(0)
            step += 1
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            assert isinstance(result, list | KeyInFlight | asyncio.CancelledError), result
        processes.now_ms += later_ms


deaths = st.lists(st.integers(0, 20), min_size=1, max_size=3)
waves = st.lists(st.tuples(deaths, st.sampled_from([TAKE_OVER_MS, 0, 3_600_000])), min_size=1, max_size=4)


@given(waves, st.integers(1, 3), st.lists(st.integers(0, 4), min_size=1, max_size=7))
@settings(deadline=None, max_examples=400)
def test_whoever_dies_when_each_message_is_stored_once_and_all_hear_the_same(waves, count, pauses):
    async def run() -> None:
        processes = Processes(pauses)
        await storm(processes, waves, count)
        processes.now_ms += TAKE_OVER_MS
        await processes.ask(count)
        assert sorted(processes.stored()) == sorted(f"same {number}" for number in range(count))
        assert len({tuple(answer) for answer in processes.answers}) == 1

    asyncio.run(run())


async def test_another_request_with_the_key_is_refused_and_another_key_is_not():
    processes = Processes()
    first = await processes.ask()
    with pytest.raises(KeyReused):
        await processes.ask(body="other")
    assert await processes.ask(key=b"l", body="other") != first
    assert sorted(processes.stored()) == ["other 0", "same 0"]


async def test_the_key_is_free_after_a_day():
    processes = Processes()
    await processes.ask()
    processes.now_ms += KEPT_MS
    await processes.ask(body="other")
    assert sorted(processes.stored()) == ["other 0", "same 0"]


async def test_a_repeat_under_way_in_the_same_process_is_told_so():
    processes = Processes()
    idempotency = Idempotency(processes.log.claims, processes.log.messages, append_timeout_ms=APPEND_MS)

    async def put():
        put = new_put(QUEUE, "x", None, None, "", "")
        return await idempotency.put(QUEUE, [put], idempotency_key=b"k", body_sha256="", actor="", request_id="")

    one, other = await asyncio.gather(put(), put(), return_exceptions=True)
    assert isinstance(other, KeyInFlight)
    assert await put() == one


async def test_a_slow_put_is_not_taken_over_while_it_may_still_come():
    slow = Processes([0, 0, 0, 60])
    putting = asyncio.create_task(slow.ask())
    for _ in range(20):
        await asyncio.sleep(0)
    assert len(slow.log.claims.records) == 1
    slow.pauses = cycle([0])
    slow.now_ms += TAKE_OVER_MS - 1
    with pytest.raises(KeyInFlight):
        await slow.ask()
    assert await putting == await slow.ask()
    assert slow.stored() == ["same 0"]
