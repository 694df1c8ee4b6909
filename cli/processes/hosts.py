"""The host names of a server: the header Host of each request must have one of them.

For: preventing DNS rebinding, in which an attacker's host name is made to lead to this machine. Not for: who may send
requests (api/auth.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from ipaddress import ip_address
from typing import Final

ANY: Final = "*"
_REMEMBERED_MAX: Final = 1000
# This regular expression takes linear time on any input, because its repetitions are bounded and can't overlap.
_AUTHORITY: Final = re.compile(r"(\[[0-9a-f:.]{2,45}\]|[a-z0-9_.-]{1,253})(?::[0-9]{0,5})?")


class Hosts:
    """The host names that a server accepts in the header Host, with or without a port. `*` accepts every name.

    A server also accepts all IP addresses, and all names without a dot, such as `localhost`. DNS rebinding can't use
    these hosts, because it needs a domain whose DNS records the attacker can change.
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
