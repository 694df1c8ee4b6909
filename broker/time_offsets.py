"""Finds the offset of a time, and confirms it by the records beside it.

For: an offset before which every record is older than a time. Kafka looks times up in its `.timeindex` files, which
have no checksum and which it trusts after a clean stop. Not for: reading the records from that offset on.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Final, Protocol

from broker.errors import LogDamaged
from broker.ports import EARLIEST, LATEST, FetchResult, OffsetTooOld

log = logging.getLogger(__name__)

_ONE_BATCH: Final = 1  # Kafka returns one whole batch


class Offsets(Protocol):
    """The methods of a Kafka client that offsets_since() needs."""

    async def offsets(self, topic: str, at_ms: Mapping[int, int]) -> dict[int, int]:
        """See KafkaRequests.offsets()."""

    async def read(self, topic: str, partition: int, offset: int, *, bytes_max: int) -> FetchResult:
        """See KafkaRequests.read()."""


async def offsets_since(kafka: Offsets, topic: str, at_ms: Mapping[int, int]) -> dict[int, int]:
    """Return, for each partition, an offset before which all records are older than the partition's time in `at_ms`. If
    all records of a partition are older, return its end offset.

    If Kafka's time index is damaged, an offset can be earlier than necessary. Clocks differ, so a caller that must miss
    no record asks for an earlier time. Raises LogUnavailable if Kafka does not answer.
    """
    at_ms = {partition: max(0, ms) for partition, ms in at_ms.items()}  # Kafka takes a negative time for a request code
    # Read the end offsets before the search, so that a record which is appended during the search is not missed.
    ends = await kafka.offsets(topic, dict.fromkeys(at_ms, LATEST))
    found = await kafka.offsets(topic, at_ms)
    firsts = {partition: end if found[partition] < 0 else found[partition] for partition, end in ends.items()}
    confirmed = (_confirmed(kafka, topic, partition, at_ms[partition], first) for partition, first in firsts.items())
    return dict(zip(firsts, await asyncio.gather(*confirmed), strict=True))


async def _confirmed(kafka: Offsets, topic: str, partition: int, at_ms: int, first: int) -> int:
    """Check `first`, the offset that Kafka's time index gave for the time `at_ms`. If the record before `first` is
    older than `at_ms`, the offset is right: return `first`.

    Otherwise, the index may be wrong. Read at ever lower offsets until a read returns a record that is older than
    `at_ms`, and return the offset of this read. If there is no such record, return the partition's first offset.
    """
    at, step, doubtful = first, 1, False
    while at > 0:
        at = max(0, first - step)
        try:
            fetched = await kafka.read(topic, partition, at, bytes_max=_ONE_BATCH)
        except OffsetTooOld:
            at = (await kafka.offsets(topic, {partition: EARLIEST}))[partition]
            break
        except LogDamaged:
            doubtful = True
        else:
            before = [record for record in fetched.records if record.offset < first]
            if before and before[-1].timestamp < at_ms:
                break
            if before and not doubtful:
                log.error("log.index_lies topic=%s partition=%d offset=%d", topic, partition, first)
            doubtful = doubtful or bool(before)
        step *= 2
    return min(at, first) if doubtful else first
