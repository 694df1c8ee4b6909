"""The files of the data directory: the API key, the console's password, the sealing key, the lock.

For: their paths, and secrets from the environment or from files that it names. Not for: reading and writing a secret
(broker/private_files.py), the embedded Kafka's own folder (broker/kafka/embedded/kafka.py).
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from filelock import FileLock, Timeout

from broker.errors import ConfigurationError
from broker.private_files import read_secret, refuse_shared_directory, refuse_shared_file, write_secret
from broker.sealing import MAKE_KEY, Sealer, new_sealing_key

SEALING_KEY_VARIABLE = "EVERPUT_SEALING_KEY"


def api_key_file(data_dir: Path) -> Path:
    return data_dir / "api-key"


def url_file(data_dir: Path) -> Path:
    return data_dir / "url"


def console_password_file(data_dir: Path) -> Path:
    return data_dir / "console-password"


def sealing_key_file(data_dir: Path) -> Path:
    return data_dir / "sealing-key"


def secret_setting(variable: str) -> str | None:
    """Return a secret from an environment variable, or from the file that `<variable>_FILE` names. Return None if both
    variables are unset or empty.

    Raises ConfigurationError if both variables are set, or if the file is missing, unreadable or empty.
    """
    secret, file = os.environ.get(variable), os.environ.get(f"{variable}_FILE")
    if secret and file:
        raise ConfigurationError(f"{variable} and {variable}_FILE are both set: unset one of them")
    if not file:
        return secret or None
    found = read_secret(Path(file))
    if found is None:
        raise ConfigurationError(f"{variable}_FILE names a file that does not exist: {file}")
    return found


def make_data_dir(data_dir: Path) -> None:
    """Create the data directory with mode 0700 if it is missing.

    Raises ConfigurationError if the directory can't be created or written to. Also raises it if other users can change
    the directory, or read a secret in it.
    """
    try:
        data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise ConfigurationError(
            f"can't create the data directory {data_dir}: {error.strerror}; choose another with --data-dir"
        ) from error
    if not os.access(data_dir, os.W_OK | os.X_OK):
        raise ConfigurationError(
            f"can't write to the data directory {data_dir}; change its owner or permissions, or choose another "
            "directory with --data-dir"
        )
    refuse_shared_directory(data_dir)
    for path in (api_key_file(data_dir), console_password_file(data_dir), sealing_key_file(data_dir)):
        refuse_shared_file(path)


def server_id(data_dir: Path) -> str:
    """Return the id of this data directory's server. The first call creates it."""
    path = data_dir / "server-id"
    found = read_secret(path)
    if found is None:
        found = secrets.token_hex(8)
        write_secret(path, found)
    return found


def lock(data_dir: Path) -> FileLock:
    """Lock the data directory for a command. Raises ConfigurationError if another command has locked it."""
    held = FileLock(data_dir / "serve.lock")
    try:
        held.acquire(timeout=0)
    except Timeout:
        raise ConfigurationError(
            "another `everput serve`, `import`, `mend` or `rotate-sealing-key` is using the data directory "
            f"{data_dir}; stop it, or choose another directory"
        ) from None
    return held


def sealing_key(data_dir: Path, *, make: bool = False) -> str:
    """Return the sealing key from the environment, or else from the file DIR/sealing-key. With `make`, create a missing
    key.

    Raises ConfigurationError if there is no key, if the key is invalid, or if other users can read the file
    DIR/sealing-key that holds the key.
    """
    path = sealing_key_file(data_dir)
    sealing_key = secret_setting(SEALING_KEY_VARIABLE)
    if sealing_key is None:
        refuse_shared_file(path)
        sealing_key = read_secret(path)
    if sealing_key is None and make:
        sealing_key = new_sealing_key()
        write_secret(path, sealing_key)
    if sealing_key is None:
        raise ConfigurationError(
            f"no sealing key: set {SEALING_KEY_VARIABLE} or {SEALING_KEY_VARIABLE}_FILE, or put the key into {path}. "
            "All processes of an installation need the same key: 32 bytes in url-safe base64. Only for a new "
            f"installation, make a key with this command: {MAKE_KEY}"
        )
    Sealer(sealing_key)
    return sealing_key
