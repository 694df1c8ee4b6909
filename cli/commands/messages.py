"""`everput messages`: to put, list, see, change and delete them. Not for: files (put.py), asking (api_commands.py)."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import click

import everput
from cli.api_commands import asks, find_queue, show, show_all
from cli.times import Time
from everput import Client
from everput.answers import MessageFields


@click.group("messages")
def command() -> None:
    """Put, list, see, change and delete messages. QUEUE is a queue's name or id."""


@command.command("put")
@click.argument("queue")
@click.argument("data")
@click.option("--name", help="Its name, otherwise made.")
@click.option("--ordering-key", help="Messages of one key are delivered in order.")
@click.option("--deliver-at", help="Not before this time: 2026-01-31T12:00:00Z.")
@click.option("--idempotency-key", help="Repeated with the same one, it is stored once.")
@asks
def put(
    client: Client,
    *,
    queue: str,
    data: str,
    name: str | None,
    ordering_key: str | None,
    deliver_at: str | None,
    idempotency_key: str | None,
    as_json: bool,
) -> None:
    """Put one message; `everput put` puts the lines of a file."""
    queue_id = find_queue(client, queue)
    request = everput.put_message(
        queue_id, data, name=name, key=ordering_key, deliver_at=deliver_at, idempotency_key=idempotency_key
    )
    show(client.send(request).message, as_json=as_json)


@command.command("list")
@click.argument("queue")
@click.option("--from", "begin", type=Time(), help="Not before: 2026-01-31T12:00:00Z, 2026-01-31, or 15m (ago).")
@click.option("--to", "end", type=Time(), help="Before this time.")
@click.option("--limit", type=click.IntRange(min=1), default=100, show_default=True, help="At most so many.")
@asks
def list_(client: Client, *, queue: str, begin: str | None, end: str | None, limit: int, as_json: bool) -> None:
    """List a queue's messages, newest first."""
    request = everput.list_messages(find_queue(client, queue), begin=begin, end=end)

    def found() -> Iterator[MessageFields]:
        for page in client.pages(request):
            yield from page.messages

    columns = {"id": "id", "name": "name", "put": "created_at", "data": "data"}
    show_all(islice(found(), limit), columns, as_json=as_json)


@command.command("get")
@click.argument("queue")
@click.argument("message_id")
@asks
def get(client: Client, *, queue: str, message_id: str, as_json: bool) -> None:
    """Show a message, and where it is with each listener."""
    show(client.send(everput.get_message(find_queue(client, queue), message_id)).message, as_json=as_json)


@command.command("update")
@click.argument("queue")
@click.argument("message_id")
@click.argument("data")
@asks
def update(client: Client, *, queue: str, message_id: str, data: str, as_json: bool) -> None:
    """Change a message: who has not had it yet gets the new data."""
    show(client.send(everput.update_message(find_queue(client, queue), message_id, data)).message, as_json=as_json)


@command.command("delete")
@click.argument("queue")
@click.argument("message_id")
@click.confirmation_option(prompt="Who has not had it yet will not get it. Delete it?")
@asks
def delete(client: Client, *, queue: str, message_id: str, as_json: bool) -> None:
    """Delete a message: who has not had it yet will not get it."""
    show(client.send(everput.delete_message(find_queue(client, queue), message_id)).message, as_json=as_json)
