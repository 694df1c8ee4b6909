"""What delivery relies on when it reads and writes the log (ports.DeliveryLog)."""

from __future__ import annotations

import pytest

from broker.core.events import MessageDeleted, MessageUpdated
from broker.delivery.ports import Ports
from broker.ports import EARLIEST, LATEST, OffsetTooOld

ROWS = [(b"a", b"1"), (b"b", None), (b"a", b"3")]


def updated(message_id: str, offset: int) -> MessageUpdated:
    return MessageUpdated(
        at_ms=1, organization_id="o", message_id=message_id, queue_id="q", partition=1, offset=offset, data="d"
    )


def deleted(message_id: str, offset: int) -> MessageDeleted:
    return MessageDeleted(at_ms=1, organization_id="o", message_id=message_id, queue_id="q", partition=1, offset=offset)


class DeliveryLogContract:
    async def test_records_are_read_back_in_the_order_in_which_they_were_appended(self, ports: Ports):
        log = ports.log
        outcomes = {0: list(ROWS), 2: [(b"c", b"4")]}
        await log.outstanding.append(outcomes)
        assert not outcomes, "what is written is taken out"
        found = await log.requests.read(log.outstanding.name, 0, 0)
        assert [(row.offset, row.key, row.value) for row in found.records] == [
            (offset, *row) for offset, row in enumerate(ROWS)
        ]
        assert (found.next_offset, found.end_offset) == (3, 3)
        assert [row.value async for row in log.requests.walk(log.outstanding.name, 2, 0, 1)] == [b"4"]

    async def test_one_record_is_found_where_its_append_said(self, ports: Ports):
        log = ports.log
        await log.deliveries.append({1: list(ROWS)})
        offset = await log.deliveries.append_one(1, b"k", b"v")
        found = await log.requests.read(log.deliveries.name, 1, offset, bytes_max=1)
        assert [(row.offset, row.key, row.value) for row in found.records] == [(3, b"k", b"v")]

    async def test_offsets_say_where_a_partition_begins_and_ends_and_what_is_as_new_as_a_time(self, ports: Ports):
        log, name = ports.log, ports.log.outstanding.name
        await log.outstanding.append({0: list(ROWS)})
        first_ms = (await log.requests.read(name, 0, 0)).records[0].timestamp
        assert await log.requests.offsets(name, {0: EARLIEST, 1: EARLIEST}) == {0: 0, 1: 0}
        assert await log.requests.offsets(name, {0: LATEST, 1: LATEST}) == {0: 3, 1: 0}
        assert await log.requests.offsets(name, {0: first_ms, 1: first_ms}) == {0: 0, 1: -1}

    async def test_nothing_is_read_at_the_end_and_too_old_is_what_was_deleted(self, ports: Ports):
        log, name = ports.log, ports.log.deliveries.name
        await log.deliveries.append({0: list(ROWS)})
        at_end = await log.requests.read(name, 0, 3)
        assert (at_end.records, at_end.next_offset, at_end.end_offset) == ([], 3, 3)
        await log.requests.delete_before(name, 0, 2)
        await log.requests.delete_before(name, 0, 1)  # it begins later by now
        assert await log.requests.offsets(name, {0: EARLIEST}) == {0: 2}
        with pytest.raises(OffsetTooOld):
            await log.requests.read(name, 0, 1)
        assert [row.offset for row in (await log.requests.read(name, 0, 2)).records] == [2]

    async def test_records_of_which_none_is_wanted_may_be_left_out(self, ports: Ports):
        log, name = ports.log, ports.log.deliveries.name
        await log.deliveries.append({0: [(b"a", b"orders"), (b"b", b"bills")]})
        wanted = await log.requests.read(name, 0, 0, worth=lambda raw: b"orders" in raw)
        assert [row.value for row in wanted.records] == [b"orders", b"bills"]
        others = await log.requests.read(name, 0, 0, worth=lambda raw: b"letters" in raw)
        assert (others.records, others.next_offset) == ([], 2)
        assert others.left_out_ms is not None

    async def test_the_ends_of_messages_are_told_by_partition(self, ports: Ports, put):
        await put(1, b"m-0")
        await put(1, b"m-1")
        assert tuple(await ports.log.messages.end_offsets()) == (0, 2, 0, 0)

    async def test_changes_are_read_back_since_a_time_and_each_at_its_offset(self, ports: Ports):
        changes = ports.log.changes
        events = [updated("m-0", 0), deleted("m-1", 1), updated("m-2", 2)]
        for event in events:
            await changes.append(event)
        assert await changes.end_offsets([0, 1]) == {0: 0, 1: 3}
        found = [(offset, event) async for offset, _, event in changes.since(1, 0, 1, 3)]
        assert found == [(1, events[1]), (2, events[2])]
        assert [offset async for offset, *_ in changes.since(1, 1 << 50, 0, 3)] == []
        assert await changes.at(1, 2) == events[2]
