"""Replays: a range of a queue's messages that is delivered again, to a listener or to another URL.

For: the fields of a replay, the offsets that it takes, and how events change it. A replay is delivered like a listener
that begins and ends at given offsets, so all rules for listeners also hold for replays.

Not for: starting a replay (broker/commands/replays.py), delivering it (broker/delivery), the listener that stands for
it (directory.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import Final

from broker.core import events as ev
from broker.core.varints import pack, unpack

# For each organization, a process remembers only the 1,000 ended replays that ended last.
ENDED_MAX: Final = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """A replay: a range of a queue's messages that is delivered again, to the listener or to another URL.

    `only` says which messages it delivers: `all`, `failed` or `undelivered`. The range begins at `start_offsets` and
    ends before `end_offsets`, with one offset for each partition. If `picked` is None, the replay delivers all messages
    of the range. Otherwise, it delivers three kinds of messages in each partition: messages before the partition's
    offset in `before_offsets`, messages at the offsets in `picked`, and messages from the offset in `after_offsets` on.
    """

    id: str
    organization_id: str
    listener_id: str
    from_ms: int
    to_ms: int
    only: str
    notify_url: str | None  # None: the listener's own URL
    liveness_url: str | None  # None: listener's own, or notify_url
    rate_per_s: float | None
    start_offsets: tuple[int, ...]  # one offset for each partition
    end_offsets: tuple[int, ...]
    before_offsets: tuple[int, ...]
    after_offsets: tuple[int, ...]
    picked: tuple[str, ...] | None  # packed offsets by partition, see pick()
    count: int  # messages at the start
    counted_all: bool
    send_headers: bool  # even to another origin
    created_at_ms: int
    # The partitions in which no delivery of the replay is open: all have succeeded, or were parked or cancelled.
    finished: tuple[int, ...] = ()
    paused: str | None = None  # None if not paused
    ended: str | None = None  # None while it runs
    ended_at_ms: int | None = None

    def chooser(self, partition: int) -> Callable[[int], bool] | None:
        """Return a function that takes an offset of this partition, and returns whether the replay delivers the message
        at this offset. Return None if the replay delivers all messages of its range.
        """
        if self.picked is None:
            return None
        before = self.before_offsets[partition]
        after = (self.after_offsets or self.end_offsets)[partition]
        picked = frozenset(picked_offsets(self.picked[partition]))
        return lambda offset: offset < before or offset >= after or offset in picked

    @property
    def state(self) -> str:
        """State of the replay: running, paused, finished or cancelled."""
        return self.ended or ("running" if self.paused is None else "paused")


class Replays:
    """All replays that have not ended, and the ENDED_MAX replays of each organization that ended last.

    When a listener is deleted, its replays are removed.
    """

    def __init__(self) -> None:
        self._by_id: dict[str, Replay] = {}
        self._of: dict[str, list[str]] = {}
        # The ids of ended replays by organization, in the order in which the replays ended.
        self._ended_of: dict[str, dict[str, None]] = {}
        self._running: Counter[str] = Counter()  # number of running replays by organization

    def find(self, organization_id: str, replay_id: str) -> Replay | None:
        """Return the replay with this ID. Return None if the organization has no such replay."""
        found = self._by_id.get(replay_id)
        return found if found is not None and found.organization_id == organization_id else None

    def of(self, listener_id: str) -> list[Replay]:
        """Return a listener's replays in the order of their start."""
        return [self._by_id[replay_id] for replay_id in self._of.get(listener_id, ())]

    def apply(self, event: ev.ReplayEvent) -> Replay | None:
        """Update the replays with one event of the log. Return the changed replay, or None if nothing changed."""
        before = self.find(event.organization_id, event.replay_id)
        if isinstance(event, ev.ReplayStarted):
            if event.replay_id in self._by_id:
                return None
            self._of.setdefault(event.listener_id, []).append(event.replay_id)
            self._running[event.organization_id] += 1
            now = started(event)
        elif before is None or before.ended is not None:
            return None
        else:
            now = _changed(before, event)
        self._by_id[now.id] = now
        if now.ended is not None:
            self._keep_ended(now)
        return now

    def _keep_ended(self, replay: Replay) -> None:
        """Record that a replay has ended. If the organization has too many ended replays, forget the one that ended
        first.
        """
        self._running[replay.organization_id] -= 1
        self._by_id[replay.id] = replace(replay, picked=None)
        ended = self._ended_of.setdefault(replay.organization_id, {})
        ended[replay.id] = None
        if len(ended) > ENDED_MAX:
            oldest = self._by_id[next(iter(ended))]
            self._of[oldest.listener_id].remove(oldest.id)
            self._drop(oldest.id)

    def _drop(self, replay_id: str) -> Replay:
        replay = self._by_id.pop(replay_id)
        if replay.ended is None:
            self._running[replay.organization_id] -= 1
        else:
            del self._ended_of[replay.organization_id][replay_id]
        return replay

    def running(self, organization_id: str) -> int:
        """Return how many of the organization's replays have not ended yet, including paused ones."""
        return self._running[organization_id]

    def forget(self, listener_id: str) -> list[Replay]:
        """Remove and return the replays of a deleted listener."""
        return [self._drop(replay_id) for replay_id in self._of.pop(listener_id, ())]

    def everything(self) -> list[Replay]:
        """Return all replays, sorted by id, so that processes with equal replays compute the same hash of them."""
        return sorted(self._by_id.values(), key=lambda replay: replay.id)


def started(event: ev.ReplayStarted) -> Replay:
    """Return the new replay that this event describes."""
    return Replay(
        id=event.replay_id,
        organization_id=event.organization_id,
        listener_id=event.listener_id,
        from_ms=event.from_ms,
        to_ms=event.to_ms,
        only=event.only,
        notify_url=event.notify_url,
        liveness_url=event.liveness_url,
        rate_per_s=event.rate_per_s,
        start_offsets=event.start_offsets,
        end_offsets=event.end_offsets,
        before_offsets=event.before_offsets,
        after_offsets=event.after_offsets,
        picked=event.picked,
        count=event.count,
        counted_all=event.counted_all,
        send_headers=event.send_headers,
        created_at_ms=event.at_ms,
    )


def _changed(replay: Replay, event: ev.ReplayEvent) -> Replay:
    match event:
        case ev.ReplayAdvanced():
            finished = tuple(sorted({*replay.finished, *event.partitions}))
            replay = replace(replay, finished=finished)
            if len(finished) == len(replay.end_offsets):
                replay = replace(replay, ended="finished", ended_at_ms=event.at_ms)
        case ev.ReplayPaused():
            replay = replace(replay, paused=event.reason)
        case ev.ReplayResumed():
            replay = replace(replay, paused=None)
        case ev.ReplayCancelled():
            replay = replace(replay, ended="cancelled", ended_at_ms=event.at_ms)
    return replay


def pick(offsets: Sequence[int]) -> str:
    """Pack ascending offsets into a short text. The text has the first offset, and then the difference between each
    offset and the offset before it.
    """
    return pack([*offsets[:1], *(high - low for low, high in pairwise(offsets))])


def picked_offsets(text: str) -> list[int]:
    """Return the offsets that pick() has packed."""
    return list(accumulate(unpack(text)))
