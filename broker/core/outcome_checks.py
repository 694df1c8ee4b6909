"""The rules of `everput verify` for deliveries: their recorded outcomes, and deliveries without any.

For: the topics `changes`, `deliveries` and `outstanding`. Pure. Not for: the other topics (checks.py).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from broker.core import codec
from broker.core import events as ev
from broker.core.catalogue import TOPIC_OF
from broker.core.checks import Checks, Finding, MessageChecks, Seen
from broker.core.cursor import Cursor
from broker.core.entities import Listener
from broker.core.events import Event
from broker.core.ids import parse_damaged_id


class OutcomeChecks(Checks):
    """The checks of `everput verify` for one partition of `changes`, `deliveries` or `outstanding`.

    `outcomes` maps a listener's id to offsets of messages: the delivery of these messages to the listener has ended, or
    is kept in `outstanding`. `strangers` holds findings about listeners and replays that no event in `control` has
    created so far. A later event in `control` may create the listener or replay. So the caller reads the rest of
    `control` before it reports these findings.
    """

    def __init__(
        self,
        topic: str,
        messages: MessageChecks,
        begin: int,
        receivers: Mapping[str, str],
        *,
        changes: OutcomeChecks | None = None,
    ) -> None:
        compacted = topic == "outstanding"
        super().__init__(topic, messages.partition, begin, compacted=compacted, late=topic != "changes")
        self.begin = begin
        self.outcomes: dict[str, set[int]] = {}
        self.deleted: set[int] = set()
        self.changed: dict[int, str] = {}
        self.strangers: dict[str, Finding] = {}
        self._unseen: dict[tuple[str | None, int | None, str], Finding] = {}  # by message id, offset and queue
        self._messages = messages
        self._receivers = receivers
        self._changes = changes

    def skip_to(self, offset: int) -> None:
        super().skip_to(offset)
        self.begin = offset

    def event(self, record: Seen, event: Event) -> Iterator[str]:
        name = codec.wire_name(type(event))
        if TOPIC_OF[name] != self.topic:
            yield f"the event {name} does not belong in the topic {self.topic}"
            return
        fields: Any = event
        if fields.partition != self.partition:
            yield f"the event names partition {fields.partition}"
            return
        if record.key != _key(fields):
            yield "its record key does not match its event"
        if isinstance(event, ev.PartitionTakenOver | ev.PartitionHandedOver):
            return
        if self._messages.queues.get(fields.queue_id, event.organization_id) != event.organization_id:
            yield f"the queue {fields.queue_id} does not belong to the organization {event.organization_id}"
        listener_id = getattr(fields, "listener_id", None)
        if listener_id is not None:
            yield from self._receiver(record.offset, listener_id, fields.queue_id)
        if isinstance(event, ev.AnswersKept | ev.ListenerTested):
            return
        if isinstance(event, ev.DeliveriesSettled):
            yield from self._settled(record.offset, event)
        elif isinstance(event, ev.ChangeApplied):
            yield from self._applied(record.offset, event)
        else:
            yield from self._told(record.offset, fields, listener_id)

    def _receiver(self, offset: int, listener_id: str, queue_id: str) -> Iterator[str]:
        queue = self._receivers.get(listener_id)
        if queue is None:
            what = f"no event created a listener or replay {listener_id}"
            self.strangers.setdefault(listener_id, self._finding(offset, what))
        elif queue != queue_id:
            yield f"the listener or replay {listener_id} does not belong to the queue {queue_id}"

    def _settled(self, at: int, event: ev.DeliveriesSettled) -> Iterator[str]:
        recorded = self.outcomes.setdefault(event.listener_id, set())
        for offset, *_ in event.rows:
            recorded.add(offset)
        wrong = [offset for offset, *_ in event.rows if not self._messages.has(offset, event.queue_id)]
        for offset in wrong:
            what = f"no message of the queue {event.queue_id} is at offset {offset}"
            if offset < self._messages.end:
                yield what
                return  # one finding is enough
            self._unseen.setdefault((None, offset, event.queue_id), self._finding(at, what))

    def _applied(self, at: int, event: ev.ChangeApplied) -> Iterator[str]:
        offset = self._messages.place(event.message_id)
        if offset is None and self._messages.complete:
            what = f"the message {event.message_id} is not in this partition"
            self._unseen.setdefault((event.message_id, None, event.queue_id), self._finding(at, what))
        elif offset is not None and not self._messages.has(offset, event.queue_id):
            yield f"the message {event.message_id} does not belong to the queue {event.queue_id}"
        changes, place = self._changes, event.change_offset
        if (
            changes is not None
            and changes.begin <= place < changes.end
            and changes.changed.get(place) != event.message_id
        ):
            yield f"offset {place} of changes/{self.partition} is no change of the message {event.message_id}"

    def _told(self, at: int, fields: Any, listener_id: str | None) -> Iterator[str]:
        offset, message_id = fields.offset, fields.message_id
        if (damaged := parse_damaged_id(message_id)) is not None and listener_id is not None:
            self.outcomes.setdefault(listener_id, set()).update(range(damaged[1], damaged[2] + 1))
            return
        if listener_id is None:
            self.changed[at] = message_id
        if not self._messages.is_at(offset, message_id):
            what = f"the message {message_id} is not at offset {offset}"
            if offset < self._messages.end:
                yield what
                return
            self._unseen.setdefault((message_id, offset, fields.queue_id), self._finding(at, what))
        elif not self._messages.has(offset, fields.queue_id):
            yield f"the message {message_id} does not belong to the queue {fields.queue_id}"
            return
        if listener_id is not None:
            if getattr(fields, "outcome", "kept") != "failed":
                self.outcomes.setdefault(listener_id, set()).add(offset)
        elif isinstance(fields, ev.MessageDeleted):
            self.deleted.add(offset)

    def may_be_unseen(self) -> bool:
        """Return whether some of the checked events are about messages that were not read yet. If so, read more
        messages, and call unseen().
        """
        return bool(self._unseen)

    def unseen(self) -> Iterator[Finding]:
        """Check again the events whose messages had not been read at the first check, and yield the findings.

        Call this after more messages were read.
        """
        messages = self._messages
        for (message_id, offset, queue_id), finding in self._unseen.items():
            if messages.begin > (offset or 0):
                continue  # retention may have deleted this message, so do not report it as missing
            place = offset if message_id is None else messages.place(message_id)
            if place is None or offset not in (None, place) or not messages.has(place, queue_id):
                yield finding


def _key(event: Any) -> bytes:
    """Return the record key with which Everput writes this event to Kafka."""
    match event:
        case ev.KeptDelivery():
            return f"{event.listener_id}:{event.message_id}".encode()
        case ev.DeliveriesSettled() | ev.AnswersKept() | ev.ListenerTested():
            return event.listener_id.encode()
        case ev.PartitionTakenOver() | ev.PartitionHandedOver():
            return b"partition"
    return str(event.message_id).encode()


def noun_of(listener: Listener) -> str:
    """Return the word for this listener in the findings of `everput verify`. The word is `replay` if Everput created
    the listener to deliver a replay, else `listener`.
    """
    return "listener" if listener.replay is None else "replay"


def unaccounted(
    listener: Listener, cursor: Cursor | None, messages: MessageChecks, others: Sequence[OutcomeChecks]
) -> Iterator[Finding]:
    """Find the messages of a partition whose delivery to a listener is settled by the listener's stored progress
    (cursor), but has no result in the log. A settled delivery has ended, or is kept in `outstanding`. Yield one finding
    about all found messages, if there are any.
    """
    start = listener.start_offsets[messages.partition]
    place = cursor or Cursor(top=start)
    recorded = set().union(*(checks.outcomes.get(listener.id, ()) for checks in others), place.open)
    recorded.update(*(checks.deleted for checks in others))
    own = messages.by_queue.get(listener.queue_id, [])
    top = min(place.top, listener.reach(messages.partition, place.top))
    takes = None if listener.replay is None else listener.replay.chooser(messages.partition)
    left = [
        offset
        for offset in own[bisect_left(own, max(start, messages.begin)) : bisect_left(own, top)]
        if offset not in recorded and (takes is None or takes(offset))
    ]
    if left:
        what = (
            f"the {noun_of(listener)} {listener.id} has no recorded outcome for {len(left)} message(s) below its cursor"
        )
        yield Finding(
            "deliveries",
            messages.partition,
            None,
            f"{what}, the first at offset {left[0]} of messages/{messages.partition}",
        )
