"""Who has an Idempotency-Key, by the log's order, and where its claims are found again."""

from __future__ import annotations

import hashlib
import time
from collections import Counter, defaultdict
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.core import claims
from broker.core.claims import CLAIMS_MAX, FEW, KEPT_MS, ClaimIndex, decide, has_room
from broker.core.events import PutClaimed
from broker.errors import ShareUsed
from broker.kafka.claims import ClaimsTopic
from broker.kafka.topics import Topic
from tests.memory_kafka import MemoryAppender, MemoryKafka, MemoryReader


def claimed(claim_id: str, at_ms: int = 0, *, seed: str | None = None, number: int = 1, of: str = "") -> PutClaimed:
    return PutClaimed(
        at_ms=at_ms,
        organization_id="o",
        claim_id=claim_id,
        queue_id="q",
        digest="ab" * 32,
        body_sha256="cd" * 32,
        ids_at_ms=at_ms,
        ids_seed=seed or claim_id,
        partition=0,
        number=number,
        of=of,
    )


def test_the_first_claim_in_the_log_has_the_key_for_a_day():
    first, second = claimed("a", 5), claimed("b", 4)
    held = decide([first, second], 10)
    assert held is not None
    assert (held.first, held.holder) == (first, first)
    assert decide([first, second], 5 + KEPT_MS - 1) is not None
    assert decide([first, second], 5 + KEPT_MS) is None
    assert decide([], 0) is None


def test_a_key_is_free_again_after_a_day():
    first, again = claimed("a", 0), claimed("b", KEPT_MS)
    held = decide([first, again], KEPT_MS)
    assert held is not None
    assert held.first is again


def test_of_those_who_take_over_the_first_has_it():
    first = claimed("a", 0)
    one = claimed("b", 20_000, seed="a", number=2, of="a")
    other = claimed("c", 20_001, seed="a", number=2, of="a")
    late = claimed("d", 20_002, number=2, of="something else")
    held = decide([first, one, other, late], 20_003)
    assert held is not None
    assert (held.first, held.holder, held.ids) == (first, one, (first,))
    third = claimed("e", 400_000, number=3, of="a")
    held = decide([first, one, other, third], 400_001)
    assert held is not None
    assert (held.holder, held.ids) == (third, (first, third))


def test_the_messages_of_a_request_have_ids_of_their_own_that_anybody_can_make_again():
    first = claimed("a")
    bits = [claims.random_bits(first, number) for number in range(1000)]
    assert len(set(bits)) == 1000
    taken_over = msgspec.structs.replace(first, claim_id="b", number=2, of="a")
    assert [claims.random_bits(taken_over, number) for number in range(1000)] == bits


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3), st.integers(0, 3 * 3600_000)), max_size=60),
    st.integers(1, 8),
)
def test_the_index_finds_what_a_dict_finds(rows, run_max):
    index = ClaimIndex(run_max)
    model = defaultdict(list)
    at_ms = 0
    for offset, (number, partition, later_ms) in enumerate(rows):
        at_ms += later_ms
        index.add(bytes([number]) * 32, partition, offset, at_ms, f"o{number}")
        model[number].append((partition, offset, at_ms))
        index.forget(at_ms - KEPT_MS)
    for number in range(6):
        found = index.places(bytes([number]) * 32)
        known = [(partition, offset) for partition, offset, _ in model[number]]
        assert len(found) == len(set(found))
        assert set(found) <= set(known)
        assert index.count(f"o{number}") == len(found)
        kept = {(p, offset) for p, offset, claimed_ms in model[number] if claimed_ms >= at_ms - KEPT_MS}
        assert kept <= set(found)
        for one in range(4):
            offsets = [offset for partition, offset in found if partition == one]
            assert offsets == sorted(offsets)
    index.forget(at_ms + 1)
    assert len(index) == 0
    assert not any(index.count(f"o{number}") for number in range(6))


def digest(number: int) -> bytes:
    return hashlib.sha256(number.to_bytes(8)).digest()


def test_a_claim_takes_sixteen_bytes():
    index = ClaimIndex()
    for number in range(3 * (1 << 16) + 1):
        index.add(digest(number), number % 16, number, 0, "o")
    assert len(index.runs) == 3
    for run in index.runs:
        columns = (run.prefixes, run.places, run.owners)
        assert sum(len(column) * column.itemsize for column in columns) == 16 << 16
    assert (70_000 % 16, 70_000) in index.places(digest(70_000))
    assert len(index.places(digest(70_000))) < 3, "another key's claim is seldom beside it"


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 3_000_000)), max_size=60))
def test_however_many_ask_for_all_they_can_get_another_one_finds_room(asked):
    has: Counter[int] = Counter()
    for who, wanted in asked:
        low, high = 0, wanted
        while low < high:  # the most that it gets of what it wants, one by one
            middle = (low + high + 1) // 2
            if has_room(has[who] + middle - 1, has.total() + middle - 1):
                low = middle
            else:
                high = middle - 1
        has[who] += low
        assert has.total() <= CLAIMS_MAX
        assert has_room(0, has.total())
        assert has_room(FEW - 1, has.total())


async def test_who_has_used_its_share_is_told_and_nobody_else():
    kafka = MemoryKafka(1)
    kafka.time = time.time
    topic: Any = ClaimsTopic(
        MemoryAppender(kafka, "claims"), MemoryReader(kafka), Topic("claims", 1, {}), claims_max=40, few=2
    )

    async def claim(number: int, organization_id: str) -> None:
        made = digest(number)
        one = claimed(f"c{number}")
        await topic.append(msgspec.structs.replace(one, organization_id=organization_id, digest=made.hex()))
        assert len(await topic.claims(made)) == 1

    for number in range(15):
        await claim(number, "theirs")
    with pytest.raises(ShareUsed):
        await claim(15, "theirs")
    await claim(16, "o")
    assert len(kafka.records["claims"][0]) == 16


def test_one_alone_has_three_of_eight_and_then_it_is_another_s_turn():
    most = CLAIMS_MAX * 3 // 8
    assert has_room(most - 1, most - 1)
    assert not has_room(most, most)
    assert has_room(0, most)
    assert has_room(most // 2 - 1, most + most // 2 - 1)
