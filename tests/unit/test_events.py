"""Events on the wire: what was written once is read for ever, byte for byte, and nothing else is taken for an event.

A golden record per type and version is in tests/golden; a new one is written by hand or with write_golden() below, an
existing one never changes.
"""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from broker.core import events as ev
from broker.core.codec import CLASSES, UPCASTERS, VERSIONS, decode, decode_message, encode, wire_name
from broker.core.events import ListenerSettings
from broker.errors import UnknownEvent

GOLDEN = Path(__file__).parent.parent / "golden"
FILES = sorted(GOLDEN.glob("*.json"))
BY = {"at_ms": 1_767_225_630_123, "organization_id": "0b8f3c1e-6d0a-4b7e-9f55-0a3c2c9d7e11", "actor": "key:k-1"}
QUEUE = {"queue_id": "5f0e6f0a-33c1-4a8e-8f1d-b5b9f6f0c001"}
LISTENER = {"listener_id": "2d7f1a44-9f0b-4c61-8a5e-7d1c0e9b3002"}
REPLAY = {"replay_id": "7c1d9a52-4f0e-4d0b-9b1a-6a2b7c8d9004"}
MESSAGE = {"message_id": "019b76d9-05ab-7003-8123-456789abcdef"}
SETTINGS = ListenerSettings(
    max_in_flight=8, rate_per_s=2.5, timeout_ms=3_000, max_attempts=12, max_age_s=3_600, headers={"x-team": "größe"}
)
SEALED = msgspec.structs.replace(SETTINGS, headers={}, sealed_headers={"x-team": "gAAAAABsealed"})

ACCOUNT = {"account_id": "7a1f0c52-5d7c-4e0b-8f6e-2c4f5b9ad004"}
INVITATION = {"invitation_id": "e4b1c7d2-3a5f-4c8e-9d06-1f2a3b4c5005"}
NOBODYS = {**BY, "organization_id": ""}
PASSWORD_HASH = "$argon2id$v=19$m=65536,t=3,p=4$vPPD4AsUjjyRXKsLwdy9qw$KhuI6wpWEBttSNS3y9qZwDf3rZn/NiNQwV18FcYwbAQ"

SAMPLES: list[ev.Event] = [
    ev.AccountCreated(**NOBODYS, **ACCOUNT, email="Ann@example.com", password_hash=PASSWORD_HASH),
    ev.AccountPasswordChanged(**NOBODYS, **ACCOUNT, session_id="s-1", password_hash=PASSWORD_HASH),
    ev.AccountPasswordReset(**NOBODYS, **ACCOUNT, password_hash=PASSWORD_HASH, expires_at_ms=1_767_312_030_123),
    ev.AccountIdentityLinked(**NOBODYS, **ACCOUNT, issuer="https://id.example", subject="248289761001"),
    ev.AccountIdentityUnlinked(**NOBODYS, **ACCOUNT, session_id="s-1"),
    ev.AccountSessionsEnded(**NOBODYS, **ACCOUNT, kept_session_id="s-1"),
    ev.AccountBlocked(**NOBODYS, **ACCOUNT),
    ev.AccountUnblocked(**NOBODYS, **ACCOUNT),
    ev.AccountDeleted(**NOBODYS, **ACCOUNT, even_if_last=True),
    ev.SessionCreated(**NOBODYS, **ACCOUNT, session_id="s-1", token_sha256="cd" * 32, expires_at_ms=1_767_830_430_123),
    ev.SessionEnded(**NOBODYS, session_id="s-1"),
    ev.PutClaimed(
        **BY,
        **QUEUE,
        request_id="r-9",
        claim_id="00112233445566778899aabbccddeeff",
        digest="cd" * 32,
        body_sha256="ef" * 32,
        ids_at_ms=1_767_225_630_000,
        ids_seed="ffeeddccbbaa99887766554433221100",
        partition=3,
        number=2,
        of="102132435465768798a9bacbdcedfe0f",
    ),
    ev.OrganizationCreated(**BY, request_id="r-1", name="Acme"),
    ev.OrganizationJoined(**BY, **ACCOUNT),
    ev.OrganizationLeft(**BY, **ACCOUNT, even_if_last=True),
    ev.MemberRoleChanged(**BY, **ACCOUNT, role="operator"),
    ev.InvitationCreated(
        **BY,
        **INVITATION,
        email="Bob@example.com",
        token_sha256="cd" * 32,
        expires_at_ms=1_767_830_430_123,
        role="auditor",
    ),
    ev.InvitationRevoked(**BY, **INVITATION),
    ev.InvitationAccepted(**BY, **INVITATION, **ACCOUNT),
    ev.VolumeRecorded(**BY | {"actor": ""}, bytes=16_777_216),
    ev.KeyCreated(
        **BY,
        key_id="k-2",
        name="deploy",
        prefix="ep_abcdef",
        secret_sha256="ab" * 32,
        scopes=("queues", "messages"),
        queue_ids=(QUEUE["queue_id"],),
        expires_at_ms=1_767_312_030_123,
    ),
    ev.KeyRevoked(**BY, key_id="k-2"),
    ev.KeyUsed(**BY, key_id="k-2"),
    ev.QueueCreated(**BY, **QUEUE, request_id="r-2", name="account-deletions"),
    ev.QueueRenamed(**BY, **QUEUE, name="Löschungen"),
    ev.QueueAlertsSet(**BY, **QUEUE, alerts=ev.AlertThresholds(lag_s=60, parked=0)),
    ev.QueueDeleted(**BY, **QUEUE),
    ev.ListenerCreated(
        **BY,
        **QUEUE,
        **LISTENER,
        name="billing",
        notify_url="https://billing.example/hook?x=1",
        liveness_url="https://billing.example/alive",
        sealed_secret="gAAAAABsealed",
        start_offsets=(0, 17, 4_294_967_296, 3),
        settings=SEALED,
    ),
    ev.ListenerUpdated(
        **BY,
        **LISTENER,
        name="billing",
        notify_url="https://billing.example/v2",
        liveness_url="https://billing.example/alive",
        settings=ListenerSettings(),
    ),
    ev.ListenerSecretRotated(**BY, **LISTENER, sealed_secret="gAAAAABanother", former_end_at_ms=1_767_312_030_123),
    ev.ListenerResealed(**BY, **LISTENER, sealed={"gAAAAABsealed": "gAAAAABanew"}),
    ev.ListenerPaused(**BY, **LISTENER, reason="the listener answered 410 Gone"),
    ev.ListenerResumed(**BY, **LISTENER),
    ev.ListenerRedriven(**BY, **LISTENER, message_ids=(MESSAGE["message_id"],)),
    ev.ListenerRedrivesCancelled(**BY, **LISTENER),
    ev.ListenerDeleted(**BY, **LISTENER),
    ev.ReplayStarted(
        **BY,
        **LISTENER,
        **REPLAY,
        request_id="r-7",
        from_ms=1_767_139_230_000,
        to_ms=1_767_225_630_000,
        only="undelivered",
        notify_url="https://audit.example/again",
        liveness_url=None,
        rate_per_s=50.0,
        start_offsets=(3, 0),
        end_offsets=(9, 12),
        before_offsets=(3, 4),
        after_offsets=(9, 11),
        picked=("BAEE", ""),
        count=7,
        counted_all=True,
        send_headers=False,
    ),
    ev.ReplayAdvanced(**BY, **REPLAY, partitions=(1,)),
    ev.ReplayPaused(**BY, **REPLAY, reason="asked for"),
    ev.ReplayResumed(**BY, **REPLAY),
    ev.ReplayCancelled(**BY, **REPLAY),
    ev.MessagePut(**BY, **QUEUE, **MESSAGE, name="delete", data='{"user": "ü", "quote": "\\""}', key="user-7"),
    ev.MessageUpdated(**BY, **QUEUE, **MESSAGE, partition=3, offset=42, if_version=1, data='{"user": "ö"}'),
    ev.MessageDeleted(**BY, **QUEUE, **MESSAGE, request_id="r-3", partition=3, offset=42, if_version=19),
    ev.ChangeApplied(
        **BY,
        **QUEUE,
        **MESSAGE,
        partition=3,
        change_offset=7,
        applied=True,
        listeners=((LISTENER["listener_id"], "delivered"), ("l-2", "pending")),
    ),
    ev.PartitionTakenOver(**BY, partition=3),
    ev.PartitionHandedOver(**BY, partition=3, in_doubt_below=40),
    ev.DeliveriesSettled(
        **BY, **QUEUE, **LISTENER, partition=3, rows=((41, 1_767_225_630_200, 200, 12), (44, 1_767_225_630_201, 204, 3))
    ),
    ev.AnswersKept(
        **BY,
        **QUEUE,
        **LISTENER,
        partition=3,
        attempts=((41, 1, "00ff", 3, 1_767_225_630_100, 2, 0, None), (44, 3, "", 0, 0, None, None, None)),
        answers=(
            (
                *("00ff", 422, (("content-type", "text/plain"),), "no such order", False),
                *("https://shop.example/hook?token=\u2026", (("webhook-signature", "\u2026"),)),
            ),
        ),
    ),
    ev.ListenerTested(
        **BY,
        **QUEUE,
        **LISTENER,
        **MESSAGE,
        partition=3,
        status=422,
        error=None,
        took_ms=12,
        dns_ms=None,
        connect_ms=1,
        tls_ms=7,
        answers=(
            (
                *("", 422, (("content-type", "text/plain"),), "no such order", False),
                *("https://shop.example/hook?token=\u2026", (("webhook-signature", "\u2026"),)),
            ),
        ),
    ),
    ev.LogDamaged(
        at_ms=1_767_225_630_000,
        organization_id="",
        actor="worker",
        topic="messages",
        partition=3,
        first_offset=40,
        last_offset=44,
    ),
    ev.LogMended(
        at_ms=1_767_225_640_000,
        organization_id="",
        actor="worker",
        topic="messages",
        partition=3,
        first_offset=40,
        last_offset=44,
        given_up=False,
    ),
    ev.AlertRaised(
        **BY,
        **QUEUE,
        **LISTENER,
        alert="listener.down",
        alert_id="a-1",
        began_at_ms=1_767_225_600_000,
        facts={"error": "refused", "lag": 12},
    ),
    ev.AlertCleared(
        **BY, key_id="k-2", alert="key.expiring", alert_id="a-2", began_at_ms=1_767_225_600_000, quiet=True
    ),
    ev.AlertTold(**BY, **MESSAGE, alert_id="a-1"),
    ev.DeliveryAttempted(
        **BY,
        **QUEUE,
        **LISTENER,
        **MESSAGE,
        partition=3,
        offset=42,
        number=2,
        outcome="failed",
        status=None,
        error="timeout",
        took_ms=15_001,
        next_at_ms=1_767_225_640_000,
    ),
    ev.DeliverySetAside(
        **BY,
        **QUEUE,
        **LISTENER,
        **MESSAGE,
        partition=3,
        offset=41,
        number=7,
        status=500,
        error=None,
        put_at_ms=1_767_225_600_000,
        name="m",
        data="d",
        next_at_ms=1_767_225_700_000,
    ),
    ev.DeliveryParked(
        **BY,
        **QUEUE,
        **LISTENER,
        **MESSAGE,
        partition=3,
        offset=43,
        number=12,
        status=500,
        error=None,
        put_at_ms=1_767_225_600_000,
        name="delete",
        data="{}",
        key=None,
    ),
    ev.StatisticsCounted(
        at_ms=1_767_225_665_000,
        organization_id="",
        actor="worker",
        after=7,
        ranges=(("deliveries", 3, 40, 44, 29_453_760), ("messages", 3, 41, 45, 29_453_760)),
        minutes=(
            (29_453_760, QUEUE["queue_id"], "", 4, 0, 0, 0, {}, ()),
            (
                29_453_760,
                QUEUE["queue_id"],
                LISTENER["listener_id"],
                0,
                3,
                1,
                45,
                {"422": 2, "timeout": 1},
                (0, 0, 0, 2, 1),
            ),
        ),
    ),
]


def golden_name(event: ev.Event) -> str:
    return f"{wire_name(type(event))}.v{event.v}.json"


def write_golden() -> None:
    """Add the records that are missing, and leave the others as they are."""
    for event in SAMPLES:
        path = GOLDEN / golden_name(event)
        if not path.exists():
            path.write_bytes(encode(event))


@pytest.mark.parametrize("kind", CLASSES.values(), ids=CLASSES)
def test_every_event_has_a_golden_record_of_each_of_its_versions(kind):
    name = wire_name(kind)
    assert sorted(path.name for path in FILES if re.fullmatch(re.escape(name) + r"\.v\d+\.json", path.name)) == sorted(
        f"{name}.v{version}.json" for version in range(1, VERSIONS[name] + 1)
    )


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_golden_record_is_read_as_the_event_it_names(path):
    event = decode(path.read_bytes())
    name, version = re.fullmatch(r"(.+)\.v(\d+)", path.stem).groups()
    assert type(event) is CLASSES[name]
    assert int(version) <= event.v == VERSIONS[name]


@pytest.mark.parametrize("event", SAMPLES, ids=golden_name)
def test_todays_version_is_written_as_it_was_but_for_fields_that_came_since(event):
    stored = (GOLDEN / golden_name(event)).read_bytes()
    assert decode(stored) == event
    assert_only_adds(orjson.loads(stored), orjson.loads(encode(event)))


def assert_only_adds(before, now):
    if not isinstance(before, dict):
        assert now == before
        return
    assert [name for name in now if name in before] == list(before)
    for name, value in before.items():
        assert_only_adds(value, now[name])


def test_every_event_type_is_among_the_samples():
    assert {wire_name(type(event)) for event in SAMPLES} == set(CLASSES)


# Any event

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
NUMBERS = st.integers(-(2**63), 2**63 - 1)
HEADERS = st.lists(st.tuples(TEXT, TEXT), max_size=3).map(tuple)
PLAIN = {
    str: TEXT,
    bool: st.booleans(),
    int: NUMBERS,
    str | None: st.none() | TEXT,
    int | None: st.none() | NUMBERS,
    str | msgspec.UnsetType: st.just(msgspec.UNSET) | TEXT,
    int | msgspec.UnsetType: st.just(msgspec.UNSET) | NUMBERS,
    tuple[str, ...]: st.lists(TEXT, max_size=3).map(tuple),
    tuple[str, ...] | None: st.none() | st.lists(TEXT, max_size=3).map(tuple),
    float | None: st.none() | st.floats(allow_nan=False, allow_infinity=False),
    tuple[int, ...] | msgspec.UnsetType: st.just(msgspec.UNSET) | st.lists(NUMBERS, max_size=3).map(tuple),
    tuple[tuple[str, int, int, int, int], ...]: st.lists(st.tuples(TEXT, *[NUMBERS] * 4), max_size=3).map(tuple),
    tuple[ev.StatisticsRow, ...]: st.lists(
        st.tuples(
            NUMBERS,
            *[TEXT] * 2,
            *[NUMBERS] * 4,
            st.dictionaries(TEXT, NUMBERS, max_size=3),
            st.lists(NUMBERS, max_size=3).map(tuple),
        ),
        max_size=3,
    ).map(tuple),
    tuple[int, ...]: st.lists(NUMBERS, max_size=3).map(tuple),
    tuple[ev.AnsweredAttempt, ...]: st.lists(
        st.tuples(*[NUMBERS] * 2, TEXT, *[NUMBERS] * 2, *[st.none() | NUMBERS] * 3), max_size=3
    ).map(tuple),
    tuple[ev.KeptAnswer, ...]: st.lists(
        st.tuples(TEXT, NUMBERS, HEADERS, TEXT, st.booleans(), TEXT, HEADERS), max_size=3
    ).map(tuple),
    tuple[tuple[int, int, int, int], ...]: st.lists(st.tuples(*[NUMBERS] * 4), max_size=3).map(tuple),
    tuple[tuple[str, str], ...]: st.lists(st.tuples(TEXT, TEXT), max_size=3).map(tuple),
    dict[str, str]: st.dictionaries(TEXT, TEXT, max_size=3),
    dict[str, int | str]: st.dictionaries(TEXT, NUMBERS | TEXT, max_size=3),
    ev.AlertThresholds | msgspec.UnsetType: st.just(msgspec.UNSET) | st.builds(ev.AlertThresholds),
    ev.BatchSetting | msgspec.UnsetType: st.just(msgspec.UNSET)
    | st.builds(ev.BatchSetting, **dict.fromkeys(ev.BatchSetting.__struct_fields__, NUMBERS)),
}


def any_of(kind: type) -> st.SearchStrategy:
    fields = msgspec.structs.fields(kind)
    return st.builds(
        kind,
        **{
            field.name: any_of(field.type)
            if field.type in (ListenerSettings, ev.AlertThresholds)
            else PLAIN[field.type]
            for field in fields
            if field.name != "v"
        },
    )


@settings(max_examples=15, deadline=None)
@pytest.mark.parametrize("kind", CLASSES.values(), ids=CLASSES)
@given(data=st.data())
def test_every_event_comes_back_as_it_was_written(kind, data):
    event = data.draw(any_of(kind))
    stored = encode(event)
    assert stored.startswith(b'{"type":"%b",' % wire_name(kind).encode())
    assert decode(stored) == event
    if kind is ev.MessagePut:
        assert decode_message(stored) == event


# What is no event that this program knows


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b"1",
        b'"queue.created"',
        b"{}",
        b'{"type":"queue.created"}',
        b'{"type":"queue.created","v":1}',
        b'{"v":1,"at_ms":1,"organization_id":"o","queue_id":"q","name":"n"}',
        b'{"type":"queue.exploded","v":1,"at_ms":1,"organization_id":"o"}',
        b'{"type":["queue.created"],"v":1}',
        b'{"type":{},"v":1}',
        b'{"type":"queue.created","v":0,"at_ms":1,"organization_id":"o","queue_id":"q","name":"n"}',
        b'{"type":"queue.created","v":99,"at_ms":1,"organization_id":"o","queue_id":"q","name":"n"}',
        b'{"type":"queue.created","v":"1","at_ms":1,"organization_id":"o","queue_id":"q","name":"n"}',
        b'{"type":"queue.created","v":null,"at_ms":1,"organization_id":"o","queue_id":"q","name":"n"}',
        b'{"type":"queue.created","v":1,"at_ms":"1","organization_id":"o","queue_id":"q","name":"n"}',
        b'{"type":"queue.created","v":1,"at_ms":1,"organization_id":"o","queue_id":"q","name":null}',
        b'{"type":"queue.created","v":1,"at_ms":1,"organization_id":"o","queue_id":"q","name":"\xff"}',
        encode(next(one for one in SAMPLES if isinstance(one, ev.MessagePut))).replace(b'"data":"', b'"data":"\xff'),
        b'{"type":"message.put","v":1,"at_ms":1,"more":' + b"[" * 10_000 + b"]" * 10_000 + b"}",
        b'{"type":"queue.created","at_ms":1,"organization_id":"o","queue_id":"q","name":"n"}',
        b"[" * 10_000,
    ],
)
def test_what_this_program_does_not_know_is_an_unknown_event(value):
    with pytest.raises(UnknownEvent):
        decode(value)
    with pytest.raises(UnknownEvent):
        decode_message(value)


@settings(deadline=None)
@given(st.binary(max_size=200))
@example(b"\0\1\2")
def test_no_bytes_raise_anything_but_unknown_event(value):
    with pytest.raises(UnknownEvent):
        decode(value)


@pytest.mark.parametrize(
    "path", [path for path in FILES if not path.name.startswith("message.put.")], ids=lambda path: path.stem
)
def test_only_a_message_is_taken_from_the_messages_topic(path):
    with pytest.raises(UnknownEvent, match="does not belong in the topic messages"):
        decode_message(path.read_bytes())


def test_a_field_that_a_newer_program_added_is_passed_over():
    stored = encode(SAMPLES[0])
    assert decode(stored[:-1] + b',"colour":"blue"}') == SAMPLES[0]


# Upcasters


def test_a_record_of_an_old_version_comes_up_to_date_step_by_step(monkeypatch):
    def seconds_became_milliseconds(fields):
        seconds = fields.pop("at_s")
        return fields | {"at_ms": seconds * 1_000, "v": 2}

    def title_became_name(fields):
        title = fields.pop("title")
        return fields | {"name": title, "v": 3}

    monkeypatch.setitem(UPCASTERS, ("queue.created", 1), seconds_became_milliseconds)
    monkeypatch.setitem(UPCASTERS, ("queue.created", 2), title_became_name)
    monkeypatch.setitem(VERSIONS, "queue.created", 3)
    expected = ev.QueueCreated(at_ms=7_000, organization_id="o", queue_id="q", name="n", v=3)

    assert (
        decode(b'{"type":"queue.created","v":1,"at_s":7,"organization_id":"o","queue_id":"q","title":"n"}') == expected
    )
    assert (
        decode(b'{"type":"queue.created","v":2,"at_ms":7000,"organization_id":"o","queue_id":"q","title":"n"}')
        == expected
    )
    assert decode(encode(expected)) == expected


def test_an_old_message_is_upcast_on_the_hot_path_too(monkeypatch):
    def text_became_data(fields):
        text = fields.pop("text")
        return fields | {"data": text, "v": 2}

    monkeypatch.setitem(UPCASTERS, ("message.put", 1), text_became_data)
    monkeypatch.setitem(VERSIONS, "message.put", 2)
    old = b'{"type":"message.put","v":1,"at_ms":7,"organization_id":"o","message_id":"m","queue_id":"q","name":"n",'
    old += b'"text":"t"}'
    event = decode_message(old)
    assert (event.data, event.v) == ("t", 2)


def test_a_version_without_its_upcaster_is_an_unknown_event(monkeypatch):
    monkeypatch.setitem(VERSIONS, "queue.created", 2)
    with pytest.raises(UnknownEvent):
        decode(encode(ev.QueueCreated(at_ms=1, organization_id="o", queue_id="q", name="n")))


if __name__ == "__main__":
    write_golden()
