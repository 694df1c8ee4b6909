"""What `everput listen` does at a terminal besides: keys that send a request again, show a body, list what came.

For: what a key means, the requests that it may mean, and reading keys without Enter. Not for: sending
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
    "Keys: r sends the last request again, 3r the one with number 3; b shows bodies or hides them, 3b shows that of "
    "number 3; l lists what came; q quits."
)
_DIGITS_MAX: Final = 9
_ACTIONS: Final = {"r": "resend", "b": "body", "l": "list", "q": "quit", "?": "help", "h": "help"}


class Action(NamedTuple):
    """What is asked for: resend, body, list, quit or help. number: of a request, None for none."""

    name: str
    number: int | None


class Keyboard:
    """Keys to actions: a letter is one, digits before it are its number. Anything else is forgotten, digits too."""

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
    """number: from 1, as it is shown. request: as the tunnel brought it. fields: what was told of its answer.

    resend: sends it to the local address once more.
    """

    number: int
    request: dict[str, Any]
    fields: dict[str, Any]
    resend: Callable[[], None]


class History:
    """The newest requests: up to RECEIVED_MAX, and RECEIVED_BYTES_MAX of their bodies, but the last one at any size."""

    def __init__(self) -> None:
        self._all: deque[Received] = deque()
        self._bytes = 0
        self.count = 0

    def add(self, request: dict[str, Any], fields: dict[str, Any], resend: Callable[[], None]) -> Received:
        self.count += 1
        one = Received(self.count, request, fields, resend)
        self._all.append(one)
        self._bytes += len(request["body"])
        while len(self._all) > RECEIVED_MAX or (self._bytes > RECEIVED_BYTES_MAX and len(self._all) > 1):
            self._bytes -= len(self._all.popleft().request["body"])
        return one

    def find(self, number: int | None) -> Received | None:
        """The one with this number, None: the last one; None when it is not there (any more)."""
        if number is None:
            return self._all[-1] if self._all else None
        return next((one for one in self._all if one.number == number), None)

    def __iter__(self) -> Iterator[Received]:
        return iter(self._all)


def is_ours(descriptor: int) -> bool:
    """Whether it is a terminal that we may read: not in the background, where reading would stop us."""
    if not os.isatty(descriptor):
        return False
    try:
        return os.tcgetpgrp(descriptor) == os.getpgrp()
    except OSError:  # a terminal, but not the one that controls us
        return True


@contextlib.contextmanager
def keys(descriptor: int, pressed: Callable[[str], None]) -> Iterator[None]:
    """Have each key told as it is pressed. Ctrl-C stays what it is; afterwards the terminal is as it was."""
    loop = asyncio.get_running_loop()

    def read() -> None:
        text = os.read(descriptor, 1024).decode(errors="replace")
        if not text:  # nobody is there any more
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
