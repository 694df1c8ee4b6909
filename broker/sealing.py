"""Encrypts the listeners' signing secrets for the log and opens them again.

For: sealing with one key (Fernet: AES-128-CBC and HMAC-SHA256). Not for: where the key is kept (cli/first_start.py)."""

from __future__ import annotations

from cryptography.fernet import Fernet, InvalidToken

from broker.errors import ConfigurationError


def new_sealing_key() -> str:
    """32 random bytes, url-safe base64."""
    return Fernet.generate_key().decode()


class Sealer:
    """Seals and opens with one key (ConfigurationError when it is not a Fernet key)."""

    def __init__(self, sealing_key: str) -> None:
        try:
            self._fernet = Fernet(sealing_key)
        except ValueError:
            raise ConfigurationError("the sealing key is not 32 bytes in url-safe base64") from None

    def seal(self, secret: str) -> str:
        """The secret, encrypted, as text for an event."""
        return self._fernet.encrypt(secret.encode()).decode()

    def open(self, sealed: str) -> str:
        """The secret again (ConfigurationError when another key sealed it)."""
        try:
            return self._fernet.decrypt(sealed).decode()
        except InvalidToken:
            raise ConfigurationError(
                "a signing secret in the log was sealed with another key: start with the sealing key used before"
            ) from None
