"""The roster of one worker: a dispatcher for each listener in the directory.

For: starting, changing and stopping the delivery streams of one listener. A Faust agent calls it for each event
(projections/agents.py). A take-over of partitions starts all listeners at once (worker.py).
Not for: sending (dispatch/dispatcher.py), folding the directory (projections/directory.py).

An event only names the listeners to look at; the roster then reads their current state from the directory. So an agent
that lags, or reads `control` again from the beginning, changes nothing that is already right.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Coroutine, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from broker.clock import now_ms
from broker.core import health
from broker.core.codec import Fields
from broker.core.cursor import Cursor
from broker.core.directory import Directory
from broker.core.entities import Listener
from broker.core.events import (
    ControlEvent,
    Event,
    ListenerDeleted,
    ListenerPaused,
    LogMended,
    QueueDeleted,
    ReplayPaused,
)
from broker.core.window import Window
from broker.delivery.assignment import Assignment
from broker.delivery.dispatch.connections import Network
from broker.delivery.dispatch.dispatcher import Dispatcher
from broker.delivery.dispatch.stream import Delivery, Stream
from broker.delivery.dispatch.ticks import Ticks
from broker.delivery.ports import Ports
from broker.delivery.positions import lowest
from broker.delivery.tuning import Tuning
from broker.errors import BrokerError, LogUnavailable
from broker.outbound.request import Opened, open_listener, same_seals
from broker.ports import DirectoryView
from broker.sealing import Sealer

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Means:
    """The parts of a worker that all its dispatchers share. Each dispatcher sends the messages of one listener."""

    network: Network
    dice: Callable[[], float]  # draws the jitter of retries
    tuning: Tuning
    ticks: Ticks
    # `run` starts a background task. If this task fails, the worker ends.
    run: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]


class Roster:
    """The dispatchers of one worker. A dispatcher sends the messages of one listener. At a rebalance, the worker keeps
    its dispatchers, but they get other partitions.
    """

    assignment: Assignment  # the worker's current one

    def __init__(self, kafka: Ports, view: DirectoryView, sealer: Sealer, means: Means) -> None:
        self._cursors = kafka.cursors
        self._control = kafka.log.control
        self._view = view
        self._sealer = sealer
        self._means = means
        self.dispatchers: dict[str, Dispatcher] = {}
        self.sending = False  # whether attempts may begin
        self.unusable: set[str] = set()  # listeners whose secret can't be decrypted
        self._replays: set[str] = set()  # ids of replays
        # The ids of listeners without a dispatcher. admit() loads their committed offsets, and then starts delivery.
        self._arrivals: dict[str, None] = {}
        self._arrived = asyncio.Event()

    @property
    def _directory(self) -> Directory:
        return self._view.state

    # A Faust agent calls the following methods after the directory has applied an event of the topic `control`.

    def concerned(self, event: Event) -> Collection[str]:
        """Return the ids of the listeners and replays whose delivery this event may change."""
        if isinstance(event, QueueDeleted):
            return [one.listener.id for one in self.dispatchers.values() if one.queue.id == event.queue_id]
        replay_id, listener_id = getattr(event, "replay_id", None), getattr(event, "listener_id", None)
        if replay_id is not None:
            return (replay_id,)
        # An event about a listener can also change the settings of replays to this listener, so include all replays.
        return () if listener_id is None else (listener_id, *self._replays)

    def __contains__(self, listener_id: str) -> bool:
        return listener_id in self.dispatchers

    def start(self, listener: Listener) -> None:
        """Start delivery to a listener that has no dispatcher, as soon as its committed offsets are loaded. Do nothing
        if the worker may begin no attempts now: the next take-over of partitions then starts the delivery.
        """
        if self.sending:  # Otherwise the next take-over starts it.
            self._arrivals[listener.id] = None
            self._arrived.set()

    def change(self, listener: Listener) -> None:
        """Apply a change of the listener. For example, it was paused, it got a new URL, or a redrive was requested or
        cancelled.
        """
        before = self.dispatchers[listener.id].listener
        if before is listener:
            return  # The listener has not changed since the dispatcher was updated.
        self.add(listener)
        if before.redrives.cancelled != listener.redrives.cancelled:
            self._means.run(self.assignment.outstanding.undo_cancelled(listener))
        if before.redrives.count != listener.redrives.count:
            self.assignment.outstanding.redrive(listener)

    def stop(self, listener_id: str) -> None:
        """Stop delivery to a listener that was deleted, or whose secrets can't be decrypted."""
        dispatcher = self.dispatchers.pop(listener_id, None)
        if dispatcher is None:
            return
        for partition in self.assignment.partitions.values():
            partition.remove(dispatcher)
        self.assignment.checkpoints.removed(listener_id)
        self._replays.discard(listener_id)
        dispatcher.close()
        self._means.ticks.remove(dispatcher)

    def tell(self, event: Event) -> None:
        """Handle an event after which stored data must be examined. Ignore other events.

        After an event about a replay, or the deletion of a listener or queue, look for data that can be deleted. If an
        unreadable range of the log can be read again, or was given up as lost, examine the parked deliveries again.
        """
        assignment = self.assignment
        if isinstance(event, LogMended):
            if event.partition in assignment.partitions:
                partition, first, last = event.partition, event.first_offset, event.last_offset
                review = partial(
                    assignment.outstanding.review, partition, self._directory.damage, self._directory.given_up
                )
                if event.topic == "messages":
                    self._means.run(review(first=first, last=last))
                elif event.topic == "changes":
                    self._means.run(self._changes_mended(partition, first, last))
                elif event.topic in ("outstanding", "deliveries"):
                    # Some deliveries stayed parked because a range was unreadable. So examine all parked deliveries.
                    self._means.run(review())
        elif isinstance(event, ListenerDeleted | QueueDeleted) or getattr(event, "replay_id", None) is not None:
            assignment.ended_listeners.look()

    async def _changes_mended(self, partition: int, first: int, last: int) -> None:
        """Apply the updates and deletions of messages in this range of `changes`, from offset `first` to `last`. They
        can be read again, or were given up as lost.

        Then examine the deliveries that were parked because these updates could not be read.
        """
        assignment = self.assignment
        await assignment.changes.mended(partition, first, last)
        await assignment.outstanding.review(partition, self._directory.damage, self._directory.given_up)

    # Listeners that have arrived

    async def run(self) -> None:
        """Load the committed offsets of new listeners, and start delivery to them, in an endless loop."""
        while True:
            await self._arrived.wait()
            await self.admit()

    async def admit(self) -> None:
        """Load the committed offsets of the listeners for which `start()` was called, and start delivery to them."""
        self._arrived.clear()
        ids, self._arrivals = self._arrivals, {}
        arrived = [one for one in map(self._directory.listeners.get, ids) if one and one.id not in self.dispatchers]
        if not arrived or not self.sending:
            return
        assignment = self.assignment
        partitions = list(assignment.partitions)
        try:
            cursors = await self._cursors.load([listener.id for listener in arrived], partitions)
            await assignment.changes.cover({number: lowest(arrived, cursors, number) for number in partitions})
        except LogUnavailable:
            await asyncio.sleep(self._means.tuning.load_pause_s)
            for listener in arrived:
                self.start(listener)
            return
        if assignment is not self.assignment or not self.sending:
            return
        for listener_id in [listener.id for listener in arrived]:
            listener_now = self._directory.listeners.get(listener_id)
            if listener_now is not None and listener_id not in self.dispatchers:
                self.add(listener_now)
                self.place(listener_now, cursors.get(listener_id, {}))
                assignment.outstanding.redrive(listener_now)

    # Dispatchers

    def add(self, listener: Listener) -> None:
        """Create the listener's dispatcher, or update the existing one. A new dispatcher sends nothing until place() is
        called.

        If the listener's secrets or headers can't be decrypted, create no dispatcher, and stop an existing one.
        """
        dispatcher, assignment = self.dispatchers.get(listener.id), self.assignment
        self.unusable.discard(listener.id)
        try:
            opened = self._opened(listener, dispatcher)
        # If a listener's secrets or headers can't be decrypted, stop only the delivery to this listener.
        except (BrokerError, ValueError):
            log.exception("listener.secret_unusable listener=%s", listener.id)
            self.unusable.add(listener.id)
            if dispatcher is not None:
                self.stop(listener.id)
                assignment.outstanding.removed(listener.id)
            return
        if dispatcher is not None:
            dispatcher.assignment = assignment
            dispatcher.update(listener, share=assignment.share, opened=opened)
            return
        dispatcher = self.dispatchers[listener.id] = Dispatcher(
            self._means.network,
            assignment,
            self._directory.queues[listener.queue_id],
            listener,
            opened,
            tuning=self._means.tuning,
            dice=self._means.dice,
            share=assignment.share,
            wants_tick=self._means.ticks.add,
            gone=self._gone,
        )
        dispatcher.sending = self.sending
        if listener.replay is not None:
            self._replays.add(listener.id)

    def _opened(self, listener: Listener, dispatcher: Dispatcher | None) -> Opened:
        if dispatcher is not None and same_seals(dispatcher.listener, listener):
            return dispatcher.opened
        return open_listener(self._sealer, listener)

    def place(self, listener: Listener, cursors: Mapping[int, Cursor]) -> None:
        """Start delivery to the listener in each of this worker's partitions. Begin at the listener's committed offset.
        Without a committed offset, begin at the listener's start offset.
        """
        dispatcher = self.dispatchers.get(listener.id)
        if dispatcher is None:
            return
        for number, partition in self.assignment.partitions.items():
            stale = dispatcher.streams.get(number)
            if stale is not None and stale.assignment is not self.assignment:
                dispatcher.drop(stale)
            cursor = listener.stands_at(cursors, number)
            dispatcher.recent.pop(number, None)
            if cursor.counts:
                dispatcher.recent[number] = health.read(cursor.counts).recent
            # If the former owner has committed that the listener is down, commit the listener's present state soon.
            if cursor.state == "down":
                self.assignment.checkpoints.changed(listener.id, (number,))
            reach = listener.reach(number, partition.tail)
            if cursor.top != reach or cursor.open:
                window: Window[Delivery] = Window()
                stream = dispatcher.streams[number] = Stream(dispatcher, number, window)
                opened = [(offset, Delivery(stream, offset, None)) for offset in cursor.open]
                if opened:
                    opened[0][1].put_at_ms = cursor.oldest_at_ms or 0
                for (_, delivery), made in zip(opened, cursor.attempts, strict=False):  # a cursor can lack the counts
                    delivery.number = made
                window.restore(cursor, reach, opened)
                if window.wanted() is not None:
                    dispatcher.behind[stream] = None
            partition.place(dispatcher)
        if dispatcher.behind:
            # Request the first older messages that the listener needs. Later, the dispatcher's tick() requests more.
            dispatcher.wake()

    def let_send(self, *, sending: bool) -> None:
        """Allow all dispatchers of the worker to begin attempts, or forbid it."""
        self.sending = sending
        for dispatcher in self.dispatchers.values():
            dispatcher.sending = sending

    def _gone(self, dispatcher: Dispatcher) -> None:
        self._means.run(self._pause(dispatcher))

    async def _pause(self, dispatcher: Dispatcher) -> None:
        """Record in the topic `control` that a listener is paused because it answered 410 Gone."""
        listener = dispatcher.listener
        fields: Fields = {
            "at_ms": now_ms(),
            "organization_id": listener.organization_id,
            "actor": "worker",
            "reason": "the listener answered 410 Gone",
        }
        event: ControlEvent = (
            ListenerPaused(**fields, listener_id=listener.id)
            if listener.replay is None
            else ReplayPaused(**fields, replay_id=listener.id)
        )
        try:
            await self._control.append(event)
        except BrokerError:
            dispatcher.said_gone = False  # If the event was not stored, try again at the listener's next answer 410.
