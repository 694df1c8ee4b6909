"""The options of every command that asks the REST API: where it is, and the key.

For: `--url`, `--key`, `--data-dir`, and finding the key. Not for: asking (cli/publish.py)."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import click

from broker.errors import ConfigurationError
from broker.private_files import read_secret
from cli import files

KEY_VARIABLE: Final = "EVERPUT_API_KEY"

_OPTIONS = (
    click.option(
        "--url",
        default="http://127.0.0.1:8080",
        envvar="EVERPUT_URL",
        show_default=True,
        show_envvar=True,
        help="Where the API is.",
    ),
    click.option(
        "--key",
        envvar=KEY_VARIABLE,
        show_envvar=True,
        help=f"The API key; without it, what is in the file that {KEY_VARIABLE}_FILE names, or in DIR/api-key.",
    ),
    click.option(
        "--data-dir",
        type=click.Path(path_type=Path, file_okay=False),
        default=Path("data"),
        envvar="EVERPUT_DATA_DIR",
        show_default=True,
        show_envvar=True,
        metavar="DIR",
        help="Where the server keeps its api-key.",
    ),
)


def api_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator: the command is called with `url` and `key` (ConfigurationError when there is no key)."""

    @functools.wraps(command)
    def with_key(*, key: str | None, data_dir: Path, **values: Any) -> Any:
        found = key or files.secret_setting(KEY_VARIABLE) or read_secret(files.api_key_file(data_dir))
        if found is None:
            raise ConfigurationError(
                f"no API key: give --key, set {KEY_VARIABLE}, or start where {files.api_key_file(data_dir)} is"
            )
        return command(key=found, **values)

    decorated: Callable[..., Any] = with_key
    for option in reversed(_OPTIONS):
        decorated = option(decorated)
    return decorated
