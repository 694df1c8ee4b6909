"""Readings of the log in one process: what they read, how they take turns, what they hold."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from memory import MemoryControl

from broker.audit.pace import Others, Pace
from broker.audit.reader import LogReader, Range, ReaderTuning, Slice, WrongCursor
from broker.core import codec
from broker.core import events as ev
from broker.core.catalogue import TOPICS
from broker.core.codec import encode
from broker.core.events import Event
from broker.core.ids import message_id
from broker.core.logorder import PageToken
from broker.core.replays import pick
from broker.core.selection import MessagePosition, Selection
from broker.errors import Busy, NotFound
from broker.kafka.topics import topics
from broker.ports import EARLIEST, LATEST, FetchResult, OffsetTooOld, Record
from broker.settings import KafkaSettings

TABLE = topics(KafkaSettings(bootstrap="unused", partitions=2))
AT = 1_700_000_000_000
OURS, THEIRS = "0b8f3c1e-6d0a-4b7e-9f55-0a3c2c9d7e11", "5f0e6f0a-33c1-4a8e-8f1d-b5b9f6f0c001"
BY: dict[str, Any] = {"organization_id": OURS, "at_ms": AT}
QUEUE = ev.QueueCreated(**BY, queue_id="q", name="orders")


class Log:
    """audit.records.Records: ten records a read. begins: what was removed from a partition lies before it.

    view: `control` folded. tuning: of its readers; other numbers than ReaderTuning has.
    """

    def __init__(self, **tuning: int) -> None:
        self.tuning = ReaderTuning(settle_ms=0, **tuning)
        self.view = MemoryControl()
        self.records: dict[tuple[str, int], list[Record]] = {}
        self.begins: dict[tuple[str, int], int] = {}
        self.read_of: list[tuple[str, int, int]] = []
        self.left_out = 0

    def add(self, topic: str, partition: int, *events: Event) -> None:
        here = self.records.setdefault((topic, partition), [])
        for event in events:
            here.append(Record(len(here), event.at_ms, None, encode(event), ()))
            if topic == "control":
                self.view.state.apply(event)

    async def offsets(self, topic: str, at_ms: Mapping[int, int]) -> dict[int, int]:
        found = {}
        for partition, moment in at_ms.items():
            place = topic.removeprefix("everput."), partition
            begin = self.begins.get(place, 0)
            here = self.records.get(place, [])
            later = (one.offset for one in here[begin:] if one.timestamp >= moment)
            found[partition] = {EARLIEST: begin, LATEST: len(here)}.get(moment, next(later, -1))
        return found

    async def read(
        self,
        topic: str,
        partition: int,
        offset: int,
        *,
        bytes_max: int = 1,
        worth: Callable[[bytes], bool] | None = None,
    ) -> FetchResult:
        place = topic.removeprefix("everput."), partition
        if offset < self.begins.get(place, 0):
            raise OffsetTooOld("gone")
        self.read_of.append((*place, offset))
        here = self.records[place]
        some = here[offset : offset + (1 if bytes_max == 1 else 10)]
        await asyncio.sleep(0)
        if worth is not None and not worth(b"".join(one.value or b"" for one in some)):
            self.left_out += len(some)
            return FetchResult([], offset + len(some), len(here), left_out_ms=max(one.timestamp for one in some))
        return FetchResult(some, offset + len(some), len(here), sum(len(one.value or b"") for one in some))


def put(number: int, partition: int = 0, organization_id: str = OURS, data: str = "d") -> ev.MessagePut:
    made = message_id(at_ms=AT + number, partition=partition, random_bits=number)
    return ev.MessagePut(
        at_ms=AT + number, organization_id=organization_id, message_id=made, queue_id="q", name="m", data=data
    )


async def read(log: Log, wanted: Selection, span: Range | None = None) -> list[Slice]:
    async with aclosing(LogReader(log, TABLE, log.view, log.tuning).read(wanted, span or Range())) as slices:
        return [one async for one in slices]


def story_of(log: Log, offset: int, partition: int = 0) -> Selection:
    event = codec.decode(log.records["messages", partition][offset].value or b"")
    assert isinstance(event, ev.MessagePut)
    place = MessagePosition(id=event.message_id, queue_id="q", at_ms=event.at_ms, partition=partition, offset=offset)
    return Selection(organization_id=OURS, message=place)


async def test_the_story_of_a_message_reads_the_message_and_not_those_after_it():
    log = Log()
    log.add("messages", 0, *(put(number) for number in range(500)))
    (told,) = [entry for one in await read(log, story_of(log, 57), Range(begin_ms=AT)) for entry in one.entries]
    assert (told.offset, told.log_ms) == (57, AT + 57)
    assert [offset for topic, _, offset in log.read_of if topic == "messages"] == [57]


async def test_a_message_s_place_in_its_story_is_that_in_the_log_though_an_earlier_record_has_a_later_time():
    log = Log()
    log.add("messages", 0, put(0), put(90), put(30), put(40), put(95))
    whole = {
        one.offset: one.log_ms for part in await read(log, Selection(organization_id=OURS)) for one in part.entries
    }
    assert whole[2] == whole[3] == AT + 90
    for offset, log_ms in whole.items():
        slices = await read(log, story_of(log, offset), Range(begin_ms=AT - 60_000))
        assert [(one.offset, one.log_ms) for part in slices for one in part.entries] == [(offset, log_ms)]


async def test_a_story_that_is_wanted_from_a_later_time_on_does_not_have_what_was_before():
    log = Log()
    log.add("messages", 0, *(put(number) for number in range(20)))
    slices = await read(log, story_of(log, 5), Range(begin_ms=AT + 6))
    assert [one.entries for one in slices] == [[]]
    assert slices[-1].complete


async def test_a_slice_in_which_nothing_was_wanted_says_all_the_same_where_to_go_on():
    log = Log(slice_reads=2)
    log.add("messages", 1, *(put(number, 1, THEIRS) for number in range(95)), put(95, 1))
    wanted = Selection(organization_id=OURS)
    slices = await read(log, wanted)
    assert sum(not one.entries for one in slices) >= 3
    for number, one in enumerate(slices):
        if not one.entries:
            log.read_of.clear()
            again = await read(log, wanted, Range(page_token=one.page_token))
            assert [entry.offset for part in again for entry in part.entries] == [95]
            assert min(offset for topic, _, offset in log.read_of if topic == "messages") == min(95, 20 * (number + 1))


async def test_a_cursor_of_other_topics_or_of_another_messages_partition_is_refused():
    """Though there are as many partitions: its offsets would be taken for theirs, and events skipped."""
    log = Log(slice_events=1)
    log.add("messages", 0, *(put(number) for number in range(9)))
    log.add("messages", 1, *(put(number, 1) for number in range(9)))
    types = frozenset({"message.put"}), frozenset({"message.updated"})
    puts, updates = (Selection(organization_id=OURS, types=one) for one in types)
    (page_token, *_) = [one.page_token for one in await read(log, puts)]
    assert await read(log, puts, Range(page_token=page_token))
    with pytest.raises(WrongCursor, match="other filters"):
        await read(log, updates, Range(page_token=page_token))
    (page_token, *_) = [one.page_token for one in await read(log, story_of(log, 5))]
    assert await read(log, story_of(log, 6), Range(page_token=page_token))
    with pytest.raises(WrongCursor, match="other filters"):
        await read(log, story_of(log, 5, 1), Range(page_token=page_token))


async def test_organizations_take_turns_however_many_readings_one_of_them_has():
    log = Log(slice_events=1)
    for number in range(60):
        log.add("messages", 0, put(number, 0, OURS if number % 2 else THEIRS))
    reader = LogReader(log, TABLE, log.view, log.tuning)
    order: list[str] = []

    async def follow(organization_id: str) -> None:
        async with aclosing(reader.read(Selection(organization_id=organization_id), Range())) as slices:
            async for one in slices:
                order.extend(organization_id for _ in one.entries)

    await asyncio.gather(*(follow(THEIRS) for _ in range(8)), follow(OURS))
    ours = [place for place, of in enumerate(order) if of == OURS]
    assert len(ours) == 30
    assert max(ours) < 80  # not among the last of 270: every second turn was ours


async def test_what_is_removed_while_it_is_about_to_be_read_is_left_out():
    log = Log()
    log.add("messages", 0, *(put(number) for number in range(100)))
    reader = LogReader(log, TABLE, log.view, log.tuning)
    offsets: list[int] = []
    async with aclosing(reader.read(Selection(organization_id=OURS), Range(limit=50))) as slices:
        async for one in slices:
            offsets += [entry.offset for entry in one.entries]
            page_token = one.page_token
    log.begins["messages", 0] = 70
    async with aclosing(reader.read(Selection(organization_id=OURS), Range(page_token=page_token))) as slices:
        offsets += [entry.offset async for one in slices for entry in one.entries]
    assert offsets == [*range(50), *range(70, 100)]


async def test_what_is_removed_under_a_reading_is_left_out():
    log = Log(slice_events=5)
    log.add("messages", 0, *(put(number) for number in range(100)))
    offsets: list[int] = []
    async with aclosing(
        LogReader(log, TABLE, log.view, log.tuning).read(Selection(organization_id=OURS), Range())
    ) as slices:
        async for one in slices:
            offsets += [entry.offset for entry in one.entries]
            log.begins["messages", 0] = 70
    assert offsets == [*range(20), *range(70, 100)]  # two stretches had been asked for


async def test_a_log_that_has_lost_its_end_ends_the_reading():
    log = Log()
    log.add("messages", 0, *(put(number) for number in range(20)))
    real = log.read

    async def shorter(topic: str, partition: int, offset: int, **more: Any) -> FetchResult:
        if offset >= 10:
            raise OffsetTooOld("partition 0 can't be read from there")
        return await real(topic, partition, offset, **more)

    log.read = shorter
    with pytest.raises(OffsetTooOld):
        await read(log, Selection(organization_id=OURS))


@pytest.mark.parametrize("rest_bytes_max", [0, 2_000, 1 << 20])
async def test_no_more_is_held_than_may_be_and_what_is_too_large_is_read_again(rest_bytes_max: int):
    log = Log(rest_bytes_max=rest_bytes_max, held_bytes_max=2_000, share_bytes_min=500)
    for number in range(40):
        log.add("messages", 0, put(2 * number, 0, data="x" * (900 if number % 7 == 0 else 50)))
        log.add("messages", 1, put(2 * number + 1, 1))
    entries = [entry for one in await read(log, Selection(organization_id=OURS)) for entry in one.entries]
    assert [entry.log_ms for entry in entries] == [AT + number for number in range(80)]
    large = [entry.event for entry in entries if isinstance(entry.event, ev.MessagePut) and len(entry.event.data) > 500]
    assert len(large) == 6


async def test_what_is_read_too_early_is_not_read_again_and_nothing_of_it_stays_behind():
    log = Log(held_bytes_max=1_000, share_bytes_min=500)
    log.add("messages", 0, *(put(number) for number in range(50)))
    reader = LogReader(log, TABLE, log.view, log.tuning)
    async with aclosing(reader.read(Selection(organization_id=OURS), Range())) as slices:
        assert sum([len(one.entries) async for one in slices]) == 50
    assert [offset for topic, _, offset in log.read_of if topic == "messages"] == [0, 10, 20, 30, 40]
    async with aclosing(reader.read(Selection(organization_id=OURS), Range(limit=1))) as slices:
        await anext(slices)
        assert reader.rests.bytes > 0
    assert reader.rests.bytes == 0


async def test_what_can_t_be_wanted_is_left_out_and_decides_the_order_all_the_same():
    log = Log()
    for number in range(100):  # ten in a read; of the third read none is ours, but its times are later
        at = number + (50 if 20 <= number < 30 else 0)
        log.add("messages", 0, put(at, 0, THEIRS if 20 <= number < 30 or number % 2 else OURS))
        log.add("messages", 1, put(at, 1, THEIRS))
    slices = await read(log, Selection(organization_id=OURS), Range(limit=12))
    rest = await read(log, Selection(organization_id=OURS), Range(page_token=slices[-1].page_token))
    entries = [entry for one in [*slices, *rest] for entry in one.entries]
    assert [entry.offset for entry in entries] == [*range(0, 20, 2), *range(30, 100, 2)]
    assert [entry.log_ms - AT for entry in entries] == [*range(0, 20, 2), *(max(79, n) for n in range(30, 100, 2))]
    assert log.left_out >= 110


async def test_a_listener_s_events_are_not_looked_for_where_there_are_none():
    log = Log()
    log.add("control", 0, QUEUE, listener("l"))
    log.add("messages", 0, *(put(number) for number in range(100)))
    assert [len(one.entries) for one in await read(log, Selection(organization_id=OURS, listener_id="l"))] == [1]
    assert not any(topic == "messages" for topic, *_ in log.read_of)


async def test_a_queue_s_readings_are_counted_while_its_listeners_are_looked_for():
    log = Log(open_each_max=1)
    log.add("control", 0, QUEUE)
    reader = LogReader(log, TABLE, log.view, log.tuning)

    def of_queue() -> AsyncGenerator[Slice, None]:
        return reader.read(Selection(organization_id=OURS, queue_id="q"), Range())

    async with aclosing(of_queue()) as one, aclosing(of_queue()) as other:
        first = asyncio.create_task(anext(one))
        await asyncio.sleep(0)
        with pytest.raises(Busy):
            await anext(other)
        assert (await first).complete


def listener(listener_id: str, queue_id: str = "q", **more: Any) -> ev.ListenerCreated:
    return ev.ListenerCreated(
        **{**BY, **more}, listener_id=listener_id, queue_id=queue_id, name=listener_id, notify_url="https://n.example",
        liveness_url="https://l.example", sealed_secret="s", start_offsets=(0, 0),
    )  # fmt: skip


def redriven(at_ms: int, listener_id: str, *message_ids: str) -> ev.ListenerRedriven:
    return ev.ListenerRedriven(organization_id=OURS, at_ms=at_ms, listener_id=listener_id, message_ids=message_ids)


def replayed(listener_id: str, begin: int, end: int, picked: tuple[int, ...] | None = None) -> ev.ReplayStarted:
    return ev.ReplayStarted(
        organization_id=OURS, at_ms=AT + 900, replay_id=f"r-{begin}-{end}", listener_id=listener_id, from_ms=0,
        to_ms=1, only="all", notify_url=None, liveness_url=None, rate_per_s=None, start_offsets=(begin, 0),
        end_offsets=(end, 0), before_offsets=(begin, 0), count=1, counted_all=True,
        picked=None if picked is None else (pick(picked), pick(())),
    )  # fmt: skip


def attempt(at_ms: int, message: ev.MessagePut, offset: int, outcome: str, listener_id: str = "l") -> Event:
    return ev.DeliveryAttempted(
        organization_id=OURS, at_ms=at_ms, listener_id=listener_id, queue_id="q", message_id=message.message_id,
        partition=0, offset=offset, number=1, outcome=outcome, status=500, error=None, took_ms=1, next_at_ms=None,
    )  # fmt: skip


async def test_the_story_has_redrives_of_all_that_a_listener_owed_when_the_message_was_among_it():
    log = Log()
    messages = [put(number) for number in range(9)]
    log.add("messages", 0, *messages)
    at = AT + 100
    log.add("control", 0, QUEUE, listener("l"), listener("other"), listener("elsewhere", "q2"))
    log.add(
        "control",
        0,
        redriven(at + 5, "l"),  # before any attempt: nothing was parked
        redriven(at + 15, "l"),
        redriven(at + 16, "other"),  # which had it at once
        redriven(at + 17, "elsewhere"),
        redriven(at + 18, "l", messages[1].message_id),  # another message
        redriven(at + 19, "l", messages[1].message_id, messages[4].message_id),
        redriven(at + 25, "l"),  # delivered by then
    )
    log.add("deliveries", 0, attempt(at + 10, messages[4], 4, "parked"))
    log.add("deliveries", 0, attempt(at + 12, messages[4], 4, "delivered", "other"))
    log.add("deliveries", 0, attempt(at + 20, messages[4], 4, "delivered"))
    entries = [one for part in await read(log, story_of(log, 4), Range(begin_ms=AT)) for one in part.entries]
    assert [one.log_ms - at for one in entries] == [4 - 100, 10, 12, 15, 19, 20]
    later = [one for part in await read(log, story_of(log, 4), Range(begin_ms=at + 14)) for one in part.entries]
    assert [one.log_ms - at for one in later] == [15, 16, 19, 20]  # what was before is not known then


async def test_the_story_has_the_cancellation_of_a_redrive_that_no_attempt_has_followed():
    log = Log()
    messages = [put(number) for number in range(9)]
    log.add("messages", 0, *messages)
    at = AT + 100

    def cancelled(at_ms: int, listener_id: str) -> ev.ListenerRedrivesCancelled:
        return ev.ListenerRedrivesCancelled(organization_id=OURS, at_ms=at_ms, listener_id=listener_id)

    log.add("control", 0, QUEUE, listener("l"), listener("other"), listener("elsewhere", "q2"))
    log.add(
        "control",
        0,
        cancelled(at + 5, "l"),  # of redrives before the message
        redriven(at + 15, "l"),
        cancelled(at + 16, "l"),
        cancelled(at + 17, "l"),
        redriven(at + 18, "l", messages[4].message_id),
        redriven(at + 19, "l", messages[1].message_id),
        cancelled(at + 25, "l"),  # attempted by then
        redriven(at + 26, "other"),
        cancelled(at + 27, "other"),  # which had it at once
        redriven(at + 28, "l", messages[1].message_id),
        cancelled(at + 29, "l"),  # another message
        redriven(at + 30, "elsewhere"),
        cancelled(at + 31, "elsewhere"),
        redriven(at + 32, "l", messages[4].message_id),
        redriven(at + 33, "l", messages[1].message_id),
        cancelled(at + 34, "l"),
    )
    log.add("deliveries", 0, attempt(at + 10, messages[4], 4, "parked"))
    log.add("deliveries", 0, attempt(at + 12, messages[4], 4, "delivered", "other"))
    log.add("deliveries", 0, attempt(at + 20, messages[4], 4, "parked"))
    entries = [one for part in await read(log, story_of(log, 4), Range(begin_ms=AT)) for one in part.entries]
    assert [one.log_ms - at for one in entries] == [4 - 100, 10, 12, 15, 16, 18, 20, 32, 34]
    later = [one for part in await read(log, story_of(log, 4), Range(begin_ms=at + 16)) for one in part.entries]
    assert [one.log_ms - at for one in later][:2] == [16, 18], "what was before is not known then"


async def test_the_story_has_a_redrive_and_its_cancellation_although_the_attempt_before_was_stored_after_them():
    log = Log()
    messages = [put(number) for number in range(9)]
    log.add("messages", 0, *messages)
    at = AT + 100
    cancelled = ev.ListenerRedrivesCancelled(organization_id=OURS, at_ms=at + 16, listener_id="l")
    log.add("control", 0, QUEUE, listener("l"), redriven(at + 15, "l"), cancelled)
    # By its log time, the second attempt comes after the cancellation, too.
    log.add("deliveries", 0, attempt(at + 18, messages[1], 1, "parked"), attempt(at + 10, messages[4], 4, "parked"))
    entries = [one for part in await read(log, story_of(log, 4), Range(begin_ms=AT)) for one in part.entries]
    assert [one.event.at_ms - at for one in entries] == [4 - 100, 15, 16, 10]


async def test_the_story_has_the_replays_that_took_the_message():
    log = Log()
    log.add("messages", 0, *(put(number) for number in range(9)))
    log.add("control", 0, QUEUE, listener("l"), listener("elsewhere", "q2"))
    log.add("control", 0, replayed("l", 0, 4), replayed("l", 4, 5), replayed("elsewhere", 0, 9))
    log.add("control", 0, replayed("l", 1, 9, picked=(3, 4)), replayed("l", 2, 9, picked=(3, 5)))
    entries = [one for part in await read(log, story_of(log, 4), Range(begin_ms=AT)) for one in part.entries]
    assert [one.event.replay_id for one in entries if isinstance(one.event, ev.ReplayStarted)] == ["r-4-5", "r-1-9"]


async def test_the_story_of_a_message_does_not_read_control_from_its_start():
    log = Log()
    log.add("messages", 0, *(put(number) for number in range(9)))
    long_ago, before = {"at_ms": AT - 9_000_000}, {"at_ms": AT - 3_000_000}
    log.add("control", 0, ev.OrganizationCreated(**{**BY, **long_ago}, name="o"))
    log.add("control", 0, *(ev.QueueCreated(**{**BY, **long_ago}, queue_id=f"{n}", name=f"{n}") for n in range(300)))
    log.add("control", 0, listener("elsewhere", "1", **long_ago), listener("elsewhere too", "2", **long_ago))
    log.add("control", 0, ev.QueueCreated(**{**BY, **before}, queue_id="q", name="orders"))
    log.add("control", 0, *(listener(f"l{number}", **before) for number in range(200)))
    ended = [ev.ListenerDeleted(**BY, listener_id=one) for one in ("l1", "elsewhere too")]
    log.add("control", 0, replayed("l0", 0, 9), replayed("elsewhere", 1, 9), redriven(AT + 950, "l0"))
    reader = LogReader(log, TABLE, log.view, log.tuning)

    async def told(**more: Any) -> tuple[list[str], list[int]]:
        """(The replays in the story, where `control` was read.)"""
        log.read_of.clear()
        wanted = replace(story_of(log, 4), **more)
        async with aclosing(reader.read(wanted, Range(begin_ms=AT - 60_000))) as slices:
            events = [entry.event async for one in slices for entry in one.entries]
        offsets = [offset for topic, _, offset in log.read_of if topic == "control"]
        return [event.replay_id for event in events if isinstance(event, ev.ReplayStarted)], offsets

    begins = [503, 504]  # the first one only for its time
    assert await told() == (["r-0-9"], begins)
    assert await told(queue_id="q") == (["r-0-9"], begins)
    assert await told(listener_id="l0") == (["r-0-9"], begins)
    assert await told(listener_id="l1") == ([], begins)
    log.add("control", 0, replayed("l1", 2, 9), replayed("elsewhere too", 3, 9), *ended)
    replays, offsets = await told()
    assert replays == ["r-0-9", "r-2-9"]
    assert min(offsets) == 302  # before where the queue begins: whose l1 was is to be found after that
    assert await told() == (replays, begins)


async def test_what_there_never_was_is_not_found_and_what_has_ended_is():
    log = Log()
    gone = ev.QueueDeleted(**BY, queue_id="q")
    log.add("control", 0, QUEUE, listener("l"), replayed("l", 0, 1), gone, listener("m", organization_id=THEIRS))
    for wanted in ({"queue_id": "p"}, {"listener_id": "k"}, {"listener_id": "m"}, {"queue_id": ""}):
        with pytest.raises(NotFound):
            await read(log, Selection(organization_id=OURS, **wanted))
    for theirs in ({"queue_id": "q"}, {"listener_id": "l"}):
        with pytest.raises(NotFound):
            await read(log, Selection(organization_id=THEIRS, **theirs))
    for wanted, count in (({"queue_id": "q"}, 4), ({"listener_id": "l"}, 2), ({"listener_id": "r-0-1"}, 0)):
        slices = await read(log, Selection(organization_id=OURS, **wanted))
        assert sum(len(one.entries) for one in slices) == count


async def test_a_queue_s_listeners_are_looked_for_once_and_then_only_among_what_is_new():
    log = Log()
    log.add("control", 0, QUEUE, *(listener(f"l{number}") for number in range(30)))
    reader = LogReader(log, TABLE, log.view, log.tuning)
    wanted = Selection(organization_id=OURS, queue_id="q", types=frozenset({"message.put"}))

    async def asked() -> list[int]:
        log.read_of.clear()
        async with aclosing(reader.read(wanted, Range())) as slices:
            async for one in slices:
                assert one.complete
        return [offset for topic, _, offset in log.read_of if topic == "control"]

    assert await asked() == [0, 10, 20, 30]
    assert await asked() == []
    log.add("control", 0, listener("l30"))
    assert await asked() == [31]
    assert await reader._listeners.of_queue(OURS, "q") == frozenset(f"l{number}" for number in range(31))


@pytest.mark.parametrize("came", [True, False])
async def test_whoever_gives_way_lets_others_run_and_for_as_long_when_one_came_lately(came):
    rounds = 0

    def work_on() -> None:
        for _ in range(20_000):
            pass

    async def work() -> None:
        nonlocal rounds
        while True:
            rounds += 1
            work_on()
            await asyncio.sleep(0)

    busy = asyncio.create_task(work())
    others = Others()
    if came:
        others.came()
    pace = Pace(others)
    with pace:
        for _ in range(50):
            work_on()
    await pace.give_way()
    assert rounds > 2 if came else rounds == 1  # of about 50
    busy.cancel()


Rows = list[tuple[tuple[str, int], int, bool, bool]]  # where, when, whose, whether it is large
PLACES = [("messages", 0), ("messages", 1), ("deliveries", 0), ("deliveries", 1)]
# Clocks that go back and forth.
rows = st.lists(st.tuples(st.sampled_from(PLACES), st.integers(0, 12), st.booleans(), st.booleans()), max_size=60)


def add(log: Log, some: Rows) -> None:
    for (topic, partition), at, ours, large in some:
        message = put(at, partition, OURS if ours else THEIRS, "x" * (900 if large else 10))
        told = msgspec.structs.replace(attempt(AT + at, message, 0, "failed"), organization_id=message.organization_id)
        log.add(topic, partition, message if topic == "messages" else told)


def by_definition(log: Log) -> list[tuple[int, str, int, int]]:
    found = []
    for (topic, partition), records in log.records.items():
        log_ms = 0
        for record in records:
            log_ms = max(log_ms, record.timestamp)
            if OURS.encode() in (record.value or b""):
                found.append((log_ms, TOPICS.index(topic), partition, record.offset))
    return [(log_ms, TOPICS[rank], partition, offset) for log_ms, rank, partition, offset in sorted(found)]


@settings(max_examples=60, deadline=None)
@given(rows, rows, st.integers(0, 3_000), st.integers(200, 2_000), st.integers(1, 9), st.integers(1, 40))
async def test_a_reading_gives_the_order_of_the_definition_whatever_is_held_left_out_or_come_late(
    early: Rows, late: Rows, rest_bytes: int, share_bytes: int, slice_events: int, limit: int
):
    log = Log(held_bytes_max=0, share_bytes_min=share_bytes, rest_bytes_max=rest_bytes, slice_events=slice_events)
    add(log, early)
    ours = Selection(organization_id=OURS)

    async def told(span: Range) -> tuple[list[tuple[int, str, int, int]], PageToken]:
        slices = await read(log, ours, span)
        entries = [entry for one in slices for entry in one.entries]
        return [(one.log_ms, one.topic, one.partition, one.offset) for one in entries], slices[-1].page_token

    first, page_token = await told(Range(limit=limit))
    rest, _ = await told(Range(page_token=page_token))
    assert first + rest == by_definition(log)
    assert first == by_definition(log)[:limit]
    since, _ = await told(Range(begin_ms=AT + 6))
    assert since == [place for place in by_definition(log) if place[0] >= AT + 6]
    add(log, late)
    rest, _ = await told(Range(page_token=page_token))
    assert sorted(place[1:] for place in first + rest) == sorted(place[1:] for place in by_definition(log))
