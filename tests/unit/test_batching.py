"""Which deliveries share a request, what its body is, and what an answer to it rejects."""

from __future__ import annotations

import itertools
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.core.batching import (
    FormingBatch,
    batch_body,
    batch_id,
    element,
    element_bytes_max,
    failed_ids,
    fills,
    halvings,
)
from broker.core.events import BatchSetting
from broker.core.flow import Pace
from broker.outbound.answer import read_body

SETTINGS = st.builds(
    BatchSetting, max_messages=st.integers(2, 1000), max_bytes=st.integers(1, 5_000), wait_ms=st.integers(0, 10_000)
)
MESSAGES = st.lists(st.tuples(st.integers(1, 3_000), st.integers(0, 30)), min_size=1, max_size=200)
IDS = st.lists(st.from_regex(r"\A[0-9a-f]{8}\Z"), min_size=1, max_size=50, unique=True)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 53), 1 << 53) | st.text(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=5),
)


def split(batch: BatchSetting, messages: list[tuple[int, int]]) -> list[list[tuple[int, int]]]:
    """The batches of all these messages, none of which waits."""
    batches, left = [], list(messages)
    while left:
        forming, chosen = FormingBatch(batch), []
        while left and forming.takes(*left[0]):
            chosen.append(left.pop(0))
        assert forming.messages == len(chosen) > 0, "every batch takes at least one message"
        batches.append(chosen)
    return batches


@given(SETTINGS, MESSAGES)
def test_a_batch_keeps_its_limits_and_the_order_and_leaves_nothing_out(
    batch: BatchSetting, messages: list[tuple[int, int]]
):
    batches = split(batch, messages)
    assert [one for chosen in batches for one in chosen] == messages
    for chosen in batches:
        assert len(chosen) <= batch.max_messages
        assert len(chosen) == 1 or 1 + sum(size for size, _ in chosen) <= batch.max_bytes
        assert len(chosen) <= max(1, batch.max_messages >> max(failed for _, failed in chosen))


@given(SETTINGS, MESSAGES)
def test_a_batch_is_closed_only_if_the_next_message_does_not_fit(batch: BatchSetting, messages: list[tuple[int, int]]):
    batches = split(batch, messages)
    for chosen, following in itertools.pairwise(batches):
        size, failed = following[0]
        most = batch.max_messages >> min(30, max(failed, *(one[1] for one in chosen)))
        assert len(chosen) >= max(1, most) or 1 + sum(one[0] for one in chosen) + size > batch.max_bytes


@given(SETTINGS, MESSAGES)
def test_messages_fill_a_batch_if_it_takes_no_more_of_them_or_after_them(
    batch: BatchSetting, messages: list[tuple[int, int]]
):
    first, *others = split(batch, messages)
    size = 1 + sum(size for size, _ in first)
    most = max(1, batch.max_messages >> min(30, max(failed for _, failed in first)))
    assert fills(batch, messages) == (bool(others) or len(first) >= most or size >= batch.max_bytes)


@given(SETTINGS, st.integers(1, 30), st.none() | st.integers(1, 30))
def test_a_message_that_has_failed_is_alone_in_its_last_attempt(
    batch: BatchSetting, failed: int, max_attempts: int | None
):
    halved = halvings(failed, max_attempts)
    if max_attempts is not None and failed >= max_attempts - 1:
        forming = FormingBatch(batch)
        assert (forming.takes(1, halved), forming.full) == (True, True)
    else:
        assert halved == failed
    assert halvings(0, max_attempts) == 0


@given(
    st.lists(
        st.tuples(st.from_regex(r"\A[0-9a-f-]{1,36}\Z"), JSON, st.integers(1, 10**9), st.none() | st.just("00-1-2-01"))
    )
)
def test_the_body_is_a_json_array_of_the_messages_within_the_bound(messages: list[tuple[str, Any, int, str | None]]):
    bodies = [orjson.dumps(value) for _, value, _, _ in messages]
    rows = [(one[0].encode(), body, one[2], one[3]) for one, body in zip(messages, bodies, strict=True)]
    body = batch_body(element(*row) for row in rows)
    assert len(body) <= 2 + sum(element_bytes_max(message_id, one, trace) for message_id, one, _, trace in rows)
    assert orjson.loads(body) == [
        {"id": message_id, "content_type": "application/json", "attempt": attempt, "body": value}
        | ({} if trace is None else {"traceparent": trace})
        for message_id, value, attempt, trace in messages
    ]


@given(IDS, IDS)
def test_the_id_of_a_batch_is_that_of_its_messages(one: list[str], other: list[str]):
    made = batch_id(map(str.encode, one))
    assert made == batch_id(map(str.encode, one))
    assert (made == batch_id(map(str.encode, other))) == (one == other)
    assert made.startswith(b"batch_")
    assert len(made) == len("batch_") + 32


# The answer


@given(IDS, st.lists(JSON, max_size=5), st.dictionaries(st.text(), JSON, max_size=3))
def test_the_ids_in_failed_are_rejected_and_anything_else_in_it_is_ignored(
    ids: list[str], others: list[Any], more: dict[str, Any]
):
    body = orjson.dumps({**more, "failed": [*ids, *others, *ids]})
    assert failed_ids(body) == {*ids, *(one for one in others if isinstance(one, str))}


@given(JSON)
def test_an_answer_of_another_shape_rejects_nothing(value: Any):
    if isinstance(value, dict):
        value.pop("failed", None)
    assert failed_ids(orjson.dumps(value)) == frozenset()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"OK",
        b'{"failed":["a"]',
        b'{"failed":"a"}',
        b'{"failed":true}',
        b'{"failed":{"a":1}}',
        b'{"Failed":["a"]}',
        b'["a"]',
        b'\xff{"failed":["a"]}',
        b'{"failed":' + b"[" * 30_000 + b"]" * 30_000 + b"}",
        b'{"failed":' * 6_000 + b"1" + b"}" * 6_000,
    ],
)
def test_a_hostile_answer_rejects_nothing(body: bytes):
    assert failed_ids(body) == frozenset()


@given(st.binary(max_size=500))
def test_any_bytes_are_an_answer(body: bytes):
    assert all(isinstance(one, str) for one in failed_ids(body))


@pytest.mark.parametrize(
    ("raw", "body", "complete"),
    [
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}", b"{}", True),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n{}", b"{}", False),
        (b"HTTP/1.1 204 OK\r\n\r\n", b"", True),
        (b"HTTP/1.1 200 OK\r\n\r\n{}", b"{}", True),  # its end is the end of the connection
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n", b"{}", True),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n", b"{}", False),
        (b"HTTP/1.1 103 Hints\r\nlink: x\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nx", b"x", True),
    ],
)
def test_a_body_is_complete_if_all_that_was_declared_has_arrived(raw: bytes, body: bytes, complete: bool):
    assert read_body(raw, cut=False) == (body, complete)


def test_a_body_without_a_length_is_incomplete_if_the_connection_was_cut():
    assert not read_body(b"HTTP/1.1 200 OK\r\n\r\n{}", cut=True).complete
    assert read_body(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}", cut=True).complete


def test_a_body_without_a_length_is_incomplete_if_it_ends_within_a_json_object():
    whole = b' {"failed":["m-1"],"note":"a } and a \\""}'
    for length in range(2, len(whole)):
        assert not read_body(b"HTTP/1.1 200 OK\r\n\r\n" + whole[:length], cut=False).complete
    for body in (whole, whole + b"\r\n", b"", b"OK", b"[", b"oops {"):
        assert read_body(b"HTTP/1.1 200 OK\r\n\r\n" + body, cut=False) == (body, True)
    assert read_body(b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n{", cut=False) == (b"{", True)


# The rate


@given(st.floats(1, 1000), st.lists(st.tuples(st.floats(0, 2), st.integers(1, 100)), min_size=1, max_size=100))
def test_a_batch_counts_with_all_its_messages_against_the_rate(rate_per_s: float, steps: list[tuple[float, int]]):
    pace, now, begun, last = Pace(rate_per_s, burst_s=0.1), 1000.0, 0, 0
    for pause, messages in steps:
        now += pause
        may = pace.allows(now)
        assert pace.begin(now, messages) == may
        if may:
            begun, last = begun + messages, messages
    assert begun - last <= rate_per_s * (now - 1000.0 + 0.1) + 1
