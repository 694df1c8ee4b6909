"""A worker's counters of its own work, and the condition of its listeners at a moment.

For: plain numbers, counted at the checkpoint, where outcomes are gathered anyway. Not for: making metrics of them
(cli/processes/metrics.py), a listener's state for clients (broker/kafka/deliveries.py).
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from broker.core.histogram import Histogram
from broker.delivery.dispatch.dispatcher import Dispatcher
from broker.delivery.dispatch.stream import Made, Row
from broker.delivery.outstanding.schedule import Outstanding
from broker.delivery.reading.partition import Partition
from broker.delivery.tuning import TUNED


class Metrics:
    """The worker's counters since the process began.

    attempts: by (outcome, answer), where the answer is `2xx` … `5xx` or `none`.
    delivered: durations from the put, or from the message's `deliver_at`, to the accepting answer.
    cursors: committed.
    gained: how often the group assigned partitions to this worker.
    """

    def __init__(self) -> None:
        self.attempts: Counter[tuple[str, str]] = Counter()
        self.delivered = Histogram()
        self.checkpoints = Histogram()
        self.checkpoints_failed = 0
        self.cursors = 0
        self.gained = 0

    def count(self, rows: Sequence[Row], attempts: Iterable[Made]) -> None:
        """Count what a checkpoint has gathered of one stream."""
        if rows:
            self.attempts["delivered", "2xx"] += len(rows)
            self.delivered.add_all([max(0, at_ms - put_at_ms) for _, at_ms, _, _, put_at_ms in rows])
        for attempt, put_at_ms in attempts:
            answer = "none" if attempt.status is None else f"{attempt.status // 100}xx"
            self.attempts[attempt.outcome, answer] += 1
            if attempt.outcome == "delivered":
                self.delivered.add(max(0, attempt.at_ms - put_at_ms))


@dataclass(frozen=True, slots=True)
class Lag:
    """The lag of a listener.

    messages: not settled, as far as this worker knows; where the log must still be read, its other messages count, too.
    oldest_at_ms: when the oldest of them was put, None when that is not known.
    """

    listener_id: str
    queue_id: str
    messages: int
    oldest_at_ms: int | None


@dataclass(slots=True)
class Condition:
    """The condition of a worker at a moment.

    listeners: how many, by `live`, `probation`, `down` and `paused`.
    lags: those that are not zero.
    open: deliveries in windows.
    behind: offsets noted for later.
    held, held_bytes: messages that dispatchers hold.
    recent, recent_bytes: messages kept for streams that lag a little.
    lagging: streams that wait for a catch-up reader.
    outstanding: deliveries that are retried later, or parked.
    damaged: those of them whose messages can't be read.
    """

    partitions: int = 0
    listeners: Counter[str] = field(default_factory=Counter)
    lags: list[Lag] = field(default_factory=list)
    open: int = 0
    behind: int = 0
    held: int = 0
    held_bytes: int = 0
    recent: int = 0
    recent_bytes: int = 0
    lagging: int = 0
    outstanding: int = 0
    damaged: int = 0


async def condition(
    dispatchers: Iterable[Dispatcher],
    partitions: dict[int, Partition],
    outstanding: Outstanding,
    *,
    at_once: int = TUNED.conditions_at_once,
) -> Condition:
    """Examine every dispatcher and return the worker's condition. It yields to the event loop after some, so deliveries
    continue.
    """
    now = Condition(partitions=len(partitions), outstanding=len(outstanding), damaged=outstanding.damaged())
    for partition in partitions.values():
        now.recent += partition.recent
        now.recent_bytes += partition.recent_bytes
    for looked_at, dispatcher in enumerate(list(dispatchers), 1):
        if looked_at % at_once == 0:
            await asyncio.sleep(0)
        now.listeners[dispatcher.condition] += 1
        now.held += dispatcher.held
        now.held_bytes += dispatcher.held_bytes
        now.lagging += len(dispatcher.behind)
        messages = 0
        oldest: list[int] = []
        for number, stream in dispatcher.streams.items():
            window, partition_now = stream.window, partitions.get(number)
            now.open += len(window.open)
            now.behind += len(window.behind)
            messages += len(window.open) + len(window.behind)
            if window.scan_from is not None and partition_now is not None:
                messages += max(0, dispatcher.listener.reach(number, partition_now.tail) - window.scan_from)
            since_ms = stream.oldest_at_ms
            if since_ms is not None:
                oldest.append(since_ms)
        for number in list(partitions):
            waiting, since_ms = outstanding.waiting(number, dispatcher.listener.id)
            messages += waiting
            if since_ms is not None:
                oldest.append(since_ms)
        if messages:
            now.lags.append(
                Lag(dispatcher.listener.id, dispatcher.listener.queue_id, messages, min(oldest, default=None))
            )
    return now
