"""A folder of exported files and its manifest: the files, their hashes, and where to continue.

For: writing for the owner's eyes only, so that a crash at any moment leaves whole files and a matching manifest, and
reading them back. Not for: what is exported (cli/exports/export.py, cli/exports/export_all.py) or imported
(cli/exports/restore.py).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import msgspec

from broker.errors import ConfigurationError
from broker.private_files import make_private

NAME: Final = "manifest.json"
FORMAT: Final = "everput-export"
_CHUNK_BYTES: Final = 1 << 20


class File(msgspec.Struct, kw_only=True):
    """A file of an export, as the manifest lists it."""

    name: str
    # The number of events or records in the file.
    rows: int
    size: int
    sha256: str
    # The file's topic and partition, and the offset of its first record. Only `everput export-all` sets them.
    topic: str = ""
    partition: int = 0
    first: int = 0


class Manifest(msgspec.Struct, kw_only=True):
    """The manifest of an export, which lists its files."""

    # The kind of export: `organization` for events of one organization, `all` for a whole installation.
    kind: str
    # For an export of one organization: the files' `format`, and the exported time range (`from` and `to`).
    query: dict[str, str] = {}
    files: list[File] = []
    complete: bool = False
    # The id of the organization whose events are exported. Empty if no event was read yet, or for a whole installation.
    organization_id: str = ""
    cursor: str = ""
    # For an export of a whole installation: the end offset of each partition of each exported topic.
    ends: dict[str, list[int]] = {}
    # For each partition (TOPIC/PARTITION): the offset at which an interrupted export continues.
    next: dict[str, int] = {}
    # For an export of a whole installation: the number of partitions of each exported topic except `control`.
    partitions: int = 0
    # The unreadable ranges of the log, whose records are missing in the files.
    damaged: list[str] = []
    format: str = FORMAT
    version: int = 1


def load(folder: Path) -> Manifest | None:
    """Load the manifest of an export's folder. Return None if there is no export yet: the folder is missing or empty,
    or has only unfinished files, whose names begin with a dot.

    Raises ConfigurationError if the folder holds something else or an export in another format, or if the manifest
    can't be read.
    """
    try:
        if not folder.exists() or all(path.name.startswith(".") for path in folder.iterdir()):  # only unfinished files
            return None
        manifest = msgspec.json.decode((folder / NAME).read_bytes(), type=Manifest)
    except FileNotFoundError:
        raise ConfigurationError(
            f"{folder} is not empty and holds no export (it has no {NAME}); choose another folder"
        ) from None
    except (OSError, msgspec.MsgspecError) as error:
        raise ConfigurationError(
            f"can't read the manifest {folder / NAME}: {error}; make it readable, or choose another folder"
        ) from error
    if manifest.format != FORMAT or manifest.version != 1:
        raise ConfigurationError(
            f"{folder / NAME} is in a format that this version of Everput can't read. Use the version of Everput that "
            "made the export."
        )
    return manifest


def save(folder: Path, manifest: Manifest) -> None:
    """Write the manifest of the export to its file. After a crash, the file holds the old or the new manifest."""
    _replace(folder / NAME, msgspec.json.format(msgspec.json.encode(manifest), indent=1))


def add(folder: Path, manifest: Manifest, name: str, rows: int, write: Callable[[Path], None], **place: Any) -> None:
    """Write a file of the export, add it to the manifest, and save the manifest. `write` is a function that writes the
    file's content to a path.
    """
    draft = folder / f".{name}"
    make_private(draft)
    write(draft)
    with draft.open("rb") as file:
        os.fsync(file.fileno())
    sha256, size = hash_of(draft)
    draft.replace(folder / name)
    manifest.files.append(File(name=name, rows=rows, size=size, sha256=sha256, **place))
    save(folder, manifest)


def begin_anew(folder: Path, manifest: Manifest) -> None:
    """Replace the manifest of the folder, and delete the files that the old manifest lists."""
    before = load(folder)
    save(folder, manifest)
    for one in () if before is None else before.files:
        (folder / one.name).unlink(missing_ok=True)


def digest(folder: Path) -> str:
    """Return the SHA-256 of the manifest in hex, which identifies the export."""
    return hash_of(folder / NAME)[0]


def check(folder: Path, manifest: Manifest) -> Iterator[int]:
    """Compare the size and the SHA-256 of each file of an export with the manifest, and yield the size of each file.
    Raises ConfigurationError if a file is missing or differs from the manifest.
    """
    for one in manifest.files:
        try:
            found = hash_of(folder / one.name)
        except OSError as error:
            raise ConfigurationError(
                f"{folder / one.name} can't be read: {error.strerror}. Use an intact copy of the export"
            ) from error
        if found != (one.sha256, one.size):
            raise ConfigurationError(
                f"{folder / one.name} is not the file that was exported: its SHA-256 differs. Use an intact copy of "
                "the export"
            )
        yield one.size


def hash_of(path: Path) -> tuple[str, int]:
    """Return the SHA-256 of a file in hex, and its size in bytes."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
            size += len(chunk)
    return digest.hexdigest(), size


def _replace(path: Path, content: bytes) -> None:
    draft = path.with_name(f".{path.name}")
    make_private(draft)
    with draft.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
