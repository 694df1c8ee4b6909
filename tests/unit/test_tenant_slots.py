"""A fixed number of places: no tenant keeps the others out."""

from __future__ import annotations

from contextlib import AbstractContextManager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.errors import Busy
from broker.tenant_slots import TenantSlots

TOTAL = 20
EACH = 5


def slots() -> TenantSlots:
    """An organization is named by its account's letter and a digit."""
    return TenantSlots(TOTAL, EACH, tenant_of=lambda organization_id: organization_id[0], refusal=lambda: Busy("full"))


def held(shared: TenantSlots, organization_id: str) -> AbstractContextManager[None] | None:
    """A place that stays taken; None when there is none for this organization."""
    slot = shared.slot(organization_id)
    try:
        slot.__enter__()
    except Busy:
        return None
    return slot


def test_an_account_has_no_more_with_many_organizations_and_another_has_some_then():
    shared = slots()
    mine = [held(shared, f"a{number}") for number in range(10) for _ in range(EACH)]
    assert len([one for one in mine if one is not None]) == EACH
    theirs = [held(shared, "b0") for _ in range(EACH)]
    assert [one is not None for one in theirs] == [True, True, True, False, False]


def test_as_many_accounts_as_half_of_the_places_have_one_each():
    shared = slots()
    taken = [held(shared, f"{account}0") for account in "abcdefgh" for _ in range(EACH)]
    assert sum(one is not None for one in taken) < TOTAL
    newcomers = [held(shared, f"{account}0") for account in "ij"]
    assert all(newcomers)


def test_an_organization_has_its_own_bound_and_a_place_that_is_left_is_another_ones():
    shared = TenantSlots(100, 2, tenant_of=lambda _: "all", refusal=lambda: Busy("full"))
    with shared.slot("a0"), shared.slot("a0"):
        with pytest.raises(Busy), shared.slot("a0"):
            pass
        with shared.slot("a1"):
            pass
    with shared.slot("a0"), shared.slot("a0"):
        pass
    assert not len(shared)


steps = st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 3), st.booleans()), max_size=120)


@given(steps)
def test_never_more_than_there_are_and_always_one_for_an_account_that_has_none(steps):
    shared = slots()
    taken: dict[str, list[AbstractContextManager[None]]] = {}
    for account, number, leaves in steps:
        if leaves and taken.get(account):
            taken[account].pop().__exit__(None, None, None)
        elif (slot := held(shared, f"{account}{number}")) is not None:
            taken.setdefault(account, []).append(slot)
        assert sum(map(len, taken.values())) <= TOTAL
        newcomer = held(shared, "z0")
        assert newcomer is not None
        newcomer.__exit__(None, None, None)
