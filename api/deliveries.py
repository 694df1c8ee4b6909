"""A listener's outstanding deliveries: a list of them, and commands to retry them now and to cancel that.

For: /v1/queues/{queue_id}/listeners/{listener_id}/deliveries and /redrive. Not for: a message's deliveries
(messages.py), what a redrive does (broker/delivery/outstanding/schedule.py).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

from api.calls import Call
from api.damaged_ids import DamagedIds
from api.page_tokens import PageTokens
from api.pages import optional_rfc3339, page_limit, rfc3339
from api.problems import BadParameter
from api.shapes import RedriveBody
from broker.commands.context import find_listener
from broker.commands.listeners import ListenerCommands
from broker.core.entities import Listener
from broker.core.ids import PARTITIONS_MAX, parse_message_id
from broker.errors import LogDamaged, Refused
from broker.ports import Cursors, DirectoryView, MessageLog, Outstanding, OutstandingDelivery, Position

_STATES: Final = ("pending", "retrying", "parked")
_OFFSET_MAX: Final = 2**63 - 1


class OutstandingDeliveries:
    """Handlers for the deliveries to a listener that Everput keeps for later in the topic `outstanding`, and for
    redrives of these deliveries.
    """

    def __init__(
        self,
        commands: ListenerCommands,
        view: DirectoryView,
        messages: MessageLog,
        cursors: Cursors,
        outstanding: Outstanding,
        tokens: PageTokens,
        damaged_ids: DamagedIds,
    ) -> None:
        self._commands = commands
        self._view = view
        self._messages = messages
        self._cursors = cursors
        self._outstanding = outstanding
        self._tokens = tokens
        self._damaged_ids = damaged_ids

    async def list(self, call: Call) -> Any:
        """List a listener's deliveries that are stored in the topic `outstanding`. A `pending` delivery is not
        attempted yet, mostly because of the message's `deliver_at`. A `retrying` delivery waits for a retry. A `parked`
        delivery has no attempts left.

        A page can have few deliveries, or none, although more pages follow. On the last page, `_links.next` is missing.
        """
        listener = await find_listener(self._view, call.organization_id, *_ids(call))
        query = call.query()
        state = query.get("state")
        if state is not None and state not in _STATES:
            raise BadParameter(f"The parameter `state` must be one of {', '.join(_STATES)}.", parameter="state")
        path = _path(listener)
        whose = listener.organization_id, path
        after = _position(self._tokens.open(query["cursor"], *whose)) if "cursor" in query else (0, 0)
        rows, more = await self._outstanding.page(listener, state=state, after=after, limit=page_limit(query))
        links = call.links(path, query, None if more is None else self._tokens.seal(b"%d.%d" % more, *whose))
        shown = [_fields(row, self._damaged_ids.shown(row.message_id, listener.organization_id)) for row in rows]
        return {"deliveries": shown, "_links": links}

    async def redrive(self, call: Call) -> Any:
        """Retry the listener's parked and retrying deliveries now. If the request's body names messages, retry only the
        deliveries of these messages.

        The answer has the number of deliveries to retry. If the body names no messages, the number counts only
        deliveries stored in the topic `outstanding`, not those in a worker's memory. The stored event has only those
        named messages that have a parked or retrying delivery. This saves memory, because every process keeps the
        message ids of these events.
        """
        body = await call.json_or_nothing(RedriveBody)
        named = list[str]()
        for index, text in enumerate(body.messages or ()):
            message_id = self._damaged_ids.opened(text, call.organization_id) or text
            if message_id == text and parse_message_id(text) is None:
                raise Refused(
                    "This is not the ID of a message. Take it from the answer to a put, or from a list of deliveries.",
                    pointer=f"/messages/{index}",
                )
            named.append(message_id)
        listener = await find_listener(self._view, call.organization_id, *_ids(call))
        found = await self._to_retry(listener, named)
        count = len(found) if named else await self._outstanding.count(listener)
        if found or not named:
            await self._commands.redrive_listener(call.context(), listener.queue_id, listener.id, found)
        return {"count": count, "_links": _links(call, listener)}

    async def _to_retry(self, listener: Listener, named: Sequence[str]) -> Sequence[str]:
        """Return the ids of the named messages whose delivery to the listener is retrying or parked. Each id is
        returned once.
        """
        # Read the committed offsets first, and the topic `outstanding` second.
        # If a delivery moves to `outstanding` after the first of these two reads, the second read finds it.
        in_memory = await self._retried_from_memory(listener, named)
        found = await self._outstanding.those(listener, named)
        times: dict[tuple[int, int], set[str]] = defaultdict(set)  # message ids by partition and time
        for message_id in set(named).difference(found):
            at_ms, partition = parse_message_id(message_id) or (0, -1)
            if in_memory.get(partition):
                times[partition, at_ms].add(message_id)
        for (partition, at_ms), ids in times.items():
            with suppress(LogDamaged):
                messages = await self._messages.find_all(
                    partition=partition, at_ms=at_ms, message_ids=ids, organization_id=listener.organization_id
                )
                found += [one for one, (offset, _) in messages.items() if offset in in_memory[partition]]
        return found

    async def _retried_from_memory(self, listener: Listener, named: Sequence[str]) -> Mapping[int, set[int]]:
        """Return, for each partition of the named messages, the offsets of messages that a worker retries from its
        memory. By the listener's committed cursor, the delivery of such a message has a finished attempt, has not
        ended, and has not moved to the topic `outstanding`.
        """
        partitions = {place[1] for place in map(parse_message_id, named) if place is not None}
        partitions &= set(range(len(listener.start_offsets)))
        cursors = (await self._cursors.load([listener.id], partitions))[listener.id]
        return {
            partition: {offset for offset, attempts in zip(cursor.open, cursor.attempts, strict=False) if attempts}
            for partition, cursor in cursors.items()
        }

    async def cancel_redrives(self, call: Call) -> Any:
        """Cancel the listener's redrives. The answer has the number of redriven deliveries that have not been attempted
        since their redrive.
        """
        listener = await find_listener(self._view, call.organization_id, *_ids(call))
        count = await self._outstanding.count(listener, redriven=True)
        await self._commands.cancel_redrives(call.context(), listener.queue_id, listener.id)
        return {"count": count, "_links": _links(call, listener)}


def _path(listener: Listener) -> str:
    return f"/v1/queues/{listener.queue_id}/listeners/{listener.id}/deliveries"


def _links(call: Call, listener: Listener) -> dict[str, Any]:
    return {"deliveries": {"href": call.href(_path(listener))}}


def _ids(call: Call) -> tuple[str, str]:
    return call.path("queue_id"), call.path("listener_id")


def _fields(row: OutstandingDelivery, message_id: str) -> dict[str, Any]:
    return {
        "message": {"id": message_id, "name": row.name, "created_at": rfc3339(row.put_at_ms)},
        "state": row.state,
        "attempts": row.attempts,
        "last_status": row.status,
        "last_error": row.error,
        "last_attempt_at": optional_rfc3339(row.last_attempt_at_ms),
        "next_attempt_at": optional_rfc3339(row.next_attempt_at_ms),
    }


def _position(position: bytes) -> Position:
    partition, _, offset = position.decode("latin-1").partition(".")
    digits = all(part.isascii() and part.isdigit() and len(part) <= 19 for part in (partition, offset))
    if not digits or int(partition) >= PARTITIONS_MAX or int(offset) > _OFFSET_MAX:
        raise BadParameter(
            "The cursor is not valid for this list. Take it from the URL in `_links.next`, or leave it out to start at "
            "the first page.",
            parameter="cursor",
        )
    return int(partition), int(offset)
