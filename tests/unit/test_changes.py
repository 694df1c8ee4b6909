"""Which change of a message counts, in whatever order they are read."""

from __future__ import annotations

from functools import reduce

from hypothesis import given
from hypothesis import strategies as st

from broker.core.changes import Change, prevailing

changes = st.lists(st.booleans(), min_size=1, max_size=8).map(
    lambda deletions: [Change(offset, deleted) for offset, deleted in enumerate(deletions)]
)


def counted(read: list[Change]) -> Change:
    return reduce(prevailing, read[1:], prevailing(None, read[0]))


@given(changes)
def test_a_deletion_is_for_good_else_the_latest_update_counts(log: list[Change]):
    deletions = [one for one in log if one.deleted]
    assert counted(log) == (deletions[0] if deletions else log[-1])


@given(changes.flatmap(lambda log: st.tuples(st.just(log), st.permutations(log))))
def test_the_order_of_reading_does_not_matter(both: tuple[list[Change], list[Change]]):
    log, read = both
    assert counted(read) == counted(log)
