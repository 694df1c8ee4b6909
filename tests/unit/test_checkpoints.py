"""A checkpoint that is cut short, its outcomes or its commits: what is committed, what is repeated."""

from __future__ import annotations

import asyncio
import contextlib
from types import SimpleNamespace

import pytest

from broker.core.circuit import Circuit
from broker.core.codec import decode
from broker.core.cursor import Cursor
from broker.core.events import DeliveriesSettled
from broker.core.health import Facts, Recent, facts_of
from broker.delivery.checkpoint.checkpoints import Checkpoints
from broker.delivery.checkpoint.metrics import Metrics
from broker.delivery.fence import Fence
from broker.delivery.tuning import TUNED, Tuning
from broker.errors import LogUnavailable, Suspended
from broker.ports import NotStored


class Topic:
    """`deliveries`. down: partitions that can't be written."""

    def __init__(self) -> None:
        self.down: set[int] = set()
        self.written: list[tuple[int, int]] = []  # (partition, offset of the message)

    async def append(self, outcomes) -> None:
        for partition in [one for one in outcomes if one not in self.down]:
            for _, value in outcomes.pop(partition):
                event = decode(value)
                assert isinstance(event, DeliveriesSettled)
                self.written += [(partition, row[0]) for row in event.rows]
        if outcomes:
            raise LogUnavailable("Kafka did not take the outcomes in time")


class Settled:
    """A stream that has settled everything below its place, `at`. Its listener is quick."""

    def __init__(self, partition: int, name: str = "") -> None:
        self.partition = partition
        self.dispatcher = SimpleNamespace(
            listener=SimpleNamespace(
                id=name or f"listener-{partition % 2}",
                organization_id="o",
                queue_id="q",
                reach=lambda _, tail: tail,
            ),
            streams={partition: self},
            recent={},
            answers=SimpleNamespace(take=lambda *_: []),
            circuit=Circuit(),
            error=None,
            limits=SimpleNamespace(low_priority=False),
        )
        self.dirty, self.pressing, self.at = False, False, 0
        self.rows: list[tuple[int, ...]] = []
        self.attempts: list[object] = []
        self.from_outstanding = [self]  # so it is kept

    @property
    def current(self) -> bool:
        return self.dispatcher.streams.get(self.partition) is self

    def cursor(self, _tail: int, **_waiting: object) -> Cursor:
        return Cursor(top=self.at)


async def nothing() -> None: ...


NOTHING_KEPT = SimpleNamespace(  # stands for Outstanding
    flush=nothing,
    unflushed=(),
    note=nothing,
    waiting=lambda *_: (0, None),
    held=lambda *_: (0, 0),
    take_changed=dict,
)


async def test_a_partition_whose_outcomes_are_not_written_keeps_back_its_own_cursors_until_they_are():
    topic, committed = Topic(), []

    async def store(cursors) -> None:
        committed.append({number: cursor.top for places in cursors.values() for number, cursor in places.items()})

    partitions = {number: SimpleNamespace(tail=9) for number in range(3)}
    parts = SimpleNamespace(store=store), topic, NOTHING_KEPT
    checkpoints = Checkpoints(*parts, partitions, {}, Metrics(), nothing)
    streams = [Settled(number) for number in partitions]

    def settle(offset: int) -> None:
        for stream in streams:
            stream.rows.append((offset, 1, 200, 1, 1))
            stream.at = offset + 1
            checkpoints.touched(stream)

    settle(0)
    topic.down = {1}
    with pytest.raises(LogUnavailable):
        await checkpoints.checkpoint()
    assert committed.pop() == {0: 1, 2: 1}
    settle(1)
    with pytest.raises(LogUnavailable):
        await checkpoints.checkpoint()
    assert committed.pop() == {0: 2, 2: 2}
    topic.down = set()
    await checkpoints.checkpoint()
    assert committed.pop() == {1: 2}
    assert sorted(topic.written) == [(partition, offset) for partition in range(3) for offset in range(2)]  # each once


@pytest.mark.parametrize("lost_after", [0, 1, 2])
async def test_who_is_no_member_any_more_in_the_middle_of_many_commits_makes_no_more_of_them(lost_after):
    """What is next would set back the cursors of who owns the partitions by then: docs/decisions/0160."""
    asked, committed = 0, []

    async def store(cursors) -> None:
        committed.append(len(cursors))

    async def confirm() -> None:
        nonlocal asked
        asked += 1
        if asked == lost_after + 1:
            raise LogUnavailable("no member any more")

    parts = SimpleNamespace(store=store), Topic(), NOTHING_KEPT
    checkpoints = Checkpoints(*parts, {0: SimpleNamespace(tail=9)}, {}, Metrics(), confirm)
    streams = [Settled(0, f"l-{number}") for number in range(3 * TUNED.commits_together)]
    for stream in streams:
        checkpoints.touched(stream)
    with pytest.raises(LogUnavailable):
        await checkpoints.checkpoint()
    assert committed == [TUNED.commits_together] * lost_after
    assert all(stream.dirty for stream in streams)
    committed.clear()
    await checkpoints.checkpoint()
    assert committed == [TUNED.commits_together] * 3


def settled(checkpoints: Checkpoints, dispatchers: dict[str, object], *names: str) -> list[Settled]:
    """A stream of each of these listeners, that has changed."""
    streams = []
    for name in names:
        stream = Settled(0, name)
        dispatchers[name] = stream.dispatcher
        stream.from_outstanding, stream.window = [], SimpleNamespace(idle=lambda _: True)
        checkpoints.touched(stream)
        streams.append(stream)
    return streams


async def test_a_group_that_takes_no_commit_keeps_its_own_streams_dirty_and_no_others():
    """Somebody consumes as a listener's group, and Kafka refuses ours for good: docs/decisions/0160."""
    committed: list[str] = []

    async def store(cursors) -> None:
        committed.extend(cursors)
        if "l-0" in cursors:
            raise NotStored({"l-0": LogUnavailable("refused")})

    parts = SimpleNamespace(store=store), Topic(), NOTHING_KEPT
    checkpoints = Checkpoints(*parts, {0: SimpleNamespace(tail=9)}, {}, Metrics(), nothing)
    names = [f"l-{number}" for number in range(3 * TUNED.commits_together)]
    squatted, *others = settled(checkpoints, {}, *names)
    with pytest.raises(LogUnavailable, match="refused"):
        await checkpoints.checkpoint()
    assert sorted(committed) == sorted(names)
    assert squatted.dispatcher.streams
    assert not any(stream.dispatcher.streams for stream in others), "what is idle is tidied away"
    committed.clear()
    with pytest.raises(LogUnavailable, match="refused"):
        await checkpoints.checkpoint()
    assert committed == ["l-0"]


async def test_a_listener_that_is_down_or_has_parked_says_so_on_its_idle_partitions_until_that_is_stored():
    stream = Settled(0, "l")
    dispatcher, refuses = stream.dispatcher, [LogUnavailable("refused")]
    dispatcher.circuit.trip(1)
    dispatcher.recent[1] = Recent()
    dispatcher.recent[1].add(5, refused=2)
    committed: list[dict[int, Cursor]] = []

    async def store(cursors) -> None:
        if refuses:
            raise NotStored({"l": refuses.pop()})
        committed.append(dict(cursors["l"]))

    parked = [{"l": {1}}, {}, {}]
    kept = SimpleNamespace(
        unflushed=(),
        flush=nothing,
        note=nothing,
        waiting=lambda *_: (0, None),
        held=lambda number, _: (number, 0),
        take_changed=parked.pop,
    )
    partitions = {number: SimpleNamespace(tail=9, placed=lambda _: True) for number in range(3)}
    parts = SimpleNamespace(store=store), Topic(), kept
    checkpoints = Checkpoints(*parts, partitions, {"l": dispatcher}, Metrics(), nothing)
    checkpoints.changed("l")
    with pytest.raises(LogUnavailable, match="refused"):
        await checkpoints.checkpoint()
    await checkpoints.checkpoint()
    (cursors,) = committed
    assert cursors.keys() == {0, 1, 2}
    assert [cursors[number].state for number in (1, 2)] == ["down", "down"]
    assert facts_of([cursors[1], cursors[2]], 5) == Facts(down=True, parked=3, refused=2, refused_at_ms=5)
    await checkpoints.checkpoint()
    assert committed[1].keys() == {1}, "only where deliveries were parked since"


async def test_the_last_checkpoint_commits_what_has_changed_and_once_more_all_that_was_committed_before():
    committed: list[str] = []

    async def store(cursors) -> None:
        committed.extend(cursors)
        if "l-0" in cursors:
            raise NotStored({"l-0": LogUnavailable("refused")})

    parts = SimpleNamespace(store=store), Topic(), NOTHING_KEPT
    dispatchers: dict[str, object] = {}
    partition = SimpleNamespace(tail=9, placed=lambda _: True)
    checkpoints = Checkpoints(*parts, {0: partition}, dispatchers, Metrics(), nothing)
    names = [f"l-{number}" for number in range(1, 3 * TUNED.dirty_at_once)]
    settled(checkpoints, dispatchers, *names)
    await checkpoints.checkpoint()
    settled(checkpoints, dispatchers, "new")
    committed.clear()
    await checkpoints.last()
    assert committed == ["new"]
    settled(checkpoints, dispatchers, "l-1")  # its outcome is not written: no cursor may say so
    (squatted,) = settled(checkpoints, dispatchers, "l-0")
    squatted.dirty = False
    checkpoints.stored_at_s["l-0"] = 0.0
    committed.clear()
    await checkpoints.once_more()
    assert sorted(committed) == sorted([*names[1:], "new", "l-0"])


@pytest.fixture
def clock() -> SimpleNamespace:
    """Of the checkpoints: its `now`, in seconds."""
    return SimpleNamespace(now=100.0)


class Office:
    """Checkpoints of listeners that are served one after the other. refused: those whose commits are."""

    def __init__(self, clock: SimpleNamespace, *names: str) -> None:
        self.clock, self.names = clock, names
        self.committed: list[str] = []
        self.refused: set[str] = set()
        self.topic = Topic()
        self.streams = {name: Settled(0, name) for name in names}
        self.dispatchers = {name: stream.dispatcher for name, stream in self.streams.items()}
        self.metrics = Metrics()
        self.checkpoints = Checkpoints(
            SimpleNamespace(store=self._store),
            self.topic,
            NOTHING_KEPT,
            {0: SimpleNamespace(tail=9)},
            self.dispatchers,
            self.metrics,
            nothing,
            monotonic=lambda: clock.now,
        )

    async def _store(self, cursors) -> None:
        self.committed.extend(cursors)
        if refused := self.refused & cursors.keys():
            raise NotStored({one: LogUnavailable("refused") for one in refused})

    async def checkpoint(self, *, last: bool = False) -> list[str]:
        """After as many seconds as there are between two, each having settled one more: whose cursors it commits."""
        self.clock.now += TUNED.checkpoint_s
        for stream in self.streams.values():
            stream.at += 1
            stream.rows.append((stream.at, 1, 200, 1, 1))
            self.checkpoints.touched(stream)
        self.committed.clear()
        try:
            await (self.checkpoints.last() if last else self.checkpoints.checkpoint())
        except LogUnavailable:
            assert self.refused
        return sorted(self.committed)


async def test_who_gives_way_is_committed_every_few_seconds_unless_much_has_happened_or_it_presses(clock):
    """docs/operations.md, commits for low-priority listeners"""
    office = Office(clock, "quick", "a", "b", "c", "busy", "pressing")
    for name in office.names[1:]:
        office.streams[name].dispatcher.limits.low_priority = True
    assert await office.checkpoint() == sorted(office.names), "the first is never late"
    office.streams["busy"].rows += [(0, 1, 200, 1, 1)] * TUNED.outcomes_waiting_max
    office.streams["pressing"].pressing = True
    second = await office.checkpoint()
    assert {"quick", "busy", "pressing"} <= set(second)
    assert any(office.streams[name].dirty and len(office.streams[name].rows) == 1 for name in "abc"), (
        "what is not committed is not written, either"
    )
    third, fourth = await office.checkpoint(), await office.checkpoint()
    assert sorted(one for some in (second, third, fourth) for one in some if one in "abc") == list("abc"), "each once"
    for _ in range(9):
        waited = {name: len(stream.rows) for name, stream in office.streams.items()}
        assert max(waited.values()) < TUNED.low_priority_s / TUNED.checkpoint_s
        assert waited["quick"] == 0
        await office.checkpoint()
    assert await office.checkpoint(last=True) == sorted(office.names), "before the partitions are given up all is"
    for name in "abc":
        office.streams[name].dispatcher.limits.low_priority = False
    assert {"a", "b", "c"} <= set(await office.checkpoint()), "they are quick by now"


async def test_those_that_give_way_have_their_turns_one_after_the_other(clock):
    office = Office(clock, *"abcdef")
    for stream in office.streams.values():
        stream.dispatcher.limits.low_priority = True
    assert await office.checkpoint() == [*"abcdef"]
    assert [len(await office.checkpoint()) for _ in range(9)] == [2] * 9


async def test_a_commit_that_failed_is_made_again_at_once_whoever_gives_way(clock):
    office = Office(clock, "slow")
    office.streams["slow"].dispatcher.limits.low_priority = True
    await office.checkpoint()
    office.refused, stored_at_s = {"slow"}, office.checkpoints.stored_at_s["slow"]
    rounds = [await office.checkpoint() for _ in range(6)]
    assert office.checkpoints.stored_at_s["slow"] == stored_at_s, "what Kafka refuses is not stored"
    first = rounds.index(["slow"])
    assert rounds[first:] == [["slow"]] * (6 - first)
    office.refused = set()
    assert await office.checkpoint() == ["slow"]
    assert await office.checkpoint() == []


async def test_a_listener_that_has_ended_is_not_remembered(clock):
    office = Office(clock, "slow", "ended")
    await office.checkpoint()
    assert office.metrics.by_listener["ended"].outcomes == {"delivered": 1}
    office.checkpoints.removed("ended")
    assert office.metrics.by_listener.keys() == {"slow"}
    assert office.checkpoints.stored_at_s.keys() == {"slow"}
    del office.dispatchers["ended"]  # while its cursor is being committed
    await office.checkpoint()
    assert office.checkpoints.stored_at_s.keys() == {"slow"}


class Committed(list[str]):
    """The listeners whose cursors were committed, in order; stands for KafkaCursors."""

    async def store(self, cursors) -> None:
        self.extend(cursors)


def checkpoints_of(cursors, dispatchers, *, confirm=nothing, placed=lambda _: True, **more) -> Checkpoints:
    """Of one partition. placed: whether the place of a dispatcher is known."""
    partition = SimpleNamespace(tail=9, placed=placed)
    return Checkpoints(cursors, Topic(), NOTHING_KEPT, {0: partition}, dispatchers, Metrics(), confirm, **more)


async def test_of_several_groups_that_take_no_commit_each_keeps_its_streams_dirty():
    class Squatted(Committed):
        async def store(self, cursors) -> None:
            await super().store(cursors)
            raise NotStored({one: LogUnavailable("refused") for one in cursors})

    committed = Squatted()
    checkpoints = checkpoints_of(committed, {})
    names = [f"l-{number}" for number in range(3 * TUNED.commits_together)]
    settled(checkpoints, {}, *names)
    for _ in range(2):
        committed.clear()
        with pytest.raises(LogUnavailable, match="refused"):
            await checkpoints.checkpoint()
        assert sorted(committed) == sorted(names)


async def test_partitions_that_are_given_up_in_the_middle_of_many_commits_have_no_more_of_them():
    class GivenUp(Committed):
        async def store(self, cursors) -> None:
            await super().store(cursors)
            fence.end()

    committed, fence = GivenUp(), Fence(nothing)
    checkpoints = checkpoints_of(committed, {}, confirm=fence.confirm)
    settled(checkpoints, {}, *(f"l-{number}" for number in range(3 * TUNED.commits_together)))
    with pytest.raises(LogUnavailable, match="does not own"):
        await checkpoints.checkpoint()
    assert len(committed) == TUNED.commits_together


async def test_the_last_checkpoint_asks_whether_they_were_ours_though_there_is_nothing_to_commit():
    async def no_member() -> None:
        raise LogUnavailable("no member any more")

    with pytest.raises(LogUnavailable, match="no member"):
        await checkpoints_of(Committed(), {}, confirm=no_member).last()


async def test_who_gives_way_does_so_again_after_the_last_checkpoint(clock):
    office = Office(clock, "slow")
    office.streams["slow"].dispatcher.limits.low_priority = True
    assert await office.checkpoint(last=True) == ["slow"]
    assert [] in [await office.checkpoint() for _ in range(3)]


async def test_one_who_stood_still_commits_nothing_any_more(clock):
    async def stand_still(_s: float) -> None:
        clock.now += TUNED.suspended_s + 1

    committed, dispatchers = Committed(), {}
    checkpoints = checkpoints_of(committed, dispatchers, monotonic=lambda: clock.now, sleep=stand_still)
    settled(checkpoints, dispatchers, "l")
    await checkpoints.checkpoint()
    with pytest.raises(Suspended):
        await checkpoints.run()
    await checkpoints.once_more()
    settled(checkpoints, dispatchers, "l")
    await checkpoints.checkpoint()
    assert committed == ["l"]


async def test_a_stream_that_was_dropped_is_not_committed():
    committed = Committed()
    checkpoints = checkpoints_of(committed, {})
    (stream,) = settled(checkpoints, {}, "ended")
    stream.dispatcher.streams.clear()
    await checkpoints.checkpoint()
    assert not committed


async def test_a_stream_that_is_tidied_away_is_its_dispatcher_s_no_more():
    checkpoints = checkpoints_of(Committed(), {})
    (stream,) = settled(checkpoints, {}, "l")
    await checkpoints.checkpoint()
    assert not stream.current


async def one_round_of_the_idle(checkpoints: Checkpoints, done) -> None:
    running = asyncio.create_task(checkpoints.run_idle())
    async with asyncio.timeout(60):
        while not done():
            await asyncio.sleep(0.001)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


QUICK_ROUNDS = Tuning(checkpoint_s=0.001, idle_checkpoint_s=0.002)  # each listener is visited every other millisecond


async def test_one_whose_place_is_not_known_yet_has_no_cursor_committed():
    committed = Committed()
    dispatchers = {name: Settled(0, name).dispatcher for name in ("loading", "known", "too")}
    for dispatcher in dispatchers.values():
        dispatcher.streams.clear()
    loading = dispatchers["loading"]
    checkpoints = checkpoints_of(committed, dispatchers, placed=lambda one: one is not loading, tuning=QUICK_ROUNDS)
    await one_round_of_the_idle(checkpoints, lambda: committed.count("known") > 1 and committed.count("too") > 1)
    assert "loading" not in committed


async def test_what_waits_and_does_not_change_is_committed_now_and_then():
    stream = Settled(0, "l")
    committed = Committed()
    checkpoints = checkpoints_of(committed, {"l": stream.dispatcher}, tuning=QUICK_ROUNDS)
    await one_round_of_the_idle(checkpoints, lambda: stream.dirty)
    await checkpoints.checkpoint()
    assert committed == ["l"]


@pytest.mark.parametrize("what", ["results", "ends of stored deliveries"])
async def test_a_partition_that_is_not_written_for_long_gets_no_more_messages_until_it_is(what):
    at_s, committed, refilled = 0.0, dict[int, int](), list[str]()
    topic, unflushed = Topic(), set[int]()

    async def store(cursors) -> None:
        committed.update({number: cursor.top for places in cursors.values() for number, cursor in places.items()})

    async def flush() -> None:
        if unflushed:
            raise LogUnavailable("down")

    async def checkpoint(*, fails: bool = True) -> None:
        with pytest.raises(LogUnavailable) if fails else contextlib.nullcontext():
            await checkpoints.checkpoint()

    kept = SimpleNamespace(**vars(NOTHING_KEPT) | {"flush": flush, "unflushed": unflushed})
    dispatcher = SimpleNamespace(behind=("a stream",), wake=lambda: refilled.append("l"))
    partitions = {number: SimpleNamespace(tail=9) for number in range(3)}
    parts = SimpleNamespace(store=store), topic, kept
    checkpoints = Checkpoints(*parts, partitions, {"l": dispatcher}, Metrics(), nothing, monotonic=lambda: at_s)
    streams = [Settled(number) for number in partitions]
    for stream in streams:
        stream.rows.append((0, 1, 200, 1, 1))
        stream.at = 1
        checkpoints.touched(stream)
    if what == "results":
        topic.down = {1}
    else:
        unflushed.add(1)
    await checkpoint()
    assert (committed, checkpoints.held.partitions) == ({0: 1, 2: 1}, set())
    at_s += TUNED.unwritten_s
    await checkpoint()
    assert (committed, checkpoints.held.partitions, refilled) == ({0: 1, 2: 1}, {1}, [])
    topic.down = set()
    unflushed.clear()
    await checkpoint(fails=False)
    assert (committed, checkpoints.held.partitions, refilled) == ({0: 1, 1: 1, 2: 1}, set(), ["l"])
