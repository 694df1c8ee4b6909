"""`everput export-all`: write all topics and committed offsets to files, from which `everput import` restores them.

For: the command, a consistent export, continuing after a kill. Not for: the manifest (cli/exports/manifest.py), one
organization's events (cli/exports/export.py).
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator
from functools import partial
from pathlib import Path
from typing import Final

import click
import orjson
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from broker.audit.control import control_records
from broker.core.codec import decode
from broker.core.directory import Directory
from broker.errors import ConfigurationError, LogDamaged, LogUnavailable, UnknownEvent
from broker.kafka.cursors import KafkaCursors
from broker.kafka.requests import KafkaRequests
from broker.kafka.topics import Topic, Topics, by_name
from broker.ports import EARLIEST, LATEST, FetchResult, OffsetTooOld
from cli import logs
from cli.exports import manifest
from cli.exports.manifest import Manifest
from cli.exports.rows import line
from cli.groups import examples
from cli.operate import Cluster, cluster
from cli.options import Options, shared_options
from cli.printing import say, stderr

CURSORS: Final = "cursors.jsonl"
FILE_RECORDS: Final = 100_000
_FILE_BYTES: Final = 128 << 20
_FETCH_BYTES: Final = 1 << 20
_MOMENTS_MAX: Final = 20


@click.command("export-all", epilog=examples("everput export-all backup --data-dir data"))
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False), metavar="DIR")
@shared_options
def command(options: Options, folder: Path) -> None:
    """Back up the whole log and the listeners' cursors to DIR: all organizations, encrypted secrets and hashes of keys.

    The installation may keep running. The command first copies the topic `outstanding`, and then chooses where the
    backup ends. Later events are not in the backup. If a backup is interrupted, repeat the command to continue. Keep
    the sealing key, too, but in another place.

    If records are damaged, they are left out, and their offsets are shown and written to the manifest. The exit code is
    then 1, and `everput import` refuses the backup.
    """
    logs.set_up_quietly("export", options.log_level)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    made = asyncio.run(_export(options, folder))
    say(f"{sum(one.rows for one in made.files):,} rows in {len(made.files):,} files in {folder}", err=True)
    for what in made.damaged:
        say(f"left out, because it is damaged: {what}", err=True)
    if made.damaged:
        sys.exit(1)


async def _export(options: Options, folder: Path) -> Manifest:
    made = manifest.load(folder)
    if made is not None and made.kind != "all":
        raise ConfigurationError(
            f"{folder} holds an export of one organization, which a backup of all organizations can't continue: choose "
            "another folder"
        )
    if made is not None and made.complete:
        return made
    async with cluster(options) as found:
        console = stderr()
        columns = "{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
            task = bar.add_task("records", total=None)
            if made is None or not made.ends:
                made = await _begin(found, folder)
            bar.update(task, total=sum(map(sum, made.ends.values())), completed=sum(made.next.values()))
            for name, topic in by_name(found.table).items():
                for number, end in enumerate(made.ends[name]):
                    async for count in _partition(found.requests, topic, number, end, folder, made, name):
                        bar.advance(task, count)
        made.complete = True
        manifest.save(folder, made)
    return made


async def _begin(found: Cluster, folder: Path) -> Manifest:
    """Write the listeners' committed offsets and the topic `outstanding`, and then choose the end offsets of the other
    topics.

    The topic `outstanding` must be read without a pause (docs/backup.md). So if the export is interrupted before the
    end offsets are chosen, the whole export begins again.
    """
    _, requests, table = found
    made = Manifest(kind="all", partitions=table.messages.partitions)
    manifest.begin_anew(folder, made)
    state = await _directory(requests, table, (await _ends(requests, table.control))[0])
    places = await KafkaCursors(found.kafka, requests).load(state.listeners, range(table.messages.partitions))
    rows = [
        orjson.dumps({"listener_id": one, "partition": number, "offset": cursor.offset, "metadata": cursor.metadata()})
        for one, of in places.items()
        for number, cursor in of.items()
    ]
    manifest.add(folder, made, CURSORS, len(rows), partial(_write, rows=rows))
    for number in range(table.outstanding.partitions):
        async for _ in _partition(requests, table.outstanding, number, None, folder, made, "outstanding"):
            pass
    outstanding = [made.next.get(f"outstanding/{number}", 0) for number in range(table.outstanding.partitions)]
    made.ends = {"outstanding": outstanding} | await _moment(requests, table)
    manifest.save(folder, made)
    return made


async def _moment(requests: KafkaRequests, table: Topics) -> dict[str, list[int]]:
    """Choose the end offsets of the topics. No exported event may refer to a record that is not exported: for example,
    each exported message needs the event in `control` that created its queue. Also, no exported listener may begin
    after the end offset of `messages`: after a restore, this listener would miss messages.
    """
    deliveries = await _ends(requests, table.deliveries)
    changes = await _ends(requests, table.changes)
    for _ in range(_MOMENTS_MAX):
        control = await _ends(requests, table.control)
        messages = await _ends(requests, table.messages)
        if await _ends(requests, table.control) == control:
            break
    else:
        raise LogUnavailable(
            f"can't choose where the backup ends, because the topic `control` got new events during each of "
            f"{_MOMENTS_MAX} attempts: repeat the command when fewer queues, listeners, accounts and keys are being "
            "changed"
        )
    claims = await _ends(requests, table.claims)
    return {"control": control, "messages": messages, "changes": changes, "claims": claims, "deliveries": deliveries}


async def _directory(requests: KafkaRequests, table: Topics, end: int) -> Directory:
    state = Directory()
    async for records in control_records(requests, table.control.name, end):
        for record in records:
            try:
                state.apply(decode(record.value or b""))
            except UnknownEvent as error:
                raise ConfigurationError(
                    f"the topic `control` has an event of a newer version of Everput: export with that version: {error}"
                ) from error
    return state


async def _ends(requests: KafkaRequests, topic: Topic) -> list[int]:
    ends = await requests.offsets(topic.name, dict.fromkeys(range(topic.partitions), LATEST))
    return [ends[number] for number in range(topic.partitions)]


async def _partition(
    requests: KafkaRequests, topic: Topic, number: int, end: int | None, folder: Path, made: Manifest, name: str
) -> AsyncGenerator[int, None]:
    """Write the rest of a partition, one file at a time. Yield how many offsets each fetch covered.

    Read the partition up to the offset `end`, or up to its present end if `end` is None. Use None for a compacted
    topic. Compaction deletes a key's older record when a newer one is written. So if the newer record is after `end`,
    the export would have no record of this key.
    """
    mine = sum(one.topic == name and one.partition == number for one in made.files)
    at = made.next.get(f"{name}/{number}", (await requests.offsets(topic.name, {number: EARLIEST}))[number])
    rows: list[bytes] = []
    size, first = 0, at
    whole = end is not None and at >= end
    while not whole:
        try:
            fetched = await requests.read(topic.name, number, at, bytes_max=_FETCH_BYTES)
        except LogDamaged as damage:
            made.damaged.append(f"{name}/{number} offsets {damage.first} to {damage.last}")
            fetched = FetchResult([], damage.last + 1, max(damage.last + 1, end or 0))
            if end is None:
                fetched = fetched._replace(end_offset=(await _ends(requests, topic))[number])
        except OffsetTooOld as error:
            raise ConfigurationError(
                f"Kafka has deleted the record at offset {at} of {name}/{number}, which the export still needs; repeat "
                "the export to another folder"
            ) from error
        last = fetched.end_offset if end is None else end
        whole = fetched.next_offset >= last
        if fetched.next_offset <= at and not whole:
            raise LogUnavailable(
                f"Kafka returned no records of {topic.name}/{number} at offset {at} or later; repeat the command, and "
                "check Kafka if this happens again"
            )
        lines = [line(record) for record in fetched.records if record.offset < last]
        yield min(fetched.next_offset, last) - at
        at = fetched.next_offset
        rows += lines
        size += sum(map(len, lines))
        made.next[f"{name}/{number}"] = at
        if rows and (len(rows) >= FILE_RECORDS or size >= _FILE_BYTES or whole):
            mine += 1
            manifest.add(
                folder,
                made,
                f"{name}-{number:04d}-{mine:06d}.jsonl",
                len(rows),
                partial(_write, rows=rows),
                topic=name,
                partition=number,
                first=first,
            )
            rows, size, first = [], 0, at


def _write(path: Path, rows: list[bytes]) -> None:
    path.write_bytes(b"".join(row + b"\n" for row in rows))
