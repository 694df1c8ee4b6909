"""`everput replay`: deliver the messages of a time range to a listener again.

For: the command and its progress bar. Not for: running and ended replays (cli/commands/replays.py).
"""

from __future__ import annotations

import sys
import time
from typing import Any, Final

import click
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

import everput
from broker.commands.replays import ONLY
from cli.api_commands import asks, find_listener, show
from cli.arguments import listener_arguments
from cli.groups import examples
from cli.printing import say, stderr
from cli.times import Time
from cli.visible import visible
from everput import Client

_LOOK_S: Final = 0.5


class _Beginning(Time):
    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return "beginning" if value == "beginning" else super().convert(value, param, ctx)


@click.command(
    "replay",
    epilog=examples(
        "everput replay orders billing --from 2h --dry-run",
        "everput replay orders billing --from 2026-01-31 --to 2026-02-01 --only failed --rate 50",
    ),
)
@listener_arguments
@click.option(
    "--from",
    "begin",
    type=_Beginning(),
    required=True,
    help="Start of the time range: 2026-01-31, 2h (ago), or beginning.",
)
@click.option("--to", "end", type=Time(), help="End of the time range.  [default: now]")
@click.option(
    "--only",
    type=click.Choice(ONLY),
    default="all",
    show_default=True,
    help="Messages to deliver: all, those that failed, or those undelivered.",
)
@click.option(
    "--rate",
    type=click.FloatRange(0.001, 1_000_000),
    help="Most deliveries per second. Default: the listener's own limit.",
)
@click.option("--notify-url", help="URL to deliver to. Default: the listener's notify_url.")
@click.option("--liveness-url", help="URL to check while --notify-url is down. Default: --notify-url.")
@click.option(
    "--send-headers",
    is_flag=True,
    help="Send the listener's headers even to a --notify-url with another scheme, host or port.",
)
@click.option("--dry-run", is_flag=True, help="Count the messages and estimate the duration; deliver nothing.")
@click.option("--detach", is_flag=True, help="Print the replay's ID and return at once.")
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
    """Deliver the messages of a time range again to LISTENER of QUEUE (names or IDs), and show the progress. With
    --notify-url, deliver them to this URL instead.

    Ctrl-C ends only the progress bar, not the replay. `everput replays` shows, pauses, resumes and cancels replays.
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
        say(f"{number}, {max(1.0, begun.estimated_s or 1.0):,.0f} s if the listener keeps up")
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
        sys.exit(1)
