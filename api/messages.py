"""The messages resource: the requests and answers for messages.

Not for: how a put is made (broker/commands/puts.py), how a message is found and changed (broker/commands/changes.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import sha256
from typing import Any, Final

import msgspec
from msgspec import UNSET, UnsetType

from api.calls import Call
from api.etags import Item
from api.message_filters import Filters, filters, narrowed
from api.page_tokens import PageTokens
from api.pages import Span, optional_rfc3339, page_limit, rfc3339, span, time_parameter
from api.problems import BadHeader
from api.shapes import BatchBody, MessageBody, MessageDataBody
from broker.clock import now_ms
from broker.commands.changes import StoredMessage, delete_message, find_message, update_message
from broker.commands.context import find_queue
from broker.commands.idempotency import Idempotency, Stored
from broker.commands.listing import ListedMessage, list_messages
from broker.commands.puts import Put, append_puts, new_batch, new_put, put_message
from broker.core import trace
from broker.core.entities import Listener, Queue
from broker.ports import Answer, Attempt, Deliveries, DeliveryState, DirectoryView, Log, Tracing
from broker.volume import StoredBytes

_IDEMPOTENCY_KEY: Final = b"idempotency-key"
# This regular expression takes linear time on any input, because it repeats one set of characters, at most 255 times.
_KEY = re.compile(rb"[\x20-\x7e]{1,255}")
# The body of a batch of messages may be twice as large as the body of a put of one message.
BATCH_TIMES_BYTES_MAX: Final = 2


class Messages:
    """Handlers for /v1/queues/{queue_id}/messages and below."""

    def __init__(
        self,
        log: Log,
        idempotency: Idempotency,
        view: DirectoryView,
        deliveries: Deliveries,
        stored: StoredBytes,
        tokens: PageTokens,
        tracing: Tracing | None = None,
    ) -> None:
        self._tracing = tracing
        self._all = log
        self._log = log.messages
        self._idempotency = idempotency
        self._view = view
        self._deliveries = deliveries
        self._check_room = stored.check
        self._count = stored.add
        self._tokens = tokens

    async def put(self, call: Call) -> Any:
        queue_id = call.path("queue_id")
        organization_id = call.organization_id
        queue = self._view.state.queue(organization_id, queue_id)
        if queue is None:
            queue = await find_queue(self._view, organization_id, queue_id)
        body = await call.json(MessageBody)
        if self._tracing is not None or trace.HEADER in call.sent:
            with traced(self._tracing, call, queue) as traceparent:
                return await self._put(call, queue, body, traceparent)
        return await self._put(call, queue, body, UNSET)

    async def _put(self, call: Call, queue: Queue, body: MessageBody, traceparent: str | UnsetType) -> Any:
        if _IDEMPOTENCY_KEY in call.sent:
            (stored,) = await self._put_once(call, queue, body, [body], traceparent)
            return put_answer(call.href(""), queue.id, stored)
        self._check_room(call.organization_id)
        put = await put_message(
            self._log,
            queue,
            data=body.data,
            name=body.name,
            ordering_key=body.key,
            actor=call.actor,
            request_id=call.request_text,
            deliver_at=body.deliver_at,
            count=self._count,
            traceparent=traceparent,
        )
        return put_answer(call.href(""), queue.id, put)

    async def put_batch(self, call: Call) -> Any:
        """Put all messages of a batch, or none if one is refused. The results are in the order of the messages."""
        queue = await find_queue(self._view, call.organization_id, call.path("queue_id"))
        body = await call.json(BatchBody, times_bytes_max=BATCH_TIMES_BYTES_MAX)
        puts: Sequence[Put | Stored]
        with traced(self._tracing, call, queue) as traceparent:
            if _IDEMPOTENCY_KEY in call.sent:
                puts = await self._put_once(call, queue, body, body.messages, traceparent)
            else:
                self._check_room(call.organization_id)
                puts = made = new_batch(queue, body.messages, call.actor, call.request_text, self._count)
                for put in made:
                    put.traceparent = traceparent
                await append_puts(self._log, made)
        base = call.href("")
        return {"messages": [put_answer(base, queue.id, put) for put in puts]}

    async def _put_once(
        self,
        call: Call,
        queue: Queue,
        body: MessageBody | BatchBody,
        messages: Sequence[MessageBody],
        traceparent: str | UnsetType,
    ) -> list[Stored]:
        idempotency_key = call.sent[_IDEMPOTENCY_KEY]
        if not _KEY.fullmatch(idempotency_key):
            raise BadHeader(
                "The header Idempotency-Key must have 1 to 255 printable ASCII characters.", header="Idempotency-Key"
            )
        request_id = call.request_text
        # If a message's data is refused, the JSON pointer is `/data`, or `/messages/3/data` for the fourth of a batch.
        if isinstance(body, MessageBody):
            said = body.data, body.name, body.key
            puts = [new_put(queue, *said, call.actor, request_id, body.deliver_at, self._count)]
        else:
            puts = new_batch(queue, messages, call.actor, request_id, self._count)
        for put in puts:
            put.traceparent = traceparent
        same = f"{type(body).__name__} {queue.id} ".encode() + msgspec.json.encode(body)
        return await self._idempotency.put(
            queue,
            puts,
            idempotency_key=idempotency_key,
            body_sha256=sha256(same).hexdigest(),
            actor=call.actor,
            request_id=request_id,
        )

    async def list(self, call: Call) -> Any:
        """List the messages of a queue, newest first, without deleted messages.

        A page can have few messages, or none, although more pages follow. On the last page, `_links.next` is missing.
        With `deliveries=true`, each message has the states of its deliveries.
        """
        queue = await find_queue(self._view, call.organization_id, call.path("queue_id"))
        path = f"/v1/queues/{queue.id}/messages"
        query = call.query()
        limit = page_limit(query)
        asked_for = filters(query, queue)
        begin_ms, end_ms = time_parameter(query, "from"), time_parameter(query, "to")
        if "cursor" in query:
            # If Kafka has deleted old messages since the previous page, begin at the oldest message that is left.
            first, last = await self._log.offsets_at(0), await self._log.end_offsets()
            made = span(self._tokens.open(query["cursor"], queue.organization_id, path), last)
            asked = Span(tuple(map(max, made.begin, first)), tuple(map(max, made.end, first)))
        else:
            begin = await self._log.offsets_at(begin_ms or 0)
            end = await (self._log.end_offsets() if end_ms is None else self._log.offsets_at(end_ms))
            asked = Span(begin, end)
        asked = await narrowed(asked, asked_for, self._log, listener_given="listener" in query)
        found, first, last = await list_messages(
            self._all,
            self._deliveries,
            queue,
            asked_for.messages,
            listeners=asked_for.listeners,
            begin=asked.begin,
            end=asked.end,
            limit=limit,
            with_states=asked_for.deliveries,
            at_ms=now_ms(),
        )
        more = any(begin < end for begin, end in zip(first, last, strict=True))
        page_token = self._tokens.seal(Span(first, last).position(), queue.organization_id, path) if more else None
        messages = [_listed(one, asked_for) for one in found]
        return {"messages": messages, "_links": call.links(path, query, page_token)}

    async def get(self, call: Call) -> Any:
        queue = await find_queue(self._view, call.organization_id, call.path("queue_id"))
        message = await find_message(self._all, queue, call.path("message_id"))
        everybody = list(queue.listeners.values())
        put = message.put
        position = put.message_id, message.partition, message.offset
        states = await self._deliveries.states(*position, everybody, put.at_ms, put.deliver_at_ms or 0)
        listeners = [_delivery(one, states[one.id]) for one in everybody if one.id in states]
        return _answer(call, message, listeners)

    async def update(self, call: Call) -> Any:
        """Change the data of a message. The answer has the state of the message's delivery to each of its listeners:
        `delivered` if the listener already has the old data, `unknown` if it may have the old data. With any other
        state, later attempts send the new data.
        """
        queue = await find_queue(self._view, call.organization_id, call.path("queue_id"))
        body = await call.json(MessageDataBody)
        self._check_room(call.organization_id)
        ids = queue, call.path("message_id")
        message, states = await update_message(
            self._all, call.context(), *ids, data=body.data, if_match=call.if_match(), count=self._count
        )
        return _answer(call, message, _states(queue, states))

    async def delete(self, call: Call) -> Any:
        """Delete a message. The answer has the deleted message, and the state of its delivery to each of its listeners:
        `delivered` if the listener already has the message, `unknown` if it may have the message, and otherwise
        `cancelled`.
        """
        queue = await find_queue(self._view, call.organization_id, call.path("queue_id"))
        ids = queue, call.path("message_id")
        message, states = await delete_message(
            self._all, call.context(), *ids, if_match=call.if_match(), count=self._count
        )
        return _answer(call, message, _states(queue, states)).fields


def _answer(call: Call, message: StoredMessage, listeners: list[dict[str, Any]]) -> Item:
    fields = _fields(message) | {"listeners": listeners}
    href = call.href(f"/v1/queues/{message.put.queue_id}/messages/{message.put.message_id}")
    return Item({"message": fields, "_links": {"self": {"href": href}}}, message.version)


def _states(queue: Queue, states: Mapping[str, str]) -> list[dict[str, Any]]:
    return [
        {"id": listener.id, "name": listener.name, "state": states[listener.id]}
        for listener in queue.listeners.values()
        if listener.id in states
    ]


@contextmanager
def traced(tracing: Tracing | None, call: Call, queue: Queue) -> Iterator[str | UnsetType]:
    """Trace the put of a message or a batch inside the `with` block. Yield the value of the header `traceparent` for
    the later requests that deliver the message to listeners.

    If this process does not trace, yield the `traceparent` of the client's request, or UNSET if the request has no
    valid `traceparent`.
    """
    parent = trace.parse(call.sent.get(trace.HEADER, b""))
    if tracing is None:
        yield UNSET if parent is None else str(parent)
        return
    put = tracing.put(None if parent is None else str(parent), queue)
    append = tracing.append(put, queue)
    error: str | None = None
    try:
        yield append.traceparent
    except BaseException as raised:
        error = type(raised).__name__
        raise
    finally:
        append.end(error=error)
        put.end(error=error)


def put_answer(base: str, queue_id: str, put: Put | Stored) -> dict[str, Any]:
    """Return the JSON answer to a put of a message. The answer's link begins with `base`, the URL of the API."""
    return {
        "message": {"id": put.id, "name": put.name},
        "_links": {"self": {"href": f"{base}/v1/queues/{queue_id}/messages/{put.id}"}},
    }


def _fields(message: StoredMessage) -> dict[str, Any]:
    return {
        "id": message.put.message_id,
        "name": message.put.name,
        "data": message.data,
        "size": len(message.data.encode()),
        "key": message.put.key,
        "deliver_at": optional_rfc3339(message.put.deliver_at_ms or None),
        "created_at": rfc3339(message.put.at_ms),
        "updated_at": optional_rfc3339(message.updated_at_ms),
    }


def _listed(one: ListedMessage, asked_for: Filters) -> dict[str, Any]:
    """Return the JSON fields of one message in a list of messages. If `asked_for.data` is false, the field `data` is
    empty. If `asked_for.deliveries` is true, add the known states of the message's deliveries.
    """
    fields = _fields(one.message)
    if not asked_for.data:
        fields["data"] = ""
    if one.deliveries is not None and asked_for.deliveries:
        fields["listeners"] = [
            {
                "id": listener.id,
                "name": listener.name,
                "state": known.state,
                "attempts": known.attempts,
                "next_attempt_at": optional_rfc3339(known.next_attempt_at_ms),
            }
            for listener in asked_for.listeners
            if (known := one.deliveries.get(listener.id)) is not None
        ]
    return fields


def _steps(attempt: Attempt) -> dict[str, Any]:
    """Return JSON fields of an attempt: the listener's answer, and how long the DNS look-up, the connection and the TLS
    handshake took. Leave out fields whose values are not known.
    """
    steps = {"dns_ms": attempt.dns_ms, "connect_ms": attempt.connect_ms, "tls_ms": attempt.tls_ms}
    fields: dict[str, Any] = {name: ms for name, ms in steps.items() if ms is not None}
    return fields if attempt.answer is None else fields | {"answer": answer_fields(attempt.answer)}


def answer_fields(answer: Answer) -> dict[str, Any]:
    """Return JSON fields of a listener's answer to an attempt or a test, and of the request that it answered."""
    return {
        "headers": [{"name": name, "value": value} for name, value in answer.headers],
        "body": answer.body,
        "truncated": answer.cut,
        "request": {
            "url": answer.url,
            "headers": [{"name": name, "value": value} for name, value in answer.request_headers],
        },
    }


def _delivery(listener: Listener, state: DeliveryState) -> dict[str, Any]:
    return {
        "id": listener.id,
        "name": listener.name,
        "state": state.state,
        "attempts": [
            {
                "number": attempt.number,
                "at": rfc3339(attempt.at_ms),
                "status": attempt.status,
                "took_ms": attempt.took_ms,
                "error": attempt.error,
                **_steps(attempt),
            }
            for attempt in state.attempts
        ],
        "next_attempt_at": optional_rfc3339(state.next_attempt_at_ms),
    }
