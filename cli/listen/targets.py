"""The local addresses of `everput listen`, the names of their listeners, and the messages that they get.

For: reading the options. Not for: the command (listen.py), the tunnel (tunnel_client.py).
"""

from __future__ import annotations

import platform
import re
import secrets
from collections.abc import Sequence
from fnmatch import fnmatchcase
from hashlib import sha256
from typing import Any, Final
from urllib.parse import urlsplit

import click

from broker.core.names import NAME_CHARS_MAX
from broker.errors import ConfigurationError

FIELDS: Final = ("name", "data", "queue")
# This regular expression takes linear time on any input: its only unbounded repetition begins at a `/`.
_PORT: Final = re.compile(r"(\d{1,5})(/.*)?", re.ASCII | re.DOTALL)
# This regular expression takes linear time on any input: only its last repetition is unbounded.
_HOST: Final = re.compile(r"[\w.-]{1,253}:\d{1,5}(?:/.*)?", re.ASCII | re.DOTALL)


class Address(click.ParamType):
    """The type of an option whose value is a local address: `3000`, `3000/hook`, `localhost:3000`, or a URL. An address
    without a scheme is converted to a URL.
    """

    name = "address"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        text = str(value)
        url = text
        if (port := _PORT.fullmatch(text)) is not None:
            url = f"http://127.0.0.1:{port[1]}{port[2] or '/'}"
        elif _HOST.fullmatch(text) is not None:
            url = f"http://{text}"
        try:
            parts = urlsplit(url)
            is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:  # for example, the port is above 65535
            is_address = False
        if not is_address:
            self.fail(
                f"{text!r} is not an address such as 3000, localhost:3000 or http://localhost:3000/hook", param, ctx
            )
        return url


class Filter(click.ParamType):
    """The type of an option whose value is a condition on messages, such as `name=order-*`. The command gets it as a
    pair of a field and a pattern.
    """

    name = "filter"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        field, equals, pattern = str(value).partition("=")
        if field not in FIELDS or not equals:
            self.fail(f"{value!r} is not a filter such as name=order-*, data=*urgent* or queue=orders", param, ctx)
        return field, pattern


def wanted(filters: Sequence[tuple[str, str]], notification: dict[str, Any]) -> bool:
    """Return whether a message matches all filters, which are pairs of a field and a pattern. `notification` has the
    message and its queue, as in the body that a listener gets.
    """
    message = notification["message"]
    values = {"name": message["name"], "data": message["data"], "queue": notification["queue"]["name"]}
    return all(fnmatchcase(values[field], pattern) for field, pattern in filters)


def names_of(targets: Sequence[str], given: Sequence[str], *, temporary: bool = False) -> Sequence[str]:
    """Return the names of the listeners: one for each local address (`targets`), in the order of the addresses.

    If names are `given`, return them. Otherwise, make each name from the local address and the name of this machine.
    With `temporary`, a made name also gets a random part: its listener is then new, and the command may delete the
    listener at the end.

    Raises ConfigurationError if two listeners would have the same name, or if there is not one given name for each
    address.
    """
    if given and len(given) != len(targets):
        raise ConfigurationError("give one --name for each --to, or no --name at all")
    if temporary and not given:
        return [_shortened(f"{one} on {platform.node()} {secrets.token_hex(4)}") for one in targets]
    names = given or [_shortened(f"{one} on {platform.node()}") for one in targets]
    if len(set(names)) < len(names):
        raise ConfigurationError("two listeners would have the same name: give each --to a --name of its own")
    return names


def _shortened(name: str) -> str:
    """Shorten a name that is longer than allowed. The same name is always shortened to the same text."""
    if len(name) <= NAME_CHARS_MAX:
        return name
    digest = sha256(name.encode()).hexdigest()[:16]
    return f"{name[: NAME_CHARS_MAX - len(digest) - 1]} {digest}"
