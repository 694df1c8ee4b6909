"""Requests of Kafka's protocol whose bodies are packed by hand, for aiokafka's connections.

For: the request objects that aiokafka's connection needs, and sending them over an open connection without a task. Not
for: the bytes of a request or an answer (fetch.py, produce.py), opening a connection (aiokafka's client does that).
"""

# ruff: noqa: SLF001 - aiokafka's connections and clients have no public names for what is needed here

from __future__ import annotations

import asyncio
import struct
from io import BytesIO
from typing import Any, Final, NamedTuple

from aiokafka.conn import CloseReason

INT16: Final = struct.Struct(">h")
INT32: Final = struct.Struct(">i")
_HEADER: Final = struct.Struct(">hhi")  # API key, version, correlation id


class PackedRequest:
    """A request to Kafka whose body is already encoded. aiokafka's connections can send it like their own requests. The
    class `response_type` must have a classmethod decode(), which parses Kafka's answer.
    """

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


def open_connection(client: Any, node: int | None, group: object, api_key: int, version: int) -> Any:
    """Return an aiokafka client's connection to a broker. Return None if no connection is open, or if the broker does
    not know this version of the request.
    """
    connection = client._conns.get((node, group))
    if connection is None or not connection.connected():
        return None
    least, most = connection._versions.get(api_key, (0, 0))
    return connection if least <= version <= most else None


def post(connection: Any, request: PackedRequest) -> asyncio.Future[Any]:
    """Send a request over an open connection, and return a future of its parsed answer.

    The connection closes if no answer comes within the connection's time limit. When the connection closes for any
    reason, the future raises KafkaConnectionError.
    """
    loop = asyncio.get_running_loop()
    correlation_id = connection._next_correlation_id()
    head = request.build_request_header(correlation_id, connection._client_id).encode()
    body = request.encode()
    answer: asyncio.Future[Any] = loop.create_future()
    timer = loop.call_later(connection._request_timeout, connection.close, CloseReason.CONNECTION_TIMEOUT)
    answer.add_done_callback(lambda _: timer.cancel())
    connection._requests.append((correlation_id, request, answer))
    try:
        connection._writer.write(b"%b%b%b" % (INT32.pack(len(head) + len(body)), head, body))
    except (OSError, RuntimeError):  # If the connection was lost a moment ago, uvloop raises RuntimeError.
        connection.close(CloseReason.CONNECTION_BROKEN)
    return answer
