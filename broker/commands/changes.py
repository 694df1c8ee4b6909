"""Commands on messages that are already stored.

For: finding, updating and deleting a message, and telling which listeners have already received it. Not for: putting it
(puts.py), applying a change to deliveries (broker/delivery/changes/honour.py), the request (api/messages.py).

A change counts as soon as Kafka has stored it, unless the message was deleted, or does not have the version that the
change is for. The command then waits until the worker that owns the message's partition answers which listeners had the
message. After ANSWER_S seconds without an answer, it returns `unknown` for each listener (docs/decisions/0050).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec
from msgspec import UNSET, UnsetType

from broker.commands.context import Context, Versions
from broker.commands.puts import new_put
from broker.core.changes import version
from broker.core.codec import decode_message, encode
from broker.core.entities import Listener, Queue
from broker.core.events import MessageDeleted, MessagePut, MessageUpdated
from broker.core.ids import parse_message_id
from broker.errors import Changed, InDoubt, NotFound, Unavailable, UnknownEvent, Unreadable
from broker.ports import ChangeLog, Count, CountingChange, Log, TooMuch

ANSWER_S: Final = 4.0
# To the bytes that an organization stores, an update or deletion adds its event, 1 KiB, and 64 bytes for each listener
# of the queue. The 1 KiB and the 64 bytes estimate the event in which a worker later says what became of the message's
# deliveries.
_ANSWER_BYTES: Final = 1024
_LISTENER_BYTES: Final = 64
_PAGE_BYTES_MAX: Final = 8 << 20  # A page of messages has at most this many bytes of data from updates.
_NONE: Final = "No message of this queue has this ID. Check the ID; retention may have deleted an old message."
_DELETED: Final = "This message was deleted."
_CHANGED: Final = (
    "The message has changed since the version in If-Match. Read it again, and repeat the change with its new ETag."
)


class _Place(msgspec.Struct):
    """The fields of a put's event that name the message's organization and queue. Every version of Everput writes these
    fields. So this version can read them even in an event that it can't read as a whole.
    """

    organization_id: str
    queue_id: str


_place = msgspec.json.Decoder(_Place)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredMessage:
    """A message as it is stored now.

    `put` is the event of the original put, and `data` is the current data. `version` is 1 at first, and increases with
    each update, often by more than one.
    """

    put: MessagePut
    partition: int
    offset: int
    data: str
    updated_at_ms: int | None  # None if never updated
    version: int


async def find_message(log: Log, queue: Queue, message_id: str) -> StoredMessage:
    """Return the queue's message with its current data.

    Raises NotFound if the message does not exist or was deleted. Raises Unreadable if a newer version of Everput wrote
    the message, so that this version can't read it. Raises another Unavailable error if Kafka does not answer.
    """
    place = parse_message_id(message_id)
    if place is None:
        raise NotFound(_NONE)
    at_ms, partition = place
    found = await log.messages.find(
        partition=partition, at_ms=at_ms, message_id=message_id, organization_id=queue.organization_id
    )
    if found is None:
        raise NotFound(_NONE)
    offset, value = found
    try:
        put = decode_message(value)
    except UnknownEvent:
        if not _is_of(queue, value):
            raise NotFound(_NONE) from None
        raise Unreadable(
            "This message exists, but a newer version of Everput has written it, so this server can't read it. "
            "Repeat the request when the operator has upgraded this server."
        ) from None
    if put.queue_id != queue.id or put.organization_id != queue.organization_id:
        raise NotFound(_NONE)
    changes = await log.changes.latest({message_id: place}, organization_id=queue.organization_id)
    change = changes.get(message_id)
    if change is not None and isinstance(change.event, MessageDeleted):
        raise NotFound(_DELETED)
    return _stored(put, change, partition=partition, offset=offset)


async def newest_messages(
    log: Log,
    queue: Queue,
    *,
    begin: Sequence[int],
    end: Sequence[int],
    limit: int,
    wanted: Callable[[bytes], bool] | None = None,
) -> tuple[list[StoredMessage], list[int]]:
    """Return a page of the queue's messages with their current data. Also return one offset for each partition: the
    next page has only messages below these offsets.

    The page leaves out deleted messages, and messages that this version can't read. If `wanted` is given, the page also
    leaves out each message for whose record value `wanted` returns False. The page may have fewer than `limit`
    messages, or none, although later pages have some. Raises Unavailable if Kafka does not answer.
    """
    while True:
        records, rest = await log.messages.newest(
            queue.id, begin=begin, end=end, limit=limit, organization_id=queue.organization_id, wanted=wanted
        )
        puts = [(put, record) for record in records if (put := _decoded(record.value)) is not None]
        places = {put.message_id: place for put, _ in puts if (place := parse_message_id(put.message_id)) is not None}
        try:
            changes = await log.changes.latest(places, organization_id=queue.organization_id, bytes_max=_PAGE_BYTES_MAX)
        except TooMuch:
            limit = max(1, limit // 2)
            continue
        changed = ((*found, changes.get(found[0].message_id)) for found in puts)
        there = [one for one in changed if one[2] is None or not isinstance(one[2].event, MessageDeleted)]
        return [
            _stored(put, change, partition=record.partition, offset=record.offset) for put, record, change in there
        ], rest


async def update_message(
    log: Log,
    context: Context,
    queue: Queue,
    message_id: str,
    *,
    data: str,
    if_match: Versions | None = None,  # versions that may be changed
    count: Count | None = None,  # told the bytes that are stored
) -> tuple[StoredMessage, dict[str, str]]:
    """Change a message's data. Return the changed message, and the state of its delivery to each listener, by listener
    id. `delivered` means that the listener has accepted the old data. `pending`, `retrying` and `parked` mean that each
    later attempt sends the new data. `unknown` means that the listener may have got the old data.

    Raises Refused if the data is not valid or the queue is the one for alerts, and NotFound if the message does not
    exist or was deleted. Raises Changed if `if_match` is given without the message's version. Raises InDoubt if it is
    unknown whether the change was stored or has an effect. Any other Unavailable error means that nothing was stored.
    """
    # Check the new data of an updated message by the same rules as the data of a put.
    new_put(queue, data, None, None, "", "")
    found = await find_message(log, queue, message_id)
    event = MessageUpdated(**_of(context, found), if_version=_expected(found, if_match), data=data)
    offset, states = await _change(log.changes, queue, found, event, count)
    change = CountingChange(offset, event)
    return _stored(found.put, change, partition=found.partition, offset=found.offset), states


async def delete_message(
    log: Log,
    context: Context,
    queue: Queue,
    message_id: str,
    *,
    if_match: Versions | None = None,  # versions that may be deleted
    count: Count | None = None,  # told the bytes that are stored
) -> tuple[StoredMessage, dict[str, str]]:
    """Delete a message. Return the message as it was, and the state of its delivery to each listener, by listener id.
    `delivered` means that the listener has accepted the message. `cancelled` means that no further attempt is made.
    `unknown` means that the listener may have accepted the message.

    Raises NotFound if the message does not exist or was deleted. Raises Changed if `if_match` is given without the
    message's version. Raises InDoubt if it is unknown whether the deletion was stored or has an effect. Any other
    Unavailable error means that nothing was stored.
    """
    found = await find_message(log, queue, message_id)
    event = MessageDeleted(**_of(context, found), if_version=_expected(found, if_match))
    _, states = await _change(log.changes, queue, found, event, count)
    return found, {one: state if state in ("delivered", "unknown") else "cancelled" for one, state in states.items()}


async def _change(
    changes: ChangeLog,
    queue: Queue,
    found: StoredMessage,
    event: MessageUpdated | MessageDeleted,
    count: Count | None,
) -> tuple[int, dict[str, str]]:
    if count is not None:
        count(event.organization_id, len(encode(event)) + _ANSWER_BYTES + _LISTENER_BYTES * len(queue.listeners))
    offset, answers_from = await changes.append(event)
    # A change with `if_version` has no effect if the message has another version when the change is stored.
    if event.if_version is not UNSET:
        try:
            counted = await changes.counted(event)
        except Unavailable as error:
            raise InDoubt(
                "The change is stored, but it has no effect if the message did not have the version of If-Match any "
                "more. Read the message to see its present state."
            ) from error
        if counted is None:
            raise Changed(_CHANGED)
        offset = counted
    concerned = [one for one in queue.listeners.values() if _concerns(one, found)]
    if not concerned:
        return offset, {}
    answer = await changes.answer(
        found.partition, offset, event.message_id, answers_from=answers_from, within_s=ANSWER_S
    )
    if answer is not None and not answer.applied and event.if_version is UNSET:
        raise NotFound(_DELETED)
    said: Mapping[str, str] = {} if answer is None else dict(answer.listeners)
    return offset, {listener.id: said.get(listener.id, "unknown") for listener in concerned}


def _expected(found: StoredMessage, if_match: Versions | None) -> int | UnsetType:
    """Return the version that the message must have when the change is applied. If another request changes the message
    first, this change has no effect. If `if_match` is None, return UNSET: the change is applied to any version.

    Raises Changed if `if_match` is given without the message's version.
    """
    if if_match is None:
        return UNSET
    if found.version not in if_match:
        raise Changed(_CHANGED)
    return found.version


def _stored(put: MessagePut, change: CountingChange | None, *, partition: int, offset: int) -> StoredMessage:
    updated = change.event if change is not None and isinstance(change.event, MessageUpdated) else None
    return StoredMessage(
        put=put,
        partition=partition,
        offset=offset,
        data=put.data if updated is None else updated.data,
        updated_at_ms=None if updated is None else updated.at_ms,
        version=version(None if change is None else change.offset),
    )


def _is_of(queue: Queue, value: bytes) -> bool:
    """Return whether the message in a record belongs to this queue. Any version of Everput may have written the
    message.
    """
    try:
        of = _place.decode(value)
    except msgspec.MsgspecError:
        return False
    return (of.organization_id, of.queue_id) == (queue.organization_id, queue.id)


def _decoded(value: bytes) -> MessagePut | None:
    """Decode a message from its Kafka record. Return None for a message that this version can't read."""
    try:
        return decode_message(value)
    except UnknownEvent:
        return None


def _concerns(listener: Listener, found: StoredMessage) -> bool:
    return listener.start_offsets[found.partition] <= found.offset


def _of(context: Context, found: StoredMessage) -> dict[str, Any]:
    return {
        "at_ms": context.at_ms,
        "organization_id": context.organization_id,
        "actor": context.actor,
        "request_id": context.request_id,
        "message_id": found.put.message_id,
        "queue_id": found.put.queue_id,
        "partition": found.partition,
        "offset": found.offset,
    }
