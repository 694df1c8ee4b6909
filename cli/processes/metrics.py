"""The Prometheus metrics of a process.

For: names, labels and help of every metric, created on request from counts that exist already. Not for: counting
(broker/delivery, broker/kafka/log.py), serving (cli/processes/admin.py). Metrics of single listeners show only those
with the highest values, so the number of time series does not grow with the number of listeners.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator
from heapq import nlargest
from itertools import accumulate
from math import inf
from typing import TYPE_CHECKING, Final

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from broker.core.catalogue import PASSING, TOPICS
from broker.core.health import Health
from broker.core.histogram import BOUNDS_MS, Histogram

if TYPE_CHECKING:  # only for type checks: the supervisor imports this module, but must not load a Kafka client
    from api.request_counts import RequestCounts
    from broker.delivery.checkpoint.metrics import Condition, Lag, Metrics, Trouble
    from broker.delivery.worker import Worker
    from broker.kafka.log import KafkaLog
    from broker.ports import DirectoryView
    from broker.volume import StoredBytes

ORGANIZATIONS_SHOWN: Final = 20
# A metric of single listeners shows the 20 listeners with the highest value, such as the most parked deliveries.
# A metric that ranks listeners by two values, such as attempts and failed attempts, shows up to 40 listeners.
LISTENERS_SHOWN: Final = 20
# A listener's histogram has fewer buckets than other histograms, because each bucket adds a time series.
_LISTENER_BOUNDS_MS: Final = (5, 20, 100, 500, 2_000, 10_000, 60_000)


def new_registry() -> CollectorRegistry:
    """Create a registry with the operating system's metrics of this process, such as its memory, processor time and
    open files.
    """
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    return registry


class _Collector(Collector):
    """A Prometheus collector that calls a function at each request, to create the metrics."""

    def __init__(self, make: Callable[[], Iterable[Metric]]) -> None:
        self._make = make

    def describe(self) -> Iterable[Metric]:
        # Without describe(), a registry with `auto_describe` would call collect() when this collector is registered.
        return []

    def collect(self) -> Iterable[Metric]:
        return self._make()


def show_log(registry: CollectorRegistry, log: KafkaLog) -> None:
    """Add the metrics of an API process's puts to the registry."""
    writer = log.messages.writer

    def make() -> Iterator[Metric]:
        text = "Time from a put of one or several messages to Kafka's acknowledgement"
        yield _histogram("everput_put_durable", text, writer.durable)
        text = "Puts answered 503; in-doubt: Kafka may have stored the messages; refused: it has not"
        failed = CounterMetricFamily("everput_puts_failed", text, labels=["outcome"])
        failed.add_metric(["in-doubt"], writer.in_doubt)
        failed.add_metric(["refused"], writer.refused)
        yield failed
        text = "Record batches in which Kafka has stored messages, each with one fsync"
        yield CounterMetricFamily("everput_put_batches", text, value=writer.batches)
        yield GaugeMetricFamily("everput_puts_waiting", "Messages put that wait for a record batch", writer.waiting)
        text = "Bytes of the messages put that wait for a record batch"
        yield GaugeMetricFamily("everput_puts_waiting_bytes", text, writer.waiting_bytes)

    registry.register(_Collector(make))


def show_answers(registry: CollectorRegistry, requests: RequestCounts, stored: StoredBytes) -> None:
    """Add the metrics of an API process's requests, and of the organizations that store most.

    The number of time series is bounded: the labels of a request have no ids and no text from outside, and at most
    ORGANIZATIONS_SHOWN organizations are shown.
    """

    def make() -> Iterator[Metric]:
        text = "Requests answered, by route and status; 499: the client had closed the connection"
        answered = CounterMetricFamily("everput_requests", text, labels=["method", "route", "status"])
        for (method, route, status), count in sorted(requests.answered.items()):
            answered.add_metric([method, route, str(status)], count)
        yield answered
        text = "Time from a request's head to the end of its answer, by route"
        took = HistogramMetricFamily("everput_request_seconds", text, labels=["method", "route"])
        for (method, route), counted in sorted(requests.took.items()):
            took.add_metric([method, route], _buckets(counted), counted.total_ms / 1000)
        yield took
        text = "Bytes that an organization stores; only the organizations that store most"
        sizes = GaugeMetricFamily("everput_organization_stored_bytes", text, labels=["organization"])
        for organization_id, size in stored.most(ORGANIZATIONS_SHOWN):
            sizes.add_metric([organization_id], size)
        yield sizes

    registry.register(_Collector(make))


def show_damage(registry: CollectorRegistry, view: DirectoryView, log: KafkaLog) -> None:
    """Add two metrics: how many offsets of the log can't be read, and how many damaged copies this process has found on
    Kafka's brokers.
    """
    bad_copies = log.requests.bad_copies

    def make() -> Iterator[Metric]:
        text = "Offsets of the log that can't be read as they were written"
        damaged = GaugeMetricFamily("everput_log_damaged_offsets", text, labels=["topic"])
        found = view.state.damage.offsets()
        for topic in sorted({*TOPICS, *PASSING, *found}):
            damaged.add_metric([topic], found.get(topic, 0))
        yield damaged
        text = "Places of the log where a broker's copy can't be read and another copy can, as this process has found"
        yield GaugeMetricFamily("everput_log_bad_copies", text, len(bad_copies))

    registry.register(_Collector(make))


def show_worker(registry: CollectorRegistry, worker: Worker) -> Callable[[], Awaitable[None]]:
    """Add the metrics of a worker's deliveries to the registry. Return a function that reads the worker's state. Await
    the returned function before each request for the metrics.

    Counters, such as the number of attempts, are read at each request for the metrics. All other metrics show the state
    that the returned function has read last. Before its first call, the other metrics and the counters of single
    listeners are missing.
    """
    now: Condition | None = None

    async def look() -> None:
        nonlocal now
        now = await worker.condition()

    def make() -> Iterator[Metric]:
        yield from _counted(worker.metrics)
        if now is not None:
            yield from _now(now)
            yield from _lags(now.lags, time.time() * 1000)
            yield from _troubles(now)
            yield from _by_listener(worker.metrics, now)

    registry.register(_Collector(make))
    return look


def _counted(metrics: Metrics) -> Iterator[Metric]:
    attempts = CounterMetricFamily(
        "everput_attempts", "Attempts by outcome, and by kind of answer (2xx, none, …)", labels=["outcome", "answer"]
    )
    for labels, count in sorted(metrics.attempts.items()):
        attempts.add_metric(labels, count)
    yield attempts
    yield _histogram("everput_put_delivered", "Time from a put to the answer that accepts it", metrics.delivered)
    yield _histogram("everput_checkpoint", "Duration of a checkpoint", metrics.checkpoints)
    yield CounterMetricFamily("everput_checkpoints_failed", "Checkpoints that failed", metrics.checkpoints_failed)
    yield CounterMetricFamily("everput_cursors_committed", "Cursors committed to Kafka", metrics.cursors)
    yield CounterMetricFamily("everput_rebalances", "How often Kafka assigned partitions", metrics.gained)


def _now(now: Condition) -> Iterator[Metric]:
    yield GaugeMetricFamily("everput_partitions_owned", "Partitions that this worker delivers", now.partitions)
    listeners = GaugeMetricFamily(
        "everput_listeners",
        "Listeners by state; probation: was down, gets few attempts; unusable: its secret can't be decrypted",
        labels=["state"],
    )
    for state in ("live", "probation", "down", "paused", "unusable"):
        listeners.add_metric([state], now.listeners[state])
    yield listeners
    yield GaugeMetricFamily("everput_window_deliveries", "Deliveries in windows that have not ended", now.open)
    yield GaugeMetricFamily("everput_window_behind", "Messages of lagging listeners to be read again", now.behind)
    yield GaugeMetricFamily("everput_streams_lagging", "Streams that wait for a catch-up reader", now.lagging)
    yield GaugeMetricFamily("everput_held_messages", "Messages in memory for their deliveries", now.held)
    yield GaugeMetricFamily("everput_held_bytes", "Bytes in memory of messages for their deliveries", now.held_bytes)
    yield GaugeMetricFamily("everput_recent_messages", "Messages in memory for streams that lag a little", now.recent)
    text = "Bytes in memory of messages for streams that lag a little"
    yield GaugeMetricFamily("everput_recent_bytes", text, now.recent_bytes)
    yield GaugeMetricFamily("everput_outstanding_deliveries", "Deliveries set aside or parked", now.outstanding)
    text = "Parked entries for messages that can't be read; each may stand for several deliveries"
    yield GaugeMetricFamily("everput_damaged_deliveries", text, now.damaged)


def _lags(lags: list[Lag], at_ms: float) -> Iterator[Metric]:
    yield GaugeMetricFamily("everput_lag_messages", "Messages that wait for listeners; an upper bound", _sum(lags))
    yield GaugeMetricFamily("everput_listeners_lagging", "Listeners for which messages wait", len(lags))
    most = sorted(lags, key=lambda lag: -lag.messages)[:LISTENERS_SHOWN]
    longest = sorted(lags, key=lambda lag: lag.oldest_at_ms or at_ms)[:LISTENERS_SHOWN]
    labels = ["queue", "listener"]
    text = "Messages that wait; the worst only. For a listener that lags far, other queues' messages count, too"
    messages = GaugeMetricFamily("everput_listener_lag_messages", text, labels=labels)
    text = "Time since the put of the oldest message that waits; the worst listeners only"
    age = GaugeMetricFamily("everput_listener_lag_seconds", text, labels=labels)
    for lag in {lag.listener_id: lag for lag in (*most, *longest)}.values():
        messages.add_metric([lag.queue_id, lag.listener_id], lag.messages)
        if lag.oldest_at_ms is not None:
            age.add_metric([lag.queue_id, lag.listener_id], max(0.0, at_ms - lag.oldest_at_ms) / 1000)
    yield messages
    yield age


def _troubles(now: Condition) -> Iterator[Metric]:
    """Yield the numbers of listeners by health, the numbers of parked and retrying deliveries, and metrics of the
    listeners with the most problems.
    """
    text = "Listeners by health, as `everput status` names it"
    health = GaugeMetricFamily("everput_listeners_health", text, labels=["state"])
    for state in Health:
        health.add_metric([state], now.health[state])
    yield health
    troubles = now.troubles
    yield GaugeMetricFamily("everput_parked", "Parked deliveries of all listeners", sum(_parked(troubles)))
    text = "Deliveries of all listeners with a failed attempt that are retried"
    yield GaugeMetricFamily("everput_retrying", text, sum(_retrying(troubles)))
    labels = ["queue", "listener"]
    parked = GaugeMetricFamily("everput_listener_parked", "Parked deliveries; the worst only", labels=labels)
    for one in _worst(troubles, _parked(troubles)):
        parked.add_metric([one.queue_id, one.listener_id], one.facts.parked)
    yield parked
    retrying = GaugeMetricFamily(
        "everput_listener_retrying", "Deliveries with a failed attempt that are retried; the worst only", labels=labels
    )
    for one in _worst(troubles, _retrying(troubles)):
        retrying.add_metric([one.queue_id, one.listener_id], one.facts.retrying)
    yield retrying
    text = "1 for the state of a listener that is down, failing or paused; those with the most failed attempts only"
    states = GaugeMetricFamily("everput_listener_state", text, labels=[*labels, "state"])
    worst = sorted(troubles, key=lambda one: (list(Health).index(one.health), -one.facts.refused))
    for one in worst[:LISTENERS_SHOWN]:
        states.add_metric([one.queue_id, one.listener_id, one.health], 1)
    yield states


def _by_listener(metrics: Metrics, now: Condition) -> Iterator[Metric]:
    """Yield the metrics of attempts to single listeners: to the listeners with the most attempts, and to those with the
    most failed attempts.

    Attempts of the last five minutes decide which listeners are shown. If two listeners have equally many, their
    attempts since the worker began to deliver to them decide. The worker also counts the attempts to listeners that are
    not shown, so the counters are complete when these listeners are shown.
    """
    found = metrics.by_listener

    def rank(listener_id: str) -> tuple[int, int]:
        return now.recent_attempts.get(listener_id, (0, 0))[0], found[listener_id].outcomes.total()

    def failures(listener_id: str) -> tuple[int, int]:
        outcomes = found[listener_id].outcomes
        return now.recent_attempts.get(listener_id, (0, 0))[1], outcomes.total() - outcomes["delivered"]

    busiest = nlargest(LISTENERS_SHOWN, found, key=rank)
    failing = [one for one in nlargest(LISTENERS_SHOWN, found, key=failures) if failures(one)[1]]
    labels = ["queue", "listener"]
    text = "Attempts by listener and outcome; the busiest listeners and those that fail most only"
    attempts = CounterMetricFamily("everput_listener_attempts", text, labels=[*labels, "outcome"])
    text = "Time from the start of an attempt to its result; the busiest listeners and those that fail most only"
    took = HistogramMetricFamily("everput_listener_attempt_seconds", text, labels=labels)
    for listener_id in dict.fromkeys((*busiest, *failing)):
        counts = found[listener_id]
        for outcome, count in sorted(counts.outcomes.items()):
            attempts.add_metric([counts.queue_id, listener_id, outcome], count)
        took.add_metric(
            [counts.queue_id, listener_id], _buckets(counts.took, _LISTENER_BOUNDS_MS), counts.took.total_ms / 1000
        )
    yield attempts
    yield took


def _parked(troubles: Iterable[Trouble]) -> list[int]:
    return [one.facts.parked for one in troubles]


def _retrying(troubles: Iterable[Trouble]) -> list[int]:
    return [one.facts.retrying for one in troubles]


def _worst(troubles: Iterable[Trouble], counts: Iterable[int]) -> list[Trouble]:
    """Return the listeners with the highest counts, at most LISTENERS_SHOWN. Leave out listeners with the count 0.

    `troubles` has the listeners that need attention. `counts` has one count for each of them, in the same order.
    """
    ranked = sorted(zip(counts, troubles, strict=True), key=lambda one: -one[0])
    return [one for count, one in ranked[:LISTENERS_SHOWN] if count]


def _sum(lags: Iterable[Lag]) -> int:
    return sum(lag.messages for lag in lags)


def _histogram(name: str, documentation: str, counted: Histogram) -> HistogramMetricFamily:
    return HistogramMetricFamily(
        f"{name}_seconds", documentation, buckets=_buckets(counted), sum_value=counted.total_ms / 1000
    )


def _buckets(counted: Histogram, shown: Collection[int] = BOUNDS_MS) -> list[tuple[str, float]]:
    """Return the buckets of a histogram in the form of Prometheus, with cumulative counts. Only the bucket `+Inf` and
    the buckets with an upper bound in `shown` are returned.
    """
    below = zip([*BOUNDS_MS, inf], accumulate(counted.counts), strict=True)
    return [("+Inf" if bound == inf else str(bound / 1000), count) for bound, count in below if bound in (*shown, inf)]
