"""A page of a queue's messages, newest first. Each partition is read backwards, some records at a time.

For: which of the records may be shown, and where the next page begins. Not for: reading them
(broker/kafka/messages.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate, islice
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")


class Found(NamedTuple, Generic[T]):
    """A message of the queue that a page may show. `size` is its size in bytes."""

    at_ms: int
    offset: int
    record: T
    size: int = 0


class Chunk(NamedTuple, Generic[T]):
    """The messages of a queue in the offsets [start, end) of one partition, in log order.

    The partition begins at the offset `begin`. `oldest_at_ms` is the time of the first record that was read, or None if
    nothing was read. If the messages were too large together, the oldest ones were left out. `oldest_at_ms` is then the
    time of the last message that was left out.
    """

    begin: int
    start: int
    end: int
    oldest_at_ms: int | None
    found: Sequence[Found[T]]


def newest(chunks: Sequence[Chunk[T]], limit: int, *, bytes_max: int | None = None) -> tuple[list[T], list[int]]:
    """Return one page of a queue's messages, newest first. Also return a list with one offset for each partition: the
    next page has messages before these offsets.

    `chunks` has the messages that were read, one chunk for each partition. The page has at most `limit` messages, with
    at most `bytes_max` bytes together. If the newest message alone is larger, the page has only this message. If a
    partition may have newer messages that were not read yet, older messages are left for the next page.
    """
    unread = [chunk for chunk in chunks if chunk.start > chunk.begin]
    floor_ms = max((chunk.oldest_at_ms for chunk in unread if chunk.oldest_at_ms is not None), default=None)
    candidates = sorted(
        (
            (at_ms, number, one.offset, one)
            for number, chunk in enumerate(chunks)
            for at_ms, one in zip(_times_ms(chunk), chunk.found, strict=True)
        ),
        key=lambda candidate: candidate[:3],
        reverse=True,
    )
    shown = [c for c in candidates if floor_ms is None or c[0] >= floor_ms][:limit]
    if bytes_max is not None:
        shown = [
            c for c, size in zip(shown, accumulate(c[3].size for c in shown), strict=True) if size <= bytes_max
        ] or (shown[:1])
    taken = {(number, offset) for _, number, offset, _ in shown}
    ends = []
    for number, chunk in enumerate(chunks):
        left = [one.offset for one in chunk.found if (number, one.offset) not in taken]
        ends.append(max(left) + 1 if left else chunk.start)
    return [one.record for *_, one in shown], ends


def _times_ms(chunk: Chunk[T]) -> Iterator[int]:
    """Yield the sort time of each message in the chunk. The sort time is the latest of three times: the message's own
    time, the times of earlier messages in the chunk, and `oldest_at_ms`.
    """
    return islice(accumulate((one.at_ms for one in chunk.found), max, initial=chunk.oldest_at_ms or 0), 1, None)
