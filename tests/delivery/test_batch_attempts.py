"""Listeners that take batches: what is sent together, what their answers decide, and what follows. Real sockets."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import Counter
from dataclasses import replace
from typing import Any

import msgspec
import orjson
import pytest
from msgspec import UNSET

from broker.clock import now_ms
from broker.core.circuit import State
from broker.core.events import BatchSetting
from broker.core.flow import WHOLE
from broker.core.signing import Signer
from broker.delivery.tuning import TUNED
from broker.outbound.connection import connect
from tests.delivery.office import OK, Office, Request, paused, until

LONG_MS = 3_600_000  # a batch that is not full is not sent while the test runs
NOW = BatchSetting(wait_ms=0)


def answer(body: bytes, status: int = 200) -> bytes:
    return b"HTTP/1.1 %d Said\r\ncontent-length: %d\r\n\r\n%b" % (status, len(body), body)


def sent(request: Request) -> list[str]:
    """The ids of the messages in a request."""
    if "everput-batch" not in request.headers:
        return [request.message_id]
    return [one["id"] for one in orjson.loads(request.body)]


class Taker:
    """A listener that takes batches. refuses: how often yet it names a message in `failed`, by id. statuses: its next
    answers. taken: the ids, in order. attempts: the numbers of the attempts, by id.
    """

    def __init__(self, *statuses: int, **refuses: int) -> None:
        self.statuses = list(statuses)
        self.refuses = Counter({name.replace("_", "-"): times for name, times in refuses.items()})
        self.taken: list[str] = []
        self.batches: list[list[str]] = []
        self.attempts: dict[str, list[int]] = {}

    async def __call__(self, request: Request, writer: asyncio.StreamWriter) -> None:
        self.batches.append(sent(request))
        if "everput-batch" in request.headers:
            for one in orjson.loads(request.body):
                self.attempts.setdefault(one["id"], []).append(one["attempt"])
        status = self.statuses.pop(0) if self.statuses else 200
        if status >= 300:
            writer.write(answer(b"no", status))
            return
        failed = [one for one in self.batches[-1] if self.refuses[one] > 0]
        self.refuses.subtract(failed)
        self.taken += [one for one in self.batches[-1] if one not in failed]
        writer.write(answer(orjson.dumps({"failed": failed})) if failed else OK)


def ids(offsets) -> list[str]:
    return [f"m-{offset}" for offset in offsets]


def change(office: Office, **settings: Any) -> None:
    listener = office.dispatcher.listener
    changed = replace(listener, settings=msgspec.structs.replace(listener.settings, **settings))
    office.dispatcher.update(changed, share=WHOLE)


# The request


async def test_a_batch_is_one_signed_json_array_of_what_single_requests_would_carry(serve, open_office):
    server = await serve(Taker())
    office = await open_office(server, batch=NOW, headers={"x-own": "1"})
    office.put(3, data='"é"')
    await office.all_settled()
    office.check_books()
    (request,) = server.posts
    headers = request.headers
    assert headers["everput-batch"] == "3"
    assert (headers["content-type"], headers["x-own"]) == ("application/json", "1")
    assert "everput-attempt" not in headers
    webhook_id, timestamp = headers["webhook-id"].encode(), headers["webhook-timestamp"].encode()
    assert webhook_id.startswith(b"batch_")
    assert headers["webhook-signature"].encode() == Signer(b"k" * 32).sign(webhook_id, timestamp, request.body)
    change(office, batch=UNSET)
    office.put(1, data='"é"')
    await office.all_settled()
    single = orjson.loads(server.posts[1].body)
    assert server.posts[1].headers["everput-attempt"] == "1"
    assert "everput-batch" not in server.posts[1].headers
    for offset, one in enumerate(orjson.loads(request.body)):
        message = single["message"] | {"id": f"m-{offset}"}
        assert one == {
            "id": f"m-{offset}",
            "content_type": "application/json",
            "attempt": 1,
            "body": single | {"message": message},
        }


async def test_a_full_batch_is_sent_at_once_and_one_that_is_not_waits(serve, open_office):
    server = await serve(Taker())
    office = await open_office(server, batch=BatchSetting(max_messages=4, wait_ms=LONG_MS))
    office.put(3)
    await asyncio.sleep(0)
    assert not server.posts
    assert not office.dispatcher.busy
    office.put(6)
    await until(lambda: len(server.posts) == 2 and not office.dispatcher.busy)
    assert [sent(one) for one in server.posts] == [ids(range(4)), ids(range(4, 8))]
    assert office.dispatcher.held == 1
    office.put(3)
    await office.all_settled()
    office.check_books()


async def test_a_batch_that_is_not_full_is_sent_after_wait_ms(serve, open_office):
    server = await serve(Taker())
    office = await open_office(server, batch=BatchSetting(max_messages=1000, wait_ms=100))
    began_ms = now_ms()
    office.put(2)
    office.put(1)
    await until(lambda: server.posts)
    assert now_ms() - began_ms >= 100
    await office.all_settled()
    assert [sent(one) for one in server.posts] == [ids(range(3))]


async def test_a_batch_closes_at_max_bytes_and_a_larger_message_goes_alone(serve, open_office):
    server = await serve(Taker())
    office = await open_office(server, batch=BatchSetting(max_bytes=4_000, wait_ms=0))
    office.put(6, data='"' + "x" * 1_000 + '"')
    await office.all_settled()
    office.put(1, data='"' + "x" * 10_000 + '"')
    office.put(2)
    await office.all_settled()
    office.check_books()
    assert [sent(one) for one in server.posts if len(one.body) > 4_000] == [["m-6"]]
    assert [sent(one) for one in server.posts][:2] == [ids(range(3)), ids(range(3, 6))]
    assert sent(server.posts[3]) == ids((7, 8))


async def test_many_messages_go_in_full_batches_within_the_limit_of_requests(serve, open_office):
    under_way = most = 0
    taker = Taker()

    async def counting(request, writer):
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0.01)
        under_way -= 1
        await taker(request, writer)

    server = await serve(counting)
    office = await open_office(server, batch=BatchSetting(max_messages=100, wait_ms=50), max_in_flight=2)
    for _ in range(30):
        office.put(100)
        await asyncio.sleep(0)
    await office.all_settled()
    office.check_books()
    assert Counter(taker.taken) == Counter(ids(range(3_000)))
    assert most <= 2
    assert len(server.posts) <= 60


async def test_messages_of_one_key_go_in_order_and_never_together(serve, open_office):
    taker = Taker(m_0=1, m_5=2)
    server = await serve(taker)
    office = await open_office(server, batch=BatchSetting(max_messages=10, wait_ms=20))
    for _ in range(5):
        office.put(3)
        office.put(1, key="a")
        office.put(1, key="b")
    await office.all_settled()
    office.check_books()
    for key in (3, 4):
        of_key = ids(range(key, 25, 5))
        assert [one for one in taker.taken if one in of_key] == of_key
        assert all(len(set(batch) & set(of_key)) <= 1 for batch in taker.batches)


async def test_many_of_one_key_do_not_wait_for_wait_ms_each(serve, open_office):
    taker = Taker()
    server = await serve(taker)
    office = await open_office(server, batch=BatchSetting(max_messages=10, wait_ms=LONG_MS))
    offsets = office.put(10, key="a")
    await until(lambda: len(taker.taken) == 9)
    office.put(9)
    await office.all_settled()
    assert [one for one in taker.taken if one in ids(offsets)] == ids(offsets)


# The answer


async def test_those_that_an_answer_names_fail_and_are_tried_again_and_the_others_are_delivered(serve, open_office):
    taker = Taker(m_1=1, m_3=2)
    server = await serve(taker)
    office = await open_office(server, batch=NOW)
    office.put(5)
    await office.all_settled()
    office.check_books()
    assert taker.batches == [ids(range(5)), ids((1, 3)), ids((3,))]
    assert taker.attempts == {"m-0": [1], "m-1": [1, 2], "m-2": [1], "m-3": [1, 2, 3], "m-4": [1]}
    assert office.outcomes[0] == [(1, "delivered", 200)]
    assert office.outcomes[3] == [(1, "failed", 200), (2, "failed", 200), (3, "delivered", 200)]
    assert office.dispatcher.circuit.state is State.CLOSED
    assert [(offset, number) for event in office.kept for offset, number, *_ in event.attempts] == [
        (1, 1),
        (3, 1),
        (3, 2),
    ]
    assert next(answered[3] for event in office.kept for answered in event.answers) == '{"failed":["m-1","m-3"]}'


@pytest.mark.parametrize("status", [422, 500, 503, 429, 302])
async def test_a_failing_status_fails_all_of_them_once(serve, open_office, status: int):
    taker = Taker(status)
    server = await serve(taker)
    office = await open_office(server, batch=BatchSetting(max_messages=8, wait_ms=0))
    office.put(8)
    await office.all_settled()
    office.check_books()
    assert Counter(taker.taken) == Counter(ids(range(8)))
    assert all(office.outcomes[offset][0] == (1, "failed", status) for offset in range(8))
    assert taker.batches == [ids(range(8)), ids(range(4)), ids(range(4, 8))], "half as many, after the retry"
    assert len(office.kept) == 1
    assert len(office.kept[0].attempts) == 8
    assert office.dispatcher.circuit.faults == 0
    assert office.dispatcher.circuit.state is State.CLOSED, "a batch that fails is one fault, not eight"


@pytest.mark.parametrize("max_attempts", [2, 3, 8])
async def test_a_message_that_spoils_every_batch_is_parked_alone(serve, open_office, max_attempts: int):
    taken: list[str] = []

    async def spoilt(request, writer):
        batch = sent(request)
        if "m-11" in batch:
            writer.write(answer(b"what?", 422))
            return
        taken.extend(batch)
        writer.write(OK)

    server = await serve(spoilt)
    office = await open_office(server, batch=BatchSetting(max_messages=32, wait_ms=0), max_attempts=max_attempts)
    office.put(32)
    await office.all_settled()
    office.check_books()
    assert office.parked == [11]
    assert sorted(taken) == sorted(ids(one for one in range(32) if one != 11))


async def test_410_pauses_the_listener_once(serve, open_office):
    server = await serve(Taker(410, 410))
    office = await open_office(server, batch=NOW)
    office.put(4)
    await until(lambda: office.gone)
    assert office.gone == ["l-1"]
    office.dispatcher.update(paused(office.dispatcher.listener, "gone"), share=WHOLE)
    await until(lambda: not office.dispatcher.held)
    office.dispatcher.update(paused(office.dispatcher.listener, None), share=WHOLE)
    office.dispatcher.update(paused(office.dispatcher.listener, None), share=WHOLE)
    await office.all_settled()


async def test_nothing_is_sent_before_retry_after(serve, open_office):
    at_s: list[float] = []
    taker = Taker()

    async def later(request, writer):
        at_s.append(asyncio.get_running_loop().time())
        if len(at_s) == 1:
            writer.write(b"HTTP/1.1 429 Slow\r\nretry-after: 1\r\ncontent-length: 0\r\n\r\n")
        else:
            await taker(request, writer)

    server = await serve(later)
    office = await open_office(server, batch=NOW)
    office.put(3)
    await office.all_settled()
    office.check_books()
    assert at_s[1] - at_s[0] >= 0.9


async def test_batches_that_fail_open_the_circuit_and_lose_nothing(serve, open_office):
    taker = Taker(*[500] * 5)
    server = await serve(taker)
    office = await open_office(server, batch=BatchSetting(max_messages=4, wait_ms=0))
    office.put(20)
    await until(lambda: office.dispatcher.circuit.state is not State.CLOSED)
    await office.all_settled()
    office.check_books()
    assert Counter(taker.taken) == Counter(ids(range(20)))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"thanks",
        b"<html>" * 5_000,
        b'{"failed":"m-1"}',
        b'{"failed":[1,null,{"a":2},["m-1"],"m-99",""]}',
        b'{"failed":' + b"[" * 20_000 + b"]" * 20_000 + b"}",
        b"<html>" * 20_000,
    ],
)
async def test_another_answer_takes_all(serve, open_office, body: bytes):
    async def said(_request, writer):
        writer.write(answer(body))

    server = await serve(said)
    office = await open_office(server, batch=NOW)
    office.put(3)
    await office.all_settled()
    office.check_books()
    assert all(rows == [(1, "delivered", 200)] for rows in office.outcomes.values())


@pytest.mark.parametrize(
    ("long", "first"),
    [
        (b'{"why":"%b","failed":["m-1"]}' % (b"x" * (64 << 10)), [(1, "failed", "too-large")] * 3),
        (b'{"failed":["m-1"]' + b" " * (64 << 10) + b"}", [(1, "failed", "too-large")] * 3),
        (
            b'{"failed":["m-1"]}' + b" " * (64 << 10),
            [(1, "delivered", 200), (1, "failed", 200), (1, "delivered", 200)],
        ),
    ],
)
async def test_a_long_answer_that_may_reject_messages_accepts_none_that_it_rejects(
    serve, open_office, long: bytes, first: list[Any]
):
    taker, said = Taker(), False

    async def saying_much(request, writer):
        nonlocal said
        if said:
            await taker(request, writer)
            return
        said = True
        writer.write(answer(long))

    server = await serve(saying_much)
    office = await open_office(server, batch=NOW)
    office.put(3)
    await office.all_settled()
    office.check_books()
    assert [rows[0] for _, rows in sorted(office.outcomes.items())] == first
    assert "m-1" in taker.taken, "sent again"


async def test_a_thousand_ids_in_pieces_are_read(serve, open_office):
    taker, first = Taker(), True

    async def refusing_all(request, writer):
        nonlocal first
        if not first:
            await taker(request, writer)
            return
        first = False
        body = orjson.dumps({"failed": sent(request)}, option=orjson.OPT_INDENT_2)
        data = answer(body)
        for begin in range(0, len(data), 1_000):
            writer.write(data[begin : begin + 1_000])
            await writer.drain()

    server = await serve(refusing_all)
    office = await open_office(server, batch=BatchSetting(max_messages=1000, wait_ms=LONG_MS))
    change(office, batch=BatchSetting(max_messages=500, wait_ms=50))
    office.put(500)
    await office.all_settled()
    office.check_books()
    assert Counter(taker.taken) == Counter(ids(range(500)))
    assert all(len(rows) == 2 for rows in office.outcomes.values())


@pytest.mark.parametrize(
    "cut",
    [
        b'HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\n{"failed":["m-1"',
        b'HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n10\r\n{"failed":["m-1"\r\n',
        b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n",
        b"HTTP/1.1 200",
        b"",
    ],
)
async def test_an_answer_that_ends_too_early_sends_all_of_them_again(serve, open_office, cut: bytes):
    taker, first = Taker(), True

    async def breaking_off(request, writer):
        nonlocal first
        if first:
            first = False
            writer.write(cut)
            await writer.drain()
            writer.close()
        else:
            await taker(request, writer)

    server = await serve(breaking_off)
    office = await open_office(server, batch=NOW)
    office.put(4)
    await office.all_settled()
    office.check_books()
    assert all(rows == [(1, "failed", "closed"), (2, "delivered", 200)] for rows in office.outcomes.values())


async def test_an_answer_without_an_end_is_given_up_and_sent_again(serve, open_office):
    taker, first = Taker(), True

    async def hanging(request, writer):
        nonlocal first
        if first:
            first = False
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n")
        else:
            await taker(request, writer)

    server = await serve(hanging)
    office = await open_office(server, batch=NOW)
    office.put(4)
    await office.all_settled()
    assert all(rows == [(1, "failed", "closed"), (2, "delivered", 200)] for rows in office.outcomes.values())


ENDS_WITH_THE_CONNECTION = b"HTTP/1.0 200 OK\r\n\r\n"


async def test_an_answer_that_ends_with_the_connection_is_read(serve, open_office):
    taker, first = Taker(), True

    async def closing(request, writer):
        nonlocal first
        if first:
            first = False
            writer.write(ENDS_WITH_THE_CONNECTION + b'{"failed":["m-1"]}')
            await writer.drain()
            writer.close()
        else:
            await taker(request, writer)

    server = await serve(closing)
    office = await open_office(server, batch=NOW)
    office.put(4)
    await office.all_settled()
    assert taker.taken == ["m-1"]
    assert [rows[0][1] for _, rows in sorted(office.outcomes.items())] == ["delivered", "failed", *["delivered"] * 2]


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("begun", [b"", b'{"failed":["m-1"'])
async def test_an_answer_that_the_listener_does_not_end_is_sent_again(serve, open_office, begun: bytes, reset: bool):
    """Its rest might reject messages: the listener takes longer than a second for it, or its connection breaks."""
    taker, first = Taker(), True

    async def breaking_off(request, writer):
        nonlocal first
        if first:
            first = False
            writer.write(ENDS_WITH_THE_CONNECTION + begun)
            await writer.drain()
            if reset:
                sock = writer.get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                await until(lambda: office.dispatcher.connections.sent)
                writer.transport.abort()
        else:
            await taker(request, writer)

    server = await serve(breaking_off)
    office = await open_office(server, batch=NOW)
    office.put(4)
    await office.all_settled()
    assert all(rows == [(1, "failed", "closed"), (2, "delivered", 200)] for rows in office.outcomes.values())


async def test_an_answer_without_a_length_that_ends_within_its_json_sends_all_of_them_again(serve, open_office):
    """The listener's process was killed while it answered: the connection ends in order, as after a whole answer."""
    taker, first = Taker(), True

    async def killed(request, writer):
        nonlocal first
        if first:
            first = False
            writer.write(ENDS_WITH_THE_CONNECTION + b'{"failed":["m-1"')
            await writer.drain()
            writer.close()
        else:
            await taker(request, writer)

    server = await serve(killed)
    office = await open_office(server, batch=NOW)
    office.put(4)
    await office.all_settled()
    office.check_books()
    assert all(rows == [(1, "failed", "closed"), (2, "delivered", 200)] for rows in office.outcomes.values())


async def test_a_timeout_fails_all_of_them(serve, open_office):
    taker, hangs = Taker(), [True]

    async def hanging(request, writer):
        if hangs:
            hangs.clear()
        else:
            await taker(request, writer)

    server = await serve(hanging)
    office = await open_office(server, batch=NOW, timeout_ms=500)
    office.put(4)
    await office.all_settled()
    assert all(rows[0] == (1, "failed", "timeout") for rows in office.outcomes.values())
    assert Counter(taker.taken) >= Counter(ids(range(4)))


async def test_a_connection_that_went_stale_costs_no_attempt(serve, open_office):
    taker = Taker()

    async def closing(request, writer):
        await taker(request, writer)
        if request.number == 1:
            await writer.drain()
            writer.close()

    server = await serve(closing)
    office = await open_office(server, batch=NOW)
    office.put(2)
    await office.all_settled()
    office.put(3)
    await office.all_settled()
    office.check_books()
    assert [len(one) for one in taker.batches] == [2, 3]


# What else holds


async def test_a_batch_counts_with_its_messages_against_the_rate(serve, open_office):
    taker = Taker()
    server = await serve(taker)
    office = await open_office(server, batch=BatchSetting(max_messages=10, wait_ms=0), rate_per_s=40)
    began_s = asyncio.get_running_loop().time()
    office.put(40)
    await office.all_settled()
    assert [len(one) for one in taker.batches] == [10] * 4
    assert asyncio.get_running_loop().time() - began_s >= (40 - 10) / 40 - 0.1


async def test_a_change_between_single_requests_and_batches_loses_and_repeats_nothing(serve, open_office):
    taken: list[str] = []

    async def both(request, writer):
        await asyncio.sleep(0.002)
        taken.extend(sent(request))
        writer.write(OK)

    server = await serve(both)
    office = await open_office(server, max_in_flight=3)
    for turn in range(30):
        office.put(20)
        change(office, batch=(UNSET, NOW, BatchSetting(max_messages=5, wait_ms=LONG_MS))[turn % 3])
        await asyncio.sleep(0.005)
    change(office, batch=UNSET)
    await office.all_settled()
    office.check_books()
    assert Counter(taken) == Counter(ids(range(600)))
    assert {"everput-batch" in request.headers for request in server.posts} == {True, False}


@pytest.mark.parametrize(("before", "after"), [(NOW, UNSET), (UNSET, NOW)])
async def test_a_request_that_connects_has_the_form_that_the_listener_wants_then(serve, open_office, before, after):
    """The change may also lead to another program, which knows only the new form."""
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def late(*how):
        begun.set()
        await go_on.wait()
        return await connect(*how)

    taker = Taker()
    server = await serve(taker)
    office = await open_office(server, batch=before, office={"connect": late})
    office.put(3)
    await begun.wait()
    change(office, batch=after)
    go_on.set()
    await office.all_settled()
    office.check_books()
    assert {"everput-batch" in request.headers for request in server.posts} == {after is NOW}
    assert sorted(taker.taken) == ids(range(3))
    assert all(rows == [(1, "delivered", 200)] for rows in office.outcomes.values())


async def test_a_paused_listener_gets_no_batch_until_it_is_resumed(serve, open_office):
    taker = Taker()
    server = await serve(taker)
    office = await open_office(server, batch=BatchSetting(max_messages=10, wait_ms=LONG_MS))
    office.put(7)
    office.dispatcher.update(paused(office.dispatcher.listener, "by hand"), share=WHOLE)
    office.put(7)
    await asyncio.sleep(0)
    assert not office.dispatcher.held
    assert not server.posts
    change(office, batch=BatchSetting(max_messages=10, wait_ms=10))
    office.dispatcher.update(paused(office.dispatcher.listener, None), share=WHOLE)
    await office.all_settled()
    office.check_books()
    assert Counter(taker.taken) == Counter(ids(range(14)))


async def test_those_deleted_while_a_batch_connects_or_waits_are_not_sent(serve, open_office):
    async def deleting(*how):
        office.deleted[0, 4] = object()
        return await connect(*how)

    taker = Taker()
    server = await serve(taker)
    office = await open_office(
        server, batch=BatchSetting(max_messages=6, wait_ms=LONG_MS), office={"connect": deleting}
    )
    office.put(5)
    office.deleted[0, 2] = object()
    office.put(1)
    assert not office.dispatcher.busy, "the batch is not full without it"
    office.put(1)
    await office.all_settled()
    assert taker.batches == [ids((0, 1, 3, 5, 6))]


async def test_a_new_listener_gets_a_small_batch_first(serve, open_office):
    taker = Taker()
    server = await serve(taker)
    office = await open_office(server, batch=BatchSetting(max_messages=100, wait_ms=LONG_MS), office={"new": True})
    office.put(50)
    await until(lambda: taker.taken)
    assert len(taker.batches[0]) <= TUNED.held_per_attempt * TUNED.attempts_new_max
    change(office, batch=NOW)
    await office.all_settled()
    assert Counter(taker.taken) == Counter(ids(range(50)))


async def test_a_hand_over_drops_what_is_gathered_and_late_answers_change_nothing(serve, open_office):
    free = asyncio.Event()

    async def held(_request, writer):
        await free.wait()
        writer.write(answer(b'{"failed":["m-0"]}'))

    server = await serve(held)
    office = await open_office(server, batch=BatchSetting(max_messages=3, wait_ms=LONG_MS))
    office.put(5)
    await until(lambda: server.posts)
    office.dispatcher.drop(office.dispatcher.streams[0])
    assert not office.dispatcher.held
    free.set()
    await until(lambda: not office.dispatcher.busy)
    office.keep_books()
    assert not office.outcomes
    assert not office.dispatcher.deliveries.ready
