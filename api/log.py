"""The log resource: an organization's events, streamed as newline-delimited JSON.

For: the query, the lines. Not for: the order and the reading (broker/audit/reader.py), which fields are shown
(broker/core/catalogue.py), sending (streams.py).

A line is either an event with its topic, partition and offset, or `{"cursor", "complete"}`. The last line of an answer
always has the `cursor`, from which the next request continues.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Any, Final

import orjson

from api.calls import Call
from api.page_tokens import PageTokens
from api.pages import time_parameter
from api.problems import BadParameter
from api.streams import Stream
from broker.audit.reader import LogReader, Range, Slice, WrongCursor
from broker.core.catalogue import shown_json, types_named
from broker.core.events import MessagePut
from broker.core.ids import parse_message_id
from broker.core.logorder import PageToken
from broker.core.names import shortened
from broker.core.selection import MessagePosition, Selection
from broker.errors import NotFound
from broker.ports import MessageLog

# This regular expression takes linear time: its only repetition, `.+`, is the end of its alternative.
_ACTOR: Final = re.compile(r"(?:key|account):.+|worker|shell")
_PATH: Final = "/v1/log"
_MEDIA: Final = b"application/x-ndjson"
_LIMIT_MAX: Final = 1_000_000
_NO_MESSAGE: Final = (
    "No message of this organization has this ID. Check the ID; retention may have deleted an old message."
)
# A search for a message's events begins one minute before the time in the message's id.
# The clocks of two processes may differ, so an event may have an earlier time than the message that it is about.
_CLOCK_SKEW_MS: Final = 60_000


class EventLog:
    """Handler for /v1/log."""

    def __init__(self, reader: LogReader, messages: MessageLog, tokens: PageTokens) -> None:
        self._reader = reader
        self._messages = messages
        self._tokens = tokens

    async def read(self, call: Call) -> Any:
        query = call.query()
        organization_id = call.organization_id
        span = Range(
            begin_ms=time_parameter(query, "from"),
            end_ms=time_parameter(query, "to"),
            page_token=self._page_token(query, organization_id),
            limit=_limit(query),
        )
        wanted = Selection(
            organization_id=organization_id,
            types=_types(query),
            queue_id=query.get("queue"),
            listener_id=query.get("listener"),
            actor=_actor(query),
        )
        if "message" in query:
            wanted, span = await self._story(query["message"], wanted, span)
        slices = self._reader.read(wanted, span)
        try:
            # Read the first part of the log before the answer begins.
            # If this first read fails, the client gets an HTTP error status.
            first = await anext(slices)
        except WrongCursor as error:
            raise BadParameter(str(error), parameter="cursor") from None
        return Stream(_MEDIA, self._lines(call, first, slices), slices.aclose)

    def _page_token(self, query: dict[str, str], organization_id: str) -> PageToken | None:
        if "cursor" not in query:
            return None
        text = self._tokens.open(query["cursor"], organization_id, _PATH).decode("latin-1")
        try:
            return PageToken.from_text(text)
        except ValueError:
            raise BadParameter(
                "The cursor is not valid for /v1/log. Take a cursor from a line of an earlier answer with the same "
                "filters, or leave the cursor out to start at the beginning.",
                parameter="cursor",
            ) from None

    async def _lines(self, call: Call, first: Slice, rest: AsyncGenerator[Slice, None]) -> AsyncGenerator[bytes, None]:
        """Yield the lines of a streamed answer. End the answer early if the client's API key or session is no longer
        valid, or if the account's role no longer permits reading the log.
        """
        yield self._slice_lines(first, call.organization_id)
        async for one in rest:
            call.check_still_in()
            yield self._slice_lines(one, call.organization_id)

    def _slice_lines(self, one: Slice, organization_id: str) -> bytes:
        lines = [
            b'{"topic":"%b","partition":%d,"offset":%d,"log_ms":%d,"event":%b}'
            % (entry.topic.encode(), entry.partition, entry.offset, entry.log_ms, shown_json(entry.event))
            for entry in one.entries
        ]
        token = self._tokens.seal(one.page_token.text().encode(), organization_id, _PATH)
        lines.append(orjson.dumps({"cursor": token, "complete": one.complete}))
        return b"\n".join(lines) + b"\n"

    async def _story(self, message_id: str, wanted: Selection, span: Range) -> tuple[Selection, Range]:
        """Restrict a search of the log to the events of one message. Return the filter `wanted` with this message
        added, and the time range `span` with a new begin. The new begin is a minute before the time in the message's
        id, or `span.begin_ms` if that is later. Raises NotFound if the organization has no message with this id.
        """
        parts = parse_message_id(message_id)
        found = None
        if parts is not None:
            at_ms, partition = parts
            found = await self._messages.find(
                partition=partition, at_ms=at_ms, message_id=message_id, organization_id=wanted.organization_id
            )
        if parts is None or found is None:
            raise NotFound(_NO_MESSAGE)
        at_ms, partition = parts
        offset, value = found
        put = Selection(organization_id=wanted.organization_id).take(value)
        if not isinstance(put, MessagePut):
            raise NotFound(_NO_MESSAGE)
        begin_ms = max(at_ms - _CLOCK_SKEW_MS, span.begin_ms or 0)
        position = MessagePosition(
            id=message_id, queue_id=put.queue_id, at_ms=at_ms, partition=partition, offset=offset
        )
        return replace(wanted, message=position), replace(span, begin_ms=begin_ms)


def _types(query: dict[str, str]) -> frozenset[str] | None:
    if "type" not in query:
        return None
    found: frozenset[str] = frozenset()
    for text in dict.fromkeys(query["type"].split(",")):  # without repetitions, because looking a type up is slow
        named = types_named(text)
        if named is None:
            raise BadParameter(
                f"{shortened(text)!r} is not a type of event in /v1/log. `everput events` prints the types; /v1/log "
                "has none of the topics `claims`, `statistics` and `outstanding`.",
                parameter="type",
            )
        found |= named
    return found


def _actor(query: dict[str, str]) -> str | None:
    actor = query.get("actor")
    if actor is not None and _ACTOR.fullmatch(actor) is None:
        raise BadParameter("The parameter `actor` must be key:<id>, account:<id>, worker or shell.", parameter="actor")
    return actor


def _limit(query: dict[str, str]) -> int | None:
    text = query.get("limit")
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 7 and 1 <= int(text) <= _LIMIT_MAX):
        raise BadParameter(f"The parameter `limit` must be a whole number from 1 to {_LIMIT_MAX}.", parameter="limit")
    return int(text)
