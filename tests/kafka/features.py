"""Which features a Kafka cluster has finalized: what its brokers can't go back behind.

Kafka answers this request (ApiVersions, version 3) before anybody has given a password."""

from __future__ import annotations

import asyncio
import struct

_REQUEST = struct.pack(">hhih", 18, 3, 1, -1) + b"\0" + b"\x02x\x021\0"  # no client id; software `x`, version `1`
_FINALIZED = 2  # the tag of the field


class _Answer:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, size: int) -> bytes:
        self._at += size
        return self._data[self._at - size : self._at]

    def varint(self) -> int:
        found = shift = 0
        while True:
            (byte,) = self.take(1)
            found |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return found

    def skip_tags(self) -> None:
        for _ in range(self.varint()):
            self.varint()
            self.take(self.varint())


async def finalized_features(port: int) -> dict[str, int]:
    """By name, such as `metadata.version`, the level."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(struct.pack(">i", len(_REQUEST)) + _REQUEST)
        (size,) = struct.unpack(">i", await reader.readexactly(4))
        answer = _Answer(await reader.readexactly(size))
    finally:
        writer.close()
    answer.take(4)  # the request's number
    assert struct.unpack(">h", answer.take(2)) == (0,), "an error"
    for _ in range(answer.varint() - 1):
        answer.take(6)
        answer.skip_tags()
    answer.take(4)
    for _ in range(answer.varint()):
        tag, field = answer.varint(), _Answer(answer.take(answer.varint()))
        if tag == _FINALIZED:
            return dict(_level(field) for _ in range(field.varint() - 1))
    return {}


def _level(field: _Answer) -> tuple[str, int]:
    name = field.take(field.varint() - 1).decode()
    highest, _ = struct.unpack(">hh", field.take(4))
    field.skip_tags()
    return name, highest
