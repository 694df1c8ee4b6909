"""Long reads of the log: how many at once, whose, and how far a message is looked for."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from broker.core.claims import CLOCKS_MS, IDS_KEPT_MS
from broker.core.ids import message_id
from broker.errors import Busy
from broker.kafka.messages import MessagesTopic
from broker.kafka.read_slots import ReadSlots
from broker.kafka.topics import Topic
from broker.ports import FetchResult, Record

AT_MS = 1_700_000_000_000


async def turns_come_round() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


class Reads:
    """Stands for KafkaRequests: a partition with a record each second, one record a read. gate: reads wait for it."""

    def __init__(self, *, records: int) -> None:
        self.records = records
        self.reads = 0
        self.under_way = 0
        self.most = 0
        self.gate = asyncio.Event()
        self.gate.set()

    async def offsets(self, _topic: str, at_ms: Any) -> dict[int, int]:
        return dict.fromkeys(at_ms, 0)

    async def read(self, _topic: str, _partition: int, offset: int, **_: Any) -> FetchResult:
        self.reads += 1
        if offset:
            self.under_way += 1
            self.most = max(self.most, self.under_way)
            await self.gate.wait()
            self.under_way -= 1
        record = Record(offset, AT_MS + offset * 1000, b"%d" % offset, b"", ())
        return FetchResult([record], offset + 1, self.records)


def topic_of(reads: Reads, read_slots: ReadSlots) -> MessagesTopic:
    requests: Any = reads
    writer: Any = None
    return MessagesTopic(writer, requests, Topic("messages", 1, {}), 5.0, read_slots)


def looked_for(topic: MessagesTopic, organization_id: str, number: int = 0, **more: str) -> Any:
    wanted = message_id(at_ms=AT_MS, partition=0, random_bits=number)
    asked: dict[str, Any] = {"partition": 0, "at_ms": AT_MS, "message_id": wanted, "organization_id": organization_id}
    return topic.find(**(asked | more))


async def test_a_made_up_id_is_looked_for_no_longer_than_a_message_may_be_late():
    reads = Reads(records=10_000)
    assert await looked_for(topic_of(reads, ReadSlots()), "o") is None
    assert IDS_KEPT_MS + CLOCKS_MS < reads.reads * 1000 < 2 * (IDS_KEPT_MS + CLOCKS_MS)
    late = str((IDS_KEPT_MS + CLOCKS_MS) // 1000)
    assert await looked_for(topic_of(reads, ReadSlots()), "o", message_id=late) is not None


async def test_an_organization_that_looks_for_made_up_ids_waits_for_itself_and_others_do_not():
    reads, read_slots = Reads(records=50), ReadSlots(4, 2)
    topic = topic_of(reads, read_slots)
    reads.gate.clear()
    theirs = [asyncio.create_task(looked_for(topic, "theirs", number)) for number in range(20)]
    await turns_come_round()
    assert reads.under_way == 2
    assert await looked_for(topic, "theirs", message_id="0") is not None, "what the first read brings needs no turn"
    ours = asyncio.create_task(looked_for(topic, "ours"))
    await turns_come_round()
    assert reads.under_way == 3
    reads.gate.set()
    assert await asyncio.gather(ours, *theirs) == [None] * 21
    assert reads.most <= 4
    assert not len(read_slots)


async def test_the_organizations_of_one_account_share_their_turns():
    reads, read_slots = Reads(records=50), ReadSlots(4, 2)
    read_slots.tenant_of = lambda organization_id: organization_id[0]
    topic = topic_of(reads, read_slots)
    reads.gate.clear()
    theirs = [asyncio.create_task(looked_for(topic, f"a{number}")) for number in range(10)]
    await turns_come_round()
    assert reads.under_way == 2
    ours = asyncio.create_task(looked_for(topic, "b0"))
    await turns_come_round()
    assert reads.under_way == 3
    reads.gate.set()
    assert await asyncio.gather(ours, *theirs) == [None] * 11


async def test_whoever_waits_too_long_is_told_to_come_again_and_keeps_nothing():
    read_slots = ReadSlots(2, 1, wait_s=0.01)

    async def wait(organization_id: str) -> None:
        async with read_slots.slot(organization_id):
            pass

    async with read_slots.slot("a"):
        with pytest.raises(Busy):
            await wait("a")
        async with read_slots.slot("b"):
            with pytest.raises(Busy):
                await wait("c")
        waiting = asyncio.create_task(wait("a"))
        await asyncio.sleep(0)
        waiting.cancel()
        assert isinstance((await asyncio.gather(waiting, return_exceptions=True))[0], asyncio.CancelledError)
    await wait("a")
    await wait("c")
    assert not len(read_slots)
