"""When a worker asks whether its partitions are still its own, and for how long it takes an answer for granted."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from broker.delivery.fence import Fence
from broker.delivery.tuning import TUNED, Tuning
from broker.errors import LogUnavailable
from broker.ports import NoMember


class Kafka:
    """asked: how often. error: what it answers. takes_s: to answer."""

    def __init__(self) -> None:
        self.now_s = 1_000.0
        self.asked = 0
        self.error: LogUnavailable | None = None
        self.takes_s = 0.0
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    def fence(self, tuning: Tuning = TUNED) -> Fence:
        return Fence(self.ask, tuning, monotonic=lambda: self.now_s)

    async def ask(self) -> None:
        self.asked += 1
        await self.may_answer.wait()
        self.now_s += self.takes_s
        if self.error is not None:
            raise self.error


@pytest.fixture
async def kafka() -> Kafka:
    return Kafka()


async def test_an_answer_holds_from_when_it_was_asked_for_less_than_a_session(kafka: Kafka):
    ours = kafka.fence()
    kafka.takes_s = 3.0
    await ours.assure()
    kafka.now_s += TUNED.sure_s - 3.1
    await ours.assure()
    assert kafka.asked == 1
    kafka.now_s += 0.2
    await ours.assure()
    assert kafka.asked == 2


async def test_one_who_stood_still_may_do_nothing_before_kafka_has_answered(kafka: Kafka):
    ours = kafka.fence()
    await ours.assure()
    kafka.now_s += 3_600
    kafka.error = LogUnavailable("no answer")
    for _ in range(2):
        with pytest.raises(LogUnavailable):
            await ours.assure()
    kafka.error = None
    await ours.assure()


async def test_nobody_is_told_that_they_are_ours_after_they_were_handed_over(kafka: Kafka):
    ours = kafka.fence()
    await ours.confirm()
    kafka.may_answer.clear()
    asking = asyncio.create_task(ours.confirm())
    await asyncio.sleep(0)
    ours.end()
    kafka.may_answer.set()
    for asks in (asking, ours.assure(), ours.confirm()):
        with pytest.raises(LogUnavailable):
            await asks
    assert kafka.asked == 2


@pytest.mark.parametrize("error", [NoMember("no member any more"), LogUnavailable("no answer")])
async def test_only_a_refusal_takes_an_earlier_answer_back(kafka: Kafka, error: LogUnavailable):
    ours = kafka.fence()
    await ours.confirm()
    kafka.error = error
    with pytest.raises(type(error)):
        await ours.confirm()
    refused = isinstance(error, NoMember)
    with pytest.raises(NoMember) if refused else contextlib.nullcontext():
        await ours.assure()
    assert kafka.asked == 2 + refused


@pytest.mark.parametrize("refuses", [False, True])
async def test_all_who_want_to_know_at_a_time_get_one_answer(kafka: Kafka, refuses: bool):
    ours = kafka.fence()
    kafka.error = LogUnavailable("no answer") if refuses else None
    kafka.may_answer.clear()
    waiting = [asyncio.create_task(ours.assure()) for _ in range(5)]
    await asyncio.sleep(0)
    waiting[1].cancel()
    await asyncio.sleep(0)
    kafka.may_answer.set()
    answers = await asyncio.gather(*waiting, return_exceptions=True)
    assert kafka.asked == 1
    assert isinstance(answers.pop(1), asyncio.CancelledError)
    assert [isinstance(one, LogUnavailable) for one in answers] == [refuses] * 4


async def test_who_asks_and_is_cancelled_keeps_nobody_waiting(kafka: Kafka):
    ours = kafka.fence()
    kafka.may_answer.clear()
    waiting = [asyncio.create_task(ours.assure()) for _ in range(2)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    with pytest.raises(LogUnavailable):
        await waiting[1]
    kafka.may_answer.set()
    await ours.assure()
    assert kafka.asked == 2


async def test_it_asks_once_nobody_else_has_for_some_seconds(kafka: Kafka):
    ours = kafka.fence(Tuning(ask_look_s=0))
    await ours.confirm()
    running = asyncio.create_task(ours.run())
    for passed_s, asked in ((0, 1), (TUNED.sure_s / 2, 2), (0, 2)):
        kafka.now_s += passed_s
        for _ in range(9):
            await asyncio.sleep(0)
        assert kafka.asked == asked
    kafka.error = LogUnavailable("no answer")
    kafka.now_s += TUNED.sure_s
    for _ in range(9):
        await asyncio.sleep(0)
    assert kafka.asked > 2
    assert not running.done()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
