"""What readers of the log are shown: everything that is described, and never a secret."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_events import SAMPLES, SETTINGS, any_of, golden_name

from broker.core import codec
from broker.core import events as ev
from broker.core.catalogue import (
    FIELDS,
    FORMER,
    INTERNAL,
    PASSING,
    SECRET,
    TOPIC_OF,
    TOPICS,
    fields_of,
    masked_url,
    shown,
    shown_json,
    types_named,
)
from broker.core.codec import CLASSES, UPCASTERS
from cli.commands.events import catalogue
from cli.event_lines import EventLines

SOUNDS_SECRET = re.compile(r"secret|password|hash|sha256|sealed|token|credential|private|salt|argon|cookie")


@pytest.mark.parametrize("kind", CLASSES.values(), ids=CLASSES)
def test_every_field_of_every_event_is_described(kind: type[ev.Event]):
    assert set(fields_of(kind)) <= set(FIELDS)


@pytest.mark.parametrize("kind", CLASSES.values(), ids=CLASSES)
def test_a_field_that_sounds_like_a_secret_is_one(kind: type[ev.Event]):
    assert {name for name in fields_of(kind) if SOUNDS_SECRET.search(name)} <= SECRET


def test_every_event_has_its_topic():
    assert set(TOPIC_OF) == set(CLASSES)
    assert set(TOPIC_OF.values()) <= {*TOPICS, *PASSING}


@pytest.mark.parametrize("event", SAMPLES, ids=golden_name)
def test_all_but_the_secrets_is_shown(event: ev.Event):
    told = orjson.loads(orjson.dumps(shown(event)))
    said = {name for name in event.__struct_fields__ if getattr(event, name) is not msgspec.UNSET}
    assert set(told) == {"type", *said} - SECRET - INTERNAL
    text = orjson.dumps(told).decode()
    assert "gAAAAAB" not in text
    assert "abababab" not in text
    assert "größe" not in text


@settings(max_examples=15, deadline=None)
@pytest.mark.parametrize("kind", CLASSES.values(), ids=CLASSES)
@given(data=st.data())
def test_an_event_is_sent_as_it_is_shown_byte_for_byte(kind: type[ev.Event], data: st.DataObject):
    event = data.draw(any_of(kind))
    assert shown_json(event) == orjson.dumps(shown(event))


def test_where_a_tunnel_leads_is_not_shown():
    urls = {"notify_url": "tunnel://127.0.0.1:7000/token/notify", "liveness_url": "https://l.example"}
    event = ev.ListenerUpdated(at_ms=1, organization_id="o", listener_id="l", name="n", settings=SETTINGS, **urls)
    told = shown(event)
    assert (told["notify_url"], told["liveness_url"]) == ("tunnel://…", "https://l.example")
    put = ev.MessagePut(at_ms=1, organization_id="o", message_id="m", queue_id="q", name="n", data="tunnel://as it is")
    assert shown(put)["data"] == "tunnel://as it is"


@pytest.mark.parametrize(
    ("url", "masked"),
    [
        ("https://l.example/path", "https://l.example/path"),
        ("https://l.example/n?token=abc&x=1&x=2", "https://l.example/n?token=…&x=…&x=…"),
        ("https://l.example?abc", "https://l.example?…"),
        ("https://l.example/n?", "https://l.example/n?"),
        ("https://l.example/n?a=b=c&&d", "https://l.example/n?a=…&…&…"),
        ("https://user:password@l.example:8443/n?t=1", "https://…@l.example:8443/n?t=…"),
        ("https://token@l.example", "https://…@l.example"),
        ("https://l.example/n?t=1#frag=2", "https://l.example/n?t=…"),
        ("tunnel://127.0.0.1:7000/token/notify?x=1", "tunnel://…"),
        ("", ""),
    ],
)
def test_a_url_is_shown_without_what_may_be_a_token(url: str, masked: str):
    assert masked_url(url) == masked
    event = ev.ListenerUpdated(
        at_ms=1, organization_id="o", listener_id="l", name="n", notify_url=url, liveness_url=url, settings=SETTINGS
    )
    assert (shown(event)["notify_url"], shown(event)["liveness_url"]) == (masked, masked)


def test_a_field_that_nobody_has_described_is_not_shown(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delitem(FIELDS, "reason")
    assert "reason" not in shown(ev.ListenerPaused(at_ms=1, organization_id="o", listener_id="l", reason="why"))


def test_docs_events_md_is_what_make_events_writes():
    assert (Path(__file__).parents[2] / "docs" / "events.md").read_text() == catalogue()


def test_each_version_that_is_still_read_is_described_with_the_fields_that_it_has():
    golden = Path(__file__).parents[1] / "golden"
    common = {"type", *ev.Event.__struct_fields__}
    assert set(FORMER) == set(UPCASTERS)
    for name, version in FORMER:
        section = catalogue().partition(f"#### `{name}`, version {version}\n")[2].partition("\n#")[0]
        described = set(re.findall(r"^\| `([a-z0-9_.]+)`", section, re.MULTILINE))
        stored = orjson.loads((golden / f"{name}.v{version}.json").read_bytes())
        inside = {f"settings.{field}" for field in stored.get("settings", ())}
        assert {*stored, *inside} - common <= described
        assert described
        assert not described & FORMER[name, version].lacks
        assert f"Such an event means: {FORMER[name, version].read_as}." in section


@pytest.mark.parametrize("event", SAMPLES, ids=golden_name)
def test_an_event_is_a_whole_line_for_a_script_and_one_that_fits_a_terminal(event: ev.Event):
    ids = {value for name, value in msgspec.structs.asdict(event).items() if name.endswith("_id") and value}
    whole = ["".join(part if isinstance(part, str) else part[0] for part in line) for line in lines(event, None)]
    assert whole
    for line in whole:
        assert line.split()[1] == codec.wire_name(type(event))
        assert re.match(r"[0-9-]{10}T[0-9:.]{12}Z  ", line)
        assert event.actor == "worker" or f"by {event.actor}" in line
        assert event.request_id in line
        assert not ids - {event.organization_id, event.request_id} or any(one in line for one in ids)
        assert "organization_id" not in line
    for width in (40, 80):
        narrow = ["".join(part if isinstance(part, str) else part[0] for part in one) for one in lines(event, width)]
        assert len(narrow) == len(whole) + 1  # the date
        assert all(len(line) <= max(width, 45) for line in narrow)


def lines(event: ev.Event, width: int | None) -> list:
    return list(EventLines({}, width).of(shown(event)))


def test_a_noun_names_all_its_types():
    assert types_named("queue") == {"queue.created", "queue.renamed", "queue.alerts_set", "queue.deleted"}
    assert types_named("queue.created") == {"queue.created"}
    assert types_named("que") is None
    assert types_named("delivery.parked") is None  # it is in `outstanding`, which is no part of the log's order
