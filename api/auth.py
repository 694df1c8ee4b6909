"""Who asks: the API key in the header X-API-KEY.

For: finding the key (401) and checking its scopes (403). Not for: a key's form (broker/core/keys.py)."""

from __future__ import annotations

from typing import Final

from api.problems import Forbidden, Unauthenticated
from broker.core.directory import Key
from broker.core.keys import is_key, key_sha256
from broker.ports import DirectoryView

_REMEMBERED_MAX: Final = 10_000


class Keys:
    """Finds keys by their text. Remembers only how a text is hashed: a key revoked in the log is gone at once."""

    def __init__(self, view: DirectoryView) -> None:
        self._view = view
        self._hashes: dict[bytes, str] = {}

    async def find(self, text: bytes) -> Key:
        """The key (Unauthenticated)."""
        key = self._view.state.keys_by_sha256.get(self._hashes.get(text, ""))
        return await self._look_up(text) if key is None else key

    async def _look_up(self, text: bytes) -> Key:
        if not text:
            raise Unauthenticated("Send an API key in the header X-API-KEY.")
        decoded = text.decode("latin-1")
        if not is_key(decoded):
            raise Unauthenticated("The header X-API-KEY holds no API key of Everput.")
        sha256 = key_sha256(decoded)
        key = self._view.state.keys_by_sha256.get(sha256)
        if key is None:
            await self._view.caught_up()  # another process may have made it a moment ago
            key = self._view.state.keys_by_sha256.get(sha256)
        if key is None:
            raise Unauthenticated("This API key is unknown or was revoked.")
        if len(self._hashes) >= _REMEMBERED_MAX:
            self._hashes.clear()
        self._hashes[text] = sha256
        return key


def check_scope(key: Key, scope: str) -> None:
    """Forbidden when the key lacks it."""
    if scope not in key.scopes:
        raise Forbidden(f"This API key lacks the scope {scope!r}.")
