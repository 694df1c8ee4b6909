"""Signs the request of one attempt.

For: the three headers and the order of the signed bytes (Standard Webhooks 1.0, "Signature scheme").
Not for: which secret is current (broker/core/directory.py) or sending (broker/delivery/http.py)."""

from __future__ import annotations

import base64
import binascii
import hmac
from typing import Final

PREFIX: Final = "whsec_"


def secret_bytes(secret: str) -> bytes:
    """The key of a `whsec_…` secret: 24 to 64 bytes, base64 (ValueError when it is not that)."""
    if not secret.startswith(PREFIX):
        raise ValueError(f"a signing secret starts with {PREFIX}")
    try:
        key = base64.b64decode(secret[len(PREFIX) :], validate=True)
    except ValueError:  # binascii.Error is one
        raise ValueError(f"a signing secret is base64 after {PREFIX}") from None
    if not 24 <= len(key) <= 64:
        raise ValueError("a signing secret holds 24 to 64 bytes")
    return key


def secret_text(key: bytes) -> str:
    """The `whsec_…` form of a key."""
    return PREFIX + base64.b64encode(key).decode()


def signed_content(*, message_id: bytes, timestamp: bytes, body: bytes) -> bytes:
    """What is signed, the same for all listeners of a message.

    timestamp: seconds since the UTC epoch, in decimal digits, as in `webhook-timestamp`.
    """
    return b"%b.%b.%b" % (message_id, timestamp, body)


def signature(key: bytes, content: bytes) -> bytes:
    """The value of `webhook-signature` for one secret: `v1,` and the base64 HMAC-SHA256 of signed_content()."""
    return b"v1," + binascii.b2a_base64(hmac.digest(key, content, "sha256"), newline=False)
