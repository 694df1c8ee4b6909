"""API keys and session tokens: their text form, what the log stores of them, and the rights of each scope.

For: making the text from random bytes, refusing a malformed text without a look-up, its SHA-256, the scopes. Not for:
the random bytes (broker/commands/organizations.py), finding a key's owner (directory.py).

The text is `evp_`, 43 base62 digits of 256 random bits, and 6 base62 digits of the CRC-32 of everything before them.
The first eight digits are shown as the key's prefix, so 208 bits stay secret.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Collection, Mapping
from typing import Final

PREFIX: Final = "evp_"
SESSION_PREFIX: Final = "evs_"  # session tokens have the same length
INVITATION_PREFIX: Final = "evi_"  # tokens of invitations, too
RANDOM_BYTES: Final = 32
# The scopes of API keys, each with a text for the API reference and docs/operations.md.
# A scope includes the scopes that continue its name after a colon: `messages` includes `messages:put`.
SCOPES: Final[Mapping[str, str]] = {
    "queues": (
        "create, read, rename and delete queues; create, read, change, pause, test, redrive, replay to and delete "
        "their listeners; read and rotate signing secrets; hold a tunnel. A listener gets every message of its "
        "queue, so a key with this scope can read messages by creating one"
    ),
    "queues:read": (
        "read queues, listeners, their deliveries, statistics and replays, but no signing secrets; hold no tunnel"
    ),
    "queues:operate": (
        "pause, resume, test and redrive listeners; start, pause, resume and cancel replays to a listener's own URLs"
    ),
    "messages": "put, read, change and delete messages, and read their deliveries",
    "messages:read": "read messages and their deliveries",
    "messages:put": "put messages, one or a batch; read the name and the stored bytes of the organization",
    "keys": (
        "read and revoke all keys of the organization; create keys with no more scopes and no longer life than its own"
    ),
    "audit": "read the organization's whole log, with the data of every message but no secrets",
}
SCOPES_WHOLE: Final = ("queues", "messages", "keys", "audit")  # these four include all other scopes
# An API key that is restricted to some queues may have only these scopes.
SCOPES_OF_QUEUES: Final = ("queues", "queues:read", "queues:operate", "messages", "messages:read", "messages:put")
QUEUES_MAX: Final = 100  # queues of a restricted key
_ALPHABET: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_RANDOM_DIGITS: Final = 43
_CHECK_DIGITS: Final = 6
_LENGTH: Final = len(PREFIX) + _RANDOM_DIGITS + _CHECK_DIGITS
_SHOWN: Final = len(PREFIX) + 8


def key_text(random: bytes, *, prefix: str = PREFIX) -> str:
    """Return an API key, or a token of a session or invitation, made from random bytes. Raises ValueError unless there
    are RANDOM_BYTES bytes.
    """
    if len(random) != RANDOM_BYTES:
        raise ValueError(f"a key needs {RANDOM_BYTES} random bytes, not {len(random)}")
    body = prefix + _base62(int.from_bytes(random), _RANDOM_DIGITS)
    return body + _check_digits(body)


def is_key(text: str, *, prefix: str = PREFIX) -> bool:
    """Return whether a text has the form of an API key: its prefix, length and checksum are right. With another
    `prefix`, check the form of a session's or invitation's token instead. If the form is wrong, the caller can refuse
    the text without a look-up.
    """
    if len(text) != _LENGTH or not text.startswith(prefix) or not text.isascii():
        return False
    return text[-_CHECK_DIGITS:] == _check_digits(text[:-_CHECK_DIGITS])


def covers(scopes: Collection[str], scope: str) -> bool:
    """Return whether these scopes include a scope, directly or as a part of a larger scope. For example, `messages`
    includes `messages:put`.
    """
    return scope in scopes or scope.partition(":")[0] in scopes


def key_sha256(text: str) -> str:
    """Return the SHA-256 of a whole API key or token in hex. The log stores this hash, and not the key or token.

    A key or token has 256 random bits, so the hash needs neither a salt nor many rounds.
    """
    return hashlib.sha256(text.encode()).hexdigest()


def key_prefix(text: str) -> str:
    """Return the first characters of an API key. Lists of keys show them, so that people can tell keys apart."""
    return text[:_SHOWN]


def _check_digits(body: str) -> str:
    return _base62(zlib.crc32(body.encode()), _CHECK_DIGITS)


def _base62(value: int, digits: int) -> str:
    text = ""
    for _ in range(digits):
        value, digit = divmod(value, len(_ALPHABET))
        text = _ALPHABET[digit] + text
    return text
