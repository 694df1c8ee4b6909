"""The report of an installation: every listener by the REST API, every process by its admin address.

For: asking, and judging what is wrong. Not for: showing it (cli/commands/status.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any, Final

import httpx
import msgspec
from prometheus_client.parser import text_string_to_metric_families

from broker.errors import ConfigurationError
from everput import AsyncClient, Problem, get_listener, list_listeners, list_organizations, list_queues

AT_ONCE: Final = 16
ASK_S: Final = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenerRow:
    """The row of a listener.

    state: live, down or paused.
    health: healthy, failing, down, paused, replaying or new; the state where the API does not know the health.
    lag: messages that wait.
    parked, retrying: deliveries.
    recent_attempts, recent_failures: of the last 5 minutes.
    pending_s: since the oldest of them was put; None when none waits, or unknown.
    wrong: the reason why this is a problem; None when it is not.
    """

    queue: str
    listener: str
    id: str
    state: str
    health: str
    lag: int
    parked: int
    retrying: int
    recent_attempts: int
    recent_failures: int
    pending_s: float | None
    last_error: str | None
    wrong: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageRow:
    """The bytes of messages that the organization stores.

    stored_bytes_max: None for no bound.
    wrong: as in ListenerRow.
    log_damaged: whether a part of the installation's log can't be read.
    """

    stored_bytes: int
    stored_bytes_max: int | None
    log_damaged: bool
    wrong: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessRow:
    """The row of a process. address: the admin address that told of it. figures: by the names of FIGURES."""

    address: str
    process: str
    figures: dict[str, float]
    wrong: str | None


# The troubles of a listener that a caller may count as wrong: three states, and two kinds of deliveries.
TROUBLES: Final = ("down", "failing", "parked", "retrying", "paused")
_COUNTS: Final = ("parked", "retrying", "recent_attempts", "recent_failures")
# The figures of a process are sums over the samples of one metric.
FIGURES: Final = {
    "memory": "process_resident_memory_bytes",
    "partitions": "everput_partitions_owned",
    "waiting": "everput_lag_messages",
    "outstanding": "everput_outstanding_deliveries",
    "attempts": "everput_attempts_total",
    "rebalances": "everput_rebalances_total",
}


@dataclass(frozen=True, slots=True)
class Limits:
    """What counts as wrong.

    messages, age_s: the limits of a listener's lag; None for no limit.
    fail_on: the names of TROUBLES that count.
    """

    messages: int | None
    age_s: float | None
    fail_on: frozenset[str] = frozenset(("down", "failing", "parked"))


async def listeners(client: AsyncClient, limits: Limits, queue: str | None = None) -> list[ListenerRow]:
    """Return the listeners of all queues of the organization, or of one, by id or name. Raises EverputError."""
    turns = asyncio.Semaphore(AT_ONCE)

    async def one(queue_id: str, queue_name: str, listener_id: str) -> ListenerRow | None:
        try:
            async with turns:
                told = await client.send(get_listener(queue_id, listener_id))
        except Problem as error:
            if error.status != HTTPStatus.NOT_FOUND:
                raise
            return None  # deleted meanwhile
        return _row(queue_name, msgspec.to_builtins(told.listener), limits)

    asked = []
    async for page in client.pages(list_queues()):
        for found in page.queues:
            if queue in (None, found.id, found.name):
                async for listed in client.pages(list_listeners(found.id)):
                    asked += [(found.id, found.name, each.id) for each in listed.listeners]
    rows = await asyncio.gather(*(one(*each) for each in asked))
    return [row for row in rows if row is not None]


def _row(queue: str, listener: dict[str, Any], limits: Limits) -> ListenerRow:
    since = listener["oldest_pending_at"]
    pending_s = None if since is None else max(0.0, (datetime.now(UTC) - datetime.fromisoformat(since)).total_seconds())
    health = listener.get("health", listener["state"])
    counts = {name: listener.get(name, 0) for name in _COUNTS}
    wrong = None
    if health in limits.fail_on:
        wrong = health
    elif limits.fail_on & {"parked", "retrying"} & {name for name, count in counts.items() if count}:
        wrong = ", ".join(
            f"{counts[name]:,} {name}" for name in ("parked", "retrying") if name in limits.fail_on and counts[name]
        )
    elif limits.messages is not None and listener["lag"] > limits.messages:
        wrong = f"backlog over {limits.messages:,}"
    elif limits.age_s is not None and pending_s is not None and pending_s > limits.age_s:
        wrong = f"oldest message waits over {limits.age_s:g} s"
    return ListenerRow(
        queue=queue,
        listener=listener["name"],
        id=listener["id"],
        state=listener["state"],
        health=health,
        **counts,
        lag=listener["lag"],
        pending_s=pending_s,
        last_error=listener["last_error"],
        wrong=wrong,
    )


async def storage(client: AsyncClient) -> StorageRow:
    """Return the storage of the key's organization. Raises EverputError."""
    told = (await client.send(list_organizations())).organizations[0]
    most = told.stored_bytes_max
    wrong = "full: puts are refused" if most is not None and told.stored_bytes >= most else None
    damaged = told.log_damaged is True
    return StorageRow(stored_bytes=told.stored_bytes, stored_bytes_max=most, log_damaged=damaged, wrong=wrong)


async def processes(addresses: Sequence[str]) -> list[ProcessRow]:
    """Return the processes behind each admin address: one, or all of a supervisor."""
    async with httpx.AsyncClient(timeout=ASK_S, trust_env=False) as client:
        return [row for rows in await asyncio.gather(*(_behind(client, one) for one in addresses)) for row in rows]


async def _behind(client: httpx.AsyncClient, address: str) -> list[ProcessRow]:
    address = address.rstrip("/")
    try:
        health = await client.get(f"{address}/health")
        metrics = (await client.get(f"{address}/metrics")).raise_for_status().text
    except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
        raise ConfigurationError(f"{address} is not a URL: {error}") from error
    except httpx.HTTPError as error:
        return [ProcessRow(address=address, process="", figures={}, wrong=f"does not answer: {type(error).__name__}")]
    found: dict[str, dict[str, float]] = {}
    up: dict[str, float] = {}
    shown = {metric: name for name, metric in FIGURES.items()}
    for family in text_string_to_metric_families(metrics):
        for sample in family.samples:
            process = sample.labels.get("process", "")
            if sample.name == "everput_up":
                up[process] = sample.value
            elif sample.name in shown:
                figures = found.setdefault(process, {})
                figures[shown[sample.name]] = figures.get(shown[sample.name], 0.0) + sample.value
    rows = [
        ProcessRow(
            address=address,
            process=process,
            figures=found.get(process, {}),
            wrong=None if up.get(process, 1) else "does not answer",
        )
        for process in sorted({*found, *up})
    ]
    if health.status_code != HTTPStatus.OK and not any(row.wrong for row in rows):
        why = health.json().get("detail", "not ready")
        rows = [ProcessRow(address=row.address, process=row.process, figures=row.figures, wrong=why) for row in rows]
    return rows
