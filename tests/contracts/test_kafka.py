"""The contracts of the ports of delivery, held by a real Kafka."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from broker.delivery.ports import Ports
from broker.kafka.changes_tail import ChangesTail
from broker.kafka.cursors import KafkaCursors
from broker.kafka.log import KafkaLog
from broker.kafka.tail import Tail
from broker.kafka.topics import Topics
from broker.settings import KafkaSettings
from tests.contracts.change_feed import ChangeFeedContract
from tests.contracts.cursor_store import CursorStoreContract
from tests.contracts.delivery_log import DeliveryLogContract
from tests.contracts.membership import MembershipContract
from tests.patience import patient

__all__ = ["patient"]


@pytest.fixture
async def log(kafka_settings: KafkaSettings, ready_topics: Topics) -> AsyncIterator[KafkaLog]:
    log = KafkaLog(kafka_settings)
    await log.start()
    yield log
    await log.stop()


@pytest.fixture
async def ports(kafka_settings: KafkaSettings, log: KafkaLog) -> AsyncIterator[Ports]:
    """Its membership is not used: see memberships."""
    ports = Ports(
        log=log,
        membership=Tail(kafka_settings, log.requests),
        cursors=KafkaCursors(kafka_settings, log.requests),
        changes=ChangesTail(kafka_settings, log.requests),
    )
    yield ports
    await ports.changes.stop()


@pytest.fixture
def put(log: KafkaLog):
    async def one(partition: int, key: bytes) -> None:
        await log.messages.append_together([lambda _: (key, b"{}", b"q")], partition=partition)

    return one


@pytest.fixture
async def memberships(kafka_settings: KafkaSettings, log: KafkaLog) -> AsyncIterator:
    made: list[Tail] = []

    def one() -> Tail:
        made.append(Tail(kafka_settings, log.requests))
        return made[-1]

    yield one
    for membership in made:
        await membership.stop()


class TestDeliveryLog(DeliveryLogContract): ...


class TestCursorStore(CursorStoreContract): ...


class TestMembership(MembershipContract): ...


class TestChangeFeed(ChangeFeedContract): ...
