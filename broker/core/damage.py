"""The unreadable ranges of the log: those that were found, without those that were repaired or given up.

For: the state computed from the events `log.damaged` and `log.mended`. Pure. Not for: finding damage
(broker/kafka/batches.py), deliveries that wait because of damage (broker/delivery/outstanding/damaged.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

Span = tuple[int, int]


class DamagedRange(NamedTuple):
    """A range of log records that can't be read. The offsets `first` and `last` both belong to the range. `topic` is
    the topic's name without the installation's prefix.
    """

    topic: str
    partition: int
    first: int
    last: int

    def __str__(self) -> str:
        offsets = f"offset {self.first}" if self.first == self.last else f"offsets {self.first} to {self.last}"
        return f"{self.topic}/{self.partition} {offsets}"


class Damage:
    """A set of unreadable ranges of the log, by topic and partition. Ranges that touch each other are joined."""

    def __init__(self) -> None:
        self._spans: dict[tuple[str, int], list[Span]] = {}

    def __bool__(self) -> bool:
        return bool(self._spans)

    def __iter__(self) -> Iterator[DamagedRange]:
        for (topic, partition), spans in sorted(self._spans.items()):
            for first, last in spans:
                yield DamagedRange(topic, partition, first, last)

    def covers(self, found: DamagedRange) -> bool:
        """Return whether the set holds every offset of this range."""
        spans = self._spans.get((found.topic, found.partition), ())
        return any(first <= found.first and found.last <= last for first, last in spans)

    def add(self, found: DamagedRange) -> bool:
        """Add an unreadable range of the log. Return whether any part of it is new."""
        if found.last < found.first or self.covers(found):
            return False
        place = found.topic, found.partition
        joined: list[Span] = []
        low, high = found.first, found.last
        for first, last in self._spans.get(place, ()):
            if last + 1 < low or high + 1 < first:
                joined.append((first, last))
            else:
                low, high = min(low, first), max(high, last)
        self._spans[place] = sorted([*joined, (low, high)])
        return True

    def remove(self, mended: DamagedRange) -> bool:
        """Remove a range of the log, because it can be read again or was given up. Return whether the set held any part
        of it.
        """
        place = mended.topic, mended.partition
        before = self._spans.get(place, [])
        left = [
            span
            for first, last in before
            for span in ((first, min(last, mended.first - 1)), (max(first, mended.last + 1), last))
            if span[0] <= span[1]
        ]
        left = sorted(set(left))
        if left:
            self._spans[place] = left
        else:
            self._spans.pop(place, None)
        return left != before

    def offsets(self) -> Mapping[str, int]:
        """Return the number of unreadable offsets of each topic."""
        found: dict[str, int] = {}
        for one in self:
            found[one.topic] = found.get(one.topic, 0) + one.last - one.first + 1
        return found


def joined(*parts: Damage) -> Damage:
    """Return the union of these sets of ranges. Ranges that touch each other are joined."""
    whole = Damage()
    for part in parts:
        for one in part:
            whole.add(one)
    return whole
