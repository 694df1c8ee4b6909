"""HTTP/1.1 connections to listeners: one request at a time on each, parsed by httptools.

For: connecting (TLS, checked addresses), writing a request, and reporting the answer's status, the end of the answer
and the end of the connection to its owner. Not for: what is sent when and what an answer means (broker/delivery).

The answer's head (status, headers) settles a request. Its body is read, up to BODY_BYTES_MAX, to reuse the connection.
If a listener answers 200 and does not end its answer within a second, the message counts as delivered and the
connection is closed.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol

import httptools

from broker.outbound.addresses import PORTS_REFUSED, TUNNEL_PROOF, AddressRefused, Resolver, Target, tunnel_proof
from broker.outbound.dns import NotAsked
from broker.outbound.mail import MailTransport
from broker.outbound.retry_after import retry_after_s

log = logging.getLogger(__name__)

# The error of an attempt if the listener's host has no IP address in DNS, or only addresses that are not allowed.
# Unknown and forbidden hosts have the same error. Otherwise, users could find out which names an internal DNS has.
# The debug log has the reason.
NO_ADDRESS: Final = "no-address"
NO_MAIL_SERVER: Final = "no-mail-server"
PORT_NOT_ALLOWED: Final = "port-not-allowed"
DNS: Final = "dns"  # no thread was free in time for the DNS look-up: the attempt is put off
HEAD_BYTES_MAX: Final = 64 << 10
BODY_BYTES_MAX: Final = 64 << 10
# Look for the header Retry-After only in answers 429 and 503: a callback for each header of each answer is slow.
_MAY_SAY_WHEN: Final = (429, 503)
# A connection may remember an HTTP answer of up to 1 KiB. If the next answer has equal bytes, it is not parsed.
_AGAIN_BYTES_MAX: Final = 1 << 10


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionTuning:
    """The bounds of connections."""

    connect_s: float = 5.0  # time limit for the DNS look-up and for connecting to all addresses, with TLS
    next_address_s: float = 1.25  # If an address of a host does not answer for this long, the next address is tried.
    addresses_max: int = 3  # At most this many addresses of a host are tried.
    end_s: float = 1.0  # If an answer has not ended this many seconds after its headers, close the connection.


CONNECTION: Final = ConnectionTuning()


KEPT_BYTES_MAX: Final = 16 << 10  # By default, at most this many bytes of an answer are kept.

# How many milliseconds the DNS look-up, connecting and the TLS handshake took; None for a step that did not happen.
Times = tuple[int | None, int | None, int | None]
REUSED: Final[Times] = (None, None, None)  # the times of a request on a connection that was already open


class Owner(Protocol):
    """The object that sends requests on a connection. For each request, the connection calls answered() or failed().
    Then it calls released() if another request is possible. When the connection has ended, it calls lost().
    """

    # If a connection ends before connect() returns it, the connection calls none of these four methods.
    def answered(self, connection: Connection, status: int, retry_after_s: int | None) -> None: ...

    def failed(self, connection: Connection, error: str) -> None: ...

    def released(self, connection: Connection) -> None: ...

    def lost(self, connection: Connection) -> None: ...


class Connection(asyncio.Protocol):
    """An HTTP/1.1 connection to a listener. It carries one request at a time."""

    __slots__ = (
        "_again",
        "_again_status",
        "_answered",
        "_bytes",
        "_end",
        "_end_s",
        "_ended",
        "_head",
        "_keeps",
        "_owned",
        "_owner",
        "_parser",
        "_transport",
        *("at", "cut", "target", "times", "used", "well", "work"),
    )

    def __init__(self, owner: Owner, target: Target, end_s: float = CONNECTION.end_s) -> None:
        self._owner = owner
        self._end_s = end_s
        self._owned = False
        self.target = target
        self._transport: Any = None
        self._parser: Any = None
        self._bytes = 0
        self._answered = True
        self._end: asyncio.TimerHandle | None = None
        self._ended = 0  # The number of HTTP answers that end in the newest received bytes. Two or more are an error.
        self._head: list[bytes] = []  # the answer's first bytes
        self._again = b""  # The bytes of the answer that is remembered. A next answer with equal bytes is not parsed.
        self._again_status = 0
        self._keeps = 0  # how many bytes of the current HTTP answer to collect; 0 for none
        self.times = REUSED  # how long the steps of opening the connection took
        self.work: Any = None  # the object that the caller gave to send(); None after the answer has ended
        self.at = 0.0  # when the request was sent
        self.cut = False  # True if the connection broke, or this side has closed it
        self.used = 0  # number of finished requests
        self.well = False  # True if the newest answer's HTTP status was below 500. The connection's owner sets it.

    def own(self) -> bool:
        """Hand the connection to its owner. The owner may now send requests; its method lost() is called when the
        connection ends. Return False if the connection has ended already.
        """
        self._owned = self._transport is not None
        return self._owned

    def send(self, request: bytes, work: Any, at: float) -> None:
        """Send a request. `at` is the event loop's time in s. `work` (not None) is kept until the answer has ended."""
        self.work = work
        self.at = at
        self._answered = False
        self._bytes = 0
        self._head.clear()
        if self._parser is None:
            self._parser = httptools.HttpResponseParser(self)
        self._transport.write(request)

    def close(self) -> None:
        """Close the connection. The owner's failed() is called soon if a request has no answer, and then lost()."""
        if self._transport is not None:
            self.cut = True
            self._transport.abort()

    def expire(self) -> None:
        """Fail the current request with the error `timeout`."""
        self._fail("timeout")

    def keep(self, ended: Callable[[bytes], None], bytes_max: int = KEPT_BYTES_MAX) -> None:
        """Collect the first `bytes_max` bytes of the answer that is arriving now. When the answer or the connection has
        ended, call `ended` with these bytes. Only the owner's method answered() may call keep().
        """
        # An empty `_head` means that the answer has the same bytes as the answer before. `_again` has these bytes.
        if not self._head:
            self._head.append(self._again)
        self._keeps = bytes_max
        self._owner = _Keeping(self, self._owner, ended)

    def kept(self, owner: Owner) -> bytes:
        """Stop collecting the bytes of an HTTP answer, and return the collected bytes. Make `owner` the owner of this
        connection again.
        """
        kept = b"".join(self._head)[: self._keeps]
        self._owner, self._keeps = owner, 0
        self._head.clear()
        return kept

    @property
    def fresh(self) -> bool:
        """Return whether the listener has sent nothing yet in answer to the current request."""
        return self._bytes == 0

    # asyncio calls these

    def connection_made(self, transport: asyncio.BaseTransport | MailTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        if self.work is None:  # bytes without a request
            self.close()
            return
        if data == self._again and not self._bytes:
            self._answered = True
            self._owner.answered(self, self._again_status, None)
            self._finished()
            return
        self._bytes += len(data)
        if not self._answered or (self._keeps and self._bytes <= self._keeps + len(data)):
            self._head.append(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._fail("garbage")
        except httptools.HttpParserError:
            self._fail("garbage")
        else:
            if self._bytes > (BODY_BYTES_MAX if self._answered else HEAD_BYTES_MAX) and self.work is not None:
                self._fail("too-large")
            # If one request got two answers, close: the second would be taken for the answer to the next request.
            elif self._ended == 1:
                self._ended = 0
                status = self._parser.get_status_code()
                if self._bytes == len(data) <= _AGAIN_BYTES_MAX and status not in _MAY_SAY_WHEN:
                    self._again, self._again_status = data, status
                self._finished()
            elif self._ended:
                self.close()
            elif self._answered and self._end is None:
                self._end = asyncio.get_running_loop().call_later(self._end_s, self.close)

    def _finished(self) -> None:
        self.used += 1
        self.work = None
        if self._end is not None:
            self._end.cancel()
            self._end = None
        self._owner.released(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.cut = self.cut or exc is not None
        if self.work is not None and not self._answered:
            self._answered = True
            self._owner.failed(self, "closed")
        if self._end is not None:
            self._end.cancel()
        self._transport = None
        self.work = None
        if self._owned:
            self._owner.lost(self)

    # httptools calls these

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if self._ended:
            self._ended += 1
        elif status >= 200 and not self._answered:
            self._answered = True
            wait_s = retry_after_s(b"".join(self._head), at_s=time.time()) if status in _MAY_SAY_WHEN else None
            self._owner.answered(self, status, wait_s)

    def on_message_complete(self) -> None:
        if not self._answered:  # An answer with a 1xx status is not the final answer.
            return
        if self._parser.should_keep_alive():
            self._ended += 1
        else:
            self.close()

    def _fail(self, error: str) -> None:
        if not self._answered:
            self._answered = True
            self._owner.failed(self, error)
        self.close()


class _Keeping:
    """A temporary owner of a connection, while the bytes of an answer are collected.

    It forwards every call to the real owner. When the answer or the connection has ended, it first gives the connection
    back to the real owner, and calls `ended` with the collected bytes.
    """

    def __init__(self, connection: Connection, owner: Owner, ended: Callable[[bytes], None]) -> None:
        self._connection = connection
        self._owner = owner
        self._ended = ended

    def answered(self, connection: Connection, status: int, retry_after_s: int | None) -> None:
        self._owner.answered(connection, status, retry_after_s)

    def failed(self, connection: Connection, error: str) -> None:
        self._owner.failed(connection, error)

    def released(self, connection: Connection) -> None:
        self._ended(self._connection.kept(self._owner))
        self._owner.released(connection)

    def lost(self, connection: Connection) -> None:
        self._ended(self._connection.kept(self._owner))
        self._owner.lost(connection)


class TunnelConnection(Connection):
    """A connection to a tunnel of an API process, which passes requests on to a developer's machine. A request fails if
    its answer lacks the header that proves the answer's origin (docs/decisions/0060).
    """

    __slots__ = ("_proof",)

    def __init__(self, owner: Owner, target: Target, end_s: float = CONNECTION.end_s) -> None:
        super().__init__(owner, target, end_s)
        self._proof = f"{TUNNEL_PROOF}: {tunnel_proof(target.target.split('/')[1])}\r\n".encode()

    def on_headers_complete(self) -> None:
        if not self._answered and self._proof not in b"".join(self._head):
            raise ValueError(
                f"the answer has no valid header {TUNNEL_PROOF}, so it does not come from an API process of Everput"
            )
        super().on_headers_complete()


def tls_context() -> ssl.SSLContext:
    """Return the TLS settings: the system's CA certificates, with host names checked."""
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context


def _to_mail(owner: Owner, target: Target, resolver: Resolver, tuning: ConnectionTuning) -> Connection:
    """Return a connection that hands its requests to the mail server. Raises ConnectFailed if no mail server is
    configured.
    """
    if resolver.mailer is None:
        raise ConnectFailed(NO_MAIL_SERVER)
    connection = Connection(owner, target, tuning.end_s)
    connection.connection_made(
        MailTransport(resolver.mailer, target.target, connection.data_received, connection.connection_lost)
    )
    connection.own()
    return connection


async def connect(
    owner: Owner,
    target: Target,
    resolver: Resolver,
    tls: ssl.SSLContext,
    tuning: ConnectionTuning = CONNECTION,
) -> Connection:
    """Connect to one of the target's allowed addresses. For a mailto: target, return a connection that hands requests
    to the mail server. Raises NotTried if no thread was free for the DNS look-up, else ConnectFailed.
    """
    if target.mail:
        return _to_mail(owner, target, resolver, tuning)
    if target.port in PORTS_REFUSED and not target.tunnel:
        raise ConnectFailed(PORT_NOT_ALLOWED)
    loop = asyncio.get_running_loop()
    kind = TunnelConnection if target.tunnel else Connection
    error, steps = "refused", _Steps(loop)
    try:
        async with asyncio.timeout(tuning.connect_s):
            addresses = [target.host] if target.tunnel else await resolver.addresses(target.host)
            addresses = addresses[: tuning.addresses_max]
            steps.resolved()
            for address in addresses:
                try:
                    async with asyncio.timeout(None if address is addresses[-1] else tuning.next_address_s):
                        connection = await _open(lambda: kind(owner, target, tuning.end_s), target, address, tls, steps)
                except ssl.SSLError:
                    error = "tls"
                except TimeoutError:
                    error = "connect-timeout"
                except OSError:
                    error = "refused"
                else:
                    if address is not addresses[0]:
                        resolver.prefer(target.host, address)
                    connection.times = steps.times
                    if connection.own():
                        return connection
                    error = "closed"
    except TimeoutError:
        error = "connect-timeout"
    except NotAsked:
        raise NotTried(DNS) from None
    except (AddressRefused, OSError, UnicodeError) as failure:  # UnicodeError means that the host name is not valid.
        error = NO_ADDRESS
        log.debug("connect.no_address host=%s reason=%r", target.host, failure)
    raise ConnectFailed(error, steps.times)


async def _open(
    factory: Callable[[], Connection], target: Target, address: str, tls: ssl.SSLContext, steps: _Steps
) -> Connection:
    """Open a connection to one address. Raises OSError if that fails, also for TLS errors and timeouts."""
    loop = asyncio.get_running_loop()
    steps.connecting()
    if not target.tls:
        _, connection = await loop.create_connection(factory, address, target.port)
        steps.connected()
        return connection
    sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        await loop.sock_connect(sock, (address, target.port))
        steps.connected()
        _, connection = await loop.create_connection(factory, sock=sock, ssl=tls, server_hostname=target.host)
    except BaseException:
        sock.close()
        raise
    finally:
        steps.encrypted()
    return connection


class _Steps:
    """A measurement of the time that each step of opening a connection takes: DNS look-up, TCP connect and TLS
    handshake. For a step that fails, this is the time until its failure.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._since_s = loop.time()
        self._step = 0
        self._ms: list[int | None] = [None, None, None]

    def resolved(self) -> None:
        self._next(1)

    def connecting(self) -> None:
        self._since_s, self._step, self._ms[1:] = self._loop.time(), 1, [None, None]

    def connected(self) -> None:
        self._next(2)

    def encrypted(self) -> None:
        if self._step == 2:
            self._next(3)

    def _next(self, step: int) -> None:
        now_s = self._loop.time()
        self._ms[self._step] = round((now_s - self._since_s) * 1000)
        self._since_s, self._step = now_s, step

    @property
    def times(self) -> Times:
        dns_ms, connect_ms, tls_ms = self._ms
        ms = round((self._loop.time() - self._since_s) * 1000)
        if self._step == 0:
            dns_ms = ms
        elif self._step == 1:
            connect_ms = ms
        return dns_ms, connect_ms, tls_ms


class ConnectFailed(Exception):
    """The error of a connection that could not be opened. Its message is a short reason, such as `refused`."""

    def __init__(self, reason: str, times: Times = REUSED) -> None:
        super().__init__(reason)
        self.times = times


class NotTried(ConnectFailed):
    """The error of a connection that was not tried, because no thread was free for the DNS look-up. It says nothing
    about the listener's health.
    """
