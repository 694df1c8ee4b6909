"""`everput replays`: show, pause, resume and cancel the replays of a listener.

For: the command and its table. Not for: starting a replay (cli/commands/replay.py).
"""

from __future__ import annotations

import click
from rich import box
from rich.table import Table

import everput
from cli.api_commands import asks, find_listener, show_all
from cli.arguments import listener_arguments
from cli.groups import examples
from cli.printing import stdout
from cli.short_ids import Id, shown_id
from everput import Client


@click.command(
    "replays", epilog=examples("everput replays orders billing", "everput replays orders billing --cancel REPLAY_ID")
)
@listener_arguments
@click.option("--pause", metavar="ID", type=Id(), help="Pause this replay.")
@click.option("--resume", metavar="ID", type=Id(), help="Resume this replay where it was paused.")
@click.option("--cancel", metavar="ID", type=Id(), help="Cancel this replay. Its remaining messages are not delivered.")
@asks
def command(
    client: Client,
    *,
    queue: str,
    listener: str,
    pause: str | None,
    resume: str | None,
    cancel: str | None,
    as_json: bool,
) -> None:
    """Show the replays of LISTENER of QUEUE (names or IDs), oldest first. With --pause, --resume or --cancel, the
    command first changes one of the replays.
    """
    place = find_listener(client, queue, listener)
    changes = (everput.pause_replay, pause), (everput.resume_replay, resume), (everput.cancel_replay, cancel)
    for change, replay_id in changes:
        if replay_id is not None:
            client.send(change(*place, replay_id))
    ids = [row.id for page in client.pages(everput.list_replays(*place)) for row in page.replays]
    found = (client.send(everput.get_replay(*place, replay_id)).replay for replay_id in ids)
    if as_json:
        show_all(found, {}, as_json=True)
        return
    table = Table("replay", "state", "from", "to", "only", "messages", "progress", box=box.SIMPLE)
    table.columns[0].no_wrap = True  # The table does not cut ids, so that users can copy them.
    for one in found:
        count = f"{'' if one.count_is_exact else '~'}{one.count:,}"
        table.add_row(shown_id(one.id), one.state, one.from_, one.to, one.only, count, f"{one.progress:.0%}")
    stdout().print(table if table.row_count else "no replays yet")
