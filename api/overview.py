"""The overview resource: an organization's statistics, and the listeners that need attention.

For: everything that a first page about an organization needs, in one request. Not for: the statistics of one queue or
listener (statistics.py), what the health of a listener means (broker/core/health.py).
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Final

from api.calls import Call
from api.health import backlogs_of, health_fields
from api.statistics import statistics_fields, time_steps
from broker.clock import now_ms
from broker.core.entities import Listener, Queue
from broker.core.health import Health
from broker.core.statistics import QueuesSeries
from broker.ports import DirectoryView, ListenerStatus, Statistics

# The overview checks the health of at most this many listeners. It begins with the listeners of the oldest queues.
LISTENERS_MAX: Final = 1_000
ATTENTION_MAX: Final = 100
_NEEDS_ATTENTION: Final = (Health.DOWN, Health.FAILING, Health.PAUSED)
_RANK: Final = {str(health): rank for rank, health in enumerate(Health)}


class Overview:
    """Handler for /v1/overview."""

    def __init__(
        self, view: DirectoryView, statistics: Statistics, status: ListenerStatus, clock: Callable[[], int] = now_ms
    ) -> None:
        self._clock = clock
        self._view = view
        self._statistics = statistics
        self._status = status

    async def get(self, call: Call) -> Any:
        """Answer with the counts of all queues together, and with at most ATTENTION_MAX listeners that need attention.
        Only the first LISTENERS_MAX listeners are checked, those of the oldest queues first. If the request has an API
        key that is restricted to some queues, the answer covers only these queues.
        """
        api_key = call.api_key
        state = self._view.state
        queues = [
            queue for queue in state.queues_of(call.organization_id) if api_key is None or api_key.is_for(queue.id)
        ]
        created_at_ms = {queue.id: {one.id: one.created_at_ms for one in queue.listeners.values()} for queue in queues}
        series = QueuesSeries(*time_steps(self._clock(), call.query()), created_at_ms)
        await self._statistics.read(call.organization_id, series)
        everybody = ((queue, listener) for queue in queues for listener in queue.listeners.values())
        shown = list(itertools.islice(everybody, LISTENERS_MAX + 1))
        all_shown = len(shown) <= LISTENERS_MAX
        shown = shown[:LISTENERS_MAX]
        backlogs = await backlogs_of(self._status, [listener for _, listener in shown])
        lags = None if backlogs is None else {one: backlog.messages for one, backlog in backlogs.items()}
        backlog = series.backlog_of(lags) if all_shown and lags is not None else None
        health = await health_fields(self._view, self._status, [listener for _, listener in shown])
        known = [_fields(*one, told, lags) for one, told in zip(shown, health, strict=True) if told]
        attention = sorted((one for one in known if one["health"] in _NEEDS_ATTENTION or one["parked"]), key=_rank)
        return {
            "statistics": statistics_fields(series, backlog),
            "queues": len(queues),
            "listeners": dict(Counter(one["health"] for one in known)),
            "attention": attention[:ATTENTION_MAX],
            "_links": call.links("/v1/overview", call.query(), None),
        }


def _fields(
    queue: Queue, listener: Listener, health: Mapping[str, Any], lags: Mapping[str, int] | None
) -> dict[str, Any]:
    return {
        "id": listener.id,
        "name": listener.name,
        "queue": {"id": queue.id, "name": queue.name},
        "lag": None if lags is None else lags.get(listener.id, 0),
        **health,
    }


def _rank(fields: Mapping[str, Any]) -> tuple[int, int, str]:
    """Return the key by which listeners are sorted: the worst health first, then the most parked deliveries, then the
    name. A parked delivery needs a person, because Everput attempts it again only after a redrive.
    """
    return _RANK[fields["health"]], -fields["parked"], fields["name"]
