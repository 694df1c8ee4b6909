"""Tells whether two URLs have the same origin: scheme, host and port (RFC 6454, section 5).

For: a listener's header values, which are secrets for one origin and are sent to another only if the owner asks for it
(docs/decisions/0042). Not for: which URLs a listener may have (broker/outbound/addresses.py).
"""

from __future__ import annotations

from typing import Final
from urllib.parse import urlsplit

_PORTS: Final = {"http": 80, "https": 443}
_TUNNEL: Final = "tunnel"


def same_origin(one: str, other: str) -> bool:
    """Return whether two URLs have the same origin: scheme, host and port (RFC 6454).

    If a URL can't be parsed, return True only if both URLs are equal. All URLs of tunnels (`tunnel:…`, made for
    `everput listen`) count as one origin, because each connection of a tunnel gets a new URL.
    """
    return one == other or (_origin(one) is not None and _origin(one) == _origin(other))


def _origin(url: str) -> tuple[str, str, int | None] | None:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return None
    if parts.scheme == _TUNNEL:
        return _TUNNEL, "", None
    return parts.scheme, parts.hostname or "", port or _PORTS.get(parts.scheme)
