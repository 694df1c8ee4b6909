"""Outstanding deliveries, computed without the topic `outstanding` (broker/delivery/outstanding/rebuild.py)."""

from __future__ import annotations

import msgspec
import pytest

from broker.core.codec import encode
from broker.core.cursor import Cursor
from broker.core.events import DeliveriesSettled, DeliveryAttempted
from broker.delivery.outstanding.rebuild import Outcomes, rebuilt
from tests.delivery.office import listener_at
from tests.memory_kafka import MemoryKafka, MemoryReader

FAILED = DeliveryAttempted(
    at_ms=1,
    organization_id="o",
    listener_id="l-1",
    queue_id="q-1",
    message_id="m",
    partition=0,
    offset=0,
    number=1,
    outcome="failed",
    status=500,
    error=None,
    took_ms=1,
    next_at_ms=2,
)
# The next owner began anew, because the first one had committed nothing: a first attempt that is accepted is a row.
ACCEPTED = DeliveriesSettled(
    at_ms=2, organization_id="o", listener_id="l-1", queue_id="q-1", partition=0, rows=((0, 2, 200, 1),)
)


@pytest.mark.parametrize(("events", "outstanding"), [([FAILED], 1), ([FAILED, ACCEPTED], 0)])
async def test_what_failed_and_was_then_accepted_is_not_outstanding(events, outstanding):
    cluster, outcomes = MemoryKafka(1), Outcomes()
    cluster.write("messages", 0, b"m", b"{}", (("q", b"q-1"),))
    for event in events:
        outcomes.note(encode(event))
    streams = [(listener_at("http://127.0.0.1:1"), Cursor(top=1))]
    found = [
        key
        async for rows in rebuilt(MemoryReader(cluster), "messages", 0, outcomes, streams, at_once=10)
        for key in rows
    ]
    assert len(found) == outstanding


def test_what_was_delivered_far_up_in_a_partition_needs_little_memory():
    outcomes, far = Outcomes(), 10**15
    rows = tuple((far + number, 2, 200, 1) for number in (0, 1, 7, 8, 65_535, 65_536, 200_000))
    outcomes.note(encode(msgspec.structs.replace(ACCEPTED, rows=rows)))
    found = [number for number in range(200_010) if outcomes.delivered("l-1", far + number)]
    assert found == [0, 1, 7, 8, 65_535, 65_536, 200_000]
    assert not outcomes.delivered("l-1", 0)
    assert not outcomes.delivered("l-2", far)
