"""What the readers of the log ask of Kafka, and what they say when too many ask.

For: the port and the error that reader.py and past.py share. Not for: doing it (broker/kafka/requests.py)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Protocol

from broker.errors import Unavailable
from broker.kafka.requests import Stretch

STRETCH_BYTES: Final = 256 << 10  # short, so that no other request waits long while one is looked through


class Busy(Unavailable):
    """Too many are reading the log at this moment."""

    code = "busy"
    retry_after_s = 2


class Records(Protocol):
    """broker/kafka/requests.py says what each means."""

    async def offsets(self, topic: str, at_ms: Mapping[int, int]) -> dict[int, int]: ...

    async def read(self, topic: str, partition: int, offset: int, *, bytes_max: int = ...) -> Stretch: ...
