"""Known browsers: browsers in which somebody has signed in to an account before (docs/decisions/0193).

For: the cookie that proves it. Sign-in attempts from a known browser have limits of their own, so that strangers who
guess passwords do not keep the owner out. Not for: signing in (accounts.py). The cookie alone does not sign anybody in.
"""

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
NAME_HTTPS: Final = f"__Host-{NAME}"  # Browsers accept a `__Host-` cookie only over HTTPS.
KNOWN_S: Final = 365 * 86_400
_RANDOM_BYTES: Final = 16
_TEXT_CHARS_MAX: Final = 200


class Browsers:
    """The signed cookies by which Everput recognizes a browser in which somebody has signed in to an account. A browser
    has only one such cookie, for the account of the newest sign-in.

    The first of `keys` signs new cookies. A signature by any of `keys` is accepted.
    """

    def __init__(self, keys: Sequence[bytes], *, known_s: int = KNOWN_S) -> None:
        self._known_s = known_s
        self._keys = keys

    def cookie(self, email: str, *, https: bool) -> tuple[bytes, bytes]:
        """Return the `Set-Cookie` header that marks this browser as known to an account for `known_s` seconds, by
        default a year. If the browser has such a cookie for another account, this cookie replaces it.
        """
        claim = f"{int(time.time()) + self._known_s}.{secrets.token_urlsafe(_RANDOM_BYTES)}"
        value = f"{claim}.{_signature(self._keys[0], claim, email)}"
        name, secure = (NAME_HTTPS, "; Secure") if https else (NAME, "")
        text = f"{name}={value}; Path=/; Max-Age={self._known_s}; HttpOnly; SameSite=Strict{secure}"
        return b"set-cookie", text.encode()

    def knows(self, scope: Scope, email: str, *, https: bool) -> bool:
        """Return whether a cookie of this browser proves a sign-in to the account with this e-mail address within the
        last `known_s` seconds.
        """
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
