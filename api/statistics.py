"""The statistics resources of queues and listeners: counts per step of time, for charts.

For: the parameters from, to and step, and the answer. Not for: what is counted (broker/core/statistics.py), reading it
(broker/kafka/statistics.py)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from api.calls import Call
from api.pages import optional_rfc3339, rfc3339, time_parameter
from api.problems import BadParameter
from broker.clock import now_ms
from broker.commands.context import find_listener, find_queue
from broker.core.histogram import BOUNDS_MS
from broker.core.statistics import KEPT_MS, MINUTE_MS, Counts, Series
from broker.ports import DirectoryView, ListenerStatus, Statistics

POINTS_MAX: Final = 1_500
# Without `step`, use the shortest step in _USUAL_MS with which the series has at most about this many points.
# If the series would have more points even with the longest step in _USUAL_MS, use steps of a day.
_POINTS_USUAL: Final = 150
_UNITS_MS: Final = {"m": MINUTE_MS, "h": 60 * MINUTE_MS, "d": 24 * 60 * MINUTE_MS}
_USUAL_MS: Final = tuple(
    _UNITS_MS[unit] * number for number, unit in ((1, "m"), (5, "m"), (15, "m"), (1, "h"), (6, "h"))
)
_DAY_MS: Final = _UNITS_MS["d"]
_DAYS_MAX: Final = 30
_HOUR_MS: Final = _UNITS_MS["h"]


class StatisticsOf:
    """Handlers for the statistics of a queue and of a listener. `status` says how many messages wait for a listener."""

    def __init__(
        self, view: DirectoryView, statistics: Statistics, status: ListenerStatus, clock: Callable[[], int] = now_ms
    ) -> None:
        self._clock = clock
        self._view = view
        self._statistics = statistics
        self._status = status

    async def queue(self, call: Call) -> Any:
        """Answer with the counts of a queue: its puts, and the sums over all of its listeners."""
        queue = await find_queue(self._view, call.organization_id, call.path("queue_id"))
        series = Series(*time_steps(self._clock(), call.query()), queue.id)
        await self._statistics.read(queue.organization_id, series)
        return _answer(call, f"/v1/queues/{queue.id}/statistics", series, None)

    async def listener(self, call: Call) -> Any:
        """Answer with the counts of a listener, its backlog, and the puts on its queue."""
        ids = call.path("queue_id"), call.path("listener_id")
        listener = await find_listener(self._view, call.organization_id, *ids)
        series = Series(*time_steps(self._clock(), call.query()), listener.queue_id, listener.id)
        await self._statistics.read(listener.organization_id, series)
        waiting = (await self._status.condition(listener)).lag
        backlog = series.backlog(waiting, since_ms=listener.created_at_ms)
        path = f"/v1/queues/{listener.queue_id}/listeners/{listener.id}/statistics"
        return _answer(call, path, series, backlog)


def time_steps(now: int, query: Mapping[str, str]) -> tuple[int, int, int]:
    """Return the time series that the query asks for: its start, the length of a step, and the number of steps. Times
    are in milliseconds. Raises BadParameter if a parameter is not valid.
    """
    to_ms = time_parameter(query, "to")
    to_ms = now if to_ms is None else min(to_ms, now)
    from_ms = time_parameter(query, "from")
    from_ms = to_ms - _HOUR_MS if from_ms is None else from_ms
    if from_ms > to_ms:
        raise BadParameter("The parameter `from` must not be later than `to`, nor in the future.", parameter="from")
    if now - from_ms > KEPT_MS + _DAY_MS:
        raise BadParameter(
            f"Statistics are kept for {_DAYS_MAX} days. Ask for a time range that begins later.", parameter="from"
        )
    step_ms = _step_ms(query.get("step"), to_ms - from_ms)
    from_ms -= from_ms % step_ms
    number = max(1, -(-(to_ms - from_ms) // step_ms))
    if number > POINTS_MAX:
        detail = (
            f"The time range has {number} steps, but an answer has at most {POINTS_MAX}. Give a longer `step` or a "
            "shorter time range."
        )
        raise BadParameter(detail, parameter="step")
    return from_ms, step_ms, number


def _step_ms(text: str | None, span_ms: int) -> int:
    """Return the length of one step of a time series, in milliseconds. Raises BadParameter if the client asked for a
    length that is not valid.

    `text` is the length that the client asked for. If `text` is None, the length is chosen to suit `span_ms`, the
    length of the whole series.
    """
    if text is None:
        return next((one for one in _USUAL_MS if span_ms <= one * _POINTS_USUAL), _DAY_MS)
    # This regular expression takes linear time on any input, because its only repetition is bounded.
    found = re.fullmatch(r"([1-9][0-9]{0,3})([mhd])", text)
    step_ms = 0 if found is None else int(found[1]) * _UNITS_MS[found[2]]
    if not 0 < step_ms <= _DAYS_MAX * _DAY_MS:
        raise BadParameter(
            "The parameter `step` must be a whole number from 1 to 9999 and a unit (m, h or d), such as 1m or 6h. "
            f"A step may be at most {_DAYS_MAX}d.",
            parameter="step",
        )
    return step_ms


def _answer(call: Call, path: str, series: Series, backlog: list[int] | None) -> dict[str, Any]:
    return {"statistics": statistics_fields(series, backlog), "_links": call.links(path, call.query(), None)}


def statistics_fields(series: Series, backlog: list[int] | None) -> dict[str, Any]:
    """Return a time series as JSON, with the backlog at the end of each step if it is known."""
    at_ms = [series.from_ms + series.step_ms * place for place in range(len(series.points))]
    waiting: list[int | None] = [None] * len(at_ms) if backlog is None else [*backlog]
    points = [_point(*one) for one in zip(at_ms, series.points, series.complete, waiting, strict=True)]
    return {
        "from": rfc3339(series.from_ms),
        "to": rfc3339(series.from_ms + series.step_ms * len(series.points)),
        "step_s": series.step_ms // 1000,
        "counted_at": optional_rfc3339(series.written_at_ms),
        "latency_bounds_ms": list(BOUNDS_MS),
        "points": points,
    }


def _point(at_ms: int, counts: Counts, complete: bool, backlog: int | None) -> dict[str, Any]:
    return {
        "at": rfc3339(at_ms),
        "put": counts.put,
        "delivered": counts.delivered,
        "failed": sum(counts.failed.values()),
        "failed_by": dict(sorted(counts.failed.items())),
        "parked": counts.parked,
        "latency": _latency(counts),
        "backlog": backlog,
        "complete": complete,
    }


def _latency(counts: Counts) -> dict[str, Any] | None:
    mean_ms = counts.mean_ms()
    if mean_ms is None:
        return None
    return {
        "mean_ms": round(mean_ms, 1),
        "p50_ms": counts.quantile_ms(0.5),
        "p95_ms": counts.quantile_ms(0.95),
        "p99_ms": counts.quantile_ms(0.99),
        "steps": [counts.waited.get(step, 0) for step in range(len(BOUNDS_MS) + 1)],
    }
