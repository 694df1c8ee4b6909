"""What has left its window, from record to dispatcher: the topic is in memory, dispatcher and listener are real."""

from __future__ import annotations

import asyncio
import gc
from dataclasses import replace
from types import FunctionType, ModuleType

import msgspec
import orjson
import pytest

from broker.clock import now_ms
from broker.core.codec import decode, encode
from broker.core.damage import Damage
from broker.core.events import DAMAGED, BatchSetting, DeliveryParked, DeliverySetAside, ListenerSettings
from broker.core.flow import WHOLE
from broker.core.outstanding_sum import KeySum
from broker.delivery.checkpoint.metrics import Metrics
from broker.delivery.dispatch.stream import take_outcomes
from broker.delivery.outstanding.entry import entry_key, entry_of
from broker.delivery.tuning import TUNED, Tuning
from broker.errors import LogUnavailable
from tests.delivery.office import OK, Office, until
from tests.outstanding_topic import OutstandingTopic

LONGEST_WAITS = {"tuning": TUNED, "dice": lambda: 1.0}  # between attempts, in the window
REFUSED = b"HTTP/1.1 422 No\r\ncontent-length: 0\r\n\r\n"


class Taker:
    """A listener that refuses these messages; it knows what it has taken, and the attempts it saw of each."""

    def __init__(self) -> None:
        self.refused: set[str] = set()
        self.taken: list[str] = []
        self.free = asyncio.Event()
        self.free.set()

    async def __call__(self, request, writer):
        await self.free.wait()
        if request.message_id in self.refused:
            writer.write(REFUSED)
        else:
            self.taken.append(request.message_id)
            writer.write(OK)


def set_aside(number: int, /, **more) -> DeliverySetAside | DeliveryParked:
    """Of listener l-1, message m-<number>: due now, or parked with parked=True."""
    fields = {
        "at_ms": now_ms(),
        "organization_id": "o",
        "listener_id": "l-1",
        "queue_id": "q-1",
        "message_id": f"m-{number}",
        "partition": 0,
        "offset": number,
        "number": 3,
        "status": 500,
        "error": None,
        "put_at_ms": now_ms(),
        "name": "n",
        "data": "{}",
    }
    if more.pop("parked", False):
        return DeliveryParked(**fields | more)
    return DeliverySetAside(**{"next_at_ms": now_ms()} | fields | more)


@pytest.fixture
def open_office(open_office):
    """The first failure is long enough, unless a test says otherwise."""

    async def start(where, *, office: dict | None = None, **settings) -> Office:
        return await open_office(where, office={"tuning": Tuning(set_aside_after_ms=0)} | (office or {}), **settings)

    return start


@pytest.fixture
def topic() -> OutstandingTopic:
    return OutstandingTopic()


async def own(office: Office, topic: OutstandingTopic, *events) -> None:
    """These are in the topic when the partition is taken over, and its cursor is behind them."""
    await topic.keep(*events)
    await office.outstanding.read(0)
    office.outstanding.take_over(0)
    office.partition.tail = max((event.offset + 1 for event in events), default=0)


async def serve_all(office: Office, done) -> None:
    async with asyncio.timeout(60):
        while not done():
            await office.outstanding.serve_due()
            await asyncio.sleep(0.005)


async def test_what_is_due_is_delivered_with_its_next_attempt_number_and_its_record_goes(serve, open_office, topic):
    taker = Taker()
    server = await serve(taker)
    office = await open_office(server, office={"topic": topic})
    await own(office, topic, set_aside(1), set_aside(2, next_at_ms=now_ms() + 3_600_000), set_aside(3, parked=True))
    await serve_all(office, lambda: taker.taken and not office.dispatcher.held)
    await office.outstanding.flush()
    assert [(post.message_id, post.attempt) for post in server.posts] == [("m-1", 4)]
    assert sorted(topic.kept()) == [b"l-1:m-2", b"l-1:m-3"]


async def test_nothing_is_looked_for_between_due_times_and_what_comes_meanwhile_is(serve, open_office, topic):
    taker = Taker()
    server = await serve(taker)
    office = await open_office(server, office={"topic": topic, "tuning": replace(TUNED, serve_idle_s=3_600.0)})
    await own(office, topic, set_aside(1, next_at_ms=now_ms() + 500), set_aside(2, **FAR), set_aside(3, parked=True))
    looks = 0

    async def serving() -> None:
        nonlocal looks
        while True:
            looks += 1
            if not await office.outstanding.serve_due():
                await office.outstanding.pause()

    task = asyncio.create_task(serving())
    await until(lambda: taker.taken == ["m-1"] and not office.dispatcher.held)
    before = looks
    await asyncio.sleep(10 * TUNED.serve_s)
    assert looks <= before + 2
    redriven(office, "m-3")
    await until(lambda: taker.taken == ["m-1", "m-3"])
    task.cancel()


async def test_what_the_window_may_still_bring_waits_until_it_has(serve, open_office, topic):
    """A worker died after the record and before the cursor."""
    taker = Taker()
    server = await serve(taker)
    office = await open_office(server, office={"topic": topic})
    await own(office, topic, set_aside(0))
    office.partition.tail = 0
    for _ in range(5):
        await office.outstanding.serve_due()
        await asyncio.sleep(0.005)
    assert not office.dispatcher.held
    office.put(1)
    await serve_all(office, lambda: taker.taken and not office.dispatcher.held)
    await office.outstanding.flush()
    assert [(post.message_id, post.attempt) for post in server.posts] == [("m-0", 4)]
    assert not topic.kept()


async def test_a_record_that_can_not_be_decoded_ends_nothing_and_stays(serve, open_office, topic):
    taker = Taker()
    office = await open_office(await serve(taker), office={"topic": topic})
    await own(office, topic, set_aside(1), set_aside(2))
    topic.records[0][0] = topic.records[0][0]._replace(value=b'{"type":"delivery.set_aside","v":99}')
    await serve_all(office, lambda: taker.taken)
    assert taker.taken == ["m-2"]
    assert not any(record.value is None for record in topic.records[0])


async def test_a_record_that_compaction_took_is_found_in_its_later_copy(serve, open_office, topic):
    taker = Taker()
    office = await open_office(await serve(taker), office={"topic": topic})
    await own(office, topic, set_aside(1), set_aside(2))
    await topic.keep(set_aside(1))  # an append that timed out, and came all the same
    topic.records[0][0] = None
    await serve_all(office, lambda: len(taker.taken) == 2)
    assert sorted(taker.taken) == ["m-1", "m-2"]


async def test_a_record_that_is_gone_is_delivered_from_the_log(serve, open_office, topic):
    taker = Taker()
    server = await serve(taker)
    office = await open_office(server, office={"topic": topic})
    office.put(1)
    await until(lambda: taker.taken)
    await own(office, topic, set_aside(0))
    topic.records[0][0] = None
    await serve_all(office, lambda: len(taker.taken) == 2)
    assert server.posts[0].body == server.posts[1].body
    assert server.posts[1].attempt == 4


@pytest.mark.parametrize("left", ["nothing", "a later message", "a tombstone"])
async def test_one_of_which_a_tombstone_or_nothing_is_left_is_owed_no_more(serve, open_office, topic, left):
    taker = Taker()
    office = await open_office(await serve(taker), office={"topic": topic})
    office.put(2)
    await until(lambda: len(taker.taken) == 2)
    taker.taken.clear()
    await own(office, topic, set_aside(0))
    if left == "a tombstone":
        topic.write(0, b"l-1:m-0", None)
    if left == "a later message":
        office.records[0] = None
    if left == "nothing":
        office.records[:] = [None, None]
    topic.records[0][0] = None
    await serve_all(office, lambda: not len(office.outstanding))
    assert not taker.taken


async def test_no_dispatcher_gets_more_than_it_has_room_for(serve, open_office, topic):
    taker = Taker()
    taker.free.clear()
    office = await open_office(
        await serve(taker),
        office={"topic": topic, "tuning": Tuning(set_aside_after_ms=0, held_max=3)},
        max_in_flight=1,
        timeout_ms=60_000,
    )
    await own(office, topic, *(set_aside(number) for number in range(20)))
    most = 0
    for _ in range(5):
        await office.outstanding.serve_due()
        most = max(most, office.dispatcher.held)
    assert most == 3
    taker.free.set()
    await serve_all(office, lambda: len(taker.taken) == 20)
    assert len(set(taker.taken)) == 20


async def test_a_listener_that_is_down_costs_what_is_due_to_it_nothing_until_it_is_back(serve, open_office, topic):
    taker = Taker()
    office = await open_office(await serve(taker), office={"topic": topic})
    while not office.dispatcher.circuit.failed(now_ms()):
        pass
    office.dispatcher.circuit.probe_at_ms = now_ms() + 3_600_000
    await own(office, topic, *(set_aside(number) for number in range(30)))
    for _ in range(5):
        await office.outstanding.serve_due()
    assert (topic.reads, office.dispatcher.held) == (1, 0)  # it was read once, when the partition was taken over
    office.dispatcher.circuit.probed(alive=True, at_ms=now_ms(), interval_ms=0)
    office.dispatcher.wake()
    await serve_all(office, lambda: len(taker.taken) == 30)


async def test_what_was_taken_while_kafka_was_away_is_tried_when_it_is_back(serve, open_office, topic):
    taker = Taker()
    office = await open_office(await serve(taker), office={"topic": topic})
    await own(office, topic, *(set_aside(number) for number in range(5)))
    topic.unavailable = LogUnavailable("away")
    for _ in range(3):
        assert not await office.outstanding.serve_due()
    topic.unavailable = None
    await serve_all(office, lambda: len(taker.taken) == 5)


async def test_a_listener_that_has_no_dispatcher_yet_loses_nothing(serve, open_office, topic):
    taker = Taker()
    office = await open_office(await serve(taker), office={"topic": topic})
    dispatcher = office.dispatchers.pop("l-1")
    await own(office, topic, set_aside(1))
    for _ in range(3):
        await office.outstanding.serve_due()
    await office.outstanding.flush()
    assert len(topic.kept()) == 1
    office.dispatchers["l-1"] = dispatcher
    await serve_all(office, lambda: taker.taken)


async def test_very_many_that_are_due_together_are_served_a_few_at_a_time(serve, open_office, topic):
    taker = Taker()
    office = await open_office(
        await serve(taker), office={"topic": topic, "tuning": Tuning(set_aside_after_ms=0, due_at_once=7)}
    )
    await own(office, topic, *(set_aside(number) for number in range(60)))
    await serve_all(office, lambda: len(taker.taken) == 60)
    assert len(set(taker.taken)) == 60


async def test_what_fails_again_is_written_anew_before_it_is_let_go(serve, open_office, topic):
    taker = Taker()
    taker.refused.add("m-1")
    server = await serve(taker)
    office = await open_office(server, office={"topic": topic})
    await own(office, topic, set_aside(1))
    await serve_all(office, lambda: server.posts)
    await until(lambda: not office.dispatcher.held and not office.leaving)
    (event,) = topic.kept().values()
    assert (event.number, event.status) == (4, 422)
    assert not office.outstanding._due.taken
    taker.refused.clear()
    await serve_all(office, lambda: taker.taken)
    assert [post.attempt for post in server.posts] == [4, 5]


# One who may be no member any more

NO_MEMBER = LogUnavailable("no member any more")


async def test_who_is_no_member_any_more_sets_nothing_aside(serve, open_office, topic):
    """Its next owner may have delivered it: docs/decisions/0160."""
    taker = Taker()
    taker.refused.add("m-0")
    server = await serve(taker)
    office = await open_office(
        server, office={"topic": topic, "tuning": Tuning(set_aside_after_ms=0, append_pause_s=0.005)}
    )
    office.membership.no_member = NO_MEMBER
    office.put()
    await until(lambda: office.membership.refused >= 2)
    assert not topic.kept()
    office.membership.no_member = None
    await until(lambda: not office.leaving)
    assert sorted(topic.kept()) == [b"l-1:m-0"]


async def test_what_is_given_up_while_kafka_is_asked_is_not_set_aside(serve, open_office, topic):
    taker = Taker()
    taker.refused.add("m-0")
    server = await serve(taker)
    office = await open_office(server, office={"topic": topic})
    asked, answered = asyncio.Event(), asyncio.Event()

    async def assure(*_: object) -> None:
        asked.set()
        await answered.wait()

    office.membership.confirm = assure
    office.put()
    await asked.wait()
    office.dispatcher.drop(office.dispatcher.streams[0])
    answered.set()
    await until(lambda: not office.leaving)
    assert not topic.kept()


class HeldTopic(OutstandingTopic):
    """append_one() has stored the record, and answers only when `go` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.stored, self.go = asyncio.Event(), asyncio.Event()

    async def append_one(self, partition: int, key: bytes, value: bytes) -> int:
        offset = await super().append_one(partition, key, value)
        self.stored.set()
        await self.go.wait()
        return offset


async def test_what_is_dropped_while_it_is_written_waits_until_its_message_was_read_again(serve, open_office):
    """Its listener was deleted, and is back before Kafka's answer: its window may still bring the message."""
    topic, taker = HeldTopic(), Taker()
    taker.refused.add("m-0")
    office = await open_office(await serve(taker), office={"topic": topic}, retry_first_ms=1)
    await own(office, topic)
    office.put()
    await topic.stored.wait()
    office.dispatcher.drop(office.dispatcher.streams[0])
    office.dispatcher.stream(0).window.scan_from = 0
    topic.go.set()
    await until(lambda: not office.leaving)
    assert len(office.outstanding) == 1
    taker.refused.clear()
    for _ in range(20):
        await office.outstanding.serve_due()
        assert not office.dispatcher.streams[0].from_outstanding
        await asyncio.sleep(0.005)
    assert not taker.taken
    office.dispatcher.streams[0].window.scan_from = None  # it was read again
    await serve_all(office, lambda: taker.taken)
    assert taker.taken == ["m-0"]


async def test_what_was_written_for_a_partition_that_is_lost_leaves_no_index(serve, open_office):
    topic, taker = HeldTopic(), Taker()
    taker.refused.add("m-0")
    office = await open_office(await serve(taker), office={"topic": topic})
    await own(office, topic)
    office.put()
    await topic.stored.wait()
    office.assignment.drop()
    topic.go.set()
    await until(lambda: not office.leaving)
    assert sorted(topic.kept()) == [b"l-1:m-0"]
    assert len(office.outstanding) == 0
    assert office.outstanding._index._opened is None


async def test_what_is_due_is_tried_only_by_a_member(serve, open_office, topic):
    """Who heard nothing of Kafka for long reads records of what others have delivered."""
    taker = Taker()
    server = await serve(taker)
    office = await open_office(server, office={"topic": topic})
    await own(office, topic, set_aside(1))
    office.membership.no_member = NO_MEMBER
    await serve_all(office, lambda: office.membership.refused >= 2)
    assert not server.posts
    office.membership.no_member = None
    await serve_all(office, lambda: taker.taken)
    assert taker.taken == ["m-1"]


# Redrives


def redriven(office: Office, *message_ids: str) -> None:
    """Its listener is redriven, as a worker hears of it."""
    listener = office.dispatcher.listener
    listener = replace(listener, redrives=listener.redrives.and_of(message_ids))
    office.dispatcher.update(listener, share=WHOLE)
    office.outstanding.redrive(listener)


FAR = {"next_at_ms": now_ms() + 3_600_000}


async def test_a_redrive_has_what_is_parked_and_what_retries_tried_at_once(serve, open_office, topic):
    taker = Taker()
    server = await serve(taker)
    office = await open_office(server, office={"topic": topic})
    await own(office, topic, set_aside(1, **FAR), set_aside(2, parked=True), set_aside(3, parked=True))
    redriven(office, "m-2")
    await serve_all(office, lambda: taker.taken)
    assert [(post.message_id, post.attempt) for post in server.posts] == [("m-2", 4)]
    redriven(office)
    await serve_all(office, lambda: len(taker.taken) == 3 and not office.dispatcher.held)
    await until(lambda: not office.dispatcher.held)
    await office.outstanding.flush()
    assert (sorted(taker.taken), topic.kept()) == (["m-1", "m-2", "m-3"], {})


async def test_a_redriven_delivery_has_a_fresh_allowance_and_its_numbers_go_on(serve, open_office, topic):
    taker = Taker()
    taker.refused.add("m-1")
    server = await serve(taker)
    office = await open_office(server, office={"topic": topic}, max_attempts=3, max_age_s=60)
    await own(office, topic, set_aside(1, parked=True, put_at_ms=now_ms() - 3_600_000))
    redriven(office)
    await serve_all(office, lambda: isinstance(topic.kept()[b"l-1:m-1"], DeliveryParked) and len(server.posts) > 1)
    assert [post.attempt for post in server.posts] == [4, 5, 6]


async def test_a_redrive_while_no_worker_ran_is_made_up_for_and_one_made_up_for_is_not_repeated(
    serve, open_office, topic
):
    taker = Taker()
    taker.refused.add("m-1")
    server = await serve(taker)
    first = await open_office(server, office={"topic": topic}, max_attempts=1)
    listener = first.dispatcher.listener
    listener = replace(listener, redrives=listener.redrives.and_of(("m-1",)))
    first.dispatcher.update(listener, share=WHOLE)  # a worker that starts has folded it before
    await own(first, topic, set_aside(1, parked=True), set_aside(2, parked=True))
    await serve_all(first, lambda: server.posts)
    await until(lambda: not first.dispatcher.held and not first.leaving)
    assert [post.message_id for post in server.posts] == ["m-1"]

    second = await open_office(server, office={"topic": topic}, max_attempts=1)
    second.dispatcher.update(listener, share=WHOLE)
    await second.outstanding.read(0)
    second.outstanding.take_over(0)
    for _ in range(5):
        await second.outstanding.serve_due()
    assert [second.outstanding.state(0, "l-1", one) for one in ("m-1", "m-2")] == ["parked", "parked"]


async def cancel(office: Office) -> None:
    """The redrives of its listener are cancelled, as a worker hears of it."""
    listener = replace(office.dispatcher.listener, redrives=office.dispatcher.listener.redrives.cancel())
    office.dispatcher.update(listener, share=WHOLE)
    await office.outstanding.undo_cancelled(listener)


@pytest.mark.parametrize("key", [None, "a"])
async def test_a_cancelled_redrive_attempts_only_what_is_under_way(serve, open_office, topic, key):
    taker = Taker()
    taker.free.clear()
    server = await serve(taker)
    office = await open_office(server, office={"topic": topic}, max_in_flight=1, timeout_ms=60_000)
    await own(office, topic, *(set_aside(number, parked=True, key=key) for number in range(40)), set_aside(40, **FAR))
    redriven(office)
    await serve_all(office, lambda: server.posts and office.dispatcher.held > 2)
    assert office.outstanding.held(0, "l-1")[0] < 40
    await cancel(office)
    if key is None:  # Those of one key are returned when it is their turn.
        assert (office.outstanding.held(0, "l-1"), office.dispatcher.held) == ((39, 2), 1)
    taker.free.set()
    await serve_all(office, lambda: taker.taken and not office.dispatcher.held)
    for _ in range(5):
        await office.outstanding.serve_due()
    await office.outstanding.flush()
    assert (len(server.posts), len(topic.kept())) == (1, 40)
    assert office.outstanding.held(0, "l-1") == (39, 1)
    redriven(office)
    await serve_all(office, lambda: len(taker.taken) == 41 and not office.dispatcher.held)


async def test_a_cancelled_redrive_changes_no_order_of_the_other_messages(serve, open_office, topic):
    """The first one of key `a` may begin, but its batch is not full. The others of key `b` wait behind it."""
    batches: list[list[str]] = []
    free = asyncio.Event()

    async def slow(request, writer):
        batches.append([one["id"] for one in orjson.loads(request.body)])
        await free.wait()
        writer.write(OK)

    server = await serve(slow)
    batch = BatchSetting(max_messages=2, wait_ms=3_600_000)
    office = await open_office(server, office={"topic": topic}, max_in_flight=2, batch=batch)
    await own(office, topic, *(set_aside(number, parked=True, key="a") for number in range(2)))
    office.put(2)
    office.put(2)
    await until(lambda: batches == [["m-2", "m-3"]])
    redriven(office)
    await serve_all(office, lambda: office.dispatcher.deliveries.keys.waiting)
    listener = office.dispatcher.listener
    settings = msgspec.structs.replace(listener.settings, max_in_flight=1)
    office.dispatcher.update(replace(listener, settings=settings), share=WHOLE)
    office.put(2, key="b")
    assert [one.offset for one in office.dispatcher.deliveries.ready] == [0, 4, 5]
    await cancel(office)
    free.set()
    await until(lambda: len(batches) > 1)
    assert batches[1] == ["m-4"]
    assert office.outstanding.held(0, "l-1") == (2, 0)


async def test_what_was_redriven_and_cancelled_has_its_former_time_and_attempts(serve, open_office, topic):
    taker = Taker()
    server = await serve(taker)
    office = await open_office(server, office={"topic": topic})
    await own(office, topic, set_aside(1, forgiven=1, since_ms=7, **FAR), set_aside(2, parked=True))
    before = [office.outstanding._index.find(0, "l-1", one) for one in ("m-1", "m-2")]
    redriven(office)
    office.dispatcher.sending = False
    await serve_all(office, lambda: office.outstanding.held(0, "l-1") == (0, 2) and office.dispatcher.held == 2)
    office.dispatcher.sending = True
    await cancel(office)
    after = [office.outstanding._index.find(0, "l-1", one) for one in ("m-1", "m-2")]
    fields = ("forgiven", "since_ms", "due_ms", "queued_ms")
    assert [[getattr(one, name) for name in fields] for one in after] == [
        [getattr(one, name) for name in fields] for one in before
    ]
    assert not server.posts


async def test_a_redrive_that_follows_a_cancelled_one_counts(serve, open_office, topic):
    taker = Taker()
    server = await serve(taker)
    office = await open_office(server, office={"topic": topic})
    await own(office, topic, *(set_aside(number, parked=True) for number in (1, 2)))
    listener = office.dispatcher.listener
    redrives = listener.redrives.and_of(()).cancel().and_of(("m-2",))
    listener = replace(listener, redrives=redrives)
    office.dispatcher.update(listener, share=WHOLE)
    office.outstanding.redrive(listener)
    await office.outstanding.undo_cancelled(listener)
    await serve_all(office, lambda: taker.taken and not office.dispatcher.held)
    for _ in range(5):
        await office.outstanding.serve_due()
    assert taker.taken == ["m-2"]


async def test_a_redrive_of_another_message_does_not_revive_a_cancelled_one(serve, open_office, topic):
    """The second message of the key is with the dispatcher, behind the first one, which is under way."""
    taker = Taker()
    taker.free.clear()
    server = await serve(taker)
    office = await open_office(server, office={"topic": topic})
    await own(
        office, topic, *(set_aside(number, parked=True, key=key) for number, key in ((1, "a"), (2, "a"), (3, None)))
    )
    redriven(office, "m-1", "m-2")
    await serve_all(office, lambda: server.posts and office.dispatcher.deliveries.keys.waiting)
    listener = replace(office.dispatcher.listener, redrives=office.dispatcher.listener.redrives.cancel())
    office.dispatcher.update(listener, share=WHOLE)
    redriven(office, "m-3")
    await office.outstanding.undo_cancelled(listener)
    taker.free.set()
    await serve_all(office, lambda: len(taker.taken) == 2 and not office.dispatcher.held)
    for _ in range(5):
        await office.outstanding.serve_due()
    assert sorted(taker.taken) == ["m-1", "m-3"]
    assert office.outstanding.held(0, "l-1") == (1, 0)


async def test_who_takes_over_after_a_cancellation_retries_nothing(serve, open_office, topic):
    server = await serve(Taker())
    office = await open_office(server, office={"topic": topic})
    listener = replace(office.dispatcher.listener, redrives=office.dispatcher.listener.redrives.and_of(()).cancel())
    office.dispatcher.update(listener, share=WHOLE)
    await own(office, topic, set_aside(1, parked=True), set_aside(2, **FAR))
    for _ in range(5):
        await office.outstanding.serve_due()
    assert (office.outstanding.held(0, "l-1"), server.posts) == ((1, 1), [])


async def test_a_redrive_that_comes_while_the_record_is_written_counts(serve, open_office, topic):
    taker = Taker()
    server = await serve(taker)
    office = await open_office(server, office={"topic": topic}, max_attempts=1)
    await own(office, topic)
    taker.refused.add("m-0")
    append_one = topic.append_one
    begun, free = asyncio.Event(), asyncio.Event()

    async def slow(*record) -> int:
        begun.set()
        await free.wait()
        return await append_one(*record)

    topic.append_one = slow
    office.put(1)
    await begun.wait()
    taker.refused.clear()
    redriven(office)
    free.set()
    await serve_all(office, lambda: taker.taken)
    assert [post.attempt for post in server.posts] == [1, 2]


async def test_a_redrive_right_after_the_last_attempt_counts(serve, open_office, topic):
    """Before anything of the record is written."""
    taker = Taker()
    server = await serve(taker)
    office = await open_office(server, office={"topic": topic}, max_attempts=1)
    await own(office, topic)
    taker.refused.add("m-0")
    expect = office.outstanding.expect

    def expect_and_redrive(*delivery):
        event = expect(*delivery)
        taker.refused.clear()
        redriven(office)
        return event

    office.outstanding.expect = expect_and_redrive
    office.put(1)
    await serve_all(office, lambda: taker.taken)
    assert [post.attempt for post in server.posts] == [1, 2]


async def test_a_redrive_hurries_the_retries_of_the_window(serve, open_office, topic):
    taker = Taker()
    taker.refused |= {"m-0", "m-1"}
    server = await serve(taker)
    office = await open_office(server, office=LONGEST_WAITS | {"topic": topic}, retry_first_ms=50_000)
    office.put(2, key="a")
    office.put(1)
    await until(lambda: len(server.posts) == 2 and len(office.dispatcher.deliveries.retries) == 1)
    taker.refused.clear()
    redriven(office, "m-1")  # it waits for m-0, the first of its key
    redriven(office, "m-0")
    await office.all_settled()
    assert taker.taken == ["m-2", "m-0", "m-1"]


async def test_a_redriven_message_that_could_not_be_decoded_is_read_from_the_log_again(serve, open_office, topic):
    taker = Taker()
    server = await serve(taker)
    office = await open_office(server, office={"topic": topic})
    office.put(1)
    await until(lambda: taker.taken)
    await own(office, topic, set_aside(0, parked=True, number=0, status=None, error="undecodable", name="", data=""))
    redriven(office)
    await serve_all(office, lambda: len(taker.taken) == 2)
    assert server.posts[0].body == server.posts[1].body


# Times before which a message is not delivered


async def test_a_message_whose_time_is_near_waits_in_the_window_and_others_go_on(serve, open_office, topic):
    at: list[int] = []

    async def noting(request, writer):
        if request.message_id == "m-0":
            at.append(now_ms())
        writer.write(OK)

    server = await serve(noting)
    office = await open_office(server, office={"topic": topic})
    deliver_at_ms = now_ms() + 1_000
    office.put(1, deliver_at_ms=deliver_at_ms)
    office.put(1)
    await office.all_settled()
    office.check_books()
    assert [(post.message_id, post.attempt) for post in server.posts] == [("m-1", 1), ("m-0", 1)]
    assert at[0] >= deliver_at_ms
    assert topic.kept() == {}


async def test_a_message_whose_time_is_far_leaves_the_window_at_once_and_comes_then(serve, open_office, topic):
    taker = Taker()
    server = await serve(taker)
    office = await open_office(server, office={"topic": topic, "tuning": Tuning(set_aside_after_ms=0, near_ms=0)})
    await own(office, topic)
    deliver_at_ms = now_ms() + 400
    office.put(1, deliver_at_ms=deliver_at_ms)
    await office.all_settled()  # the cursor passes it
    (event,) = topic.kept().values()
    assert (event.number, event.next_at_ms, event.since_ms, event.error) == (0, deliver_at_ms, deliver_at_ms, None)
    redriven(office)
    await serve_all(office, lambda: taker.taken)
    assert now_ms() >= deliver_at_ms
    assert [post.attempt for post in server.posts] == [1]
    await until(lambda: not office.dispatcher.held)
    await office.outstanding.flush()
    assert topic.kept() == {}


async def test_when_its_time_has_come_it_is_retried_like_any_other(serve, open_office, topic):
    taker = Taker()
    taker.refused.add("m-0")
    server = await serve(taker)
    office = await open_office(server, office={"topic": topic}, max_attempts=2, max_age_s=60)
    put_at_ms = now_ms() - 3_600_000  # its age counts from its first attempt
    await own(office, topic, set_aside(0, number=0, status=None, put_at_ms=put_at_ms, since_ms=put_at_ms + 60_000))
    await serve_all(office, lambda: any(isinstance(event, DeliveryParked) for event in topic.kept().values()))
    assert [post.attempt for post in server.posts] == [1, 2]


async def test_an_old_message_is_retried_as_long_as_a_new_one(serve, open_office, topic):
    taker = Taker()
    taker.refused.add("m-0")
    server = await serve(taker)
    office = await open_office(server, office={"topic": topic}, max_attempts=3, max_age_s=60)
    await own(office, topic)
    office.put(1, put_at_ms=now_ms() - 3_600_000)
    await serve_all(office, lambda: any(isinstance(event, DeliveryParked) for event in topic.kept().values()))
    assert [post.attempt for post in server.posts] == [1, 2, 3]


@pytest.mark.parametrize("first_at", [{"first_at_ms": 1_000}, {"put_at_ms": 1_000}, {"since_ms": 1_000}])
async def test_the_age_counts_from_the_first_attempt_of_an_earlier_owner_too(serve, open_office, topic, first_at):
    taker = Taker()
    taker.refused.add("m-1")
    server = await serve(taker)
    office = await open_office(server, office={"topic": topic}, max_age_s=60)
    await own(office, topic, set_aside(1, **first_at))
    await serve_all(office, lambda: isinstance(topic.kept()[b"l-1:m-1"], DeliveryParked))
    assert [post.attempt for post in server.posts] == [4]


async def test_the_time_of_the_first_attempt_is_kept_with_the_delivery(serve, open_office, topic):
    taker = Taker()
    taker.refused.add("m-0")
    office = await open_office(await serve(taker), office={"topic": topic})
    await own(office, topic)
    before_ms = now_ms()
    office.put(1)
    await until(topic.kept)
    (first,) = topic.kept().values()
    assert before_ms <= first.first_at_ms <= now_ms()
    await office.outstanding.flush()
    await serve_all(office, lambda: next(iter(topic.kept().values())).number > 1)
    (later,) = topic.kept().values()
    assert later.first_at_ms == first.first_at_ms


async def test_the_time_to_delivery_of_a_retried_message_counts_from_its_time(serve, open_office):
    taker = Taker()
    taker.refused.add("m-0")
    office = await open_office(await serve(taker), office={"tuning": TUNED})
    its_time_ms = now_ms() - 1_000
    metrics = Metrics()

    def keep_books() -> None:
        for one in office.dirty:
            metrics.count(one.dispatcher.listener, *take_outcomes(one))

    office.keep_books = keep_books
    office.put(1, deliver_at_ms=its_time_ms, put_at_ms=its_time_ms - 3_600_000)
    await until(lambda: metrics.attempts["failed", "4xx"])
    taker.refused.clear()
    await until(lambda: metrics.attempts["delivered", "2xx"])
    assert 1_000 <= metrics.delivered.total_ms < 600_000


async def test_one_that_was_set_aside_for_its_time_before_a_crash_does_not_come_from_its_window(
    serve, open_office, topic
):
    taker = Taker()
    server = await serve(taker)
    office = await open_office(server, office={"topic": topic})
    deliver_at_ms = now_ms() + 1_000
    await own(office, topic, set_aside(0, number=0, status=None, next_at_ms=deliver_at_ms))
    office.put(1, deliver_at_ms=deliver_at_ms)
    office.put(1)
    await until(lambda: taker.taken)
    await serve_all(office, lambda: len(taker.taken) == 2 and not office.dispatcher.held)
    assert [post.message_id for post in server.posts] == ["m-1", "m-0"]


async def test_those_that_wait_for_their_time_leave_room_for_the_others(serve, open_office, topic):
    taker = Taker()
    office = await open_office(
        await serve(taker), office={"topic": topic, "tuning": Tuning(set_aside_after_ms=0, held_max=10)}
    )
    await own(office, topic)
    office.put(40, deliver_at_ms=now_ms() + 8_000)
    office.put(5)
    await until(lambda: len(taker.taken) == 5 and office.dispatcher.held <= 6 and len(topic.kept()) >= 34)


async def test_one_whose_next_attempt_is_far_off_does_not_wait_in_its_window(serve, open_office, topic):
    taker = Taker()
    taker.refused = {"m-0"}
    office = await open_office(
        await serve(taker), office={"topic": topic, "tuning": TUNED, "dice": lambda: 1.0}, retry_first_ms=3_600_000
    )
    office.put(1)
    await until(lambda: topic.kept() and not office.dispatcher.held)
    assert office.settled


async def test_those_that_fail_leave_room_for_those_that_would_not(serve, open_office, topic):
    taker = Taker()
    taker.refused = {f"m-{number}" for number in range(40)}
    office = await open_office(
        await serve(taker),
        office={"topic": topic, "tuning": Tuning(retries_max=5), "dice": lambda: 1.0},
        retry_first_ms=30_000,
    )
    office.put(41)
    await until(lambda: taker.taken == ["m-40"] and len(topic.kept()) >= 35)
    await until(lambda: office.dispatcher.held == 5)


async def test_many_of_one_key_that_wait_for_long_make_room_and_come_in_order(serve, open_office, topic):
    taker = Taker()
    taker.free.clear()
    office = await open_office(
        await serve(taker),
        office={"topic": topic, "tuning": Tuning(set_aside_after_ms=0, key_waiting_max=5, key_slow_s=0.0)},
        timeout_ms=60_000,
    )
    await own(office, topic)
    office.put(40, key="a")
    await until(lambda: len(topic.kept()) == 39)  # one is under way
    assert office.dispatcher.held == 1
    office.put(1)
    office.put(5, key="a")
    await until(lambda: len(topic.kept()) == 44)
    taker.free.set()
    await serve_all(office, lambda: len(taker.taken) == 46 and not office.dispatcher.held)
    await office.outstanding.flush()
    assert [one for one in taker.taken if one != "m-40"] == [f"m-{number}" for number in range(46) if number != 40]
    assert not topic.kept()


async def test_a_parked_message_of_a_key_lets_the_others_go_on(serve, open_office, topic):
    taker = Taker()
    taker.refused = {"m-1"}
    office = await open_office(await serve(taker), office={"topic": topic}, max_attempts=2, retry_first_ms=1)
    await own(office, topic)
    office.put(4, key="a")
    await serve_all(office, lambda: len(taker.taken) == 3 and not office.dispatcher.held)
    assert taker.taken == ["m-0", "m-2", "m-3"]
    await office.outstanding.flush()
    assert [type(event) for event in topic.kept().values()] == [DeliveryParked]
    office.put(1, key="a")
    await until(lambda: taker.taken[-1] == "m-4")


async def test_one_that_was_redriven_goes_before_later_ones_of_its_key(serve, open_office, topic):
    taker = Taker()
    taker.refused = {"m-0", "m-1"}
    office = await open_office(await serve(taker), office={"topic": topic, "dice": lambda: 1.0}, max_attempts=1)
    await own(office, topic)
    office.put(1, key="a")
    await until(lambda: office.outstanding.state(0, "l-1", "m-0") == "parked")
    listener = office.dispatcher.listener
    office.dispatcher.update(replace(listener, settings=ListenerSettings(retry_first_ms=3_600_000)), share=WHOLE)
    office.put(2, key="a")
    await until(lambda: len(topic.kept()) == 3)  # the second failed, and the third waits for it
    taker.refused = set()
    redriven(office)
    await serve_all(office, lambda: len(taker.taken) == 3)
    assert taker.taken == ["m-0", "m-1", "m-2"]


async def test_a_burst_of_one_key_whose_first_fails_holds_nothing_else_up(serve, open_office, topic):
    taker = Taker()
    taker.refused = {"m-0"}
    office = await open_office(
        await serve(taker), office={"topic": topic, "tuning": TUNED, "dice": lambda: 1.0}, retry_first_ms=30_000
    )
    await own(office, topic)
    burst = TUNED.held_max + 100
    office.put(burst, key="a")
    office.put(1)
    await until(lambda: taker.taken == [f"m-{burst}"])
    await until(lambda: len(topic.kept()) == burst and not office.dispatcher.held)
    taker.refused = set()
    redriven(office)
    await serve_all(office, lambda: len(taker.taken) == burst + 1 and not office.dispatcher.held)
    assert taker.taken[1:] == [f"m-{number}" for number in range(burst)]
    await office.outstanding.flush()
    assert not topic.kept()


async def test_a_partition_that_is_lost_while_an_unreadable_delivery_is_parked_again_leaves_no_index(
    serve, open_office, topic
):
    office = await open_office(await serve(Taker()), office={"topic": topic})
    await own(office, topic)
    office.outstanding._enter(entry_of(set_aside(1, parked=True, error=DAMAGED, data=""), -1, found=True))
    append = topic.append

    async def lose_it_meanwhile(rows) -> None:
        await append(rows)
        office.assignment.drop()

    topic.append = lose_it_meanwhile
    await office.outstanding.review(0, Damage(), Damage())
    assert [event.error for event in topic.kept().values()] == [DAMAGED]
    assert len(office.outstanding) == 0
    assert office.outstanding._index._opened is None


# Very many of them


def held(outstanding) -> int:
    """How many objects it holds in memory, but for the worker's and the topic."""
    others = (
        "_topic",
        "_records",
        "_requests",
        "_written",
        "_partitions",
        "_dispatchers",
        "_assure",
        "_damaged",
        "_read",
        "pause",
        "review",
        "notes",
    )
    parts = (outstanding, outstanding._due, outstanding._redrives, outstanding._sync)
    left = [value for part in parts for name, value in vars(part).items() if name not in others and value not in parts]
    seen: set[int] = set()
    while left:
        one = left.pop()
        if id(one) not in seen and not isinstance(one, type | ModuleType | FunctionType):
            seen.add(id(one))
            left += gc.get_referents(one)
    return len(seen)


KINDS = ({}, {"parked": True}, {"number": 0}, {"key": "a"}, FAR, FAR | {"key": "b"}, FAR | {"number": 0})


async def test_memory_stays_bounded_however_many_there_are(serve, open_office, topic):
    office = await open_office(await serve(Taker()), office={"topic": topic})
    office.dispatcher.room = lambda: False
    events = [set_aside(number, **KINDS[number % len(KINDS)]) for number in range(20_000)]
    for event in events[:10_000]:
        topic.write(0, entry_key(event.listener_id, event.message_id), encode(event))
    await own(office, topic)
    for event in events[10_000:]:
        office.outstanding._enter(entry_of(event, 0, found=False))
    for redrives in (None, ("m-1",), ()):
        if redrives is not None:
            redriven(office, *redrives)
        await office.outstanding.serve_due()
        assert len(office.outstanding) == 20_000
        assert held(office.outstanding) < 1_000
    states = [office.outstanding.state(0, "l-1", f"m-{number}") for number in range(len(KINDS))]
    assert states == ["retrying", "retrying", "pending", "retrying", "retrying", "retrying", "pending"]


async def test_a_redrive_of_more_than_are_made_due_at_once_has_all_of_them_tried(serve, open_office, topic):
    taker = Taker()
    office = await open_office(
        await serve(taker), office={"topic": topic, "tuning": Tuning(set_aside_after_ms=0, redriven_at_once=3)}
    )
    ways = ({"parked": True}, FAR, FAR | {"number": 0})
    await own(office, topic, *(set_aside(number, **ways[number % 3]) for number in range(30)))
    redriven(office, *(f"m-{number}" for number in range(0, 30, 3)))
    await serve_all(office, lambda: len(taker.taken) == 10)
    assert {int(one[2:]) % 3 for one in taker.taken} == {0}
    redriven(office)
    await serve_all(office, lambda: len(taker.taken) == 20 and not office.dispatcher.held)
    assert {int(one[2:]) % 3 for one in taker.taken} == {0, 1}
    await office.outstanding.flush()
    assert len(topic.kept()) == len(office.outstanding) == 10


async def test_what_was_read_before_the_partition_was_given_up_or_read_again_is_not_owed(serve, open_office, topic):
    office = await open_office(await serve(Taker()), office={"topic": topic})
    await topic.keep(*(set_aside(number, **FAR) for number in range(200)))
    outstanding = office.outstanding

    async def begin() -> asyncio.Task[None]:
        reading = asyncio.create_task(outstanding.read(0))
        while not len(outstanding):
            await asyncio.sleep(0)
        return reading

    reading = await begin()
    outstanding.close()
    await reading
    assert not len(outstanding)
    reading = await begin()
    topic.unavailable = LogUnavailable("away")
    await asyncio.gather(reading, return_exceptions=True)
    topic.unavailable = None
    topic.records[0][0] = None  # compaction took it, and its tombstone
    reading = await begin()
    await outstanding.read(0)
    await reading
    outstanding.take_over(0)
    assert (len(outstanding), outstanding.state(0, "l-1", "m-0")) == (199, None)


async def test_a_read_that_ends_with_its_worker_reports_no_damage(serve, open_office, topic):
    office = await open_office(await serve(Taker()), office={"topic": topic, "tuning": Tuning(rows_at_once=2)})
    await topic.keep(*(set_aside(number, **FAR) for number in range(4)))
    keys = KeySum()
    for number in range(4):
        keys.add(f"l-1:m-{number}".encode(), 1)
    outstanding, steps, read_whole = office.outstanding, 0, False
    while not read_whole:
        reading = asyncio.create_task(outstanding.read(0, noted=keys.until(4).text()))
        for _ in range(steps):
            await asyncio.sleep(0)
        read_whole, steps = reading.done(), steps + 1
        outstanding.close()
        await reading
        assert office.log.requests.damage == []
    assert steps > 5


async def test_what_an_ended_listener_leaves_is_buried_when_kafka_is_there(serve, open_office, topic):
    office = await open_office(await serve(Taker()), office={"topic": topic})
    others = [set_aside(number, listener_id="l-2", **FAR) for number in range(3)]
    await own(office, topic, *(set_aside(number, **FAR) for number in range(200)), *others)
    topic.unavailable = LogUnavailable("away")
    with pytest.raises(LogUnavailable):
        await office.outstanding.bury({"l-1"})
    topic.unavailable = None
    assert office.outstanding.listeners() == {"l-1", "l-2"}
    await office.outstanding.bury({"l-1"})
    assert office.outstanding.listeners() == {"l-2"}
    assert sorted(topic.kept()) == [b"l-2:m-0", b"l-2:m-1", b"l-2:m-2"]


async def test_one_whose_record_is_somewhere_is_tried_from_what_was_written(serve, open_office, topic):
    """Kafka knew it as a repeat, and no longer where it was."""
    taker = Taker()
    taker.refused.add("m-0")
    server = await serve(taker)
    office = await open_office(server, office={"topic": topic})
    await own(office, topic)
    append_one = topic.append_one

    async def nowhere(*record) -> int:
        await append_one(*record)
        return -1

    topic.append_one = nowhere
    office.put(1)
    await until(lambda: len(office.outstanding))
    reads = topic.reads
    taker.refused.clear()
    await serve_all(office, lambda: taker.taken)
    assert ([post.attempt for post in server.posts], topic.reads) == ([1, 2], reads)


async def held_by_its_dispatcher(office: Office, server, taker: Taker, topic: OutstandingTopic) -> None:
    """m-1 is under way, m-2 waits for it; neither has an attempt left."""
    taker.free.clear()
    await own(office, topic, set_aside(1), set_aside(2))
    await serve_all(office, lambda: server.posts and office.dispatcher.held == 2)


async def test_a_redrive_concerns_what_its_dispatcher_has_and_has_it_tried_once_at_a_time(serve, open_office, topic):
    taker = Taker()
    taker.refused = {"m-1", "m-2"}
    server = await serve(taker)
    office = await open_office(server, office={"topic": topic}, max_attempts=3, max_in_flight=1, timeout_ms=60_000)
    await held_by_its_dispatcher(office, server, taker, topic)
    redriven(office)
    for _ in range(5):
        await office.outstanding.serve_due()
    assert (len(server.posts), office.dispatcher.held) == (1, 2)
    office.dispatcher.stand_down()
    taker.free.set()
    await serve_all(office, lambda: len(server.posts) == 2 and not office.leaving)
    await until(lambda: not office.dispatcher.held)
    assert not any(isinstance(event, DeliveryParked) for event in map(decode, filter(None, values(topic))))
    assert {event.forgiven for event in topic.kept().values()} == {3}


def values(topic: OutstandingTopic) -> list[bytes | None]:
    return [record.value for record in topic.records[0] if record is not None]


async def test_what_was_cancelled_while_its_dispatcher_had_it_does_not_come_back(serve, open_office, topic):
    taker = Taker()
    server = await serve(taker)
    office = await open_office(server, office={"topic": topic}, max_in_flight=1, timeout_ms=60_000)
    await held_by_its_dispatcher(office, server, taker, topic)
    office.outstanding.cancel(0, "l-1", "m-2")
    office.dispatcher.stand_down()
    taker.free.set()
    await serve_all(office, lambda: not len(office.outstanding))
    assert taker.taken == ["m-1"]


async def test_those_whose_stream_is_not_that_far_do_not_hold_up_those_behind_them(serve, open_office, topic):
    taker = Taker()
    office = await open_office(await serve(taker), office={"topic": topic})
    many = TUNED.looks_each_max + 10
    events = [set_aside(number, next_at_ms=1_000 + (number or many)) for number in range(many)]
    await own(office, topic, *events)
    office.partition.tail = 1
    await serve_all(office, lambda: taker.taken)
    assert taker.taken == ["m-0"]


async def test_of_a_line_only_the_first_is_looked_at(serve, open_office, topic):
    office = await open_office(await serve(Taker()), office={"topic": topic})
    await own(office, topic, *(set_aside(number, key="a") for number in reversed(range(20))))
    office.partition.tail = 0
    await office.outstanding.serve_due()
    queued = office.outstanding._index.due("l-1", now_ms(), after=(-1, -1), limit=99)
    assert [entry.message_id for entry in queued] == ["m-0"]


@pytest.mark.parametrize("others", [(), (2,)])
async def test_a_redrive_that_names_many_that_are_settled_reaches_the_one_that_is_not(
    serve, open_office, topic, others
):
    taker = Taker()
    office = await open_office(await serve(taker), office={"topic": topic})
    await own(office, topic, set_aside(1, parked=True), *(set_aside(number, **FAR) for number in others))
    redriven(office, *(f"m-{number}" for number in range(100, 200)), "m-1")
    assert office.outstanding.retrying(0, "l-1")
    await serve_all(office, lambda: taker.taken)
    assert taker.taken == ["m-1"]


async def test_what_is_parked_and_redriven_is_retried_though_its_listener_has_no_room(serve, open_office, topic):
    office = await open_office(await serve(Taker()), office={"topic": topic})
    office.dispatcher.room = lambda: False
    await own(office, topic, set_aside(1, parked=True))
    assert not office.outstanding.retrying(0, "l-1")
    redriven(office)
    await office.outstanding.serve_due()
    assert office.outstanding.retrying(0, "l-1")


async def test_a_partition_that_is_held_begins_no_retries_and_all_of_them_later(serve, open_office, topic):
    taker = Taker()
    office = await open_office(await serve(taker), office={"topic": topic})
    held = office.dispatcher.assignment.held
    held.add(0)
    await own(office, topic, *(set_aside(number) for number in range(5)))
    for _ in range(5):
        await office.outstanding.serve_due()
    assert (office.dispatcher.held, taker.taken) == (0, [])
    held.clear()
    await serve_all(office, lambda: len(taker.taken) == 5)


async def test_what_ends_during_a_flush_does_not_count_as_not_flushed(serve, open_office, topic):
    taker = Taker()
    office = await open_office(await serve(taker), office={"topic": topic})
    await own(office, topic, *(set_aside(number, parked=True) for number in range(2)))
    outstanding, append = office.outstanding, topic.append

    async def meanwhile(outcomes) -> None:
        outstanding.cancel(0, "l-1", "m-1")
        await append(outcomes)

    outstanding.cancel(0, "l-1", "m-0")
    topic.append = meanwhile
    await outstanding.flush()
    assert not outstanding.unflushed
    topic.append, topic.unavailable = append, LogUnavailable("away")
    with pytest.raises(LogUnavailable):
        await outstanding.flush()
    assert outstanding.unflushed == {0}
    topic.unavailable = None
    await outstanding.flush()
    assert not outstanding.unflushed


async def test_a_delivery_that_a_redrive_has_made_due_is_retried_and_counts_once(serve, open_office, topic):
    office = await open_office(await serve(Taker()), office={"topic": topic})
    await own(office, topic, set_aside(0, parked=True))
    due, index = office.outstanding._due, office.outstanding._index
    entry = index.find(0, "l-1", "m-0")
    due.retry(entry)
    due.retry(entry)
    assert office.outstanding.held(0, "l-1") == (0, 1)
