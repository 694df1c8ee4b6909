"""A worker's counters of its own work, and the state of its listeners at one moment.

For: plain numbers, counted at the checkpoint, where outcomes are gathered anyway. Not for: publishing them as metrics
(cli/processes/metrics.py), a listener's state for clients (broker/kafka/deliveries.py).
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from broker.clock import now_ms
from broker.core import circuit
from broker.core.entities import Listener
from broker.core.health import Facts, Health, facts
from broker.core.histogram import Histogram
from broker.delivery.dispatch.dispatcher import Dispatcher
from broker.delivery.dispatch.stream import Made, Row
from broker.delivery.outstanding.schedule import Outstanding
from broker.delivery.reading.partition import Partition
from broker.delivery.tuning import TUNED

_CONDITIONS: Final = {
    circuit.State.CLOSED: "live",
    circuit.State.PROBATION: "probation",
    circuit.State.OPEN: "down",
}


class ListenerCounts:
    """The numbers and durations of attempts to one listener since the worker began to deliver to it, for metrics."""

    __slots__ = ("outcomes", "queue_id", "took")

    def __init__(self, queue_id: str) -> None:
        self.queue_id = queue_id
        self.outcomes: Counter[str] = Counter()  # attempts by outcome, such as `delivered`
        self.took = Histogram()  # duration of an attempt in ms


class Metrics:
    """The worker's counters since its process started."""

    def __init__(self) -> None:
        # The number of attempts, by outcome and class of HTTP status: `2xx`, for example, or `none` without an answer.
        self.attempts: Counter[tuple[str, str]] = Counter()
        self.delivered = Histogram()  # ms from put to delivery
        # The counts of attempts, by listener id. A listener is added when a checkpoint collects its first result.
        self.by_listener: dict[str, ListenerCounts] = {}
        self.checkpoints = Histogram()  # duration in ms
        self.checkpoints_failed = 0
        self.cursors = 0  # committed cursors
        self.gained = 0  # how often Kafka assigned partitions

    def count(self, listener: Listener, rows: Sequence[Row], attempts: Sequence[Made]) -> None:
        """Add the results of a listener's attempts that a checkpoint has collected to the counts for metrics."""
        if not rows and not attempts:
            return
        counts = self.by_listener.get(listener.id)
        if counts is None:
            counts = self.by_listener[listener.id] = ListenerCounts(listener.queue_id)
        if rows:
            counts.outcomes["delivered"] += len(rows)
            counts.took.add_all([took_ms for _, _, _, took_ms, _ in rows])
            self.attempts["delivered", "2xx"] += len(rows)
            self.delivered.add_all([max(0, at_ms - put_at_ms) for _, at_ms, _, _, put_at_ms in rows])
        for attempt, put_at_ms in attempts:
            answer = "none" if attempt.status is None else f"{attempt.status // 100}xx"
            self.attempts[attempt.outcome, answer] += 1
            counts.outcomes[attempt.outcome] += 1
            counts.took.add(attempt.took_ms)
            if attempt.outcome == "delivered":
                self.delivered.add(max(0, attempt.at_ms - put_at_ms))

    def removed(self, listener_id: str) -> None:
        """Forget the counts of a listener to which the worker stops delivery."""
        self.by_listener.pop(listener_id, None)


@dataclass(frozen=True, slots=True)
class Lag:
    """The lag of a listener in the partitions of one worker: how many messages wait for it, and when the oldest of them
    was put.
    """

    listener_id: str
    queue_id: str
    # The number of messages that wait for the listener.
    # For a listener that lags, `messages` can be too high: it can include other queues' messages in its partitions.
    messages: int
    oldest_at_ms: int | None  # None if unknown


@dataclass(frozen=True, slots=True)
class Trouble:
    """A listener that needs attention, as far as this worker knows: it is down, failing or paused, or has parked or
    retrying deliveries.
    """

    listener_id: str
    queue_id: str
    health: Health
    facts: Facts


@dataclass(slots=True)
class Condition:
    """The state of a worker and its listeners, for metrics. Delivery goes on while it is collected, so its values can
    be from slightly different moments.
    """

    partitions: int = 0
    listeners: Counter[str] = field(default_factory=Counter)  # by state, such as `down`
    health: Counter[Health] = field(default_factory=Counter)  # listeners and replays
    # Attempts and failed attempts in the last 5 minutes, by listener id. Listeners without attempts are left out.
    recent_attempts: dict[str, tuple[int, int]] = field(default_factory=dict)
    # The listeners that are down, failing or paused, or have parked or retrying deliveries.
    troubles: list[Trouble] = field(default_factory=list)
    lags: list[Lag] = field(default_factory=list)  # only listeners that lag
    open: int = 0  # deliveries in windows
    behind: int = 0  # offsets to be read again
    held: int = 0  # messages in memory for listeners
    held_bytes: int = 0
    recent: int = 0  # recent messages in memory
    recent_bytes: int = 0
    lagging: int = 0  # streams waiting for a reader
    outstanding: int = 0  # deliveries retried later, or parked
    damaged: int = 0  # deliveries in `outstanding` with unreadable messages


def state_of(dispatcher: Dispatcher) -> str:
    """Return how the worker treats the listener: `live`, `probation` (after it was down), `down` or `paused`."""
    return "paused" if dispatcher.listener.paused is not None else _CONDITIONS[dispatcher.circuit.state]


def waiting(dispatcher: Dispatcher, partitions: dict[int, Partition]) -> int:
    """Return about how many messages in the worker's partitions wait for the listener or are being sent to it. Two
    kinds of messages do not count: those in the topic `outstanding`, and new ones that the worker has not read from
    Kafka yet.

    If the listener lags in a partition, the number can be too high, because it includes some messages of other queues.
    """
    messages = 0
    for number, stream in dispatcher.streams.items():
        window, partition = stream.window, partitions.get(number)
        messages += len(window.open) + len(window.behind)
        if window.scan_from is not None and partition is not None:
            messages += max(0, dispatcher.listener.reach(number, partition.tail) - window.scan_from)
    return messages


async def condition(
    dispatchers: Iterable[Dispatcher],
    partitions: dict[int, Partition],
    outstanding: Outstanding,
    *,
    at_once: int = TUNED.conditions_at_once,
) -> Condition:
    """Return the state of the worker and its listeners. Delivery continues meanwhile: yield to the event loop after
    every few listeners, and after each partition in which deliveries of a listener wait in `outstanding`.
    """
    now = Condition(partitions=len(partitions), outstanding=len(outstanding), damaged=outstanding.damaged())
    for partition in partitions.values():
        now.recent += partition.recent
        now.recent_bytes += partition.recent_bytes
    served = list(dispatchers)
    # A replay is served as a listener of its own, and knows the id of the listener that it replays to.
    replays = [one.listener.replay for one in served if one.listener.replay is not None]
    replaying = {replay.listener_id for replay in replays if replay.state == "running"}
    for looked_at, dispatcher in enumerate(served, 1):
        if looked_at % at_once == 0:
            await asyncio.sleep(0)
        now.listeners[state_of(dispatcher)] += 1
        now.held += dispatcher.held
        now.held_bytes += dispatcher.memory.held_bytes
        now.lagging += len(dispatcher.behind)
        messages = waiting(dispatcher, partitions)
        oldest: list[int] = []
        for stream in dispatcher.streams.values():
            now.open += len(stream.window.open)
            now.behind += len(stream.window.behind)
            since_ms = stream.oldest_at_ms
            if since_ms is not None:
                oldest.append(since_ms)
        for number in list(partitions):
            count, since_ms = outstanding.waiting(number, dispatcher.listener.id)
            if count:  # Yield to the event loop: counting many deliveries may have taken some milliseconds.
                await asyncio.sleep(0)
            messages += count
            if since_ms is not None:
                oldest.append(since_ms)
        _judge(now, dispatcher, outstanding, replaying=dispatcher.listener.id in replaying)
        if messages:
            now.lags.append(
                Lag(dispatcher.listener.id, dispatcher.listener.queue_id, messages, min(oldest, default=None))
            )
    return now


def _judge(now: Condition, dispatcher: Dispatcher, outstanding: Outstanding, *, replaying: bool) -> None:
    """Add a listener's health and recent attempts to `now`. If the listener needs attention, add it to `now.troubles`,
    too.
    """
    listener = dispatcher.listener
    parked, retrying = outstanding.held_of(listener.id)
    known = facts(
        down=dispatcher.circuit.state is circuit.State.OPEN and not dispatcher.circuit.alive,
        parked=parked,
        retrying=retrying + sum(stream.retrying for stream in dispatcher.streams.values()),
        recent=dispatcher.recent.values(),
        at_ms=now_ms(),
    )
    health = known.health(paused=listener.paused is not None, replaying=replaying)
    now.health[health] += 1
    if known.accepted or known.refused:
        now.recent_attempts[listener.id] = known.accepted + known.refused, known.refused
    if known.parked or known.retrying or health in (Health.DOWN, Health.FAILING, Health.PAUSED):
        now.troubles.append(Trouble(listener.id, listener.queue_id, health, known))
