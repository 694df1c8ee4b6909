"""The check of the requests that a listener gets (Standard Webhooks 1.0).

For: the three headers, the signature, the time, and the messages of a batch. Not for: answering. Answer 2xx once the
listener has stored the message.
"""

from __future__ import annotations

import base64
import hmac
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import msgspec

from everput.errors import InvalidSignature

TOLERANCE_S: Final = 300
_PREFIX: Final = "whsec_"
_SECRET_BYTES_MIN: Final = 24
_SECRET_BYTES_MAX: Final = 64
# This regular expression takes linear time on any input, because its only repetition is bounded.
_SECONDS: Final = re.compile(r"[0-9]{1,15}")
_HEADERS: Final = ("webhook-id", "webhook-timestamp", "webhook-signature")
_BATCH: Final = "batch_"  # the beginning of a batch's `webhook-id`
_JSON: Final = "application/json"


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchMessage:
    """A message of a batch. `id` is the same in each attempt. `body` has the same bytes as the body of a request with
    only this message.
    """

    id: str
    content_type: str
    body: bytes
    attempt: int  # 1 for the first
    traceparent: str | None = None  # W3C Trace Context


class _Element(msgspec.Struct):
    """A message in the JSON array that is the body of a batch."""

    id: str
    content_type: str
    attempt: int
    body: msgspec.Raw = msgspec.Raw()  # empty if the element has none
    body_base64: str | None = None
    traceparent: str | None = None


_elements: Final = msgspec.json.Decoder(list[_Element])


def verify(
    secret: str,
    headers: Mapping[str, str],
    body: bytes,
    *,
    tolerance_s: float = TOLERANCE_S,
    now_s: float | None = None,  # seconds since the epoch, for tests
) -> str:
    """Check the signature of a request to a listener, and return the id of the request's message. The id is the same in
    each attempt.

    `body` is the request's body exactly as received. For a listener that gets batches, use verify_batch() instead.

    Raises InvalidSignature if the request is not signed with `secret`, or was sent more than `tolerance_s` seconds
    before or after now. Raises ValueError if `secret` is not base64 of 24 to 64 bytes.
    """
    # _secret_bytes() raises ValueError for an empty or short secret, because attackers could guess such a secret.
    key = _secret_bytes(secret)
    lower = {name.lower(): value for name, value in headers.items()}
    try:
        message_id, timestamp, signatures = (lower[name] for name in _HEADERS)
        content = f"{message_id}.{timestamp}.".encode() + body
        given = [one.encode() for one in signatures.split()]
    except (KeyError, UnicodeEncodeError):
        raise InvalidSignature(
            f"one of the headers {', '.join(_HEADERS)} is missing or not UTF-8: the request is not from Everput, or "
            "its headers were not passed on as received"
        ) from None
    if not _SECONDS.fullmatch(timestamp):
        raise InvalidSignature("webhook-timestamp is not a number of seconds, so the request is not from Everput")
    if abs((time.time() if now_s is None else now_s) - int(timestamp)) > tolerance_s:
        raise InvalidSignature(
            f"webhook-timestamp is more than {tolerance_s:g} s before or after this machine's time: check this "
            "machine's clock; if it is right, reject the request"
        )
    wanted = b"v1," + base64.b64encode(hmac.digest(key, content, "sha256"))
    if not any(hmac.compare_digest(wanted, one) for one in given):
        raise InvalidSignature(
            "no signature in webhook-signature is valid, so reject the request; if Everput sent it, check the secret, "
            "and pass the body as it was received"
        )
    return message_id


def verify_batch(
    secret: str,
    headers: Mapping[str, str],
    body: bytes,
    *,
    tolerance_s: float = TOLERANCE_S,
    now_s: float | None = None,  # seconds since the epoch, for tests
) -> list[BatchMessage]:
    """Check the signature of a request to a listener that gets batches, and return the request's messages in order.
    `body` is the request's body exactly as received.

    Until batches are turned on, a listener gets requests with a single message. For such a request, the list has one
    element.

    To accept all messages, answer 2xx. To reject some of the messages, answer 2xx with the JSON `{"failed": [ids]}`.
    The messages with these ids are sent again.

    Raises InvalidSignature and ValueError like verify(). Also raises ValueError if the signed body is not a batch.
    """
    request_id = verify(secret, headers, body, tolerance_s=tolerance_s, now_s=now_s)
    if request_id.startswith(_BATCH):
        try:
            return [_batch_message(one) for one in _elements.decode(body)]
        except (ValueError, RecursionError) as error:  # the errors of msgspec are ValueErrors
            raise ValueError(f"the body is not a batch of messages: {error}") from None
    lower = {name.lower(): value for name, value in headers.items()}
    attempt = lower.get("everput-attempt", "")
    return [
        BatchMessage(
            id=request_id,
            content_type=lower.get("content-type", _JSON),
            body=body,
            attempt=int(attempt) if _SECONDS.fullmatch(attempt) else 1,
            traceparent=lower.get("traceparent"),
        )
    ]


def _batch_message(element: _Element) -> BatchMessage:
    """Decode one message of a batch. Raises ValueError if the message does not have exactly one of `body` and
    `body_base64`.
    """
    body = bytes(element.body)
    if bool(body) == (element.body_base64 is not None):
        raise ValueError(
            "a message of this batch has both `body` and `body_base64`, or neither, so the request is not from Everput"
        )
    if element.body_base64 is not None:
        body = base64.b64decode(element.body_base64, validate=True)
    return BatchMessage(
        id=element.id,
        content_type=element.content_type,
        body=body,
        attempt=element.attempt,
        traceparent=element.traceparent,
    )


def _secret_bytes(secret: str) -> bytes:
    """Decode a signing secret by the rules of the server. Unlike the server, accept a secret without the prefix
    `whsec_`, too. Raises ValueError if the secret is not valid.
    """
    try:
        key = base64.b64decode(secret.removeprefix(_PREFIX), validate=True)
    except ValueError:  # includes binascii.Error
        raise ValueError(f"a signing secret must be base64, with or without {_PREFIX} before it") from None
    if not _SECRET_BYTES_MIN <= len(key) <= _SECRET_BYTES_MAX:
        raise ValueError(f"a signing secret must be base64 of {_SECRET_BYTES_MIN} to {_SECRET_BYTES_MAX} bytes")
    return key
