"""The health of a listener, decided from facts, and the counts of its latest attempts.

For: the one rule that the API, the command line, the console and the metrics share. A worker counts attempts per stream
and minute (Recent) and commits the counts with the stream's cursor (cursor.py), so any process can add them up.
Pure; time is passed in. Not for: when a listener counts as down (circuit.py), reading cursors
(broker/kafka/deliveries.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, NamedTuple

from broker.core.cursor import Cursor
from broker.core.varints import pack, unpack

MINUTES: Final = 5  # A rate is of the present minute and those before it, this many in all.
ENOUGH: Final = 8  # Of fewer attempts in this time, the last one decides.
FAILING: Final = 0.25  # A listener that refuses more than this part of its attempts is failing.
MENDED_MS: Final = 60_000  # A listener that has accepted everything for so long is not failing any more.
_MINUTE_MS: Final = 60_000


class Health(StrEnum):
    """The health of a listener, the worst first.

    DOWN: no attempt is made until the liveness_url answers 2xx.
    FAILING: it is alive, and too many attempts fail.
    PAUSED: nothing is sent, as somebody asked, or because the listener answered 410.
    REPLAYING: healthy, and a replay to it is running.
    NEW: no attempt has ended yet.
    HEALTHY: it accepts messages.
    """

    DOWN = "down"
    FAILING = "failing"
    PAUSED = "paused"
    REPLAYING = "replaying"
    NEW = "new"
    HEALTHY = "healthy"


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What is known of a listener's deliveries.

    down: a worker makes no attempts until the liveness_url answers 2xx. False if it does, and attempts fail all the
        same.
    parked, retrying: deliveries.
    accepted, refused: attempts in the last MINUTES. A refused one has failed for any reason.
    accepted_at_ms, refused_at_ms: the last of each; 0 for never.
    """

    down: bool = False
    parked: int = 0
    retrying: int = 0
    accepted: int = 0
    refused: int = 0
    accepted_at_ms: int = 0
    refused_at_ms: int = 0

    @property
    def failing(self) -> bool:
        """Whether too many of the latest attempts were refused."""
        if self.accepted_at_ms - self.refused_at_ms >= MENDED_MS:
            return False
        attempts = self.accepted + self.refused
        if attempts < ENOUGH:
            return self.refused_at_ms > self.accepted_at_ms
        return self.refused > FAILING * attempts

    def health(self, *, paused: bool, replaying: bool = False) -> Health:
        """Decide the health. paused: the listener is. replaying: a replay to it is running."""
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
    """The latest attempts of one stream.

    accepted_at_ms, refused_at_ms: as in Facts.
    minutes: (minute since the epoch, accepted, refused), the newest first, at most MINUTES of them.
    """

    __slots__ = ("_text", "_with", "accepted_at_ms", "minutes", "refused_at_ms")

    def __init__(self, accepted_at_ms: int = 0, refused_at_ms: int = 0) -> None:
        self.accepted_at_ms = accepted_at_ms
        self.refused_at_ms = refused_at_ms
        self.minutes: list[tuple[int, int, int]] = []
        self._with = (-1, -1, False)
        self._text = ""

    def add(self, at_ms: int, *, accepted: int = 0, refused: int = 0) -> None:
        """Count attempts that ended at about this time."""
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
        """Write the counts as text, with those of the stream's outstanding deliveries. alive: see Counts."""
        if self._with != (parked, retrying, alive):
            numbers = [int(alive), parked, retrying, self.accepted_at_ms, self.refused_at_ms]
            newest = self.minutes[0][0] if self.minutes else 0
            numbers.append(newest)
            for minute, accepted, refused in self.minutes:
                numbers += (newest - minute, accepted, refused)
            self._with, self._text = (parked, retrying, alive), pack(numbers)
        return self._text


class Counts(NamedTuple):
    """The counts in a cursor. alive: although no attempts are made, the liveness_url has answered 2xx."""

    alive: bool
    parked: int
    retrying: int
    recent: Recent


def read(text: str) -> Counts:
    """Read what Recent.text() wrote. Other text counts as nothing."""
    try:
        alive, parked, retrying, accepted_at_ms, refused_at_ms, newest, *rest = unpack(text)
    except ValueError:
        return Counts(False, 0, 0, Recent())
    recent = Recent(accepted_at_ms, refused_at_ms)
    triples = zip(rest[::3], rest[1::3], rest[2::3], strict=False)
    recent.minutes = [(newest - back, accepted, refused) for back, accepted, refused in triples][:MINUTES]
    return Counts(bool(alive), parked, retrying, recent)


def facts(*, down: bool, parked: int, retrying: int, recent: Iterable[Recent], at_ms: int) -> Facts:
    """Return the facts of a listener. recent: the latest attempts of its streams. at_ms: now."""
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
    """Return the facts of a listener from the cursors of its streams."""
    down, counted = False, []
    for cursor in cursors:
        counts = read(cursor.counts)
        down = down or (cursor.state == "down" and not counts.alive)
        if cursor.counts:
            counted.append(counts)
    return facts(
        down=down,
        parked=sum(one.parked for one in counted),
        retrying=sum(one.retrying for one in counted),
        recent=[one.recent for one in counted],
        at_ms=at_ms,
    )
