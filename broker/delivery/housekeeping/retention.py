"""Retention: deletes old records of `messages`, `changes` and `deliveries` in the partitions that this worker owns.

For: which records may be deleted. A partition is deleted up to an offset below which every message is old enough, and
each listener has settled it or has it in `outstanding` with its data. An outcome is deleted when it is older than the
oldest message left. A change stays while `outstanding` holds an older message. A listener that lags (paused, down or
slow) does not hold retention up. What it lacks is stored in `outstanding`, a few listeners at a time, and the messages
are deleted in the next round (docs/decisions/0196).
Not for: deleting (broker/kafka/requests.py), setting aside (dispatcher.py). Only committed cursors count, not what a
worker has in memory, so that a worker that has lost a partition can do no harm.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import NamedTuple, Protocol

from broker.clock import now_ms
from broker.delivery.ports import CursorStore, DeliveryLog
from broker.delivery.tuning import TUNED, Tuning
from broker.errors import LogUnavailable, ViewBehind
from broker.ports import EARLIEST, LATEST, DirectoryView
from broker.time_offsets import offsets_since

log = logging.getLogger(__name__)


class Kept(Protocol):
    def oldest_put_ms(self, partition: int) -> int | None: ...
    def oldest_bare_put_ms(self, partition: int) -> int | None: ...


class Lagging(Protocol):
    """The methods of a dispatcher that retention calls. A dispatcher sends the messages of one listener."""

    def set_aside_before(self, partition: int, below: int) -> None: ...
    def sets_aside(self, partition: int) -> bool: ...


class _Lag(NamedTuple):
    """A listener that still needs old messages of a partition. Retention first copies these messages to the topic
    `outstanding` for the listener. Only then can it delete them from the topic `messages`.
    """

    partition: int
    listener_id: str
    below: int  # Messages below this offset are old.


class Retention:
    """The deletion of old messages in the partitions that a worker owns."""

    def __init__(
        self,
        event_log: DeliveryLog,
        cursors: CursorStore,
        view: DirectoryView,
        outstanding: Kept,
        partitions: Mapping[int, object],
        dispatchers: Mapping[str, Lagging],
        retain_s: int | None,
        assure: Callable[[], Awaitable[None]],
        tuning: Tuning = TUNED,
    ) -> None:
        self._tuning = tuning
        self._assure = assure  # raises if partitions are lost
        self._requests = event_log.requests
        self._messages = event_log.messages.name
        self._changes, self._deliveries = event_log.changes.name, event_log.deliveries.name
        self._cursors = cursors
        self._view = view
        self._outstanding = outstanding
        self._partitions = partitions
        self._dispatchers = dispatchers
        self._retain_s = retain_s  # None keeps messages forever

    async def run(self) -> None:
        """Delete old messages regularly, in an endless loop."""
        while True:
            await asyncio.sleep(self._tuning.retention_look_s)
            if self._retain_s is not None:
                try:
                    await self.sweep(now_ms() - self._retain_s * 1000)
                except (LogUnavailable, ViewBehind) as error:
                    log.warning("retention.waits error=%s", error)

    async def sweep(self, before_ms: int) -> None:
        """Delete the messages that were put before this time and that no listener needs any more. If a listener still
        needs such a message, copy the message to the topic `outstanding` for this listener; a later call then deletes
        it from `messages`. Delete nothing if `control` has an event that only a newer version of Everput can read.

        Raises LogUnavailable if Kafka does not answer or the worker has lost its partitions, and ViewBehind if this
        process has not read `control` to its end.
        """
        owned = dict(self._partitions)
        partitions = await self._with_old(list(owned), before_ms)
        if not partitions:
            return
        await self._view.caught_up()
        # Stop if the topic `control` has an event that only a newer version of Everput can read.
        # The newer version may have created listeners that need the old messages, but this process can't know them.
        if not self._view.complete:
            return
        listeners = list(self._view.state.listeners.values())
        cursors = await self._cursors.load([listener.id for listener in listeners], partitions)
        ends = await self._requests.offsets(self._messages, dict.fromkeys(partitions, LATEST))
        young = await offsets_since(self._requests, self._messages, dict.fromkeys(partitions, before_ms))
        lags: deque[_Lag] = deque()
        for partition in partitions:
            # Check that this worker still owns the partition: a new owner may still need these messages.
            await self._assure()
            if self._partitions.get(partition) is not owned[partition]:
                continue  # The partition was handed over meanwhile. Skip it: the data loaded for it is out of date.
            stands = {one.id: one.stands_at(cursors.get(one.id, {}), partition).offset for one in listeners}
            low = min(stands.values(), default=ends[partition])
            below = young[partition]
            lags.extend(_Lag(partition, one, below) for one, offset in stands.items() if offset < below)
            # Delete only messages below `low`, the lowest committed offset of all listeners. If `outstanding` has a
            # delivery of such a message, and no copy of the message, `bare_ms` keeps the message.
            # If a delivery moves to `outstanding` during this call, its message has the offset `low` or a higher one.
            # So this call does not delete the message.
            bare_ms = self._earlier(before_ms, self._outstanding.oldest_bare_put_ms(partition))
            kept_ms = self._earlier(before_ms, self._outstanding.oldest_put_ms(partition))
            await self._delete(partition, bare_ms, min(low, ends[partition]), changes_ms=kept_ms)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._tuning.retention_look_s):
                await self._set_aside(lags)

    async def _set_aside(self, lags: deque[_Lag]) -> None:
        """Move old unfinished deliveries to the topic `outstanding`. To need little memory, handle only a few items of
        `lags` (a listener in one partition) at a time: `set_aside_listeners` of them.
        """
        while lags:
            some = [lags.popleft() for _ in range(min(len(lags), self._tuning.set_aside_listeners))]
            for lag in some:
                dispatcher = self._dispatchers.get(lag.listener_id)
                if dispatcher is not None and lag.partition in self._partitions:
                    dispatcher.set_aside_before(lag.partition, lag.below)
            try:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._tuning.set_aside_s):
                        while any(map(self._sets_aside, some)):
                            await asyncio.sleep(self._tuning.set_aside_look_s)
                lags.extend(filter(self._sets_aside, some))
            finally:
                for lag in some:
                    dispatcher = self._dispatchers.get(lag.listener_id)
                    if dispatcher is not None:
                        dispatcher.set_aside_before(lag.partition, 0)

    def _sets_aside(self, lag: _Lag) -> bool:
        dispatcher = self._dispatchers.get(lag.listener_id)
        return dispatcher is not None and dispatcher.sets_aside(lag.partition)

    async def _with_old(self, partitions: list[int], before_ms: int) -> list[int]:
        """Return which of the partitions have messages from before this time."""
        begins = await self._requests.offsets(self._messages, dict.fromkeys(partitions, EARLIEST))
        firsts = await offsets_since(self._requests, self._messages, dict.fromkeys(partitions, before_ms))
        return [one for one in partitions if begins[one] < firsts[one]]

    async def _delete(self, partition: int, before_ms: int, low: int, *, changes_ms: int) -> None:
        """Delete the partition's messages that were put before `before_ms` and whose offsets are below `low`.

        If there are such messages, also delete old records in the topics `deliveries` and `changes`. The result of an
        attempt is deleted if it is older than `before_ms`, and older than the oldest message that stays. An update or
        deletion of a message must, in addition, be older than `changes_ms`.
        """
        begin = (await self._requests.offsets(self._messages, {partition: EARLIEST}))[partition]
        first = (await offsets_since(self._requests, self._messages, {partition: before_ms}))[partition]
        limit = min(first, low)
        if limit <= begin:
            return
        fetched = await self._requests.read(self._messages, partition, limit, bytes_max=1)
        if fetched.records:
            before_ms = min(before_ms, fetched.records[0].timestamp)
        await self._requests.delete_before(self._messages, partition, limit)
        for topic, until_ms in ((self._changes, min(before_ms, changes_ms)), (self._deliveries, before_ms)):
            found = (await offsets_since(self._requests, topic, {partition: until_ms - self._tuning.clock_skew_ms}))[
                partition
            ]
            if found > 0:
                await self._requests.delete_before(topic, partition, found)
        log.info("retention.deleted partition=%d messages_before=%d", partition, limit)

    def _earlier(self, before_ms: int, put_ms: int | None) -> int:
        """Return the time before which records may be deleted: `before_ms`, or `put_ms` minus `clock_skew_ms` if that
        is earlier.

        `put_ms` is the put time of the oldest message whose records are still needed for the topic `outstanding`. It is
        None if there is no such message. The clocks of machines may differ by up to `clock_skew_ms`.
        """
        return before_ms if put_ms is None else min(before_ms, put_ms - self._tuning.clock_skew_ms)
