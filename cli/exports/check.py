"""`everput check`: compare the files of an export with its manifest.

For: the command, for exports of both kinds. Not for: the manifest (cli/exports/manifest.py), whether the events in the
files make sense (cli/commands/verify.py).
"""

from __future__ import annotations

from pathlib import Path

import click
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn

from broker.errors import ConfigurationError
from cli.exports import manifest, parquet
from cli.groups import examples
from cli.printing import say, stderr


@click.command("check", epilog=examples("everput check backup"))
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False, exists=True), metavar="DIR")
def command(folder: Path) -> None:
    """Compare the files of an export in DIR with its manifest: SHA-256, sizes and numbers of rows. No server is needed.

    DIR is a folder that `everput export` or `everput export-all` has written. The exit code is 2 if a file differs or
    is missing, or if the export is incomplete.
    """
    made = manifest.load(folder)
    if made is None:
        raise ConfigurationError(f"{folder} holds no export: it has no manifest; choose the folder of an export")
    console = stderr()
    columns = "{task.description}", BarColumn(), DownloadColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("checking", total=sum(one.size for one in made.files))
        for one, size in zip(made.files, manifest.check(folder, made), strict=True):
            rows = _rows(folder / one.name)
            if rows != one.rows:
                raise ConfigurationError(
                    f"{folder / one.name} has {rows:,} rows, but the manifest says {one.rows:,}; repeat the export to "
                    "another folder"
                )
            bar.advance(task, size)
    if not made.complete:
        raise ConfigurationError(
            f"the files in {folder} are intact, but the export is incomplete: to complete it, repeat the command that "
            "wrote it"
        )
    say(f"{sum(one.rows for one in made.files):,} rows in {len(made.files):,} files match the manifest")


def _rows(path: Path) -> int:
    if path.suffix == ".parquet":
        return parquet.rows(path)
    with path.open("rb") as file:
        return sum(1 for _ in file)
