"""One message as the deliverers hold it: a record of the log, decoded when first needed, its body encoded once.

For: what every listener of the queue gets, the same bytes. Not for: headers and signatures, which differ (http.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import orjson

from broker.core.directory import Queue
from broker.core.events import decode_message
from broker.core.signing import signed_content


class Message:
    """offset: in its partition. size: bytes of the record, what holding it costs."""

    __slots__ = ("_body", "_signed", "_signed_at", "_value", "id", "key", "offset", "put_at_ms", "queue_id", "size")

    def __init__(self, offset: int, message_id: bytes, queue_id: str, put_at_ms: int, value: bytes) -> None:
        self.offset = offset
        self.queue_id = queue_id
        self.id = message_id
        self.put_at_ms = put_at_ms
        self.size = len(value)
        self._value: bytes | None = value
        self._body = b""
        self._signed_at = b""
        self._signed = b""
        self.key: str | None = None

    def body(self, queue: Queue) -> bytes:
        """`{"queue":{"id","name"},"message":{"id","name","data"}}`, encoded at the first call (UnknownEvent)."""
        if self._value is not None:
            event = decode_message(self._value)
            self.key = event.key
            self._body = orjson.dumps(
                {
                    "queue": {"id": queue.id, "name": queue.name},
                    "message": {"id": event.message_id, "name": event.name, "data": event.data},
                }
            )
            self._value = None
        return self._body

    def signed_content(self, timestamp: bytes, body: bytes) -> bytes:
        """What is signed at this second: made once for all listeners that get the message within it."""
        if timestamp != self._signed_at:
            self._signed_at = timestamp
            self._signed = signed_content(message_id=self.id, timestamp=timestamp, body=body)
        return self._signed

    def name_and_data(self) -> tuple[str, str]:
        """What was put; empty strings for a record that can't be decoded."""
        if self._value is not None:
            return "", ""
        message = orjson.loads(self._body)["message"]
        return message["name"], message["data"]


def messages(records: Iterable[Any]) -> Iterator[Message]:
    """Kafka records of `messages`, as a consumer or a single read brings them; the first header is the queue's id."""
    for record in records:
        headers = record.headers
        queue_id = headers[0][1].decode() if headers and headers[0][1] else ""
        yield Message(record.offset, record.key or b"", queue_id, record.timestamp, record.value or b"")
