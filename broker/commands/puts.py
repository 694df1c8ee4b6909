"""The command that puts messages. It is called thousands of times a second.

For: checking messages, their ids, and their append to the topic `messages`. Not for: record batches
(broker/kafka/group_commit.py), the request (api/messages.py).

A put looks up its queue in memory, and waits only for Kafka's acknowledgement.
"""

from __future__ import annotations

import asyncio
import os
import struct
from collections.abc import Iterator, Sequence
from datetime import datetime
from itertools import starmap
from typing import Final, Protocol

from msgspec import UNSET, UnsetType

from broker.clock import now_ms
from broker.core.alerts import ALERTS_QUEUE
from broker.core.codec import encode
from broker.core.entities import Queue
from broker.core.events import MessagePut
from broker.core.ids import message_id
from broker.core.names import NAME_CHARS_MAX, refuse_name
from broker.errors import InDoubt, Refused, Unavailable
from broker.ports import Count, MessageLog

DATA_BYTES_MAX: Final = 1 << 20
_UTF8_BYTES_A_CHAR_MAX: Final = 4
_DAY_MS: Final = 86_400_000
DELIVER_AHEAD_MS_MAX: Final = 366 * _DAY_MS
_SHORT_ID_DIGITS: Final = 7
# A message without a name gets one that begins with the first characters of its queue's name.
_QUEUE_CHARS_MAX: Final = NAME_CHARS_MAX - len("-message-") - _SHORT_ID_DIGITS
_POOL_BYTES: Final = 4096


class _RandomBits:
    """A source of random 64-bit numbers for message ids. It gets many bytes from the operating system with one call,
    because a call for each id would be slow.
    """

    def __init__(self) -> None:
        self._pool: Iterator[tuple[int]] = iter(())

    def draw(self) -> int:
        for (bits,) in self._pool:
            return bits
        self._pool = struct.iter_unpack("=Q", os.urandom(_POOL_BYTES))
        return self.draw()


random_bits = _RandomBits().draw


class Put:
    """A message that is about to be stored. build() gives it an `id`, and a `name` if it has none. The first call of
    build() calls `count` with the organization's id and the size of the message's record in bytes. `traceparent` names
    the trace span to which the attempts to deliver the message will belong. The caller may change `traceparent` until
    build() is called.
    """

    __slots__ = (
        *(
            "_actor",
            "_at_ms",
            "_count",
            "_data",
            "_deliver_at_ms",
            "_queue",
            "_random_bits",
            "_request_id",
            "id",
            "ordering_key",
            "name",
            "traceparent",
        ),
    )

    def __init__(
        self,
        queue: Queue,
        data: str,
        name: str | None,
        ordering_key: str | None,
        actor: str,
        request_id: str,
        deliver_at_ms: int | UnsetType = UNSET,
        count: Count | None = None,
    ) -> None:
        self._queue = queue
        self._count = count
        self._data = data
        self.ordering_key = ordering_key
        self._actor = actor
        self._request_id = request_id
        self._deliver_at_ms = deliver_at_ms
        self._at_ms = now_ms()
        self._random_bits = random_bits()
        self.id = ""
        self.name = name or ""
        self.traceparent: str | UnsetType = UNSET

    @property
    def size(self) -> int:
        """About how many bytes the message has."""
        return len(self._data)

    def claimed(self, at_ms: int, random_bits: int) -> None:
        """Set the time and the random bits of the message's id, for example from the claim of an Idempotency-Key."""
        self._at_ms = at_ms
        self._random_bits = random_bits

    def build(self, partition: int) -> tuple[bytes, bytes, bytes]:
        """Build the message's Kafka record: its key, its value and the queue's id. The message id is created here,
        because the id contains the partition.
        """
        queue = self._queue
        self.id = made = message_id(at_ms=self._at_ms, partition=partition, random_bits=self._random_bits)
        if not self.name:
            self.name = f"{queue.name[:_QUEUE_CHARS_MAX]}-message-{made[-_SHORT_ID_DIGITS:]}"
        event = MessagePut(
            at_ms=self._at_ms,
            organization_id=queue.organization_id,
            actor=self._actor,
            request_id=self._request_id,
            message_id=made,
            queue_id=queue.id,
            name=self.name,
            data=self._data,
            key=self.ordering_key,
            deliver_at_ms=self._deliver_at_ms,
            traceparent=self.traceparent,
        )
        value = encode(event)
        if self._count is not None:
            self._count(queue.organization_id, len(value))
            # If the record does not fit into a batch, build() is called again. Count the record's bytes only once.
            self._count = None
        return made.encode(), value, queue.id.encode()


class NewMessage(Protocol):
    """The values of a new message in a request."""

    @property
    def data(self) -> str: ...
    @property
    def name(self) -> str | None: ...
    @property
    def key(self) -> str | None: ...
    @property
    def deliver_at(self) -> datetime | None: ...


def new_put(
    queue: Queue,
    data: str,
    name: str | None,
    ordering_key: str | None,
    actor: str,
    request_id: str,
    deliver_at: datetime | None = None,
    count: Count | None = None,
) -> Put:
    """Check the values of a message, and prepare it for storing. Raises Refused if a value is not valid, or if the
    queue is the one for alerts.
    """
    if queue.name == ALERTS_QUEUE:
        raise Refused(
            f"Only Everput itself puts messages into the queue {ALERTS_QUEUE}, and nobody can change these messages. "
            "Use another queue."
        )
    if len(data) * _UTF8_BYTES_A_CHAR_MAX > DATA_BYTES_MAX and len(data.encode()) > DATA_BYTES_MAX:
        raise Refused(f"The data is too long: at most {DATA_BYTES_MAX} bytes of UTF-8 are allowed.", pointer="/data")
    if name is not None and (reason := refuse_name(name)) is not None:
        raise Refused(f"This name can't be used. It {reason}.", pointer="/name")
    if ordering_key is not None and not 0 < len(ordering_key) <= NAME_CHARS_MAX:
        raise Refused(f"The ordering key must have 1 to {NAME_CHARS_MAX} characters.", pointer="/key")
    if deliver_at is None:
        return Put(queue, data, name, ordering_key, actor, request_id, count=count)
    if ordering_key is not None:
        detail = (
            "A message with an ordering key can't have deliver_at, because later messages of the key would wait for it."
        )
        raise Refused(detail, pointer="/deliver_at")
    deliver_at_ms = int(deliver_at.timestamp() * 1000)
    if deliver_at_ms - now_ms() > DELIVER_AHEAD_MS_MAX:
        raise Refused(
            f"deliver_at may be at most {DELIVER_AHEAD_MS_MAX // _DAY_MS} days ahead. Give an earlier time.",
            pointer="/deliver_at",
        )
    return Put(queue, data, name, ordering_key, actor, request_id, max(1, deliver_at_ms), count)


async def put_message(
    log: MessageLog,
    queue: Queue,
    *,
    data: str,
    name: str | None,
    ordering_key: str | None,
    actor: str,
    request_id: str,
    deliver_at: datetime | None = None,
    count: Count | None = None,
    traceparent: str | UnsetType = UNSET,
) -> Put:
    """Put a message, and return it once all in-sync replicas have stored it.

    Raises Refused if a value is not valid, and InDoubt if the message may have been stored. Any other Unavailable error
    means that nothing was stored.
    """
    put = new_put(queue, data, name, ordering_key, actor, request_id, deliver_at, count)
    put.traceparent = traceparent
    await log.append(put.build, ordering_key=ordering_key, size=len(data))
    return put


def new_batch(
    queue: Queue, messages: Sequence[NewMessage], actor: str, request_id: str, count: Count | None = None
) -> list[Put]:
    """Check and prepare the messages of a batch.

    Raises Refused if a value is not valid. The error's pointer names the message by its position in the batch, counted
    from 0, such as `/messages/3/data`. Raises Refused without a pointer if the queue is the one for alerts.
    """
    puts = []
    for number, message in enumerate(messages):
        try:
            said = message.data, message.name, message.key
            puts.append(new_put(queue, *said, actor, request_id, message.deliver_at, count))
        except Refused as error:
            if error.pointer is None:  # The error is about the queue, not about a message of the batch.
                raise
            raise Refused(str(error), pointer=f"/messages/{number}{error.pointer}") from None
    return puts


async def append_puts(log: MessageLog, puts: Sequence[Put], partition: int | None = None) -> None:
    """Append messages, and return once all in-sync replicas have stored them.

    Messages without an ordering key go into `partition`. If `partition` is None, one partition is chosen for all of
    them. Messages for the same partition share a record batch if they fit into one. Raises InDoubt if some of the
    messages may have been stored. Any other Unavailable error means that nothing was stored.
    """
    together: dict[int | None, list[Put]] = {}
    for put in puts:
        together.setdefault(partition if put.ordering_key is None else log.partition_of(put.ordering_key), []).append(
            put
        )

    async def append(number: int | None, group: Sequence[Put]) -> None:
        size = sum(put.size for put in group)
        await log.append_together([put.build for put in group], partition=number, size=size)

    results = await asyncio.gather(*starmap(append, together.items()), return_exceptions=True)
    failures = [result for result in results if isinstance(result, BaseException)]
    if failures:
        nothing = len(failures) == len(results) and all(
            isinstance(error, Unavailable) and not isinstance(error, InDoubt) for error in failures
        )
        raise (
            failures[0]
            if nothing
            else InDoubt(
                "Some of the messages may have been stored. With an Idempotency-Key it is safe to repeat the request."
            )
        ) from failures[0]
