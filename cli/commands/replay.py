"""`everput replay`: a stretch of a queue's messages is delivered to a listener once more.

For: the command and its progress bar. Not for: those under way and ended (cli/commands/replays.py)."""

from __future__ import annotations

import time
from typing import Any, Final

import click
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

import everput
from broker.commands.replays import ONLY
from cli.api_commands import asks, find_listener, show
from cli.printing import say, stderr
from cli.times import Time
from cli.visible import visible
from everput import Client

_LOOK_S: Final = 0.5


class _Beginning(Time):
    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return "beginning" if value == "beginning" else super().convert(value, param, ctx)


@click.command("replay")
@click.argument("queue")
@click.argument("listener")
@click.option("--from", "begin", type=_Beginning(), required=True, help="2026-01-31, 2h (ago), or beginning.")
@click.option("--to", "end", type=Time(), help="Before this time; now, if it is not said.")
@click.option(
    "--only", type=click.Choice(ONLY), default="all", show_default=True, help="What failed, or is not got yet."
)
@click.option("--rate", type=click.FloatRange(0.001, 1_000_000), help="Deliveries a second at most.")
@click.option("--notify-url", help="Where to deliver them, in place of the listener's notify_url.")
@click.option("--liveness-url", help="What is asked while that notify_url is down; itself, if it is not said.")
@click.option("--send-headers", is_flag=True, help="Send the listener's headers to a --notify-url of another origin.")
@click.option("--dry-run", is_flag=True, help="Count and estimate only.")
@click.option("--detach", is_flag=True, help="Print its id and go.")
@asks
def command(
    client: Client,
    *,
    queue: str,
    listener: str,
    begin: str,
    end: str | None,
    only: str,
    rate: float | None,
    notify_url: str | None,
    liveness_url: str | None,
    send_headers: bool,
    dry_run: bool,
    detach: bool,
    as_json: bool,
) -> None:
    """Deliver what was put on QUEUE in a time to LISTENER (names or ids) once more, and watch it.

    It goes on without being watched: Ctrl-C only ends the watching, `everput replays` shows, pauses and cancels it.
    """
    place = find_listener(client, queue, listener)
    settings: dict[str, Any] = {"only": only, "rate_per_s": rate, "dry_run": dry_run}
    settings |= {"notify_url": notify_url, "liveness_url": liveness_url, "send_headers": send_headers}
    begun = client.send(everput.start_replay(*place, begin=begin, end=end, **settings)).replay
    if as_json:
        show(begun, as_json=True)
        return
    number = f"{'' if begun.count_is_exact else 'about '}{begun.count:,} messages"
    if dry_run:
        say(f"{number}, {max(1.0, begun.estimated_s or 1.0):,.0f} s if the listener is quick enough")
    elif detach:
        say(str(begun.id))
    else:
        _watch(client, (*place, str(begun.id)), f"{number} to {listener}")


def _watch(client: Client, place: tuple[str, str, str], words: str) -> None:
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TextColumn("{task.percentage:.0f} %"))
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=stderr()) as bar:
        task = bar.add_task(visible(words), total=1.0)
        while True:
            replay = client.send(everput.get_replay(*place)).replay
            bar.update(task, completed=replay.progress)
            if replay.state not in ("running", "paused"):
                break
            time.sleep(_LOOK_S)
    say(f"{replay.state}: {words}")
    if replay.state != "finished":
        raise SystemExit(1)
