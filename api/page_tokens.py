"""Encrypted page tokens for lists that continue at a Kafka offset.

Partitions hold the messages of all organizations, so a plain offset would tell a tenant how much other tenants put. Not
for: lists that continue after one of their own items (pages.py).

A token is in URL-safe base64 without padding: the byte 1, a nonce of 12 random bytes, the position encrypted with
AES-256-GCM, its tag of 16 bytes. The key is HKDF-SHA256 of the sealing key, without salt and with the info `everput
page token`. The associated data are the organization's id, a zero byte and the list's path, so that a token of another
list is refused.
"""

from __future__ import annotations

import base64
import binascii
import os
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from api.problems import BadParameter
from broker.sealing import Sealer

_PURPOSE: Final = "everput page token"
_VERSION: Final = b"\x01"
_NONCE_BYTES: Final = 12


class PageTokens:
    """The encryption of page tokens. A client sends a page token to get the next page of a list. The tokens in
    password-reset mails and the cookies of OpenID Connect sign-ins are encrypted in the same way.

    The newest sealing key encrypts a token, and every sealing key can decrypt it.
    """

    def __init__(self, sealer: Sealer) -> None:
        self._ciphers = [AESGCM(key) for key in sealer.derived_keys(_PURPOSE)]

    def seal(self, position: bytes, organization_id: str, path: str) -> str:
        """Encrypt a position in the list at this path as a page token."""
        nonce = os.urandom(_NONCE_BYTES)
        sealed = self._ciphers[0].encrypt(nonce, position, _bound_to(organization_id, path))
        return base64.urlsafe_b64encode(_VERSION + nonce + sealed).decode().rstrip("=")

    def open(self, token: str, organization_id: str, path: str) -> bytes:
        """Decrypt a page token. Raises BadParameter if the token is not from this list of this organization."""
        try:
            raw = base64.b64decode(token + "=" * (-len(token) % 4), b"-_", validate=True)
        except (binascii.Error, ValueError):
            raw = b""
        nonce, sealed = raw[1 : 1 + _NONCE_BYTES], raw[1 + _NONCE_BYTES :]
        if raw[:1] == _VERSION and len(nonce) == _NONCE_BYTES:
            for cipher in self._ciphers:
                try:
                    return cipher.decrypt(nonce, sealed, _bound_to(organization_id, path))
                except InvalidTag:
                    continue
        raise BadParameter(
            "The cursor is not valid for this request. Take a cursor from an earlier answer of the same list or log, "
            "or leave the cursor out to start at the beginning.",
            parameter="cursor",
        )


def _bound_to(organization_id: str, path: str) -> bytes:
    return f"{organization_id}\0{path}".encode()
