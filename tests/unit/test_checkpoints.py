"""A checkpoint that is cut short, its outcomes or its commits: what is committed, what is repeated."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from broker.core.circuit import State
from broker.core.cursor import Cursor
from broker.core.events import DeliveriesSettled, decode
from broker.delivery import checkpoints as module
from broker.delivery.checkpoints import _AT_ONCE, _MANY, _TOGETHER, GIVES_WAY_S, Checkpoints
from broker.delivery.meters import Meters
from broker.errors import LogUnavailable
from broker.kafka.cursors import NotStored


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
        self.courier = SimpleNamespace(
            listener=SimpleNamespace(
                id=name or f"listener-{partition % 2}",
                organization_id="o",
                queue_id="q",
                reach=lambda _, tail: tail,
            ),
            streams={partition: self},
            error=None,
            circuit=SimpleNamespace(state=State.CLOSED),
            limits=SimpleNamespace(gives_way=False),
        )
        self.alive, self.dirty, self.at = True, False, 0
        self.rows: list[tuple[int, ...]] = []
        self.attempts: list[object] = []
        self.owed = [self]  # so it is kept

    def cursor(self, _tail: int) -> Cursor:
        return Cursor(top=self.at)


async def nothing() -> None: ...


async def test_a_partition_whose_outcomes_are_not_written_keeps_back_its_own_cursors_until_they_are():
    topic, committed = Topic(), []

    async def store(cursors) -> None:
        committed.append({number: cursor.top for places in cursors.values() for number, cursor in places.items()})

    partitions = {number: SimpleNamespace(tail=9) for number in range(3)}
    parts = SimpleNamespace(store=store), topic, SimpleNamespace(flush=nothing)
    checkpoints = Checkpoints(*parts, partitions, {}, Meters(), nothing)
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

    parts = SimpleNamespace(store=store), Topic(), SimpleNamespace(flush=nothing)
    checkpoints = Checkpoints(*parts, {0: SimpleNamespace(tail=9)}, {}, Meters(), confirm)
    streams = [Settled(0, f"l-{number}") for number in range(3 * _TOGETHER)]
    for stream in streams:
        checkpoints.touched(stream)
    with pytest.raises(LogUnavailable):
        await checkpoints.checkpoint()
    assert committed == [_TOGETHER] * lost_after
    assert all(stream.dirty for stream in streams)
    committed.clear()
    await checkpoints.checkpoint()
    assert committed == [_TOGETHER] * 3


def settled(checkpoints: Checkpoints, couriers: dict[str, object], *names: str) -> list[Settled]:
    """A stream of each of these listeners, that has changed."""
    streams = []
    for name in names:
        stream = Settled(0, name)
        couriers[name] = stream.courier
        stream.owed, stream.window = [], SimpleNamespace(idle=lambda _: True)
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

    parts = SimpleNamespace(store=store), Topic(), SimpleNamespace(flush=nothing)
    checkpoints = Checkpoints(*parts, {0: SimpleNamespace(tail=9)}, {}, Meters(), nothing)
    names = [f"l-{number}" for number in range(3 * _TOGETHER)]
    squatted, *others = settled(checkpoints, {}, *names)
    with pytest.raises(LogUnavailable, match="refused"):
        await checkpoints.checkpoint()
    assert sorted(committed) == sorted(names)
    assert squatted.courier.streams
    assert not any(stream.courier.streams for stream in others), "what is idle is tidied away"
    committed.clear()
    with pytest.raises(LogUnavailable, match="refused"):
        await checkpoints.checkpoint()
    assert committed == ["l-0"]


async def test_the_last_checkpoint_commits_what_has_changed_and_once_more_all_that_was_committed_before():
    committed: list[str] = []

    async def store(cursors) -> None:
        committed.extend(cursors)
        if "l-0" in cursors:
            raise NotStored({"l-0": LogUnavailable("refused")})

    parts = SimpleNamespace(store=store), Topic(), SimpleNamespace(flush=nothing)
    couriers: dict[str, object] = {}
    partition = SimpleNamespace(tail=9, placed=lambda _: True)
    checkpoints = Checkpoints(*parts, {0: partition}, couriers, Meters(), nothing)
    names = [f"l-{number}" for number in range(1, 3 * _AT_ONCE)]
    settled(checkpoints, couriers, *names)
    await checkpoints.checkpoint()
    settled(checkpoints, couriers, "new")
    committed.clear()
    await checkpoints.last()
    assert committed == ["new"]
    settled(checkpoints, couriers, "l-1")  # its outcome is not written: no cursor may say so
    (squatted,) = settled(checkpoints, couriers, "l-0")
    squatted.dirty = False
    checkpoints._stored["l-0"] = 0.0, (None, False)
    committed.clear()
    await checkpoints.once_more()
    assert sorted(committed) == sorted([*names[1:], "new", "l-0"])


@pytest.fixture
def clock(monkeypatch) -> SimpleNamespace:
    """Of the checkpoints: its `now`, in seconds."""
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


async def test_who_gives_way_is_committed_every_few_seconds_unless_much_has_happened_or_it_is_another_now(clock):
    """docs/decisions/0175"""
    committed: list[str] = []

    async def store(cursors) -> None:
        committed.extend(cursors)

    topic = Topic()
    checkpoints = Checkpoints(
        SimpleNamespace(store=store),
        topic,
        SimpleNamespace(flush=nothing),
        {0: SimpleNamespace(tail=9)},
        {},
        Meters(),
        nothing,
    )
    names = ["quick", "slow", "busy", "fails", "down"]
    streams = {name: Settled(0, name) for name in names}
    for name in names[1:]:
        streams[name].courier.limits.gives_way = True

    async def checkpoint(*, last: bool = False) -> list[str]:
        """After as many seconds as there are between two: whose cursors it commits."""
        clock.now += module.CHECKPOINT_S
        for stream in streams.values():
            stream.at += 1
            stream.rows.append((stream.at, 1, 200, 1, 1))
            checkpoints.touched(stream)
        committed.clear()
        await (checkpoints.last() if last else checkpoints.checkpoint())
        return sorted(committed)

    assert await checkpoint() == sorted(names), "the first is never late"
    streams["busy"].rows += [(0, 1, 200, 1, 1)] * _MANY
    streams["fails"].courier.error = "500"
    streams["down"].courier.circuit.state = State.OPEN
    assert await checkpoint() == ["busy", "down", "fails", "quick"]
    assert await checkpoint() == ["quick"]
    assert streams["slow"].dirty
    assert len(streams["slow"].rows) == 2, "what is not committed is not written, either"
    assert await checkpoint() == ["quick", "slow"]
    assert await checkpoint(last=True) == sorted(names), "before the partitions are given up all is"
    streams["slow"].courier.limits.gives_way = False
    assert await checkpoint() == ["quick", "slow"], "it is quick by now"
    assert GIVES_WAY_S == 3 * module.CHECKPOINT_S
