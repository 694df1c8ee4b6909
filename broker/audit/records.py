"""The protocol through which the readers of the log use Kafka. Not for: its implementation
(broker/kafka/requests.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, Protocol

from broker.ports import FetchResult

FETCH_BYTES: Final = 256 << 10  # small, so that requests stay quick


class Records(Protocol):
    """The methods of a Kafka client that readers of the log use. They fetch records and find offsets."""

    async def offsets(self, topic: str, at_ms: Mapping[int, int]) -> dict[int, int]: ...

    async def read(
        self,
        topic: str,
        partition: int,
        offset: int,
        *,
        bytes_max: int = ...,
        worth: Callable[[bytes], bool] | None = ...,
    ) -> FetchResult: ...
