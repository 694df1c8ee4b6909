"""The health and the backlog of listeners and queues, as JSON fields of the answers about them.

Not for: what the health of a listener means (broker/core/health.py), reading the facts from Kafka
(broker/kafka/deliveries.py).
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from api.pages import optional_rfc3339
from broker.core.entities import Listener, Queue
from broker.core.health import Facts, Health
from broker.errors import Busy, LogUnavailable
from broker.ports import Backlog, DirectoryView, ListenerStatus

# If a list of queues shows health or backlog, the queues on one page have together at most this many listeners.
# If a single queue has more than LISTENERS_OF_PAGE_MAX listeners, it is shown alone on its page.
LISTENERS_OF_PAGE_MAX: Final = 1_000
_FACTS_S: Final = 2.0
_BACKLOGS_S: Final = 3.0


async def health_fields(
    view: DirectoryView, status: ListenerStatus, listeners: Sequence[Listener]
) -> list[dict[str, Any]]:
    """Return a dict of JSON fields for each listener: its health, the number of parked and of retrying deliveries, the
    number of recent attempts, and how many of them have failed. The fields also have the times of the newest success
    and failure, and the newest error. If Kafka does not answer in time, each dict is empty.
    """
    try:
        async with asyncio.timeout(_FACTS_S):
            known = await status.facts(listeners)
    except (LogUnavailable, TimeoutError):
        return [{} for _ in listeners]
    return [listener_health(view, one, known.get(one.id, Facts())) for one in listeners]


def listener_health(view: DirectoryView, listener: Listener, facts: Facts) -> dict[str, Any]:
    """Return JSON fields of a listener: its health, the number of parked and of retrying deliveries, the number of
    recent attempts, and how many of them have failed. The fields also have the times of the newest success and failure,
    and the newest error.
    """
    replaying = any(replay.state == "running" for replay in view.state.replays.of(listener.id))
    return {
        "health": str(facts.health(paused=listener.paused is not None, replaying=replaying)),
        "parked": facts.parked,
        "retrying": facts.retrying,
        "recent_attempts": facts.accepted + facts.refused,
        "recent_failures": facts.refused,
        "last_success_at": optional_rfc3339(facts.accepted_at_ms or None),
        "last_failure_at": optional_rfc3339(facts.refused_at_ms or None),
        "last_error": facts.error,
    }


async def queue_health_fields(
    view: DirectoryView, status: ListenerStatus, queues: Sequence[Queue]
) -> list[dict[str, Any]]:
    """Return a dict of JSON fields for each queue: how many of its listeners have each health, and how many deliveries
    are retrying or parked. If Kafka does not answer in time, each dict is empty.
    """
    listeners = [list(queue.listeners.values()) for queue in queues]
    known = iter(await health_fields(view, status, [one for some in listeners for one in some]))
    told = [[next(known) for _ in some] for some in listeners]
    if not all(fields for some in told for fields in some):
        return [{} for _ in queues]
    return [
        {
            "health": _by_state(fields["health"] for fields in some),
            "parked": sum(fields["parked"] for fields in some),
            "retrying": sum(fields["retrying"] for fields in some),
        }
        for some in told
    ]


async def backlog_fields(status: ListenerStatus, listeners: Sequence[Listener]) -> list[dict[str, Any]]:
    """Return a dict of JSON fields for each listener of one organization: how many messages wait for the listener, and
    when the oldest of them was put. If the messages can't be counted now, each dict is empty.
    """
    backlogs = await backlogs_of(status, listeners)
    if backlogs is None:
        return [{} for _ in listeners]
    found = [backlogs.get(one.id, Backlog(0, None)) for one in listeners]
    return [{"lag": one.messages, "oldest_pending_at": optional_rfc3339(one.oldest_at_ms)} for one in found]


async def queue_backlog_fields(status: ListenerStatus, queues: Sequence[Queue]) -> list[dict[str, Any]]:
    """Return a dict of JSON fields for each queue: how many messages wait for its listeners, summed over the listeners,
    and when the oldest waiting message was put. If the messages can't be counted now, each dict is empty.
    """
    backlogs = await backlogs_of(status, [one for queue in queues for one in queue.listeners.values()])
    if backlogs is None:
        return [{} for _ in queues]
    fields = []
    for queue in queues:
        own = [backlogs[one] for one in queue.listeners if one in backlogs]
        oldest = [backlog.oldest_at_ms for backlog in own if backlog.oldest_at_ms is not None]
        fields.append(
            {
                "lag": sum(backlog.messages for backlog in own),
                "oldest_pending_at": optional_rfc3339(min(oldest, default=None)),
            }
        )
    return fields


async def backlogs_of(status: ListenerStatus, listeners: Sequence[Listener]) -> Mapping[str, Backlog] | None:
    """Return, by listener id, how many messages wait for each of these listeners of one organization, and when the
    oldest of them was put. Return None if Kafka does not answer in time, or if too many large reads of the log are
    running.
    """
    if not listeners:
        return {}
    try:
        async with asyncio.timeout(_BACKLOGS_S):
            return await status.backlogs(listeners)
    except (Busy, LogUnavailable, TimeoutError):
        return None


def _by_state(states: Iterable[str]) -> dict[str, int]:
    """Return the number of listeners with each health, in the order from the worst health to the best. Leave out a
    health that no listener has.
    """
    counts = Counter(states)
    return {str(state): counts[state] for state in Health if counts[state]}
