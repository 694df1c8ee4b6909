"""The report on an installation: all listeners from the REST API, all processes from their admin addresses.

For: asking, and judging what is wrong. Not for: showing the report (cli/commands/status.py).
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
from cli.short_ids import whole_id
from everput import AsyncClient, Problem, get_listener, list_listeners, list_organizations, list_queues

AT_ONCE: Final = 16
ASK_S: Final = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenerRow:
    """A listener in the report of `everput status`."""

    queue: str
    listener: str
    id: str
    # live, down or paused
    state: str
    # healthy, failing, down, paused, replaying or new; equal to `state` if the API is too old to report the health
    health: str
    # the number of messages that wait
    lag: int
    parked: int
    retrying: int
    # the numbers of attempts and of failed attempts in the last 5 minutes
    recent_attempts: int
    recent_failures: int
    # seconds since the oldest waiting message was put; None if no message waits
    pending_s: float | None
    last_error: str | None
    # The reason why the listener counts as a problem; None if it does not.
    wrong: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageRow:
    """The storage of the organization in the report of `everput status`."""

    stored_bytes: int
    # The most bytes that the organization may store; None for no limit.
    stored_bytes_max: int | None
    # True if a part of the installation's log is damaged
    log_damaged: bool
    wrong: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessRow:
    """A process in the report of `everput status`.

    `address` is the admin address that was asked about the process. `figures` maps the names in FIGURES, such as
    `memory`, to the process's numbers. If the process did not report a number, its name is missing.
    """

    address: str
    process: str
    figures: dict[str, float]
    wrong: str | None


# The problems of listeners that the option --fail-on of `everput status` may name.
TROUBLES: Final = ("down", "failing", "parked", "retrying", "paused")
_COUNTS: Final = ("parked", "retrying", "recent_attempts", "recent_failures")
# The report's numbers about a process. Each is the sum of all samples that the process has of this Prometheus metric.
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
    """The limits beyond which `everput status` counts a listener as a problem."""

    # a listener with more waiting messages than this is a problem; None for no limit
    messages: int | None
    # a listener whose oldest message has waited longer than this, in seconds, is a problem; None for no limit
    age_s: float | None
    # listeners with these problems (names from TROUBLES) make the exit code 1
    fail_on: frozenset[str] = frozenset(("down", "failing", "parked"))


async def listeners(client: AsyncClient, limits: Limits, queue: str | None = None) -> list[ListenerRow]:
    """Return the listeners of all queues, or of one queue that is given by its name, id or short id. Raises
    EverputError if the request fails.
    """
    turns = asyncio.Semaphore(AT_ONCE)

    async def one(queue_id: str, queue_name: str, listener_id: str) -> ListenerRow | None:
        try:
            async with turns:
                answer = await client.send(get_listener(queue_id, listener_id))
        except Problem as error:
            if error.status != HTTPStatus.NOT_FOUND:
                raise
            return None  # the listener was deleted meanwhile
        return _row(queue_name, msgspec.to_builtins(answer.listener), limits)

    asked = []
    async for page in client.pages(list_queues()):
        for found in page.queues:
            if queue is None or found.name == queue or found.id == whole_id(queue):
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
    """Return how many bytes the API key's organization has stored and may store, and whether the log is damaged. Raises
    EverputError if the request fails.
    """
    organization = (await client.send(list_organizations())).organizations[0]
    most = organization.stored_bytes_max
    wrong = "full: puts are refused" if most is not None and organization.stored_bytes >= most else None
    damaged = organization.log_damaged is True
    return StorageRow(stored_bytes=organization.stored_bytes, stored_bytes_max=most, log_damaged=damaged, wrong=wrong)


async def processes(addresses: Sequence[str]) -> list[ProcessRow]:
    """Return a row for each process that the admin addresses report. A supervisor's address reports all of its
    processes. For an address that does not answer, return one row that says so. Raises ConfigurationError if an address
    is not a URL.
    """
    async with httpx.AsyncClient(timeout=ASK_S, trust_env=False) as client:
        return [row for rows in await asyncio.gather(*(_behind(client, one) for one in addresses)) for row in rows]


async def _behind(client: httpx.AsyncClient, address: str) -> list[ProcessRow]:
    address = address.rstrip("/")
    try:
        health = await client.get(f"{address}/health")
        metrics = (await client.get(f"{address}/metrics")).raise_for_status().text
    except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
        raise ConfigurationError(f"the admin address {address} is not a URL: {error}; correct --admin") from error
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
