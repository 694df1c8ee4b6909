"""Batches: which deliveries share one request, what the request's body is, and which messages its answer rejects.

For: a listener with the setting `batch`. Pure. Not for: admission and limits (broker/delivery/dispatch/batches.py),
sending, and what follows an attempt (delivery.py).

A request in batch format carries a JSON array with one object for each message. The order is the order of delivery.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Final

import orjson

from broker.core.events import BatchSetting

# The error of a message that the listener's 2xx answer to a batch names in the list `failed`.
FAILED_IN_BATCH: Final = "failed-in-batch"
_ID_DIGITS: Final = 32
_HALVINGS_MAX: Final = 10  # ten halvings reduce a limit of 1,000 messages per batch to one
_AROUND: Final = len(b'{"id":"","content_type":"application/json","attempt":9999999999,"body":},')
_AROUND_TRACE: Final = len(b'"traceparent":"",')


class FormingBatch:
    """A batch that takes deliveries in order until it is full.

    A batch has at most `max_messages` messages. If a message has failed once since its last redrive, its next batch has
    at most half as many messages; if it has failed twice, a quarter, and so on, down to one message. So a message that
    always fails does not use up the attempts of many others. For the same reason, a message that has failed before is
    sent alone in the last attempt that `max_attempts` allows (see halvings()).
    """

    __slots__ = ("_bytes", "_bytes_max", "_limit", "_messages_max", "full", "messages")

    def __init__(self, batch: BatchSetting) -> None:
        self._bytes = 1  # the array's 2 brackets, minus the comma that its last element lacks
        self._bytes_max = batch.max_bytes
        # `_messages_max` is the most messages allowed in this batch: fewer than `_limit` if one of them has failed.
        # `_limit` is the most messages allowed in any batch of this listener: `max_messages` in its settings.
        self._messages_max = self._limit = batch.max_messages
        self.messages = 0
        self.full = False

    def takes(self, size: int, failed: int) -> bool:
        """Add a message to the batch, and return True. Return False if the batch has no room for the message. An empty
        batch has room for a message of any size.

        `size` is the size in bytes of the message's element in the JSON array. `failed` is the result of halvings():
        how often the message halves the limit on the messages of its batch.
        """
        messages_max = self._messages_max
        if failed:
            messages_max = min(messages_max, max(1, self._limit >> min(failed, _HALVINGS_MAX)))
        if self.full or (self.messages and (self.messages >= messages_max or self._bytes + size > self._bytes_max)):
            self.full = True
            return False
        self._messages_max = messages_max
        self._bytes += size
        self.messages += 1
        self.full = self.messages >= messages_max or self._bytes >= self._bytes_max
        return True


def halvings(failed: int, max_attempts: int | None) -> int:
    """Return how often a message halves the limit on the messages of its batch. Usually, this is `failed`: how often
    the message has failed since its last redrive. If the message has failed and has only one attempt left, return ten,
    so that the message is sent alone.
    """
    return _HALVINGS_MAX if failed and max_attempts is not None and failed + 1 >= max_attempts else failed


def fills(batch: BatchSetting, messages: Iterable[tuple[int, int]]) -> bool:
    """Return whether these messages fill a batch, so that it can be sent without waiting for more messages. Each item
    of `messages` is a message's size in bytes, and its result of halvings(): how often the message halves the limit on
    the messages of its batch.
    """
    forming = FormingBatch(batch)
    for size, halved in messages:
        forming.takes(size, halved)
        if forming.full:
            return True
    return False


def batch_id(message_ids: Iterable[bytes]) -> bytes:
    """Return the `webhook-id` of a batch. The id depends only on the ids of the messages and their order."""
    return b"batch_" + hashlib.sha256(b",".join(message_ids)).hexdigest()[:_ID_DIGITS].encode()


def element(message_id: bytes, body: bytes, attempt: int, traceparent: str | None) -> bytes:
    """Return one message's JSON object in a batch. `body` is the body that a listener without batches gets for this
    message.
    """
    trace = b"" if traceparent is None else b'"traceparent":"%b",' % traceparent.encode()
    return b'{"id":"%b","content_type":"application/json","attempt":%d,%b"body":%b}' % (
        message_id,
        attempt,
        trace,
        body,
    )


def element_bytes_max(message_id: bytes, body: bytes, traceparent: str | None) -> int:
    """Return the most bytes that a message takes in a batch's JSON array: its object, with the longest attempt number,
    and a comma.
    """
    size = _AROUND + len(message_id) + len(body)
    return size if traceparent is None else size + _AROUND_TRACE + len(traceparent)


def batch_body(elements: Iterable[bytes]) -> bytes:
    """Return the JSON array that is the body of a batch: one HTTP request to a listener with several messages."""
    return b"[%b]" % b",".join(elements)


def failed_ids(body: bytes) -> frozenset[str]:
    """Return the message ids that a listener's 2xx answer to a batch rejects. The answer's body lists these ids in the
    field `failed` of a JSON object. Any other body rejects no message.
    """
    try:
        answer = orjson.loads(body)
    except orjson.JSONDecodeError:
        return frozenset()
    failed = answer.get("failed") if isinstance(answer, dict) else None
    return frozenset(one for one in failed if isinstance(one, str)) if isinstance(failed, list) else frozenset()
