"""A message in the memory of a worker: decoded when first needed, with one request body for all listeners of its queue.

For: the bytes that every listener gets. Not for: headers and signatures, which differ from listener to listener.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any, Final

import orjson
from msgspec import UNSET

from broker.core.codec import message_texts
from broker.core.entities import Queue

# For at most this many queue ids, search the bytes of a record batch first, and parse the batch only if it has an id.
# The search of a record batch for one queue id takes a sixth of the time that parsing the batch takes.
_SOUGHT_MAX: Final = 4


class Message:
    """A message in the memory of a worker, from a record of the topic `messages` or `outstanding`. The record is
    decoded at the first call of `body()`, which also sets `key`, `deliver_at_ms` and `traceparent`.
    """

    __slots__ = (
        *("_body", "_change", "_value", "deliver_at_ms", "id", "key", "offset", "put_at_ms", "queue_id", "size"),
        "traceparent",
    )

    def __init__(self, offset: int, message_id: bytes, queue_id: str, put_at_ms: int, value: bytes) -> None:
        self.offset = offset
        self.queue_id = queue_id
        self.id = message_id
        self.put_at_ms = put_at_ms
        self.size = len(value)  # in bytes
        self._value: bytes | None = value
        self._body = b""
        self.key: str | None = None
        self.deliver_at_ms = 0  # 0: deliver at once
        self.traceparent: str | None = None  # the W3C trace context for the message's attempts; None if there is none
        self._change = -1

    def body(self, queue: Queue) -> bytes:
        """Return the message as JSON, in Everput's own format for a request:
        `{"queue":{"id","name"},"message":{"id","name","data"}}`. Raises UnknownEvent if the record can't be decoded.
        """
        if self._value is not None:
            texts = message_texts(self._value)
            self.key = texts.key
            if texts.deliver_at_ms is not UNSET:
                self.deliver_at_ms = texts.deliver_at_ms
            if texts.traceparent is not UNSET:
                self.traceparent = texts.traceparent
            self._body = b'{"queue":%b,"message":{"id":"%b","name":%b,"data":%b}}' % (
                orjson.dumps({"id": queue.id, "name": queue.name}),
                self.id,
                texts.name,
                texts.data,
            )
            self._value = None
        return self._body

    def change(self) -> int:
        """Return the offset of the update that the message's data comes from, in the topic `changes`. Return -1 if the
        data is as first put.
        """
        return self._change

    def renewed(self, data: str | None, change: int) -> Message:
        """Return a copy of the message with the new data of an update. If `data` is None, keep the present data. Call
        this only after `body()`.
        """
        fields = orjson.loads(self._body)
        if data is not None:
            fields["message"]["data"] = data
        renewed = Message(self.offset, self.id, self.queue_id, self.put_at_ms, b"")
        renewed._body, renewed._value, renewed._change = orjson.dumps(fields), None, change
        renewed.key, renewed.size = self.key, len(renewed._body)
        renewed.deliver_at_ms, renewed.traceparent = self.deliver_at_ms, self.traceparent
        return renewed

    def name_and_data(self) -> tuple[str, str]:
        """Return the message's name and data, or two empty strings if the record was not decoded."""
        if self._value is not None:
            return "", ""
        message = orjson.loads(self._body)["message"]
        return message["name"], message["data"]


def messages(records: Iterable[Any], queue_ids: Collection[str] | None = None) -> Iterator[Message]:
    """Yield the messages of the given queues that are in these Kafka records. If `queue_ids` is None, yield all
    messages. The id of a message's queue is in the first header of its record, so records of other queues need not be
    decoded.
    """
    wanted = None if queue_ids is None else {queue_id.encode() for queue_id in queue_ids}
    for record in records:
        headers = record.headers
        queue_id = headers[0][1] if headers and headers[0][1] else b""
        if wanted is None or queue_id in wanted:
            yield Message(record.offset, record.key or b"", queue_id.decode(), record.timestamp, record.value or b"")


def may_be_in(queue_ids: Collection[str]) -> Callable[[bytes], bool] | None:
    """Return a function that tests whether the bytes of a record batch may contain messages of these queues. Return
    None if there are more than `_SOUGHT_MAX` queues, because the test would then take about as long as parsing the
    batch.
    """
    if len(queue_ids) > _SOUGHT_MAX:
        return None
    wanted = [queue_id.encode() for queue_id in queue_ids]
    return lambda raw: any(queue_id in raw for queue_id in wanted)
