"""Produce requests packed by hand (broker/kafka/produce.py), beside aiokafka's own encoding."""

from __future__ import annotations

import contextlib
import struct
from io import BytesIO

import pytest
from aiokafka.protocol.produce import ProduceRequest, ProduceResponse_v7
from hypothesis import given
from hypothesis import strategies as st

from broker.kafka.produce import Produced, pack, parse_answer

INT32 = st.integers(-(2**31), 2**31 - 1)
INT64 = st.integers(-(2**63), 2**63 - 1)
ROW = st.tuples(INT32, st.integers(-1, 100), INT64, INT64, INT64)
TOPICS = st.lists(st.tuples(st.text(max_size=20), st.lists(ROW, max_size=5)), max_size=3)


BATCHES = st.dictionaries(st.tuples(st.text(max_size=20), INT32), st.binary(max_size=50), max_size=5)


@given(BATCHES, INT32, INT32, st.text(max_size=20))
def test_the_bytes_are_those_of_aiokafka(batches, timeout_ms, correlation_id, client_id):
    ours = pack([*batches.items()], timeout_ms=timeout_ms)
    topics: dict[str, list[tuple[int, bytes]]] = {}
    for (topic, partition), batch in batches.items():
        topics.setdefault(topic, []).append((partition, batch))
    theirs = ProduceRequest(None, -1, timeout_ms, [*topics.items()]).prepare({0: (0, 7)})
    assert ours.encode() == theirs.encode()
    header = ours.build_request_header(correlation_id, client_id).encode()
    assert header == theirs.build_request_header(correlation_id, client_id).encode()


@given(TOPICS, INT32, INT32)
def test_an_answer_is_read_as_by_aiokafka(topics, throttle_ms, correlation_id):
    data = ProduceResponse_v7(topics, throttle_ms).encode()
    expected = [Produced(topic, *row) for topic, rows in topics for row in rows]
    assert parse_answer(data) == expected
    request = pack([], timeout_ms=1)
    whole = BytesIO(correlation_id.to_bytes(4, signed=True) + data)
    assert request.parse_response_header(whole).correlation_id == correlation_id
    assert request.RESPONSE_TYPE.decode(whole) == expected


@given(TOPICS, st.data())
def test_an_answer_that_is_cut_off_is_an_error(topics, data):
    whole = ProduceResponse_v7(topics, 0).encode()
    with pytest.raises(Exception, match=r"buffer|utf-8"):
        parse_answer(whole[: data.draw(st.integers(0, len(whole) - 1))])


@given(st.binary(max_size=200))
def test_no_bytes_make_more_rows_than_they_have_room_for(data):
    with contextlib.suppress(struct.error, ValueError):
        assert len(parse_answer(data)) * 30 <= len(data)
