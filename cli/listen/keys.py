"""The keys of `everput listen` at a terminal: send a request again, show a body, list the requests.

For: the meaning of keys, the requests that they refer to, and reading keys without Enter. Not for: sending
(tunnel_client.py), the lines (show.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import termios
import tty
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

RECEIVED_MAX: Final = 100
RECEIVED_BYTES_MAX: Final = 64 << 20
HELP: Final = (
    "Keys: r sends the last request again, 3r request 3; b shows or hides bodies, 3b shows that of request 3; l lists "
    "the requests; q quits."
)
_DIGITS_MAX: Final = 9
_ACTIONS: Final = {"r": "resend", "b": "body", "l": "list", "q": "quit", "?": "help", "h": "help"}


class Action(NamedTuple):
    """The action of a pressed key: resend, body, list, quit or help."""

    name: str
    # The number of the request to which the pressed key applies; None for the newest request.
    number: int | None


class Keyboard:
    """The reader of keys. The letters r, b, l, q and h and the question mark are actions. Digits before an action are
    the number of a request. Any other key discards the digits.
    """

    def __init__(self) -> None:
        self._digits = ""

    def pressed(self, key: str) -> Action | None:
        if key in "0123456789" and len(self._digits) < _DIGITS_MAX:
            self._digits += key
            return None
        digits, self._digits = self._digits, ""
        name = _ACTIONS.get(key.lower())
        return None if name is None else Action(name, int(digits) if digits else None)


@dataclass(frozen=True, slots=True)
class Received:
    """A request that the tunnel brought."""

    # The request's number in the output, counted from 1.
    number: int
    request: dict[str, Any]
    # The fields of the event `answered`, such as the status of the local program's answer and its duration.
    fields: dict[str, Any]
    # A function that sends the received request to the local address again. Its argument is `number`.
    resend: Callable[[int], None]


class History:
    """The newest requests: at most RECEIVED_MAX, with at most RECEIVED_BYTES_MAX characters of bodies together.

    The newest request is always kept, however large it is.
    """

    def __init__(self) -> None:
        self._all: deque[Received] = deque()
        self._bytes = 0
        self.count = 0

    def add(self, request: dict[str, Any], fields: dict[str, Any], resend: Callable[[int], None]) -> Received:
        self.count += 1
        one = Received(self.count, request, fields, resend)
        self._all.append(one)
        self._bytes += len(request["body"])
        while len(self._all) > RECEIVED_MAX or (self._bytes > RECEIVED_BYTES_MAX and len(self._all) > 1):
            self._bytes -= len(self._all.popleft().request["body"])
        return one

    def find(self, number: int | None) -> Received | None:
        """Return the request with this number, or the newest request if the number is None.

        Return None if there is no such request, or if it is not kept any more.
        """
        if number is None:
            return self._all[-1] if self._all else None
        return next((one for one in self._all if one.number == number), None)

    def __iter__(self) -> Iterator[Received]:
        return iter(self._all)


def is_ours(descriptor: int) -> bool:
    """Return whether a file descriptor is a terminal from which this process may read. A process in the background may
    not: the system would stop it.
    """
    if not os.isatty(descriptor):
        return False
    try:
        return os.tcgetpgrp(descriptor) == os.getpgrp()
    # This terminal does not control this process. So the system does not stop this process when it reads.
    except OSError:
        return True


@contextlib.contextmanager
def keys(descriptor: int, pressed: Callable[[str], None]) -> Iterator[None]:
    """Inside the `with` block, call `pressed` with each pressed key. Ctrl-C still interrupts the program. At the end of
    the block, restore the terminal.
    """
    loop = asyncio.get_running_loop()

    def read() -> None:
        text = os.read(descriptor, 1024).decode(errors="replace")
        if not text:  # the terminal was closed
            loop.remove_reader(descriptor)
        for key in text:
            pressed(key)

    before = termios.tcgetattr(descriptor)
    tty.setcbreak(descriptor)
    loop.add_reader(descriptor, read)
    try:
        yield
    finally:
        loop.remove_reader(descriptor)
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
