"""The health of a listener, decided from facts, and the counts of its latest attempts.

For: the one rule that the API, the command line, the console and the metrics share. A worker counts the attempts of
each listener, partition and minute (Recent), and commits the counts with the cursor (cursor.py), so that any process
can add them up. Pure; callers pass in the time. Not for: when a listener counts as down (circuit.py), reading cursors
(broker/kafka/deliveries.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final, NamedTuple

from broker.core.cursor import Cursor
from broker.core.varints import pack, unpack

# Attempts are counted over five minutes: the current minute, and the four minutes before it.
MINUTES: Final = 5
# With fewer than eight attempts in five minutes, a listener is failing if its newest attempt failed.
ENOUGH: Final = 8
# With eight or more attempts in five minutes, a listener is usually failing if over a quarter of them failed.
FAILING: Final = 0.25
# A listener is never failing if its newest accepted attempt is at least a minute newer than its newest failed attempt.
MENDED_MS: Final = 60_000
_MINUTE_MS: Final = 60_000


class Health(StrEnum):
    """The health of a listener, from worst to best."""

    DOWN = "down"  # attempts wait for a good probe
    FAILING = "failing"  # alive, but too many attempts fail
    PAUSED = "paused"  # a user paused the listener, or the listener answered 410
    REPLAYING = "replaying"  # healthy, with a running replay
    NEW = "new"  # no attempt has ended yet
    HEALTHY = "healthy"  # it accepts messages


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """The facts about a listener's deliveries from which its health is computed.

    `down` is True if the listener is down, so that no attempts are made. There is one exception: `down` is False if the
    newest probe of the liveness_url succeeded, but attempts after this probe failed. `accepted` and `refused` count the
    accepted and the failed attempts of the last MINUTES minutes. `error` is the error or HTTP status of a recent failed
    attempt. `error` is None if no failed attempt is known. It is usually also None if a later attempt was accepted.
    """

    down: bool = False
    parked: int = 0  # deliveries
    retrying: int = 0  # deliveries
    accepted: int = 0
    refused: int = 0
    accepted_at_ms: int = 0  # last time; 0 for never
    refused_at_ms: int = 0  # last time; 0 for never
    error: str | None = None

    @property
    def failing(self) -> bool:
        """Whether the listener counts as failing, because too many of its latest attempts failed."""
        if self.accepted_at_ms - self.refused_at_ms >= MENDED_MS:
            return False
        attempts = self.accepted + self.refused
        if attempts < ENOUGH:
            return self.refused_at_ms > self.accepted_at_ms
        return self.refused > FAILING * attempts

    def health(self, *, paused: bool, replaying: bool = False) -> Health:
        """Return the listener's health.

        `paused` says that the listener is paused, and `replaying` that a replay to it is running.
        """
        if paused:
            return Health.PAUSED
        if self.down:
            return Health.DOWN
        if self.failing:
            return Health.FAILING
        if replaying:
            return Health.REPLAYING
        return Health.HEALTHY if self.accepted_at_ms or self.refused_at_ms else Health.NEW


class Recent:
    """The latest attempts to one listener, for messages of one partition.

    `minutes` has rows of (minute since the epoch, accepted, failed), newest first, for at most MINUTES minutes.
    """

    __slots__ = ("_text", "_with", "accepted_at_ms", "minutes", "refused_at_ms")

    def __init__(self, accepted_at_ms: int = 0, refused_at_ms: int = 0) -> None:
        self.accepted_at_ms = accepted_at_ms
        self.refused_at_ms = refused_at_ms
        self.minutes: list[tuple[int, int, int]] = []
        self._with = (-1, -1, False)
        self._text = ""

    def add(self, at_ms: int, *, accepted: int = 0, refused: int = 0) -> None:
        """Count attempts that ended at about the time `at_ms`: `accepted` attempts were accepted, and `refused`
        attempts failed.
        """
        if accepted:
            self.accepted_at_ms = max(self.accepted_at_ms, at_ms)
        if refused:
            self.refused_at_ms = max(self.refused_at_ms, at_ms)
        minute, newest = at_ms // _MINUTE_MS, self.minutes[0] if self.minutes else None
        if newest is not None and minute <= newest[0]:
            self.minutes[0] = newest[0], newest[1] + accepted, newest[2] + refused
        else:
            kept = [one for one in self.minutes if one[0] > minute - MINUTES]
            self.minutes = [(minute, accepted, refused), *kept]
        self._with = (-1, -1, False)

    def text(self, parked: int, retrying: int, *, alive: bool) -> str:
        """Return a text with the counts of recent attempts, and the numbers of `parked` and `retrying` deliveries.
        Kafka stores the text beside the listener's committed offset. `alive` is True if the listener's newest probe
        succeeded, but attempts after this probe failed.
        """
        if self._with != (parked, retrying, alive):
            numbers = [int(alive), parked, retrying, self.accepted_at_ms, self.refused_at_ms]
            newest = self.minutes[0][0] if self.minutes else 0
            numbers.append(newest)
            for minute, accepted, refused in self.minutes:
                numbers += (newest - minute, accepted, refused)
            self._with, self._text = (parked, retrying, alive), pack(numbers)
        return self._text


class Counts(NamedTuple):
    """The numbers of a listener's parked and retrying deliveries in a partition, and its recent attempts there. Kafka
    stores these numbers beside the listener's committed offset. `alive` is True if the listener's newest probe
    succeeded, but attempts after this probe failed. The worker then makes no attempts until the next successful probe.
    """

    alive: bool
    parked: int
    retrying: int
    recent: Recent


def read(text: str) -> Counts:
    """Return the counts from a text that Kafka stores beside a listener's committed offset. Return zeros if the text is
    not valid.
    """
    try:
        alive, parked, retrying, accepted_at_ms, refused_at_ms, newest, *rest = unpack(text)
    except ValueError:
        return Counts(False, 0, 0, Recent())
    recent = Recent(accepted_at_ms, refused_at_ms)
    triples = zip(rest[::3], rest[1::3], rest[2::3], strict=False)
    recent.minutes = [(newest - back, accepted, refused) for back, accepted, refused in triples][:MINUTES]
    return Counts(bool(alive), parked, retrying, recent)


def facts(*, down: bool, parked: int, retrying: int, recent: Iterable[Recent], at_ms: int) -> Facts:
    """Return the facts about a listener, with the recent attempts of all partitions added up. `at_ms` is the current
    time.
    """
    since, accepted, refused, accepted_at_ms, refused_at_ms = at_ms // _MINUTE_MS - MINUTES, 0, 0, 0, 0
    for stream in recent:
        accepted_at_ms = max(accepted_at_ms, stream.accepted_at_ms)
        refused_at_ms = max(refused_at_ms, stream.refused_at_ms)
        for minute, accepted_here, refused_here in stream.minutes:
            if minute > since:
                accepted, refused = accepted + accepted_here, refused + refused_here
    return Facts(
        down=down,
        parked=parked,
        retrying=retrying,
        accepted=accepted,
        refused=refused,
        accepted_at_ms=accepted_at_ms,
        refused_at_ms=refused_at_ms,
    )


def facts_of(cursors: Iterable[Cursor], at_ms: int) -> Facts:
    """Return the facts about a listener. They are read from the metadata that Kafka stores beside the listener's
    committed offset in each partition. `at_ms` is the current time.
    """
    down, counted, error, error_at_ms = False, [], None, -1
    for cursor in cursors:
        counts = read(cursor.counts)
        if cursor.error is not None and counts.recent.refused_at_ms > error_at_ms:
            error, error_at_ms = cursor.error, counts.recent.refused_at_ms
        down = down or (cursor.state == "down" and not counts.alive)
        if cursor.counts:
            counted.append(counts)
    found = facts(
        down=down,
        parked=sum(one.parked for one in counted),
        retrying=sum(one.retrying for one in counted),
        recent=[one.recent for one in counted],
        at_ms=at_ms,
    )
    # Do not show an error that is older than the last accepted attempt. If the listener is down, show it nevertheless.
    stale = found.accepted_at_ms > found.refused_at_ms and not down
    return found if stale else replace(found, error=error)
