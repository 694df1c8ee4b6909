"""Files and directories that only their owner may read or write, such as secrets.

For: writing a secret so that a crash leaves the old or the new one, reading it, and refusing files that other users
could change. Not for: which secrets exist (cli/files.py, broker/kafka/embedded/access.py).
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path

from broker.errors import ConfigurationError

_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_OTHERS = stat.S_IRWXG | stat.S_IRWXO


def write_secret(path: Path, secret: str) -> None:
    """Write a secret as a file's only line, with mode 0600. If the process or the machine crashes meanwhile, the file
    has either the old or the new secret.
    """
    write_private(path, f"{secret}\n")
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def write_private(path: Path, text: str) -> None:
    """Replace a file by a new one with mode 0600. The umask and the old file's mode have no effect on this mode."""
    new = path.with_name(f".{path.name}.{os.getpid()}")
    make_private(new)
    with new.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)


def make_private(path: Path) -> None:
    """Create an empty file with mode 0600. Delete an existing file first."""
    path.unlink(missing_ok=True)
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))


def read_secret(path: Path) -> str | None:
    """Return the only line of a file. Return None if there is no file.

    Raises ConfigurationError if the file can't be read or is empty.
    """
    try:
        secret = path.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(
            f"can't read {path}: {getattr(error, 'strerror', None) or error}; check the file and its permissions"
        ) from error
    if not secret:
        raise ConfigurationError(
            f"{path} is empty, but must hold a secret: restore the file from a backup, or delete it if the "
            "secret is no longer needed"
        )
    return secret


def remove_secret(path: Path) -> None:
    """Delete the file, if there is one."""
    path.unlink(missing_ok=True)


def refuse_shared_file(path: Path) -> None:
    """Raise ConfigurationError if another user can read or write the file. Do nothing if there is no file."""
    with suppress(FileNotFoundError):
        found = path.stat()
        if found.st_mode & _OTHERS:
            raise ConfigurationError(
                f"other users can read or write {path}: run `chmod go-rwx {path}`. They may know its secret: "
                "replace a sealing key with `everput rotate-sealing-key`, create a new API key and revoke the old one, "
                "or change a password"
            )
        _refuse_foreign(path, found)


def refuse_shared_directory(path: Path) -> None:
    """Raise ConfigurationError if another user can write to the directory."""
    found = path.stat()
    if found.st_mode & _OTHERS_WRITE:
        raise ConfigurationError(f"other users can write to the directory {path}: run `chmod go-w {path}`")
    _refuse_foreign(path, found)


def _refuse_foreign(path: Path, found: os.stat_result) -> None:
    """Raise ConfigurationError if another user owns the file. Files of root are accepted, and root accepts the files of
    all users.
    """
    mine = os.geteuid()
    if mine not in (0, found.st_uid) and found.st_uid != 0:
        raise ConfigurationError(
            f"{path} belongs to another user (uid {found.st_uid}): run `chown {mine} {path}` as root"
        )
