"""Checkpoints: outcomes are written to the topic `deliveries`, then the cursors of the same moment are committed.

For: the order of the two writes, and what is repeated when one fails. Not for: the contents of a cursor
(broker/core/cursor.py).

After a crash, the deliveries that a listener has settled since its newest commit are repeated. A checkpoint that fails
loses nothing: the streams stay dirty, and the outcomes are kept for the next one. A partition whose outcomes can't be
written holds back its own cursors only, and soon its further messages. Slow and failing listeners normally take part in
every third checkpoint (docs/operations.md).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Container, Iterable, Mapping
from math import inf

from broker.clock import now_ms
from broker.core import circuit
from broker.core.codec import encode
from broker.core.cursor import Cursor
from broker.delivery.checkpoint.held import HeldPartitions
from broker.delivery.checkpoint.metrics import Metrics
from broker.delivery.dispatch.stream import (
    Dispatching,
    Stream,
    counts_text,
    note_attempts,
    outcome_events,
    take_outcomes,
)
from broker.delivery.outstanding.schedule import Outstanding
from broker.delivery.ports import Appender, CursorStore
from broker.delivery.reading.partition import Partition
from broker.delivery.tuning import TUNED, Tuning
from broker.errors import LogUnavailable, Suspended
from broker.ports import Count, NotStored

log = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints of a worker. A checkpoint writes the results of attempts to the topic `deliveries`, and then
    commits the listeners' Kafka offsets.
    """

    def __init__(
        self,
        cursors: CursorStore,
        deliveries: Appender,
        outstanding: Outstanding,
        partitions: dict[int, Partition],
        dispatchers: Mapping[str, Dispatching],
        metrics: Metrics,
        confirm: Callable[[], Awaitable[None]],
        count: Count | None = None,
        tuning: Tuning = TUNED,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._tuning = tuning
        self._monotonic = monotonic
        self._sleep = sleep
        self._turns = round(tuning.low_priority_s / tuning.checkpoint_s)
        self._cursors = cursors
        self._deliveries = deliveries
        self._outstanding = outstanding
        self._partitions = partitions
        self._dispatchers = dispatchers
        self._metrics = metrics
        # `confirm` asks Kafka whether the worker still owns its partitions. Only the owner of a partition may commit.
        self._confirm = confirm
        self._count = count
        self.stored_at_s: dict[str, float] = {}  # when each listener was last committed
        self._dirty: set[Stream] = set()
        # By listener id: the partitions whose offset must be committed, even if no delivery has changed.
        self._changed: dict[str, set[int]] = {}
        # The encoded results of attempts that are not written to Kafka yet, by partition.
        self._outcomes: dict[int, list[tuple[bytes, bytes | None]]] = {}
        self.held = HeldPartitions(tuning.unwritten_s, monotonic)
        self.quiet = asyncio.Lock()  # held while cursors are being committed
        self.suspended = False
        # True during the last checkpoint before a hand-over. This checkpoint must not pause between commits.
        self._hurried = False

    def touched(self, stream: Stream) -> None:
        """Include a delivery stream (one partition's deliveries to one listener) in the next checkpoint. If the
        listener is slow or failing, a later checkpoint may include the stream instead.
        """
        stream.dirty = True
        self._dirty.add(stream)

    def changed(self, listener_id: str, partitions: Iterable[int] | None = None) -> None:
        """Commit a listener's offsets in these partitions at the next checkpoint, even if no delivery has changed. For
        example, the listener went down, and the metadata of its offsets must say so. If `partitions` is None, use all
        partitions of the worker. If the listener is slow or failing, a later checkpoint may commit its offsets.
        """
        self._changed.setdefault(listener_id, set()).update(self._partitions if partitions is None else partitions)

    def removed(self, listener_id: str) -> None:
        """Forget a listener's metrics, and which offsets to commit for it: the worker stops delivery to it."""
        self.stored_at_s.pop(listener_id, None)
        self._changed.pop(listener_id, None)
        self._metrics.removed(listener_id)

    async def last(self) -> None:
        """Make the final checkpoint before a hand-over (none if `suspended` is true), and then ask Kafka whether the
        worker still owns its partitions. Raises LogUnavailable if the checkpoint fails, or if Kafka does not confirm.
        """
        self._hurried = True
        try:
            await self.checkpoint()
            # If the checkpoint committed nothing, it did not ask whether the worker owns its partitions. So ask now.
            await self._confirm()
        finally:
            self._hurried = False

    async def once_more(self) -> None:
        """Repeat the newest commits before the partitions are handed over: a delayed commit of an earlier owner may
        have replaced an offset by a lower one. Errors are ignored.
        """
        dispatchers = [
            dispatcher for dispatcher in self._dispatchers.values() if dispatcher.listener.id in self.stored_at_s
        ]
        async with self.quiet:
            for first in range(0, len(dispatchers), self._tuning.dirty_at_once):
                some = dispatchers[first : first + self._tuning.dirty_at_once]
                cursors = {one.listener.id: written for one in some if (written := self._written_cursors(one))}
                if self.suspended:
                    return
                try:
                    await self._confirm()
                    await self._cursors.store(cursors)
                except NotStored:  # Continue with the other listeners.
                    continue
                except LogUnavailable:  # These commits only repeat stored ones.
                    return

    async def run(self) -> None:
        """Make checkpoints in an endless loop, with a wait of `checkpoint_s` seconds before each. Raises Suspended if a
        wait took longer than `suspended_s` seconds: the process was suspended.
        """
        while True:
            await self._pause()
            try:
                await self.checkpoint(pause_s=self._tuning.commit_pause_s)
            except LogUnavailable as error:
                log.warning("checkpoint.failed error=%s", error)

    async def _pause(self) -> None:
        """Wait `checkpoint_s` seconds. Raises Suspended if the wait took longer than `suspended_s` seconds: the process
        was suspended, so other workers may own its partitions.
        """
        before = self._monotonic()
        await self._sleep(self._tuning.checkpoint_s)
        stood_still_s = self._monotonic() - before
        if stood_still_s > self._tuning.suspended_s:
            self.suspended = True
            raise Suspended(
                f"this process was suspended or too busy for {stood_still_s:.0f} s, so other workers may own its "
                "partitions. The process ends; a supervisor such as `everput serve` restarts it; else start it again"
            )

    async def checkpoint(self, *, pause_s: float = 0.0) -> None:
        """Write the results of attempts to the topic `deliveries`. Then commit the listeners' changed offsets (not all:
        see _may_wait()). Pause `pause_s` seconds after every few commits. Raises LogUnavailable if Kafka has not stored
        everything, or if the worker no longer owns its partitions. The next checkpoint then tries again.
        """
        async with self.quiet:
            if self.suspended:
                return
            began = self._monotonic()
            streams: list[Stream] = []
            cursors: dict[str, dict[int, Cursor]] = {}
            try:
                await self._collect(streams, cursors, began)
                not_written = await self._write(cursors)
                if self.held.note(self._unwritten()):
                    for dispatcher in list(self._dispatchers.values()):
                        if dispatcher.behind:
                            dispatcher.wake()
                await self._outstanding.note()
                refused = await self._store(cursors, pause_s=pause_s)
            # If this checkpoint fails or is cancelled, its offsets must be committed by the next checkpoint.
            except BaseException:
                self._failed(streams, cursors)
                raise
            error = not_written or refused
            kept_back = () if refused is None else refused.failed
            stored = {one: places for one, places in cursors.items() if one not in kept_back}
            self._note_stored(stored, began)
            self._metrics.cursors += sum(map(len, stored.values()))
            if error is not None:
                unwritten = self._unwritten()
                self._failed(
                    [one for one in streams if one.dispatcher.listener.id in kept_back or one.partition in unwritten],
                    {one: cursors[one] for one in kept_back},
                )
            elif streams:
                self._metrics.checkpoints.add((self._monotonic() - began) * 1000)
            _clean_up(streams, self._partitions)
            if error is not None:
                raise error

    def _failed(self, streams: Iterable[Stream], cursors: Mapping[str, Mapping[int, Cursor]]) -> None:
        self._metrics.checkpoints_failed += 1
        for listener_id, places in cursors.items():
            self.changed(listener_id, places)
        for stream in streams:
            if stream.current:
                stream.pressing = True
                self.touched(stream)

    def _note_stored(self, listener_ids: Iterable[str], at_s: float) -> None:
        """Record that the listeners' offsets were committed at the time `at_s`. For a listener's first commit, record a
        time that is up to `low_priority_s` seconds earlier, and not the same for all listeners. So the next commits of
        slow and failing listeners fall into different checkpoints.
        """
        for listener_id in listener_ids:
            if listener_id in self.stored_at_s:
                self.stored_at_s[listener_id] = at_s
            elif listener_id in self._dispatchers:  # unless it was deleted
                self.stored_at_s[listener_id] = at_s - self._tuning.checkpoint_s * (len(self.stored_at_s) % self._turns)

    async def _write(self, cursors: dict[str, dict[int, Cursor]]) -> LogUnavailable | None:
        """Write the results of attempts to the topic `deliveries`, and the ends of stored deliveries to the topic
        `outstanding`. If Kafka does not store those of a partition, remove its offsets from `cursors`, so that no
        offset is committed before its results. Return the error, or None.
        """
        failed: LogUnavailable | None = None
        for write in (self._write_outcomes, self._outstanding.flush):
            try:
                await write()
            except LogUnavailable as error:
                failed = error
        if failed is not None:
            for listener_id, numbers in _leave_out(cursors, self._unwritten()).items():
                self.changed(listener_id, numbers)
        return failed

    async def _write_outcomes(self) -> None:
        if self._outcomes:
            await self._deliveries.append(self._outcomes)

    def _unwritten(self) -> set[int]:
        """Return the partitions whose results, or ends of stored deliveries, Kafka has not stored yet."""
        return {*self._outcomes, *self._outstanding.unflushed}

    async def _collect(self, streams: list[Stream], cursors: dict[str, dict[int, Cursor]], at_s: float) -> None:
        """Collect what this checkpoint must store of the changed delivery streams. A delivery stream is one partition's
        deliveries to one listener. Leave out listeners that may skip this checkpoint. Add the streams to `streams`, and
        the offsets to commit to `cursors`. Keep the results of attempts until _write() has written them.
        """
        self._collect_changed(cursors, at_s)
        waits: dict[str, bool] = {}
        for looked_at, stream in enumerate(list(self._dirty), 1):
            if looked_at % self._tuning.dirty_at_once == 0:
                await asyncio.sleep(0)
            dispatcher = stream.dispatcher
            listener_id = dispatcher.listener.id
            if listener_id not in waits:
                waits[listener_id] = self._may_wait(dispatcher, at_s)
            if waits[listener_id]:
                continue
            self._dirty.discard(stream)
            stream.dirty = stream.pressing = False
            partition = self._partitions.get(stream.partition)
            if partition is None or not stream.current:
                continue
            streams.append(stream)
            rows, attempts = take_outcomes(stream)
            self._metrics.count(dispatcher.listener, rows, attempts)
            note_attempts(stream, rows, attempts)
            for event in outcome_events(stream, rows, attempts, now_ms()):
                key, value = getattr(event, "message_id", listener_id), encode(event)
                self._outcomes.setdefault(stream.partition, []).append((key.encode(), value))
                if self._count is not None:
                    self._count(dispatcher.listener.organization_id, len(value))
            cursors.setdefault(listener_id, {})[stream.partition] = self._cursor(stream, partition)

    def _collect_changed(self, cursors: dict[str, dict[int, Cursor]], at_s: float) -> None:
        """Add the offsets that changed() has requested to `cursors`. Keep the requests of listeners that may skip this
        checkpoint. If a delivery stream exists, only mark the stream as changed: _collect() then adds its offset.
        """
        for listener_id, numbers in self._outstanding.take_changed().items():
            self.changed(listener_id, numbers)
        changed, self._changed = self._changed, {}
        for listener_id, numbers in changed.items():
            dispatcher = self._dispatchers.get(listener_id)
            if dispatcher is None:
                continue
            if self._may_wait(dispatcher, at_s):
                self._changed[listener_id] = numbers
                continue
            for number in numbers:
                stream = dispatcher.streams.get(number)
                if stream is not None:
                    self.touched(stream)
            idle = self._idle_of(dispatcher, numbers)
            if idle:
                cursors[listener_id] = idle

    def _may_wait(self, dispatcher: Dispatching, at_s: float) -> bool:
        """Return whether this checkpoint may leave out the listener. Return True only if the listener is slow or
        failing, and its last commit is less than `low_priority_s` seconds ago. Return False if it has an urgent change,
        or many results to write. Return False in the final checkpoint before a hand-over.
        """
        if self._hurried or not dispatcher.limits.low_priority:
            return False
        if at_s - self.stored_at_s.get(dispatcher.listener.id, -inf) >= self._tuning.low_priority_s:
            return False
        streams = dispatcher.streams.values()
        return (
            sum(inf if one.pressing else len(one.rows) + len(one.attempts) for one in streams)
            < self._tuning.outcomes_waiting_max
        )

    async def run_idle(self) -> None:
        """Commit each listener's offsets again about every `idle_checkpoint_s` seconds, in an endless loop, because
        Kafka deletes old committed offsets. Where messages of a partition are being delivered to the listener, do not
        commit here: the next checkpoint commits this partition's offset.
        """
        rounds = int(self._tuning.idle_checkpoint_s / self._tuning.checkpoint_s)
        turn = 0
        while True:
            await self._pause()
            turn = (turn + 1) % rounds
            async with self.quiet:
                dispatchers = list(self._dispatchers.values())[turn::rounds]
                # Kafka deletes old offsets. So the next checkpoint also commits unchanged offsets of delivery streams.
                for stream in [one for dispatcher in dispatchers for one in dispatcher.streams.values()]:
                    self.touched(stream)
                cursors = self._idle(dispatchers)
                # If a commit fails, the earlier offsets stay valid. This loop tries again after about a minute.
                with contextlib.suppress(LogUnavailable):
                    await self._store(cursors, pause_s=self._tuning.idle_commit_pause_s)
                    self._metrics.cursors += sum(map(len, cursors.values()))

    async def _store(self, cursors: Mapping[str, Mapping[int, Cursor]], *, pause_s: float) -> NotStored | None:
        """Commit the offsets of a few listeners at a time. Before each step, ask Kafka whether the worker still owns
        its partitions. Return an error that names the listeners whose commits failed, or None. Raises LogUnavailable if
        the worker may not own its partitions any more.
        """
        # Kafka refuses a listener's commit if its consumer group has members. Other listeners must not wait for that.
        rows = list(cursors.items())
        together = max(self._tuning.commits_together, -(-len(rows) // self._tuning.commit_pauses_max))
        failed: dict[str, LogUnavailable] = {}
        while rows:
            await self._confirm()
            now, rows = rows[:together], rows[together:]
            try:
                await self._cursors.store(dict(now))
            except NotStored as error:
                failed |= error.failed
                # A refused commit takes time. To lose no more time, commit for all remaining listeners at once.
                together = len(rows)
            if rows and pause_s and not self._hurried:
                await asyncio.sleep(pause_s)
        return NotStored(failed) if failed else None

    def _idle(self, dispatchers: Iterable[Dispatching]) -> dict[str, dict[int, Cursor]]:
        found = ((dispatcher.listener.id, self._idle_of(dispatcher)) for dispatcher in dispatchers)
        return {listener_id: idle for listener_id, idle in found if idle}

    def _idle_of(self, dispatcher: Dispatching, numbers: Iterable[int] | None = None) -> dict[int, Cursor]:
        """Return a listener's offsets to commit, with metadata, by partition. Leave out partitions whose messages are
        being delivered to it (with a delivery stream). `numbers` has the partitions; None means all of the worker.
        """
        idle = {}
        for number in self._partitions if numbers is None else numbers:
            partition = self._partitions.get(number)
            if partition is not None and number not in dispatcher.streams and partition.placed(dispatcher):
                idle[number] = _idle_cursor(dispatcher, number, partition.tail, self._outstanding)
        return idle

    def _cursor(self, stream: Stream, partition: Partition) -> Cursor:
        listener_id = stream.dispatcher.listener.id
        waiting, since_ms = self._outstanding.waiting(stream.partition, listener_id)
        parked, retrying = self._outstanding.held(stream.partition, listener_id)
        return stream.cursor(partition.tail, waiting=waiting, since_ms=since_ms, parked=parked, retrying=retrying)

    def _written_cursors(self, dispatcher: Dispatching) -> dict[int, Cursor]:
        """Return a listener's offsets that need no checkpoint before their commit, by partition. Leave out partitions
        in which its deliveries have changed since their last checkpoint: their results may not be written yet.
        """
        streams = dispatcher.streams.values()
        kept = {one.partition: self._cursor(one, self._partitions[one.partition]) for one in streams if not one.dirty}
        return self._idle_of(dispatcher) | kept


def _clean_up(streams: Iterable[Stream], partitions: Mapping[int, Partition]) -> None:
    """Free the memory of delivery streams (one partition's deliveries to one listener) that have nothing to deliver and
    nothing to commit. A stream is created again when it is needed.
    """
    for stream in streams:
        partition = partitions.get(stream.partition)
        if partition is None or stream.dirty or stream.from_outstanding or not stream.window.idle(partition.tail):
            continue
        stream.dispatcher.streams.pop(stream.partition, None)


def _leave_out(cursors: dict[str, dict[int, Cursor]], partitions: Container[int]) -> dict[str, set[int]]:
    """Remove the offsets in these partitions. Return, by listener id, the partitions whose offset was removed."""
    removed: dict[str, set[int]] = {}
    for listener_id, places in list(cursors.items()):
        kept = {number: cursor for number, cursor in places.items() if number not in partitions}
        if len(kept) < len(places):
            removed[listener_id] = places.keys() - kept.keys()
        if kept:
            cursors[listener_id] = kept
        else:
            del cursors[listener_id]
    return removed


def _idle_cursor(dispatcher: Dispatching, number: int, tail: int, outstanding: Outstanding) -> Cursor:
    """Return the offset to commit for a listener, with its metadata, in the partition `number`. No message of this
    partition is being delivered to the listener at present (there is no delivery stream).
    """
    listener_id = dispatcher.listener.id
    waiting, since_ms = outstanding.waiting(number, listener_id)
    return Cursor(
        top=dispatcher.listener.reach(number, tail),
        pending=waiting,
        oldest_at_ms=since_ms,
        state="down" if dispatcher.circuit.state is circuit.State.OPEN else "live",
        error=dispatcher.error,
        counts=counts_text(dispatcher, number, *outstanding.held(number, listener_id)),
    )
