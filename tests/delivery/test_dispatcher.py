"""A dispatcher over time: turns of ordering keys, standing down and waking, circuits, room, hand-over. Real sockets."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from dataclasses import replace
from functools import partial

import pytest

from broker.clock import now_ms
from broker.core.circuit import State
from broker.core.events import ListenerSettings
from broker.core.flow import WHOLE, Pace, Share
from broker.core.retry import RetryPolicy
from broker.core.window import BEHIND_MAX, Window
from broker.delivery.dispatch.dispatcher import Dispatcher
from broker.delivery.dispatch.stream import Delivery, Stream
from broker.delivery.tuning import TUNED, Tuning
from broker.outbound.connection import ConnectFailed, ConnectionTuning, connect
from tests.delivery.office import OK, paused, until

FAIL = b"HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n"
REFUSAL = b"HTTP/1.1 422 No\r\ncontent-length: 0\r\n\r\n"
LONGEST_WAITS = {"dice": lambda: 1.0}  # between attempts
BUSY = b"HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n"


class Moody:
    """A listener that can be made to fail, or to keep its answers back; it knows what it has taken, in order."""

    def __init__(self) -> None:
        self.well = True
        self.refusal = FAIL
        self.free = asyncio.Event()
        self.free.set()
        self.kept_back = 0
        self.fails: dict[str, int] = defaultdict(int)  # by message id, how often yet
        self.at_once: set[str] = set()
        self.taken: list[str] = []
        self.failed_while: list[State] = []

    async def __call__(self, request, writer):
        self.at_once.add(request.message_id)
        if not self.free.is_set():
            self.kept_back += 1
            await self.free.wait()
            self.kept_back -= 1
        self.at_once.discard(request.message_id)
        if not self.well:
            writer.write(BUSY)
        elif self.fails[request.message_id] > 0:
            self.fails[request.message_id] -= 1
            writer.write(self.refusal)
        else:
            self.taken.append(request.message_id)
            writer.write(OK)


def ids(offsets) -> list[str]:
    return [f"m-{offset}" for offset in offsets]


# Ordering keys


async def test_one_keys_messages_go_one_at_a_time_in_order_even_with_failures(serve, open_office):
    moody = Moody()
    overlaps: list[set[str]] = []

    async def watching(request, writer):
        overlaps.append(moody.at_once & keyed)
        await moody(request, writer)

    server = await serve(watching)
    office = await open_office(server)
    keyed: set[str] = set()
    for turn in range(12):
        keyed.update(ids(office.put(1, key="a")))
        office.put(1)
        if turn % 3 == 0:
            moody.fails[f"m-{2 * turn}"] = 1
            moody.fails[f"m-{2 * turn + 1}"] = 1
    await office.all_settled()
    office.check_books()
    assert [message for message in moody.taken if message in keyed] == ids(range(0, 24, 2))
    assert all(
        len(under_way) == 0
        for under_way, request in zip(overlaps, server.posts, strict=True)
        if request.message_id in keyed
    )


async def test_a_key_that_waits_holds_up_no_other_key(serve, open_office):
    async def stuck_on_a(request, writer):
        if request.message_id == "m-0":
            await free.wait()
        writer.write(OK)

    free = asyncio.Event()
    server = await serve(stuck_on_a)
    office = await open_office(server, timeout_ms=60_000)
    office.put(5, key="a")
    office.put(5, key="b")
    office.put(5)
    await until(lambda: len(server.posts) == 11)
    assert [request.message_id for request in server.posts if int(request.message_id[2:]) in range(5)] == ["m-0"]
    free.set()
    await office.all_settled()
    office.check_books()
    order = [request.message_id for request in server.posts]
    assert [message for message in order if message in ids(range(5))] == ids(range(5))
    assert [message for message in order if message in ids(range(5, 10))] == ids(range(5, 10))


@pytest.mark.parametrize("trouble", ["refused", "503"])
async def test_a_key_goes_on_after_the_circuit_had_opened(serve, open_office, trouble):
    moody = Moody()
    server = await serve(moody)
    if trouble == "refused":
        await server.stop()
    else:
        moody.well, server.alive = False, BUSY
    office = await open_office(server)
    office.put(8, key="a")
    office.put(8, key="b")
    await until(lambda: office.dispatcher.circuit.state is State.OPEN)
    if trouble == "refused":
        await server.start()
    else:
        moody.well, server.alive = True, OK
    await office.all_settled()
    office.check_books()
    assert [message for message in moody.taken if message in ids(range(8))] == ids(range(8))
    assert [message for message in moody.taken if message in ids(range(8, 16))] == ids(range(8, 16))


async def test_a_key_goes_on_after_a_pause(serve, open_office):
    moody = Moody()
    moody.free.clear()
    server = await serve(moody)
    office = await open_office(server, timeout_ms=60_000)
    office.put(4, key="a")
    await until(lambda: moody.kept_back == 1)
    office.dispatcher.update(paused(office.dispatcher.listener, "by hand"), share=WHOLE)
    moody.free.set()
    await until(lambda: not office.dispatcher.busy)
    assert moody.taken == ["m-0"]
    office.dispatcher.update(paused(office.dispatcher.listener, None), share=WHOLE)
    await office.all_settled()
    office.check_books()
    assert moody.taken == ids(range(4))


async def test_a_key_goes_on_after_its_partition_was_given_up_and_gained_again(serve, open_office):
    moody = Moody()
    moody.free.clear()
    server = await serve(moody)
    office = await open_office(server, timeout_ms=60_000)
    office.put(4, key="a")
    await until(lambda: moody.kept_back == 1)
    dispatcher = office.dispatcher
    stream = dispatcher.streams[0]
    cursor = stream.cursor(office.partition.tail)
    dispatcher.drop(stream)
    assert (dispatcher.held, dispatcher.memory.held_bytes) == (0, 0)

    window: Window[Delivery] = Window()
    again = dispatcher.streams[0] = Stream(dispatcher, 0, window)
    window.restore(cursor, office.partition.tail, [(offset, Delivery(again, offset, None)) for offset in cursor.open])
    dispatcher.behind[again] = None
    moody.free.set()
    dispatcher.wake()
    await office.all_settled()
    assert moody.taken == ["m-0", *ids(range(4))]  # the first was under way when the partition was given up
    assert [rows[-1][1] for rows in office.outcomes.values()] == ["delivered"] * 4


# Down, paused, back again


async def test_a_listener_that_is_down_is_let_alone_and_served_when_it_is_back(serve, open_office):
    moody = Moody()
    server = await serve(moody)
    moody.well, server.alive = False, BUSY
    office = await open_office(server)
    office.put(40)
    await until(lambda: office.dispatcher.circuit.state is State.OPEN and not office.dispatcher.busy)
    attempts = len(server.posts)
    assert office.dispatcher.held == 0
    office.put(10)
    await until(lambda: len(server.probes) >= 2)
    assert len(server.posts) == attempts  # no attempt is spent while it is down
    assert office.parked == []
    moody.well, server.alive = True, OK
    await office.all_settled()
    office.check_books()
    assert sorted(moody.taken, key=lambda message: int(message[2:])) == ids(range(50))
    assert office.dispatcher.circuit.state is State.CLOSED


async def test_a_listener_that_answers_probes_and_fails_messages_is_probed_less_often(serve, open_office):
    moody = Moody()
    moody.well = False
    server = await serve(moody)
    office = await open_office(server)
    office.put(10)
    circuit, before_ms = office.dispatcher.circuit, 0

    def relapsed() -> bool:
        nonlocal before_ms
        before_ms = before_ms if circuit.relapses >= 2 else now_ms()
        return circuit.relapses >= 2

    await until(relapsed)
    assert circuit.probe_at_ms - before_ms > 1_000
    assert len(server.posts) <= 5 + 16 + 2 * 2
    moody.well = True
    await office.all_settled()
    office.check_books()


async def test_paused_it_holds_nothing_and_resumed_it_delivers_everything_once(serve, open_office):
    moody = Moody()
    moody.free.clear()
    server = await serve(moody)
    office = await open_office(server, timeout_ms=60_000, max_in_flight=4)
    office.put(30)
    await until(lambda: moody.kept_back == 4)
    office.dispatcher.update(paused(office.dispatcher.listener, "by hand"), share=WHOLE)
    assert office.dispatcher.held == 4  # what is under way may finish
    office.put(30)
    moody.free.set()
    await until(lambda: not office.dispatcher.busy)
    assert (office.dispatcher.held, office.dispatcher.memory.held_bytes) == (0, 0)
    assert len(moody.taken) == 4
    office.dispatcher.update(paused(office.dispatcher.listener, None), share=WHOLE)
    await office.all_settled()
    office.check_books()
    assert sorted(moody.taken, key=lambda message: int(message[2:])) == ids(range(60))


async def test_standing_down_and_waking_again_and_again_loses_and_repeats_nothing(serve, open_office):
    moody = Moody()
    server = await serve(moody)
    office = await open_office(server, max_in_flight=3)
    for turn in range(20):
        office.put(3)
        office.put(2, key=f"k{turn % 2}")
        moody.fails[f"m-{5 * turn}"] = 1
        office.dispatcher.stand_down()
        await asyncio.sleep(0)
        office.dispatcher.wake()
    await office.all_settled()
    office.check_books()
    assert sorted(moody.taken, key=lambda message: int(message[2:])) == ids(range(100))


async def test_resumed_with_its_circuit_open_and_nothing_left_it_is_still_probed(serve, open_office):
    moody = Moody()
    server = await serve(moody)
    moody.well, server.alive = False, BUSY
    office = await open_office(server, max_attempts=1, max_in_flight=8)
    office.put(5)
    await office.all_settled()
    dispatcher = office.dispatcher
    assert dispatcher.circuit.state is State.OPEN
    assert len(office.parked) == 5
    dispatcher.update(paused(dispatcher.listener, "by hand"), share=WHOLE)
    await until(lambda: not office.liveness.down and not len(office.ticks))
    dispatcher.update(paused(dispatcher.listener, None), share=WHOLE)
    office.put(1)
    moody.well, server.alive = True, OK
    await office.all_settled()
    assert moody.taken == ["m-5"]


async def test_the_retry_schedule_is_the_listeners_own_and_may_change(serve, open_office):
    server = await serve(Moody())
    office = await open_office(server, retry_first_ms=500, retry_max_s=7, max_attempts=9, max_age_s=60)
    expected = RetryPolicy(delay_ms_first=500, delay_ms_max=7_000, max_attempts=9, max_age_ms=60_000)
    assert office.dispatcher.attempts.policy == expected
    listener = office.dispatcher.listener
    office.dispatcher.update(replace(listener, settings=ListenerSettings()), share=WHOLE)
    assert office.dispatcher.attempts.policy == RetryPolicy()


# Bounds


async def test_no_more_are_under_way_than_the_setting_and_the_workers_share_allow(serve, open_office):
    moody = Moody()
    moody.free.clear()
    server = await serve(moody)
    office = await open_office(server, office={"share": Share(workers=4)}, max_in_flight=8, timeout_ms=60_000)
    office.put(20)
    await until(lambda: moody.kept_back == 2)
    assert len(server.posts) == server.open == 2
    office.dispatcher.update(office.dispatcher.listener, share=Share(workers=2))
    moody.free.set()
    await office.all_settled()
    office.check_books()


async def test_only_attempts_count_against_the_rate_not_those_that_wait_for_their_key(serve, open_office, monkeypatch):
    counted: list[float] = []
    begin = Pace.begin

    def counting(self, at_s, messages):
        may = begin(self, at_s)
        if may:
            counted.append(at_s)
        return may

    monkeypatch.setattr(Pace, "begin", counting)
    moody = Moody()
    moody.free.clear()
    server = await serve(moody)
    office = await open_office(server, rate_per_s=1_000, timeout_ms=60_000)
    office.put(20, key="a")
    await until(lambda: moody.kept_back == 1)
    assert len(counted) == len(server.posts) == 1
    moody.free.set()
    await office.all_settled()
    office.check_books()
    assert moody.taken == ids(range(20))


async def test_a_backlog_beyond_what_it_may_hold_is_delivered_whole(serve, open_office):
    moody = Moody()
    server = await serve(moody)
    office = await open_office(server, office={"tuning": Tuning(held_max=10, ring_max=20)}, max_in_flight=4)
    office.put(200)
    assert office.dispatcher.held <= 10
    await office.all_settled()
    office.check_books()
    assert sorted(moody.taken, key=lambda message: int(message[2:])) == ids(range(200))


async def test_a_stream_far_behind_costs_the_tail_nothing_until_it_has_caught_up(serve, open_office):
    moody = Moody()
    server = await serve(moody)
    office = await open_office(server)
    dispatcher = office.dispatcher
    dispatcher.update(replace(dispatcher.listener, paused="by a test"), share=WHOLE)
    office.put(BEHIND_MAX + 10)
    assert not office.partition.feeds(dispatcher)
    office.put(30)
    assert len(dispatcher.streams[0].window.behind) == BEHIND_MAX
    dispatcher.update(replace(dispatcher.listener, paused=None), share=WHOLE)
    await office.all_settled()
    assert office.partition.feeds(dispatcher)
    office.put(10)
    await office.all_settled()
    office.check_books()
    assert sorted(moody.taken, key=lambda message: int(message[2:])) == ids(range(BEHIND_MAX + 50))


@pytest.mark.parametrize(("held", "most_read"), [(8, 4_000), (512, 2_500)])
async def test_as_much_of_the_log_is_read_at_once_as_there_is_room_for(serve, open_office, held, most_read):
    server = await serve(Moody())
    office = await open_office(server, office={"tuning": Tuning(held_max=held, ring_max=1)})
    dispatcher = office.dispatcher
    dispatcher.update(replace(dispatcher.listener, paused="by a test"), share=WHOLE)
    office.put(1_000, data=f'"{1_000 * "x"}"')
    dispatcher.update(replace(dispatcher.listener, paused=None), share=WHOLE)
    await office.all_settled()
    office.check_books()
    assert 1_000 <= sum(office.log.requests.fetches) <= most_read
    assert held == 8 or len(office.log.requests.fetches) < 20  # it grows to what fits, not a small piece each time


async def test_where_it_has_room_its_partitions_have_their_turns(open_office):
    office = await open_office("http://127.0.0.1:9/")
    dispatcher, asked = office.dispatcher, []

    def asks(stream: Stream) -> None:
        stream.requested = True
        asked.append(stream.partition)

    dispatcher.assignment.lagging = asks
    dispatcher.behind |= dict.fromkeys(Stream(dispatcher, number, Window(scan_from=0)) for number in range(3))
    for _ in range(6):
        dispatcher.refill()
        for stream in dispatcher.behind:
            stream.requested = False  # it was served, and there is more
    assert asked == [0, 1, 2, 0, 1, 2]


async def test_a_dispatcher_begins_no_more_attempts_than_its_share(serve, open_office):
    moody = Moody()
    server = await serve(moody)
    office = await open_office(server, office={"tuning": Tuning(attempts_max=3)})
    moody.free.clear()
    office.put(20)
    await until(lambda: moody.kept_back == 3)
    assert office.dispatcher.busy == 3
    moody.free.set()
    await office.all_settled()
    office.check_books()


async def test_a_listener_that_has_not_answered_yet_gets_two_at_a_time_then_as_many_as_the_flow_allows(
    serve, open_office
):
    moody = Moody()
    moody.free.clear()
    server = await serve(moody)
    office = await open_office(server, office={"new": True}, timeout_ms=60_000)
    office.put(20)
    await until(lambda: moody.kept_back == 2)
    assert office.dispatcher.busy == 2
    moody.free.set()
    await office.all_settled()
    assert server.connections > 2
    office.check_books()


async def test_one_that_accepts_no_connection_in_time_gets_half_as_many_at_a_time(open_office):
    async def silent(*_):
        raise ConnectFailed("connect-timeout")

    office = await open_office("http://127.0.0.1:9/", office={"connect": silent}, max_attempts=1)
    before = office.dispatcher.limits.flow.limit
    office.put()
    await office.all_settled()
    assert office.outcomes[0] == [(1, "parked", "connect-timeout")]
    assert office.dispatcher.limits.flow.limit == before // 2


def becomes_slow(dispatcher: Dispatcher) -> None:
    dispatcher.limits.begin_anew()
    dispatcher.limits.took(2 * TUNED.slow_ms)


async def test_a_slow_listener_begins_what_it_may_until_it_is_quick_again(serve, open_office):
    moody = Moody()
    server = await serve(moody)
    office = await open_office(server)
    dispatcher = office.dispatcher
    becomes_slow(dispatcher)
    dispatcher.limits.permits = office.permits = 0
    office.put(20)
    for _ in range(5):
        dispatcher.tick(now_ms())
    assert (dispatcher.limits.low_priority, dispatcher.busy) == (True, 0)
    office.permits = 1
    await office.all_settled()
    assert not dispatcher.limits.low_priority  # its answers came at once
    assert server.connections > 1
    office.check_books()


async def test_a_new_listener_that_fails_at_once_begins_one_attempt_and_then_what_it_may(serve, open_office):
    moody = Moody()
    server = await serve(moody)
    moody.well, server.alive = False, BUSY
    office = await open_office(server, office={"new": True})
    office.permits = 0
    office.put(50)
    await until(lambda: office.dispatcher.circuit.faults == 1)
    for _ in range(5):
        office.dispatcher.tick(now_ms())
    assert (office.dispatcher.busy, len(server.posts)) == (0, 1)
    office.permits = 1
    await until(lambda: office.dispatcher.circuit.state is State.OPEN)
    assert len(server.posts) == 2  # one that was well before gets more
    moody.well, server.alive = True, OK
    await office.all_settled()
    office.check_books()


@pytest.mark.parametrize("refusal", [FAIL, REFUSAL, BUSY])
async def test_one_that_fails_many_gives_way_whatever_it_says_until_it_takes_most(serve, open_office, refusal):
    moody = Moody()
    moody.refusal = refusal
    server = await serve(moody)
    office = await open_office(server, max_in_flight=1, retry_first_ms=1_000)
    dispatcher = office.dispatcher
    office.permits = 0
    office.put(5)
    await office.all_settled()  # it is quick: nobody counts what it begins
    moody.fails |= dict.fromkeys(ids([5, 6, 7]), 1)
    office.put(9)
    await until(lambda: len(moody.taken) == 6 and not dispatcher.busy)  # one more at once, and then what it may
    for _ in range(5):
        dispatcher.tick(now_ms())
    assert (dispatcher.limits.low_priority, dispatcher.busy, len(server.posts)) == (True, 0, 9)
    office.permits = 1
    office.put(9)
    await office.all_settled()
    assert not dispatcher.limits.low_priority
    office.check_books()


async def test_one_that_fails_one_of_ten_does_not_give_way(serve, open_office):
    moody = Moody()
    moody.fails |= dict.fromkeys(ids(range(0, 100, 10)), 1)
    office = await open_office(await serve(moody), max_in_flight=1, retry_first_ms=1)
    office.permits = 0
    office.put(100)
    await office.all_settled()
    office.check_books()


async def test_an_answer_that_does_not_end_is_not_waited_for_and_makes_its_listener_slow(serve, open_office):
    async def drip(request, writer):
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n.")

    soon = partial(connect, tuning=ConnectionTuning(end_s=0.3))
    office = await open_office(await serve(drip), office={"connect": soon}, max_in_flight=4, timeout_ms=60_000)
    office.put(24)
    await office.all_settled()
    assert office.dispatcher.limits.low_priority
    office.check_books()


async def test_a_slow_one_alone_has_all_under_way_that_it_may(serve, open_office):
    moody = Moody()
    server = await serve(moody)
    office = await open_office(server, max_in_flight=4, timeout_ms=60_000)
    dispatcher = office.dispatcher
    becomes_slow(dispatcher)
    moody.free.clear()
    office.permits = 4
    office.put(30)
    await until(lambda: moody.kept_back == 4)
    assert (dispatcher.wants_more, dispatcher.waits) == (False, True)
    await until(lambda: dispatcher.limits.permits == 4)  # when one is answered the next begins at once
    moody.free.set()
    await office.all_settled()
    office.check_books()


async def test_a_late_event_loop_expires_nothing(serve, open_office):
    moody = Moody()
    moody.free.clear()
    office = await open_office(await serve(moody), timeout_ms=100)
    dispatcher = office.dispatcher
    office.ticker.cancel()
    office.put(3)
    await until(lambda: moody.kept_back == 3)
    await asyncio.sleep(0.15)
    dispatcher.tick(now_ms(), late=True)
    assert dispatcher.busy == 3
    moody.free.set()
    await until(lambda: not dispatcher.busy)
    office.keep_books()
    office.check_books()
    assert {outcome for rows in office.outcomes.values() for _, outcome, _ in rows} == {"delivered"}


async def test_one_that_is_up_again_has_its_first_attempt_at_once_and_is_quick_if_that_was(serve, open_office):
    moody = Moody()
    server = await serve(moody)
    moody.well, server.alive = False, BUSY
    office = await open_office(server)
    dispatcher = office.dispatcher
    becomes_slow(dispatcher)  # as of one that has hung
    office.put(50)
    await until(lambda: dispatcher.circuit.state is State.OPEN and not dispatcher.busy)
    office.permits = 0
    moody.well, server.alive = True, OK
    await office.all_settled()
    assert dispatcher.limits.quick
    office.check_books()


async def test_one_that_has_all_under_way_that_it_is_able_to_wants_no_more(serve, open_office):
    """Else hundreds that hang would be given the attempts that others could make."""
    moody = Moody()
    moody.free.clear()
    server = await serve(moody)
    office = await open_office(server, office={"new": True})
    office.put(20)
    await until(lambda: moody.kept_back == 2)
    dispatcher = office.dispatcher
    assert (dispatcher.busy, bool(dispatcher.deliveries.ready), dispatcher.wants_more) == (2, True, False)
    moody.free.set()
    await office.all_settled()
    office.check_books()


async def test_what_waits_for_a_retry_takes_no_room_when_the_listener_becomes_slow(serve, open_office):

    async def refuses_the_first(request, writer):
        writer.write(REFUSAL if int(request.message_id.split("-")[1]) < 100 else OK)

    server = await serve(refuses_the_first)
    office = await open_office(server, office=LONGEST_WAITS, max_in_flight=8, retry_first_ms=50_000)
    dispatcher = office.dispatcher
    office.put(100)
    await until(lambda: len(dispatcher.deliveries.retries) == 100)
    for _ in range(50):
        dispatcher.limits.took(40 * TUNED.slow_ms)
    assert not dispatcher.limits.quick
    office.put(200)
    await until(lambda: sum(rows[-1][1] == "delivered" for rows in office.outcomes.values()) == 200)
    assert len(dispatcher.deliveries.retries) == 100  # theirs is yet to come


async def test_on_probation_it_holds_no_more_than_it_may_soon_send(serve, open_office):
    moody = Moody()
    server = await serve(moody)
    moody.well, server.alive = False, BUSY
    office = await open_office(server)
    office.put(400)
    dispatcher = office.dispatcher
    await until(lambda: dispatcher.circuit.state is State.OPEN and not dispatcher.busy)
    held: list[int] = []
    accept = dispatcher.accept

    def noting(delivery, message):
        accept(delivery, message)
        held.append(dispatcher.held / (dispatcher.circuit.allowance or TUNED.held_max))

    dispatcher.accept = noting
    server.alive = OK  # it says it is well, and is not
    await until(lambda: dispatcher.circuit.relapses >= 2)
    assert 0 < max(held) <= 4
    moody.well = True
    await office.all_settled()
    office.check_books()


async def test_one_that_is_down_or_paused_needs_no_ticks_however_much_waits(serve, open_office):
    moody = Moody()
    server = await serve(moody)
    moody.well, server.alive = False, BUSY
    office = await open_office(server)
    office.put(20)
    await until(lambda: office.dispatcher in office.liveness.down and not len(office.ticks))
    office.put(20)
    assert office.dispatcher.behind
    assert not len(office.ticks)
    moody.well, server.alive = True, OK
    await office.all_settled()
    office.check_books()


async def test_without_a_socket_to_spare_it_waits_for_one_and_keeps_none_that_is_idle(serve, open_office):
    moody = Moody()
    moody.free.clear()
    server = await serve(moody)
    office = await open_office(server, office={"sockets": 2}, timeout_ms=60_000)
    office.put(20)
    await until(lambda: moody.kept_back == 2)
    assert office.dispatcher.busy == office.dispatcher.connections.network.sockets.open == server.open == 2
    moody.free.set()
    await office.all_settled()
    office.check_books()
    await until(lambda: server.open <= 1)
    assert office.dispatcher.error is None
    assert office.dispatcher.connections.network.sockets.open == server.open


@pytest.mark.parametrize("why", ["let alone", "its rate", "down"])
async def test_one_that_would_begin_no_more_takes_no_share_of_what_others_may(serve, open_office, why):
    async def pushing_back(_request, writer):
        writer.write(b"HTTP/1.1 429 No\r\nretry-after: 60\r\ncontent-length: 0\r\n\r\n")

    moody = Moody()
    server = await serve(pushing_back if why == "let alone" else moody)
    office = await open_office(server, **({"rate_per_s": 0.01} if why == "its rate" else {}))
    dispatcher = office.dispatcher
    if why == "down":
        moody.well, server.alive = False, BUSY
    office.put(40)
    await until(lambda: server.posts and not dispatcher.busy)
    await until(lambda: (dispatcher.circuit.state is State.OPEN) == (why == "down"))
    assert dispatcher.held or why == "down"
    assert not dispatcher.wants_more


async def test_a_large_message_that_waits_for_its_next_attempt_does_not_keep_others_from_being_read(serve, open_office):
    moody = Moody()
    server = await serve(moody)
    tuning = Tuning(held_bytes_max=60_000)
    office = await open_office(server, office=LONGEST_WAITS | {"tuning": tuning}, retry_first_ms=30_000)
    moody.fails["m-0"] = 1
    office.put(1, data="x" * 40_000)
    await until(lambda: len(server.posts) == 1 and not office.dispatcher.busy)
    office.put(300, data="y" * 1_000)
    await until(lambda: len(moody.taken) == 300)


async def test_idle_connections_are_closed_after_a_while_and_keep_nobody_awake(serve, open_office):
    server = await serve(Moody())
    office = await open_office(server)
    office.put(5)
    await office.all_settled()
    await until(lambda: not len(office.ticks))
    assert server.open > 0
    office.dispatcher.connections.tidy()
    assert server.open > 0
    office.dispatcher.connections.idle_s = 0.0
    office.dispatcher.connections.tidy()
    await until(lambda: server.open == 0)
    office.put(1)
    await office.all_settled()


async def test_a_hanging_listener_costs_its_own_window_only(serve, open_office):
    async def hangs(request, _writer):
        await until(request.given_up)

    bad, good = await serve(hangs), await serve(Moody())
    hung, fine = await open_office(bad, timeout_ms=200), await open_office(good)
    for _ in range(10):
        hung.put(10)
        fine.put(10)
    await fine.all_settled()
    fine.check_books()
    assert bad.connections <= 16
    await until(lambda: hung.dispatcher.circuit.state is State.OPEN)


async def test_closed_it_leaves_neither_connections_nor_tasks(serve, open_office):
    moody = Moody()
    moody.free.clear()
    server = await serve(moody)
    office = await open_office(server, timeout_ms=60_000, max_in_flight=4)
    office.put(10)
    await until(lambda: moody.kept_back == 4)
    office.dispatcher.close()
    moody.free.set()
    await until(lambda: server.open == 0)
    assert (office.dispatcher.held, office.dispatcher.memory.held_bytes, office.dispatcher.busy) == (0, 0, False)


async def test_retries_of_a_partition_that_is_given_up_take_no_room(serve, open_office):
    async def refuses(_request, writer):
        writer.write(REFUSAL)

    office = await open_office(await serve(refuses), retry_first_ms=30_000)
    office.put(4)
    await until(lambda: len(office.dispatcher.deliveries.retries) == 4)
    office.dispatcher.drop(office.dispatcher.streams[0])
    assert not office.dispatcher.deliveries.retries


async def test_at_a_hand_over_what_is_under_way_finishes_and_nothing_new_begins(serve, open_office):
    moody = Moody()
    moody.free.clear()
    server = await serve(moody)
    office = await open_office(server, timeout_ms=60_000, max_in_flight=4)
    office.put(10)
    await until(lambda: moody.kept_back == 4)
    office.dispatcher.sending = False
    moody.free.set()
    await until(lambda: not office.dispatcher.busy)
    assert len(moody.taken) == len(server.posts) == 4
    office.dispatcher.sending = True
    office.dispatcher.wake()
    await office.all_settled()
    office.check_books()


async def test_a_hand_over_tells_a_connection_that_is_long_in_coming_from_a_new_one(open_office):
    async def never(*_):
        await asyncio.Event().wait()

    office = await open_office("http://127.0.0.1:9/", office={"connect": never})
    before_s = asyncio.get_running_loop().time()
    office.put(1)
    await until(lambda: office.dispatcher.busy)
    assert office.dispatcher.connections.busy_since(before_s)
    assert not office.dispatcher.connections.busy_since(asyncio.get_running_loop().time() + 1)


# Messages that are changed


async def test_a_message_that_is_deleted_while_its_attempt_connects_is_not_sent(serve, open_office):
    moody = Moody()
    office = await open_office(await serve(moody))
    office.put()
    await until(lambda: office.dispatcher.busy)
    assert office.dispatcher.attempting(0, 0) is None  # whoever deletes it need not wait
    office.deleted[0, 0] = True
    await until(lambda: not office.dispatcher.busy)
    office.put()
    await until(lambda: moody.taken)
    assert moody.taken == ["m-1"]
    assert not office.dispatcher.streams[0].window.open


async def test_nothing_more_is_begun_of_a_partition_that_is_held_and_all_of_it_later(serve, open_office):
    moody = Moody()
    server = await serve(moody)
    office = await open_office(server)
    held = office.dispatcher.assignment.held
    office.put(5)
    await office.all_settled()
    held.add(0)
    office.put(700)
    for _ in range(20):
        office.dispatcher.refill()
        await asyncio.sleep(0.01)
    assert len(server.posts) == 5
    held.clear()
    office.dispatcher.refill()
    await office.all_settled()
    assert len(server.posts) == 705
