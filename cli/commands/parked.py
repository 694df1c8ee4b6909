"""`everput parked`: the deliveries of a listener that have no attempt left. Not for: requests (api_commands.py)."""

from __future__ import annotations

import click
from rich import box
from rich.table import Table

import everput
from cli.api_commands import asks, find_listener, show_all
from cli.arguments import listener_arguments
from cli.groups import examples
from cli.printing import stdout
from cli.short_ids import shown_id
from everput import Client


@click.command("parked", epilog=examples("everput parked orders billing"))
@listener_arguments
@asks
def command(client: Client, *, queue: str, listener: str, as_json: bool) -> None:
    """Show the parked deliveries of LISTENER of QUEUE (names or IDs). To retry parked deliveries, use `everput
    redrive`.
    """
    request = everput.list_deliveries(*find_listener(client, queue, listener), state="parked")
    rows = (row for page in client.pages(request) for row in page.deliveries)
    if as_json:
        show_all(rows, {}, as_json=True)
        return
    table = Table(box=box.SIMPLE)
    for heading in ("message", "name", "put", "attempts", "last attempt", "status", "error"):
        table.add_column(
            heading, no_wrap=heading == "message", overflow="fold"
        )  # ids are not cut, so that users can copy them
    for row in rows:
        message = row.message
        status = "" if row.last_status is None else str(row.last_status)
        cells = (message.created_at, str(row.attempts), row.last_attempt_at, status, row.last_error)
        table.add_row(shown_id(message.id), message.name, *cells)
    stdout().print(table if table.row_count else "no delivery is parked")
