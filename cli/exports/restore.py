"""`everput import`: restore an installation from a backup of `everput export-all`.

For: the command. It writes into topics that are empty or hold a part of the backup, after it has checked all hashes.
Not for: the files (cli/exports/manifest.py, cli/exports/rows.py), writing records (broker/kafka/restore.py).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from itertools import groupby, islice
from pathlib import Path
from typing import Final

import click
import orjson
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn

from broker.core.cursor import Cursor
from broker.errors import ConfigurationError
from broker.kafka import importing
from broker.kafka.admin import ensure_topics
from broker.kafka.cursors import KafkaCursors
from broker.kafka.embedded.kafka import EmbeddedKafka
from broker.kafka.requests import KafkaRequests
from broker.kafka.restore import Restorer, fill
from broker.kafka.topics import Topics, by_name, topics
from broker.ports import LATEST
from broker.settings import KafkaSettings
from cli import files, logs
from cli.exports import manifest
from cli.exports.export_all import CURSORS
from cli.exports.manifest import Manifest
from cli.exports.rows import record
from cli.groups import examples
from cli.options import Options, shared_options
from cli.printing import say, stderr

_APPEND_RECORDS: Final = 5_000
# In these topics, an imported record may get another offset than in the backup: nothing refers to its offset.
_SHIFTING: Final = ("outstanding", "claims")


@click.command("import", epilog=examples("everput import backup --data-dir new-data"))
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False, exists=True), metavar="DIR")
@shared_options
def command(options: Options, folder: Path) -> None:
    """Restore the backup in DIR into an empty installation. Every record gets its old offset, except in the topics
    `outstanding` and `claims`, to whose offsets nothing refers. An installation that is not empty is refused.

    Without --kafka, the installation is a new --data-dir, for `everput serve`. Before you start a process of Everput on
    it, set EVERPUT_SEALING_KEY to the sealing key of the old installation, or write this key to the file sealing-key of
    the new data directory.

    If an import is interrupted, repeat the command to continue. Until the import is complete, no process of Everput
    starts on the installation.
    """
    logs.set_up_quietly("import", options.log_level)
    made = manifest.load(folder)
    if made is None or made.kind != "all" or not made.complete:
        raise ConfigurationError(
            f"{folder} holds no complete backup; choose a folder that `everput export-all` has completed"
        )
    if made.damaged:
        raise ConfigurationError(
            f"the backup in {folder} is not complete, because records of the log were damaged when it was made: "
            f"{'; '.join(made.damaged)}. Mend these records in the old installation with `everput mend`, and make "
            "another backup there. Or import an older backup"
        )
    rows = asyncio.run(_import(options, folder, made))
    say(f"restored {rows:,} records; the listeners continue where they were", err=True)


async def _import(options: Options, folder: Path, made: Manifest) -> int:
    console = stderr()
    columns = "{task.description}", BarColumn(), DownloadColumn(), TimeRemainingColumn()
    size = sum(one.size for one in made.files)
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("checking", total=size)
        for count in manifest.check(folder, made):
            bar.advance(task, count)
        begins = _begins(folder, made)
        async with contextlib.AsyncExitStack() as stack:
            kafka = await stack.enter_async_context(_kafka(options, made))
            table = topics(kafka)
            await ensure_topics(kafka, table, importing=True)
            requests = KafkaRequests(kafka)
            await requests.start([topic.name for topic in table.all()])
            stack.push_async_callback(requests.stop)
            there = await _there(requests, table)
            digest = manifest.digest(folder)
            if not await importing.is_begun(kafka, digest):
                _check_empty(there)
                await importing.begin(kafka, digest)
            for (name, number), begin in begins.items():
                await _begin_at(kafka, requests, by_name(table)[name].name, number, there[name, number], begin)
                there[name, number] = max(0, there[name, number] - begin)
            task = bar.add_task("writing", total=size)
            rows = 0
            async with Restorer(kafka) as restorer:
                for one in made.files:
                    if one.topic:
                        there[one.topic, one.partition] -= await _append(
                            restorer, table, folder, one, there[one.topic, one.partition]
                        )
                        rows += one.rows
                    bar.advance(task, one.size)
            await _store_cursors(KafkaCursors(kafka, requests), folder)
            await importing.end(kafka, digest)
    return rows


@contextlib.asynccontextmanager
async def _kafka(options: Options, made: Manifest) -> AsyncIterator[KafkaSettings]:
    """Yield the settings for the Kafka cluster of --kafka.

    Without --kafka, yield the settings for an embedded Kafka, which runs in the data directory until the `with` block
    ends.
    """
    options = replace(options, partitions=made.partitions)
    if options.kafka is not None:
        yield options.kafka_settings()
        return
    files.make_data_dir(options.data_dir)
    with files.lock(options.data_dir):
        embedded = EmbeddedKafka(options.data_dir / "kafka")
        await embedded.start()
        try:
            yield options.kafka_settings(embedded.access)
        finally:
            await embedded.stop()


def _begins(folder: Path, made: Manifest) -> dict[tuple[str, int], int]:
    """Return the first exported offset of each partition that does not begin at offset 0. Kafka had deleted the older
    records of these partitions before the export. The import must give the exported records their old offsets, because
    other records refer to these. Topics to whose offsets nothing refers are left out.

    If Kafka had deleted all records of a partition, its offset here is the end offset. Raises ConfigurationError if
    records are missing between or after exported records, or at the beginning of `control`.
    """
    found = {}
    places = [(one.topic, one.partition, one.first, one.rows) for one in made.files if one.topic not in _SHIFTING]
    places += [
        (topic, number, end, 0)
        for topic, ends in made.ends.items()
        for number, end in enumerate(ends)
        if topic not in _SHIFTING
    ]
    for (topic, partition), group in groupby(
        sorted(place for place in places if place[0]), key=lambda place: place[:2]
    ):
        at = 0
        for *_, first, rows in group:
            if first != at:
                if at > 0 or topic == "control":
                    raise ConfigurationError(
                        f"the backup in {folder} lacks the records of {topic}/{partition} from offset {at} to "
                        f"{first - 1}. Without them, later records would get other offsets, so nothing is "
                        "imported: use a complete backup"
                    )
                found[topic, partition] = first
            at = first + rows
    return found


async def _there(requests: KafkaRequests, table: Topics) -> dict[tuple[str, int], int]:
    """Return the end offset of each partition of the new installation. If an earlier import was interrupted, the end
    offsets tell how many records it has imported.
    """
    found: dict[tuple[str, int], int] = {}
    for name, topic in by_name(table).items():
        ends = await requests.offsets(topic.name, dict.fromkeys(range(topic.partitions), LATEST))
        found |= {(name, number): end for number, end in ends.items()}
    return found


async def _begin_at(
    kafka: KafkaSettings, requests: KafkaRequests, topic: str, partition: int, there: int, begin: int
) -> None:
    """Make a new partition begin at the offset `begin`, like the exported partition: write empty records up to `begin`,
    and delete them. `there` is the partition's present end offset.
    """
    if there < begin:
        await fill(kafka, topic, partition, begin - there)
    await requests.delete_before(topic, partition, begin)


def _check_empty(there: dict[tuple[str, int], int]) -> None:
    for (name, _), count in there.items():
        if count:
            raise ConfigurationError(
                f"the topic {name} is not empty: import into an empty installation, such as a new --data-dir"
            )


async def _append(restorer: Restorer, table: Topics, folder: Path, one: manifest.File, there: int) -> int:
    """Write the records of an exported file to Kafka, except the first `there` ones, which Kafka already has. Return
    how many of the file's records Kafka already had.
    """
    topic = by_name(table)[one.topic]
    skipped = min(there, one.rows)
    left = skipped
    for lines in _pieces(folder / one.name):
        records = [record(text) for text in lines[left:]]
        left = max(0, left - len(lines))
        if not records:
            continue
        at = await restorer.append(topic.name, one.partition, records)
        if at != records[0].offset and one.topic not in _SHIFTING:
            raise ConfigurationError(
                f"a record of {topic.name}/{one.partition} got the offset {at} instead of {records[0].offset}, "
                "so the import has stopped: stop other programs that write to this topic, and import into an empty "
                "installation"
            )
    return skipped


async def _store_cursors(cursors: KafkaCursors, folder: Path) -> None:
    for lines in _pieces(folder / CURSORS):
        places: dict[str, dict[int, Cursor]] = {}
        for text in lines:
            row = orjson.loads(text)
            cursor = Cursor.from_metadata(row["offset"], row["metadata"])
            places.setdefault(row["listener_id"], {})[row["partition"]] = cursor
        await cursors.store(places)


def _pieces(path: Path) -> Iterator[list[bytes]]:
    with path.open("rb") as file:
        while lines := list(islice(file, _APPEND_RECORDS)):
            yield lines
