"""Lists of a queue's messages: which messages a list has, and the states of their deliveries.

For: filters, and searching the log in steps. Not for: the request (api/messages.py), reading the records
(broker/kafka/messages.py), the states (broker/kafka/queue_states.py).

Without filters, one step is enough for a page. With filters, steps are repeated until the page is full or the time for
one request is over. The page is then short, and the next request continues where it ended.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from broker.commands.changes import StoredMessage, newest_messages
from broker.core.codec import decode_message
from broker.core.entities import Listener, Queue
from broker.core.events import MessagePut
from broker.core.ids import parse_message_id
from broker.errors import UnknownEvent
from broker.ports import Deliveries, DeliverySummary, Log, PlacedMessage

# The states of deliveries by which a list can be filtered. `scheduled` means pending until the message's `deliver_at`.
STATES: Final = ("pending", "scheduled", "retrying", "parked", "delivered")
_TIME_S: Final = 0.15  # The search for a page of messages ends after this time.
_STEP: Final = 500  # Each step of a search reads the states of at most this many messages.
# Each step of a search for a page of messages reads the states of at most this many deliveries.
# A page of messages with states has one state for each pair of a message and a listener of the queue.
# If a queue has many listeners, a page of messages with states therefore has fewer messages.
_DELIVERIES_MAX: Final = 20_000
# A page of messages ends when its messages have more than 8 MiB of data together.
_BYTES_MAX: Final = 8 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageFilter:
    """The filter of a list of messages. A message must match every field that is set.

    `name` and `key` are compared exactly. `text` must be a part of the name or of the ordering key, in upper or lower
    case, or the first characters of the id. If `text` is a whole message id, only the message with this id matches.
    `state` is one of STATES; at least one delivery of the message must have this state.
    """

    name: str | None = None
    key: str | None = None
    text: str | None = None
    state: str | None = None

    @property
    def reads_values(self) -> bool:
        """Return whether the filter has a condition on the message's name, ordering key or id. If so, the caller must
        pass the value of each message's record to takes().
        """
        return self.name is not None or self.key is not None or self.text is not None

    def takes(self, value: bytes) -> bool:
        """Return whether the filter accepts the message in a record. Return False for a message that this version of
        Everput can't read. The field `state` of the filter is not checked here.
        """
        try:
            put = decode_message(value)
        except UnknownEvent:
            return False
        if (self.name is not None and put.name != self.name) or (self.key is not None and put.key != self.key):
            return False
        return self.text is None or _has_text(put, self.text)


class ListedMessage(NamedTuple):
    """A message as a list shows it. `deliveries` maps a listener's id to the state of the delivery. `deliveries` is
    None if the states were not asked for.
    """

    message: StoredMessage
    deliveries: Mapping[str, DeliverySummary] | None


async def list_messages(
    log: Log,
    deliveries: Deliveries,
    queue: Queue,
    wanted: MessageFilter,
    *,
    listeners: Sequence[Listener],
    begin: Sequence[int],
    end: Sequence[int],
    limit: int,
    with_states: bool,
    at_ms: int,
) -> tuple[list[ListedMessage], tuple[int, ...], tuple[int, ...]]:
    """Return a page of the queue's messages, newest first. Also return the values of `begin` and `end` for the call
    that returns the next page. `begin` and `end` have one offset for each partition: the page has messages from `begin`
    to before `end` that the filter `wanted` accepts. A page may have fewer than `limit` messages, or none, although
    later pages have some. With `with_states`, each message has the states of its deliveries to `listeners`. Raises
    Unavailable if Kafka does not answer.
    """
    takes = wanted.takes if wanted.reads_values else None
    states = deliveries.of_queue(listeners) if with_states or wanted.state is not None else None
    found: list[ListedMessage] = []
    first, last = tuple(begin), tuple(end)
    if wanted.state is not None and not listeners:
        return found, first, first
    until_s = time.monotonic() + _TIME_S
    held = 0
    step = max(1, min(_STEP, _DELIVERIES_MAX // max(1, len(listeners))))
    if with_states:
        limit = min(limit, step)
    while True:
        if states is not None and wanted.state is not None:
            first, last = await states.narrowed(wanted.state, first, last)
        if not _more(first, last):
            return found, first, last
        asked = limit - len(found) if wanted.state is None else step
        messages, rest = await newest_messages(log, queue, begin=first, end=last, limit=asked, wanted=takes)
        listed = [ListedMessage(one, None) for one in messages]
        if states is not None:
            summaries = await states.summaries([_placed(one) for one in messages])
            listed = [
                ListedMessage(one, {listener_id: _now(one, known, at_ms) for listener_id, known in summary.items()})
                for one, summary in zip(messages, summaries, strict=True)
            ]
        if wanted.state is not None:
            listed = [one for one in listed if _has_state(one, wanted.state)]
        for one in listed[limit - len(found) :]:  # Later pages show these messages.
            message = one.message
            rest[message.partition] = max(rest[message.partition], message.offset + 1)
        found += listed[: limit - len(found)]
        held += sum(len(one.message.data.encode()) for one in listed)
        last = tuple(rest)
        full = len(found) >= limit or held > _BYTES_MAX or (takes is None and wanted.state is None and found)
        if full or time.monotonic() >= until_s:
            return found, first, last


def _more(begin: Sequence[int], end: Sequence[int]) -> bool:
    return any(first < last for first, last in zip(begin, end, strict=True))


def _placed(message: StoredMessage) -> PlacedMessage:
    return PlacedMessage(message.put.message_id, message.partition, message.offset, message.put.at_ms)


def _now(message: StoredMessage, known: DeliverySummary, at_ms: int) -> DeliverySummary:
    """Return the state of a delivery. A pending delivery is `scheduled` until the message's `deliver_at`."""
    deliver_at_ms = message.put.deliver_at_ms or 0
    if known.state == "pending" and deliver_at_ms > at_ms:
        return DeliverySummary("scheduled", known.attempts, deliver_at_ms)
    return known


def _has_state(one: ListedMessage, state: str) -> bool:
    return one.deliveries is not None and any(known.state == state for known in one.deliveries.values())


def _has_text(put: MessagePut, text: str) -> bool:
    if parse_message_id(text) is not None:
        return put.message_id == text
    sought = text.casefold()
    return put.message_id.startswith(sought) or sought in put.name.casefold() or sought in (put.key or "").casefold()
