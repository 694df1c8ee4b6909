"""A worker's answers to changes of messages: the state that each listener's delivery had when the change took effect.

For: that state, and the event that reports it. An attempt in flight is awaited, because its result decides. Not for:
applying the change (honour.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field

from broker.clock import now_ms
from broker.core.codec import encode
from broker.core.delivery import CANCELLED, DROPPED
from broker.core.events import ChangeApplied, MessageChange
from broker.delivery.dispatch.dispatcher import Dispatcher
from broker.delivery.dispatch.stream import Delivery
from broker.delivery.outstanding.schedule import Outstanding
from broker.delivery.ports import Appender
from broker.delivery.reading.partition import Partition
from broker.delivery.tuning import TUNED, Tuning
from broker.errors import LogUnavailable

DispatchersOf = Callable[[int, str], Iterable[Dispatcher]]


@dataclass(slots=True)
class _UnderWay:
    """A delivery attempt that was in flight when the worker got an update or deletion of its message. `number` and
    `again` are copies of the fields `delivery.number` and `delivery.again` from that moment. If a field differs from
    its copy now, the attempt has ended.
    """

    delivery: Delivery
    number: int
    again: bool


@dataclass(slots=True)
class ChangeReply:
    """An update or deletion of a message, and the worker's answer to the client: the state of the message's delivery to
    each listener.
    """

    offset: int  # the offset of the change's record in the topic `changes`
    event: MessageChange
    in_doubt: bool  # True if an earlier worker may have sent the message, but has not stored the result
    honoured: bool  # True if an earlier worker may have applied the update or deletion already
    # False if the update or deletion has no effect, for example because the message was deleted before.
    applied: bool = True
    states: dict[str, str] = field(default_factory=dict)  # by listener id
    # The attempts in flight, by listener id. The answer to the client waits for them, at most `answer_s` seconds.
    under_way: dict[str, _UnderWay] = field(default_factory=dict)


class ChangeReplies:
    """The answers of a worker to updates and deletions of messages, written to the topic `deliveries`."""

    def __init__(
        self,
        deliveries: Appender,
        outstanding: Outstanding,
        partitions: Mapping[int, Partition],
        dispatchers_of: DispatchersOf,
        confirm: Callable[[], Awaitable[None]],
        tuning: Tuning = TUNED,
    ) -> None:
        self._tuning = tuning
        self._confirm = confirm  # raises if partitions are lost
        self._dispatchers_of = dispatchers_of
        self._deliveries = deliveries
        self._outstanding = outstanding
        self._partitions = partitions

    def look(self, partition: int, offset: int, event: MessageChange, *, in_doubt: bool, honoured: bool) -> ChangeReply:
        """Return the reply to an update or deletion of a message: the current state of the message's delivery to each
        listener of its queue, without replays. While a delivery has an attempt in flight, its state is missing. tell()
        adds the state when the attempt has ended, or `unknown` after `answer_s` seconds.
        """
        reply = ChangeReply(offset, event, in_doubt, honoured)
        for dispatcher in self._dispatchers_of(partition, event.queue_id):
            listener = dispatcher.listener
            if listener.start_offsets[partition] > event.offset:
                continue
            attempt = dispatcher.attempting(partition, event.offset)
            if attempt is not None:
                reply.under_way[listener.id] = _UnderWay(attempt, attempt.number, attempt.again)
            else:
                reply.states[listener.id] = _known(reply, self._state(dispatcher, partition, event))
        return reply

    async def tell(self, partition: int, changes: Iterable[ChangeReply]) -> None:
        """Write the worker's answers to these updates and deletions of messages to the topic `deliveries`. An answer is
        written as soon as the states of all deliveries of its message are known. A state that is not known after
        `answer_s` seconds is written as `unknown`.

        If Kafka does not store an answer, the answer is not written again.
        """
        deadline = time.monotonic() + self._tuning.answer_s
        waiting = list(changes)
        while waiting:
            late = time.monotonic() > deadline
            for reply in waiting:
                self._decide(reply, late=late)
            ready = [_answer(reply) for reply in waiting if not reply.under_way]
            if ready:
                # If the worker can't store the answer to an update or deletion, the client gets the state `unknown`.
                with contextlib.suppress(LogUnavailable):
                    # Check that this worker still owns the partition: otherwise, a new owner may have sent the message.
                    await self._confirm()
                    await self._deliveries.append({partition: ready})
            waiting = [reply for reply in waiting if reply.under_way]
            if waiting:
                await asyncio.sleep(self._tuning.answer_look_s)

    def _state(self, dispatcher: Dispatcher, partition: int, event: MessageChange) -> str:
        entry = self._outstanding.state(partition, dispatcher.listener.id, event.message_id)
        if entry is None:
            stream, tail = dispatcher.streams.get(partition), self._partitions[partition].tail
            window = None if stream is None else stream.window
            top = tail if window is None else window.top(tail)
            if event.offset < top and (window is None or event.offset not in window.open):
                return "delivered"
        return entry or "pending"

    def _decide(self, reply: ChangeReply, *, late: bool) -> None:
        for listener_id, attempt in list(reply.under_way.items()):
            state = self._outcome(attempt, reply.event.message_id) or ("unknown" if late else None)
            if state is not None:
                reply.states[listener_id] = _known(reply, state)
                del reply.under_way[listener_id]

    def _outcome(self, attempt: _UnderWay, message_id: str) -> str | None:
        """Return the state of the delivery after this attempt, or None while the attempt is in flight. If the listener
        accepted the message (as it was before the update or deletion), return `delivered`. If the worker has dropped
        the delivery, return `unknown`. Otherwise, return `retrying`, or the state of the delivery in `outstanding`.
        """
        delivery, stream = attempt.delivery, attempt.delivery.stream
        if delivery.state is DROPPED:
            return "unknown"
        if delivery.number != attempt.number or delivery.again != attempt.again or delivery.state is CANCELLED:
            return "retrying"
        if stream.dispatcher.attempting(stream.partition, delivery.offset) is not None:
            return None
        if delivery in stream.from_outstanding or delivery.offset in stream.window.open:
            return "retrying"
        return self._outstanding.state(stream.partition, stream.dispatcher.listener.id, message_id) or "delivered"


def _known(reply: ChangeReply, state: str) -> str:
    """Return the delivery's `state`, or `unknown` if the state may be wrong: a worker that owned the partition before
    may have sent the message, or may have applied the update or deletion.
    """
    return "unknown" if (reply.honoured if state == "delivered" else reply.in_doubt) else state


def _answer(reply: ChangeReply) -> tuple[bytes, bytes | None]:
    event = reply.event
    answer = ChangeApplied(
        at_ms=now_ms(),
        organization_id=event.organization_id,
        actor="worker",
        request_id=event.request_id,
        queue_id=event.queue_id,
        message_id=event.message_id,
        partition=event.partition,
        change_offset=reply.offset,
        applied=reply.applied,
        listeners=tuple(reply.states.items()),
    )
    return event.message_id.encode(), encode(answer)
