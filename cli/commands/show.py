"""`everput show queue`: a queue and its listeners, now or at a past time.

For: the command and its lines. Not for: past states, which the API computes from the log.
"""

from __future__ import annotations

from typing import Any

import click
import httpx
import orjson

from broker.errors import NotFound
from cli import log_client
from cli.api_options import api_options
from cli.arguments import queue_argument
from cli.groups import Group, examples
from cli.printing import say, say_json
from cli.short_ids import whole_id
from cli.times import Time

_SHOWN = ("name", "id", "notify_url", "liveness_url", "state", "paused", "lag", "max_in_flight", "rate_per_s", "batch")


@click.group("show", cls=Group)
def command() -> None:
    """Show a queue and its listeners, now or at a past time."""


@command.command("queue", epilog=examples("everput show queue orders", "everput show queue orders --at 2h"))
@queue_argument
@api_options
@click.option(
    "--at", "at", type=Time(), help="Show the state at this time: 2026-01-31T12:00:00Z, 2026-01-31, or 15m (ago)."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def queue_command(*, queue: str, url: str, key: str, at: str | None, as_json: bool) -> None:
    """Show QUEUE (a name or an ID) and its listeners, now or at a past time."""
    then = {} if at is None else {"at": at}
    with log_client.client(url, key) as http_client:
        found = _find(http_client, queue, then)
        path = f"/v1/queues/{found['id']}/listeners"
        listeners = []
        for one in found["listeners"]:
            answer = log_client.ask(http_client, f"{path}/{one['id']}", **then)
            if answer is not None:
                listeners.append(answer["listener"])
    if as_json:
        say_json(orjson.dumps({"queue": {**found, "listeners": listeners}}))
        return
    say(f"{found['name']}  {found['id']}" + (f"  at {at}" if at is not None else ""))
    width = max(map(len, _SHOWN))
    for one in listeners:
        say()
        for name in _SHOWN:
            if one.get(name) is not None:
                say(f"  {name:{width}}  {_text(one[name])}")


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {one}" for name, one in value.items())
    return str(value)


def _find(http_client: httpx.Client, queue: str, then: dict[str, str]) -> dict[str, Any]:
    """Find a queue by its name or id. If `then` has a time (`at`), find the queue as it was at this time. Raises
    NotFound if the API key can read no such queue.
    """
    named = log_client.ask(http_client, "/v1/queues", name=queue, **then)
    if named is not None and named["queues"]:
        found: dict[str, Any] = named["queues"][0]
        return found
    answer = log_client.ask(http_client, f"/v1/queues/{whole_id(queue)}", **then)
    if answer is None:
        at = f" at {then['at']}" if then else ""
        raise NotFound(f"no queue that the API key can read has the name or ID {queue}{at}")
    found_queue: dict[str, Any] = answer["queue"]
    return found_queue
