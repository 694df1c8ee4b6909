"""What listeners answered to failed attempts is kept, in full or by reference, and nothing else of what they send."""

from __future__ import annotations

from collections import Counter
from itertools import count

from broker.clock import now_ms
from broker.core.codec import encode
from broker.core.signing import Signer
from broker.delivery.dispatch.kept_answers import ANSWERS_MAX, KeptAnswers
from broker.outbound.request import Opened
from tests.delivery.office import OK, listener_at, until

REFUSAL = b"HTTP/1.1 422 No\r\nx-why: %b\r\ncontent-length: %d\r\n\r\n%b"


def refusing(*bodies: bytes, parts: int = 1):
    """Refuse the first requests with these bodies, and accept the others. parts: in how many pieces."""
    turns = count()

    async def behaviour(_request, writer):
        turn = next(turns)
        if turn >= len(bodies):
            writer.write(OK)
            return
        answer = REFUSAL % (b"rules", len(bodies[turn]), bodies[turn])
        for first in range(0, len(answer), size := -(-len(answer) // parts)):
            writer.write(answer[first : first + size])
            await writer.drain()

    return behaviour


def attempts(office) -> list[tuple]:
    return [attempt for event in office.kept for attempt in event.attempts]


def answers(office) -> list[tuple]:
    return [answer for event in office.kept for answer in event.answers]


async def test_the_answer_of_a_failed_attempt_is_kept_and_of_one_that_succeeds_nothing(serve, open_office):
    server = await serve(refusing(b"no such order"))
    began_ms = now_ms()
    office = await open_office(server, headers={"authorization": "Bearer t0ken"})
    office.put(3)
    await office.all_settled()
    ((answer_id, status, headers, body, cut, url, request),) = answers(office)
    assert (status, body, cut) == (422, "no such order", False)
    assert dict(headers)["x-why"] == "rules"
    assert url == server.url.replace("x=1", "x=\u2026")
    assert dict(request)["authorization"] == dict(request)["webhook-signature"] == "\u2026"
    ((offset, number, named, partition, at_ms, dns_ms, connect_ms, tls_ms),) = attempts(office)
    assert (number, named, partition) == (1, answer_id, 0)
    assert (office.outcomes[offset][0][1:], office.outcomes[offset][1][1:]) == (("failed", 422), ("delivered", 200))
    assert began_ms <= at_ms <= now_ms()
    assert dns_ms is not None
    assert connect_ms is not None
    assert tls_ms is None
    assert b"t0ken" not in b"".join(map(encode, office.kept))


async def test_a_repeat_names_the_answer_that_is_kept(serve, open_office):
    server = await serve(refusing(*[b"again"] * 5, b"another", *[b"again"] * 2))
    office = await open_office(server, max_in_flight=1)
    office.put(8)
    await office.all_settled()
    assert Counter(answer[3] for answer in answers(office)) == {"again": 1, "another": 1}
    by_body = {answer[3]: answer[0] for answer in answers(office)}
    assert Counter(attempt[2] for attempt in attempts(office)) == {by_body["again"]: 7, by_body["another"]: 1}
    fresh = [attempt for attempt in attempts(office) if attempt[6] is not None]
    assert len(fresh) == server.connections  # Only the first request on a connection waited for it.


async def test_of_ever_different_answers_a_bounded_number_is_kept(serve, open_office):
    many = 3 * ANSWERS_MAX
    server = await serve(refusing(*(b"number %d" % number for number in range(many))))
    office = await open_office(server, max_in_flight=1, retry_first_ms=100)
    office.put(many)
    await office.all_settled()
    office.check_books()
    assert len(answers(office)) == ANSWERS_MAX
    assert len([attempt for attempt in attempts(office) if attempt[2]]) == ANSWERS_MAX


async def test_an_answer_in_pieces_is_kept_whole_and_its_connection_is_used_again(serve, open_office):
    server = await serve(refusing(b"x" * 1500, parts=7))
    office = await open_office(server, max_in_flight=1)
    office.put(3)
    await office.all_settled()
    ((_, _, _, body, cut, *_),) = answers(office)
    assert (body, cut) == ("x" * 1500, False)
    assert server.connections == 1


async def test_an_answer_that_does_not_end_is_kept_as_far_as_it_came(serve, open_office):
    turns = count()

    async def unending(_request, writer):
        writer.write(OK if next(turns) else b"HTTP/1.1 500 No\r\ncontent-length: 10000\r\n\r\nso far")

    server = await serve(unending)
    office = await open_office(server, max_in_flight=1)
    office.put(1)
    await office.all_settled()
    await until(lambda: answers(office) or office.keep_books())
    ((_, status, _, body, cut, *_),) = answers(office)
    assert (status, body, cut) == (500, "so far", True)


async def test_an_answer_that_ends_when_nothing_is_under_way_any_more_is_kept(serve, open_office):
    turns = count()

    async def unending(_request, writer):
        writer.write(OK if next(turns) else b"HTTP/1.1 500 No\r\ncontent-length: 10000\r\n\r\nso far")

    office = await open_office(await serve(unending))
    office.put(1)
    await until(lambda: len(office.outcomes[0]) == 2)
    assert office.settled
    del office.dispatcher.streams[0]  # as Checkpoints._clean_up
    await until(lambda: answers(office) or office.keep_books())
    ((offset, number, *_),) = attempts(office)
    assert (offset, number) == (0, 1)


def test_an_answer_is_only_kept_with_an_attempt_that_is():
    """Or later attempts would name an answer that is never written."""
    listener, owned, raw = listener_at("http://127.0.0.1/"), {1}, REFUSAL % (b"rules", 2, b"no")
    kept = KeptAnswers(owned.__contains__)
    kept.update(listener, Opened(Signer(b"k" * 32)))
    kept.refused([(0, 7, 1)], raw)
    kept.refused([(0, 8, 1), (1, 9, 1)], raw)
    kept.refused([(1, 10, 1)], raw)
    assert kept.take(listener, 0, 1) == []
    (event,) = kept.take(listener, 1, 1)
    ((answer_id, *_),) = event.answers
    assert [attempt[:4] for attempt in event.attempts] == [(9, 1, answer_id, 1), (10, 1, answer_id, 1)]


async def test_an_attempt_whose_status_has_come_is_counted_before_its_answer_ends(serve, open_office):
    async def unending(_request, writer):
        writer.write(b"HTTP/1.1 500 No\r\ncontent-length: 10000\r\n\r\nso far")

    office = await open_office(await serve(unending), office={"dice": lambda: 1.0}, retry_first_ms=20_000)
    office.put(1)
    await until(lambda: office.outcomes[0])
    stream = office.dispatcher.streams[0]
    assert stream.cursor(1).attempts == (1,), "or there is one more after a crash"


async def test_without_a_connection_the_steps_are_kept(serve, open_office):
    server = await serve(refusing())
    office = await open_office(server)
    await server.stop()
    office.put(1)
    await until(lambda: office.outcomes)
    await until(lambda: attempts(office) or office.keep_books())
    (_, number, answer_id, _, _, dns_ms, connect_ms, tls_ms), *_ = attempts(office)
    assert (number, answer_id, tls_ms) == (1, "", None)
    assert None not in (dns_ms, connect_ms)
    assert answers(office) == []
