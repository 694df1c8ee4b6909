"""Known browsers: those in which somebody has signed in to an account before (docs/decisions/0193).

For: the cookie that a browser keeps as a proof of that, so that guesses of strangers do not keep the account's owner
out. Not for: signing in (accounts.py): the cookie opens nothing."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections.abc import Sequence
from typing import Final

from starlette.types import Scope

from api.auth import cookie

NAME: Final = "everput_browser"
NAME_HTTPS: Final = f"__Host-{NAME}"  # as of the session's cookie
KNOWN_S: Final = 365 * 86_400
_RANDOM_BYTES: Final = 16
_TEXT_CHARS_MAX: Final = 200


class Browsers:
    """The cookies of known browsers. keys: the first one signs, and any of them is believed."""

    def __init__(self, keys: Sequence[bytes]) -> None:
        self._keys = keys

    def cookie(self, email: str, *, https: bool) -> tuple[bytes, bytes]:
        """Return the header that makes a browser known for this account for a year."""
        claim = f"{int(time.time()) + KNOWN_S}.{secrets.token_urlsafe(_RANDOM_BYTES)}"
        value = f"{claim}.{_signature(self._keys[0], claim, email)}"
        name, secure = (NAME_HTTPS, "; Secure") if https else (NAME, "")
        text = f"{name}={value}; Path=/; Max-Age={KNOWN_S}; HttpOnly; SameSite=Strict{secure}"
        return b"set-cookie", text.encode()

    def knows(self, scope: Scope, email: str, *, https: bool) -> bool:
        """Return whether the browser has signed in to the account with this e-mail address before."""
        sent = dict(scope["headers"]).get(b"cookie", b"").decode("latin-1")
        value = cookie(sent, NAME_HTTPS if https else NAME)
        if value is None or len(value) > _TEXT_CHARS_MAX or not value.isascii():
            return False
        claim, _, signature = value.rpartition(".")
        if not any(hmac.compare_digest(_signature(key, claim, email), signature) for key in self._keys):
            return False
        return int(claim.partition(".")[0]) > time.time()


def _signature(key: bytes, claim: str, email: str) -> str:
    return hmac.new(key, f"{claim}\n{email.lower()}".encode(), hashlib.sha256).hexdigest()
