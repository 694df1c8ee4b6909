"""Compares a partition of `outstanding` with the fingerprint that its owner has committed
(broker/core/outstanding_sum.py).

For: processes that do not own the partition. Not for: the owner's own index (broker/delivery/outstanding).
"""

from __future__ import annotations

from collections import defaultdict

from broker.core.outstanding_sum import LiveKeys, OutstandingSum, parse_sum
from broker.kafka.requests import KafkaRequests
from broker.kafka.scan import scan
from broker.kafka.topics import topics, workers_group
from broker.ports import EARLIEST, LATEST, FetchResult


async def noted_sum(requests: KafkaRequests, partition: int) -> OutstandingSum | None:
    """Return the fingerprint of a partition of `outstanding`, as the partition's worker has committed it to Kafka. A
    fingerprint is the number of the deliveries in the partition, and a hash of their keys. Return None if there is no
    fingerprint. Raises LogUnavailable if Kafka does not answer.
    """
    messages, group = topics(requests.kafka).messages.name, workers_group(requests.kafka)
    rows = await requests.groups.committed(group, messages, [partition])
    return parse_sum(rows[partition][1]) if partition in rows else None


async def incomplete_copies(requests: KafkaRequests, partition: int) -> list[int | None]:
    """Return the ids of the brokers whose copy of a partition of `outstanding` lacks deliveries. Each copy is compared
    with the fingerprint that the partition's worker has committed. Return an empty list if there is no fingerprint. The
    list has None for the leader if the leader's id is not known.

    A copy is left out if it can't be compared, because it has records that were written after the fingerprint. A
    follower's copy is also left out if it could not be read up to the fingerprint's end offset. Raises LogUnavailable
    if Kafka does not answer, LogDamaged if a range of offsets is unreadable.
    """
    # Read the committed fingerprint before the end offset, because a worker may write records between the two reads.
    noted = await noted_sum(requests, partition)
    if noted is None:
        return []
    topic = topics(requests.kafka).outstanding.name
    keys: defaultdict[int | None, LiveKeys] = defaultdict(LiveKeys)
    ends: dict[int | None, int] = {}

    def seen(node: int | None, fetched: FetchResult) -> None:
        for record in fetched.records:
            keys[node].note(record.key, record.value)
        ends[node] = fetched.next_offset

    at = (await requests.offsets(topic, {partition: EARLIEST}))[partition]
    end = (await requests.offsets(topic, {partition: LATEST}))[partition]
    leader = requests.leader(topic, partition)
    keys[leader] = LiveKeys()
    async for fetched in scan(requests, topic, partition, at, end):
        seen(leader, fetched)
    ends[leader] = end
    await requests.check_copies(topic, partition, at, end, seen=seen)
    return [
        node
        for node, found in keys.items()
        if (node == leader or ends[node] >= noted.end) and noted.agrees(found.until(ends[node])) is False
    ]


async def holds_all(requests: KafkaRequests, partition: int) -> bool | None:
    """Return whether a partition of `outstanding` holds all deliveries that belong there. The partition's records are
    compared with the fingerprint that the partition's worker has committed. Return False, too, if the partition has
    empty records, which stand for lost deliveries.

    Otherwise, return None if there is no fingerprint, or if records were written after the fingerprint. Raises
    LogUnavailable if Kafka does not answer, LogDamaged if a range of offsets is unreadable.
    """
    noted = await noted_sum(requests, partition)
    topic, keys = topics(requests.kafka).outstanding.name, LiveKeys()
    at = (await requests.offsets(topic, {partition: EARLIEST}))[partition]
    end = (await requests.offsets(topic, {partition: LATEST}))[partition]
    async for record in requests.walk(topic, partition, at, end):
        keys.note(record.key, record.value)
    if keys.lost:
        return False
    return None if noted is None else noted.agrees(keys.until(end))
