"""Requests of Kafka's protocol whose bodies are packed by hand, for aiokafka's connections.

For: the request objects that aiokafka's connection needs. Not for: the bytes of a request or an answer (fetch.py,
produce.py).
"""

from __future__ import annotations

import struct
from io import BytesIO
from typing import Any, Final, NamedTuple

INT16: Final = struct.Struct(">h")
INT32: Final = struct.Struct(">i")
_HEADER: Final = struct.Struct(">hhi")  # API key, version, correlation id


class PackedRequest:
    """A request with a packed body. `response_type` has a classmethod decode(), which parses the answer."""

    def __init__(self, api_key: int, version: int, body: bytes, response_type: Any) -> None:
        self._api_key, self._version, self._body = api_key, version, body
        self.RESPONSE_TYPE = response_type

    def build_request_header(self, correlation_id: int, client_id: str) -> _Header:
        name = client_id.encode()
        header = _HEADER.pack(self._api_key, self._version, correlation_id)
        return _Header(b"%b%b%b" % (header, INT16.pack(len(name)), name))

    def encode(self) -> bytes:
        return self._body

    def parse_response_header(self, data: BytesIO) -> _AnswerHeader:
        return _AnswerHeader(INT32.unpack(data.read(4))[0])


class _Header:
    """The encoded header of a request."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def encode(self) -> bytes:
        return self._data


class _AnswerHeader(NamedTuple):
    """The header of an answer."""

    correlation_id: int
