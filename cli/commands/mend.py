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

from broker.core.codec import encode
from broker.core.damage import DamagedRange
from broker.damage import mended
from broker.errors import ConfigurationError
from broker.kafka.embedded import segments
from broker.kafka.embedded.lost import CONTROL, Lost, batches_of, lost, put_in, replace
from broker.kafka.embedded.rebuild import rebuilt, why_not
from broker.kafka.topics import Topics, by_name, topics
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

_RECORD_BYTES: Final = 8  # a Kafka record takes at least about 8 bytes more than its value
# This regular expression takes linear time on any input: its only unbounded repetition ends at a `/`.
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
    """Find damaged record batches in the files of a stopped Kafka, and restore them from an export.

    A batch is restored only if the result is proved to be the original, by the batch's checksum or by its bytes in the
    file. In the embedded Kafka, missing records are restored from the export, too. The topic `outstanding` is an
    exception: workers restore its missing records.

    If another broker of a cluster has an undamaged copy, don't restore the batch: make that broker the partition's
    leader. After the next start, deliveries that were parked because of the damage are attempted again.

    If records can't be restored, use --give-up on a running installation: it cancels the deliveries that are parked
    because the given offsets are damaged. For offsets of the topic `control`, stop the installation first. The changes
    that these records of `control` made are then lost.

    The exit code is 1 if a batch remains damaged, or records remain missing.
    """
    if give_up is not None:
        if folder is not None or log_dir is not None:
            raise click.UsageError(
                "--give-up can't be combined with --export or --log-dir: offsets of the topic `control` can be given "
                "up only in the embedded Kafka of --data-dir, and those of other topics only in a running installation"
            )
        one = _range(give_up)
        if one.topic == CONTROL:
            _give_up_control(options, one)
        else:
            in_directory(options, lambda opened: _give_up(opened, one))
        say(f"given up: {one}")
        return
    made = None if folder is None else _load(folder)
    if log_dir is None:
        with files.lock(options.data_dir):
            left = _mend(options, _log_dir(options), folder, made, embedded=True)
    else:
        left = _mend(options, log_dir, folder, made)
    if left:
        sys.exit(1)


def _log_dir(options: Options) -> Path:
    return options.data_dir / "kafka" / "kafka"


def _range(text: str) -> DamagedRange:
    found = _RANGE.fullmatch(text)
    if found is None:
        raise ConfigurationError(f"--give-up {text} is not a range of offsets such as messages/3:10-12")
    first, last = int(found[3]), int(found[4] or found[3])
    return DamagedRange(found[1], int(found[2]), first, last)


async def _give_up(opened: OpenDirectory, one: DamagedRange) -> None:
    if not opened.view.state.damage.covers(one):
        known = ", ".join(map(str, opened.view.state.damage)) or "none"
        raise ConfigurationError(
            f"the range {one} has offsets that are not known as damaged, so nothing was given up as lost; choose a "
            f"range within: {known}"
        )
    await opened.control.append(mended(one, given_up=True, actor="shell"))


def _give_up_control(options: Options, one: DamagedRange) -> None:
    """Replace an unreadable range of the topic `control` by one event, in the files of the stopped embedded Kafka. The
    event says that an operator has given up the range.

    The event can't be appended at the end of `control`, because Everput appends nothing to `control` while a part of it
    is unreadable. Raises ConfigurationError if the range is not exactly one of the damaged or missing ranges.
    """
    topic, log_dir = by_name(_topics(options))[CONTROL].name, _log_dir(options)
    event = mended(one, given_up=True, actor="shell")
    record = Record(one.last, event.at_ms, b"", encode(event), ())
    batch = batches_of([record], one.first)
    with files.lock(options.data_dir), segments.stopped(log_dir):
        folder = log_dir / f"{topic}-{one.partition}"
        damaged = {(found.first, found.last): found for found in segments.damaged(folder)}
        missing = {(found.first, found.last) for found in _lost(log_dir, folder, topic, one.partition)}
        if (one.first, one.last) in damaged:
            replace(damaged[one.first, one.last], batch)
        elif (one.first, one.last) in missing:
            put_in(folder, one.first, batch)
        else:
            known = ", ".join(f"{CONTROL}/0:{first}-{last}" for first, last in sorted({*damaged, *missing})) or "none"
            raise ConfigurationError(
                f"the range {one} is not exactly one of the damaged or missing ranges of `control`, so nothing was "
                f"given up as lost; choose one of: {known}"
            )


def _lost(log_dir: Path, folder: Path, topic: str, partition: int) -> list[Lost]:
    noted = segments.acknowledged(log_dir).get((topic, partition), 0)
    return list(lost(folder, noted, begin=0 if topic.endswith(CONTROL) else None))


def _topics(options: Options) -> Topics:
    return topics(KafkaSettings(bootstrap="", topic_prefix=options.topic_prefix))


def _load(folder: Path) -> Manifest:
    made = manifest.load(folder)
    if made is None or made.kind != "all":
        raise ConfigurationError(f"{folder} holds no backup; choose a folder that `everput export-all` has written")
    for _ in manifest.check(folder, made):
        pass
    return made


def _mend(
    options: Options, log_dir: Path, folder: Path | None, made: Manifest | None, *, embedded: bool = False
) -> int:
    """Restore damaged record batches where possible. Return how many problems remain: damaged batches plus missing
    ranges of offsets.

    With `embedded`, also restore missing offsets, except in compacted topics and in partitions where damaged batches
    remain. In a cluster, a broker gets missing offsets from the other brokers instead.
    """
    left = 0
    table = by_name(_topics(options))
    with segments.stopped(log_dir):
        for name, topic in table.items():
            holes = "compact" in topic.config["cleanup.policy"]
            for number, path in segments.partitions(log_dir, topic.name):
                records_of = None if made is None or folder is None else partial(_records, folder, made, name, number)
                damaged = _mend_partition(path, f"{name}/{number}", records_of)
                if embedded and not damaged and not holes:
                    missing = _lost(log_dir, path, topic.name, number)
                    damaged = sum(not _put_in(one, f"{name}/{number}", records_of) for one in missing)
                left += damaged
    return left


_RecordsOf = Callable[[int, int | None], list[Record]]


def _put_in(missing: Lost, place: str, records_of: _RecordsOf | None) -> bool:
    """Restore missing offsets of a partition from an export. Stop at the first missing offset that is not in the
    export.

    Return whether all missing offsets were restored.
    """
    at = missing.first
    while records_of is not None and at <= missing.last:
        records = [one for number, one in enumerate(records_of(at, missing.last + 1)) if one.offset == at + number]
        if not records:
            break
        put_in(missing.folder, at, batches_of(records, at))
        say(f"mended: {place} offsets {at} to {records[-1].offset}, which were missing")
        at = records[-1].offset + 1
    if at > missing.last:
        return True
    why = "--export DIR puts them back" if records_of is None else "the export does not hold them"
    why += _or_give_up(place, at, missing.last)
    say(f"damaged: {place} offsets {at} to {missing.last} are missing: {why}")
    return False


def _or_give_up(place: str, first: int, last: int) -> str:
    """Return a hint that follows a message about a damaged range of the topic `control`: which option gives the range
    up. For other topics, return an empty text.
    """
    return f"; --give-up {place}:{first}-{last} gives up what it said" if place.startswith(CONTROL) else ""


def _mend_partition(path: Path, place: str, records_of: _RecordsOf | None) -> int:
    """Restore the damaged record batches of one partition, and return how many remain damaged.

    `records_of(begin, end)` returns the export's records at the offsets [begin, end), or from `begin` on if `end` is
    None. If the length of a batch is damaged, the next damaged batches are found only after this batch is restored. So
    search again whenever a batch was restored.
    """
    damaged: list[str] = []
    mended = True
    while mended:
        mended, damaged = False, []
        for batch in list(segments.damaged(path)):
            offsets = f"{place} offsets {batch.first} to {batch.last}, in {batch.path.name}"
            records = [] if records_of is None else records_of(batch.first, batch.until)
            whole = rebuilt(batch, records)
            if whole is None:
                why = "--export DIR puts it back" if records_of is None else why_not(batch, records)
                why += _or_give_up(place, batch.first, batch.last)
                damaged.append(f"damaged: {offsets}: {why}")
            else:
                segments.put_back(batch, whole)
                mended = True
                say(f"mended: {offsets}")
    for text in damaged:
        say(text)
    return len(damaged)


def _records(
    folder: Path, made: Manifest, name: str, number: int, first_offset: int, until: int | None
) -> list[Record]:
    """Return a partition's records in an export at the offsets from `first_offset` up to, but not including, `until`.
    If one record batch can't hold all these records, leave out the last ones.
    """
    found, size = list[Record](), 0
    for one in made.files:
        if one.topic == name and one.partition == number and (until is None or one.first < until):
            with (folder / one.name).open("rb") as file:
                for text in file:
                    row = record(text)
                    if row.offset < first_offset:
                        continue
                    size += _RECORD_BYTES + len(row.value or b"")
                    if size > segments.BATCH_BYTES_MAX or (until is not None and row.offset >= until):
                        return found
                    found.append(row)
    return found
