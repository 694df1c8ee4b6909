"""Writes the records of an export back, with their keys, values, headers and times.

For: `everput import` into empty topics. Not for: new records (log.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final, Self

from aiokafka import AIOKafkaProducer
from aiokafka import errors as kafka_errors

from broker.errors import LogUnavailable
from broker.kafka.client import client_options
from broker.ports import Record
from broker.settings import KafkaSettings

_BATCH_BYTES_MAX: Final = 1 << 20
_RECORD_BYTES_MAX: Final = 8 << 20
_FILL_AT_ONCE: Final = 100_000


async def fill(
    kafka: KafkaSettings, topic: str, partition: int, count: int, *, at_ms: int = 0, key: bytes | None = None
) -> None:
    """Write `count` empty records to a partition, so that they take its next offsets. The time of the records is
    `at_ms`. For a compacted topic, a `key` must be given.

    An import then gives exported records their old offsets, and deletes the empty records. The embedded Kafka puts
    empty records in the place of lost ones.

    Raises LogUnavailable if Kafka does not acknowledge all records; some may then be stored.
    """
    nothing = Record(0, at_ms, key, b"", ())
    async with Restorer(kafka, compression="gzip") as restorer:
        for begin in range(0, count, _FILL_AT_ONCE):
            await restorer.append(topic, partition, [nothing] * min(_FILL_AT_ONCE, count - begin))


class Restorer:
    """A Kafka producer that writes exported records back. Use it with `async with`, which raises LogUnavailable if
    Kafka can't be reached.
    """

    def __init__(self, kafka: KafkaSettings, *, compression: str | None = None) -> None:
        self._producer = AIOKafkaProducer(
            compression_type=compression,
            **client_options(kafka),
            acks="all",
            enable_idempotence=True,
            max_batch_size=_BATCH_BYTES_MAX,
            max_request_size=_RECORD_BYTES_MAX,
        )

    async def __aenter__(self) -> Self:
        try:
            await self._producer.start()
        except (kafka_errors.KafkaError, OSError) as error:
            await self._producer.stop()
            raise LogUnavailable(f"Kafka could not be reached: {error}") from error
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._producer.stop()

    async def append(self, topic: str, partition: int, records: Sequence[Record]) -> int:
        """Append records with their old keys, values, times and headers.

        Return the offset of the first record once all in-sync replicas have stored all records. Raises LogUnavailable
        if Kafka does not acknowledge all records; some may then be stored.
        """
        first = -1
        try:
            for batch in self._batches(records):
                batch.close()
                sent = await (await self._producer.send_batch(batch, topic, partition=partition))
                first = sent.offset if first < 0 else first
        except kafka_errors.KafkaError as error:
            raise LogUnavailable(
                f"Kafka did not acknowledge all records ({type(error).__name__}); some may be stored. Try again."
            ) from error
        return first

    def _batches(self, records: Iterable[Record]) -> Iterable[Any]:
        batch = None
        for one in records:
            fields = {"key": one.key, "value": one.value, "timestamp": one.timestamp, "headers": list(one.headers)}
            if batch is None or batch.append(**fields) is None:
                if batch is not None:
                    yield batch
                batch = self._producer.create_batch()
                batch.append(**fields)
        if batch is not None:
            yield batch
