"""The Faust agents: what happens for each record of `control`.

For: the agent that folds the directory and, in a worker, the agent that runs the listeners' delivery streams. Both read
the same topic, each at its own pace. An agent catches everything: one that raised would have its record acknowledged
and skipped. Not for: what the events change (projections/directory.py), delivering (broker/delivery).

Only `control` is read this way. The messages themselves are read in batches (broker/delivery/reading/tail_loop.py): an
event of a Faust stream costs some 60 µs of processor time, a record that is read in a batch 5 µs.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection
from typing import Any, Protocol

from broker.core.codec import decode
from broker.core.directory import Directory
from broker.core.entities import Listener
from broker.core.events import Event
from broker.errors import UnknownEvent
from broker.ports import DirectoryView
from projections.directory import DirectoryProjection

log = logging.getLogger(__name__)

Agent = Callable[[Any], Awaitable[None]]
Failed = Callable[[BaseException], None]


class DeliveryStreams(Protocol):
    """The delivery streams of a worker's listeners, one a partition (broker/delivery/roster.py). Nothing here waits."""

    def concerned(self, event: Event, /) -> Collection[str]:
        """Return the ids of the listeners and replays whose streams this event may change."""

    def __contains__(self, listener_id: str, /) -> bool: ...
    def start(self, listener: Listener, /) -> None: ...
    def change(self, listener: Listener, /) -> None: ...
    def stop(self, listener_id: str, /) -> None: ...
    def tell(self, event: Event, /) -> None: ...


def fold_control(directory: DirectoryProjection, failed: Failed) -> Agent:
    """Return the agent that folds `control` into the directory.

    failed: called with an error of the fold itself. The state can't be trusted then, so the process has to end.
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
    """Return the agent that starts, changes and stops each listener's delivery streams as `control` tells.

    failed: called with an error. The process has to end then: it might go on sending to a listener that has ended.
    """

    async def delivery_streams(stream: Any) -> None:
        done = 0
        async for record in stream.noack().events():
            offset = record.message.offset
            if offset < done:
                continue  # Kafka has assigned the partition again, and the reading began again.
            try:
                event = decode(record.message.value)
                await directory.seen(offset, timeout_s=None)  # The directory's agent has folded this event, too.
                follow(event, directory.state, streams)
            except UnknownEvent:
                pass  # the directory's agent logs it
            except Exception as error:
                log.exception("projection.streams_failed topic=control offset=%d", offset)
                failed(error)
            done = offset + 1

    return delivery_streams


def follow(event: Event, directory: Directory, streams: DeliveryStreams) -> None:
    """Start, change or stop the delivery streams of the listeners that an event concerns.

    directory: has folded the event, and perhaps later ones. So it decides what each listener is by now.
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
