"""`everput status`: the state of every listener and, with `--admin`, of every process.

For: the command, its tables and its exit code. Not for: requests and judgments (cli/report.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, Final

import click
import orjson
from rich.console import Group
from rich.live import Live
from rich.text import Text

from broker.errors import ConfigurationError
from cli.api_commands import check_address, errors_as_refusals
from cli.api_options import api_options
from cli.arguments import QueueName
from cli.groups import examples
from cli.printing import say_json, stdout
from cli.report import FIGURES, TROUBLES, Limits, ListenerRow, ProcessRow, StorageRow, listeners, processes, storage
from cli.tables import Column, FittingTable
from cli.waiting import waiting
from everput import AsyncClient

GIVE_UP_AFTER_S: Final = 5.0
DAMAGED_LINE: Final = "log damaged: some records can't be read; `everput status --admin URL` names them"
_MIB: Final = 1 << 20
_COLUMNS: Final = (
    *(Column(heading) for heading in ("queue", "listener", "state")),
    *(Column(heading, right=True) for heading in ("waiting", "for", "retrying", "parked", "failed in 5 min")),
    Column("last error"),
    Column("wrong"),
)
_ORDER: Final = ("down", "failing", "paused", "parked", "replaying", "new", "healthy", "live")
_WELL: Final = _ORDER.index("replaying")


def _fail_on(_context: click.Context, _parameter: click.Parameter, value: str) -> frozenset[str]:
    names = frozenset(name.strip() for name in value.split(",") if name.strip()) - {"none"}
    unknown = sorted(names - set(TROUBLES))
    if unknown:
        raise click.BadParameter(
            f"--fail-on does not know {unknown[0]!r}; choose from {', '.join(TROUBLES)}, or `none`"
        )
    return names


@click.command(
    "status",
    epilog=examples("everput status", "everput status orders --watch", "everput status --lag-max 1000 --json"),
)
@click.argument("queue", required=False, type=QueueName())
@api_options
@click.option("--admin", multiple=True, metavar="URL", help="Admin address whose processes to show. May be repeated.")
@click.option("--lag-max", type=click.IntRange(min=0), help="Report a listener with a larger backlog as wrong.")
@click.option(
    "--age-max-s",
    type=click.FloatRange(min=0),
    help="Report a listener as wrong whose oldest message waits longer than this many seconds.",
)
@click.option(
    "--fail-on",
    default="down,failing,parked",
    show_default=True,
    callback=_fail_on,
    metavar="LIST",
    help=f"What to report as wrong, with commas between: {', '.join(TROUBLES)}; or `none`.",
)
@click.option("--watch", is_flag=True, help="Refresh until Ctrl-C.")
@click.option(
    "--every-s",
    type=click.FloatRange(min=0.1),
    default=2.0,
    show_default=True,
    help="Seconds between two refreshes, with --watch.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object; with --watch, one a line.")
def command(
    *,
    queue: str | None,
    url: str,
    key: str,
    admin: Sequence[str],
    lag_max: int | None,
    age_max_s: float | None,
    fail_on: frozenset[str],
    watch: bool,
    every_s: float,
    as_json: bool,
) -> None:
    """Show the listeners of QUEUE (a name or an ID), or of all queues, the worst first: state, backlog, last error.

    The exit code is 1 if the report shows a problem, and 2 if the API does not answer.

    A listener is a problem if it is down or failing, has parked deliveries (--fail-on changes this list), or is beyond
    --lag-max or --age-max-s. Other problems: the organization may store no more bytes, the log is damaged, or a process
    of --admin does not answer or is not ready.
    """
    check_address(url, key)
    with contextlib.suppress(KeyboardInterrupt), errors_as_refusals(url):
        client = AsyncClient(url, key, give_up_after_s=GIVE_UP_AFTER_S, refused_at_once=True)
        status = _Status(client, url, queue, admin, Limits(lag_max, age_max_s, fail_on))
        asyncio.run(status.run(every_s if watch else None, as_json=as_json))
    if status.wrong:
        sys.exit(1)


class _Status:
    """A run of the command `everput status`. `wrong` is True if the newest report shows a problem."""

    def __init__(self, client: AsyncClient, url: str, queue: str | None, admin: Sequence[str], limits: Limits) -> None:
        self._url = url
        self.wrong = False
        self._client = client
        self._queue = queue
        self._admin = admin
        self._limits = limits

    async def run(self, every_s: float | None, *, as_json: bool, make_console: Callable[[], Any] = stdout) -> None:
        """Print the report once, or every `every_s` seconds."""
        console = make_console()
        live = Live(console=console, auto_refresh=False) if every_s and not as_json and console.is_terminal else None
        async with self._client:
            with live or contextlib.nullcontext():
                while True:
                    seen, stored, behind = await self.look()
                    if as_json:
                        say_json(_json(seen, stored, behind, ok=not self.wrong))
                    elif live is not None:
                        live.update(tables(seen, stored, behind), refresh=True)
                    else:
                        console.print(tables(seen, stored, behind))
                    if every_s is None:
                        return
                    await asyncio.sleep(every_s)

    async def look(self) -> tuple[list[ListenerRow], StorageRow, list[ProcessRow]]:
        """Return the rows of a new report: listeners, stored bytes and processes. Raises ConfigurationError if the
        given queue does not exist, or has no listener.

        After the call, the attribute `wrong` of this object says whether the report shows a problem.
        """
        with waiting(f"the API at {self._url}"):
            seen, stored, behind = await asyncio.gather(
                listeners(self._client, self._limits, self._queue), storage(self._client), processes(self._admin)
            )
        if self._queue is not None and not seen:
            raise ConfigurationError(
                f"no queue that the API key can read has the name or ID {self._queue} and a listener; `everput queues "
                "list` shows the queues that it can read"
            )
        wrongs = [*(row.wrong for row in seen), stored.wrong, *(row.wrong for row in behind)]
        self.wrong = any(wrongs) or stored.log_damaged
        return seen, stored, behind


def _json(seen: Sequence[ListenerRow], stored: StorageRow, behind: Sequence[ProcessRow], *, ok: bool) -> str:
    fields = {
        "ok": ok,
        "listeners": [asdict(row) for row in seen],
        "storage": asdict(stored),
        "processes": [asdict(row) for row in behind],
    }
    return orjson.dumps(fields).decode()


def tables(seen: Sequence[ListenerRow], stored: StorageRow, behind: Sequence[ProcessRow]) -> Group:
    """Return the tables of the report: the listeners, the worst first, then the stored bytes and the processes."""
    table = FittingTable(_COLUMNS)
    for row in sorted(seen, key=trouble):
        style = "red" if row.wrong else "yellow" if trouble(row)[1] < _WELL or row.last_error else ""
        counts = (f"{row.retrying:,}", f"{row.parked:,}", _recent(row))
        cells = (row.queue, row.listener, row.health, f"{row.lag:,}", _age(row.pending_s), *counts)
        table.add_row([*cells, row.last_error or "", row.wrong or ""], style=style)
    lines = [Text(_storage_line(stored), style="red" if stored.wrong else "")]
    if stored.log_damaged:
        lines.append(Text(DAMAGED_LINE, style="red"))
    return Group(table, *lines, _process_table(behind)) if behind else Group(table, *lines)


def trouble(row: ListenerRow) -> tuple[bool, int, int, int, str, str]:
    """Return the sort key of a listener's row: problems first, then by state, parked deliveries and backlog."""
    order = _ORDER.index(row.health) if row.health in _ORDER else _WELL
    if order >= _WELL and row.parked:
        order = _WELL - 1
    return row.wrong is None, order, -row.parked, -row.lag, row.queue, row.listener


def _recent(row: ListenerRow) -> str:
    return f"{row.recent_failures:,} of {row.recent_attempts:,}" if row.recent_attempts else ""


def _storage_line(stored: StorageRow) -> str:
    bound = "" if stored.stored_bytes_max is None else f" of {stored.stored_bytes_max / _MIB:,.0f} MiB"
    wrong = "" if stored.wrong is None else f", {stored.wrong}"
    return f"messages stored: {stored.stored_bytes / _MIB:,.0f} MiB{bound}{wrong}"


def _process_table(behind: Sequence[ProcessRow]) -> FittingTable:
    figures_columns = [Column(heading, right=True) for heading in FIGURES]
    table = FittingTable([Column("process"), *figures_columns, Column("wrong")])
    for row in behind:
        figures = [_figure(name, row.figures.get(name)) for name in FIGURES]
        cells = [row.process or row.address, *figures, row.wrong or ""]
        table.add_row(cells, style="red" if row.wrong else "")
    return table


def _figure(name: str, value: float | None) -> str:
    if value is None:
        return ""
    return f"{value / _MIB:,.0f} MiB" if name == "memory" else f"{value:,.0f}"


def _age(seconds: float | None) -> str:
    if seconds is None:
        return ""
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
