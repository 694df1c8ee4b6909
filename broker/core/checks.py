"""The rules of `everput verify`: each event must fit its position in the log and the events before it.

For: the rules for each topic. Callers give all records of a partition in order. Pure. Not for: reading the records
(broker/audit/verify.py).

The rules can't notice a changed value that occurs only once, such as a message's data or a queue's name: the log has no
chain of hashes (docs/decisions/0091).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple, Protocol, get_args

from broker.core import codec
from broker.core import events as ev
from broker.core.codec import decode, decode_message
from broker.core.directory import Directory
from broker.core.events import Event
from broker.core.ids import parse_message_id
from broker.errors import UnknownEvent

# `everput verify` accepts that the time of a Kafka record is up to ten minutes before or after that of its event.
# In `deliveries` and `outstanding`, `everput verify` accepts any time of a record that is later than its event's.
# A record and its event have different times, because the clocks of machines differ, and Kafka can be slow.
TOLERANCE_MS: Final = 10 * 60_000
_NOUNS: Final = ("account", "session", "organization", "invitation", "key", "queue", "listener", "replay")
_BY_ITSELF: Final = ("worker", "shell")  # actors without a request id
_OF_NOBODY: Final = (ev.VolumeRecorded,)  # events without a single author
_MAKING: Final = ("created", "started")


class Seen(Protocol):
    """The parts of a Kafka record that the checks of `everput verify` need. `timestamp` is in milliseconds."""

    @property
    def offset(self) -> int: ...
    @property
    def timestamp(self) -> int: ...
    @property
    def key(self) -> bytes | None: ...
    @property
    def value(self) -> bytes | None: ...


class Finding(NamedTuple):
    """A finding of `everput verify`: what is wrong, and its topic, partition and offset.

    `offset` is None if no single record is wrong. `wrong` is False if this part of the log can't be checked, but may be
    right.
    """

    topic: str
    partition: int
    offset: int | None
    what: str
    wrong: bool = True

    def __str__(self) -> str:
        place = f"{self.topic}/{self.partition}"
        return f"{place}{'' if self.offset is None else f' offset {self.offset}'}: {self.what}"


class Checks(ABC):
    """The checks of `everput verify` that apply to every record of one partition. Subclasses add the checks of a
    topic's events.

    If `compacted` is true, missing offsets are no error. If `late` is true, the time of a record may be much later than
    that of its event, because a worker may wait for Kafka before it writes the event.
    """

    def __init__(self, topic: str, partition: int, begin: int, *, compacted: bool = False, late: bool = False) -> None:
        self.topic = topic
        self.partition = partition
        self._next = begin
        self._compacted = compacted
        self._late_ms_max = float("inf") if late else TOLERANCE_MS
        self._latest_ms = 0

    @property
    def end(self) -> int:
        """The offset of the next record to check."""
        return self._next

    def check(self, records: Iterable[Seen]) -> Iterator[Finding]:
        """Check the next records of the partition, and yield what is wrong with them.

        This method must be fast for correct records, because a log has millions of them.
        """
        for record in records:
            offset, at_ms, value = record.offset, record.timestamp, record.value
            if offset != self._next and not self._compacted:
                yield self._finding(offset, f"the records from offset {self._next} on are missing")
            self._next = offset + 1
            if at_ms >= self._latest_ms:
                self._latest_ms = at_ms
            elif at_ms < self._latest_ms - TOLERANCE_MS:
                yield self._finding(
                    offset, f"its record time is {self._latest_ms - at_ms} ms before that of an earlier record"
                )
            if value is None:
                if self.topic != "outstanding":
                    yield self._finding(offset, "the record is empty")
                else:
                    self.buried(record)
                continue
            if not value:
                yield self.lost(offset)
                continue
            try:
                event = self.decode(value)
            except UnknownEvent as error:
                yield self._finding(offset, str(error))
                continue
            if not -TOLERANCE_MS <= at_ms - event.at_ms <= self._late_ms_max:
                yield self._finding(offset, f"the event's time is {at_ms - event.at_ms} ms before the record's time")
            known = event.actor in _BY_ITSELF or isinstance(event, _OF_NOBODY)
            if not known and not (event.request_id and event.actor):
                yield self._finding(offset, "the event has no actor, or no request id")
            for what in self.event(record, event):
                yield self._finding(offset, what)

    def skip_to(self, offset: int) -> None:
        """Continue the check at a later offset, because retention has deleted all records before this offset."""
        self._next = offset

    def damaged(self, first: int, last: int) -> Finding:
        """Return the finding for a range of records that are damaged or missing on every replica. The check continues
        after this range.
        """
        self._next = max(self._next, last + 1)
        offsets = "this record is" if first == last else f"the records from here to offset {last} are"
        return self._finding(first, f"{offsets} altered or missing: see `everput mend`")

    def lost(self, offset: int) -> Finding:
        """Return the finding about an empty record. Everput has written it in place of a record that Kafka lost."""
        return self._finding(offset, "Kafka lost this record from the end of a file; Everput put an empty record there")

    def ended(self, end: int) -> Iterator[Finding]:
        """Check the end of the partition: yield a finding if the last records before the offset `end` are missing.

        In a compacted topic, missing records are no error.
        """
        if self._next < end and not self._compacted:
            yield self._finding(self._next, "the records from here on are missing")

    def decode(self, value: bytes) -> Event:
        return decode(value)

    @abstractmethod
    def event(self, record: Seen, event: Event) -> Iterable[str]:
        """Check an event against the rules of its topic, and return a text for each error that is found."""

    def buried(self, record: Seen) -> None:  # noqa: B027 - most topics have no tombstones
        """Process a tombstone (a record without a value) of a compacted topic."""

    def _finding(self, offset: int, what: str) -> Finding:
        return Finding(self.topic, self.partition, offset, what)


class ReadableChecks(Checks):
    """The checks of `everput verify` for a partition of the topic `claims`: only the checks that apply to the records
    of every topic. For example, they find missing and unreadable records.
    """

    def event(self, record: Seen, event: Event) -> Iterable[str]:  # noqa: ARG002 - all events are correct here
        return ()


class ControlChecks(Checks):
    """The checks of `everput verify` for the topic `control`. The checks apply the events of `control` in order. For
    example, an event about a queue must come after the event that created the queue.

    `receivers` maps the id of each listener and replay to its queue's id. `named` has, for each partition of
    `messages`, the highest offset at which a listener starts or a replay ends, and a text that names this listener or
    replay.
    """

    def __init__(self, begin: int) -> None:
        super().__init__("control", 0, begin)
        self.state = Directory()  # state after the checked events
        self.queues: dict[str, str] = {}  # organization ids by queue id
        self.receivers: dict[str, str] = {}
        self.named: dict[int, tuple[int, str]] = {}
        self._made: dict[str, set[str]] = {noun: set() for noun in _NOUNS}

    def event(self, record: Seen, event: Event) -> Iterator[str]:
        if not isinstance(event, get_args(ev.ControlEvent)):
            yield f"the event {codec.wire_name(type(event))} does not belong in the topic control"
            return
        if record.key != event.organization_id.encode():
            yield "its record key is not the id of its organization"
        if isinstance(event, ev.LogDamaged | ev.LogMended | ev.AlertEvent | ev.AlertTold):
            self.state.apply(event)
            return
        noun, _, verb = codec.wire_name(type(event)).partition(".")
        noun = {"volume": "organization", "member": "account"}.get(noun, noun)
        made = str(getattr(event, f"{noun}_id", ""))
        known = self._made[noun]
        applied = self.state.apply(event)
        if verb in _MAKING:
            if applied or noun == "account":
                known.add(made)
                self._note(event)
            elif made in known:
                yield f"the {noun} {made} is created a second time"
        elif made not in known:
            yield f"no earlier event created the {noun} {made}"
        if isinstance(event, ev.ListenerCreated) and event.queue_id not in self.queues:
            yield f"no earlier event created the queue {event.queue_id}"
        if isinstance(event, ev.ReplayStarted) and event.listener_id not in self.receivers:
            yield f"no earlier event created the listener {event.listener_id}"

    def _note(self, event: Event) -> None:
        match event:
            case ev.QueueCreated():
                self.queues[event.queue_id] = event.organization_id
            case ev.ListenerCreated():
                self.receivers[event.listener_id] = event.queue_id
                self._name(event.start_offsets, f"listener {event.listener_id}")
            case ev.ReplayStarted():
                self.receivers[event.replay_id] = self.receivers[event.listener_id]
                self._name(event.end_offsets, f"replay {event.replay_id}")

    def _name(self, offsets: Sequence[int], who: str) -> None:
        for partition, offset in enumerate(offsets):
            if offset > self.named.get(partition, (0, ""))[0]:
                self.named[partition] = offset, who


class MessageChecks(Checks):
    """The checks of `everput verify` for one partition of the topic `messages`.

    `begin` is the first offset to check, and `queues` maps each queue's id to its organization's id. The checks fill
    `by_queue`: the offsets of each queue's messages, lowest first.
    """

    def __init__(self, partition: int, begin: int, queues: Mapping[str, str]) -> None:
        super().__init__("messages", partition, begin)
        self.begin = begin
        self.by_queue: defaultdict[str, list[int]] = defaultdict(list)
        self.queues = queues
        self._places: dict[bytes, int] = {}
        self._damage: list[tuple[int, int]] = []

    def skip_to(self, offset: int) -> None:
        super().skip_to(offset)
        self.begin = offset

    def decode(self, value: bytes) -> Event:
        return decode_message(value)

    def damaged(self, first: int, last: int) -> Finding:
        self._damage.append((first, last))
        return super().damaged(first, last)

    @property
    def complete(self) -> bool:
        """Whether the check began at offset 0 and found no damage. If so, a message that was not found when the whole
        partition was checked is missing in the log.
        """
        return self.begin == 0 and not self._damage

    def _unread(self, offset: int) -> bool:
        return offset < self.begin or any(first <= offset <= last for first, last in self._damage)

    def event(self, record: Seen, event: Event) -> Sequence[str]:
        if not isinstance(event, ev.MessagePut):  # decode_message() returns no other event
            return ()
        offset, message_id = record.offset, event.message_id.encode()
        first = self._places.setdefault(message_id, offset)
        self.by_queue[event.queue_id].append(offset)
        parts = parse_message_id(event.message_id)
        if parts is None:
            return (f"the message id {event.message_id} is not valid",)
        at_ms, partition = parts
        wrong = []
        if partition != self.partition:
            wrong.append(f"the message id {event.message_id} names partition {partition}")
        if not -TOLERANCE_MS <= at_ms - event.at_ms <= TOLERANCE_MS:
            wrong.append(
                f"the time in the message id {event.message_id} is {event.at_ms - at_ms} ms before the event's"
            )
        if record.key != message_id:
            wrong.append("its record key is not its message id")
        if first != offset:
            wrong.append(f"the message {event.message_id} is already stored at offset {first}")
        if self.queues.get(event.queue_id) != event.organization_id:
            wrong.append(f"no event created the queue {event.queue_id} of the organization {event.organization_id}")
        return wrong

    def has(self, offset: int, queue_id: str) -> bool:
        """Return whether the message at this offset belongs to this queue. Return False if the offset was not read yet.
        Return True if the offset can't be checked, because its record is damaged, or because it is below `begin`.
        """
        if self._unread(offset):
            return True
        offsets = self.by_queue.get(queue_id, [])
        index = bisect_left(offsets, offset)
        return index < len(offsets) and offsets[index] == offset

    def is_at(self, offset: int, message_id: str) -> bool:
        """Return whether this message was first found at this offset. Return False if the offset was not read yet.
        Return True if the offset can't be checked, because its record is damaged, or because it is below `begin`.
        """
        return self._unread(offset) or self.place(message_id) == offset

    def place(self, message_id: str) -> int | None:
        return self._places.get(message_id.encode())
