"""A listener that is paused, says that it is gone, or is on probation, while attempts are under way. Real sockets."""

from __future__ import annotations

import asyncio

import pytest

from broker.clock import now_ms
from broker.core.circuit import State
from broker.core.flow import WHOLE
from broker.delivery.dispatch.stream import Delivery
from broker.outbound.connection import connect
from tests.delivery.office import Office, paused, until
from tests.delivery.test_dispatcher import REFUSAL, Moody, ids

GONE = b"HTTP/1.1 410 Gone\r\ncontent-length: 0\r\n\r\n"


def pause(office: Office, reason: str | None) -> None:
    office.dispatcher.update(paused(office.dispatcher.listener, reason), share=WHOLE)


async def test_what_fails_while_it_is_paused_is_let_go(serve, open_office):
    moody = Moody()
    moody.free.clear()
    office = await open_office(await serve(moody))
    office.put()
    await until(lambda: moody.kept_back == 1)
    pause(office, "by hand")
    moody.fails["m-0"] = 1
    moody.free.set()
    await until(lambda: not office.dispatcher.busy)
    assert (office.dispatcher.held, office.dispatcher.deliveries.retries) == (0, [])
    pause(office, None)
    await office.all_settled()
    office.check_books()


async def test_one_that_is_gone_again_after_it_was_resumed_is_said_to_be_again(serve, open_office):
    moody = Moody()
    moody.refusal = GONE
    moody.fails |= dict.fromkeys(ids(range(2)), 1)
    office = await open_office(await serve(moody), max_attempts=1)
    for times in (1, 2):
        office.put()
        await office.all_settled()
        assert office.gone == ["l-1"] * times
        pause(office, "gone")
        pause(office, None)


async def test_answers_that_are_no_fault_end_a_probation_whatever_they_say(serve, open_office):
    moody = Moody()
    moody.refusal = REFUSAL
    moody.fails |= dict.fromkeys(ids(range(4)), 1)
    office = await open_office(await serve(moody), max_attempts=1)
    circuit = office.dispatcher.circuit
    circuit.trip(0)
    circuit.probed(alive=True, at_ms=0, interval_ms=1)
    office.dispatcher.wake()
    office.put(4)
    await office.all_settled()
    assert circuit.state is State.CLOSED


@pytest.mark.parametrize("why", ["paused", "down"])
async def test_new_data_that_is_there_while_it_is_paused_or_down_is_not_sent_before_it_is_back(serve, open_office, why):
    go_on = asyncio.Event()

    async def late(*how):
        await go_on.wait()
        return await connect(*how)

    def hold(delivery: Delivery) -> bool:
        dispatcher.renew(delivery)
        return True

    moody = Moody()
    server = await serve(moody)
    office = await open_office(server, office={"connect": late})
    dispatcher = office.dispatcher
    dispatcher.assignment.hold = hold
    office.put()
    await until(lambda: dispatcher.busy)
    if why == "paused":
        pause(office, "by hand")
    else:
        dispatcher.circuit.trip(now_ms())
        dispatcher.circuit.probe_at_ms = now_ms() + 3_600_000
        dispatcher.stand_down()
    office.deleted[0, 0] = True  # it has changed
    go_on.set()
    await until(lambda: dispatcher.deliveries.renewing and not dispatcher.busy)
    (delivery,) = dispatcher.deliveries.renewing
    office.deleted.clear()
    dispatcher.renewed(delivery, delivery.message.renewed('"new"', 0))
    assert (dispatcher.busy, dispatcher.held) == (0, 0)
    assert not server.posts
    if why == "paused":
        pause(office, None)
    else:
        dispatcher.circuit.probed(alive=True, at_ms=now_ms(), interval_ms=0)
        dispatcher.wake()
    await office.all_settled()
    office.check_books()
    assert moody.taken == ["m-0"]
