"""Hashes passwords and checks them: argon2id, by argon2-cffi, with 46 MiB, one pass, one lane (OWASP's first choice).

For: hashing beside the event loop, a bounded number at a time, and taking as long for an account that does not exist
as for one that does. Not for: how often somebody may guess (api/accounts.py)."""

from __future__ import annotations

import asyncio
import unicodedata
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

from argon2 import PasswordHasher
from argon2.exceptions import VerificationError

from broker.errors import Refused, Unavailable

CHARS_MIN: Final = 10
CHARS_MAX: Final = 1000
AT_ONCE: Final = 2  # 46 MiB and less than 0.1 s of a processor each
WAITING_MAX: Final = 50

T = TypeVar("T")


class TooManyPasswords(Unavailable):
    """Too many passwords are being checked at the moment."""

    code = "busy"


class Passwords:
    """One per process; its threads end with it."""

    def __init__(self) -> None:
        self._hasher = PasswordHasher(time_cost=1, memory_cost=46 << 10, parallelism=1)
        self._threads = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="password")
        self._waiting = 0
        self._nobodys: str | None = None

    async def hash(self, password: str, *, pointer: str = "/password") -> str:
        """In PHC form, for an event (Refused: not acceptable; TooManyPasswords). pointer: where it stands."""
        if not CHARS_MIN <= len(password) <= CHARS_MAX:
            raise Refused(f"the password must have {CHARS_MIN} to {CHARS_MAX} characters", pointer=pointer)
        return await self._beside(lambda: self._hasher.hash(_normal(password)))

    async def fits(self, password: str, password_hash: str | None) -> bool:
        """Whether it is the password of this hash; None, when there is no account, takes as long (TooManyPasswords)."""
        return await self._beside(lambda: self._fits(password[: CHARS_MAX + 1], password_hash))

    def _fits(self, password: str, password_hash: str | None) -> bool:
        if self._nobodys is None:
            self._nobodys = self._hasher.hash("")
        try:
            self._hasher.verify(password_hash or self._nobodys, _normal(password))
        except VerificationError:
            return False
        return password_hash is not None

    async def _beside(self, work: Callable[[], T]) -> T:
        if self._waiting >= WAITING_MAX:
            raise TooManyPasswords("Too many passwords are being checked at the moment.")
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        finally:
            self._waiting -= 1


def _normal(password: str) -> bytes:
    """The same bytes however a keyboard composes its characters (NIST SP 800-63B, 3.1.1.2)."""
    return unicodedata.normalize("NFKC", password).encode()
