"""The shapes of the answers about statistics."""

from __future__ import annotations

from msgspec import field

from everput.answers.base import Answer, Count, PageLinks, Time


class LatencyFields(Answer):
    """The times from the put of a message, or its `deliver_at`, to its delivery.

    mean_ms: The mean, in milliseconds.
    p50_ms: An upper bound of the median, in milliseconds; null if it is longer than the last of `latency_bounds_ms`.
    p95_ms: The same for 95 percent of the deliveries.
    p99_ms: The same for 99 percent of the deliveries.
    steps: The number of deliveries in each step of `latency_bounds_ms`; the last one is of longer times.
    """

    mean_ms: float
    p50_ms: int | None
    p95_ms: int | None
    p99_ms: int | None
    steps: list[int]


class PointFields(Answer):
    """The counts of one step of time.

    at: The time at which the step begins.
    put: The number of messages put on the queue.
    delivered: The number of deliveries that a listener accepted.
    failed: The number of attempts that failed.
    failed_by: The same by HTTP status or, where there was no answer, by the reason.
    parked: The number of deliveries that were parked.
    latency: The times from put to delivered; null without a delivery.
    backlog: The number of messages that waited for the listener at the end of the step; null for a queue. It is told
        back from the current lag, so steps before a redrive or a deletion of messages are not exact.
    complete: Whether every record of the step could be counted.
    """

    at: Time
    put: Count
    delivered: Count
    failed: Count
    failed_by: dict[str, int]
    parked: Count
    latency: LatencyFields | None
    backlog: Count | None
    complete: bool


class StatisticsFields(Answer):
    """Counts per step of time.

    from_: The start of the first step.
    to: The end of the last step.
    step_s: The length of a step, in seconds.
    counted_at: The time at which the newest of the counts were written; null if there are none. Later ones are missing.
    latency_bounds_ms: The upper bounds of the steps of `latency.steps`, in milliseconds.
    points: The steps, oldest first.
    """

    from_: Time = field(name="from")
    to: Time
    step_s: Count
    counted_at: Time | None
    latency_bounds_ms: list[int]
    points: list[PointFields]


class StatisticsAnswer(Answer):
    """Statistics with their links.

    statistics: The statistics.
    links: Links of the statistics.
    """

    statistics: StatisticsFields
    links: PageLinks = field(name="_links")
