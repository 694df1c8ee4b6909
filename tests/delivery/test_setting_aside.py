"""What leaves a dispatcher's window for `outstanding` because the log is to be kept no longer. Real sockets."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from broker.core.circuit import State
from broker.core.flow import WHOLE
from broker.delivery.dispatch.backlog import Backlog
from broker.delivery.tuning import TUNED, Tuning
from broker.errors import LogUnavailable
from tests.delivery.office import Office, paused, until
from tests.delivery.test_dispatcher import Moody
from tests.delivery.test_due import Taker, serve_all
from tests.outstanding_topic import OutstandingTopic

OLD, YOUNG = 500, 40


@pytest.fixture
def topic() -> OutstandingTopic:
    return OutstandingTopic()


def watch(office: Office) -> list[tuple[int, int]]:
    """How many messages, and bytes of them, are on their way to `outstanding` each time that one leaves."""
    seen, leaving = list[tuple[int, int]](), office.dispatcher.memory.setting_aside
    assignment = office.dispatcher.assignment
    set_aside = assignment.set_aside

    def watched(*how) -> None:
        seen.append((len(leaving), sum(leaving.values())))
        set_aside(*how)

    assignment.set_aside = watched
    return seen


async def lagging(serve, open_office, topic, *, how: str, data: str = "{}", tuning=TUNED) -> tuple[Office, Taker]:
    taker = Taker()
    office = await open_office(await serve(taker), office={"topic": topic, "tuning": tuning})
    await office.outstanding.read(0)
    office.outstanding.take_over(0)
    if how == "paused":
        office.dispatcher.update(paused(office.dispatcher.listener, "by hand"), share=WHOLE)
    else:
        office.dispatcher.circuit.trip(0)
        assert office.dispatcher.circuit.state is State.OPEN
    office.put(OLD, data=data)
    office.put(YOUNG, data=data)
    return office, taker


@pytest.mark.parametrize("how", ["paused", "down"])
async def test_what_is_old_is_set_aside_a_few_at_a_time_and_the_rest_stays(serve, open_office, topic, how: str):
    office, taker = await lagging(serve, open_office, topic, how=how)
    office.ticker.cancel()  # nobody asks whether it is back
    dispatcher, seen = office.dispatcher, watch(office)
    dispatcher.set_aside_before(0, OLD)
    await until(lambda: not dispatcher.sets_aside(0))
    assert max(count for count, _ in seen) <= TUNED.set_aside_together
    assert (dispatcher.held, dispatcher.memory.held_bytes, len(taker.taken)) == (0, 0, 0)
    kept = topic.kept()
    assert sorted(event.offset for event in kept.values()) == list(range(OLD))
    assert {event.number for event in kept.values()} == {0}
    assert dispatcher.streams[0].cursor(len(office.records)).offset == OLD
    if how == "paused":
        dispatcher.update(paused(dispatcher.listener, None), share=WHOLE)
    else:
        dispatcher.circuit.probed(alive=True, at_ms=0, interval_ms=1)
        dispatcher.wake()
    await serve_all(office, lambda: len(taker.taken) == OLD + YOUNG and not dispatcher.held)
    assert len(set(taker.taken)) == OLD + YOUNG


async def test_large_messages_are_set_aside_one_after_the_other(serve, open_office, topic):
    office, _ = await lagging(
        serve, open_office, topic, how="paused", data="x" * 4_000, tuning=Tuning(set_aside_bytes_max=20_000)
    )
    seen = watch(office)
    office.dispatcher.set_aside_before(0, OLD)
    await until(lambda: not office.dispatcher.sets_aside(0))
    assert len(topic.kept()) == OLD
    assert max(size for _, size in seen) < 20_000 + 5_000 < TUNED.set_aside_bytes_max


async def test_it_ends_when_it_is_told_to_however_far_it_is(serve, open_office, topic):
    office, taker = await lagging(serve, open_office, topic, how="paused")
    topic.unavailable = LogUnavailable("no leader")
    dispatcher = office.dispatcher
    dispatcher.set_aside_before(0, OLD)
    await until(lambda: dispatcher.memory.setting_aside)
    dispatcher.set_aside_before(0, 0)
    topic.unavailable = None
    await until(lambda: not dispatcher.sets_aside(0))
    assert 0 < len(topic.kept()) <= TUNED.set_aside_together
    dispatcher.update(paused(dispatcher.listener, None), share=WHOLE)
    await serve_all(office, lambda: len(taker.taken) == OLD + YOUNG and not dispatcher.held)
    assert len(set(taker.taken)) == OLD + YOUNG


async def test_what_is_under_way_is_not_set_aside(serve, open_office, topic):
    moody = Moody()
    moody.free.clear()
    office = await open_office(await serve(moody), office={"topic": topic}, max_in_flight=1)
    await office.outstanding.read(0)
    office.outstanding.take_over(0)
    office.put(20)
    await until(lambda: moody.kept_back == 1)
    office.dispatcher.set_aside_before(0, 20)
    moody.free.set()
    await until(lambda: not office.dispatcher.sets_aside(0) and not office.dispatcher.busy)
    office.keep_books()
    delivered = {offset for offset, rows in office.outcomes.items() if rows[-1][1] == "delivered"}
    kept = {event.offset for event in topic.kept().values()}
    assert 0 in delivered
    assert delivered | kept == set(range(20))
    assert not delivered & kept


class Behind:
    """A stream that lags, and whether its messages leave for `outstanding`."""

    requested, partition = False, 0

    def __init__(self, asked: list[Behind], *, below: int) -> None:
        self.set_aside_below = below
        self.window = SimpleNamespace(wanted=lambda: 5)
        self.assignment = SimpleNamespace(lagging=asked.append, held=())


def test_a_partition_whose_messages_leave_is_served_behind_one_that_has_no_room():
    asked: list[Behind] = []
    memory = SimpleNamespace(sets_aside_more=True)
    backlog = Backlog(SimpleNamespace(sending=True, room=lambda: False, memory=memory))
    waits, leaves = Behind(asked, below=0), Behind(asked, below=10)
    backlog.behind = {waits: None, leaves: None}
    for _ in range(3):
        backlog.refill()
    assert asked == [leaves] * 3
    assert set(backlog.behind) == {waits, leaves}
