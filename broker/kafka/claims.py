"""The topic `claims`: which Idempotency-Keys were used in the last day (ports.ClaimLog).

For: appending a claim, and finding the claims of a key. All claims of a key are in one partition. A look-up reads that
partition up to its end first; between look-ups it is read every 30 seconds. The index stores only the offsets of
claims, and a claim is read again when it is needed. Not for: what a claim means (broker/core/claims.py).
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final

import msgspec

from broker.clock import now_ms
from broker.core.claims import CLAIMS_MAX, FEW, KEPT_MS, ClaimIndex, has_room
from broker.core.codec import decode, encode
from broker.core.events import PutClaimed
from broker.disk import Refusal
from broker.errors import BrokerError, LogDamaged, LogUnavailable, ShareUsed, UnknownEvent, ViewBehind
from broker.kafka.appender import Appender
from broker.kafka.requests import KafkaRequests
from broker.kafka.scan import scan
from broker.kafka.topics import Topic
from broker.ports import OffsetTooOld
from broker.time_offsets import offsets_since

# An Idempotency-Key is valid for 24 hours. Keep its record an hour longer, because the clocks of processes may differ.
_MARGIN_MS: Final = 3600 * 1000
_LOOK_S: Final = 2.0
_FOLLOW_S: Final = 30.0
_CLAIM_BYTES: Final = 4096  # Kafka returns whole batches


class _Owned(msgspec.Struct):
    """The organization id of a stored claim of an Idempotency-Key. The claim's other fields are not decoded."""

    organization_id: str = ""


_owned = msgspec.json.Decoder(_Owned)


class ClaimsTopic:
    """The Kafka topic `claims`, with an index of the Idempotency-Keys that were used in about the last 24 hours."""

    def __init__(
        self,
        writer: Appender,
        requests: KafkaRequests,
        topic: Topic,
        *,
        claims_max: int = CLAIMS_MAX,
        few: int = FEW,
    ) -> None:
        self._claims_max, self._few = claims_max, few
        self._requests = requests
        self._topic = topic.name
        self._partitions = topic.partitions
        self._writer = writer
        self._index = ClaimIndex()
        self._positions: dict[int, int] = {}
        self._locks = [asyncio.Lock() for _ in range(topic.partitions)]
        self._reads_begun = [0] * topic.partitions
        self._read_done = [0] * topic.partitions  # newest completed read, by partition
        self._following: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._following = asyncio.create_task(self._follow())

    async def stop(self) -> None:
        if self._following is not None:
            self._following.cancel()
            await asyncio.gather(self._following, return_exceptions=True)

    def refuse(self, refusal: Refusal | None) -> None:
        """Refuse to append claims of Idempotency-Keys. `refusal` is the reason, such as a nearly full disk. Pass None
        to accept claims again.
        """
        self._writer.refusal = refusal

    async def append(self, claim: PutClaimed) -> None:
        """See ports.ClaimLog.append."""
        mine = self._index.count(claim.organization_id)
        if not has_room(mine, len(self._index), claims_max=self._claims_max, few=self._few):
            raise ShareUsed(
                f"This organization has used {mine} Idempotency-Keys in about the last day, and there is no room for "
                "more now. Keys that are more than a day old make room again. Try again later, or put the messages "
                "without an Idempotency-Key."
            )
        digest = bytes.fromhex(claim.digest)
        try:
            await self._writer.append_one(self._partition(digest), digest, encode(claim))
        # Kafka may have stored the Idempotency-Key. But this request has put no message yet, so it is safe to repeat.
        except LogUnavailable as error:
            raise LogUnavailable(
                "Kafka did not acknowledge the record of the Idempotency-Key, so this request put no messages. Repeat "
                "the request with the same Idempotency-Key; at first, the answer may be 409."
            ) from error

    async def claims(self, digest: bytes) -> list[PutClaimed]:
        """See ports.ClaimLog.claims."""
        try:
            async with asyncio.timeout(_LOOK_S):
                await self._catch_up(self._partition(digest))
                return [
                    claim
                    for partition, offset in self._index.places(digest)
                    if (claim := await self._read(partition, offset, digest)) is not None
                ]
        except TimeoutError:
            raise ViewBehind(
                "This server could not compare the Idempotency-Key with the newest keys in Kafka within "
                f"{_LOOK_S:g} s, so this request put no messages. Repeat the request with the same Idempotency-Key."
            ) from None

    def _partition(self, digest: bytes) -> int:
        return int.from_bytes(digest[-4:]) % self._partitions

    async def _catch_up(self, partition: int) -> None:
        """Read a partition of the topic `claims` up to its current end. If another caller is reading the partition,
        that read may miss the newest records. So wait for the end of that read, and then read again. If several callers
        wait, only one of them reads again.
        """
        asked = self._reads_begun[partition]
        async with self._locks[partition]:
            if self._read_done[partition] > asked:
                return
            self._reads_begun[partition] += 1
            before_ms = now_ms() - KEPT_MS - _MARGIN_MS
            try:
                await self._read_to_end(partition, before_ms)
            # If Kafka has deleted the record at which this read begins, forget the offset of that record.
            # Without a stored offset, the next read of the partition finds its first offset by time.
            except OffsetTooOld:
                self._positions.pop(partition, None)
                raise
            self._read_done[partition] = self._reads_begun[partition]
            self._index.forget(before_ms)

    async def _read_to_end(self, partition: int, before_ms: int) -> None:
        position = self._positions.get(partition)
        if position is None:
            position = (await offsets_since(self._requests, self._topic, {partition: before_ms}))[partition]
        self._positions[partition] = position
        # Skip unreadable claims. A repeated request whose claim is unreadable stores its messages a second time.
        async for fetched in scan(self._requests, self._topic, partition, position, damaged=lambda _: None):
            for record in fetched.records:
                if record.key is not None:
                    self._index.add(record.key, partition, record.offset, record.timestamp, _owner(record.value))
            self._positions[partition] = fetched.next_offset

    async def _read(self, partition: int, offset: int, digest: bytes) -> PutClaimed | None:
        """Read the claim of an Idempotency-Key at this offset. Return None if the claim belongs to another key, is
        unreadable, was deleted, or has a form that only a newer version of Everput knows.
        """
        with contextlib.suppress(OffsetTooOld, LogDamaged, UnknownEvent):
            fetched = await self._requests.read(self._topic, partition, offset, bytes_max=_CLAIM_BYTES)
            for record in fetched.records:
                if record.offset == offset and record.key == digest:
                    claim = decode(record.value or b"")
                    return claim if isinstance(claim, PutClaimed) else None
        return None

    async def _follow(self) -> None:
        """Read the new claims of all partitions now, and then about every 30 seconds. A request with an Idempotency-Key
        then has only few claims left to read.
        """
        while True:
            for partition in range(self._partitions):
                with contextlib.suppress(BrokerError):
                    await self._catch_up(partition)
            await asyncio.sleep(_FOLLOW_S)


def _owner(value: bytes | None) -> str:
    """Return the organization id in a stored claim, without decoding the claim's other fields. Return an empty text if
    the claim has no organization id.
    """
    try:
        return _owned.decode(value or b"").organization_id
    except msgspec.MsgspecError:
        return ""
