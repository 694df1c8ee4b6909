"""`everput log`: the events of an organization, for people and for scripts.

For: the command, and an event as a line for people. Not for: reading (cli/log_client.py)."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Final

import click
import httpx
import orjson

from broker.core.codec import CLASSES
from broker.errors import ConfigurationError
from cli import log_client
from cli.api_options import api_options
from cli.groups import examples
from cli.printing import say, say_json
from cli.times import Time
from cli.visible import visible

_SAID: Final = ("type", "v", "at_ms", "organization_id", "actor", "request_id")  # in columns, or the same in all
# The subject of an event is the first of these fields that it has.
_ABOUT: Final = ("message_id", "replay_id", "listener_id", "queue_id", "key_id", "account_id", "session_id")
_VALUE_CHARS_MAX: Final = 60
_ID_CHARS: Final = 36
_WIDTHS: Final = (
    len("2026-01-31 12:00:00.123Z"),
    max(map(len, CLASSES)),
    _ID_CHARS,
    len("key:") + _ID_CHARS,
    _ID_CHARS,
)


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
@click.option("--queue", metavar="ID|NAME", help="Only events of this queue and its listeners.")
@click.option("--listener", metavar="ID", help="Only events of this listener.")
@click.option("--message", metavar="ID", help="Only events of this message: its whole story.")
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

    New events are shown after two seconds, because until then an earlier event of another process may still arrive.
    The events of one message (--message) are shown at once.
    """
    if follow and end is not None:
        raise ConfigurationError("--follow has no end: leave --to out")
    with log_client.client(url, key) as http_client:
        given = {
            "from": begin,
            "to": end,
            "type": kind,
            "queue": None if queue is None else _queue_id(http_client, queue),
            "listener": listener,
            "message": message,
            "actor": actor,
            "limit": None if limit is None else str(limit),
        }
        query = {name: value for name, value in given.items() if value is not None}
        try:
            headed = as_json
            for part in log_client.read(http_client, query, follow=follow):
                for line in part.lines:
                    if not headed:
                        say(heading())
                        headed = True
                    if as_json:
                        say_json(line)
                        continue
                    for text in told(orjson.loads(line)["event"]):
                        say(text)
                sys.stdout.flush()
        except KeyboardInterrupt:
            if not follow:
                raise


def _queue_id(http_client: httpx.Client, queue: str) -> str:
    """Return the id of the queue with this name, or the given text, which may be the id of a deleted queue."""
    found = log_client.ask(http_client, "/v1/queues", name=queue)
    return str(found["queues"][0]["id"]) if found is not None and found["queues"] else queue


def told(event: dict[str, Any]) -> Iterator[str]:
    """Yield lines for people, under heading(). An event of several deliveries gives a line for each."""
    if event["type"] != "deliveries.settled":
        yield _line(event["at_ms"], event, _attempt(event) if event["type"] == "delivery.attempted" else "")
        return
    for offset, at_ms, status, took_ms in event["rows"]:
        row = {name: value for name, value in event.items() if name != "rows"} | {"offset": offset}
        yield _line(at_ms, row, f"attempt 1 delivered: {status} after {took_ms} ms")


def heading() -> str:
    """Return the headings of the columns. Widths are fixed, because lines are printed as they come."""
    return _columns("time", "type", "about", "actor", "request", "what")


def _line(at_ms: int, event: dict[str, Any], what: str) -> str:
    at = datetime.fromtimestamp(at_ms // 1000, UTC)
    about = next((name for name in _ABOUT if event.get(name)), "")
    return _columns(
        f"{at:%Y-%m-%d %H:%M:%S}.{at_ms % 1000:03d}Z",
        event["type"],
        event.get(about, ""),
        event["actor"],
        event["request_id"],
        f"{what} {_fields({name: value for name, value in event.items() if name not in (*_SAID, about)})}".strip(),
    )


def _columns(*cells: str) -> str:
    """Join the cells of a line. The last one is not padded."""
    *rest, what = cells
    return "  ".join([*(_short(one).ljust(width) for one, width in zip(rest, _WIDTHS, strict=True)), what]).rstrip()


def _attempt(event: dict[str, Any]) -> str:
    """Describe an attempt in words, and remove the described fields from the event."""
    number, outcome, took_ms = (event.pop(name) for name in ("number", "outcome", "took_ms"))
    status, error, next_at_ms = (event.pop(name) for name in ("status", "error", "next_at_ms"))
    text = f"attempt {number} {outcome}: {error if status is None else status} after {took_ms} ms"
    return text if next_at_ms is None else f"{text}, next in {(next_at_ms - event['at_ms']) / 1000:.1f} s"


def _fields(event: dict[str, Any]) -> str:
    return " ".join(f"{name}={_short(value)}" for name, value in event.items() if value != "")


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else orjson.dumps(value).decode()
    text = visible(text)
    return text if len(text) <= _VALUE_CHARS_MAX else text[:_VALUE_CHARS_MAX] + "…"
