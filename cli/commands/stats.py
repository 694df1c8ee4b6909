"""`everput stats`: a queue's or a listener's counts over time, as a table with a sparkline for each column.

For: the command and its table. Not for: what is counted (broker/core/statistics.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import click
from rich import box
from rich.table import Table

import everput
from cli.api_commands import asks, find_listener, find_queue, show
from cli.arguments import ListenerName, queue_argument
from cli.groups import examples
from cli.printing import say, stdout
from cli.times import Time
from everput import Client
from everput.answers import PointFields

_BARS: Final = "▁▂▃▄▅▆▇█"
_SPARK_MAX: Final = 60  # the characters of a sparkline
_ROWS_MAX: Final = 30

Column = Callable[[PointFields], int]
_COUNTS: Final[dict[str, Column]] = {
    "put": lambda point: point.put,
    "delivered": lambda point: point.delivered,
    "failed": lambda point: point.failed,
    "parked": lambda point: point.parked,
}


@click.command("stats", epilog=examples("everput stats orders", "everput stats orders billing --from 24h --step 1h"))
@queue_argument
@click.argument("listener", type=ListenerName(), required=False)
@click.option("--from", "begin", type=Time(), help="The start of the time range; default: an hour before its end.")
@click.option("--to", "end", type=Time(), help="The end of the time range; default: now.")
@click.option("--step", help="The length of a step, such as 1m, 6h or 1d; default: by the time range.")
@asks
def command(
    client: Client,
    *,
    queue: str,
    listener: str | None,
    begin: str | None,
    end: str | None,
    step: str | None,
    as_json: bool,
) -> None:
    """Show the counts of QUEUE, or of its LISTENER (names or IDs), over time: messages put, deliveries made, failed
    attempts and parked deliveries.
    """
    if listener is None:
        request = everput.get_queue_statistics(find_queue(client, queue), begin=begin, end=end, step=step)
    else:
        ids = find_listener(client, queue, listener)
        request = everput.get_listener_statistics(*ids, begin=begin, end=end, step=step)
    found = client.send(request).statistics
    if as_json:
        show(found, as_json=True)
        return
    sums = Table("", "total", f"each {_step(found.step_s)}, {found.from_} to {found.to}", box=box.SIMPLE)
    for name, count in _COUNTS.items():
        counts = [count(point) for point in found.points]
        sums.add_row(name, f"{sum(counts):,}", sparkline(counts))
    if listener is not None:
        waiting = [point.backlog or 0 for point in found.points]
        sums.add_row("backlog", f"{waiting[-1]:,}", sparkline(waiting, together=max))
    stdout().print(sums)
    steps = Table("at", *_COUNTS, "failed by", "p50 ms", "p99 ms", box=box.SIMPLE)
    shown = [point for point in found.points if any(count(point) for count in _COUNTS.values()) or not point.complete]
    for point in shown[-_ROWS_MAX:]:
        at = point.at if point.complete else f"{point.at} (incomplete)"
        by = ", ".join(f"{answer}: {count:,}" for answer, count in point.failed_by.items())
        times = point.latency
        quantiles = ["", ""] if times is None else [_bound(times.p50_ms), _bound(times.p99_ms)]
        steps.add_row(at, *(f"{count(point):,}" for count in _COUNTS.values()), by, *quantiles)
    if shown:
        stdout().print(steps)
    if len(shown) > _ROWS_MAX:
        say(f"{len(shown) - _ROWS_MAX} earlier steps are not shown; --json shows all")
    say("nothing is counted yet" if found.counted_at is None else f"counted until {found.counted_at}")


def sparkline(counts: Sequence[int], *, together: Callable[[Sequence[int]], int] = sum) -> str:
    """Return a sparkline with one bar for each step. If there are more than _SPARK_MAX steps, one bar stands for
    several steps.
    """
    size = max(1, -(-len(counts) // _SPARK_MAX))
    bars = [together(counts[first : first + size]) for first in range(0, len(counts), size)]
    most = max(bars, default=0)
    return "".join(" " if bar == 0 else _BARS[(bar * len(_BARS) - 1) // most] for bar in bars)


def _step(seconds: int) -> str:
    for unit, length in (("d", 86_400), ("h", 3_600)):
        if seconds % length == 0:
            return f"{seconds // length}{unit}"
    return f"{seconds // 60}m"


def _bound(ms: int | None) -> str:
    return "over 1 h" if ms is None else f"≤ {ms:,}"
