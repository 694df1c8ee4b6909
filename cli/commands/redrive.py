"""`everput redrive`: parked and retrying deliveries are tried now. Not for: asking (api_commands.py, everput/)."""

from __future__ import annotations

from typing import Final

import click
import orjson

import everput
from cli.api_commands import asks, find_listener
from cli.printing import say, say_json
from everput import Client

_MESSAGES_MAX: Final = 1_000  # in one request


@click.command("redrive")
@click.argument("queue")
@click.argument("listener")
@click.argument("messages", metavar="[MESSAGE]...", nargs=-1)
@asks
def command(client: Client, *, queue: str, listener: str, messages: tuple[str, ...], as_json: bool) -> None:
    """Have the deliveries of LISTENER of QUEUE (names or ids) that are parked or retry later tried now.

    MESSAGE is a message's id; without one it is all of them. They have all their attempts and all their time again.
    """
    ids = find_listener(client, queue, listener)
    parts = [messages[at : at + _MESSAGES_MAX] for at in range(0, len(messages), _MESSAGES_MAX)] or [()]
    count = sum([client.send(everput.redrive_listener(*ids, part)).count for part in parts])
    if as_json:
        say_json(orjson.dumps({"count": count}))
    else:
        say(f"{count:,} redriven")
