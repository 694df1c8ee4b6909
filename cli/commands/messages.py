"""`everput messages`: put, list, show, change and delete messages. Not for: files (put.py), requests (everput/)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Final

import click
from msgspec import UNSET

import everput
from cli.api_commands import asks, find_listener, find_queue, show, show_all, show_deleted
from cli.arguments import queue_argument
from cli.event_lines import fitted
from cli.groups import Group, examples
from cli.printing import say, terminal_width
from cli.short_ids import Id, short_id
from cli.steps import result, steps, took
from cli.times import Time
from cli.visible import visible
from everput import Client
from everput.answers import ListedDelivery, ListedMessage

_NAME_WIDTH: Final = len("ordering key")
_STATES: Final = ("pending", "scheduled", "retrying", "parked", "delivered")
_COLORS: Final = {"delivered": "green", "parked": "red", "cancelled": "magenta"}


@click.group("messages", cls=Group)
def command() -> None:
    """Put, list, show, change and delete messages. QUEUE is a queue's name or ID."""


@command.command(
    "put",
    epilog=examples(
        """everput messages put orders '{"order": 7}'""",
        "everput messages put orders hello --ordering-key customer-12 --deliver-at 2026-12-31T12:00:00Z",
    ),
)
@queue_argument
@click.argument("data")
@click.option("--name", help="Name of the message. Default: a generated one.")
@click.option("--ordering-key", help="Messages with the same key are delivered one at a time, in order.")
@click.option("--deliver-at", help="Do not deliver before this time, such as 2026-01-31T12:00:00Z.")
@click.option("--idempotency-key", help="Store the message once, even if the command is repeated with the same key.")
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
    """Put one message. To put each line of a file, use `everput put`."""
    queue_id = find_queue(client, queue)
    request = everput.put_message(
        queue_id, data, name=name, key=ordering_key, deliver_at=deliver_at, idempotency_key=idempotency_key
    )
    show(client.send(request).message, as_json=as_json)


@command.command(
    "list",
    epilog=examples(
        "everput messages list orders --from 2h --limit 20",
        "everput messages list orders --state parked --listener billing",
        "everput messages list orders --search customer-12 --deliveries",
    ),
)
@queue_argument
@click.option(
    "--from", "begin", type=Time(), help="Start of the time range: 2026-01-31T12:00:00Z, 2026-01-31, or 15m (ago)."
)
@click.option("--to", "end", type=Time(), help="End of the time range.")
@click.option(
    "--limit", type=click.IntRange(min=1), default=100, show_default=True, help="Show at most this many messages."
)
@click.option("--state", type=click.Choice(_STATES), help="Show only messages with a delivery in this state.")
@click.option("--listener", help="Show only deliveries to this listener, and the messages that it gets.")
@click.option("--name", help="Show only messages with exactly this name.")
@click.option("--ordering-key", help="Show only messages with exactly this ordering key.")
@click.option(
    "--search", help="Show only messages with this text in their name or ordering key, or with an ID that begins so."
)
@click.option("--deliveries", is_flag=True, help="Show the states of the deliveries. Implied by --state, --listener.")
@asks
def list_(
    client: Client,
    *,
    queue: str,
    begin: str | None,
    end: str | None,
    limit: int,
    state: str | None,
    listener: str | None,
    name: str | None,
    ordering_key: str | None,
    search: str | None,
    deliveries: bool,
    as_json: bool,
) -> None:
    """List messages of a queue, newest first; at most 100 without --limit. With --state, list only messages that have a
    delivery in this state. With --listener, only deliveries to this listener count, and other messages are left out.
    """
    listener_id = None
    if listener is None:
        queue_id = find_queue(client, queue)
    else:
        queue_id, listener_id = find_listener(client, queue, listener)
    deliveries = deliveries or state is not None or listener is not None
    request = everput.list_messages(
        queue_id,
        begin=begin,
        end=end,
        state=state,
        listener_id=listener_id,
        name=name,
        key=ordering_key,
        text=search,
        deliveries=deliveries,
    )

    def found() -> Iterator[ListedMessage]:
        for page in client.pages(request):
            yield from page.messages

    columns = {"id": "id", "name": "name", "put": "created_at"}
    columns |= {"deliveries": "listeners"} if deliveries else {}
    width = terminal_width()
    if as_json or width is None:
        show_all(islice(found(), limit), {**columns, "data": "data"}, as_json=as_json)
        return
    for message in islice(found(), limit):
        put_at = message.created_at.replace("T", " ")[:19]
        counted = f"  {_counted(message.listeners or ())}" if deliveries else ""
        say(fitted(visible(f"{short_id(message.id)}  {put_at}{counted}  {message.name}  {message.data}"), width))


def _counted(deliveries: Sequence[ListedDelivery]) -> str:
    """Return how many deliveries are in each state as text, such as `2 delivered, 1 parked`. If there are no
    deliveries, return `no listeners`.
    """
    numbers = Counter(delivery.state for delivery in deliveries)
    return ", ".join(f"{number} {state}" for state, number in numbers.most_common()) or "no listeners"


@command.command("get", epilog=examples("everput messages get orders MESSAGE_ID"))
@queue_argument
@click.argument("message_id", type=Id())
@asks
def get(client: Client, *, queue: str, message_id: str, as_json: bool) -> None:
    """Show a message and its delivery to each listener. With --json, the listeners' answers have their headers, too."""
    message = client.send(everput.get_message(find_queue(client, queue), message_id)).message
    if as_json:
        show(message, as_json=True)
        return
    facts = {"id": message.id, "name": message.name, "put": message.created_at, "changed": message.updated_at}
    facts |= {"ordering key": message.key, "deliver at": message.deliver_at, "data": message.data}
    for name, value in facts.items():
        if value is not None:
            say(_fitting(f"{name:{_NAME_WIDTH}}  {value}"))
    for delivery in message.listeners or ():
        say((f"{delivery.state:{_NAME_WIDTH}}", _COLORS.get(delivery.state, "yellow")), f"  {delivery.name}")
        for attempt in delivery.attempts:
            found = result(attempt.status, attempt.error)
            said = f"attempt {attempt.number}: {found}, {took(attempt.took_ms)}{steps(attempt)}"
            say(_fitting(f"{'':{_NAME_WIDTH}}  {attempt.at}  {said}"))
            if attempt.answer is not UNSET and attempt.answer.body:
                say(_fitting(f"{'':{_NAME_WIDTH}}  {'':{len(attempt.at)}}  {' '.join(attempt.answer.body.split())}"))
        if delivery.next_attempt_at is not None:
            say(_fitting(f"{'':{_NAME_WIDTH}}  {delivery.next_attempt_at}  next attempt"))


def _fitting(text: str) -> str:
    """Return the text as one line, with control characters escaped. On a terminal, cut the line to the terminal's
    width.
    """
    width = terminal_width()
    return visible(text) if width is None else fitted(visible(text), width)


@command.command("update", epilog=examples("""everput messages update orders MESSAGE_ID '{"order": 8}'"""))
@queue_argument
@click.argument("message_id", type=Id())
@click.argument("data")
@asks
def update(client: Client, *, queue: str, message_id: str, data: str, as_json: bool) -> None:
    """Change a message's data. Deliveries that are still to be made get the new data."""
    show(client.send(everput.update_message(find_queue(client, queue), message_id, data)).message, as_json=as_json)


@command.command("delete", epilog=examples("everput messages delete orders MESSAGE_ID"))
@queue_argument
@click.argument("message_id", type=Id())
@click.confirmation_option(prompt="This cancels the deliveries that are not made yet. Delete the message?")
@asks
def delete(client: Client, *, queue: str, message_id: str, as_json: bool) -> None:
    """Delete a message. Its deliveries that are still to be made are cancelled."""
    deleted = client.send(everput.delete_message(find_queue(client, queue), message_id)).message
    show_deleted("message", deleted, as_json=as_json)
