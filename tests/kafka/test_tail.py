"""Membership of the workers' group on a real Kafka. What the members then deliver: test_delivery.py."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Collection

from broker.kafka.requests import KafkaRequests
from broker.kafka.tail import SESSION_TIMEOUT_MS, Tail
from broker.kafka.topics import Topics
from broker.settings import KafkaSettings
from tests.listeners import until


class Member:
    """A tail, and what it owns."""

    def __init__(self, kafka: KafkaSettings, requests: KafkaRequests, name: str) -> None:
        self.owns: set[int] = set()
        self.tail = Tail(kafka, requests, name=name, gained=self._gained, given_up=self._given_up)

    def _gained(self, partitions: Collection[int]) -> None:
        self.owns = set(partitions)

    async def _given_up(self, partitions: Collection[int]) -> None:
        self.owns.clear()

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
        await first.tail.start()
        await other.tail.start()
        await until(lambda: len(first.owns) == len(other.owns) == 2, what="each has a half")
        await first.die()
        await successor.tail.start()
        await until(
            lambda: len(successor.owns) == len(other.owns) == 2,
            what="each has a half again",
            within_s=SESSION_TIMEOUT_MS / 1000 / 2,
        )
        assert successor.owns | other.owns == {0, 1, 2, 3}


async def test_whoever_is_expelled_by_mistake_joins_again(kafka_settings: KafkaSettings, ready_topics: Topics):
    async with members(kafka_settings, ready_topics, "same", "same") as (first, second):
        await first.tail.start()
        await until(lambda: len(first.owns) == 4, what="the first has all")
        await second.tail.start()
        await until(lambda: len(first.owns) == len(second.owns) == 2, what="each has a half")
