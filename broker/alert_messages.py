"""Puts the messages about alerts into the organizations' queues `everput.alerts`.

For: the message about a recorded alert, also after a crash. Not for: recording alerts (alerts.py), the content of a
message (broker/core/alerts.py).

An alert is recorded in three steps: the event `alert.raised` or `alert.cleared`, the message, the event `alert.told`.
After a crash between them, the next owner of the alert puts the message. The message's id depends on the event, so that
a message that was put already is usually found. It is put twice if the first copy is in an unreadable range. It is also
put twice if it was first put more than five minutes after the event, and more than an hour ago.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

import orjson

from broker.clock import now_ms
from broker.commands.context import Context, record
from broker.commands.puts import Put
from broker.commands.queues import alerts_queue
from broker.core.alerts import message
from broker.core.directory import Directory
from broker.core.events import AlertCleared, AlertRaised, AlertTold
from broker.core.ids import message_id
from broker.errors import BrokerError, LogDamaged
from broker.ports import Count, DirectoryView, Log

log = logging.getLogger(__name__)

# If the first put of an alert's message fails, the put is repeated when the alert's event is at least 30 s old.
# After 30 s, the first put has nearly always succeeded or failed, so a search for the message is reliable.
_SETTLED_MS: Final = 30_000
# The id of an alert's message contains the time of the alert's event, or a time 5, 10, 15 … minutes later.
# If the message is put 5 minutes or more after the event, its id contains a later time than the event's.
_ID_VALID_MS: Final = 5 * 60_000
# A search for an alert's message tries at most 14 ids: that with the event's time, and those of the 13 newest times.
_EARLIER_STEPS: Final = 12


@dataclass(frozen=True, slots=True)
class AlertMessages:
    """The part of a worker that puts messages about alerts into the organizations' queues for alerts.

    An alert is about a listener, an API key or an organization. `home` takes the id of this listener, API key or
    organization, and returns the partition into which messages about its alerts are put. `owns` returns whether the
    worker owns a partition. `assure` raises LogUnavailable if another worker may own this worker's partitions by now.
    """

    log: Log
    view: DirectoryView
    home: Callable[[str], int]
    owns: Callable[[int], bool]
    assure: Callable[[], Awaitable[None]]
    public_url: str | None
    count: Count | None

    @property
    def _directory(self) -> Directory:
        return self.view.state

    async def put(self, event: AlertRaised | AlertCleared) -> None:
        """Put the message about an alert that was just recorded. Log a BrokerError instead of raising it, so that other
        alerts need not wait. A later call of put_missing() then tries again.
        """
        try:
            await self._put(event, again=False)
        except BrokerError as error:
            _log_failure(event, error)

    async def put_missing(self, at_ms: int) -> None:
        """Put the missing messages about alerts, in the partitions that this worker owns. A message counts as missing
        if the alert's newest event is at least 30 s old, and no event `alert.told` says that the message about this
        event was put.

        If a put raises a BrokerError, this call puts no further messages into the same partition.
        """
        episodes = list(self._directory.alerts.episodes.items())
        missing = [
            (self.home(subject_id), one.latest)
            for (_, subject_id), one in episodes
            if not one.told and at_ms - one.latest.at_ms >= _SETTLED_MS and self.owns(self.home(subject_id))
        ]
        failed: set[int] = set()  # partitions
        for partition, event in missing:
            if partition not in failed and isinstance(event, AlertRaised | AlertCleared):
                try:
                    await self._put(event, again=True)
                except BrokerError as error:
                    failed.add(partition)
                    _log_failure(event, error)

    async def _put(self, event: AlertRaised | AlertCleared, *, again: bool) -> None:
        """Put the message about an alert into the organization's queue for alerts, and record that the message was put.
        If the organization does not exist any more, do nothing.

        If `again` is true, an earlier call may have put the message: look for the message first, and do not put it
        twice.
        """
        context = Context(organization_id=event.organization_id, actor="worker", request_id="", at_ms=now_ms())
        if event.organization_id not in self._directory.organizations:
            return
        queue = await alerts_queue(self.log.control, self.view, context)
        partition = self.home(event.listener_id or event.key_id or event.organization_id)
        bits = int.from_bytes(sha256(f"{event.alert_id} {type(event).__name__}".encode()).digest()[:8])
        times = _id_times(event.at_ms, now_ms())
        ids = {at_ms: message_id(at_ms=at_ms, partition=partition, random_bits=bits) for at_ms in times}
        made = await self._find(ids, partition, event.organization_id) if again else None
        if made is None:
            data = orjson.dumps(message(event, self._names(event), self.public_url)).decode()
            put = Put(queue, data, None, None, "worker", "", count=self.count)
            put.claimed(times[-1], bits)
            await self.assure()
            await self.log.messages.append_together([put.build], partition=partition, size=put.size)
            made = put.id
            log.warning("alert.told type=%s organization=%s message=%s", event.alert, event.organization_id, made)
        told = AlertTold(
            at_ms=now_ms(),
            organization_id=event.organization_id,
            actor="worker",
            alert_id=event.alert_id,
            message_id=made,
        )
        await record(self.log.control, self.view, told)

    async def _find(self, ids: Mapping[int, str], partition: int, organization_id: str) -> str | None:
        """Return the first message id in `ids` whose message is stored, or None if no such message is stored. `ids`
        maps the time in each message id to the id.

        If the log is unreadable where the message may be, the message counts as missing: a repeated alert is better
        than a lost one.
        """
        for at_ms, made in ids.items():
            with suppress(LogDamaged):
                if await self.log.messages.find(
                    partition=partition, at_ms=at_ms, message_id=made, organization_id=organization_id
                ):
                    return made
        return None

    def _names(self, event: AlertRaised | AlertCleared) -> dict[str, str]:
        state = self._directory
        found = (state.listeners.get(event.listener_id), state.queues.get(event.queue_id), state.keys.get(event.key_id))
        return {one.id: one.name for one in found if one is not None}


def _id_times(event_at_ms: int, at_ms: int) -> list[int]:
    """Return the times that the id of an alert's message may contain, earliest first: the time of the alert's event,
    and the times 5, 10, 15 … minutes later, up to `at_ms`. Of the later times, only the newest 13 are returned. The
    last returned time is the one for a message that is put at `at_ms`.
    """
    late = max(0, at_ms - event_at_ms) // _ID_VALID_MS
    steps = range(max(0, late - _EARLIER_STEPS), late + 1)
    return [event_at_ms + number * _ID_VALID_MS for number in sorted({0, *steps})]


def _log_failure(event: AlertRaised | AlertCleared, error: BrokerError) -> None:
    log.info("alert.waits type=%s organization=%s error=%s", event.alert, event.organization_id, error)
