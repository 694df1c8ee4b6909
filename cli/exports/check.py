"""`everput check`: are the files of an export what was exported?

For: the command, for exports of either kind. Not for: the manifest (cli/exports/manifest.py), whether the events in
them make sense (cli/commands/verify.py)."""

from __future__ import annotations

from pathlib import Path

import click
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn

from broker.errors import ConfigurationError
from cli.exports import manifest, parquet
from cli.printing import say, stderr


@click.command("check")
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False, exists=True), metavar="DIR")
def command(folder: Path) -> None:
    """Compare the files of DIR with its manifest: their SHA-256, their sizes, how many rows they have.

    DIR is what `everput export` or `everput export-all` wrote. Nobody is asked. The exit code is 2 if a file is another
    or is missing, or the export was broken off.
    """
    made = manifest.load(folder)
    if made is None:
        raise ConfigurationError(f"{folder} holds no export")
    console = stderr()
    columns = "{task.description}", BarColumn(), DownloadColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("checking", total=sum(one.size for one in made.files))
        for one, size in zip(made.files, manifest.check(folder, made), strict=True):
            rows = _rows(folder / one.name)
            if rows != one.rows:
                raise ConfigurationError(f"{folder / one.name} has {rows:,} rows, and its manifest says {one.rows:,}")
            bar.advance(task, size)
    if not made.complete:
        raise ConfigurationError(f"{folder} is as far as it goes, but the export was broken off: give it again")
    say(f"{sum(one.rows for one in made.files):,} rows in {len(made.files):,} files are what was exported")


def _rows(path: Path) -> int:
    if path.suffix == ".parquet":
        return parquet.rows(path)
    with path.open("rb") as file:
        return sum(1 for _ in file)
