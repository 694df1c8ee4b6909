"""`everput listen`: an address on this machine is a listener, however far away the API is.

For: the command, and what it shows. Not for: the socket and the local address (cli/tunnel_client.py)."""

from __future__ import annotations

import asyncio
import contextlib
import platform
import sys
import time
from collections.abc import Sequence
from typing import Any

import click
import orjson

from broker.core.names import NAME_CHARS_MAX
from broker.errors import ConfigurationError
from cli.api_options import api_options
from cli.publish import Publisher, find_queue
from cli.tunnel_client import Lost, TunnelClient

GIVE_UP_AFTER_S = 10.0


@click.command("listen")
@click.argument("queue")
@click.option("--to", "to", multiple=True, required=True, metavar="URL", help="Where the POSTs go. May be repeated.")
@click.option("--name", multiple=True, metavar="NAME", help="The listener's, one for each --to; else made of it.")
@api_options
@click.option("--once", is_flag=True, help="End when one message was taken.")
@click.option("--body", is_flag=True, help="Show the bodies, too.")
@click.option("--json", "as_json", is_flag=True, help="A JSON object a line.")
def command(
    *, queue: str, to: Sequence[str], name: Sequence[str], url: str, key: str, once: bool, body: bool, as_json: bool
) -> None:
    """Have the messages of QUEUE, which is a name or an id, POSTed to addresses on this machine.

    Each --to is a listener of its own, which stays when this command ends: its messages wait, and come when it is
    started again with the same name. Whoever may put on QUEUE reaches these addresses: end it when you are done.
    """
    if name and len(name) != len(to):
        raise ConfigurationError("give as many --name as --to, or none")
    names = name or [f"{one} on {platform.node()}"[:NAME_CHARS_MAX] for one in to]
    show = _Show(body=body, as_json=as_json)
    if not as_json:
        targets = ", ".join(to)
        click.echo(
            f"Whoever may put on {queue} at {url} now reaches {targets} on this machine. Ctrl-C ends it.", err=True
        )
    with contextlib.suppress(KeyboardInterrupt):
        try:
            asyncio.run(_listen(url, key, queue, dict(zip(names, to, strict=True)), show, once=once))
        except* Lost as group:
            click.echo(f"everput: {group.exceptions[0]}", err=True)
            sys.exit(1)
        except* ConfigurationError as group:
            raise group.exceptions[0] from None


async def _listen(url: str, key: str, queue: str, targets: dict[str, str], show: _Show, *, once: bool) -> None:
    async with Publisher(url, key, give_up_after_s=GIVE_UP_AFTER_S) as publisher:
        queue_id = await find_queue(publisher, queue, create=False)
    taken = asyncio.Event()

    def told(event: str, **fields: Any) -> None:
        show(event, **fields)
        if event == "answered" and 200 <= fields["status"] < 300:
            taken.set()

    async with asyncio.TaskGroup() as group:
        clients = [
            group.create_task(TunnelClient(url, key, queue_id, name, target, told).run())
            for name, target in targets.items()
        ]
        if once:
            await taken.wait()
            for client in clients:
                client.cancel()


class _Show:
    """A line for each thing that happens."""

    def __init__(self, *, body: bool, as_json: bool) -> None:
        self._body = body
        self._as_json = as_json

    def __call__(self, event: str, **fields: Any) -> None:
        """event: listening, disconnected, answered."""
        if self._as_json:
            shown = {name: value for name, value in fields.items() if name != "body" or self._body}
            click.echo(orjson.dumps({"event": event, "at": time.time(), **shown}).decode())
            return
        moment = time.strftime("%H:%M:%S")
        if event == "answered":
            color = "green" if 200 <= fields["status"] < 300 else "red"
            status = click.style(str(fields["status"]), fg=color)
            why = f"  {fields['error']}" if fields["error"] else ""
            line = f"{status}  {fields['took_ms']:5} ms  {fields['message_id']}  attempt {fields['attempt']}{why}"
            click.echo(f"{moment}  {line}  {fields['to']}")
            if self._body:
                click.echo(f"          {fields['body']}")
        elif event == "listening":
            click.echo(f"{moment}  connected: {fields['name']} gets what is put from now on, and what has waited")
        else:
            click.echo(f"{moment}  not connected: {fields['reason']}; messages wait")
