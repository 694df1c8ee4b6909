"""`everput redrive`: retry parked and retrying deliveries now, or cancel that.

Not for: requests (api_commands.py, everput/).
"""

from __future__ import annotations

from typing import Final

import click
import orjson

import everput
from cli.api_commands import asks, find_listener
from cli.arguments import listener_arguments
from cli.groups import examples
from cli.printing import say, say_json
from cli.short_ids import Id
from everput import Client

_MESSAGES_MAX: Final = 1_000  # the most messages in one request


@click.command(
    "redrive",
    epilog=examples(
        "everput redrive orders billing",
        "everput redrive orders billing MESSAGE_ID",
        "everput redrive orders billing --cancel",
    ),
)
@listener_arguments
@click.argument("messages", metavar="[MESSAGE]...", nargs=-1, type=Id())
@click.option("--cancel", is_flag=True, help="Cancel the retries that were asked for and have not begun.")
@asks
def command(
    client: Client, *, queue: str, listener: str, messages: tuple[str, ...], cancel: bool, as_json: bool
) -> None:
    """Retry the parked and retrying deliveries of LISTENER of QUEUE (names or IDs) now: this is a redrive.

    MESSAGE is a message's ID. Without MESSAGE, all parked and retrying deliveries are retried. While the listener is
    down or paused, its deliveries wait.

    A redriven delivery gets all its attempts again. There is one exception: a retrying delivery that is still in a
    worker's memory, usually for about a minute after its first attempt. A redrive only makes its next attempt happen
    now. Without MESSAGE, the number that is shown leaves out such deliveries.

    --cancel cancels all redrives of the listener. If a delivery was not attempted since its redrive, it is then parked
    or retrying as before.
    """
    if cancel and messages:
        raise click.UsageError(
            "--cancel cancels all redrives of the listener, and can't be limited to some messages. Leave MESSAGE out."
        )
    ids = find_listener(client, queue, listener)
    if cancel:
        count = client.send(everput.cancel_redrives(*ids)).count
    else:
        parts: list[tuple[str, ...] | None] = [None]
        if messages:
            parts = [messages[at : at + _MESSAGES_MAX] for at in range(0, len(messages), _MESSAGES_MAX)]
        count = sum([client.send(everput.redrive_listener(*ids, part)).count for part in parts])
    if as_json:
        say_json(orjson.dumps({"count": count}))
    else:
        verb = "cancelled the retries of" if cancel else "retrying"
        say(f"{verb} {count:,} {'delivery' if count == 1 else 'deliveries'}")
