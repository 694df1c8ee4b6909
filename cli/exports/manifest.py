"""A folder of exported files and its manifest: what is in them, how many, their hashes, and where to go on.

For: writing, for the owner's eyes only, so that a crash at any moment leaves whole files and a manifest that knows
them; reading back what was written, and nothing else. Not for: what is exported (cli/exports/export.py,
cli/exports/export_all.py) or imported (cli/exports/restore.py)."""

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
    """A file of an export.

    rows: how many events or records it has.
    topic, partition, first: where its first row was in Kafka (first: its offset). Only `everput export-all` sets them.
    """

    name: str
    rows: int
    size: int
    sha256: str
    topic: str = ""
    partition: int = 0
    first: int = 0


class Manifest(msgspec.Struct, kw_only=True):
    """The manifest of an export.

    kind: `organization` or `all`.
    query: what was asked for.
    cursor: where an interrupted export continues.
    organization_id: of the events; empty while there are none, or in an export of all.
    ends: in an export of all, by topic, where each partition ends.
    next: by topic and partition, where to continue.
    partitions: of all topics but `control`.
    damaged: unreadable ranges, which the files don't have.
    """

    kind: str
    query: dict[str, str] = {}
    files: list[File] = []
    complete: bool = False
    organization_id: str = ""
    cursor: str = ""
    ends: dict[str, list[int]] = {}
    next: dict[str, int] = {}
    partitions: int = 0
    damaged: list[str] = []
    format: str = FORMAT
    version: int = 1


def load(folder: Path) -> Manifest | None:
    """Load the folder's manifest; None when the folder is empty or missing (ConfigurationError: it is something
    else's).
    """
    try:
        if not folder.exists() or all(path.name.startswith(".") for path in folder.iterdir()):  # drafts, at most
            return None
        manifest = msgspec.json.decode((folder / NAME).read_bytes(), type=Manifest)
    except FileNotFoundError:
        raise ConfigurationError(
            f"{folder} is not empty and holds no export (it has no {NAME}); choose another folder"
        ) from None
    except (OSError, msgspec.MsgspecError) as error:
        raise ConfigurationError(f"{folder} can't be used: {error}") from error
    if manifest.format != FORMAT or manifest.version != 1:
        raise ConfigurationError(f"{folder / NAME} was written by another version of Everput; use that version")
    return manifest


def save(folder: Path, manifest: Manifest) -> None:
    """Save the manifest completely or not at all. It is on the disk on return."""
    _replace(folder / NAME, msgspec.json.format(msgspec.json.encode(manifest), indent=1))


def add(folder: Path, manifest: Manifest, name: str, rows: int, write: Callable[[Path], None], **place: Any) -> None:
    """Write a file, and then the manifest that lists it. write: fills the empty file at the given path."""
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
    """Replace the folder's manifest, and delete the files of the old one."""
    before = load(folder)
    save(folder, manifest)
    for one in () if before is None else before.files:
        (folder / one.name).unlink(missing_ok=True)


def digest(folder: Path) -> str:
    """Return the SHA-256 of the manifest in hex, which names the export."""
    return hash_of(folder / NAME)[0]


def check(folder: Path, manifest: Manifest) -> Iterator[int]:
    """Hash all files again, and yield the size of each.
    Raises ConfigurationError if a file differs from what was exported.
    """
    for one in manifest.files:
        try:
            found = hash_of(folder / one.name)
        except OSError as error:
            raise ConfigurationError(f"{folder / one.name} can't be read: {error.strerror}") from error
        if found != (one.sha256, one.size):
            raise ConfigurationError(f"{folder / one.name} is not the file that was exported: its SHA-256 differs")
        yield one.size


def hash_of(path: Path) -> tuple[str, int]:
    """(SHA-256 in hex, bytes)."""
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
