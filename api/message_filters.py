"""The filters of a list of messages, as query parameters.

For: checking the parameters, and the range of offsets that they leave. Not for: which messages a filter accepts
(broker/commands/listing.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from api.pages import Span, flag_parameter
from api.problems import BadParameter
from broker.commands.listing import STATES, MessageFilter
from broker.core.entities import Listener, Queue
from broker.core.ids import parse_message_id
from broker.core.names import NAME_CHARS_MAX
from broker.ports import MessageLog

# The time in a message's id may differ from the time of its Kafka record by up to this many milliseconds.
# The two times differ because clocks differ, and because a put that is repeated later keeps the message's id.
_STORED_MS_MAX: Final = 600_000


class Filters(NamedTuple):
    """The filters of a request for a list of messages. `deliveries` says whether the answer has the deliveries of each
    message, and `data` whether the answer has the messages' data.
    """

    messages: MessageFilter
    listeners: Sequence[Listener]
    deliveries: bool
    data: bool


def filters(query: Mapping[str, str], queue: Queue) -> Filters:
    """Return the filters of a query. Raises BadParameter."""
    state = query.get("state")
    if state is not None and state not in STATES:
        raise BadParameter(f"The parameter `state` must be one of {', '.join(STATES)}.", parameter="state")
    listeners = list(queue.listeners.values())
    if "listener" in query:
        listener = queue.listeners.get(query["listener"])
        if listener is None:
            raise BadParameter("No listener of this queue has this ID. Check the ID.", parameter="listener")
        listeners = [listener]
    return Filters(
        MessageFilter(name=_text(query, "name"), key=_text(query, "key"), text=_text(query, "q"), state=state),
        listeners,
        flag_parameter(query, "deliveries"),
        flag_parameter(query, "data", default=True),
    )


async def narrowed(span: Span, asked: Filters, log: MessageLog, *, listener_given: bool) -> Span:
    """Shrink the range of offsets in each partition to the part in which messages may match the filters. If the query
    names a listener (`listener_given`), the range of each partition begins at the listener's start offset there, or
    later.
    """
    begin, end = list(span.begin), list(span.end)
    partitions = range(len(begin))
    if listener_given:
        begin = list(map(max, begin, asked.listeners[0].start_offsets))
    key, text = asked.messages.key, asked.messages.text
    of_id = None if text is None else parse_message_id(text)
    only = None if key is None else log.partition_of(key)
    if of_id is not None:
        at_ms, partition = of_id
        begin = list(map(max, begin, await log.offsets_at(max(1, at_ms - _STORED_MS_MAX))))
        end = list(map(min, end, await log.offsets_at(at_ms + _STORED_MS_MAX)))
        only = partition
    if only is not None:
        end = [end[number] if number == only else begin[number] for number in partitions]
    return Span(tuple(begin), tuple(map(max, begin, end)))


def _text(query: Mapping[str, str], name: str) -> str | None:
    text = query.get(name)
    if text is not None and not 1 <= len(text) <= NAME_CHARS_MAX:
        raise BadParameter(f"The parameter `{name}` must have 1 to {NAME_CHARS_MAX} characters.", parameter=name)
    return text
