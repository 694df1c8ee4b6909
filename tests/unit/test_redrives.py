"""Redrives are counted, and each concerns what was there before it; a replay of the log counts the same."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from broker.core import events as ev
from broker.core.digests import state_hash
from broker.core.directory import Directory
from broker.core.redrives import MESSAGES_MAX, NO_REDRIVES, Redrives

IDS = st.lists(st.sampled_from("abc"), max_size=3)
BY = {"at_ms": 1, "organization_id": "o"}


def fold(all_of_them: list[list[str]]) -> Redrives:
    redrives = NO_REDRIVES
    for ids in all_of_them:
        redrives = redrives.and_of(ids)
    return redrives


@given(st.lists(IDS, max_size=12), st.integers(0, 12), st.sampled_from("abc"))
def test_it_concerns_exactly_what_a_later_redrive_named_or_meant(history, seen, message_id):
    later = history[seen:]
    assert fold(history).count == len(history)
    assert fold(history).concern(message_id, since=seen) == any(not ids or message_id in ids for ids in later)


@given(st.lists(IDS, max_size=6), st.lists(IDS, max_size=6), st.integers(0, 12), st.sampled_from("abc"))
def test_a_cancelled_redrive_concerns_nothing_any_more_and_a_later_one_does(before, after, seen, message_id):
    redrives = fold(before).cancel()
    assert not redrives.concern(message_id, since=0)
    for ids in after:
        redrives = redrives.and_of(ids)
    later = [ids for number, ids in enumerate([*before, *after]) if number >= max(seen, len(before))]
    assert redrives.count == len(before) + len(after)
    assert redrives.cancelled == len(before)
    assert redrives.concern(message_id, since=seen) == any(not ids or message_id in ids for ids in later)


def test_what_is_remembered_of_named_messages_is_bounded_and_the_newest_stay():
    others = [f"other-{number}" for number in range(MESSAGES_MAX - 3)]
    redrives = fold([["a"], ["b"], ["c"], others, ["a"], ["d"], ["e"]])
    assert dict(redrives.of_messages) == {**dict.fromkeys(others, 4), "a": 5, "d": 6, "e": 7}


def directory() -> Directory:
    state = Directory()
    for event in (
        ev.OrganizationCreated(**BY, name="o"),
        ev.QueueCreated(**BY, queue_id="q", name="q"),
        ev.ListenerCreated(
            **BY,
            listener_id="l",
            queue_id="q",
            name="l",
            notify_url="http://n",
            liveness_url="http://l",
            sealed_secret="",
            start_offsets=(0,),
        ),
    ):
        assert state.apply(event)
    return state


def test_the_directory_counts_a_listeners_redrives_and_passes_over_those_of_nobody():
    state, before = directory(), state_hash(directory())
    assert not state.apply(ev.ListenerRedriven(at_ms=1, organization_id="other", listener_id="l"))
    assert not state.apply(ev.ListenerRedriven(**BY, listener_id="gone"))
    assert state_hash(state) == before
    assert state.apply(ev.ListenerRedriven(**BY, listener_id="l", message_ids=("m",)))
    assert state.apply(ev.ListenerRedriven(**BY, listener_id="l"))
    assert state.listeners["l"].redrives == Redrives(count=2, of_all=2)
    assert state_hash(state) != before


def test_the_directory_knows_which_redrives_were_cancelled():
    state = directory()
    assert state.apply(ev.ListenerRedriven(**BY, listener_id="l"))
    assert not state.apply(ev.ListenerRedrivesCancelled(at_ms=1, organization_id="other", listener_id="l"))
    assert state.apply(ev.ListenerRedrivesCancelled(**BY, listener_id="l"))
    assert state.listeners["l"].redrives == Redrives(count=1, cancelled=1)


def test_an_update_of_the_listener_keeps_its_redrives():
    state = directory()
    state.apply(ev.ListenerRedriven(**BY, listener_id="l"))
    state.apply(
        ev.ListenerUpdated(
            **BY,
            listener_id="l",
            name="l",
            notify_url="http://n",
            liveness_url="http://l",
            settings=ev.ListenerSettings(),
        )
    )
    assert state.listeners["l"].redrives.count == 1
