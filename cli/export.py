"""`everput export`: an organization's events as files.

For: the command, files of a bounded number of events, going on after a kill. Not for: the reading (cli/eventlog.py),
the manifest (cli/manifest.py), all organizations at once (cli/export_all.py)."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import click
import orjson
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from broker.errors import ConfigurationError
from cli import eventlog, manifest, parquet
from cli.api_options import api_options
from cli.manifest import Manifest
from cli.moments import Moment

FILE_EVENTS: Final = 100_000
_FILE_BYTES: Final = 128 << 20
_ENDINGS: Final = {"jsonl": "jsonl", "parquet": "parquet"}


@click.command("export")
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False), metavar="DIR")
@api_options
@click.option("--from", "begin", type=Moment(), help="Not before: 2026-01-31T12:00:00Z, 2026-01-31, or 15m (ago).")
@click.option("--to", "end", type=Moment(), help="Before this time; without it, now.")
@click.option("--format", "form", type=click.Choice(list(_ENDINGS)), default="jsonl", show_default=True)
def command(*, folder: Path, url: str, key: str, begin: str | None, end: str | None, form: str) -> None:
    """Write the organization's events to DIR, with a manifest of counts and SHA-256. The key needs the scope `audit`.

    An export that was broken off goes on when the command is given again, with the times of the first one. Secrets are
    not in it, so it can't be imported: that is for `everput export-all`.
    """
    if form == "parquet":
        parquet.check_installed()
    made = manifest.load(folder)
    query = {name: value for name, value in (("from", begin), ("to", end)) if value is not None}
    if made is None:
        folder.mkdir(parents=True, exist_ok=True)
        query.setdefault("to", datetime.now(UTC).isoformat(timespec="milliseconds"))
        made = Manifest(kind="organization", query={**query, "format": form})
    elif made.kind != "organization" or made.query["format"] != form:
        raise ConfigurationError(f"{folder} holds another export: {made.kind}, {made.query.get('format', 'jsonl')}")
    if not made.complete:
        _export(folder, made, url, key)
    click.echo(f"{sum(one.rows for one in made.files):,} events in {len(made.files):,} files in {folder}", err=True)


def _export(folder: Path, made: Manifest, url: str, key: str) -> None:
    query = {name: value for name, value in made.query.items() if name != "format"}
    if made.cursor:
        query["cursor"] = made.cursor
    console = Console(stderr=True)
    count = sum(one.rows for one in made.files)
    end_ms = datetime.fromisoformat(made.query["to"]).timestamp() * 1000
    begin_ms: float | None = None
    columns = TextColumn("{task.fields[count]:,} events"), BarColumn(), TimeElapsedColumn()
    with (
        eventlog.client(url, key) as asking,
        Progress(*columns, console=console, disable=not console.is_terminal) as bar,
    ):
        task = bar.add_task("export", total=None, count=count)
        held: list[bytes] = []
        size = 0
        for part in eventlog.read(asking, query):
            _check_owner(made, part)
            held += part.lines
            size += sum(map(len, part.lines))
            if len(held) >= FILE_EVENTS or size >= _FILE_BYTES:
                _write(folder, made, held, part.cursor)
                held, size = [], 0
            count += len(part.lines)
            if part.lines:
                log_ms = orjson.loads(part.lines[-1])["log_ms"]
                begin_ms = log_ms if begin_ms is None else begin_ms
                bar.update(task, total=max(1.0, end_ms - begin_ms), completed=log_ms - begin_ms, count=count)
        made.complete = True
        _write(folder, made, held, "")


def _check_owner(made: Manifest, part: eventlog.Part) -> None:
    """One folder, one organization: the key of another would go on with a cursor that is not its own."""
    if part.lines:
        owner = orjson.loads(part.lines[0])["event"]["organization_id"]
        made.organization_id = made.organization_id or owner
        if made.organization_id != owner:
            raise ConfigurationError("the folder holds the export of another organization")


def _write(folder: Path, made: Manifest, lines: list[bytes], cursor: str) -> None:
    """The next file, and the cursor after it."""
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
