"""`everput parked`: the deliveries of a listener that have no attempt left. Not for: asking (api_commands.py)."""

from __future__ import annotations

import click
from rich import box
from rich.table import Table

import everput
from cli.api_commands import asks, find_listener, show_all
from cli.printing import stdout
from everput import Client


@click.command("parked")
@click.argument("queue")
@click.argument("listener")
@asks
def command(client: Client, *, queue: str, listener: str, as_json: bool) -> None:
    """Show what is parked for LISTENER of QUEUE, each a name or an id. `everput redrive` has it tried again."""
    request = everput.list_deliveries(*find_listener(client, queue, listener), state="parked")
    rows = (row for page in client.pages(request) for row in page.deliveries)
    if as_json:
        show_all(rows, {}, as_json=True)
        return
    table = Table(box=box.SIMPLE)
    for heading in ("message", "name", "put", "attempts", "last attempt", "status", "error"):
        table.add_column(heading, no_wrap=heading == "message", overflow="fold")  # an id is there to be copied
    for row in rows:
        message = row.message
        status = "" if row.last_status is None else str(row.last_status)
        cells = (message.created_at, str(row.attempts), row.last_attempt_at, status, row.last_error)
        table.add_row(message.id, message.name, *cells)
    stdout().print(table if table.row_count else "nothing is parked")
