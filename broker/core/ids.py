"""Message ids: UUIDv7 with the partition of `messages` in their 12 `rand_a` bits.

For: making an id, and reading the time and the partition from it, so that a message is found by its id without an
index. Also for the ids that stand for unreadable messages. Not for: the random bits and the clock, which the callers
provide.
"""

from __future__ import annotations

import re
from typing import Final

PARTITIONS_MAX: Final = 1 << 12
_VERSION_7: Final = 0x7 << 76
_VARIANT: Final = 0b10 << 62
_RANDOM_BITS: Final = (1 << 62) - 1
# This regular expression takes linear time on any input, because each repetition in it has an upper bound.
_DAMAGED: Final = re.compile(r"damaged-(\d{1,4})-(\d{1,19})-(\d{1,19})", re.ASCII)
# This check of an id is several times as fast as uuid.UUID, and `everput verify` checks millions of message ids.
# This regular expression takes linear time on any input, because each part of it repeats a fixed number of times.
_CANONICAL: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")


def message_id(*, at_ms: int, partition: int, random_bits: int) -> str:
    """Return a message id: a UUIDv7 (RFC 9562, 5.7) as text, which contains the time and the partition.

    Raises ValueError for a partition that is not in 0 to 4,095. The low 62 bits of `random_bits` are used.
    """
    if not 0 <= partition < PARTITIONS_MAX:
        raise ValueError(f"partition {partition} does not fit into a message id: it must be 0 to {PARTITIONS_MAX - 1}")
    value = (at_ms & 0xFFFFFFFFFFFF) << 80 | _VERSION_7 | partition << 64 | _VARIANT | random_bits & _RANDOM_BITS
    text = f"{value:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def parse_message_id(text: str) -> tuple[int, int] | None:
    """Return (time in ms, partition) from a message id. Return None if the text is not a UUIDv7 in canonical form."""
    if _CANONICAL.fullmatch(text) is None:
        return None
    return int(text[:8] + text[9:13], 16), int(text[15:18], 16)


def partition_of(text: str) -> int | None:
    """Return the partition that an id contains: the id of a message, or an id that stands for unreadable messages.
    Return None for any other text.
    """
    place, damaged = parse_message_id(text), parse_damaged_id(text)
    return place[1] if place is not None else None if damaged is None else damaged[0]


def damaged_id(partition: int, first: int, last: int) -> str:
    """Return an id that stands for all messages in the unreadable range of offsets from `first` to `last`."""
    return f"damaged-{partition}-{first}-{last}"


def parse_damaged_id(text: str) -> tuple[int, int, int] | None:
    """Return (partition, first offset, last offset) from an id that stands for unreadable messages. Return None for any
    other text.
    """
    found = _DAMAGED.fullmatch(text)
    return None if found is None else (int(found[1]), int(found[2]), int(found[3]))
