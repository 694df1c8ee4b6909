"""Message ids: UUIDv7 whose 12 `rand_a` bits carry the partition of the `messages` topic.

For: making one from parts and reading the parts back, so that a message is found by its id without an index.
Not for: drawing the random bits or reading the clock (the callers do that)."""

from __future__ import annotations

from typing import Final
from uuid import UUID

PARTITIONS_MAX: Final = 1 << 12
_VERSION_7: Final = 0x7 << 76
_VARIANT: Final = 0b10 << 62
_RANDOM_BITS: Final = (1 << 62) - 1


def message_id(*, at_ms: int, partition: int, random_bits: int) -> str:
    """A UUIDv7 (RFC 9562, 5.7) in its canonical text form.

    at_ms: UTC epoch, 48 bits. partition: 0 to 4,095 (ValueError beyond). random_bits: the low 62 bits are used.
    """
    if not 0 <= partition < PARTITIONS_MAX:
        raise ValueError(f"partition {partition} does not fit the 12 bits of rand_a")
    value = (at_ms & 0xFFFFFFFFFFFF) << 80 | _VERSION_7 | partition << 64 | _VARIANT | random_bits & _RANDOM_BITS
    text = f"{value:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def parse_message_id(text: str) -> tuple[int, int] | None:
    """(at_ms, partition) of a message id; None for what is not the canonical form of a UUIDv7."""
    try:
        value = UUID(text)
    except ValueError:
        return None
    if str(value) != text or value.version != 7:
        return None
    return value.int >> 80, value.int >> 64 & 0xFFF
