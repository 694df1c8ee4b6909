"""The group commit when a broker of several does not acknowledge: what must go to it waits, the rest goes on."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest

from broker.errors import InDoubt, LogUnavailable
from broker.kafka.group_commit import GroupCommit
from broker.kafka.topics import Topic

PARTITIONS = 6


class Brokers:
    """Two of them, each leads every other partition; one that hangs keeps what it is sent until it goes on."""

    def __init__(self) -> None:
        self.led_by: dict[int, int | None] = {number: number % 2 for number in range(PARTITIONS)}
        self.hanging: set[int] = set()
        self.stored: dict[int, list[bytes]] = defaultdict(list)
        self.held: dict[int, list[tuple[int, list[bytes], asyncio.Future[Any]]]] = defaultdict(list)
        self.looked_again = 0

    # as KafkaRequests

    def leader(self, _topic: str, partition: int) -> int | None:
        return self.led_by[partition]

    def leaders(self, _topic: str) -> dict[int, int]:
        return {partition: leader for partition, leader in self.led_by.items() if leader is not None}

    def look_again(self) -> None:
        self.looked_again += 1

    # as Producer

    def get(self) -> Brokers:
        return self

    def create_batch(self) -> Any:
        values: list[bytes] = []

        def append(*, key, value, timestamp, headers):
            values.append(value)
            return True

        size = lambda: sum(map(len, values))  # noqa: E731
        return SimpleNamespace(values=values, append=append, size=size, close=lambda: None)

    async def send_batch(self, batch: Any, _topic: str, *, partition: int) -> asyncio.Future[Any]:
        acknowledged: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        leader = self.led_by[partition]
        if leader is None or leader in self.hanging:
            self.held[-1 if leader is None else leader].append((partition, batch.values, acknowledged))
        else:
            self._store(partition, batch.values, acknowledged)
        return acknowledged

    def go_on(self, broker: int) -> None:
        self.hanging.discard(broker)
        for held in self.held.pop(broker, []):
            self._store(*held)

    def _store(self, partition: int, values: list[bytes], acknowledged: asyncio.Future[Any]) -> None:
        acknowledged.set_result(SimpleNamespace(offset=len(self.stored[partition])))
        self.stored[partition] += values


@pytest.fixture
def brokers() -> Brokers:
    return Brokers()


@pytest.fixture
async def open_commit(brokers) -> AsyncIterator[Callable[..., Awaitable[GroupCommit]]]:
    opened: list[GroupCommit] = []

    async def start(**more: int) -> GroupCommit:
        topic = Topic("messages", PARTITIONS, {})
        opened.append(GroupCommit(brokers, brokers, topic, 0.3, sweep_s=0.005, late_s=0.02, **more))
        opened[-1].start()
        return opened[-1]

    yield start
    for broker in (*brokers.held,):
        brokers.go_on(broker)
    for commit in opened:
        await commit.stop()


@pytest.fixture
async def commit(open_commit) -> GroupCommit:
    return await open_commit()


def value(text: str):
    return lambda _partition: (b"id", text.encode(), b"queue")


def key_of(commit: GroupCommit, partition: int) -> str:
    return next(key for key in map(str, range(1000)) if commit.partition_of(key) == partition)


async def until_suspected(commit: GroupCommit, *leaders: int | None) -> None:
    async with asyncio.timeout(10):
        while commit.in_flight.suspects != set(leaders):
            await asyncio.sleep(0.005)


async def a_few_turns() -> None:
    """Turns of the event loop, in which whatever can be sent now is sent."""
    for _ in range(20):
        await asyncio.sleep(0)


async def put_until_held(commit: GroupCommit, brokers: Brokers, broker: int) -> list[asyncio.Future[Any]]:
    """What the broker keeps is not known to be stored, whatever else is."""
    puts = []
    while not brokers.held[broker]:
        puts.append(asyncio.ensure_future(commit.append(value("caught"))))
        await asyncio.sleep(0)
    return puts


async def test_one_broker_that_hangs_does_not_hold_up_what_may_go_elsewhere(commit, brokers):
    brokers.hanging.add(1)
    caught = await put_until_held(commit, brokers, 1)
    await until_suspected(commit, 1)
    for number in range(100):
        partition, _ = await asyncio.wait_for(commit.append(value(str(number))), 1)
        assert brokers.led_by[partition] == 0
    assert len(brokers.held[1]) <= 2
    assert brokers.looked_again
    results = await asyncio.gather(*caught, return_exceptions=True)
    assert {type(one) for one in results} <= {tuple, InDoubt}
    assert InDoubt in {type(one) for one in results}
    brokers.go_on(1)
    await until_suspected(commit)
    async with asyncio.timeout(10):
        while {brokers.led_by[(await commit.append(value("again")))[0]] for _ in range(10)} != {0, 1}:
            pass


async def test_a_key_whose_broker_hangs_is_told_that_nothing_was_stored_and_then_at_once(commit, brokers):
    brokers.hanging.add(1)
    first = asyncio.ensure_future(commit.append(value("in doubt"), ordering_key=key_of(commit, 1)))
    await until_suspected(commit, 1)
    same, other = (
        asyncio.ensure_future(commit.append(value("waits"), ordering_key=key_of(commit, number))) for number in (1, 3)
    )
    assert (await asyncio.wait_for(commit.append(value("elsewhere"), ordering_key=key_of(commit, 2)), 1))[0] == 2
    with pytest.raises(InDoubt):
        await first
    for waiting in (same, other):
        with pytest.raises(LogUnavailable, match="Nothing was stored"):
            await waiting
    async with asyncio.timeout(10):
        while 1 not in commit.in_flight.away:
            await asyncio.sleep(0.005)
    with pytest.raises(LogUnavailable, match="Nothing was stored"):
        commit.append(value("refused"), ordering_key=key_of(commit, 3))
    await commit.append(value("elsewhere"), ordering_key=key_of(commit, 2))
    brokers.go_on(1)
    await until_suspected(commit)
    assert (await commit.append(value("back"), ordering_key=key_of(commit, 1)))[0] == 1
    assert brokers.stored[1] == [b"in doubt", b"back"]
    assert brokers.stored[3] == []


async def test_a_key_of_a_partition_without_a_leader_waits_for_one_and_holds_up_nobody(commit, brokers):
    brokers.led_by[3] = None
    waiting = asyncio.ensure_future(commit.append(value("waits"), ordering_key=key_of(commit, 3)))
    for number in range(20):
        await asyncio.wait_for(commit.append(value(str(number))), 1)
    async with asyncio.timeout(10):
        while not brokers.looked_again:
            await asyncio.sleep(0.005)
    assert not waiting.done()
    brokers.led_by[3] = 0  # elected
    assert (await waiting)[0] == 3


async def test_when_all_hang_few_batches_are_in_doubt_and_soon_a_put_is_refused_at_once(commit, brokers):
    brokers.hanging |= {0, 1}
    puts = []
    async with asyncio.timeout(10):
        while commit.in_flight.suspects != {0, 1}:
            puts.append(asyncio.ensure_future(commit.append(value("in doubt"))))
            await asyncio.sleep(0.005)
    puts.append(asyncio.ensure_future(commit.append(value("waits"))))
    results = await asyncio.gather(*puts, return_exceptions=True)
    assert isinstance(results[0], InDoubt)
    assert isinstance(results[-1], LogUnavailable)
    assert sum(map(len, brokers.held.values())) <= 3
    async with asyncio.timeout(10):
        while not commit.in_flight.away >= {0, 1}:
            await asyncio.sleep(0.005)
    with pytest.raises(LogUnavailable, match="Nothing was stored"):
        commit.append(value("refused"))
    brokers.go_on(0)
    await until_suspected(commit, 1)
    assert brokers.led_by[(await commit.append(value("again")))[0]] == 0


async def test_a_broker_that_acknowledges_what_was_sent_later_is_trusted_though_one_partition_hangs(commit, brokers):
    brokers.led_by = dict.fromkeys(range(PARTITIONS), 0)
    brokers.hanging.add(0)
    stuck = asyncio.ensure_future(commit.append(value("stuck"), ordering_key=key_of(commit, 5)))
    await until_suspected(commit, 0)
    brokers.hanging.discard(0)  # for others
    for number in range(20):
        await asyncio.wait_for(commit.append(value(str(number))), 1)
    await until_suspected(commit)
    with pytest.raises(InDoubt):
        await stuck
    await asyncio.wait_for(commit.append(value("goes on")), 1)


async def test_what_waits_for_one_partition_leaves_room_for_the_others(open_commit, brokers):
    commit = await open_commit(waiting_max=20)
    brokers.hanging.add(1)
    waiting = [asyncio.ensure_future(commit.append(value("in doubt"), ordering_key=key_of(commit, 1)))]
    await until_suspected(commit, 1)
    waiting += [asyncio.ensure_future(commit.append(value("waits"), ordering_key=key_of(commit, 1))) for _ in range(10)]
    with pytest.raises(LogUnavailable, match="Nothing was stored"):
        commit.append(value("one too many"), ordering_key=key_of(commit, 1))
    await asyncio.wait_for(commit.append(value("elsewhere")), 1)
    assert commit.waiting == 10
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(one) for one in results] == [InDoubt] + [LogUnavailable] * 10
    assert commit.waiting == commit.waiting_bytes == 0


async def test_one_batch_is_under_way_to_each_broker_and_the_rest_becomes_the_next(commit, brokers):
    brokers.hanging |= {0, 1}
    puts = []
    for number in range(20):
        puts.append(asyncio.ensure_future(commit.append(value(str(number)))))
        await asyncio.sleep(0)
    assert [len(brokers.held[broker]) for broker in (0, 1)] == [1, 1]
    brokers.go_on(0)
    brokers.go_on(1)
    await asyncio.gather(*puts)
    assert sorted(int(one) for values in brokers.stored.values() for one in values) == list(range(20))


async def test_what_must_go_to_several_partitions_of_a_broker_goes_at_once(commit, brokers):
    brokers.hanging |= {0, 1}
    puts = [commit.append(value("keyed"), ordering_key=key_of(commit, number)) for number in range(PARTITIONS)]
    puts.append(commit.append(value("anywhere")))
    await a_few_turns()
    for broker in (0, 1):
        assert {partition for partition, _, _ in brokers.held[broker]} == {broker, broker + 2, broker + 4}
    later = [commit.append(value("later"), ordering_key=key_of(commit, number)) for number in range(PARTITIONS)]
    await a_few_turns()
    assert [len(brokers.held[broker]) for broker in (0, 1)] == [3, 3], "these wait until the broker has acknowledged"
    brokers.go_on(0)
    brokers.go_on(1)
    await asyncio.gather(*puts, *later)
    for number in range(PARTITIONS):
        assert [one for one in brokers.stored[number] if one != b"anywhere"] == [b"keyed", b"later"]


async def test_what_goes_at_once_is_about_a_mebibyte(commit, brokers):
    brokers.hanging |= {0, 1}
    large = "x" * 600_000
    puts = [commit.append(value(large), ordering_key=key_of(commit, number)) for number in (0, 2, 4)]
    await a_few_turns()
    assert len(brokers.held[0]) == 2
    brokers.go_on(0)
    assert {partition for partition, _ in await asyncio.gather(*puts)} == {0, 2, 4}


async def test_a_late_broker_gets_no_batches_for_several_partitions_at_once(commit, brokers):
    brokers.led_by = dict.fromkeys(range(PARTITIONS), 0)
    brokers.hanging.add(0)
    puts = [commit.append(value("late"))]
    await until_suspected(commit, 0)
    puts += (commit.append(value("waits"), ordering_key=key_of(commit, number)) for number in range(PARTITIONS))
    await a_few_turns()
    assert len(brokers.held[0]) == 2
    brokers.go_on(0)
    await asyncio.gather(*puts)


async def test_while_no_leader_is_known_few_batches_are_in_doubt(commit, brokers):
    brokers.led_by = dict.fromkeys(range(PARTITIONS))
    puts = [commit.append(value("keyed"), ordering_key=key_of(commit, number)) for number in range(PARTITIONS)]
    results = await asyncio.gather(*puts, return_exceptions=True)
    assert [type(one) for one in results].count(InDoubt) <= 2
    assert {type(one) for one in results} == {InDoubt, LogUnavailable}


async def paused(brokers: Brokers, pause_s: float) -> AsyncIterator[GroupCommit]:
    brokers.led_by = dict.fromkeys(range(PARTITIONS), 0)
    commit = GroupCommit(brokers, brokers, Topic("messages", PARTITIONS, {}), 10, pause_s=pause_s)
    commit.start()
    yield commit
    await commit.stop()


async def test_a_batch_with_company_is_followed_by_a_pause_in_which_the_next_one_fills(brokers):
    async for commit in paused(brokers, 1.0):
        await asyncio.gather(*(commit.append(value("company")) for _ in range(30)))
        puts = []
        for number in range(20):
            puts.append(asyncio.ensure_future(commit.append(value(str(number)))))
            await asyncio.sleep(0)
        assert len({partition for partition, _ in await asyncio.gather(*puts)}) == 1


async def test_the_pause_ends_when_as_many_puts_wait_as_the_largest_recent_batch_had(brokers):
    async for commit in paused(brokers, 3600):
        await asyncio.gather(*(commit.append(value("company")) for _ in range(5)))
        for _ in range(10):
            puts = []
            for number in range(5):
                assert not any(put.done() for put in puts)
                puts.append(asyncio.ensure_future(commit.append(value(str(number)))))
                await a_few_turns()
            partitions = [partition for partition, _ in await asyncio.wait_for(asyncio.gather(*puts), 10)]
            assert len(set(partitions)) == 1


async def test_puts_for_several_partitions_count_together_for_the_pause(brokers):
    async for commit in paused(brokers, 3600):
        keys = [key_of(commit, number) for number in range(PARTITIONS)]
        await asyncio.gather(*(commit.append(value("company"), ordering_key=key) for key in keys))
        for _ in range(10):
            puts = []
            for key in keys:
                assert not any(put.done() for put in puts)
                puts.append(asyncio.ensure_future(commit.append(value("next"), ordering_key=key)))
                await a_few_turns()
            await asyncio.wait_for(asyncio.gather(*puts), 10)


async def test_one_who_is_alone_waits_for_no_pause(brokers):
    async for commit in paused(brokers, 3600):
        for number in range(20):
            await asyncio.wait_for(commit.append(value(str(number))), 10)
