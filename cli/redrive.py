"""`everput redrive`: parked and retrying deliveries are tried now.

For: the command. Not for: asking (cli/outstanding.py)."""

from __future__ import annotations

import asyncio

import click

from cli import outstanding
from cli.api_options import api_options
from cli.publish import Publisher


@click.command("redrive")
@click.argument("queue")
@click.argument("listener")
@click.argument("messages", metavar="[MESSAGE]...", nargs=-1)
@api_options
def command(*, queue: str, listener: str, messages: tuple[str, ...], url: str, key: str) -> None:
    """Have the deliveries of LISTENER of QUEUE (names or ids) that are parked or retry later tried now.

    MESSAGE is a message's id; without one it is all of them. Those that were parked have all their attempts again.
    """
    publisher = Publisher(url, key, give_up_after_s=outstanding.GIVE_UP_AFTER_S)
    click.echo(f"{asyncio.run(_redrive(publisher, queue, listener, messages)):,} redriven")


async def _redrive(publisher: Publisher, queue: str, listener: str, messages: tuple[str, ...]) -> int:
    async with publisher:
        return await outstanding.redrive(
            publisher, await outstanding.find_listener(publisher, queue, listener), messages
        )
