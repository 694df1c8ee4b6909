"""The idempotent producer of a process. A new one replaces it after an error that it can't recover from.

For: sending records and whole batches. Not for: which records make a batch (group_commit.py), their content.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Sequence
from typing import Any, Final

from aiokafka import errors as kafka_errors

from broker.errors import ConfigurationError, LogUnavailable
from broker.kafka.client import ANSWER_MS
from broker.kafka.produce import BATCH_BYTES_MAX, DirectProducer
from broker.kafka.reachability import reachable, why_not
from broker.settings import KafkaSettings

log = logging.getLogger(__name__)

KeyAndValue = tuple[bytes, bytes | None]
_RECORD_BYTES_MAX: Final = 8 << 20
_RENEW_PAUSE_S: Final = 0.2


class Producer:
    """An idempotent aiokafka producer. After an error from which this producer can't recover, such as a lost producer
    id, a new producer replaces it.
    """

    def __init__(self, kafka: KafkaSettings) -> None:
        self._kafka = kafka
        self._current: Any = None
        self._renewal: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Connect to Kafka.

        Raises LogUnavailable if Kafka can't be reached, or ConfigurationError if a retry can't help, such as after a
        refused password.
        """
        options = await reachable(self._kafka)
        producer = DirectProducer(
            **options,
            max_batch_size=BATCH_BYTES_MAX,
            max_request_size=_RECORD_BYTES_MAX,
            request_timeout_ms=ANSWER_MS,
        )
        try:
            await producer.start()
        except (kafka_errors.KafkaError, OSError) as error:
            await producer.stop()
            raise LogUnavailable(f"Kafka could not be reached: {await why_not(options)}") from error
        self._current = producer

    async def stop(self) -> None:
        if self._renewal is not None:
            self._renewal.cancel()
        if self._current is not None:
            with contextlib.suppress(kafka_errors.KafkaError, asyncio.TimeoutError):
                await asyncio.wait_for(self._current.stop(), 5)

    def get(self) -> Any:
        return self._current

    def failed(self, producer: Any, error: kafka_errors.KafkaError) -> None:
        """Replace the Kafka producer if this error has made it unusable. Do nothing if a new producer is being started
        already.

        A timeout does not make the producer unusable: it only means that earlier records of the same partition took too
        long.
        """
        renewing = self._renewal is not None and not self._renewal.done()
        ended = not error.retriable and not isinstance(error, kafka_errors.KafkaTimeoutError)
        if ended and producer is self._current and not renewing:
            self._renewal = asyncio.create_task(self._renew(producer))

    async def _renew(self, broken: Any) -> None:
        log.warning("log.producer_renewed")
        with contextlib.suppress(Exception):  # Ignore errors while the broken producer closes.
            await asyncio.wait_for(broken.stop(), 1)
        while self._current is broken:
            try:
                await self.start()
            # Keep trying to connect, because Kafka may come back, or the operator may correct the password.
            except (LogUnavailable, ConfigurationError):
                await asyncio.sleep(_RENEW_PAUSE_S)

    def send_all(self, topic: str, partition: int, records: Sequence[KeyAndValue]) -> list[Awaitable[int]]:
        """Put (key, value) records into batches. Return a list with one awaitable for each batch. Awaiting it sends the
        batch, and returns the offset of the batch's first record.
        """
        sends: list[Awaitable[int]] = []
        at = 0
        while at < len(records):
            at, send = self.send_some(topic, partition, records, at)
            sends.append(send)
        return sends

    def send_some(
        self,
        topic: str,
        partition: int,
        records: Sequence[KeyAndValue],
        begin: int = 0,
        bytes_max: int = BATCH_BYTES_MAX,
    ) -> tuple[int, Awaitable[int]]:
        """Put records into one batch, beginning with `records[begin]`: as many as fit, but at least one.

        Return two values. The first is the index of the first record in `records` that is not in the batch. The second
        is an awaitable: awaiting it sends the batch, and returns the Kafka offset of the batch's first record.
        """
        batch = self._current.create_batch()
        end = begin
        while end < len(records):
            key, value = records[end]
            if end > begin and batch.size() + len(value or b"") > bytes_max:
                break
            if batch.append(key=key, value=value, timestamp=None) is None:
                break
            end += 1
        return end, self._send(batch, topic, partition)

    async def _send(self, batch: Any, topic: str, partition: int) -> int:
        batch.close()
        metadata = await (await self._current.send_batch(batch, topic, partition=partition))
        return int(metadata.offset)
