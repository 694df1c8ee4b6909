"""Encrypted ids for messages that can't be read because their Kafka records are damaged.

For: lists of outstanding deliveries, and redrives of one delivery. The plain id consists of offsets in a partition that
all organizations share, so tenants must not see it. Operators see the offsets in `everput status --admin`.

An encrypted id is `damaged-` and URL-safe base64 without padding: a nonce of 12 bytes, then partition, first and last
offset encrypted with AES-256-GCM, then its tag of 16 bytes. The nonce is HMAC-SHA256 of the plain text, so that a
delivery keeps its id. The keys are HKDF-SHA256 of the sealing key. The associated data is the organization's id.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import re
import struct
from hashlib import sha256
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from broker.core.ids import damaged_id, parse_damaged_id
from broker.sealing import Sealer

_PURPOSE: Final = "everput damaged id"
_NONCE_PURPOSE: Final = "everput damaged id nonce"
_PLACE: Final = struct.Struct(">HQQ")
_NONCE_BYTES: Final = 12
_PREFIX: Final = "damaged-"
# This regular expression takes linear time on any input, because it repeats one set of characters exactly 62 times.
_SEALED: Final = re.compile(r"damaged-([A-Za-z0-9_-]{62})", re.ASCII)


class DamagedIds:
    """The encryption of ids that stand for ranges of damaged messages. Such an id contains Kafka offsets, so clients
    see it only encrypted.

    The newest sealing key encrypts ids. If an older sealing key has encrypted an id, that key can still decrypt it.
    """

    def __init__(self, sealer: Sealer) -> None:
        self._ciphers = [AESGCM(key) for key in sealer.derived_keys(_PURPOSE)]
        self._nonce_key = sealer.derived_keys(_NONCE_PURPOSE)[0]

    def shown(self, message_id: str, organization_id: str) -> str:
        """Return a message's id as clients of its organization see it. If the id stands for a range of damaged
        messages, return it encrypted, because it contains Kafka offsets. Return any other id unchanged.
        """
        where = parse_damaged_id(message_id)
        if where is None:
            return message_id
        place, bound = _PLACE.pack(*where), organization_id.encode()
        nonce = hmac.digest(self._nonce_key, bound + b"\0" + place, sha256)[:_NONCE_BYTES]
        sealed = nonce + self._ciphers[0].encrypt(nonce, place, bound)
        return _PREFIX + base64.urlsafe_b64encode(sealed).decode().rstrip("=")

    def opened(self, text: str, organization_id: str) -> str | None:
        """Decrypt an id that shown() has encrypted for this organization. Return None for any other text."""
        found = _SEALED.fullmatch(text)
        if found is None:
            return None
        try:
            raw = base64.b64decode(found[1] + "=" * (-len(found[1]) % 4), b"-_", validate=True)
        except (binascii.Error, ValueError):
            return None
        for cipher in self._ciphers:
            try:
                place = cipher.decrypt(raw[:_NONCE_BYTES], raw[_NONCE_BYTES:], organization_id.encode())
            except InvalidTag:
                continue
            return damaged_id(*_PLACE.unpack(place))
        return None
