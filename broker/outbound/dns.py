"""DNS look-ups on their own threads, so that names whose DNS servers do not answer do not delay others.

For: how many look-ups run, and in which order. Not for: which addresses are allowed, and how long an answer is kept
(addresses.py).

A look-up can't be cancelled: its thread waits as long as the system's resolver does, which is half a minute if a name
server is silent. So there are three pools: for names that were answered quickly the last time, for new names, and for
names that hang repeatedly. A look-up that takes long moves to the last pool and frees its slot. Thousands of hanging
names so delay each other, and delay other names only for a short time. After a restart all names are new, and hanging
names pass in groups of sixteen, each in `new_leaves_s`.
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

# Slow DNS look-ups may use an eighth of the files that the process may open. Each running look-up opens one file.
_FILES_PART: Final = 8
_REMEMBERED_MAX: Final = 16_384  # names


@dataclass(frozen=True, slots=True, kw_only=True)
class DnsTuning:
    """The limits of DNS look-ups.

    Each host name is in one of three pools. A name is in the known pool if its newest look-up took less than `quick_s`
    seconds. A name is in the slow pool if each of its last `slow_after` look-ups (by default 2) took `quick_s` seconds
    or more. All other names are in the new pool, such as names that were never looked up.
    """

    # If a look-up took fewer seconds than this, its host name is in the known pool, for names that answer quickly.
    quick_s: float = 1.0
    # seconds after which a DNS look-up moves from the known pool (for names that answer quickly) to the slow pool
    known_leaves_s: float = 1.0
    # seconds after which a DNS look-up moves from the new pool (for names of unknown speed) to the slow pool
    new_leaves_s: float = 0.25
    # If DNS does not answer a caller in time, this is a failure of DNS only if the look-up has run for `asked_s`
    # seconds. If the host name is in the slow pool, it is always a failure of DNS.
    asked_s: float = 0.5
    # A DNS look-up that waits for a thread is cancelled if no caller has asked for it for this many seconds.
    wanted_s: float = 15.0
    known_max: int = 32  # A pool starts no look-up while this many run in it.
    new_max: int = 16
    slow_max: int = 16
    # While this many slow DNS look-ups run, no look-up moves to the slow pool. Each takes a thread (27 KiB) and a file.
    hanging_max: int = 1024
    slow_after: int = 2  # A host name is in the slow pool after this many slow look-ups in a row.
    answer_s: float = 2.5  # how long a caller waits
    other_answer_s: float = 0.5  # seconds that a caller waits for DNS if an older answer is usable
    cache_s: float = 10.0  # how long an answer is fresh
    failure_cache_s: float = 1.0  # how long a failure is fresh


DEFAULT: Final = DnsTuning()
Ask = Callable[[str], list[str]]


def ask_system(host: str) -> list[str]:
    """Return the IP addresses of a host from the system's resolver. This call blocks. Raises OSError or
    UnicodeError.
    """
    return [str(sockaddr[0]) for *_, sockaddr in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)]


class NotAsked(OSError):
    """The error of a DNS look-up for which no thread was free. It does not mean that the host name is wrong."""


class Pool:
    """A pool of DNS look-ups. While `most` or more of them run, the others wait. More than `most` can run in the slow
    pool, because look-ups that run already move to it.
    """

    __slots__ = ("hanging_max", "leaves_s", "most", "under_way", "waiting")

    def __init__(self, most: int, *, leaves_s: float = 0.0, hanging_max: int = 0) -> None:
        self.most = most
        # A look-up that has run for `leaves_s` seconds counts in the slow pool from then on, and no longer in this
        # pool.
        # If the slow pool runs `hanging_max` look-ups then, the look-up tries again to move every `leaves_s` seconds.
        self.leaves_s = leaves_s
        self.hanging_max = hanging_max
        self.under_way = 0
        self.waiting: deque[_Lookup] = deque()


class _Lookup:
    __slots__ = ("answer", "begun_s", "host", "pool", "wanted_until_s")

    def __init__(self, host: str, pool: Pool, answer: asyncio.Future[list[str]]) -> None:
        self.host = host
        self.pool = pool
        self.answer = answer
        self.wanted_until_s = self.begun_s = 0.0


class DnsLookups:
    """The DNS look-ups of one event loop. Each running look-up blocks a thread of its own. While too many look-ups run
    in a pool, the pool's other look-ups wait for their start.
    """

    def __init__(self, ask: Ask = ask_system, tuning: DnsTuning = DEFAULT) -> None:
        self.tuning = tuning
        self._ask = ask
        hanging_max = min(self.tuning.hanging_max, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // _FILES_PART)
        self.known = Pool(self.tuning.known_max, leaves_s=self.tuning.known_leaves_s, hanging_max=hanging_max)
        # If the slow pool is three quarters full, only look-ups from the pool of known (quick) names may move to it.
        self.new = Pool(self.tuning.new_max, leaves_s=self.tuning.new_leaves_s, hanging_max=hanging_max * 3 // 4)
        self.slow = Pool(self.tuning.slow_max)
        self._lookups: dict[str, _Lookup] = {}
        self._hung: dict[str, int] = {}  # The number of slow look-ups in a row, by host name.

    def addresses(self, host: str) -> asyncio.Future[list[str]]:
        """Look up a host name, which may take long.

        Callers who ask for the same name at the same time get the same future, so await it with asyncio.shield(). The
        future raises OSError or UnicodeError if DNS has no answer. It raises NotAsked if the look-up waited too long
        for a thread, or if no thread could be started.
        """
        loop = asyncio.get_running_loop()
        lookup = self._lookups.get(host)
        if lookup is None:
            lookup = self._lookups[host] = _Lookup(host, self.pool_of(host), loop.create_future())
            lookup.pool.waiting.append(lookup)
        lookup.wanted_until_s = loop.time() + self.tuning.wanted_s
        self._next(lookup.pool)
        return lookup.answer

    def kept_waiting(self, host: str) -> bool:
        """Return whether it is too early to say that DNS does not answer for this host name. It is too early while the
        look-up waits for a thread, and until the look-up has run for `asked_s` seconds.

        Return False if nobody is looking up the name, or if the name is in the slow pool.
        """
        lookup = self._lookups.get(host)
        if lookup is None or self.pool_of(host) is self.slow:
            return False
        return not lookup.begun_s or asyncio.get_running_loop().time() < lookup.begun_s + self.tuning.asked_s

    def pool_of(self, host: str) -> Pool:
        hung = self._hung.get(host, 1)
        return self.known if hung == 0 else self.new if hung < self.tuning.slow_after else self.slow

    def _next(self, pool: Pool) -> None:
        now_s = asyncio.get_running_loop().time()
        while pool.waiting and pool.under_way < pool.most:
            lookup = pool.waiting.popleft()
            if lookup.wanted_until_s < now_s:
                self._end(lookup, NotAsked("DNS had no time for this name"))
            else:
                self._begin(lookup)

    def _begin(self, lookup: _Lookup) -> None:
        """Start a look-up on a daemon thread, which does not delay the end of the process."""
        loop = asyncio.get_running_loop()

        def answer() -> None:
            found: list[str] | Exception
            try:
                found = self._ask(lookup.host)
            except Exception as error:  # noqa: BLE001 - The callers get the error.
                found = error
            with contextlib.suppress(RuntimeError):  # The event loop is closed.
                loop.call_soon_threadsafe(self._answered, lookup, found)

        thread = threading.Thread(target=answer, name="dns", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            self._end(lookup, NotAsked(str(error)))
            return
        lookup.pool.under_way += 1
        lookup.begun_s = loop.time()
        if lookup.pool is not self.slow:
            loop.call_later(lookup.pool.leaves_s, self._takes_long, lookup)

    def _takes_long(self, lookup: _Lookup) -> None:
        if lookup.answer.done():
            return
        left = lookup.pool
        if self.slow.under_way >= left.hanging_max:
            asyncio.get_running_loop().call_later(left.leaves_s, self._takes_long, lookup)
            return
        lookup.pool = self.slow
        left.under_way -= 1
        self.slow.under_way += 1
        self._next(left)

    def _answered(self, lookup: _Lookup, found: list[str] | Exception) -> None:
        lookup.pool.under_way -= 1
        quick = asyncio.get_running_loop().time() < lookup.begun_s + self.tuning.quick_s
        self.remember(lookup.host, 0 if quick else self._hung.get(lookup.host, 0) + 1)
        self._end(lookup, found)
        self._next(lookup.pool)

    def _end(self, lookup: _Lookup, found: list[str] | Exception) -> None:
        del self._lookups[lookup.host]
        if isinstance(found, Exception):
            lookup.answer.set_exception(found)
            # Read the exception here, because asyncio logs an exception that no caller has read
            lookup.answer.exception()
        else:
            lookup.answer.set_result(found)

    def remember(self, host: str, hung: int) -> None:
        self._hung.pop(host, None)
        if len(self._hung) >= _REMEMBERED_MAX:
            del self._hung[next(iter(self._hung))]
        self._hung[host] = hung
