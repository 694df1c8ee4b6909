"""`everput queues`: to list, see, make, rename and delete queues. Not for: asking and showing (api_commands.py)."""

from __future__ import annotations

import click

import everput
from cli.api_commands import asks, find_queue, show, show_all
from everput import Client


@click.group("queues")
def command() -> None:
    """List, see, make, rename and delete queues. QUEUE is a queue's name or id."""


@command.command("list")
@asks
def list_(client: Client, *, as_json: bool) -> None:
    """List the queues, oldest first."""
    found = (queue for page in client.pages(everput.list_queues()) for queue in page.queues)
    show_all(found, {"id": "id", "name": "name", "listeners": "listeners"}, as_json=as_json)


@command.command("get")
@click.argument("queue")
@asks
def get(client: Client, *, queue: str, as_json: bool) -> None:
    """Show a queue."""
    show(client.send(everput.get_queue(find_queue(client, queue))).queue, as_json=as_json)


@command.command("create")
@click.argument("name")
@asks
def create(client: Client, *, name: str, as_json: bool) -> None:
    """Make a queue."""
    show(client.send(everput.create_queue(name)).queue, as_json=as_json)


@command.command("rename")
@click.argument("queue")
@click.argument("name")
@asks
def rename(client: Client, *, queue: str, name: str, as_json: bool) -> None:
    """Give a queue another name."""
    show(client.send(everput.rename_queue(find_queue(client, queue), name)).queue, as_json=as_json)


@command.command("delete")
@click.argument("queue")
@click.confirmation_option(prompt="Its listeners end, and what is undelivered is cancelled. Delete it?")
@asks
def delete(client: Client, *, queue: str, as_json: bool) -> None:
    """Delete a queue; its listeners end, and what is undelivered is cancelled."""
    show(client.send(everput.delete_queue(find_queue(client, queue))).queue, as_json=as_json)
