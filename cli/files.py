"""The files of the data directory: the API key, the first account's password, the sealing key, the lock.

For: reading them, and writing them so that a crash leaves either nothing or all of it, and nobody else can read it.
Not for: what is in the embedded Kafka's own folder (broker/kafka/embedded.py)."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from broker.errors import ConfigurationError
from broker.sealing import Sealer, new_sealing_key

SEALING_KEY_VARIABLE = "EVERPUT_SEALING_KEY"


def api_key_file(data_dir: Path) -> Path:
    return data_dir / "api-key"


def console_password_file(data_dir: Path) -> Path:
    return data_dir / "console-password"


def sealing_key_file(data_dir: Path) -> Path:
    return data_dir / "sealing-key"


def write_secret(path: Path, secret: str) -> None:
    """Write a line that only the owner can read, all of it or nothing, and have it on the disk on return."""
    new = path.with_name(f".{path.name}.{os.getpid()}")
    with suppress(FileNotFoundError):
        new.unlink()
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(secret + "\n")
        file.flush()
        os.fsync(descriptor)
    new.replace(path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def read_secret(path: Path) -> str | None:
    """The line; None when there is no such file (ConfigurationError when it can't be read or is empty)."""
    try:
        secret = path.read_text().strip()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigurationError(f"can't read {path}: {error.strerror}") from error
    if not secret:
        raise ConfigurationError(f"{path} is empty")
    return secret


def remove_secret(path: Path) -> None:
    path.unlink(missing_ok=True)


def make_data_dir(data_dir: Path) -> None:
    """Make it if it is missing (ConfigurationError when it can't be made or written to)."""
    try:
        data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise ConfigurationError(f"can't make the data directory {data_dir}: {error.strerror}") from error
    if not os.access(data_dir, os.W_OK | os.X_OK):
        raise ConfigurationError(f"can't write to the data directory {data_dir}")


def server_id(data_dir: Path) -> str:
    """What tells this data directory's server from all others; made by the first call."""
    path = data_dir / "server-id"
    found = read_secret(path)
    if found is None:
        found = secrets.token_hex(8)
        write_secret(path, found)
    return found


def lock(data_dir: Path) -> FileLock:
    """Hold it as long as the server runs (ConfigurationError when another one does)."""
    held = FileLock(data_dir / "serve.lock")
    try:
        held.acquire(timeout=0)
    except Timeout:
        raise ConfigurationError(f"another `everput serve` is running on the data directory {data_dir}") from None
    return held


def sealing_key(data_dir: Path, *, make: bool = False) -> str:
    """From the environment, else from the file (ConfigurationError when there is none or it is no such key).

    make: write a new one to the file when there is none.
    """
    path = sealing_key_file(data_dir)
    key = os.environ.get(SEALING_KEY_VARIABLE) or read_secret(path)
    if key is None and make:
        key = new_sealing_key()
        write_secret(path, key)
    if key is None:
        raise ConfigurationError(
            f"no sealing key: set {SEALING_KEY_VARIABLE}, the same everywhere, or have it in {path}"
        )
    Sealer(key)
    return key
