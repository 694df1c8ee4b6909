"""`everput mend`: restore damaged records of the log from an export, or give them up.

For: the command. Not for: finding damage in a file and proving that a restored batch is the original
(broker/kafka/embedded/segments.py), the deliveries afterwards (broker/delivery/outstanding/damaged.py).
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

import click

from broker.core.damage import DamagedRange
from broker.damage import mended
from broker.errors import ConfigurationError
from broker.kafka.embedded import segments
from broker.kafka.embedded.rebuild import rebuilt, why_not
from broker.kafka.topics import by_name, topics
from broker.ports import Record
from broker.settings import KafkaSettings
from cli import files
from cli.directory import OpenDirectory, in_directory
from cli.exports import manifest
from cli.exports.manifest import Manifest
from cli.exports.rows import record
from cli.groups import examples
from cli.options import Options, shared_options
from cli.printing import say

_RECORD_BYTES: Final = 8  # a record in a batch has at least this many bytes
# This pattern takes linear time: its repeats are bounded, and each class excludes the character after it.
_RANGE: Final = re.compile(r"([a-z]+)/(\d{1,4}):(\d{1,19})(?:-(\d{1,19}))?", re.ASCII)


@click.command(
    "mend", epilog=examples("everput mend --export backup", "everput mend --give-up messages/3:10-12 --data-dir data")
)
@click.option(
    "--export",
    "folder",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="Folder of `everput export-all` from which to put damaged records back.",
)
@click.option(
    "--log-dir",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="The log.dirs of a stopped broker. Default: those of the embedded Kafka in --data-dir.",
)
@click.option(
    "--give-up", metavar="TOPIC/PARTITION:FIRST-LAST", help="Cancel the deliveries that are parked for these offsets."
)
@shared_options
def command(options: Options, folder: Path | None, log_dir: Path | None, give_up: str | None) -> None:
    """Find damaged batches in the files of a stopped Kafka, and restore them from an export.

    A batch is restored only if the producer's checksum proves that it is the original. On a cluster, make a broker with
    an undamaged copy the leader instead. After the next start, deliveries that were parked as damaged are made.

    --give-up is for a running installation: it cancels the deliveries that wait for these offsets. The exit code is 1
    if a batch remains damaged.
    """
    if give_up is not None:
        one = _range(give_up)
        in_directory(options, lambda opened: _give_up(opened, one))
        say(f"given up: {one}")
        return
    made = None if folder is None else _load(folder)
    if log_dir is None:
        with files.lock(options.data_dir):
            left = _mend(options, options.data_dir / "kafka" / "kafka", folder, made)
    else:
        left = _mend(options, log_dir, folder, made)
    if left:
        sys.exit(1)


def _range(text: str) -> DamagedRange:
    found = _RANGE.fullmatch(text)
    if found is None:
        raise ConfigurationError(f"--give-up {text} is not a range of offsets such as messages/3:10-12")
    first, last = int(found[3]), int(found[4] or found[3])
    return DamagedRange(found[1], int(found[2]), first, last)


async def _give_up(opened: OpenDirectory, one: DamagedRange) -> None:
    if not opened.view.state.damage.covers(one):
        known = ", ".join(map(str, opened.view.state.damage)) or "none"
        raise ConfigurationError(f"the range {one} is not known to be damaged; known damage: {known}")
    await opened.control.append(mended(one, given_up=True, actor="shell"))


def _load(folder: Path) -> Manifest:
    made = manifest.load(folder)
    if made is None or made.kind != "all":
        raise ConfigurationError(f"{folder} holds no export of `everput export-all`")
    for _ in manifest.check(folder, made):
        pass
    return made


def _mend(options: Options, log_dir: Path, folder: Path | None, made: Manifest | None) -> int:
    """Restore damaged record batches where possible, and return how many remain damaged."""
    left = 0
    table = by_name(topics(KafkaSettings(bootstrap="", topic_prefix=options.topic_prefix)))
    with segments.stopped(log_dir):
        for name, topic in table.items():
            for number, path in segments.partitions(log_dir, topic.name):
                records_of = None if made is None or folder is None else partial(_records, folder, made, name, number)
                left += _mend_partition(path, f"{name}/{number}", records_of)
    return left


def _mend_partition(path: Path, place: str, records_of: Callable[[segments.DamagedBatch], list[Record]] | None) -> int:
    """Restore the damaged batches of one partition, and return how many remain damaged.

    `records_of` returns the records that an export has for a batch. A batch behind one with an altered length is found
    only after that one is restored.
    """
    damaged: list[str] = []
    mended = True
    while mended:
        mended, damaged = False, []
        for batch in list(segments.damaged(path)):
            offsets = f"{place} offsets {batch.first} to {batch.last}, in {batch.path.name}"
            records = [] if records_of is None else records_of(batch)
            whole = rebuilt(batch, records)
            if whole is None:
                why = "--export DIR puts it back" if records_of is None else why_not(batch, records)
                damaged.append(f"damaged: {offsets}: {why}")
            else:
                segments.put_back(batch, whole)
                mended = True
                say(f"mended: {offsets}")
    for text in damaged:
        say(text)
    return len(damaged)


def _records(folder: Path, made: Manifest, name: str, number: int, batch: segments.DamagedBatch) -> list[Record]:
    """Return the records of an export that may belong to a damaged batch, no more than a batch can hold."""
    found, size = list[Record](), 0
    for one in made.files:
        if one.topic == name and one.partition == number and (batch.until is None or one.first < batch.until):
            with (folder / one.name).open("rb") as file:
                for text in file:
                    row = record(text)
                    if row.offset < batch.first:
                        continue
                    size += _RECORD_BYTES + len(row.value or b"")
                    if size > segments.BATCH_BYTES_MAX or (batch.until is not None and row.offset >= batch.until):
                        return found
                    found.append(row)
    return found
