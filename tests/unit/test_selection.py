"""The filters on the log's bytes take what the same filters on the events would."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_events import BY, SAMPLES, golden_name

from broker.core import events as ev
from broker.core.catalogue import TOPICS, shown
from broker.core.codec import encode, wire_name
from broker.core.selection import MessagePosition, Selection

OURS = str(BY["organization_id"])
QUEUE_ID, LISTENER_ID = "5f0e6f0a-33c1-4a8e-8f1d-b5b9f6f0c001", "2d7f1a44-9f0b-4c61-8a5e-7d1c0e9b3002"
MESSAGE = MessagePosition(
    id="019b76d9-05ab-7003-8123-456789abcdef", queue_id=QUEUE_ID, at_ms=1_767_225_630_123, partition=3, offset=41
)


def maybe(value: str) -> st.SearchStrategy[str | None]:
    return st.sampled_from([None, value, "7c9e6679-7425-40de-944b-e07fc1f90ae7"])


@given(
    st.sampled_from(SAMPLES),
    st.sampled_from([None, frozenset({"queue.created", "message.put"}), frozenset({"listener.paused"})]),
    maybe(QUEUE_ID),
    maybe(LISTENER_ID),
    maybe("key:k-1"),
)
def test_an_event_is_taken_when_all_of_it_fits(event, types, queue_id, listener_id, actor):
    wanted = Selection(
        organization_id=OURS,
        types=types,
        queue_id=queue_id,
        queue_listener_ids=frozenset({LISTENER_ID} if queue_id == QUEUE_ID else ()),
        listener_id=listener_id,
        actor=actor,
    )
    fields = msgspec.structs.asdict(event)
    about_queue = bool(fields.get("queue_id") or fields.get("listener_id"))
    fits = (
        event.organization_id == OURS
        and (types is None or wire_name(type(event)) in types)
        and (queue_id is None or (queue_id == QUEUE_ID and about_queue))
        and (listener_id is None or fields.get("listener_id") == listener_id)
        and (actor is None or event.actor == actor)
    )
    assert wanted.take(encode(event)) == (event if fits else None)


@pytest.mark.parametrize("event", SAMPLES, ids=golden_name)
def test_another_organization_s_event_is_never_taken_even_if_it_names_ours(event: ev.Event):
    theirs = msgspec.structs.replace(event, organization_id="theirs", request_id=OURS)
    assert Selection(organization_id=OURS).take(encode(theirs)) is None


def test_the_story_of_a_message_is_what_names_it_and_its_row_of_what_was_gathered():
    wanted = Selection(organization_id=OURS, message=MESSAGE)
    told = [event for sample in SAMPLES if (event := wanted.take(encode(sample))) is not None]
    assert all(getattr(event, "message_id", MESSAGE.id) == MESSAGE.id for event in told)
    gathered = next(event for event in told if isinstance(event, ev.DeliveriesSettled))
    assert [row[0] for row in gathered.rows] == [41]
    elsewhere = Selection(
        organization_id=OURS,
        message=MessagePosition(id="another", queue_id=QUEUE_ID, at_ms=1_767_225_630_123, partition=3, offset=40),
    )
    # The cancellation of redrives names no message. Story decides whether it concerns one.
    others = (sample for sample in SAMPLES if not isinstance(sample, ev.ListenerRedrivesCancelled))
    assert not any(elsewhere.take(encode(sample)) for sample in others)


def test_an_event_that_names_only_the_listener_is_its_queue_s_whatever_else_it_says():
    wanted = Selection(organization_id=OURS, queue_id=QUEUE_ID, queue_listener_ids=frozenset({LISTENER_ID}))
    settings = ev.ListenerSettings(headers={"queue_id": "another"})
    urls = {"notify_url": "https://n.example", "liveness_url": "https://l.example"}
    event = ev.ListenerUpdated(
        at_ms=1, organization_id=OURS, listener_id=LISTENER_ID, name="n", settings=settings, **urls
    )
    assert wanted.take(encode(event)) == event
    assert wanted.take(encode(msgspec.structs.replace(event, listener_id="another"))) is None


def test_an_event_that_is_written_in_another_order_is_taken_all_the_same():
    event = b'{ "queue_id": "%b", "name": "n", "organization_id": "%b", "at_ms": 1, "v": 1, "type": "queue.created" }'
    wanted = Selection(organization_id=OURS, queue_id=QUEUE_ID, types=frozenset({"queue.created"}))
    assert wanted.take(event % (QUEUE_ID.encode(), OURS.encode())) is not None
    assert wanted.take(event % (b"another", OURS.encode())) is None


def test_a_redrive_that_names_the_message_is_part_of_its_story():
    wanted = Selection(organization_id=OURS, message=MESSAGE)
    by = {"at_ms": 1, "organization_id": OURS, "listener_id": LISTENER_ID}
    named = ev.ListenerRedriven(**by, message_ids=("another", MESSAGE.id))
    assert wanted.take(encode(named)) == named
    assert wanted.take(encode(ev.ListenerRedriven(**by, message_ids=("another",)))) is None
    assert wanted.topics() == TOPICS


def test_only_topics_that_may_hold_it_are_read():
    def topics(**fields) -> tuple[str, ...]:
        return Selection(organization_id=OURS, **fields).topics()

    assert topics() == TOPICS
    assert topics(types=frozenset({"queue.created"})) == ("control",)
    assert topics(message=MESSAGE, types=frozenset({"message.put", "queue.created"})) == ("messages",)


def test_what_only_a_newer_program_can_read_is_told_of_without_its_own_fields():
    written = (
        b'{"type":"queue.exploded","at_ms":7,"organization_id":"%b","actor":"key:k","v":1,"token":"x"}' % OURS.encode()
    )
    told = Selection(organization_id=OURS).take(written)
    assert told is not None
    assert shown(told) == {
        "type": "unreadable",
        "written": "queue.exploded",
        "v": 1,
        "at_ms": 7,
        "organization_id": OURS,
        "actor": "key:k",
        "request_id": "",
    }
    assert Selection(organization_id="theirs").take(written + OURS.encode()) is None
    assert Selection(organization_id=OURS, actor="worker").take(written) is None
    assert Selection(organization_id=OURS, types=frozenset({"queue.created"})).take(written) is None


@pytest.mark.parametrize(
    "value",
    [
        None,
        b"",
        b"{}",
        OURS.encode(),
        b'{"type":"queue.exploded","v":1}' + OURS.encode(),
        b'["' + OURS.encode() + b'"]',
    ],
)
def test_what_is_no_event_is_passed_over(value: bytes | None):
    assert Selection(organization_id=OURS).take(value) is None
