"""The messages resource: its requests and answers. Not for: how a put is made (broker/puts.py) or a message found."""

from __future__ import annotations

import re
from collections.abc import Sequence
from hashlib import sha256
from typing import Any, Final
from urllib.parse import urlencode

import msgspec

from api.calls import Call
from api.etags import Item
from api.pages import Span, moment, optional_moment, page_limit, span, time_parameter
from api.problems import BadHeader
from api.shapes import BatchBody, MessageBody
from broker.commands import find_queue
from broker.core.directory import Listener, Queue
from broker.core.events import MessagePut, decode_message
from broker.core.ids import parse_message_id
from broker.errors import NotFound, UnknownEvent
from broker.idempotency import Idempotency, Stored
from broker.ports import Deliveries, DeliveryState, DirectoryView, MessageLog
from broker.puts import Put, append_puts, new_batch, put_message

_VERSION: Final = 1  # of a message
_IDEMPOTENCY_KEY: Final = b"idempotency-key"
_KEY = re.compile(rb"[\x20-\x7e]{1,255}")
_BATCH_TIMES_BYTES_MAX: Final = 2  # a batch's body may be as large as two of other requests


class Messages:
    """Handlers for /v1/queues/{queue_id}/messages and below. deliveries: None leaves the listeners out."""

    def __init__(
        self, log: MessageLog, idempotency: Idempotency, view: DirectoryView, deliveries: Deliveries | None
    ) -> None:
        self._log = log
        self._idempotency = idempotency
        self._view = view
        self._deliveries = deliveries

    async def put(self, call: Call) -> Any:
        queue_id = call.path("queue_id")
        organization_id = call.key.organization_id
        queue = self._view.state.queue(organization_id, queue_id)
        if queue is None:
            queue = await find_queue(self._view, organization_id, queue_id)
        body = await call.json(MessageBody)
        if _IDEMPOTENCY_KEY in call.sent:
            (stored,) = await self._put_once(call, queue, body, [body])
            return _put_answer(call, queue_id, stored)
        put = await put_message(
            self._log,
            queue,
            data=body.data,
            name=body.name,
            key=body.key,
            actor=call.actor,
            request_id=call.request_id.decode(),
        )
        return _put_answer(call, queue_id, put)

    async def put_batch(self, call: Call) -> Any:
        """All or, when one is refused, none; for each what a put of its own would have answered, in their order."""
        queue = await find_queue(self._view, call.key.organization_id, call.path("queue_id"))
        body = await call.json(BatchBody, times_bytes_max=_BATCH_TIMES_BYTES_MAX)
        puts: Sequence[Put | Stored]
        if _IDEMPOTENCY_KEY in call.sent:
            puts = await self._put_once(call, queue, body, body.messages)
        else:
            puts = made = new_batch(queue, body.messages, call.actor, call.request_id.decode())
            await append_puts(self._log, made)
        return {"messages": [_put_answer(call, queue.id, put) for put in puts]}

    async def _put_once(
        self, call: Call, queue: Queue, body: MessageBody | BatchBody, messages: Sequence[MessageBody]
    ) -> list[Stored]:
        key = call.sent[_IDEMPOTENCY_KEY]
        if not _KEY.fullmatch(key):
            raise BadHeader("Idempotency-Key must be 1 to 255 printable ASCII characters", header="Idempotency-Key")
        request_id = call.request_id.decode()
        puts = new_batch(queue, messages, call.actor, request_id)
        same = f"{type(body).__name__} {queue.id} ".encode() + msgspec.json.encode(body)
        return await self._idempotency.put(
            queue, puts, key=key, body_sha256=sha256(same).hexdigest(), actor=call.actor, request_id=request_id
        )

    async def list(self, call: Call) -> Any:
        """Newest first. A page may be short, or empty, while `next` says that there is more."""
        queue = await find_queue(self._view, call.key.organization_id, call.path("queue_id"))
        query = call.query()
        limit = page_limit(query)
        begin_ms, end_ms = time_parameter(query, "from"), time_parameter(query, "to")
        if "cursor" in query:
            asked = span(query["cursor"], len(await self._log.end_offsets()))
        else:
            begin = await self._log.offsets_at(begin_ms or 0)
            end = await (self._log.end_offsets() if end_ms is None else self._log.offsets_at(end_ms))
            asked = Span(begin, end)
        values, rest = await self._log.newest(queue.id, begin=asked.begin, end=asked.end, limit=limit)
        path = f"/v1/queues/{queue.id}/messages"
        links = {"self": {"href": call.href(path + (f"?{urlencode(query)}" if query else ""))}}
        if any(begin < end for begin, end in zip(asked.begin, rest, strict=True)):
            more = {**query, "cursor": Span(asked.begin, tuple(rest)).cursor()}
            links["next"] = {"href": call.href(f"{path}?{urlencode(more)}")}
        return {
            "messages": [_fields(message) for value in values if (message := _decoded(value)) is not None],
            "_links": links,
        }

    async def get(self, call: Call) -> Any:
        queue = await find_queue(self._view, call.key.organization_id, call.path("queue_id"))
        message_id = call.path("message_id")
        parts = parse_message_id(message_id)
        if parts is None:
            raise NotFound("no message of this queue has this id")
        at_ms, partition = parts
        found = await self._log.find(partition=partition, at_ms=at_ms, message_id=message_id)
        if found is None:
            raise NotFound("no message of this queue has this id")
        offset, value = found
        try:
            message = decode_message(value)
        except UnknownEvent:
            raise NotFound("this message was written by a newer program") from None
        if message.queue_id != queue.id or message.organization_id != queue.organization_id:
            raise NotFound("no message of this queue has this id")
        fields = _fields(message)
        if self._deliveries is not None:
            listeners = list(queue.listeners.values())
            states = await self._deliveries.states(partition, offset, listeners, message.at_ms)
            fields["listeners"] = [_delivery(one, states[one.id]) for one in listeners if one.id in states]
        href = call.href(f"/v1/queues/{queue.id}/messages/{message_id}")
        return Item({"message": fields, "_links": {"self": {"href": href}}}, _VERSION)


def _put_answer(call: Call, queue_id: str, put: Put | Stored) -> dict[str, Any]:
    return {
        "message": {"id": put.id, "name": put.name},
        "_links": {"self": {"href": call.href(f"/v1/queues/{queue_id}/messages/{put.id}")}},
    }


def _decoded(value: bytes) -> MessagePut | None:
    """None for what a newer program wrote: a list shows what it can."""
    try:
        return decode_message(value)
    except UnknownEvent:
        return None


def _fields(message: MessagePut) -> dict[str, Any]:
    return {
        "id": message.message_id,
        "name": message.name,
        "data": message.data,
        "key": message.key,
        "created_at": moment(message.at_ms),
    }


def _delivery(listener: Listener, state: DeliveryState) -> dict[str, Any]:
    return {
        "id": listener.id,
        "name": listener.name,
        "state": state.state,
        "attempts": [
            {
                "number": attempt.number,
                "at": moment(attempt.at_ms),
                "status": attempt.status,
                "took_ms": attempt.took_ms,
                "error": attempt.error,
            }
            for attempt in state.attempts
        ],
        "next_attempt_at": optional_moment(state.next_attempt_at_ms),
    }
