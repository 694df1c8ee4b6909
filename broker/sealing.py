"""The encryption of listeners' signing secrets and headers in the log.

For: encrypting (Fernet: AES-128-CBC and HMAC-SHA256) with one key, and decrypting with any of several keys, so that the
key can be changed. Not for: where the keys are stored (cli/files.py), changing them (cli/commands/rotate.py).
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable
from typing import Final

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from broker.errors import ConfigurationError

# This regular expression takes linear time on any input, because it is only one repeated set of characters.
_BETWEEN = re.compile(r"[\s,]+")


def new_sealing_key() -> str:
    """Return 32 random bytes in url-safe base64."""
    return Fernet.generate_key().decode()


MAKE_KEY: Final = "openssl rand -base64 32 | tr '+/' '-_'"  # the shell command that makes a sealing key


class Sealer:
    """The encryption and decryption of listeners' secrets in the log.

    `sealing_keys` is one Fernet key, or several keys with commas between them. The first key encrypts. To decrypt, all
    keys are tried. Raises ConfigurationError if a key is not valid.
    """

    def __init__(self, sealing_keys: str) -> None:
        try:
            keys = _BETWEEN.split(sealing_keys.strip())
            fernets = [Fernet(key) for key in keys]
        except ValueError:
            raise ConfigurationError(
                "the sealing key must be 32 bytes in url-safe base64: check it where it is set (EVERPUT_SEALING_KEY, "
                "EVERPUT_SEALING_KEY_FILE, or the file `sealing-key` in the data directory). For a new installation, "
                f"this command makes a key: {MAKE_KEY}"
            ) from None
        self._newest = fernets[0]
        self._any = MultiFernet(fernets)
        self.keys = len(fernets)
        self._secrets = [base64.urlsafe_b64decode(key) for key in keys]

    def seal(self, secret: str) -> str:
        """Encrypt a secret. Return the result as text for an event."""
        return self._newest.encrypt(secret.encode()).decode()

    def open(self, sealed: str) -> str:
        """Decrypt a secret. Raises ConfigurationError if none of the sealing keys can decrypt it."""
        try:
            return self._any.decrypt(sealed).decode()
        except InvalidToken:
            raise ConfigurationError(
                "the log holds secrets that none of the given sealing keys can decrypt: append a comma and the missing "
                "key to the sealing key (in EVERPUT_SEALING_KEY, in the file that EVERPUT_SEALING_KEY_FILE names, or "
                "in the file `sealing-key` of the data directory), and start again"
            ) from None

    def derived_keys(self, purpose: str) -> list[bytes]:
        """Derive a key of 32 bytes from each sealing key, in the order of the sealing keys (HKDF-SHA256, RFC 5869).
        `purpose` is a text: each purpose gives other keys.
        """
        return [HKDF(SHA256(), 32, salt=None, info=purpose.encode()).derive(secret) for secret in self._secrets]

    def reseal(self, sealed: Iterable[str]) -> dict[str, str]:
        """Encrypt secrets with the first sealing key if they are encrypted with another one. `sealed` holds the
        encrypted secrets.

        Return the new encrypted text for each replaced one. Raises ConfigurationError if no sealing key can decrypt a
        text.
        """
        stale = {}
        for text in sealed:
            try:
                self._newest.decrypt(text)
            except InvalidToken:
                stale[text] = self.seal(self.open(text))
        return stale

    def check(self, sealed: Iterable[str]) -> None:
        """Raise ConfigurationError if one of the encrypted texts can't be decrypted with the sealing keys."""
        for text in sealed:
            self.open(text)
