"""The options of every command that uses the REST API: the server's URL and the API key.

For: `--url`, `--key`, `--profile`, `--data-dir`, and finding a URL and a key that belong together. Not for: requests
(api_commands.py).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

import click

from broker.errors import ConfigurationError
from broker.private_files import read_secret
from cli import files, profiles

KEY_VARIABLE: Final = "EVERPUT_API_KEY"
URL_DEFAULT: Final = "http://127.0.0.1:8080"

_OPTIONS = (
    click.option(
        "--url",
        envvar="EVERPUT_URL",
        show_envvar=True,
        help=f"URL of the server. Default: the one in DIR/url, else the profile's, else {URL_DEFAULT}.",
    ),
    click.option(
        "--key",
        envvar=KEY_VARIABLE,
        show_envvar=True,
        help=f"API key. Default: that in the file named by {KEY_VARIABLE}_FILE, in DIR/api-key, or in the profile. The "
        "latter two are sent only to the server that they are for.",
    ),
    click.option(
        "--profile",
        envvar="EVERPUT_PROFILE",
        show_envvar=True,
        metavar="NAME",
        help="Profile of `everput login` to use. Default: DIR/api-key if there is one, else the profile that "
        "`everput profiles list` marks.",
    ),
    click.option(
        "--data-dir",
        type=click.Path(path_type=Path, file_okay=False),
        default=Path("data"),
        envvar="EVERPUT_DATA_DIR",
        show_default=True,
        show_envvar=True,
        metavar="DIR",
        help="Data directory of a server on this machine.",
    ),
)


class Connection(NamedTuple):
    """The URL of a server, and an API key for that server."""

    url: str
    key: str


def connection(*, url: str | None, key: str | None, profile: str | None, data_dir: Path) -> Connection:
    """Find the server's URL and the API key for a command.

    A key of `--key` or the environment is sent to any `url`. A stored key is sent only to its own server: a profile's
    key to the profile's URL, and the key in the file DIR/api-key to the URL in the file DIR/url (DIR is `data_dir`). If
    DIR/url does not exist, the key in DIR/api-key is sent to URL_DEFAULT.

    If neither a key nor a profile is given, the key in DIR/api-key is preferred to a profile's key, unless `url` is
    another server's URL. Raises ConfigurationError if there is no key for the server, or if only `profile` and `url`
    are given, but the profile is for another URL.
    """
    key = key or files.secret_setting(KEY_VARIABLE)
    if profile is not None:
        chosen = profiles.load().find(profile)
        if key is None and url is not None and not profiles.same_url(url, chosen.url):
            raise ConfigurationError(
                f"the profile {profile} is for {chosen.url}, not for {url}: leave out --profile or --url (also "
                f"EVERPUT_PROFILE and EVERPUT_URL), or give a key for {url} with --key"
            )
        return Connection(url or chosen.url, key or chosen.key)
    known = profiles.load()
    here = read_secret(files.api_key_file(data_dir))
    at = read_secret(files.url_file(data_dir))
    current = known.by_name.get(known.current or "")
    if key is None and url is not None:
        saved = known.of_url(url)
        if here is not None and _same_server(at or URL_DEFAULT, url):
            key = here
        elif saved is not None:
            key = saved.key
        else:
            raise ConfigurationError(
                f"no API key for {url}: give --key, set {KEY_VARIABLE}, or run `everput login --url {url}`"
                + ("" if here is None else f" ({files.api_key_file(data_dir)} is the key of {at or URL_DEFAULT})")
            )
    elif key is None and here is not None:
        key, url = here, at or URL_DEFAULT
    elif key is None and current is not None:
        key, url = current.key, current.url
    if key is None:
        raise ConfigurationError(
            f"no API key: run `everput login`, give --key, set {KEY_VARIABLE}, or give the server's data directory "
            f"with --data-dir (there is no file {files.api_key_file(data_dir)})"
        )
    if url is None and at is not None and is_here(at):
        url = at
    return Connection(url or (URL_DEFAULT if current is None else current.url), key)


def is_here(url: str) -> bool:
    """Return whether the host of a URL is this machine: `localhost`, a loopback address, 0.0.0.0 or `::`.

    If the user gives a key but no URL, the key is sent to the URL in the file DIR/url only if this URL's host is this
    machine. Without this check, a person who can write the file DIR/url could have the key sent to another server.
    """
    host = urlsplit(url).hostname or ""
    try:
        address = ip_address(host)
    except ValueError:
        return host == "localhost"
    return address.is_loopback or address.is_unspecified


def _same_server(one: str, other: str) -> bool:
    """Return whether two URLs have the same scheme, host and port. All hosts for which is_here() returns True count as
    the same host.
    """
    try:
        return _origin(one) == _origin(other)
    except ValueError:  # At least one of the two URLs is not valid.
        return False


def _origin(url: str) -> tuple[str, str, int | None]:
    parts = urlsplit(url)
    host = "localhost" if is_here(url) else parts.hostname or ""
    return parts.scheme, host, parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def api_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options `--url`, `--key`, `--profile` and `--data-dir` to a command.

    The command's function gets the server's URL as `url` and the API key as `key`. If there is no key for the server,
    ConfigurationError is raised.
    """

    @functools.wraps(command)
    def with_key(*, url: str | None, key: str | None, profile: str | None, data_dir: Path, **values: Any) -> Any:
        found = connection(url=url, key=key, profile=profile, data_dir=data_dir)
        return command(url=found.url, key=found.key, **values)

    decorated: Callable[..., Any] = with_key
    for option in reversed(_OPTIONS):
        decorated = option(decorated)
    return decorated
