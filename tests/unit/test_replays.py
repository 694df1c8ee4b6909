"""What a replay takes, and its fold: begun, advanced partition by partition, paused, ended."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.core import codec
from broker.core import events as ev
from broker.core.cursor import Cursor
from broker.core.digests import state_hash
from broker.core.directory import REPLAY_HEADER, Directory
from broker.core.events import ListenerSettings
from broker.core.replays import ENDED_MAX, Replay, Replays, pick, picked_offsets

BY = {"at_ms": 90_000_000, "organization_id": "o"}
STARTED = ev.ReplayStarted(
    **BY,
    replay_id="r",
    listener_id="l",
    from_ms=0,
    to_ms=80_000_000,
    only="all",
    notify_url=None,
    liveness_url=None,
    rate_per_s=5.0,
    start_offsets=(2, 0),
    end_offsets=(7, 4),
    before_offsets=(7, 4),
    after_offsets=(7, 4),
    picked=None,
    count=9,
    counted_all=True,
)


@pytest.fixture
def directory() -> Directory:
    made = Directory()
    for event in (
        ev.OrganizationCreated(**BY, name="o"),
        ev.QueueCreated(**BY, queue_id="q", name="q"),
        ev.ListenerCreated(
            **BY,
            listener_id="l",
            queue_id="q",
            name="l",
            notify_url="https://n.example",
            liveness_url="https://l.example",
            sealed_secret="sealed",
            start_offsets=(9, 9),
            settings=ListenerSettings(max_age_s=100, headers={"x-team": "a"}),
        ),
        STARTED,
    ):
        assert made.apply(event)
    return made


@given(st.lists(st.integers(0, 1 << 40), unique=True).map(sorted))
def test_picked_offsets_go_to_text_and_back(offsets):
    assert picked_offsets(pick(offsets)) == offsets


def headers_sent(directory: Directory, **fields) -> dict[str, str]:
    """The headers of a replay with these fields."""
    sent = {name: getattr(STARTED, name) for name in STARTED.__struct_fields__} | {"replay_id": "s"} | fields
    assert directory.apply(ev.ReplayStarted(**sent))
    return directory.listeners["s"].settings.headers


@pytest.mark.parametrize(
    ("notify_url", "send_headers", "sent"),
    [
        (None, False, True),
        ("https://n.example/again", False, True),
        ("https://other.example/", False, False),
        ("http://n.example/", False, False),
        ("https://other.example/", True, True),
    ],
)
def test_headers_go_to_the_listeners_origin_and_to_another_only_if_asked(directory, notify_url, send_headers, sent):
    headers = headers_sent(directory, notify_url=notify_url, send_headers=send_headers)
    assert headers == {**({"x-team": "a"} if sent else {}), REPLAY_HEADER: "s"}


def test_a_replay_begun_by_an_older_program_has_the_headers_wherever_it_goes(directory):
    stored = codec.encode(STARTED).replace(b'"replay_id":"r"', b'"replay_id":"s"').replace(b'"v":3', b'"v":2')
    stored = stored.replace(b',"send_headers":true', b"").replace(
        b'"notify_url":null', b'"notify_url":"https://other.example/"'
    )
    assert directory.apply(codec.decode(stored))
    assert directory.listeners["s"].settings.headers == {"x-team": "a", REPLAY_HEADER: "s"}


def test_a_listener_that_moves_takes_its_headers_along(directory):
    assert headers_sent(directory, notify_url="https://n.example/again", send_headers=False)["x-team"] == "a"
    settings = ListenerSettings(headers={"x-team": "of another origin"})
    moved = {"name": "l", "notify_url": "https://moved.example", "liveness_url": "https://l.example"}
    assert directory.apply(ev.ListenerUpdated(**BY, listener_id="l", **moved, settings=settings))
    assert directory.listeners["s"].settings.headers == {REPLAY_HEADER: "s"}


def test_it_takes_all_or_what_lies_before_and_after_and_what_is_picked():
    replays = Replays()
    whole = replays.apply(STARTED)
    some = replays.apply(
        ev.ReplayStarted(
            **{name: getattr(STARTED, name) for name in STARTED.__struct_fields__}
            | {"replay_id": "s", "before_offsets": (4, 0), "after_offsets": (7, 3), "picked": (pick([5]), pick([]))}
        )
    )
    assert whole is not None
    assert some is not None
    assert whole.chooser(0) is None
    assert [offset for offset in range(2, 7) if some.chooser(0)(offset)] == [2, 3, 5]
    assert [offset for offset in range(4) if some.chooser(1)(offset)] == [3]


def test_it_is_delivered_as_a_listener_that_begins_and_ends(directory):
    listener = directory.listeners["r"]
    assert listener.notify_url == "https://n.example"
    assert listener.settings.headers == {"x-team": "a", REPLAY_HEADER: "r"}
    assert listener.settings.rate_per_s == 5.0
    assert listener.settings.max_age_s == 100
    assert listener.stands_at({}, 0) == Cursor(top=2)
    assert listener.reach(0, 100) == 7
    assert directory.listener("o", "r") is None  # it is none that anybody made
    assert list(directory.queues["q"].listeners) == ["l"]


@pytest.mark.parametrize("liveness_url", [None, "https://live.elsewhere.example"])
def test_one_to_a_url_of_its_own_is_alive_or_not_whatever_its_listener_is(directory, liveness_url):
    where = {"replay_id": "e", "notify_url": "https://elsewhere.example", "liveness_url": liveness_url}
    directory.apply(msgspec.structs.replace(STARTED, **where))
    elsewhere = directory.listeners["e"]
    assert elsewhere.notify_url == "https://elsewhere.example"
    assert elsewhere.liveness_url == (liveness_url or "https://elsewhere.example")
    assert elsewhere.has_liveness_url == (liveness_url is not None)
    assert directory.listeners["r"].liveness_url == "https://l.example"
    assert directory.listeners["r"].has_liveness_url


def test_it_follows_its_listener(directory):
    directory.apply(ev.ListenerPaused(**BY, listener_id="l", reason="asked for"))
    assert directory.listeners["r"].paused == "asked for"
    directory.apply(
        ev.ListenerUpdated(
            **BY,
            listener_id="l",
            name="l",
            notify_url="https://moved.example",
            liveness_url="https://l.example",
            settings=ListenerSettings(),
        )
    )
    assert directory.listeners["r"].notify_url == "https://moved.example"


def test_it_has_finished_when_every_partition_has(directory):
    directory.apply(ev.ReplayAdvanced(**BY, replay_id="r", partitions=(1,)))
    replay = directory.replays.find("o", "r")
    assert (replay.state, replay.finished) == ("running", (1,))
    directory.apply(ev.ReplayAdvanced(**BY, replay_id="r", partitions=(0, 1)))
    replay = directory.replays.find("o", "r")
    assert (replay.state, replay.ended_at_ms) == ("finished", 90_000_000)
    assert "r" not in directory.listeners
    assert not directory.apply(ev.ReplayCancelled(**BY, replay_id="r"))


def test_paused_resumed_cancelled(directory):
    def state_after(event: ev.ReplayEvent) -> tuple[str, str | None]:
        assert directory.apply(event)
        return directory.replays.find("o", "r").state, getattr(directory.listeners.get("r"), "paused", "gone")

    assert state_after(ev.ReplayPaused(**BY, replay_id="r", reason="asked for")) == ("paused", "asked for")
    assert state_after(ev.ReplayResumed(**BY, replay_id="r")) == ("running", None)
    assert state_after(ev.ReplayCancelled(**BY, replay_id="r")) == ("cancelled", "gone")


def test_it_ends_with_its_listener_and_is_nobody_elses(directory):
    other = {**BY, "organization_id": "other"}
    assert not directory.apply(ev.ReplayCancelled(**other, replay_id="r"))
    assert directory.replays.find("other", "r") is None
    assert directory.apply(ev.ListenerDeleted(**BY, listener_id="l"))
    assert directory.replays.of("l") == []
    assert directory.listeners == {}


def test_one_of_a_listener_that_is_gone_never_begins():
    assert not Directory().apply(STARTED)


def test_equal_folds_have_equal_hashes_and_a_replay_counts(directory):
    before = state_hash(directory)
    directory.apply(ev.ReplayPaused(**BY, replay_id="r", reason="asked for"))
    assert state_hash(directory) != before
    assert isinstance(directory.replays.find("o", "r"), Replay)


def test_of_an_organizations_replays_that_ended_the_newest_are_remembered_without_what_they_picked(directory):
    chosen = msgspec.structs.replace(STARTED, only="failed", picked=(pick([3, 4]), pick([1])))
    for number in range(ENDED_MAX + 2):
        assert directory.apply(msgspec.structs.replace(chosen, replay_id=f"r{number}"))
        assert directory.replays.running("o") == 2  # and the one that goes on
        assert directory.apply(ev.ReplayCancelled(**BY, replay_id=f"r{number}"))
    shown = directory.replays.of("l")
    assert [one.id for one in shown] == ["r", *(f"r{number}" for number in range(2, ENDED_MAX + 2))]
    assert {one.picked for one in shown} == {None}
    assert directory.replays.find("o", "r1") is None
    assert directory.apply(ev.ListenerDeleted(**BY, listener_id="l"))
    assert directory.replays.everything() == []
    assert directory.replays.running("o") == 0
