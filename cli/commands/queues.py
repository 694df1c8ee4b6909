"""`everput queues`: list, show, create, change and delete queues. Not for: requests and output (api_commands.py)."""

from __future__ import annotations

import click

import everput
from cli.api_commands import asks, find_queue, show, show_all, show_deleted
from cli.arguments import alert_option, queue_argument
from cli.groups import Group, examples
from everput import Client


@click.group("queues", cls=Group)
def command() -> None:
    """List, show, create, change and delete queues. QUEUE is a queue's name or ID."""


@command.command("list", epilog=examples("everput queues list"))
@asks
def list_(client: Client, *, as_json: bool) -> None:
    """List queues, oldest first, with the states of their listeners, and the numbers of waiting messages, retrying
    deliveries and parked deliveries.
    """
    pages = client.pages(everput.list_queues(health=True, backlog=True))
    found = (queue for page in pages for queue in page.queues)
    columns = {"id": "id", "name": "name", "listeners": "listeners", "states": "health"}
    show_all(found, columns | {"waiting": "lag", "retrying": "retrying", "parked": "parked"}, as_json=as_json)


@command.command("get", epilog=examples("everput queues get orders"))
@queue_argument
@asks
def get(client: Client, *, queue: str, as_json: bool) -> None:
    """Show a queue and its listeners."""
    show(client.send(everput.get_queue(find_queue(client, queue))).queue, as_json=as_json)


@command.command("create", epilog=examples("everput queues create orders"))
@click.argument("name")
@asks
def create(client: Client, *, name: str, as_json: bool) -> None:
    """Create a queue."""
    show(client.send(everput.create_queue(name)).queue, as_json=as_json)


@command.command("rename", epilog=examples("everput queues rename orders shop.example/orders"))
@queue_argument
@click.argument("name")
@asks
def rename(client: Client, *, queue: str, name: str, as_json: bool) -> None:
    """Rename a queue. Its ID, messages and listeners stay."""
    show(client.send(everput.rename_queue(find_queue(client, queue), name)).queue, as_json=as_json)


@command.command("alerts", epilog=examples("everput queues alerts orders --alert parked=10 --alert lag_s=300"))
@queue_argument
@alert_option
@asks
def alerts(client: Client, *, queue: str, alerts: dict[str, int] | None, as_json: bool) -> None:
    """Change the thresholds of alerts about a queue's listeners. A threshold without an --alert option is set to its
    default. If a listener has a threshold of its own, this threshold applies to the listener, not the queue's.
    """
    request = everput.set_queue_alerts(find_queue(client, queue), alerts)
    show(client.send(request).queue, as_json=as_json)


@command.command("delete", epilog=examples("everput queues delete orders", "everput queues delete orders --yes"))
@queue_argument
@click.confirmation_option(prompt="This deletes its listeners and cancels all undelivered messages. Delete the queue?")
@asks
def delete(client: Client, *, queue: str, as_json: bool) -> None:
    """Delete a queue and its listeners. Deliveries that are still to be made are cancelled."""
    show_deleted("queue", client.send(everput.delete_queue(find_queue(client, queue))).queue, as_json=as_json)
