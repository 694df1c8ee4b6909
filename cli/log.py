"""`everput log`: what happened, for people and for scripts.

For: the command, and an event as a line that people can read. Not for: reading (cli/eventlog.py)."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Final

import click
import httpx
import orjson

from broker.core.events import CLASSES
from broker.errors import ConfigurationError
from cli import eventlog
from cli.api_options import api_options
from cli.moments import Moment

_COMMON: Final = ("type", "v", "at_ms", "organization_id", "actor", "request_id")
_VALUE_CHARS_MAX: Final = 60
_TYPE_CHARS: Final = max(map(len, CLASSES))


@click.command("log")
@api_options
@click.option("--from", "begin", type=Moment(), help="Not before: 2026-01-31T12:00:00Z, 2026-01-31, or 15m (ago).")
@click.option("--to", "end", type=Moment(), help="Before this time.")
@click.option("--type", "kind", metavar="TYPE,…", help="Such as queue.created, or all of a noun: queue.")
@click.option("--queue", metavar="ID|NAME", help="Of this queue and its listeners.")
@click.option("--listener", metavar="ID", help="Of this listener.")
@click.option("--message", metavar="ID", help="The story of this message.")
@click.option("--actor", metavar="WHO", help="What key:ID, account:ID, worker or shell did.")
@click.option("--limit", type=click.IntRange(1, 1_000_000), help="At most so many events.")
@click.option("--follow", is_flag=True, help="Go on with what happens from now on, until Ctrl-C.")
@click.option("--json", "as_json", is_flag=True, help="Lines of JSON, as the API sends them.")
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

    The end is two seconds late, but for a message's story: until then an event of another process may still come in
    between.
    """
    if follow and end is not None:
        raise ConfigurationError("--follow has no end: leave --to out")
    with eventlog.client(url, key) as asking:
        given = {
            "from": begin,
            "to": end,
            "type": kind,
            "queue": None if queue is None else _queue_id(asking, queue),
            "listener": listener,
            "message": message,
            "actor": actor,
            "limit": None if limit is None else str(limit),
        }
        query = {name: value for name, value in given.items() if value is not None}
        try:
            for part in eventlog.read(asking, query, follow=follow):
                for line in part.lines:
                    if as_json:
                        click.echo(line)
                    else:
                        for text in told(orjson.loads(line)["event"]):
                            click.echo(text)
                sys.stdout.flush()
        except KeyboardInterrupt:
            if not follow:
                raise


def _queue_id(asking: httpx.Client, queue: str) -> str:
    """The id of the queue of this name, else what was given: it may be the id of one that is gone."""
    found = eventlog.ask(asking, "/v1/queues", name=queue)
    return str(found["queues"][0]["id"]) if found is not None and found["queues"] else queue


def told(event: dict[str, Any]) -> Iterator[str]:
    """Lines for people: when, what, who, and the rest. Of deliveries that were gathered one line each."""
    if event["type"] != "deliveries.settled":
        what = _attempt(event) if event["type"] == "delivery.attempted" else _fields(event)
        yield _line(event["at_ms"], event, what)
        return
    for offset, at_ms, status, took_ms in event["rows"]:
        place = f"listener_id={event['listener_id']} partition={event['partition']} offset={offset}"
        yield _line(at_ms, event, f"attempt 1 delivered: {status} after {took_ms} ms {place}")


def _line(at_ms: int, event: dict[str, Any], what: str) -> str:
    at = datetime.fromtimestamp(at_ms // 1000, UTC)
    request = f" request={event['request_id']}" if event["request_id"] else ""
    return (
        f"{at:%Y-%m-%d %H:%M:%S}.{at_ms % 1000:03d}Z  {event['type']:{_TYPE_CHARS}}  {event['actor']}  {what}{request}"
    )


def _attempt(event: dict[str, Any]) -> str:
    answer = event["error"] if event["status"] is None else event["status"]
    text = f"attempt {event['number']} {event['outcome']}: {answer} after {event['took_ms']} ms"
    if event["next_at_ms"] is not None:
        text += f", next in {(event['next_at_ms'] - event['at_ms']) / 1000:.1f} s"
    return f"{text} listener_id={event['listener_id']} message_id={event['message_id']}"


def _fields(event: dict[str, Any]) -> str:
    return " ".join(f"{name}={_short(value)}" for name, value in event.items() if name not in _COMMON and value != "")


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else orjson.dumps(value).decode()
    text = text if text.isprintable() else ascii(text)[1:-1]
    return text if len(text) <= _VALUE_CHARS_MAX else text[:_VALUE_CHARS_MAX] + "…"
