"""Password hashing with argon2id: 46 MiB, one pass, one lane, which is OWASP's first choice.

For: refusing new passwords that are easy to guess, and hashing a few passwords at a time in threads. A check takes as
long for an unknown account as for a known one. Not for: rate limits (api/accounts.py).
"""

from __future__ import annotations

import asyncio
import math
import unicodedata
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import Final, TypeVar

from argon2 import PasswordHasher
from argon2.exceptions import VerificationError

from broker.errors import Refused, Unavailable

CHARS_MIN: Final = 10
CHARS_MAX: Final = 1000
AT_ONCE: Final = 2  # Hashing one password takes 46 MiB of memory, and less than 0.1 s of a processor.
# If WAITING_MAX passwords are being checked or wait to be checked, a request with another password is refused.
WAITING_MAX: Final = 150
_SCORE_MIN: Final = 2  # the lowest zxcvbn score that is accepted; score 2 means over a million guesses
# zxcvbn tries each letter that a symbol such as @ or 4 can stand for. More combinations take it more time.
# On a test machine, zxcvbn took 14 s for 72 hostile characters.
# zxcvbn gets only the beginning of a password, because judging the beginning takes at most 0.2 s.
# zxcvbn gets at most JUDGED_CHARS_MAX characters, with at most _READINGS_MAX ways to read symbols as letters.
JUDGED_CHARS_MAX: Final = 32
_READINGS_MAX: Final = 8
_judging: Final = Lock()  # zxcvbn has a global variable

T = TypeVar("T")


class TooManyPasswords(Unavailable):
    """Too many passwords are being checked at the moment."""

    code = "busy"


class Passwords:
    """The hashing and checking of passwords in one process. Two threads (AT_ONCE) do this work."""

    def __init__(self, hasher: PasswordHasher | None = None) -> None:
        self._hasher = hasher or PasswordHasher(time_cost=1, memory_cost=46 << 10, parallelism=1)
        self._threads = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="password")
        self._waiting = 0
        self._dummy_hash: str | None = None

    async def hash(
        self, password: str, *, about: Sequence[str] = (), pointer: str = "/password", random: bool = False
    ) -> str:
        """Return the hash of a new password in PHC form.

        `about` holds words that an attacker would try first, such as the e-mail address. If Everput itself has drawn
        the password at random, `random` is true: it is then not judged, which would load zxcvbn into this process.
        Raises Refused if the password is too short, too long or easy to guess; TooManyPasswords if too many are being
        checked.
        """
        if not CHARS_MIN <= len(password) <= CHARS_MAX:
            raise Refused(f"The password must have {CHARS_MIN} to {CHARS_MAX} characters.", pointer=pointer)
        return await self._beside(lambda: self._judged_and_hashed(password, about, pointer, random=random))

    def _judged_and_hashed(self, password: str, about: Sequence[str], pointer: str, *, random: bool) -> str:
        reason = None if random else refuse_password(password, about)
        if reason is not None:
            raise Refused(f"This password can't be used. It {reason}.", pointer=pointer)
        return self._hasher.hash(_normal(password))

    async def fits(self, password: str, password_hash: str | None) -> bool:
        """Return whether a password matches its hash.

        For an unknown account, pass None: the call takes as long and returns False. Raises TooManyPasswords if too many
        passwords are being checked.
        """
        return await self._beside(lambda: self._fits(password[: CHARS_MAX + 1], password_hash))

    def _fits(self, password: str, password_hash: str | None) -> bool:
        if self._dummy_hash is None:
            self._dummy_hash = self._hasher.hash("")
        try:
            self._hasher.verify(password_hash or self._dummy_hash, _normal(password))
        except VerificationError:
            return False
        return password_hash is not None

    async def _beside(self, work: Callable[[], T]) -> T:
        if self._waiting >= WAITING_MAX:
            raise TooManyPasswords("Too many passwords are being checked at the moment. Try again.")
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        finally:
            self._waiting -= 1


def refuse_password(password: str, about: Sequence[str] = ()) -> str | None:
    """Return the reason why a password is too easy to guess, as the end of an error message. Return None if the
    password is good enough.

    Only the beginning of a long password is judged. A call takes up to 0.2 s, so don't call this function on the event
    loop.
    """
    import zxcvbn  # Import zxcvbn here: its dictionaries take 12 MiB, and most processes judge no password.

    judged = _judged(_normal(password).decode())
    # zxcvbn gets only the beginning of the password. A long password with many symbols would take too much time.
    # If the judged part is shorter than CHARS_MIN, the password has many symbols that look like letters: accept it.
    if len(judged) < CHARS_MIN:
        return None
    known = [part for text in about for part in (text, *text.split("@"))]
    with _judging:
        found = zxcvbn.zxcvbn(judged, user_inputs=["everput", *known])
    if found["score"] >= _SCORE_MIN:
        return None
    warning = found["feedback"]["warning"].rstrip(".")
    why = f" ({warning})" if warning else ""
    return f"is easy to guess{why}: use several uncommon words, or let a password manager create one"


def _judged(password: str) -> str:
    """Return the beginning of a password, at most JUDGED_CHARS_MAX characters, for zxcvbn to judge.

    zxcvbn reads symbols as letters, such as `4` as `a`, and tries all combinations of such readings. So the returned
    beginning is short enough for at most _READINGS_MAX combinations.
    """
    from zxcvbn.matching import L33T_TABLE

    end, seen = 0, set[str]()
    for character in password[:JUDGED_CHARS_MAX]:
        seen.add(character)
        if math.prod(max(1, len(seen.intersection(symbols))) for symbols in L33T_TABLE.values()) > _READINGS_MAX:
            break
        end += 1
    return password[:end]


def _normal(password: str) -> bytes:
    """Return the bytes of a text in Unicode's normal form (NIST SP 800-63B, 3.1.1.2). So the same characters give the
    same bytes, whatever keyboard they were typed on.
    """
    return unicodedata.normalize("NFKC", password).encode()
