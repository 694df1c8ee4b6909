"""The shapes of the answers about statistics."""

from __future__ import annotations

from msgspec import field

from everput.answers.base import Answer, Count, Named, PageLinks, Time


class LatencyFields(Answer):
    """The durations of deliveries. A duration begins when the message is put or, if the message has a `deliver_at`, at
    that time. If the delivery fails again after a redrive, its duration begins at the redrive. A duration ends when the
    message is delivered.
    """

    mean_ms: float
    """The mean, in milliseconds."""
    p50_ms: int | None
    """An upper bound of the median, in milliseconds; null if it is longer than the last of `latency_bounds_ms`."""
    p95_ms: int | None
    """An upper bound for 95 percent of the deliveries, in milliseconds; null as for `p50_ms`."""
    p99_ms: int | None
    """An upper bound for 99 percent of the deliveries, in milliseconds; null as for `p50_ms`."""
    steps: list[int]
    """The number of deliveries in each step of `latency_bounds_ms`; the last one is of longer times."""


class PointFields(Answer):
    """The counts of one step. A step is a period of `step_s` seconds."""

    at: Time
    """The time at which the step begins."""
    put: Count
    """The number of messages put on the queue."""
    delivered: Count
    """The number of deliveries that a listener accepted."""
    failed: Count
    """The number of attempts that failed."""
    failed_by: dict[str, int]
    """The number of attempts that failed, by HTTP status or, without an answer, by the reason."""
    parked: Count
    """The number of deliveries that were parked."""
    latency: LatencyFields | None
    """The times from put to delivered; null without a delivery."""
    backlog: Count | None
    """The number of messages that waited for the listener at the end of the step, or in the overview for all listeners;
    null for a queue. It is calculated back from the current lag, so steps before a redrive or a deletion of messages
    are not exact.
    """
    complete: bool
    """Whether every record of the step could be counted."""


class StatisticsFields(Answer):
    """The counts for each step of a time range. A step is a period of `step_s` seconds."""

    from_: Time = field(name="from")
    """The start of the first step."""
    to: Time
    """The end of the last step."""
    step_s: Count
    """The length of a step, in seconds."""
    counted_at: Time | None
    """The time at which the newest counts were written; null if there are none. Later events are not counted yet."""
    latency_bounds_ms: list[int]
    """The upper bounds of the steps of `latency.steps`, in milliseconds."""
    points: list[PointFields]
    """The steps, oldest first."""


class StatisticsAnswer(Answer):
    """Statistics with their links."""

    statistics: StatisticsFields
    """The statistics."""
    links: PageLinks = field(name="_links")
    """Links of the statistics."""


class AttentionFields(Named):
    """A listener that needs attention."""

    queue: Named
    """The listener's queue."""
    health: str
    """The state of the listener, such as `down`, `failing` or `paused`."""
    lag: Count | None
    """The number of messages still to be delivered; null if it could not be counted in time."""
    parked: Count
    """The number of parked deliveries."""
    retrying: Count
    """The number of deliveries with a failed attempt that are retried."""
    recent_attempts: Count
    """The attempts of the last 5 minutes."""
    recent_failures: Count
    """The failed attempts of the last 5 minutes."""
    last_success_at: Time | None
    """The time of the last attempt that the listener accepted; null if there is none."""
    last_failure_at: Time | None
    """The time of the last attempt that failed; null if there is none."""
    last_error: str | None
    """The error or the HTTP status of the newest failed attempt; null if there is none, or if a later attempt was
    accepted.
    """


class OverviewAnswer(Answer):
    """An overview of an organization with its links."""

    statistics: StatisticsFields
    """The statistics of all queues together. The backlog is null if it could not be counted in time."""
    queues: Count
    """The number of queues."""
    listeners: dict[str, int]
    """The number of listeners by health; empty if it could not be read in time."""
    attention: list[AttentionFields]
    """The listeners that need attention, worst first, at most 100."""
    links: PageLinks = field(name="_links")
    """Links of the overview."""
