"""What is kept of a listener's answer: bounded, without secrets, whatever it sends."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.core.signing import Signer
from broker.outbound.answer import (
    BODY_BYTES_MAX,
    HEADER_CHARS_MAX,
    HEADERS_MAX,
    hidden,
    read_answer,
    secrets_of,
    without_beginning,
)

PLAIN = b"HTTP/1.1 422 No\r\ncontent-type: text/plain\r\ncontent-length: 6\r\n\r\nbroken"


def test_an_answer_is_kept_with_its_headers_and_body():
    answer = read_answer(PLAIN, ())
    assert answer == (422, (("content-type", "text/plain"), ("content-length", "6")), "broken", False)


@pytest.mark.parametrize(
    ("raw", "body", "cut"),
    [
        (b"HTTP/1.1 500 No\r\ncontent-length: 9\r\n\r\nbroken", "broken", True),
        (b"HTTP/1.1 500 No\r\ntransfer-encoding: chunked\r\n\r\n3\r\nbro\r\n3\r\nken\r\n0\r\n\r\n", "broken", False),
        (b"HTTP/1.1 500 No\r\ntransfer-encoding: chunked\r\n\r\n3\r\nbro\r\nnonsense", "bro", True),
        (b"HTTP/1.1 103 Hints\r\nlink: x\r\n\r\nHTTP/1.1 500 No\r\ncontent-length: 1\r\n\r\nx", "x", False),
        (PLAIN + b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", "broken", False),
        (b"HTTP/1.1 500 No\r\ncontent-length: 2\r\n\r\n\xff\xfe", "\ufffd\ufffd", False),
        (b"HTTP/1.1 500 No\r\ncontent-encoding: gzip\r\ncontent-length: 2\r\n\r\n\x1f\x8b", "", True),
    ],
)
def test_the_body_is_what_was_sent_and_said_to_be_cut_if_it_is(raw: bytes, body: str, cut: bool):
    answer = read_answer(raw, ())
    assert (answer.body, answer.cut) == (body, cut)
    assert "link" not in dict(answer.headers)


def test_it_is_bounded():
    head = b"".join(b"x-%d: %b\r\n" % (number, b"y" * 1000) for number in range(40))
    answer = read_answer(b"HTTP/1.1 500 No\r\n%bcontent-length: 9000\r\n\r\n%b" % (head, "\u00fc".encode() * 4500), ())
    assert len(answer.headers) == HEADERS_MAX
    assert all(len(value) <= HEADER_CHARS_MAX for _, value in answer.headers)
    assert len(answer.body.encode()) <= BODY_BYTES_MAX
    assert answer.cut


def test_no_secret_of_the_listener_and_no_signature_is_kept():
    signature = Signer(b"k" * 32).sign(b"m", b"1", b"body").decode()
    echo = f"Authorization: Bearer t0ken-of-ours, signed {signature}, again t0ken-of-ours".encode()
    raw = b"HTTP/1.1 500 No\r\nx-echo: t0ken-of-ours\r\neverput-tunnel: proof\r\ncontent-length: %d\r\n\r\n%b"
    answer = read_answer(raw % (len(echo), echo), secrets_of(["Bearer t0ken-of-ours"]))
    assert answer.body == "Authorization: \u2026, signed v1,\u2026, again \u2026"
    assert dict(answer.headers)["x-echo"] == "\u2026"
    assert "everput-tunnel" not in dict(answer.headers)


@given(st.text(max_size=40), st.text(min_size=4, max_size=12), st.integers(1, 12))
def test_neither_a_secret_nor_its_beginning_at_the_end_is_left(text: str, secret: str, length: int):
    (longest, *_) = secrets_of([secret]) or ("",)
    if longest:
        left = without_beginning(hidden(text + longest[:length], (longest,)), (longest,))
        assert longest not in left
        assert length < 4 or not left.endswith(longest[:length])


@given(st.binary(max_size=300), st.binary(max_size=50))
def test_no_answer_is_too_strange(head: bytes, body: bytes):
    for raw in (head, b"HTTP/1.1 500 \r\n" + head, b"HTTP/1.1 500 No\r\n\r\n" + body, PLAIN + body):
        answer = read_answer(raw, ("secret",))
        assert len(answer.body.encode()) <= BODY_BYTES_MAX
