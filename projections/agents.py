"""The Faust agents, which handle each record of the topic `control`.

For: the agent that folds the directory and, in a worker, the agent that runs the listeners' delivery streams. Both read
the same topic, each at its own pace. An agent catches every exception, because Faust would acknowledge and skip the
record of one that raised. Not for: what the events change (projections/directory.py), delivering (broker/delivery).

Only the records of `control` are Faust events, one each. Messages are read in batches
(broker/delivery/reading/tail_loop.py), because an event of a Faust stream costs some 60 µs of processor time, and a
record that is read in a batch 5 µs.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from types import SimpleNamespace
from typing import Any, Protocol, Self

from broker.core.codec import decode
from broker.core.directory import Directory
from broker.core.entities import Listener
from broker.core.events import Event
from broker.errors import UnknownEvent
from broker.ports import DirectoryView, Record
from projections.directory import DirectoryProjection

log = logging.getLogger(__name__)

Agent = Callable[[Any], Awaitable[None]]
Failed = Callable[[BaseException], None]


class DeliveryStreams(Protocol):
    """The part of a worker that starts, changes and stops deliveries to listeners when an event of the topic `control`
    requires it.
    """

    def concerned(self, event: Event, /) -> Collection[str]:
        """Return the ids of the listeners and replays whose deliveries may have to start, change or stop because of
        this event.
        """

    def __contains__(self, listener_id: str, /) -> bool: ...
    def start(self, listener: Listener, /) -> None: ...
    def change(self, listener: Listener, /) -> None: ...
    def stop(self, listener_id: str, /) -> None: ...
    def tell(self, event: Event, /) -> None: ...


class RecordStream:
    """A replacement for a Faust stream. It passes records of the topic `control` that were read without Faust to a
    Faust agent.
    """

    def __init__(self, records: AsyncIterator[Record]) -> None:
        self._records = records

    def noack(self) -> Self:
        return self

    async def events(self) -> AsyncIterator[SimpleNamespace]:
        async for record in self._records:
            yield SimpleNamespace(message=record)


def fold_control(directory: DirectoryProjection, failed: Failed) -> Agent:
    """Return the Faust agent that applies the events of the topic `control` to the directory.

    If only a newer version of Everput can decode an event, the agent logs the event and skips it. After any other
    error, the agent calls `failed` with the error. The process must then end, because its directory may be wrong.
    """

    async def control(stream: Any) -> None:
        async for record in stream.noack().events():
            offset = record.message.offset
            try:
                directory.fold(offset, decode(record.message.value))
            except UnknownEvent as error:
                log.error("projection.event_unknown topic=control offset=%d error=%s", offset, error)  # noqa: TRY400
                directory.fold(offset, None)
            except Exception as error:
                log.exception("projection.fold_failed topic=control offset=%d", offset)
                failed(error)

    return control


def run_delivery_streams(directory: DirectoryView, streams: DeliveryStreams, failed: Failed) -> Agent:
    """Return the Faust agent that starts, changes and stops the deliveries to each listener, as the events of the topic
    `control` require.

    If only a newer version of Everput can decode an event, the agent skips it. After any other error, the agent calls
    `failed` with the error. The process must then end, because it might send messages to a deleted listener.
    """

    async def delivery_streams(stream: Any) -> None:
        done = 0
        async for record in stream.noack().events():
            offset = record.message.offset
            if offset < done:
                # After a rebalance, Faust reads records of `control` again. So skip events that this agent has handled.
                continue
            try:
                event = decode(record.message.value)
                # Wait until the agent of fold_control() has applied this event to the directory, which follow() reads.
                await directory.seen(offset, timeout_s=None)
                follow(event, directory.state, streams)
            except UnknownEvent:
                pass  # The agent of fold_control() reads this event, too, and logs that it is unknown.
            except Exception as error:
                log.exception("projection.streams_failed topic=control offset=%d", offset)
                failed(error)
            done = offset + 1

    return delivery_streams


def follow(event: Event, directory: Directory, streams: DeliveryStreams) -> None:
    """Start, change or stop the deliveries of the listeners and replays that an event concerns. The directory already
    has this event, and perhaps later ones.
    """
    for listener_id in streams.concerned(event):
        listener = directory.listeners.get(listener_id)
        if listener is None:
            streams.stop(listener_id)
        elif listener_id in streams:
            streams.change(listener)
        else:
            streams.start(listener)
    streams.tell(event)
