"""The check that keeps listeners' URLs away from private addresses and other protocols' ports (SSRF).

For: which URLs are accepted (when a listener is created, without DNS), and which addresses may be connected to (at
every connect, after DNS). Not for: connecting (connection.py), which uses exactly the addresses that were checked here.
"""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Sequence
from functools import lru_cache, partial
from hashlib import sha256
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from broker.outbound.dns import DEFAULT, Ask, DnsLookups, DnsTuning, NotAsked, ask_system
from broker.outbound.mail import Mailer
from broker.settings import Network

URL_CHARS_MAX: Final = 2048
MAILTO: Final = "mailto:"
TUNNEL: Final = "tunnel"  # The scheme of URLs that lead to a tunnel. Only Everput itself creates these URLs.
TUNNEL_PROOF: Final = "everput-tunnel"  # the name of a response header
_USABLE_S: Final = 600.0
_CACHED_MAX: Final = 8192
_NO_SUCH_NAME: Final = (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME))

_SCHEMES: Final = "The URL must start with http:// or https://."
_HOST_OR_PORT: Final = "The host or port of the URL is not valid. Use a URL such as https://example.com:8443/orders."
_ALLOWING: Final = (
    "The operator can allow a network with --allow-network. `everput listen` delivers to your own machine without it."
)

# This regular expression takes linear time on any input: it matches at most 63 characters.
_LABEL: Final = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")

# This regular expression takes linear time on any input: it matches at most 64 characters, an @, and 254 characters.
_MAIL: Final = re.compile(r"[A-Za-z0-9.!#$&'*+/=?_~-]{1,64}@[A-Za-z0-9](?:[A-Za-z0-9.-]{0,252}[A-Za-z0-9])?")

Address = IPv4Address | IPv6Address

# Addresses in these networks are refused, unless the operator allows the network with --allow-network.
# Python's `is_global` does not refuse all of these networks.
# IPv6 addresses of NAT64 and 6to4 are refused, because they can lead to any IPv4 address, also to a private one.
_REFUSED: Final = tuple(
    map(
        ip_network,
        (
            "0.0.0.0/8",  # this host
            "100.64.0.0/10",  # carrier-grade NAT (RFC 6598), with the address of one cloud's metadata service
            "168.63.129.16/32",  # the host agent of a cloud
            "192.0.0.0/24",  # IETF protocol assignments, RFC 6890
            "192.88.99.0/24",  # 6to4 relays, RFC 7526
            "198.18.0.0/15",  # benchmarks, RFC 2544
            "240.0.0.0/4",  # reserved, and broadcast
            "::/3",  # such as NAT64; not global unicast
            "2001::/23",  # addresses of IETF protocols such as Teredo (RFC 2928)
            "2002::/16",  # 6to4, RFC 3056
            "3fff::/20",  # documentation, RFC 9637
            "4000::/2",  # not global unicast
            "8000::/1",
        ),
    )
)

# Servers on these ports speak other protocols, and can misread an HTTP request (the "bad ports" of the Fetch standard).
PORTS_REFUSED: Final = frozenset(
    [
        *(0, 1, 7, 9, 11, 13, 15, 17, 19, 20, 21, 22, 23, 25, 37, 42, 43, 53, 69, 77, 79, 87, 95),
        *(101, 102, 103, 104, 109, 110, 111, 113, 115, 117, 119, 123, 135, 137, 139, 143, 161, 179),
        *(389, 427, 465, 512, 513, 514, 515, 526, 530, 531, 532, 540, 548, 554, 556, 563, 587, 601, 636),
        *(989, 990, 993, 995, 1719, 1720, 1723, 2049, 3659, 4045, 4190, 5060, 5061, 6000, 6566),
        *(6665, 6666, 6667, 6668, 6669, 6679, 6697, 10080),
    ]
)


class AddressRefused(Exception):
    """The error that a listener's host has no IP address that Everput may connect to."""


class Target(NamedTuple):
    """A URL, split into the parts that an HTTP/1.1 client needs."""

    tls: bool
    host: str
    port: int
    authority: str  # the Host header
    target: str  # path and query
    tunnel: bool = False  # True if the URL leads to one of Everput's tunnels, whose address needs no check
    mail: bool = False  # True if `target` is an e-mail address: messages then go to a mail server.


def address_allowed(address: Address, allow: Sequence[Network]) -> bool:
    """Return whether Everput may connect to a listener at this address. `allow` has the networks that the operator
    allows although they are not public.
    """
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    if any(address in network for network in allow if network.version == address.version):
        return True
    if not address.is_global or address.is_multicast:
        return False
    return not any(address in network for network in _REFUSED if network.version == address.version)


@lru_cache(maxsize=4096)  # This function is cached, because every probe of a listener parses the listener's URL again.
def parse_url(url: str) -> Target:
    """Split an http, https, mailto or tunnel URL into its parts. Raises ValueError, with a text for users, if the URL
    is not valid.
    """
    if len(url) > URL_CHARS_MAX:
        raise ValueError(f"The URL is longer than {URL_CHARS_MAX} characters.")
    if not url.isascii() or any(char <= " " or char in '\\"<>^`{|}\x7f' for char in url):
        raise ValueError(
            "The URL has a character that is not allowed. Write a host name in punycode (xn--…), and percent-encode "
            "other characters, such as %20 for a space."
        )
    if url.startswith(MAILTO):
        if not _MAIL.fullmatch(url, len(MAILTO)):
            raise ValueError(
                "The URL must be `mailto:` followed by one e-mail address, such as mailto:ops@example.com."
            )
        return Target(False, "", 0, "", url[len(MAILTO) :], mail=True)
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ValueError(_HOST_OR_PORT) from None
    if parts.scheme not in ("http", "https", TUNNEL):
        raise ValueError(_SCHEMES)
    if parts.username is not None or parts.password is not None or "@" in parts.netloc:
        raise ValueError("The URL must not have a user name or password.")
    if "#" in url:
        raise ValueError("The URL must not have a fragment (`#…`).")
    host = parts.hostname or ""
    if "%" in host or port == 0 or not (":" in host or _is_name(host)):
        raise ValueError(_HOST_OR_PORT)
    tls = parts.scheme == "https"
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Target(tls, host, port or (443 if tls else 80), parts.netloc, target, parts.scheme == TUNNEL)


def tunnel_proof(token: str) -> str:
    """Return the value of the response header `everput-tunnel` for a tunnel. `token` is the secret in the tunnel's URL.
    The header proves that an answer comes from the tunnel, and not from another program that listens on the same port.
    """
    return sha256(f"{TUNNEL_PROOF} {token}".encode()).hexdigest()


def _is_name(host: str) -> bool:
    """Return whether the text can be a host name in DNS: at most 253 characters, as in RFC 1123, 2.1, but underscores
    are allowed, too. With a longer name, the resolver would raise an error.
    """
    name = host.removesuffix(".")
    return len(name) <= 253 and all(_LABEL.fullmatch(label) for label in name.split("."))


@lru_cache(maxsize=4096)
def literal_address(host: str) -> Address | None:
    """Return the IP address if a URL's host is an address, in any notation that resolvers accept, such as 127.1 or
    0x7f000001. Return None if the host is a name.
    """
    host = host.removesuffix(".")
    try:
        return ip_address(host)
    except ValueError:
        pass
    try:
        return IPv4Address(socket.inet_aton(host)) if host[-1:].isalnum() and host[0].isdigit() else None
    except OSError:
        return None


def is_https_or_loopback(url: str) -> bool:
    """Return whether a URL uses https, or http with `localhost` or a loopback address."""
    try:
        parts = urlsplit(url)
        host, _port = parts.hostname or "", parts.port
    except ValueError:
        return False
    address = literal_address(host)
    loopback = host == "localhost" or (address is not None and address.is_loopback)
    return bool(host) and (parts.scheme == "https" or (parts.scheme == "http" and loopback))


def refuse_url(url: str, allow: Sequence[Network], *, mail: bool = False) -> str | None:
    """Return a sentence that says what is wrong with a listener's URL, or None if nothing is wrong. A `mailto:` URL is
    accepted only with `mail`.

    This check does not use DNS, so a host name's addresses may be refused later, when a connection is opened.
    """
    try:
        target = parse_url(url)
    except ValueError as error:
        return str(error)
    if target.tunnel or (target.mail and not mail):
        return _SCHEMES
    if target.mail:
        return None
    if target.port in PORTS_REFUSED:
        return f"The URL has the port {target.port}, which is not for HTTP."
    address = literal_address(target.host)
    if address is None:
        if (
            target.host.rstrip(".").rsplit(".", 1)[-1] in ("localhost", "local", "internal", "localdomain")
            and not allow
        ):
            return f"The URL names a host that is not public. {_ALLOWING}"
        return None
    return None if address_allowed(address, allow) else f"The URL has an address that is not public. {_ALLOWING}"


class _Kept:
    """A DNS answer in the cache."""

    __slots__ = ("addresses", "error", "fresh_until_s", "preferred", "usable_until_s")

    def __init__(self, addresses: list[str], error: str | None, at_s: float, tuning: DnsTuning) -> None:
        self.addresses = addresses
        self.error = error  # if there are no addresses
        # Connect to this address first: connecting to it has worked, and the host's earlier addresses have failed.
        self.preferred: str | None = None
        self.fresh_until_s = at_s + (tuning.cache_s if error is None else tuning.failure_cache_s)
        # Until this time, use the addresses again if DNS does not answer a later look-up.
        self.usable_until_s = at_s + _USABLE_S if error is None else 0.0


class Resolver:
    """A cache of the IP addresses of host names, which returns only allowed addresses. Concurrent callers share one DNS
    look-up of a name. The answer is used for some seconds, and then DNS is asked again. If DNS does not answer then,
    the older answer is used for up to ten minutes (as in RFC 8767).
    """

    def __init__(
        self,
        allow: Sequence[Network],
        ask: Ask = ask_system,
        tuning: DnsTuning = DEFAULT,
        mailer: Mailer | None = None,
    ) -> None:
        # This function is cached, because every new connection to a listener checks the listener's address again.
        @lru_cache(maxsize=4096)
        def may_be_at(text: str) -> bool:
            return address_allowed(ip_address(text.partition("%")[0]), allow)

        self._may_be_at = may_be_at
        self.tuning = tuning
        self.mailer = mailer
        self.lookups = DnsLookups(ask, tuning)
        self._kept: dict[str, _Kept] = {}

    async def addresses(self, host: str) -> list[str]:
        """Return the allowed IP addresses of a host. Raises AddressRefused if none of its addresses is allowed. Raises
        OSError if DNS knows no address or does not answer in time, and NotAsked if no thread was free to ask DNS.
        """
        literal = literal_address(host)
        return self._allowed(host, await self._found(host) if literal is None else [str(literal)])

    def prefer(self, host: str, address: str) -> None:
        """Use this address of the host first from now on, because connecting to it has worked, and connecting to the
        addresses before it has not.
        """
        kept = self._kept.get(host)
        if kept is not None:
            kept.preferred = address
            kept.addresses.sort(key=address.__ne__)

    async def _found(self, host: str) -> list[str]:
        now_s = asyncio.get_running_loop().time()
        kept = self._kept.get(host)
        if kept is None or kept.fresh_until_s < now_s:
            usable = kept is not None and now_s < kept.usable_until_s
            answer = self.lookups.addresses(host)
            in_time, _ = await asyncio.wait(
                [answer], timeout=self.tuning.other_answer_s if usable else self.tuning.answer_s
            )
            try:
                if not in_time:
                    raise TimeoutError
                kept = self._keep(host, answer.result(), None)
            except (OSError, UnicodeError) as error:
                answer.add_done_callback(partial(self._late, host))
                if kept is not None and usable and getattr(error, "errno", None) not in _NO_SUCH_NAME:
                    kept.fresh_until_s = now_s + self.tuning.cache_s
                elif isinstance(error, NotAsked) or (
                    isinstance(error, TimeoutError) and self.lookups.kept_waiting(host)
                ):
                    raise NotAsked(f"no thread was free in time to look up {host} in DNS") from None
                else:
                    said = "DNS did not answer in time" if isinstance(error, TimeoutError) else str(error)
                    kept = self._keep(host, [], said)
        if kept.error is not None:
            raise OSError(kept.error)
        return kept.addresses

    def _late(self, host: str, answer: asyncio.Future[list[str]]) -> None:
        """Store a late DNS answer for the next caller. The callers who asked no longer wait for it."""
        if not answer.cancelled() and answer.exception() is None:
            self._keep(host, answer.result(), None)

    def _keep(self, host: str, addresses: list[str], error: str | None) -> _Kept:
        former = self._kept.pop(host, None)
        if len(self._kept) >= _CACHED_MAX:
            del self._kept[next(iter(self._kept))]
        kept = self._kept[host] = _Kept(addresses, error, asyncio.get_running_loop().time(), self.tuning)
        if former is not None and former.preferred is not None:
            self.prefer(host, former.preferred)
        return kept

    def _allowed(self, host: str, found: Sequence[str]) -> list[str]:
        allowed = [text for text in found if self._may_be_at(text)]
        if not allowed:
            raise AddressRefused(f"{host} has no IP address that is public or in a network of --allow-network")
        return allowed
