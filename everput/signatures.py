"""Checks what a listener got (Standard Webhooks 1.0).

For: the three headers, the signature, the time. Not for: answering: 2xx once the message is safe with the listener."""

from __future__ import annotations

import base64
import binascii
import hmac
import time
from collections.abc import Mapping
from typing import Final

from everput.errors import InvalidSignature

TOLERANCE_S: Final = 300
_PREFIX: Final = "whsec_"
_HEADERS: Final = ("webhook-id", "webhook-timestamp", "webhook-signature")


def verify(
    secret: str,
    headers: Mapping[str, str],
    body: bytes,
    *,
    tolerance_s: float = TOLERANCE_S,
    now_s: float | None = None,
) -> str:
    """The message's id, the same at each attempt (InvalidSignature; ValueError when the secret is none).

    headers: of the request, in any case. body: as it came, byte for byte. tolerance_s: how far its time may be from
    this machine's. now_s: seconds since the epoch, None for now.
    """
    try:
        key = base64.b64decode(secret.removeprefix(_PREFIX), validate=True)
    except binascii.Error:
        raise ValueError(f"a signing secret is base64 after {_PREFIX}") from None
    lower = {name.lower(): value for name, value in headers.items()}
    try:
        message_id, timestamp, signatures = (lower[name] for name in _HEADERS)
        sent_s = int(timestamp)
    except (KeyError, ValueError):
        raise InvalidSignature(f"the headers {', '.join(_HEADERS)} are not all there and as they must be") from None
    if abs((time.time() if now_s is None else now_s) - sent_s) > tolerance_s:
        raise InvalidSignature(f"it was sent more than {tolerance_s:g} s from now")
    content = f"{message_id}.{timestamp}.".encode() + body
    wanted = b"v1," + base64.b64encode(hmac.digest(key, content, "sha256"))
    if not any(hmac.compare_digest(wanted, one.encode()) for one in signatures.split()):
        raise InvalidSignature("no signature is right")
    return message_id
