"""Names that a server answers to: the header Host of each request is one of them.

For: DNS rebinding, where a page's own name is made to lead to this machine, and what links in answers may start with.
Not for: who may ask (api/auth.py)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from ipaddress import ip_address
from typing import Final

ANY: Final = "*"
_REMEMBERED_MAX: Final = 1000
# This pattern takes linear time: bounded repeats, each class excludes what follows it
_AUTHORITY: Final = re.compile(r"(\[[0-9a-f:.]{2,45}\]|[a-z0-9_.-]{1,253})(?::[0-9]{0,5})?")


class Hosts:
    """The set of values of a Host header that a server accepts, with or without a port.

    IP addresses and names of one label, such as `localhost` or `api`, are always in it: no page on the internet has
    such a name. Other names are in it where they are given. names: lower or upper case; `*` accepts every name.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._names = frozenset(name.lower().rstrip(".") for name in names)
        self._known: set[bytes] = set()

    def __contains__(self, host: bytes) -> bool:
        if host in self._known:
            return True
        if not self._accepts(host):
            return False
        if len(self._known) < _REMEMBERED_MAX:
            self._known.add(host)
        return True

    def _accepts(self, host: bytes) -> bool:
        found = _AUTHORITY.fullmatch(host.decode("latin-1").lower())
        if found is None:
            return False
        name = found[1].strip("[]").rstrip(".")
        return ANY in self._names or name in self._names or ("." not in name and ":" not in name) or _is_address(name)


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True
