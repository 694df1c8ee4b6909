"""`everput parked`: the deliveries of a listener that have no attempt left.

For: the command and its table. Not for: asking (cli/outstanding.py)."""

from __future__ import annotations

import asyncio

import click
import orjson
from rich.console import Console
from rich.table import Table

from cli import outstanding
from cli.api_options import api_options
from cli.publish import Publisher


@click.command("parked")
@click.argument("queue")
@click.argument("listener")
@api_options
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line, as the API shows it.")
def command(*, queue: str, listener: str, url: str, key: str, as_json: bool) -> None:
    """Show what is parked for LISTENER of QUEUE, each a name or an id. `everput redrive` has it tried again."""
    asyncio.run(
        _parked(Publisher(url, key, give_up_after_s=outstanding.GIVE_UP_AFTER_S), queue, listener, as_json=as_json)
    )


async def _parked(publisher: Publisher, queue: str, listener: str, *, as_json: bool) -> None:
    table = Table("message", "name", "put", "attempts", "last attempt", "status", "error")
    async with publisher:
        path = await outstanding.find_listener(publisher, queue, listener)
        async for one in outstanding.parked(publisher, path):
            if as_json:
                click.echo(orjson.dumps(one))
                continue
            message = one["message"]
            table.add_row(
                message["id"],
                message["name"],
                message["created_at"],
                str(one["attempts"]),
                one["last_attempt_at"],
                str(one["last_status"] or ""),
                one["last_error"] or "",
            )
    if table.row_count:
        Console().print(table)
    elif not as_json:
        click.echo("nothing is parked")
