"""Message ids: time and partition go in and come out; what is not ours by its very form is no id."""

from __future__ import annotations

from uuid import RFC_4122, UUID, uuid1, uuid4

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from broker.core.ids import PARTITIONS_MAX, message_id, parse_message_id

TIMES = st.integers(0, 2**48 - 1)
PARTITIONS = st.integers(0, PARTITIONS_MAX - 1)
RANDOM = st.integers(0, 2**64 - 1)


@settings(deadline=None)
@given(TIMES, PARTITIONS, RANDOM)
@example(0, 0, 0)
@example(2**48 - 1, PARTITIONS_MAX - 1, 2**64 - 1)
def test_time_and_partition_come_out_of_the_id(at_ms, partition, random_bits):
    text = message_id(at_ms=at_ms, partition=partition, random_bits=random_bits)
    assert parse_message_id(text) == (at_ms, partition)


@settings(deadline=None)
@given(TIMES, PARTITIONS, RANDOM)
def test_an_id_is_a_uuid_of_version_7_as_the_rfc_lays_it_out(at_ms, partition, random_bits):
    text = message_id(at_ms=at_ms, partition=partition, random_bits=random_bits)
    uuid = UUID(text)
    assert str(uuid) == text
    assert uuid.version == 7
    assert uuid.variant == RFC_4122
    assert uuid.int >> 80 == at_ms  # unix_ts_ms
    assert uuid.int >> 64 & 0xFFF == partition  # rand_a
    assert uuid.int & 2**62 - 1 == random_bits & 2**62 - 1  # rand_b


@settings(deadline=None)
@given(TIMES, TIMES, PARTITIONS, PARTITIONS, RANDOM, RANDOM)
def test_ids_sort_by_time(early, late, one, other, some, more):
    first = message_id(at_ms=min(early, late), partition=one, random_bits=some)
    second = message_id(at_ms=max(early, late), partition=other, random_bits=more)
    if early != late:
        assert first < second


def test_the_example_of_the_rfc_is_read():
    # RFC 9562, A.6: 2022-02-22T19:22:22Z, rand_a 0xCC3
    assert parse_message_id("017f22e2-79b0-7cc3-98c4-dc0c0c07398f") == (0x017F22E279B0, 0xCC3)


@pytest.mark.parametrize("partition", [-1, PARTITIONS_MAX, 10**9])
def test_a_partition_that_does_not_fit_is_refused(partition):
    with pytest.raises(ValueError, match="must be 0 to 4095"):
        message_id(at_ms=0, partition=partition, random_bits=0)


GOOD = "017f22e2-79b0-7cc3-98c4-dc0c0c07398f"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        GOOD.upper(),
        GOOD.replace("-", ""),
        f"{{{GOOD}}}",
        f"urn:uuid:{GOOD}",
        f" {GOOD}",
        f"{GOOD}\n",
        GOOD[:-1],
        GOOD + "0",
        GOOD.replace("0", "\u0660"),  # a digit, but not that one
        GOOD.replace("7cc3", "4cc3"),  # version 4
        GOOD.replace("7cc3", "8cc3"),  # version 8
        GOOD.replace("98c4", "18c4"),  # NCS variant
        GOOD.replace("98c4", "d8c4"),  # Microsoft variant
        str(uuid4()),
        str(uuid1()),
        "00000000-0000-0000-0000-000000000000",
        "ffffffff-ffff-ffff-ffff-ffffffffffff",
    ],
)
def test_what_is_not_a_version_7_uuid_in_its_canonical_form_is_no_message_id(text):
    assert parse_message_id(text) is None


@settings(deadline=None)
@given(st.text(max_size=60))
def test_no_text_makes_it_raise(text):
    assert parse_message_id(text) is None
