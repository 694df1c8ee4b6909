"""A connection that is used again and again tells of each answer what a new one would. No sockets."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.outbound.addresses import parse_url
from broker.outbound.connection import Connection
from broker.outbound.retry_after import retry_after_s

TARGET = parse_url("http://listener.example/")
ANSWERS = (
    b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nOK",
    b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nNO",
    b"HTTP/1.1 204 No Content\r\n\r\n",
    b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nOK\r\n0\r\n\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 202 Accepted\r\ncontent-length: 0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\ncontent-length: 2000\r\n\r\n" + b"x" * 2000,
    b"HTTP/1.1 500 Oh\r\ncontent-length: 0\r\n\r\n",
    b"HTTP/1.1 503 Busy\r\nretry-after: 7\r\ncontent-length: 0\r\n\r\n",
    b"HTTP/1.1 429 Busy\r\nretry-after: 9\r\ncontent-length: 0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\nmore",
    b"HTTP/1.1 200 OK\r\n",
    b"garbage\r\n\r\n",
)


@dataclass
class Calls:
    """A connection's owner, and its transport. calls: what it was told, in order."""

    calls: list[tuple[object, ...]] = field(default_factory=list)

    def answered(self, connection: Connection, status: int, retry_after_s: int | None) -> None:
        self.calls.append(("answered", connection.work, status, retry_after_s))

    def failed(self, connection: Connection, error: str) -> None:
        self.calls.append(("failed", connection.work, error))

    def released(self, connection: Connection) -> None:
        self.calls.append(("released",))

    def lost(self, connection: Connection) -> None:
        self.calls.append(("lost",))

    def write(self, request: bytes) -> None:
        assert request == b"a request"

    def abort(self) -> None:
        self.calls.append(("closed",))


def connected(end_s: float = 1.0) -> tuple[Connection, Calls]:
    told = Calls()
    connection = Connection(told, TARGET, end_s)
    connection.connection_made(told)
    return connection, told


def ask(connection: Connection, told: Calls, answer: bytes, cut: int, work: int) -> list[tuple[object, ...]]:
    """One request, its answer in one piece or in two, and what the owner was told of it."""
    told.calls.clear()
    connection.send(b"a request", work, 0.0)
    for piece in (answer[:cut], answer[cut:]):
        if piece and ("closed",) not in told.calls:
            connection.data_received(piece)
    return list(told.calls)


@given(st.lists(st.tuples(st.sampled_from(ANSWERS), st.sampled_from((0, 0, 0, 20, 40))), min_size=1, max_size=12))
async def test_each_answer_is_what_it_would_be_on_a_new_connection(answers: list[tuple[bytes, int]]):
    connection, told = connected()
    for number, (answer, cut) in enumerate(answers):
        said = ask(connection, told, answer, cut, number)
        assert said == ask(*connected(), answer, cut, number)
        assert said or answer == b"HTTP/1.1 200 OK\r\n"
        if said[-1:] != [("released",)]:
            break
        assert connection.used == number + 1


def test_an_answer_that_comes_again_is_taken_each_time_and_one_that_differs_is_not_taken_for_it():
    connection, told = connected()
    taken, refused = ANSWERS[1], ANSWERS[7]
    for number, answer in enumerate((taken, taken, refused, taken, taken, refused, refused)):
        status = 200 if answer == taken else 500
        assert ask(connection, told, answer, 0, number) == [("answered", number, status, None), ("released",)]


async def test_a_body_that_looks_like_the_last_answer_is_a_body():
    connection, told = connected()
    last = ANSWERS[0]
    head = b"HTTP/1.1 201 Created\r\ncontent-length: %d\r\n\r\n" % len(last)
    assert ask(connection, told, last, 0, 1) == [("answered", 1, 200, None), ("released",)]
    assert ask(connection, told, head + last, len(head), 2) == [("answered", 2, 201, None), ("released",)]


def test_each_retry_after_is_told_however_often_the_same_answer_comes():
    connection, told = connected()
    busy = ANSWERS[8]
    for number in range(3):
        assert ask(connection, told, busy, 0, number) == [("answered", number, 503, 7), ("released",)]


def test_a_retry_after_in_the_body_is_none():
    head = b"HTTP/1.1 503 Busy\r\ncontent-length: 20\r\n\r\n"
    assert retry_after_s(head + b"\r\nretry-after: 7\r\n", at_s=0.0) is None


@pytest.mark.parametrize(
    ("line", "wait_s"),
    [
        (b"retry-after: 7", 7),
        (b"Retry-After:\t7 \t", 7),
        (b"RETRY-AFTER: Thu, 01 Jan 1970 00:02:00 GMT", 120),
        (b"retry-after: " + b"9" * 9, 999_999_999),
        (b"retry-after: " + b"9" * 10, None),
        (b"retry-after: -7", None),
        (b"retry-after:" + b" " * 2500 + b"x" * 50, None),
        (b"retry-after:" + b" " * 60_000 + b"7", 7),
        (b"retry-after: " + b"x" * 60_000, None),
        (b"retry-after: \xff", None),
        (b"retry-after:", None),
        (b"x-retry-after: 7", None),
        (b"retry-after : 7", None),
    ],
)
def test_a_retry_after_is_seconds_or_a_date(line, wait_s):
    head = b"HTTP/1.1 429 Busy\r\nx: y\r\n" + line + b"\r\ncontent-length: 0\r\n\r\n"
    assert retry_after_s(head, at_s=0.0) == wait_s


@given(st.binary(max_size=100) | st.text(max_size=80).map(str.encode), st.floats(0, 4e9))
def test_no_retry_after_is_an_error(value, at_s):
    wait_s = retry_after_s(b"HTTP/1.1 503 Busy\r\nretry-after: " + value + b"\r\n\r\n", at_s=at_s)
    assert wait_s is None or wait_s >= 0


DAY_WORDS = st.sampled_from(["Thu,", "01", "0", "99999999", "Jan", "Jan-", "-", ",", ".", ":", "00:02:00", "24:60:61"])
ZONES = st.sampled_from(["GMT", "EST", "+0000", "-0000", "+9999", "-9999", "+", "()", "1970", "0", "9999", "10000"])


@given(st.lists(DAY_WORDS | ZONES, max_size=8))
def test_no_date_of_a_retry_after_is_an_error(words):
    wait_s = retry_after_s(b"HTTP/1.1 503 Busy\r\nretry-after: " + " ".join(words).encode() + b"\r\n\r\n", at_s=1e9)
    assert wait_s is None or wait_s >= 0


async def test_an_answer_that_ended_in_time_does_not_cost_its_connection():
    connection, told = connected(end_s=0.01)
    assert ask(connection, told, ANSWERS[1], len(ANSWERS[1]) - 1, 1) == [("answered", 1, 200, None), ("released",)]
    await asyncio.sleep(0.05)
    assert ("closed",) not in told.calls
