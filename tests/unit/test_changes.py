"""Which change of a message counts: folded in the order of the log, whatever was read of it before."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET

from broker.core.changes import Change, prevailing, version

# In log order: whether it deletes, and the change whose version it names; None: it names none.
changes = st.lists(st.tuples(st.booleans(), st.none() | st.integers(-1, 7)), max_size=8).map(
    lambda rows: [
        Change(offset, deleted, UNSET if of is None else version(None if of < 0 else of))
        for offset, (deleted, of) in enumerate(rows)
    ]
)


def counted(log: list[Change], known: Change | None = None) -> Change | None:
    for one in log:
        known = prevailing(known, one)
    return known


def model(log: list[Change]) -> Change | None:
    """The rule in other words."""
    at = 1
    last = None
    for one in log:
        if (last is None or not last.deleted) and one.if_version in (UNSET, at):
            last, at = one, one.offset + 2
    return last


@given(changes)
def test_a_deletion_is_for_good_else_the_latest_update_counts_that_was_for_the_version_there_was(log: list[Change]):
    assert counted(log) == model(log)


@given(changes, st.integers(0, 8), st.integers(0, 8))
def test_what_is_read_again_changes_nothing(log: list[Change], end: int, begin: int):
    known = counted(log[: max(begin, end)])
    assert counted(log[min(begin, end) :], known) == counted(log)


@given(changes)
def test_each_change_that_counts_makes_another_version(log: list[Change]):
    versions = [1]
    for end in range(len(log)):
        counts = counted(log[: end + 1])
        versions.append(version(None if counts is None else counts.offset))
    assert versions == sorted(versions)
    assert len(set(versions)) == 1 + sum(counted(log[: end + 1]) is log[end] for end in range(len(log)))
