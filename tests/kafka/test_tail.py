"""Membership of the workers' group on a real Kafka. What the members then deliver: test_delivery.py."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Collection

import pytest
from aiokafka.errors import KafkaError

from broker.errors import LogUnavailable
from broker.kafka import tail as tail_module
from broker.kafka.requests import KafkaRequests
from broker.kafka.tail import Tail
from broker.kafka.topics import Topics, workers_group
from broker.ports import NoMember
from broker.settings import KafkaSettings
from tests.listeners import until

SOON_S = 10.0
SHORT_SESSION_MS = 6_000  # the shortest that Kafka allows


class Member:
    """A tail, and what it owns."""

    def __init__(self, kafka: KafkaSettings, requests: KafkaRequests, name: str) -> None:
        self.owns: set[int] = set()
        self.tail = Tail(kafka, requests, name=name)

    def _gained(self, partitions: Collection[int]) -> None:
        self.owns = set(partitions)

    async def _given_up(self, partitions: Collection[int]) -> None:
        self.owns.clear()

    async def start(self) -> None:
        await self.tail.start(self._gained, self._given_up)

    async def die(self) -> None:
        """As by kill -9: Kafka is not told."""

        async def say_nothing() -> None:
            pass

        self.tail._consumer._coordinator._maybe_leave_group = say_nothing
        await self.tail.stop()
        self.owns.clear()


@contextlib.asynccontextmanager
async def members(kafka: KafkaSettings, topics: Topics, *names: str) -> AsyncIterator[list[Member]]:
    requests = KafkaRequests(kafka)
    await requests.start([topics.messages.name])
    found = [Member(kafka, requests, name) for name in names]
    try:
        yield found
    finally:
        for member in found:
            await member.tail.stop()
        await requests.stop()


async def test_a_worker_takes_its_dead_predecessor_s_place_without_waiting_for_its_session(
    kafka_settings: KafkaSettings, ready_topics: Topics
):
    async with members(kafka_settings, ready_topics, "one", "two", "one") as (first, other, successor):
        await first.start()
        await other.start()
        await until(lambda: len(first.owns) == len(other.owns) == 2, what="each has a half")
        await first.die()
        await successor.start()
        await until(
            lambda: len(successor.owns) == len(other.owns) == 2,
            what="each has a half again",
            within_s=tail_module.SESSION_TIMEOUT_MS / 1000 / 2,
        )
        assert successor.owns | other.owns == {0, 1, 2, 3}


async def test_partitions_change_hands_soon_and_those_of_a_dead_one_after_its_session(
    kafka_settings: KafkaSettings, ready_topics: Topics, monkeypatch: pytest.MonkeyPatch
):
    assert tail_module.SESSION_TIMEOUT_MS > 2 * SOON_S * 1000  # nothing here may wait for a session but the last
    async with members(kafka_settings, ready_topics, "one", "two", "three") as (first, leaving, dying):
        await first.start()
        await until(lambda: len(first.owns) == 4, what="it has all")
        await leaving.start()
        await until(lambda: len(first.owns) == len(leaving.owns) == 2, what="each has a half", within_s=SOON_S)
        await leaving.tail.stop()
        await until(lambda: len(first.owns) == 4, what="it has all again", within_s=SOON_S)
        monkeypatch.setattr(tail_module, "SESSION_TIMEOUT_MS", SHORT_SESSION_MS)
        await dying.start()
        await until(lambda: len(first.owns) == len(dying.owns) == 2, what="each has a half again", within_s=SOON_S)
        await dying.die()
        await until(lambda: len(first.owns) == 4, what="it has the dead one's", within_s=2 * SHORT_SESSION_MS / 1000)


async def test_a_tail_whose_membership_nobody_keeps_up_ends_instead_of_reading_nothing_for_ever(
    kafka_settings: KafkaSettings, ready_topics: Topics, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(tail_module, "FAILING_S_MAX", 0.5)

    async def refused() -> bool:
        raise KafkaError("as of an error code that aiokafka does not know")

    async with members(kafka_settings, ready_topics, "one") as (member,):
        await member.start()
        await until(lambda: len(member.owns) == 4, what="it has all")
        assert await member.tail.read() == {}
        member.tail._consumer._coordinator._do_heartbeat = refused

        async def read_on() -> None:
            while True:
                await member.tail.read()

        with pytest.raises(LogUnavailable):
            await asyncio.wait_for(read_on(), 60)


async def test_only_a_member_is_confirmed(kafka_settings: KafkaSettings, ready_topics: Topics):
    async with members(kafka_settings, ready_topics, "one", "two") as (first, second):
        await first.start()
        await until(lambda: len(first.owns) == 4, what="the first has all")
        await first.tail.confirm({0: 7})
        await first.die()
        await first.tail._requests.groups.expel(workers_group(kafka_settings), "one")
        with pytest.raises(NoMember):  # also while the group has no members at all
            await first.tail.confirm({0: 8})
        await second.start()
        await until(lambda: len(second.owns) == 4, what="the second has all")
        with pytest.raises(NoMember):
            await first.tail.confirm({0: 8})
        await second.tail.confirm({0: 9})


async def test_whoever_is_expelled_by_mistake_joins_again(kafka_settings: KafkaSettings, ready_topics: Topics):
    async with members(kafka_settings, ready_topics, "same", "same") as (first, second):
        await first.start()
        await until(lambda: len(first.owns) == 4, what="the first has all")
        await second.start()
        await until(lambda: len(first.owns) == len(second.owns) == 2, what="each has a half")
