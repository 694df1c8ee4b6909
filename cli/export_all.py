"""`everput export-all`: all topics and cursors as files, from which `everput import` makes an installation again.

For: the command, a moment at which what is exported fits together, going on after a kill. Not for: the manifest
(cli/manifest.py), one organization's events (cli/export.py)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from functools import partial
from pathlib import Path
from typing import Final

import click
import orjson
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from broker.audit.control import control_records
from broker.core.directory import Directory
from broker.core.events import decode
from broker.errors import ConfigurationError, LogUnavailable, UnknownEvent
from broker.kafka.cursors import KafkaCursors
from broker.kafka.requests import EARLIEST, LATEST, KafkaRequests
from broker.kafka.topics import Topic, Topics, by_name
from cli import logs, manifest
from cli.manifest import Manifest
from cli.operate import Cluster, cluster
from cli.options import Options, shared_options
from cli.rows import line

CURSORS: Final = "cursors.jsonl"
FILE_RECORDS: Final = 100_000
_FILE_BYTES: Final = 128 << 20
_STRETCH_BYTES: Final = 1 << 20
_MOMENTS_MAX: Final = 20


@click.command("export-all")
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False), metavar="DIR")
@shared_options
def command(options: Options, folder: Path) -> None:
    """Write the whole log and the listeners' cursors to DIR: all organizations, sealed secrets and hashes of keys.

    An export that was broken off goes on when the same command is given again. It may run while everything else does:
    what is written after it began is not in it. Keep the sealing key with it, but not beside it.
    """
    logs.set_up("export", "warning" if options.log_level == "info" else options.log_level)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    made = asyncio.run(_export(options, folder))
    click.echo(f"{sum(one.rows for one in made.files):,} rows in {len(made.files):,} files in {folder}", err=True)


async def _export(options: Options, folder: Path) -> Manifest:
    made = manifest.load(folder)
    if made is not None and made.kind != "all":
        raise ConfigurationError(f"{folder} holds an export of one organization")
    if made is not None and made.complete:
        return made
    async with cluster(options) as found:
        if made is None:
            made = await _begin(found, folder)
        console = Console(stderr=True)
        columns = "{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
            task = bar.add_task("records", total=sum(map(sum, made.ends.values())))
            for name, topic in by_name(found.table).items():
                for number, end in enumerate(made.ends[name]):
                    async for count in _partition(found.requests, topic, number, end, folder, made, name):
                        bar.advance(task, count)
        made.complete = True
        manifest.save(folder, made)
    return made


async def _begin(found: Cluster, folder: Path) -> Manifest:
    """Choose the moment: cursors first, then the ends, so that no cursor is beyond an end, and no change of `control`.

    A listener that began after the ends would miss what is put on the new installation, so there must be none.
    """
    _, requests, table = found
    cursors = KafkaCursors(found.kafka, requests)
    for _ in range(_MOMENTS_MAX):
        ends = await _ends(requests, table)
        state = await _directory(requests, table, ends["control"][0])
        places = await cursors.load(state.listeners, range(table.messages.partitions))
        ends = await _ends(requests, table) | {"control": ends["control"]}
        if (await requests.offsets(table.control.name, {0: LATEST}))[0] == ends["control"][0]:
            break
    else:
        raise LogUnavailable("`control` changes all the time: try again when fewer listeners are made")
    made = Manifest(kind="all", partitions=table.messages.partitions, ends=ends)
    rows = [
        orjson.dumps({"listener_id": one, "partition": number, "offset": cursor.offset, "metadata": cursor.metadata()})
        for one, of in places.items()
        for number, cursor in of.items()
    ]
    manifest.add(folder, made, CURSORS, len(rows), partial(_write, rows=rows))
    return made


async def _directory(requests: KafkaRequests, table: Topics, end: int) -> Directory:
    state = Directory()
    async for records in control_records(requests, table.control.name, end):
        for record in records:
            try:
                state.apply(decode(record.value or b""))
            except UnknownEvent as error:
                raise ConfigurationError(f"`control` holds what a newer program wrote: {error}") from error
    return state


async def _ends(requests: KafkaRequests, table: Topics) -> dict[str, list[int]]:
    found = {}
    for name, topic in by_name(table).items():
        ends = await requests.offsets(topic.name, dict.fromkeys(range(topic.partitions), LATEST))
        found[name] = [ends[number] for number in range(topic.partitions)]
    return found


async def _partition(
    requests: KafkaRequests, topic: Topic, number: int, end: int, folder: Path, made: Manifest, name: str
) -> AsyncGenerator[int, None]:
    """Write what is left of a partition, a file at a time; how many offsets each stretch had."""
    mine = [one for one in made.files if one.topic == name and one.partition == number]
    at = made.next.get(f"{name}/{number}", (await requests.offsets(topic.name, {number: EARLIEST}))[number])
    rows: list[bytes] = []
    size, first = 0, at
    while at < end:
        stretch = await requests.read(topic.name, number, at, bytes_max=_STRETCH_BYTES)
        if stretch.next_offset <= at:
            raise LogUnavailable(f"Kafka gives nothing of {topic.name}/{number} from offset {at} on")
        lines = [line(record) for record in stretch.records if record.offset < end]
        yield min(stretch.next_offset, end) - at
        at = stretch.next_offset
        rows += lines
        size += sum(map(len, lines))
        if rows and (len(rows) >= FILE_RECORDS or size >= _FILE_BYTES or at >= end):
            made.next[f"{name}/{number}"] = at
            draft = f"{name}-{number:04d}-{len(mine) + 1:06d}.jsonl"
            manifest.add(
                folder,
                made,
                draft,
                len(rows),
                partial(_write, rows=rows),
                topic=name,
                partition=number,
                first=first,
            )
            mine = [*mine, made.files[-1]]
            rows, size, first = [], 0, at


def _write(path: Path, rows: list[bytes]) -> None:
    path.write_bytes(b"".join(row + b"\n" for row in rows))
