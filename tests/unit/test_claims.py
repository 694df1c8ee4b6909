"""Who has an Idempotency-Key, by the log's order, and where its claims are found again."""

from __future__ import annotations

from collections import defaultdict

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from broker.core import claims
from broker.core.claims import KEPT_MS, ClaimIndex, decide
from broker.core.events import PutClaimed


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
    index = ClaimIndex()
    before, claims._RUN_MAX = claims._RUN_MAX, run_max  # type: ignore[misc]
    try:
        model = defaultdict(list)
        at_ms = 0
        for offset, (number, partition, later_ms) in enumerate(rows):
            at_ms += later_ms
            index.add(bytes([number]) * 32, partition, offset, at_ms)
            model[number].append((partition, offset, at_ms))
            index.forget(at_ms - KEPT_MS)
        for number in range(6):
            found = index.places(bytes([number]) * 32)
            known = [(partition, offset) for partition, offset, _ in model[number]]
            assert len(found) == len(set(found))
            assert set(found) <= set(known)
            kept = {(p, offset) for p, offset, claimed_ms in model[number] if claimed_ms >= at_ms - KEPT_MS}
            assert kept <= set(found)
            for one in range(4):
                offsets = [offset for partition, offset in found if partition == one]
                assert offsets == sorted(offsets)
        index.forget(at_ms + 1)
        assert len(index) == 0
    finally:
        claims._RUN_MAX = before  # type: ignore[misc]


def test_a_claim_takes_sixteen_bytes():
    index = ClaimIndex()
    for number in range(3 * (1 << 16) + 1):
        index.add(number.to_bytes(8) * 4, number % 16, number, 0)
    (one, two, three) = index._runs
    assert all(
        len(prefixes) * prefixes.itemsize == len(places) * 8 == 8 << 16 for prefixes, places, _ in (one, two, three)
    )
    assert index.places((70_000).to_bytes(8) * 4) == [(70_000 % 16, 70_000)]
