"""Fetch requests packed by hand (broker/kafka/fetch.py), beside aiokafka's own encoding."""

from __future__ import annotations

from io import BytesIO

import pytest
from aiokafka.protocol.fetch import FetchRequest, FetchRequest_v10, FetchResponse_v4, FetchResponse_v11
from hypothesis import given
from hypothesis import strategies as st

from broker.kafka.fetch import Fetch, Fetched, parse_answer, rows_of

INT32 = st.integers(-(2**31), 2**31 - 1)
INT64 = st.integers(-(2**63), 2**63 - 1)
WANTED = st.lists(st.tuples(INT32, INT64, INT32), max_size=5)
NEW, OLD = {1: (4, 17)}, {1: (4, 10)}
ROW = st.tuples(
    INT32,
    st.integers(-1, 100),
    INT64,
    INT64,
    INT64,
    st.none() | st.lists(st.tuples(INT64, INT64), max_size=3),
    INT32,
    st.none() | st.binary(max_size=50),
)


@given(st.text(max_size=20), WANTED, st.integers(0, 5_000), INT32, INT32, st.text(max_size=20))
def test_the_bytes_are_those_of_aiokafka(topic, wanted, wait_ms, most, correlation_id, client_id):
    ours = Fetch(topic, wanted, max_wait_ms=wait_ms, bytes_max=most).prepare(NEW)
    theirs = FetchRequest(wait_ms, 1 if wait_ms else 0, most, 0, [(topic, wanted)]).prepare(NEW)
    assert ours.encode() == theirs.encode()
    assert (
        ours.build_request_header(correlation_id, client_id).encode()
        == theirs.build_request_header(correlation_id, client_id).encode()
    )


@given(st.text(max_size=20), st.lists(ROW, max_size=5), INT32)
def test_an_answer_is_read_as_by_aiokafka(topic, rows, correlation_id):
    data = FetchResponse_v11(0, 0, 0, [(topic, rows)]).encode()
    expected = [Fetched(row[0], row[1], row[2], row[-1] or b"") for row in rows]
    assert parse_answer(data) == expected
    assert rows_of(FetchResponse_v11.decode(BytesIO(data))) == expected
    request = Fetch(topic, [(0, 0, 1)], bytes_max=1).prepare(NEW)
    whole = BytesIO(correlation_id.to_bytes(4, signed=True) + data)
    assert request.parse_response_header(whole).correlation_id == correlation_id
    assert request.RESPONSE_TYPE.decode(whole) == expected


@given(st.lists(ROW, min_size=1, max_size=3), st.data())
def test_an_answer_that_is_cut_off_is_an_error(rows, data):
    whole = FetchResponse_v11(0, 0, 0, [("topic", rows)]).encode()
    with pytest.raises(Exception, match=r"buffer|shorter"):
        parse_answer(whole[: data.draw(st.integers(0, len(whole) - 1))])


def test_an_error_of_the_whole_answer_is_one_of_each_partition():
    rows = [(0, 0, 9, 9, 0, None, -1, b""), (1, 6, 9, 9, 0, None, -1, b"")]
    assert [row.error_code for row in parse_answer(FetchResponse_v11(0, 70, 0, [("topic", rows)]).encode())] == [70, 6]


def test_an_older_broker_gets_aiokafka_s_own_request():
    request = Fetch("topic", [(3, 5, 100)], bytes_max=100).prepare(OLD)
    assert isinstance(request, FetchRequest_v10)
    answer = FetchResponse_v4(0, [("topic", [(3, 0, 7, 7, [], b"raw")])])
    assert rows_of(answer) == [Fetched(3, 0, 7, b"raw")]
