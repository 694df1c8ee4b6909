"""Files and directories that only their owner may read or write: secrets, and the folders that hold them.

For: writing a secret so that a crash leaves all of it or nothing; reading it; refusing what other users could change.
Not for: which secrets there are (cli/files.py, broker/kafka/embedded/access.py)."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path

from broker.errors import ConfigurationError

_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_OTHERS = stat.S_IRWXG | stat.S_IRWXO


def write_secret(path: Path, secret: str) -> None:
    """Write one line with mode 0600. A crash leaves the old file or the new one; on return the new one is synced."""
    write_private(path, f"{secret}\n")
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def write_private(path: Path, text: str) -> None:
    """Replace the file by a new one with mode 0600, whatever the umask and the old file's mode are."""
    new = path.with_name(f".{path.name}.{os.getpid()}")
    make_private(new)
    with new.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)


def make_private(path: Path) -> None:
    """Put an empty file with mode 0600 in the place of whatever is there."""
    path.unlink(missing_ok=True)
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))


def read_secret(path: Path) -> str | None:
    """Return the only line of a file, or None if there is no file. Raises ConfigurationError if the file is unreadable
    or empty.
    """
    try:
        secret = path.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"can't read {path}: {getattr(error, 'strerror', None) or error}") from error
    if not secret:
        raise ConfigurationError(f"{path} is empty")
    return secret


def remove_secret(path: Path) -> None:
    """Delete the file, if there is one."""
    path.unlink(missing_ok=True)


def refuse_shared_file(path: Path) -> None:
    """Raise ConfigurationError if another user can read or write the file; do nothing if there is none."""
    with suppress(FileNotFoundError):
        found = path.stat()
        if found.st_mode & _OTHERS:
            raise ConfigurationError(f"other users can read or write {path}: `chmod go-rwx {path}`, and change it")
        _refuse_foreign(path, found)


def refuse_shared_directory(path: Path) -> None:
    """Raise ConfigurationError if another user can write to the directory."""
    found = path.stat()
    if found.st_mode & _OTHERS_WRITE:
        raise ConfigurationError(f"other users can write to the directory {path}: `chmod go-w {path}`")
    _refuse_foreign(path, found)


def _refuse_foreign(path: Path, found: os.stat_result) -> None:
    """Raise if the file belongs to another user. Root may use every user's files, and everybody may use root's."""
    mine = os.geteuid()
    if mine not in (0, found.st_uid) and found.st_uid != 0:
        raise ConfigurationError(f"{path} belongs to another user (uid {found.st_uid}): `chown {mine} {path}`")
