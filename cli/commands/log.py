"""`everput log`: the events of an organization, for people and for scripts.

For: the command. Not for: reading (cli/log_client.py), the line of an event (cli/event_lines.py).
"""

from __future__ import annotations

import sys
from typing import Final

import click
import httpx
import orjson

from broker.errors import ConfigurationError
from cli import log_client
from cli.api_options import api_options
from cli.arguments import QueueName
from cli.event_lines import EventLines
from cli.groups import examples
from cli.printing import say, say_json, terminal_width
from cli.short_ids import Id, whole_id
from cli.times import Time

_NAME_PAGES_MAX: Final = 10  # pages of 1,000 queues


@click.command(
    "log",
    epilog=examples(
        "everput log --from 15m",
        "everput log --queue orders --type delivery --follow",
        "everput log --message MESSAGE_ID --json",
    ),
)
@api_options
@click.option(
    "--from", "begin", type=Time(), help="Start of the time range: 2026-01-31T12:00:00Z, 2026-01-31, or 15m (ago)."
)
@click.option("--to", "end", type=Time(), help="End of the time range.")
@click.option(
    "--type",
    "kind",
    metavar="TYPE,…",
    help="Types of events, such as queue.created, or queue for all events of queues.",
)
@click.option("--queue", metavar="QUEUE", type=QueueName(), help="Only events of this queue and its listeners.")
@click.option("--listener", metavar="LISTENER", help="Only events of this listener, by name or ID.")
@click.option("--message", metavar="ID", type=Id(), help="Only events of this message: its whole story.")
@click.option("--actor", metavar="WHO", help="Only events caused by key:ID, account:ID, worker or shell.")
@click.option("--limit", type=click.IntRange(1, 1_000_000), help="Show at most this many events.")
@click.option("--follow", is_flag=True, help="Show new events as they happen, until Ctrl-C.")
@click.option("--json", "as_json", is_flag=True, help="Print lines of JSON, as the API sends them.")
def command(
    *,
    url: str,
    key: str,
    begin: str | None,
    end: str | None,
    kind: str | None,
    queue: str | None,
    listener: str | None,
    message: str | None,
    actor: str | None,
    limit: int | None,
    follow: bool,
    as_json: bool,
) -> None:
    """Show the organization's events in the order of the log, oldest first. The key needs the scope `audit`.

    A new event is shown two seconds after it was stored, so that an earlier event of another process, which may arrive
    late, is shown first. With --message, new events are shown without this wait.

    On a terminal, each line is cut to the terminal's width, and IDs are short. Most commands accept short IDs. If the
    output is not a terminal, IDs are whole, and each value in NAME=VALUE has at most 60 characters. With --json, whole
    events are shown. Times are in UTC.
    """
    if follow and end is not None:
        raise ConfigurationError("--follow does not end, so it can't be combined with --to: leave out one of them")
    with log_client.client(url, key) as http_client:
        queue_names, names, queues = _names(http_client)
        queue_id = None if queue is None else _id_of(queue, queue_names)
        near = {one: name for one, name in names.items() if queue_id in (None, queues[one])}
        given = {
            "from": begin,
            "to": end,
            "type": kind,
            "queue": queue_id,
            "listener": None if listener is None else _id_of(listener, near),
            "message": message,
            "actor": None if actor is None else _whole_actor(actor),
            "limit": None if limit is None else str(limit),
        }
        query = {name: value for name, value in given.items() if value is not None}
        lines = EventLines(queue_names | names, terminal_width())
        try:
            for part in log_client.read(http_client, query, follow=follow):
                for line in part.lines:
                    if as_json:
                        say_json(line)
                        continue
                    for parts in lines.of(orjson.loads(line)["event"]):
                        say(*parts)
                sys.stdout.flush()
        except KeyboardInterrupt:
            if not follow:
                raise


def _names(http_client: httpx.Client) -> tuple[dict[str, str], dict[str, str], dict[str, str]]:
    """Return three dicts: the names of queues by queue id, the names of listeners by listener id, and the ids of queues
    by listener id.

    The dicts have at most the oldest 10,000 queues. They are empty if the API key has no right to read queues.
    """
    queues: dict[str, str] = {}
    listeners: dict[str, str] = {}
    queue_ids: dict[str, str] = {}
    query = {"limit": "1000"}
    for _ in range(_NAME_PAGES_MAX):
        try:
            page = log_client.ask(http_client, "/v1/queues", **query)
        except log_client.NotAllowed:
            break
        if page is None:
            break
        for queue in page["queues"]:
            queues[queue["id"]] = queue["name"]
            listeners |= {one["id"]: one["name"] for one in queue["listeners"]}
            queue_ids |= {one["id"]: queue["id"] for one in queue["listeners"]}
        following = page["_links"].get("next")
        if following is None:
            break
        query["cursor"] = httpx.URL(following["href"]).params["cursor"]
    return queues, listeners, queue_ids


def _id_of(text: str, names: dict[str, str]) -> str:
    """Return the id of the queue or listener with this name. Raises ConfigurationError if several listeners have this
    name.

    If no queue or listener has this name, return `text` itself: it may be the id of a deleted queue or listener. If
    `text` is a short id, return the whole id.
    """
    found = [one for one, name in names.items() if name == text]
    if len(found) > 1:
        raise ConfigurationError(f"{len(found)} queues have a listener with the name {text}: add --queue")
    return found[0] if found else whole_id(text)


def _whole_actor(actor: str) -> str:
    kind, colon, name = actor.partition(":")
    return f"{kind}{colon}{whole_id(name)}"
