"""What an owner says of changes that came around its take-over, with topics in memory.

For: who is in doubt, and what can't be told any more. Not for: changes under load and crashes of all kinds
(tests/stateful), on a real Kafka (tests/kafka/test_changed_messages.py)."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Mapping
from types import SimpleNamespace

import pytest

from broker.clock import now_ms
from broker.core.codec import decode, encode
from broker.core.events import ChangeApplied, Event, MessageDeleted, MessageUpdated, PartitionHandedOver
from broker.core.ids import message_id
from broker.core.window import Window
from broker.delivery.changes import honour
from broker.delivery.changes.honour import Changes
from broker.delivery.dispatch.stream import Delivery, Stream
from broker.delivery.outstanding.schedule import Outstanding
from broker.delivery.reading.partition import Partition
from broker.delivery.tuning import TUNED
from broker.kafka.changes import ChangesTopic
from broker.kafka.requests import KafkaRequests
from broker.ports import EARLIEST, FetchResult, Record
from tests.delivery.office import until
from tests.delivery.test_due import set_aside
from tests.outstanding_topic import OutstandingTopic

END = 5  # messages there are


class Log:
    """Stands for KafkaLog, its `deliveries` and its requests. One partition."""

    name = "deliveries"
    walk = KafkaRequests.walk
    _timeout_ms = 30_000

    def __init__(self) -> None:
        self.rows: dict[str, list[Record]] = defaultdict(list)
        self.deliveries = self.requests = self
        self.messages = SimpleNamespace(name="messages")
        self.changes = ChangesTopic(SimpleNamespace(name="changes"), self, "deliveries", None)

    def write(self, topic: str, event) -> None:
        self.rows[topic].append(Record(len(self.rows[topic]), now_ms(), b"", encode(event), ()))

    async def append(self, outcomes) -> None:
        for _, value in outcomes[0]:
            self.write("deliveries", decode(value))

    async def offsets(self, topic: str, at_ms) -> dict[int, int]:
        return {0: 0 if at_ms[0] == EARLIEST or at_ms[0] > 0 else len(self.rows[topic])}

    async def read(self, topic: str, _partition: int, offset: int, *, bytes_max: int = 1) -> FetchResult:
        return FetchResult(self.rows[topic][offset:], len(self.rows[topic]), len(self.rows[topic]))

    def change(self, kind: type, offset: int, **more) -> None:
        made = message_id(at_ms=now_ms(), partition=0, random_bits=offset)
        fields = {"at_ms": now_ms(), "organization_id": "o", "message_id": made, "queue_id": "q-1", "partition": 0}
        self.write("changes", kind(**fields | more, offset=offset))

    @property
    def told(self) -> list[ChangeApplied]:
        events = [decode(row.value) for row in self.rows["deliveries"]]
        return [event for event in events if isinstance(event, ChangeApplied)]


async def nothing() -> None:
    """It is ours."""


class Feed:
    """The changes of the log, as they come. standstill: called once, in the middle of the next read."""

    def __init__(self, log: Log, standstill: Callable[[], None]) -> None:
        self._log, self._standstill, self._at = log, [standstill], 0

    def follow(self, offsets: Mapping[int, int]) -> None:
        self._at = offsets[0]

    async def read(self) -> list[tuple[int, int, Event]]:
        await asyncio.sleep(0)
        rows = self._log.rows["changes"][self._at :]
        self._at += len(rows)
        if rows and self._standstill:
            self._standstill.pop()()
        return [(0, row.offset, decode(row.value)) for row in rows]


class Owner:
    """A worker's Changes; its one listener's stream is where the tail is, but for what is open."""

    def __init__(self, log: Log, *, topic: OutstandingTopic | None = None, feed: Feed | None = None) -> None:
        self.log = log
        self.partitions = {0: Partition(0, END)}
        self.outstanding = Outstanding(topic, topic, "messages", self.partitions, {}, nothing)
        listener = SimpleNamespace(id="l-1", start_offsets=(0,), replay=None)
        self.attempt: Delivery | None = None
        self.dispatcher = SimpleNamespace(
            tuning=TUNED, listener=listener, streams={}, assignment=None, attempting=lambda *_: self.attempt
        )
        self.tasks: list[asyncio.Task[None]] = []
        self.changes = Changes(
            log,
            feed or SimpleNamespace(follow=lambda _: None),
            self.outstanding,
            self.partitions,
            {"l-1": self.dispatcher},
            lambda *_: [self.dispatcher],
            lambda work: self.tasks.append(asyncio.create_task(work)),
            nothing,
        )

    def has_open(self, offset: int) -> Delivery:
        stream = self.dispatcher.streams.setdefault(0, Stream(self.dispatcher, 0, Window(begin=END)))
        delivery = stream.window.open[offset] = Delivery(stream, offset, None)
        return delivery

    async def take_over(self, *, low: int = 0) -> None:
        taken = await self.changes.read({0: low}, [END])
        await self.changes.say_taken([0])
        self.changes.take_over(taken)
        self.changes.review_deliveries(taken)

    async def said(self) -> dict[str, str]:
        await asyncio.gather(*self.tasks)
        return dict(self.log.told[-1].listeners)


@pytest.fixture
def log() -> Log:
    """An earlier owner has ended in order, before there was a change."""
    made = Log()
    by = {"at_ms": now_ms(), "organization_id": "", "actor": "worker", "partition": 0}
    made.write("deliveries", PartitionHandedOver(**by, in_doubt_below=0, changes_below=0))
    return made


async def test_whoever_took_over_and_wrote_nothing_more_leaves_its_next_owner_in_doubt(log: Log):
    await Owner(log).take_over()  # and is gone
    owner = Owner(log)
    owner.has_open(3)
    log.change(MessageDeleted, 3)
    await owner.take_over()
    assert await owner.said() == {"l-1": "unknown"}
    await owner.changes.hand_over()
    event = decode(log.rows["deliveries"][-1].value)
    assert isinstance(event, PartitionHandedOver)
    assert (event.in_doubt_below, event.changes_below) == (END, 1)


async def test_what_was_settled_before_or_after_a_change_that_an_earlier_owner_had_is_unknown(log: Log):
    log.change(MessageDeleted, 3)
    first = Owner(log)
    await first.take_over()
    await asyncio.gather(*first.tasks)
    await first.changes.hand_over()
    second = Owner(log)
    await second.take_over()
    assert await second.said() == {"l-1": "unknown"}


async def test_what_was_settled_before_a_change_that_no_owner_had_was_delivered(log: Log):
    log.change(MessageDeleted, 3)
    owner = Owner(log)
    await owner.take_over()
    assert await owner.said() == {"l-1": "delivered"}


async def test_what_waits_in_outstanding_when_it_was_deleted_is_told_as_it_waited(log: Log):
    topic = OutstandingTopic()
    made = message_id(at_ms=now_ms(), partition=0, random_bits=3)
    await topic.keep(set_aside(3, message_id=made))
    log.change(MessageDeleted, 3, message_id=made)
    owner = Owner(log, topic=topic)
    await owner.outstanding.read(0)
    owner.outstanding.take_over(0)
    await owner.take_over()
    assert await owner.said() == {"l-1": "retrying"}
    assert not len(owner.outstanding)


async def test_an_update_right_after_a_deletion_does_not_count_for_a_new_owner_either(log: Log):
    for low in (0, END):
        log.rows["changes"].clear()
        log.change(MessageDeleted, 3)
        log.change(MessageUpdated, 3, data="new")
        owner = Owner(log)
        await owner.take_over(low=low)
        await asyncio.gather(*owner.tasks)
        assert [event.applied for event in log.told[-2:]] == [True, False]


async def test_what_an_owner_that_is_gone_may_have_sent_is_unknown_though_a_later_attempt_failed(log: Log):
    await Owner(log).take_over()  # and is gone
    owner = Owner(log)
    owner.attempt = owner.has_open(3)
    log.change(MessageDeleted, 3)
    await owner.take_over()
    await asyncio.sleep(0)
    owner.attempt = None
    assert await owner.said() == {"l-1": "unknown"}


async def test_what_a_worker_reads_while_it_stands_still_is_read_again_if_it_goes_on(
    log: Log, monkeypatch: pytest.MonkeyPatch
):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(honour, "time", SimpleNamespace(monotonic=lambda: clock.now))
    feed = Feed(log, lambda: setattr(clock, "now", TUNED.suspended_s + 1))
    owner = Owner(log, feed=feed)
    await owner.take_over()
    owner.has_open(3)
    log.change(MessageUpdated, 3, data="new")
    running = asyncio.create_task(owner.changes.run())
    await until(lambda: owner.tasks)
    running.cancel()
    assert await owner.said() == {"l-1": "pending"}
    assert owner.changes.known[0, 3].offset == 0


async def test_with_a_range_of_unreadable_messages_outstanding_all_changes_are_read_at_a_take_over():
    asked = list[int]()

    async def since(_partition, since_ms, _begin, _end):
        asked.append(since_ms)
        for nothing in ():
            yield nothing

    async def put_at_ms(_partition, _offset) -> int:
        return now_ms()

    for oldest_ms, expected in ((0, 0), (7, 7)):
        worker = SimpleNamespace(
            _outstanding=SimpleNamespace(oldest_put_ms=lambda _, oldest_ms=oldest_ms: oldest_ms),
            _log=SimpleNamespace(changes=SimpleNamespace(since=since)),
            _put_at_ms=put_at_ms,
        )
        await Changes._collect(worker, 0, SimpleNamespace(position=3, floor=9), 0, kept=True)
        assert asked.pop() == expected
