"""The check of the requests that a listener gets (Standard Webhooks 1.0).

For: the three headers, the signature, the time. Not for: answering. Answer 2xx once the listener has stored the
message.
"""

from __future__ import annotations

import base64
import hmac
import re
import time
from collections.abc import Mapping
from typing import Final

from everput.errors import InvalidSignature

TOLERANCE_S: Final = 300
_PREFIX: Final = "whsec_"
_SECRET_BYTES_MIN: Final = 24
_SECRET_BYTES_MAX: Final = 64
# This regular expression takes linear time on any input, because it repeats one set of characters, with a bound.
_SECONDS: Final = re.compile(r"[0-9]{1,15}")
_HEADERS: Final = ("webhook-id", "webhook-timestamp", "webhook-signature")


def verify(
    secret: str,
    headers: Mapping[str, str],
    body: bytes,
    *,
    tolerance_s: float = TOLERANCE_S,
    now_s: float | None = None,  # seconds since the epoch, for tests
) -> str:
    """Check the signature of a request that a listener got, and return the message's id, which is the same in each
    attempt. `body` is the request's body as received, byte for byte.

    Raises InvalidSignature if the request is not signed with the secret, or was sent more than `tolerance_s` seconds
    from now. Raises ValueError if the secret is not base64 of 24 to 64 bytes.
    """
    key = _secret_bytes(secret)  # An empty secret raises, because anybody could sign with it.
    lower = {name.lower(): value for name, value in headers.items()}
    try:
        message_id, timestamp, signatures = (lower[name] for name in _HEADERS)
        content = f"{message_id}.{timestamp}.".encode() + body
        given = [one.encode() for one in signatures.split()]
    except (KeyError, UnicodeEncodeError):
        raise InvalidSignature(f"one of the headers {', '.join(_HEADERS)} is missing or not UTF-8") from None
    if not _SECONDS.fullmatch(timestamp):
        raise InvalidSignature("webhook-timestamp is not a number of seconds")
    if abs((time.time() if now_s is None else now_s) - int(timestamp)) > tolerance_s:
        raise InvalidSignature(
            f"webhook-timestamp is more than {tolerance_s:g} s before or after the time of this machine"
        )
    wanted = b"v1," + base64.b64encode(hmac.digest(key, content, "sha256"))
    if not any(hmac.compare_digest(wanted, one) for one in given):
        raise InvalidSignature("no signature in webhook-signature is valid for this secret")
    return message_id


def _secret_bytes(secret: str) -> bytes:
    """Decode a signing secret, by the server's rules. The prefix `whsec_` is optional. Raises ValueError if it is not
    valid.
    """
    try:
        key = base64.b64decode(secret.removeprefix(_PREFIX), validate=True)
    except ValueError:  # includes binascii.Error
        raise ValueError(f"a signing secret must be {_PREFIX} followed by base64") from None
    if not _SECRET_BYTES_MIN <= len(key) <= _SECRET_BYTES_MAX:
        raise ValueError(f"a signing secret must decode to {_SECRET_BYTES_MIN} to {_SECRET_BYTES_MAX} bytes")
    return key
