"""The network address of the client that sends a request, also behind proxies (docs/decisions/0193).

For: the name under which clients without a key or a session are counted for rate limits. Not for: who the client is
(auth.py). The headers `Forwarded` and `X-Forwarded-For` are believed only from networks given by `--trusted-proxy`.
They are read from their end, in linear time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Final

from starlette.types import Scope

from broker.settings import Network

Address = IPv4Address | IPv6Address

_HOPS_MAX: Final = 16  # Only the last 16 addresses in the header `X-Forwarded-For` or `Forwarded` are examined.
_ADDRESS_CHARS_MAX: Final = 64
# An IPv6 client may own all addresses in a network with this prefix length, so the network counts as one client.
_IPV6_PREFIX: Final = 64
IPV4_NETWORK_PREFIX: Final = 24
IPV6_NETWORK_PREFIX: Final = 48
_X_FORWARDED_FOR: Final = b"x-forwarded-for"
_FORWARDED: Final = b"forwarded"


class Clients:
    """The network addresses of clients, by which rate limits count.

    The headers `X-Forwarded-For` and `Forwarded` are believed only if a proxy in the networks `trusted` sends them.
    `behind_proxy` says that clients connect through a proxy. If they do, but `trusted` is empty, the addresses of all
    clients are unknown.
    """

    def __init__(self, trusted: Sequence[Network] = (), *, behind_proxy: bool = False) -> None:
        self._trusted = trusted
        self._unknown = behind_proxy and not trusted

    def name(self, scope: Scope) -> str | None:
        """Return the client's IPv4 address or its IPv6 network (/64). Return None if the client's address is unknown.
        If the other end of the connection has a loopback address and is no trusted proxy, the client is unknown: it may
        be a proxy or any user of this machine.
        """
        address = self._address(scope)
        return None if address is None else _name(address)

    def network(self, scope: Scope) -> str | None:
        """Return the client's network: /24 for IPv4, /48 for IPv6. Return None if the client's address is unknown.

        A network of this size is commonly assigned to one client, so limits can count all its addresses together.
        """
        address = self._address(scope)
        if address is None:
            return None
        prefix = IPV4_NETWORK_PREFIX if isinstance(address, IPv4Address) else IPV6_NETWORK_PREFIX
        return str(ip_network((address, prefix), strict=False))

    def _address(self, scope: Scope) -> Address | None:
        if self._unknown:
            return None
        client = scope.get("client")
        found = None if client is None else parse_address(str(client[0]))
        if found is None:
            return None
        if self._is_trusted(found):
            for hop in _hops(scope):
                address = parse_address(hop)
                if address is None:
                    break
                found = address
                if not self._is_trusted(found):
                    break
        elif found.is_loopback:
            return None
        return found

    def peer(self, host: str) -> str | None:
        """Return the IPv4 address, or the IPv6 network (/64), of the client at the other end of a connection. `host` is
        the address of the other end. Return None if `host` may be a proxy, or is no IP address.
        """
        address = parse_address(host)
        if address is None or self._unknown or address.is_loopback or self._is_trusted(address):
            return None
        return _name(address)

    def _is_trusted(self, address: Address) -> bool:
        return any(address in network for network in self._trusted)


def _name(address: Address) -> str:
    if isinstance(address, IPv4Address):
        return str(address)
    return str(ip_network((address, _IPV6_PREFIX), strict=False))


def _hops(scope: Scope) -> Iterator[str]:
    """Yield the addresses in a request's header `X-Forwarded-For` or `Forwarded`, from the last to the first. The proxy
    that has connected to this server has added the last address.

    If a request has both headers, the client may have forged one header. In this case, yield no address. The caller
    then takes the proxy's address as the client's.
    """
    of: dict[bytes, list[bytes]] = {_X_FORWARDED_FOR: [], _FORWARDED: []}
    for name, value in scope["headers"]:
        if name in of:
            of[name].append(value)
    if of[_X_FORWARDED_FOR] and of[_FORWARDED]:
        return
    for name, values in of.items():
        elements = b",".join(values).decode("latin-1").rsplit(",", _HOPS_MAX)[-_HOPS_MAX:] if values else []
        for element in reversed(elements):
            yield element if name == _X_FORWARDED_FOR else _for(element)


def _for(element: str) -> str:
    """Return the address of one element of the header `Forwarded` (RFC 7239, 5.2). Return an empty text if the element
    has no address.
    """
    for pair in element.split(";"):
        name, _, value = pair.partition("=")
        if name.strip().lower() == "for":
            return value
    return ""


def parse_address(text: str) -> Address | None:
    """Parse an IP address with or without a port and quotes, such as `192.0.2.1:80` or `[2001:db8::1]:80`. Return None
    if the text is not valid.
    """
    text = text.strip().strip('"')
    if len(text) > _ADDRESS_CHARS_MAX or "%" in text:
        return None
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ip_address(text)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return address if mapped is None else mapped
