"""`everput put`: put each line of a file as a message.

For: the command, its progress bar and its summary. Not for: sending (cli/publish.py), reading lines (cli/lines.py).
"""

from __future__ import annotations

import asyncio
import sys
from http import HTTPStatus
from pathlib import Path
from typing import IO

import click

from broker.errors import ConfigurationError, NotFound
from cli.api_commands import api_client, find_queue
from cli.api_options import api_options
from cli.arguments import queue_argument
from cli.groups import examples
from cli.lines import TextLine, TextLines
from cli.printing import say
from cli.progress import Progress
from cli.publish import Publisher, Tally
from everput import Client, Problem, create_queue, get_queue

REFUSALS_SHOWN = 20


@click.command(
    "put", epilog=examples("everput put orders orders.jsonl", "tail -f orders.jsonl | everput put orders --create")
)
@queue_argument
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False, allow_dash=True), default="-")
@api_options
@click.option(
    "--concurrency",
    type=click.IntRange(1, 1024),
    default=32,
    show_default=True,
    envvar="EVERPUT_CONCURRENCY",
    help="Most requests at a time.",
)
@click.option(
    "--give-up-after-s",
    type=click.FloatRange(min=0),
    default=60.0,
    show_default=True,
    envvar="EVERPUT_GIVE_UP_AFTER_S",
    help="Seconds for which one message is retried.",
)
@click.option("--create", is_flag=True, help="Create the queue if it is missing.")
@click.option("--quiet", is_flag=True, help="Show no progress bar, no summary and no warning.")
def command(
    *,
    queue: str,
    file: Path,
    url: str,
    key: str,
    concurrency: int,
    give_up_after_s: float,
    create: bool,
    quiet: bool,
) -> None:
    """Put each line of FILE (or of standard input) as a message on QUEUE, a queue's name or ID.

    Many requests run at the same time, so the order of the lines is not kept. A request is retried for up to
    --give-up-after-s seconds if it gets no answer, or the answer 429, 502, 503 or 504. A retry does not store messages
    a second time. Empty lines are skipped and counted.

    If a request gets no answer in time, its lines count as refused, but their messages may be stored. The first 20
    refused lines are shown with their numbers and the reasons. The exit code is 1 if a line was refused.
    """
    with _open(file) as source:
        with api_client(url, key, give_up_after_s=give_up_after_s) as client:
            queue_id = _queue(client, queue, create=create)
            if not quiet:
                _warn(client, queue, queue_id)
        publisher = Publisher(url, key, concurrency=concurrency, give_up_after_s=give_up_after_s)
        tally = asyncio.run(_put(publisher, queue_id, source, quiet=quiet))
    if not quiet:
        say(tally.summary(), err=True)
    if tally.refused:
        sys.exit(1)


def _open(file: Path) -> IO[bytes]:
    if str(file) == "-":
        return click.get_binary_stream("stdin")
    try:
        return file.open("rb", buffering=0)
    except OSError as error:
        raise ConfigurationError(f"can't read {file}: {error.strerror}") from error


def _queue(client: Client, queue: str, *, create: bool) -> str:
    """Return the queue's id. If there is no such queue, create it with `create`. Without `create`, raise
    ConfigurationError.
    """
    try:
        return find_queue(client, queue)
    except NotFound as error:
        if not create:
            raise ConfigurationError(f"{error}; with --create, this command creates the queue") from error
        return client.send(create_queue(queue)).queue.id


def _warn(client: Client, queue: str, queue_id: str) -> None:
    """Print a warning if the queue has no listeners. Print nothing if the API key may not read the queue."""
    try:
        listeners = client.send(get_queue(queue_id)).queue.listeners
    except Problem as error:
        if error.status != HTTPStatus.FORBIDDEN:
            raise
        return
    if not listeners:
        say(f"the queue {queue} has no listeners; nobody gets these messages unless a replay sends them", err=True)


async def _put(publisher: Publisher, queue_id: str, source: IO[bytes], *, quiet: bool) -> Tally:
    tally = Tally()
    lines = TextLines(source)
    with Progress(total_bytes=lines.size, shown=not quiet) as progress:

        def settled(line: TextLine, refusal: str | None) -> None:
            tally.settled(refusal)
            progress.update(tally.put, tally.refused, lines.bytes_read)
            if refusal is not None and tally.refused <= REFUSALS_SHOWN:
                progress.say(f"line {line.number}: {refusal}")

        async with publisher:
            try:
                await publisher.put_all(queue_id, lines, settled)
            finally:
                tally.skipped = lines.skipped
                tally.again = publisher.again
    if tally.refused > REFUSALS_SHOWN:
        say(f"and {tally.refused - REFUSALS_SHOWN} more were refused", err=True)
    return tally
