"""Putting a message: the one command that is asked thousands of times a second.

For: checking it, its id, and its append to `messages`. Not for: the other commands (broker/commands.py), batching
(broker/kafka/log.py), the request around it (api/messages.py).

A put touches no projection but to look its queue up, and waits for nothing but Kafka's acknowledgement.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Iterator
from typing import Final

from broker.core.directory import Queue
from broker.core.events import MessagePut, encode
from broker.core.ids import message_id
from broker.core.names import NAME_CHARS_MAX, refuse_name
from broker.errors import Refused
from broker.ports import MessageLog

DATA_BYTES_MAX: Final = 1 << 20
_UTF8_BYTES_A_CHAR_MAX: Final = 4
_SHORT_ID_DIGITS: Final = 7
_POOL_BYTES: Final = 4096


class _RandomBits:
    """Random integers of 64 bits, drawn from the system by the page: a call for each costs more than the whole id."""

    def __init__(self) -> None:
        self._pool: Iterator[tuple[int]] = iter(())

    def draw(self) -> int:
        for (bits,) in self._pool:
            return bits
        self._pool = struct.iter_unpack("=Q", os.urandom(_POOL_BYTES))
        return self.draw()


random_bits = _RandomBits().draw


class Put:
    """One message on its way into the log. id, name: known once it is there."""

    __slots__ = ("_actor", "_at_ms", "_data", "_key", "_queue", "_request_id", "id", "name")

    def __init__(self, queue: Queue, data: str, name: str | None, key: str | None, actor: str, request_id: str) -> None:
        self._queue = queue
        self._data = data
        self._key = key
        self._actor = actor
        self._request_id = request_id
        self._at_ms = time.time_ns() // 1_000_000
        self.id = ""
        self.name = name or ""

    def build(self, partition: int) -> tuple[bytes, bytes, bytes]:
        """ports.BuildRecord: the id can't be made before the partition is chosen."""
        queue = self._queue
        self.id = made = message_id(at_ms=self._at_ms, partition=partition, random_bits=random_bits())
        if not self.name:
            self.name = f"{queue.name}-message-{made[-_SHORT_ID_DIGITS:]}"
        event = MessagePut(
            at_ms=self._at_ms,
            organization_id=queue.organization_id,
            actor=self._actor,
            request_id=self._request_id,
            message_id=made,
            queue_id=queue.id,
            name=self.name,
            data=self._data,
            key=self._key,
        )
        return made.encode(), encode(event), queue.id.encode()


async def put_message(
    log: MessageLog, queue: Queue, *, data: str, name: str | None, key: str | None, actor: str, request_id: str
) -> Put:
    """The message, once all in-sync replicas have it (Refused, LogUnavailable, InDoubt)."""
    if len(data) * _UTF8_BYTES_A_CHAR_MAX > DATA_BYTES_MAX and len(data.encode()) > DATA_BYTES_MAX:
        raise Refused(f"the data is longer than {DATA_BYTES_MAX} bytes of UTF-8", pointer="/data")
    if name is not None and (reason := refuse_name(name)) is not None:
        raise Refused(f"the name {reason}", pointer="/name")
    if key is not None and not 0 < len(key) <= NAME_CHARS_MAX:
        raise Refused(f"the ordering key must have 1 to {NAME_CHARS_MAX} characters", pointer="/key")
    put = Put(queue, data, name, key, actor, request_id)
    await log.append(put.build, key=key, size=len(data))
    return put
