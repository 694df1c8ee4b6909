"""`everput replay`: a stretch of a queue's messages is delivered to a listener once more.

For: the command and its progress bar. Not for: those under way and ended (cli/replays.py)."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Any, Final

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from broker.errors import ConfigurationError
from broker.replays import ONLY
from cli.api_options import api_options
from cli.asking import GIVE_UP_AFTER_S
from cli.moments import Moment
from cli.publish import Publisher, ask, find_listener

_LOOK_S: Final = 0.5


class _Beginning(Moment):
    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return "beginning" if value == "beginning" else super().convert(value, param, ctx)


@click.command("replay")
@click.argument("queue")
@click.argument("listener")
@api_options
@click.option("--from", "begin", type=_Beginning(), required=True, help="2026-01-31, 2h (ago), or beginning.")
@click.option("--to", "end", type=Moment(), help="Before this time; now, if it is not said.")
@click.option("--only", type=click.Choice(ONLY), default="all", show_default=True, help="Which of the messages.")
@click.option("--rate", type=click.FloatRange(0.001, 1_000_000), help="Deliveries a second at most.")
@click.option("--notify-url", help="Where to deliver them, in place of the listener's notify_url.")
@click.option("--dry-run", is_flag=True, help="Count only.")
@click.option("--detach", is_flag=True, help="Print its id and go.")
def command(
    *,
    queue: str,
    listener: str,
    url: str,
    key: str,
    begin: str,
    end: str | None,
    only: str,
    rate: float | None,
    notify_url: str | None,
    dry_run: bool,
    detach: bool,
) -> None:
    """Deliver what was put on QUEUE in a time to LISTENER (names or ids) once more, and watch it.

    It goes on without being watched: Ctrl-C only ends the watching, `everput replays` shows, pauses and cancels it.
    """
    body = {"from": begin, "to": end, "only": only, "rate_per_s": rate, "notify_url": notify_url, "dry_run": dry_run}
    publisher = Publisher(url, key, give_up_after_s=GIVE_UP_AFTER_S)
    asyncio.run(_replay(publisher, queue, listener, body, detach=detach))


async def _replay(publisher: Publisher, queue: str, listener: str, body: dict[str, Any], *, detach: bool) -> None:
    async with publisher:
        path = await find_listener(publisher, queue, listener)
        status, answer = await ask(publisher, "POST", f"{path}/replay", body)
        if status != HTTPStatus.OK:
            raise ConfigurationError(f"the replay was refused: {answer.get('errors') or answer.get('detail')}")
        replay = answer["replay"]
        number = f"{'' if replay['count_is_exact'] else 'about '}{replay['count']:,} messages"
        if body["dry_run"]:
            took = replay["estimated_s"]
            click.echo(f"{number}, " + (f"{took:,.0f} s" if took is not None else "as fast as the listener takes them"))
        elif detach:
            click.echo(replay["id"])
        else:
            await _watch(publisher, f"{path}/replays/{replay['id']}", f"{number} to {listener}")


async def _watch(publisher: Publisher, path: str, words: str) -> None:
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:.0f} %"))
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console) as bar:
        task = bar.add_task(words, total=1.0)
        while True:
            status, answer = await ask(publisher, "GET", path)
            if status != HTTPStatus.OK:
                raise ConfigurationError("the replay is gone, and its listener with it")
            replay = answer["replay"]
            bar.update(task, completed=replay["progress"])
            if replay["state"] not in ("running", "paused"):
                break
            await asyncio.sleep(_LOOK_S)
    click.echo(f"{replay['state']}: {words}")
    if replay["state"] != "finished":
        raise SystemExit(1)
