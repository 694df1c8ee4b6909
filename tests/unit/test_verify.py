"""A log that was tampered with is found out, where anything else in it tells."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self, get_args

import msgspec
import pytest

from broker.audit.verify import State, Verifier
from broker.core import codec
from broker.core import events as ev
from broker.core.checks import ControlChecks, Finding
from broker.core.codec import encode
from broker.core.cursor import Cursor
from broker.core.digests import digests, state_hash
from broker.core.directory import Directory
from broker.core.events import Event
from broker.core.ids import message_id
from broker.errors import LogDamaged
from broker.kafka.topics import topics
from broker.ports import EARLIEST, FetchResult, OffsetTooOld, Record
from broker.settings import KafkaSettings
from cli.commands.verify import differences
from tests.unit.test_events import SAMPLES

KAFKA = KafkaSettings(bootstrap="unused", partitions=2)
AT = 1_767_225_600_000
BY: dict[str, Any] = {"organization_id": "o1", "actor": "key:k", "request_id": "r"}
URLS = {"notify_url": "https://n.example", "liveness_url": "https://l.example"}


def message(number: int, partition: int, queue_id: str = "q1") -> ev.MessagePut:
    made = message_id(at_ms=AT + number, partition=partition, random_bits=number)
    return ev.MessagePut(**BY, at_ms=AT + number, message_id=made, queue_id=queue_id, name="m", data="d")


def attempted(partition: int, offset: int, put: ev.MessagePut, outcome: str, listener_id: str = "l1") -> Event:
    return ev.DeliveryAttempted(
        **BY, at_ms=AT + 90, listener_id=listener_id, queue_id=put.queue_id, message_id=put.message_id,
        partition=partition, offset=offset, number=1, outcome=outcome, status=500, error=None, took_ms=1,
        next_at_ms=None,
    )  # fmt: skip


def listener(listener_id: str) -> Event:
    where = {"name": listener_id, "sealed_secret": "x", "start_offsets": (1, 0)}
    return ev.ListenerCreated(**BY, **URLS, **where, at_ms=AT + 3, listener_id=listener_id, queue_id="q1")


def settled(partition: int, *offsets: int) -> Event:
    rows = tuple((offset, AT + 80, 200, 1) for offset in offsets)
    return ev.DeliveriesSettled(**BY, at_ms=AT + 90, listener_id="l1", queue_id="q1", partition=partition, rows=rows)


def key_of(topic: str, event: Any) -> bytes:
    if topic == "outstanding":
        return f"{event.listener_id}:{event.message_id}".encode()
    return (event.organization_id if topic == "control" else getattr(event, "message_id", "l1")).encode()


@dataclass
class Log:
    """What Verifier asks of KafkaRequests. records: by topic and partition. cursors: by listener and partition.

    meanwhile: what happens when a topic is first read.
    """

    records: dict[tuple[str, int], list[Record]] = field(default_factory=dict)
    cursors: dict[tuple[str, int], Cursor] = field(default_factory=dict)
    begins: dict[tuple[str, int], int] = field(default_factory=dict)
    ends: dict[tuple[str, int], int] = field(default_factory=dict)
    meanwhile: dict[str, Callable[[], None]] = field(default_factory=dict)
    damage: dict[tuple[str, int], tuple[int, int]] = field(default_factory=dict)
    bad_copies: tuple[()] = ()

    kafka: ClassVar[KafkaSettings] = KafkaSettings(bootstrap="none")

    async def check_copies(self, topic: str, partition: int, offset: int, end: int, **_: object) -> None:
        """There is one copy."""

    def leader(self, topic: str, partition: int) -> int:
        return 1

    tail: int = 0

    def add(self, topic: str, partition: int, *events: Event) -> None:
        here = self.records.setdefault((topic, partition), [])
        for event in events:
            here.append(Record(len(here), event.at_ms, key_of(topic, event), encode(event), ()))

    def set(self, topic: str, partition: int, events: Iterable[Event | Record]) -> None:
        """With offsets that follow each other, as a log that was copied has them."""
        self.records[topic, partition] = [
            Record(offset, one.timestamp, one.key, one.value, ())
            if isinstance(one, Record)
            else Record(offset, one.at_ms, key_of(topic, one), encode(one), ())
            for offset, one in enumerate(events)
        ]

    async def offsets(self, topic: str, at_ms: Mapping[int, int]) -> dict[int, int]:
        name = topic.removeprefix("everput.")
        return {
            number: self.begins.get((name, number), 0) if moment == EARLIEST else self._end(name, number)
            for number, moment in at_ms.items()
        }

    async def read(self, topic: str, partition: int, offset: int, *, bytes_max: int = 1) -> FetchResult:
        name = topic.removeprefix("everput.")
        self.meanwhile.pop(name, lambda: None)()
        if offset < self.begins.get((name, partition), 0):
            raise OffsetTooOld(name)
        first, last = self.damage.get((name, partition), (0, -1))
        if first <= offset <= last:
            raise LogDamaged(topic, partition, first, last)
        rest = [record for record in self.records[name, partition] if record.offset >= offset][:3]
        if offset < first <= last:
            rest = [record for record in rest if record.offset < first]
        return FetchResult(rest, rest[-1].offset + 1 if rest else offset, self._end(name, partition))

    def _end(self, name: str, partition: int) -> int:
        here = self.records.get((name, partition), [])
        return self.ends.get((name, partition), max((record.offset + 1 for record in here), default=0))

    @property
    def groups(self) -> Self:
        return self

    async def committed(self, group: str, topic: str, partitions: Iterable[int]) -> dict[int, tuple[int, str]]:
        listener_id = group.removeprefix("everput.listener.")
        found = {number: self.cursors.get((listener_id, number)) for number in partitions}
        return {number: (one.offset, one.metadata()) for number, one in found.items() if one is not None}


@pytest.fixture
def log() -> Log:
    """Two queues, a listener that got some at once, some later, one not yet."""
    made = Log()
    made.add(
        "control",
        0,
        ev.OrganizationCreated(**BY, at_ms=AT, name="o"),
        ev.KeyCreated(**BY, at_ms=AT, key_id="k", name="k", prefix="p", secret_sha256="s", scopes=()),
        ev.QueueCreated(**BY, at_ms=AT + 1, queue_id="q1", name="orders"),
        ev.QueueCreated(**BY, at_ms=AT + 2, queue_id="q2", name="others"),
        listener("l1"),
        ev.QueueRenamed(**BY, at_ms=AT + 4, queue_id="q2", name="orders"),  # lost: the name is taken
        ev.ListenerPaused(**BY, at_ms=AT + 5, listener_id="l1", reason="why"),
    )
    first = [message(number, 0) for number in range(5)]
    made.add("messages", 0, *first[:2], message(20, 0, "q2"), *first[2:])
    second = [message(number, 1) for number in range(3)]
    made.add("messages", 1, *second)
    made.add(
        "deliveries", 0, settled(0, 1, 3), attempted(0, 4, first[3], "failed"), attempted(0, 4, first[3], "delivered")
    )
    made.add("deliveries", 1, attempted(1, 0, second[0], "parked"))
    made.add(
        "outstanding",
        1,
        ev.DeliverySetAside(
            **BY,
            at_ms=AT + 95,
            listener_id="l1",
            queue_id="q1",
            message_id=second[1].message_id,
            partition=1,
            offset=1,
            number=3,
            status=500,
            error=None,
            put_at_ms=AT,
            name="m",
            data="d",
            next_at_ms=AT + 99,
        ),
    )
    made.cursors["l1", 0] = Cursor(top=6, open=(5,))
    made.cursors["l1", 1] = Cursor(top=2)
    return made


async def found(log: Log) -> list[str]:
    verifier = Verifier(KAFKA, log, topics(KAFKA), lambda _: None)  # type: ignore[arg-type]
    return [str(one) async for one in verifier.findings() if isinstance(one, Finding)]


def alter(records: list[Record], offset: int, **fields: Any) -> None:
    """A byte of the record has changed, and its checksum with it."""
    records[offset] = records[offset]._replace(**fields)


async def test_a_log_that_was_left_alone_is_whole(log: Log):
    assert await found(log) == []


async def test_what_an_api_process_has_stored_for_an_organization_is_whole_unless_nobody_made_that(log: Log):
    volume = {"at_ms": AT + 9, "bytes": 1_000}
    log.add("control", 0, ev.VolumeRecorded(organization_id="o1", **volume))
    assert await found(log) == []
    log.add("control", 0, ev.VolumeRecorded(organization_id="o2", **volume))
    assert await found(log) == ["control/0 offset 8: no earlier event created the organization o2"]


def test_every_event_of_control_can_be_checked():
    """Whatever is found: the rules know each type."""
    for offset, event in enumerate(one for one in SAMPLES if isinstance(one, get_args(ev.ControlEvent))):
        record = Record(offset, event.at_ms, event.organization_id.encode(), encode(event), ())
        list(ControlChecks(offset).check([record]))


async def test_an_invitation_is_created_before_other_events_name_it(log: Log):
    at = {**BY, "at_ms": AT + 6}
    log.add("control", 0, ev.InvitationRevoked(**at, invitation_id="i1"))
    assert any("no earlier event created the invitation i1" in one for one in await found(log))
    made = {"email": "bob@example.com", "token_sha256": "ab" * 32, "expires_at_ms": AT + 9}
    log.records["control", 0].pop()
    log.add("control", 0, ev.InvitationCreated(**at | {"actor": "shell"}, invitation_id="i1", **made))
    log.add("control", 0, ev.InvitationRevoked(**at, invitation_id="i1"))
    assert await found(log) == []


async def test_the_state_is_given_at_each_position_that_is_asked_for(log: Log):
    verifier = Verifier(KAFKA, log, topics(KAFKA), lambda _: None)  # type: ignore[arg-type]
    states = [one async for one in verifier.findings({0, 3, 7}) if isinstance(one, State)]
    assert [one.position for one in states] == [0, 3, 7]
    assert "queue q1" in states[1].digests
    assert "queue q2" not in states[1].digests
    assert len({one.sha256 for one in states}) == 3
    assert state_hash(verifier.control.state) == states[2].sha256


async def test_what_is_told_of_a_message_that_may_have_gone_is_let_alone(log: Log):
    gone = log.records["messages", 0][0]
    log.begins["messages", 0] = 2
    log.records["messages", 0] = log.records["messages", 0][2:]
    applied = ev.ChangeApplied(
        **BY, at_ms=AT, queue_id="q1", message_id=(gone.key or b"").decode(), partition=0, change_offset=0,
        applied=True, listeners=(),
    )  # fmt: skip
    log.add("deliveries", 0, applied)
    assert len(await found(log)) == 1  # that the log begins at 2


@pytest.mark.parametrize("topic", ["control", "messages", "deliveries"])
async def test_a_record_that_is_gone_leaves_a_gap(log: Log, topic: str):
    del log.records[topic, 0][1]
    assert any(f"{topic}/0 offset 2: the records from offset 1 on are missing" in one for one in await found(log))


async def test_records_that_are_gone_from_the_end_are_missed(log: Log):
    log.ends["deliveries", 0] = 5
    assert "deliveries/0 offset 3: the records from here on are missing" in await found(log)
    log.ends["outstanding", 0] = 2  # compacted: nothing need be left
    log.records["outstanding", 0] = []
    assert not any(one.startswith("outstanding") for one in await found(log))


async def test_records_before_the_log_s_beginning_are_not_spoken_of_as_checked(log: Log):
    log.begins["messages", 0] = 2
    log.records["messages", 0] = log.records["messages", 0][2:]
    assert await found(log) == ["messages/0: the first record has offset 2: earlier records can't be checked"]


@pytest.mark.parametrize(
    ("removed", "said"),
    [
        (0, "created the organization o1"),  # the key is made in an organization that never was
        (2, "no event created the queue q1 of the organization o1"),
        (4, "no earlier event created the listener l1"),
    ],
)
async def test_what_was_removed_from_control_without_a_gap_is_missed_by_what_speaks_of_it(
    log: Log, removed: int, said: str
):
    if removed == 0:
        joined = ev.OrganizationJoined(**BY, at_ms=AT + 6, account_id="a")
        log.add("control", 0, joined)
    kept = [record for record in log.records["control", 0] if record.offset != removed]
    log.set("control", 0, kept)
    assert any(said in one for one in await found(log))


async def test_a_message_that_was_removed_or_inserted_shifts_the_others_away_from_what_was_told_of_them(log: Log):
    kept = log.records["messages", 0]
    log.set("messages", 0, kept[:1] + kept[2:])
    assert any("is not at offset 4" in one for one in await found(log))
    log.set("messages", 0, [message(30, 0, "q2"), *kept])
    assert any("is not at offset 4" in one for one in await found(log))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"message_id": message(9, 1).message_id}, "names partition 1"),
        ({"message_id": "nonsense"}, "the message id nonsense is not valid"),
        ({"queue_id": "q3"}, "created the queue q3"),
        ({"organization_id": "o2"}, "of the organization o2"),
        ({"at_ms": AT - 3_600_000}, "before the record's time"),
        ({"v": 99}, "newer than this program"),
        ({"actor": ""}, "has no actor"),
        ({"request_id": ""}, "or no request id"),
        ({"queue_id": "q2"}, "no message of the queue q1 is at offset 3"),
    ],
)
async def test_a_message_that_was_altered_contradicts_its_place_or_what_speaks_of_it(
    log: Log, changes: dict[str, Any], said: str
):
    records = log.records["messages", 0]
    event = msgspec.structs.replace(codec.decode(records[3].value or b""), **changes)
    alter(records, 3, value=encode(event))
    assert any(said in one for one in await found(log))


async def test_the_same_message_twice_is_told(log: Log):
    log.add("messages", 1, message(0, 1))
    assert any("is already stored at offset 0" in one for one in await found(log))


async def test_a_time_that_goes_back_is_told(log: Log):
    records = log.records["control", 0]
    alter(records, 1, timestamp=records[1].timestamp + 3_600_000)
    assert any("before that of an earlier record" in one for one in await found(log))


async def test_a_cursor_that_has_passed_a_message_of_which_no_outcome_is_told(log: Log):
    log.cursors["l1", 1] = Cursor(top=3)
    assert await found(log) == [
        (
            "deliveries/1: the listener l1 has no recorded outcome for 1 message(s) below its cursor, "
            "the first at offset 2 of messages/1"
        )
    ]
    log.cursors["l1", 1] = Cursor(top=9)
    assert "messages/1: the cursor of the listener l1 is at 9, after the end of the topic" in await found(log)


async def test_an_outcome_that_was_removed_is_missed(log: Log):
    log.set("deliveries", 0, log.records["deliveries", 0][1:])
    assert any("has no recorded outcome for 2 message(s)" in one for one in await found(log))


async def test_what_nothing_else_repeats_is_not_found_out(log: Log):
    """Verify says so, too: there is no chain of hashes."""
    records = log.records["messages", 0]
    event = msgspec.structs.replace(codec.decode(records[3].value or b""), data="altered")
    alter(records, 3, value=encode(event))
    assert await found(log) == []


def applied(message_id: str, change_offset: int = 0, **more: Any) -> Event:
    return ev.ChangeApplied(
        **{**BY, "at_ms": AT + 90, "queue_id": "q1", "partition": 0, "applied": True, "listeners": (), **more},
        message_id=message_id, change_offset=change_offset,
    )  # fmt: skip


def changed(put: ev.MessagePut, offset: int) -> Event:
    return ev.MessageUpdated(
        **BY, at_ms=AT + 60, message_id=put.message_id, queue_id="q1", partition=0, offset=offset, data="new"
    )


def set_aside(put: ev.MessagePut, offset: int, **more: Any) -> Event:
    fields = {**BY, "at_ms": AT + 95, "listener_id": "l1", "queue_id": "q1", "partition": 0, "number": 1, **more}
    return ev.DeliverySetAside(
        **fields, message_id=put.message_id, offset=offset, status=500, error=None, put_at_ms=AT, name="m", data="d",
        next_at_ms=AT + 99,
    )  # fmt: skip


def replay_of(end: int, **more: Any) -> Event:
    fields = dict.fromkeys(("notify_url", "liveness_url", "rate_per_s", "picked")) | more
    return ev.ReplayStarted(
        **BY, **fields, at_ms=AT + 7, replay_id="r2", listener_id="l1", from_ms=0, to_ms=AT, only="all",
        start_offsets=(0, 0), end_offsets=(end, 3), before_offsets=(0, 0), count=9, counted_all=True,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("topic", "inserted", "said"),
    [
        ("deliveries", attempted(0, 1, message(1, 0), "delivered", "l9"), "no event created a listener or replay l9"),
        ("deliveries", settled(1, 1), "the event names partition 1"),
        ("deliveries", message(1, 0), "the event message.put does not belong in the topic deliveries"),
        ("deliveries", applied(message(7, 0).message_id, 9), "is not in this partition"),
        (
            "deliveries",
            applied(message(1, 0).message_id, organization_id="o2"),
            "does not belong to the organization o2",
        ),
        ("deliveries", applied(message(2, 0).message_id), "offset 0 of changes/0 is no change of the message"),
        (
            "changes",
            ev.QueueDeleted(**BY, at_ms=AT, queue_id="q1"),
            "the event queue.deleted does not belong in the topic changes",
        ),
        ("changes", changed(message(3, 0), 3), "is not at offset 3"),
        (
            "outstanding",
            set_aside(message(20, 0, "q2"), 2, queue_id="q2"),
            "the listener or replay l1 does not belong to the queue q2",
        ),
        ("outstanding", set_aside(message(1, 0), 1, partition=1), "the event names partition 1"),
        ("control", ev.ReplayPaused(**BY, at_ms=AT + 6, replay_id="r1", reason="why"), "created the replay r1"),
        ("control", settled(0, 1), "the event deliveries.settled does not belong in the topic control"),
    ],
)
async def test_what_was_inserted_contradicts_what_is_there(log: Log, topic: str, inserted: Event, said: str):
    log.add("changes", 0, changed(message(1, 0), 1))
    assert await found(log) == []
    log.add(topic, 0, inserted)
    assert [said in one for one in await found(log)] == [True]


@pytest.mark.parametrize(
    ("topic", "spoken", "said"),
    [
        ("deliveries", settled(0, 4, 5), "no message of the queue q1 is at offset 5"),
        ("deliveries", attempted(0, 5, message(4, 0), "failed"), "is not at offset 5"),
        ("deliveries", applied(message(4, 0).message_id, 9), "is not in this partition"),
        ("changes", changed(message(4, 0), 5), "is not at offset 5"),
        ("outstanding", set_aside(message(4, 0), 5), "is not at offset 5"),
    ],
)
async def test_messages_that_are_gone_from_the_end_are_missed_by_what_speaks_of_them(
    log: Log, topic: str, spoken: Event, said: str
):
    log.add("control", 0, ev.ListenerDeleted(**BY, at_ms=AT + 6, listener_id="l1"))  # so no cursor is beyond the end
    log.add(topic, 0, spoken)
    assert await found(log) == []
    log.set("messages", 0, log.records["messages", 0][:5])
    assert [said in one for one in await found(log)] == [True]


async def test_messages_that_are_gone_from_the_end_are_missed_where_a_listener_was_to_begin_behind_them(log: Log):
    late = msgspec.structs.replace(listener("l2"), start_offsets=(6, 3))
    log.add("control", 0, late, ev.ListenerDeleted(**BY, at_ms=AT + 6, listener_id="l2"))
    assert await found(log) == []
    log.set("messages", 1, log.records["messages", 1][:2])
    assert await found(log) == ["messages/1: the listener l2 names offset 3, after the end of the topic"]


@pytest.mark.parametrize(("picked", "passed"), [(None, 3), (("AA", ""), 1)])
async def test_a_replay_s_cursor_that_has_passed_a_message_of_which_no_outcome_is_told(
    log: Log, picked: tuple[str, ...] | None, passed: int
):
    log.add("control", 0, replay_of(6, picked=picked))
    log.add("deliveries", 0, attempted(0, 1, message(1, 0), "delivered", "r2"))
    log.cursors["r2", 0] = Cursor(top=6, open=(5,))
    assert await found(log) == [
        (
            f"deliveries/0: the replay r2 has no recorded outcome for {passed} message(s) below its cursor, "
            "the first at offset 0 of messages/0"
        )
    ]
    log.add("deliveries", 0, *(attempted(0, at, message(at, 0), "delivered", "r2") for at in (0,)))
    log.add("deliveries", 0, *(attempted(0, at, message(at - 1, 0), "delivered", "r2") for at in (3, 4)))
    assert await found(log) == []
    log.set("messages", 0, log.records["messages", 0][:4])
    assert "messages/0: the cursor of the replay r2 is at 6, after the end of the topic" in await found(log)


@pytest.mark.parametrize(("topic", "partition"), [("deliveries", 0), ("deliveries", 1), ("outstanding", 1)])
async def test_a_key_that_is_another_s_is_told(log: Log, topic: str, partition: int):
    records = log.records[topic, partition]
    alter(records, 0, key=b"another")
    assert await found(log) == [f"{topic}/{partition} offset 0: its record key does not match its event"]


async def test_what_was_made_while_it_was_read_is_nothing_wrong(log: Log):
    new = message(40, 0)

    def later() -> None:
        log.add("control", 0, listener("l2"), ev.QueueCreated(**BY, at_ms=AT + 7, queue_id="q3", name="new"))
        log.add("control", 0, replay_of(6))
        log.add("messages", 0, new, message(41, 0), message(42, 0, "q3"))
        log.add("changes", 0, changed(new, 6))
        log.add("outstanding", 0, set_aside(message(41, 0), 7))
        log.add("deliveries", 0, applied(new.message_id, 0), attempted(0, 6, new, "delivered", "l2"), settled(0, 6, 7))
        log.add("deliveries", 0, attempted(0, 0, message(0, 0), "delivered", "r2"))

    log.meanwhile["messages"] = later
    assert await found(log) == []


async def test_what_is_spoken_of_and_was_not_put_meanwhile_is_wrong(log: Log):
    def later() -> None:
        log.add("messages", 0, message(40, 0, "q2"))
        log.add("deliveries", 0, settled(0, 6), attempted(0, 6, message(41, 0), "failed"), settled(0, 7))

    log.meanwhile["messages"] = later
    assert await found(log) == [
        "deliveries/0 offset 3: no message of the queue q1 is at offset 6",
        f"deliveries/0 offset 4: the message {message(41, 0).message_id} is not at offset 6",
        "deliveries/0 offset 5: no message of the queue q1 is at offset 7",
    ]


async def test_what_is_owed_may_move_and_be_compacted_while_it_is_read(log: Log):
    second = [message(number, 1) for number in range(3)]

    def later() -> None:
        again = log.records["outstanding", 1][0]
        log.records["outstanding", 1] = [again._replace(offset=offset) for offset in (1, 2)]

    log.meanwhile["outstanding"] = later
    log.cursors["l1", 1] = Cursor(top=2)
    log.set("deliveries", 1, [attempted(1, 0, second[0], "parked")])
    assert await found(log) == []


async def test_retention_that_takes_what_is_being_read_is_said_and_no_more(log: Log):
    def take(topic: str, begin: int) -> None:
        log.begins[topic, 0] = begin
        log.records[topic, 0] = [record for record in log.records[topic, 0] if record.offset >= begin]

    def later() -> None:
        take("messages", 5)
        log.meanwhile["deliveries"] = lambda: take("deliveries", 2)

    log.meanwhile["messages"] = later
    assert await found(log) == [
        "messages/0: the records before offset 5 were deleted during the check",
        "deliveries/0: the records before offset 2 were deleted during the check",
    ]


async def test_what_a_worker_writes_may_have_waited_for_kafka_but_is_not_of_the_future(log: Log):
    records = log.records["deliveries", 1]
    alter(records, 0, timestamp=records[0].timestamp + 3_600_000)
    assert await found(log) == []
    alter(records, 0, timestamp=records[0].timestamp - 2 * 3_600_000)
    assert any("the event's time is -3600000 ms before" in one for one in await found(log))


async def test_a_last_event_that_nothing_speaks_of_may_be_gone_or_made_up(log: Log):
    """Decision 0091 says so, too. The state of a process that knows better is another."""
    log.set("control", 0, log.records["control", 0][:-1])
    assert await found(log) == []
    log.add("control", 0, ev.QueueCreated(**BY, at_ms=AT + 9, queue_id="q9", name="made up"))
    assert await found(log) == []


def states(log: Log) -> tuple[dict[str, Any], State]:
    """What a process says that folded this `control`, and what verify does."""
    state = Directory()
    for record in log.records["control", 0]:
        state.apply(codec.decode(record.value or b""))
    made = State(len(log.records["control", 0]), state_hash(state), digests(state))
    return {"position": made.position, "sha256": made.sha256, "digests": made.digests}, made


@pytest.mark.parametrize(
    ("altered", "said"),
    [
        ({}, []),
        ({6: {"reason": "another"}}, ["listener l1 is another there in paused, with the hash"]),
        ({5: {"name": "free"}}, ["queue q2 is another there in name, with the hash"]),
        ({4: {"start_offsets": (0, 0)}}, ["listener l1 is another there in start_offsets, with the hash"]),
        ({4: {"listener_id": "l0"}, 6: {"listener_id": "l0"}}, ["listener l0 is not in the log, and 2 more differ"]),
        ({3: {"queue_id": "q3"}, 5: {"queue_id": "q3"}}, ["queue q2 is missing there, and 1 more differ"]),
        ({1: {"secret_sha256": "t"}}, ["key k is another there in secret_sha256, with the hash"]),
        ({0: {"name": "p"}}, ["organization o1 is another there in name, with the hash"]),
    ],
)
async def test_the_first_thing_that_differs_is_named_with_its_field(
    log: Log, altered: dict[int, dict[str, Any]], said: list[str]
):
    _, state = states(log)
    records = log.records["control", 0]
    for offset, changes in altered.items():
        event = msgspec.structs.replace(codec.decode(records[offset].value or b""), **changes)
        alter(records, offset, value=encode(event))
    live, _ = states(log)
    told = [re.sub(r"hash [0-9a-f]{8} and not [0-9a-f]{8}", "hash", one) for one in differences("api-1", live, state)]
    assert told == [f"api-1 differs from the log at offset {len(records)} of control: {what}" for what in said]


@pytest.mark.parametrize("value", [None, b"", b"{}", b"\0"])
async def test_what_is_no_event_is_told(log: Log, value: bytes | None):
    records = log.records["deliveries", 1]
    alter(records, 0, value=value)
    assert any(one.startswith("deliveries/1 offset 0: ") for one in await found(log))


@pytest.mark.parametrize(
    ("topic", "partition"), [("control", 0), ("messages", 0), ("changes", 0), ("deliveries", 1), ("outstanding", 0)]
)
async def test_what_can_t_be_read_is_named_and_what_speaks_of_it_is_not_wrong_for_that(
    log: Log, topic: str, partition: int
):
    rows = log.records.setdefault((topic, partition), [])
    end = len(rows)
    log.damage[topic, partition] = (max(0, end - 1), max(0, end - 1))
    log.ends[topic, partition] = max(1, end)
    here = f"{topic}/{partition} offset {max(0, end - 1)}: this record is altered or missing"
    told = [one for one in await found(log) if not one.startswith(here)]
    assert len(told) < len(await found(log))
    if topic == "messages":
        assert told == []


async def test_the_size_is_what_the_reads_of_a_check_add_up_to(log: Log):
    log.records["claims", 1] = [Record(number, 1, b"k", b"v", ()) for number in range(5)]
    reads: list[int] = []
    verifier = Verifier(KAFKA, log, topics(KAFKA), reads.append)  # type: ignore[arg-type]
    size = await verifier.size()
    assert [one async for one in verifier.findings()] == []
    assert size == sum(reads) == sum(map(len, log.records.values()))


async def test_claims_that_can_t_be_read_are_named(log: Log):
    log.records["claims", 1] = [Record(number, 1, b"k", b"v", ()) for number in range(5)]
    log.damage["claims", 1] = (3, 4)
    assert await found(log) == [
        "claims/1 offset 3: the records from here to offset 4 are altered or missing: see `everput mend`"
    ]


async def test_a_worker_s_own_place_misses_what_is_gone_from_the_end(log: Log):
    log.cursors["everput.workers", 0] = Cursor(top=99)
    assert [one for one in await found(log) if "after the end" in one] == [
        "messages/0: the workers have read to offset 99, after the end at 6"
    ]


async def test_a_log_that_begins_after_what_a_listener_has_settled_has_lost_something(log: Log):
    log.cursors["l1", 0] = Cursor(top=0)
    log.begins["messages", 0] = 1
    log.records["messages", 0] = log.records["messages", 0][1:]
    assert any(
        "messages/0: the log begins at offset 1, but the listener l1 has settled nothing from 0 on" in one
        for one in await found(log)
    )
