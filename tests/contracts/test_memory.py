"""The contracts of the ports of delivery, held by their twins in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from broker.delivery.ports import Ports
from tests.contracts.change_feed import ChangeFeedContract
from tests.contracts.cursor_store import CursorStoreContract
from tests.contracts.delivery_log import DeliveryLogContract
from tests.contracts.membership import MembershipContract
from tests.memory_kafka import MemoryKafka, MemoryMembership


@pytest.fixture
def cluster() -> MemoryKafka:
    return MemoryKafka()


@pytest.fixture
def ports(cluster: MemoryKafka) -> Ports:
    return cluster.ports()


@pytest.fixture
def put(cluster: MemoryKafka):
    async def one(partition: int, key: bytes) -> None:
        cluster.write("messages", partition, key, b"{}", (("queue", b"q"),))

    return one


@pytest.fixture
async def memberships(cluster: MemoryKafka) -> AsyncIterator:
    made: list[MemoryMembership] = []

    def one() -> MemoryMembership:
        made.append(MemoryMembership(cluster))
        return made[-1]

    yield one
    for membership in made:
        await membership.stop()


class TestDeliveryLog(DeliveryLogContract): ...


class TestCursorStore(CursorStoreContract): ...


class TestMembership(MembershipContract): ...


class TestChangeFeed(ChangeFeedContract): ...
