"""Commands on replays: plan, start, pause, resume and cancel a replay, and tell its progress.

For: which offsets a replay takes, and its events. Not for: the fields of a replay (broker/core/replays.py), delivering
it (broker/delivery), the requests (api/replays.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Final
from uuid import uuid4

from broker.commands.context import Context, event_fields, find_listener, record
from broker.core import events as ev
from broker.core.cursor import Cursor
from broker.core.entities import Listener
from broker.core.ids import parse_message_id
from broker.core.replays import ENDED_MAX, Replay, pick
from broker.errors import NotFound, Refused
from broker.outbound.addresses import refuse_url
from broker.ports import Count, Cursors, DirectoryView, Log, Outstanding
from broker.settings import Network

ONLY: Final = ("all", "failed", "undelivered")
_RUNNING_MAX: Final = 10  # running replays of one listener
_RUNNING_ALL_MAX: Final = 100  # running replays of one organization
_PICKED_MAX: Final = 50_000  # offsets listed in an event
_PAGE: Final = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayInput:
    """The values of a replay in a request.

    The replay takes messages that were put at `from_ms` or later, and before `to_ms`. If `to_ms` is None or in the
    future, the replay takes the messages until now. `only` is `all`, `undelivered` (only messages that the listener has
    not accepted) or `failed` (of the undelivered messages, only those with at least one attempt).
    """

    from_ms: int
    to_ms: int | None = None
    only: str = "all"
    rate_per_s: float | None = None
    notify_url: str | None = None
    liveness_url: str | None = None
    send_headers: bool = False


class ReplayCommands:
    """The commands on replays. `cursors` reads the committed offsets of listeners and replays. `outstanding` finds the
    deliveries in the topic `outstanding`.
    """

    def __init__(
        self,
        log: Log,
        view: DirectoryView,
        outstanding: Outstanding,
        cursors: Cursors,
        *,
        allow_networks: Sequence[Network],
    ) -> None:
        self._log = log
        self._view = view
        self._outstanding = outstanding
        self._cursors = cursors
        self._allow_networks = allow_networks

    async def plan(self, context: Context, listener: Listener, asked: ReplayInput) -> ev.ReplayStarted:
        """Return the event that start() would record for this replay now, but do not record it. Raises Refused if a
        value is not valid or too many messages are selected, Unavailable if Kafka does not answer.
        """
        self._check(asked)
        to_ms = context.at_ms if asked.to_ms is None else asked.to_ms
        if to_ms <= asked.from_ms:
            raise Refused(
                "The field `to` must be later than `from`. Without `to`, the time range ends now.",
                pointer="/to" if asked.to_ms is not None else "/from",
            )
        messages = self._log.messages
        begin = await messages.offsets_at(asked.from_ms)
        end = await (messages.offsets_at(to_ms) if to_ms < context.at_ms else messages.end_offsets())
        end = tuple(max(pair) for pair in zip(begin, end, strict=True))
        before = after = end
        picked: tuple[str, ...] | None = None
        count, exact = 0, True
        if asked.only != "all":
            before, after, offsets = await self._choose(listener, begin, end, failed=asked.only == "failed")
            picked, count = tuple(map(pick, offsets)), sum(map(len, offsets))
        for low, high in ((begin, before), (after, end)):
            if low != high:
                more, all_counted = await self._count(listener, low, high, asked.from_ms)
                count, exact = count + more, exact and all_counted
        return ev.ReplayStarted(
            **event_fields(context),
            replay_id=str(uuid4()),
            listener_id=listener.id,
            from_ms=asked.from_ms,
            to_ms=to_ms,
            only=asked.only,
            notify_url=asked.notify_url,
            liveness_url=asked.liveness_url,
            send_headers=asked.send_headers,
            rate_per_s=asked.rate_per_s,
            start_offsets=begin,
            end_offsets=end,
            before_offsets=before,
            after_offsets=after,
            picked=picked,
            count=count,
            counted_all=exact,
        )

    async def start(
        self,
        context: Context,
        queue_id: str,
        listener_id: str,
        asked: ReplayInput,
        count: Count = lambda _, __: None,
    ) -> Replay:
        """Start a replay, and return it. Before the event of the replay is stored, `count` is called with the
        organization's id, and with the bytes of the event's list of selected offsets. If `count` raises an error, the
        replay does not start.

        Raises Refused if a value is not valid, too many replays are running or too many messages are selected. Raises
        NotFound if there is no such listener, and Unavailable if Kafka does not answer.
        """
        await self._view.caught_up()
        listener = await find_listener(self._view, context.organization_id, queue_id, listener_id)
        replays = self._view.state.replays
        for whose, most, running in (
            ("this listener", _RUNNING_MAX, sum(replay.ended is None for replay in replays.of(listener_id))),
            ("this organization", _RUNNING_ALL_MAX, replays.running(context.organization_id)),
        ):
            if running >= most:
                raise Refused(
                    f"{whose.capitalize()} already has {running} running or paused replays. This is the limit. "
                    "Cancel a replay, or wait until a running one ends."
                )
        event = await self.plan(context, listener, asked)
        count(context.organization_id, sum(map(len, event.picked or ())))
        if not await record(self._log.control, self._view, event):
            raise NotFound("The listener was deleted while this request was running.")
        return self._now(event)

    async def find(self, organization_id: str, queue_id: str, listener_id: str, replay_id: str) -> Replay:
        """Return the listener's replay with this id. Raises NotFound if there is no such replay."""
        await find_listener(self._view, organization_id, queue_id, listener_id)
        replay = self._view.state.replays.find(organization_id, replay_id)
        if replay is None or replay.listener_id != listener_id:
            raise NotFound(
                "No replay of this listener has this ID. Check the ID; of an organization's ended replays, Everput "
                f"keeps only the newest {ENDED_MAX:,}."
            )
        return replay

    async def pause(self, context: Context, replay: Replay) -> Replay:
        """Pause a replay, and return it. Record nothing if it is already paused or has ended."""
        if replay.paused is not None or replay.ended is not None:
            return replay
        return await self._change(ev.ReplayPaused(**event_fields(context), replay_id=replay.id, reason="asked for"))

    async def resume(self, context: Context, replay: Replay) -> Replay:
        """Resume a paused replay, and return it. If it is not paused or has ended, return it unchanged."""
        if replay.paused is None or replay.ended is not None:
            return replay
        return await self._change(ev.ReplayResumed(**event_fields(context), replay_id=replay.id))

    async def cancel(self, context: Context, replay: Replay) -> Replay:
        """Cancel a replay, and return it. Record nothing if it has ended."""
        if replay.ended is not None:
            return replay
        return await self._change(ev.ReplayCancelled(**event_fields(context), replay_id=replay.id))

    async def progress(self, replay: Replay) -> float:
        """Return the part of the replay that is done, from 0 to 1: the number of done offsets, divided by the number of
        all offsets in the replay's range. In a finished partition, all offsets are done. In another partition, the
        offsets below the replay's committed offset are done. For a cancelled replay, only finished partitions count as
        done.

        Raises LogUnavailable if Kafka does not answer.
        """
        spans = {
            number: (start, end)
            for number, (start, end) in enumerate(zip(replay.start_offsets, replay.end_offsets, strict=True))
            if start < end
        }
        if replay.ended == "finished" or not spans:
            return 1.0
        cursors: Mapping[int, Cursor] = {}
        # Workers delete the committed offsets of a cancelled replay. So load them only if the replay has not ended.
        if replay.ended is None:
            cursors = (await self._cursors.load([replay.id], spans)).get(replay.id, {})
        behind = sum(
            end - start if number in replay.finished else max(0, min(cursors[number].offset, end) - start)
            for number, (start, end) in spans.items()
            if number in replay.finished or number in cursors
        )
        return behind / sum(end - start for start, end in spans.values())

    async def _change(self, event: ev.ReplayPaused | ev.ReplayResumed | ev.ReplayCancelled) -> Replay:
        await record(self._log.control, self._view, event)
        return self._now(event)

    def _now(self, event: ev.ReplayEvent) -> Replay:
        replay = self._view.state.replays.find(event.organization_id, event.replay_id)
        if replay is None:
            raise NotFound(
                "The replay's listener was deleted while this request was running, and the replay has ended with it."
            )
        return replay

    async def _count(
        self, listener: Listener, begin: Sequence[int], end: Sequence[int], since_ms: int
    ) -> tuple[int, bool]:
        """Count the queue's messages in the offsets [begin, end) of each partition, without the deleted messages.
        Return the number, and whether it is exact. The search for deletions begins at `since_ms`, a time before these
        messages were put.
        """
        queue_id, organization_id = listener.queue_id, listener.organization_id
        count, exact = await self._log.messages.count(queue_id, begin=begin, end=end, organization_id=organization_id)
        deleted, all_deleted = await self._log.changes.deleted(
            queue_id, begin=begin, end=end, since_ms=since_ms, organization_id=organization_id
        )
        return max(0, count - deleted), exact and all_deleted

    async def _choose(
        self, listener: Listener, begin: Sequence[int], end: Sequence[int], *, failed: bool
    ) -> tuple[tuple[int, ...], tuple[int, ...], list[list[int]]]:
        """Choose the messages of a replay in the offsets [begin, end) of each partition. If `failed` is true, choose
        the messages that were attempted, but not accepted by the listener. Otherwise, choose all messages that the
        listener has not accepted.

        Return a lower offset, an upper offset and a list of offsets between the two, for each partition. The replay
        delivers the messages below the lower offset, those in the list, and those from the upper offset on.

        Messages below the lower offset are older than the listener's start. Messages from the upper offset on were not
        sent to the listener yet. If `failed` is true, the lower and the upper offset are the ends of the range, so the
        replay delivers only the list.
        """
        # A delivery may move to `outstanding` meanwhile. So read `outstanding` after the committed offsets, not before.
        cursors = (await self._cursors.load([listener.id], range(len(end)))).get(listener.id, {})
        stands = [listener.stands_at(cursors, partition) for partition in range(len(end))]
        # The listener gets no message below its start offset. Messages from its cursor's `top` on are not sent yet.
        never, untaken = (begin, end) if failed else (listener.start_offsets, [cursor.top for cursor in stands])
        before = tuple(min(max(pair), last) for *pair, last in zip(begin, never, end, strict=True))
        after = tuple(max(low, min(pair)) for low, *pair in zip(before, untaken, end, strict=True))
        found: set[tuple[int, int]] = set()
        for partition, cursor in enumerate(stands):
            attempts = cursor.attempts or (0,) * len(cursor.open)
            for offset, number in zip(cursor.open, attempts, strict=True):
                if (number or not failed) and before[partition] <= offset < after[partition]:
                    found.add((partition, offset))
        place: tuple[int, int] | None = (0, 0)
        while place is not None:
            rows, place = await self._outstanding.page(listener, state=None, after=place, limit=_PAGE)
            for row in rows:
                parts = parse_message_id(row.message_id)
                if parts is None or (failed and row.state == "pending"):
                    continue
                if before[parts[1]] <= row.offset < after[parts[1]]:
                    found.add((parts[1], row.offset))
            if len(found) > _PICKED_MAX:
                raise Refused(
                    f"Over {_PICKED_MAX} messages of this time range are not accepted by the listener yet. This is "
                    "too many for one replay. Choose a shorter time range.",
                    pointer="/from",
                )
        offsets: list[list[int]] = [[] for _ in end]
        for partition, pairs in groupby(sorted(found), key=lambda pair: pair[0]):
            offsets[partition] = [offset for _, offset in pairs]
        return before, after, offsets

    def _check(self, asked: ReplayInput) -> None:
        if asked.only not in ONLY:
            raise Refused(f"The field `only` must be one of {', '.join(ONLY)}.", pointer="/only")
        if asked.liveness_url is not None and asked.notify_url is None:
            raise Refused(
                "A liveness_url needs a notify_url. Add a notify_url, or omit liveness_url.", pointer="/liveness_url"
            )
        if asked.send_headers and asked.notify_url is None:
            raise Refused(
                "send_headers needs a notify_url. Add a notify_url, or omit send_headers.", pointer="/send_headers"
            )
        for pointer, url in (("/notify_url", asked.notify_url), ("/liveness_url", asked.liveness_url)):
            reason = None if url is None else refuse_url(url, self._allow_networks)
            if reason is not None:
                raise Refused(reason, pointer=pointer)
