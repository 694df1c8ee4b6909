"""`everput replays`: a listener's replays, those that have ended too; to pause, resume and cancel one.

For: the command and its table. Not for: beginning one (cli/replay.py)."""

from __future__ import annotations

import asyncio
from http import HTTPStatus

import click
import orjson
from rich.console import Console
from rich.table import Table

from broker.errors import ConfigurationError
from cli.api_options import api_options
from cli.asking import GIVE_UP_AFTER_S
from cli.publish import Publisher, ask, find_listener, pages


@click.command("replays")
@click.argument("queue")
@click.argument("listener")
@api_options
@click.option("--pause", metavar="ID", help="It delivers nothing until it is resumed.")
@click.option("--resume", metavar="ID", help="It goes on where it was.")
@click.option("--cancel", metavar="ID", help="It delivers no more.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line, as the API shows it.")
def command(
    *,
    queue: str,
    listener: str,
    url: str,
    key: str,
    pause: str | None,
    resume: str | None,
    cancel: str | None,
    as_json: bool,
) -> None:
    """Show the replays of LISTENER of QUEUE (names or ids), oldest first; or change one."""
    changes = [
        *([] if pause is None else [("POST", f"{pause}/pause")]),
        *([] if resume is None else [("POST", f"{resume}/resume")]),
        *([] if cancel is None else [("DELETE", cancel)]),
    ]
    publisher = Publisher(url, key, give_up_after_s=GIVE_UP_AFTER_S)
    asyncio.run(_replays(publisher, queue, listener, changes, as_json=as_json))


async def _replays(
    publisher: Publisher, queue: str, listener: str, changes: list[tuple[str, str]], *, as_json: bool
) -> None:
    table = Table("replay", "state", "from", "to", "only", "messages", "progress")
    async with publisher:
        path = await find_listener(publisher, queue, listener)
        for method, place in changes:
            status, answer = await ask(publisher, method, f"{path}/replays/{place}")
            if status != HTTPStatus.OK:
                raise ConfigurationError(f"that was refused: {status} {answer.get('detail')}")
        async for one in pages(publisher, f"{path}/replays", "replays"):
            _, answer = await ask(publisher, "GET", f"{path}/replays/{one['id']}")
            replay = answer["replay"]
            if as_json:
                click.echo(orjson.dumps(replay))
                continue
            count = f"{'' if replay['count_is_exact'] else '~'}{replay['count']:,}"
            progress = f"{replay['progress']:.0%}"
            table.add_row(*(replay[name] for name in ("id", "state", "from", "to", "only")), count, progress)
    if table.row_count:
        Console().print(table)
    elif not as_json:
        click.echo("there are no replays")
