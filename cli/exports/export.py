"""`everput export`: write an organization's events to files.

For: the command, files with a bounded number of events, continuing after a kill. Not for: reading (cli/log_client.py),
the manifest (cli/exports/manifest.py), all organizations at once (cli/exports/export_all.py).
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Self

import click
import orjson
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from broker.errors import ConfigurationError
from cli import log_client
from cli.api_options import api_options
from cli.exports import manifest, parquet
from cli.exports.manifest import Manifest
from cli.groups import examples
from cli.printing import say, stderr
from cli.times import Time

FILE_EVENTS: Final = 100_000
_FILE_BYTES: Final = 128 << 20
_ENDINGS: Final = {"jsonl": "jsonl", "parquet": "parquet"}


@click.command(
    "export",
    epilog=examples("everput export events --from 30d", "everput export events --format parquet"),
)
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False), metavar="DIR")
@api_options
@click.option(
    "--from", "begin", type=Time(), help="Start of the time range: 2026-01-31T12:00:00Z, 2026-01-31, or 15m (ago)."
)
@click.option("--to", "end", type=Time(), help="End of the time range.  [default: now]")
@click.option(
    "--format",
    "form",
    type=click.Choice(list(_ENDINGS)),
    default="jsonl",
    show_default=True,
    help="Format of the files.",
)
def command(*, folder: Path, url: str, key: str, begin: str | None, end: str | None, form: str) -> None:
    """Write the organization's events to DIR, with a manifest that has the number of events and the SHA-256 of each
    file. The key needs the scope `audit`.

    If an export is interrupted, repeat the command: it continues with the time range of the first run. For another time
    range than that of a complete export, choose another DIR. Secrets are left out, so the files can't be imported. For
    a backup, use `everput export-all`.
    """
    if form == "parquet":
        parquet.check_installed()
    made = manifest.load(folder)
    query = {name: value for name, value in (("from", begin), ("to", end)) if value is not None}
    if made is None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        query.setdefault("to", datetime.now(UTC).isoformat(timespec="milliseconds"))
        made = Manifest(kind="organization", query={**query, "format": form})
    elif made.kind != "organization" or made.query["format"] != form:
        raise ConfigurationError(
            f"{folder} holds an export of another kind or format ({made.kind}, {made.query.get('format', 'jsonl')}); "
            "choose another folder"
        )
    if not made.complete:
        _export(folder, made, url, key)
    elif not _same(begin, made.query.get("from")) or (end is not None and not _same(end, made.query["to"])):
        span = f"{made.query.get('from', 'the beginning')} to {made.query['to']}"
        raise ConfigurationError(
            f"{folder} holds a complete export from {span}; use another folder for another time range"
        )
    say(f"{sum(one.rows for one in made.files):,} events in {len(made.files):,} files in {folder}", err=True)


def _same(one: str | None, other: str | None) -> bool:
    return one == other or bool(one and other and datetime.fromisoformat(one) == datetime.fromisoformat(other))


def _export(folder: Path, made: Manifest, url: str, key: str) -> None:
    query = {name: value for name, value in made.query.items() if name != "format"}
    if made.cursor:
        query["cursor"] = made.cursor
    console = stderr()
    count = sum(one.rows for one in made.files)
    end_ms = datetime.fromisoformat(made.query["to"]).timestamp() * 1000
    begin_ms: float | None = None
    columns = TextColumn("{task.fields[count]:,} events"), BarColumn(), TimeElapsedColumn()
    with (
        log_client.client(url, key) as http_client,
        Progress(*columns, console=console, disable=not console.is_terminal) as bar,
        _Writer(folder, made) as writer,
    ):
        task = bar.add_task("export", total=None, count=count)
        for part in log_client.read(http_client, query):
            _check_owner(made, part)
            writer.add(part)
            count += len(part.lines)
            if part.lines:
                log_ms = orjson.loads(part.lines[-1])["log_ms"]
                begin_ms = log_ms if begin_ms is None else begin_ms
                bar.update(task, total=max(1.0, end_ms - begin_ms), completed=log_ms - begin_ms, count=count)
        writer.finish()


class _Writer:
    """A writer that splits an organization's events into files of limited size. A background thread writes one file
    while the events for the next file are read.
    """

    def __init__(self, folder: Path, made: Manifest) -> None:
        self._folder = folder
        self._made = made
        self._thread = ThreadPoolExecutor(1)
        self._writing: Future[None] | None = None
        self._lines: list[bytes] = []
        self._size = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown()

    def add(self, part: log_client.Part) -> None:
        self._lines += part.lines
        self._size += sum(map(len, part.lines))
        if len(self._lines) >= FILE_EVENTS or self._size >= _FILE_BYTES:
            self._wait()
            self._writing = self._thread.submit(_write, self._folder, self._made, self._lines, part.cursor)
            self._lines, self._size = [], 0

    def finish(self) -> None:
        """Write the last file, and record in the manifest that the export is complete."""
        self._wait()
        self._made.complete = True
        _write(self._folder, self._made, self._lines, "")

    def _wait(self) -> None:
        """Wait until the previous file of the export is written. So at most two files are in memory: one that is being
        written, and the next. If the previous file could not be written, raise the error.
        """
        if self._writing is not None:
            self._writing.result()


def _check_owner(made: Manifest, part: log_client.Part) -> None:
    """Refuse an API key of another organization than the one whose export is in the folder. The export's cursor is
    valid for its own organization only.
    """
    if part.lines:
        owner = orjson.loads(part.lines[0])["event"]["organization_id"]
        made.organization_id = made.organization_id or owner
        if made.organization_id != owner:
            raise ConfigurationError(
                "the folder holds an export of another organization than the API key's; choose another folder, or "
                "use a key of that organization"
            )


def _write(folder: Path, made: Manifest, lines: list[bytes], cursor: str) -> None:
    """Write the next file of the export, and store in the manifest the cursor from which the export continues."""
    if not made.files:
        # Write the manifest before the first file: if the command is killed, the folder still counts as an export.
        manifest.save(folder, made)
    made.cursor = cursor
    if not lines:
        manifest.save(folder, made)
        return
    form = made.query["format"]

    def write(path: Path) -> None:
        if form == "parquet":
            parquet.write(path, lines)
        else:
            path.write_bytes(b"\n".join(lines) + b"\n")

    manifest.add(folder, made, f"events-{len(made.files) + 1:06d}.{_ENDINGS[form]}", len(lines), write)
