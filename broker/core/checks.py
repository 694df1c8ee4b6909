"""The rules of `everput verify`: each event must fit its place in the log and the events before it.

For: the rules, topic by topic; all records of a partition are given in order. Pure. Not for: reading the records
(broker/audit/verify.py). No rule can tell whether a value that nothing repeats (a message's data, a queue's name) is
the one that was written. There is no chain of hashes (docs/decisions/0091).
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

# Clocks of the writing machines differ by less. A record may also wait this long for Kafka.
TOLERANCE_MS: Final = 10 * 60_000
_NOUNS: Final = ("account", "session", "organization", "key", "queue", "listener", "replay")
_BY_ITSELF: Final = ("worker", "shell")  # Actors whose events have no request, or one that the event itself names.
_OF_NOBODY: Final = (ev.VolumeRecorded,)  # Events that an API process writes for many requests at once.
_MAKING: Final = ("created", "started")


class Seen(Protocol):
    """A record of the log, as the checks read it. timestamp: the record's time, in milliseconds."""

    @property
    def offset(self) -> int: ...
    @property
    def timestamp(self) -> int: ...
    @property
    def key(self) -> bytes | None: ...
    @property
    def value(self) -> bytes | None: ...


class Finding(NamedTuple):
    """A finding of `everput verify`: what is wrong, and where.

    offset: None when the finding is about no single record.
    wrong: False for something that can't be checked.
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
    """The checks that hold for every record of one partition of one topic. Subclasses check what its events must be.

    compacted: offsets may be missing.
    late: record times may be old, because workers wait for Kafka before they write.
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
        """The offset after the last record that was checked."""
        return self._next

    def check(self, records: Iterable[Seen]) -> Iterator[Finding]:
        """Check the partition's next records, and yield what is wrong. There are millions, so a good record costs few
        steps.
        """
        for record in records:
            offset, at_ms, value = record.offset, record.timestamp, record.value
            if offset != self._next and not self._compacted:
                yield self._finding(offset, f"the records from offset {self._next} on are missing")
            self._next = offset + 1
            if at_ms >= self._latest_ms:
                self._latest_ms = at_ms
            elif at_ms < self._latest_ms - TOLERANCE_MS:
                yield self._finding(offset, f"its time is {self._latest_ms - at_ms} ms before an earlier record's")
            if value is None:
                if self.topic != "outstanding":
                    yield self._finding(offset, "it is empty")
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
                yield self._finding(offset, f"it says it happened {at_ms - event.at_ms} ms before it was recorded")
            known = event.actor in _BY_ITSELF or isinstance(event, _OF_NOBODY)
            if not known and not (event.request_id and event.actor):
                yield self._finding(offset, "it does not say who did it, or by which request")
            for what in self.event(record, event):
                yield self._finding(offset, what)

    def skip_to(self, offset: int) -> None:
        """Retention has taken what is before this offset."""
        self._next = offset

    def damaged(self, first: int, last: int) -> Finding:
        """Return the finding for a range that no copy of the log gives as it was written."""
        self._next = max(self._next, last + 1)
        offsets = "this record is" if first == last else f"the records from here to offset {last} are"
        return self._finding(first, f"{offsets} altered or missing: see `everput mend`")

    def lost(self, offset: int) -> Finding:
        """Return the finding for an empty record, which took the place of a lost one (embedded/kafka.py)."""
        return self._finding(offset, "the record was lost from the end of a file, and its offset was filled")

    def ended(self, end: int) -> Iterator[Finding]:
        """Check the end of the partition: yield what is wrong if no record follows before this offset."""
        if self._next < end and not self._compacted:
            yield self._finding(self._next, "the records from here on are missing")

    def decode(self, value: bytes) -> Event:
        return decode(value)

    @abstractmethod
    def event(self, record: Seen, event: Event) -> Iterable[str]:
        """Yield what is wrong with this event."""

    def buried(self, record: Seen) -> None:  # noqa: B027 - most topics have none
        """Check a tombstone of a compacted topic."""

    def _finding(self, offset: int, what: str) -> Finding:
        return Finding(self.topic, self.partition, offset, what)


class ReadableChecks(Checks):
    """A check that reads one partition and does nothing else."""

    def event(self, record: Seen, event: Event) -> Iterable[str]:  # noqa: ARG002 - it is shown none
        return ()


class ControlChecks(Checks):
    """The checks of `control`, which fold it again. Every id that an event names must have been created before.

    state: the directory folded so far.
    queues: every queue that ever was, with its organization, by id.
    receivers: likewise the queue of each listener and each replay.
    named: by partition of `messages`, the highest offset where a listener begins or a replay ends, and which one.
    """

    def __init__(self, begin: int) -> None:
        super().__init__("control", 0, begin)
        self.state = Directory()
        self.queues: dict[str, str] = {}
        self.receivers: dict[str, str] = {}
        self.named: dict[int, tuple[int, str]] = {}
        self._made: dict[str, set[str]] = {noun: set() for noun in _NOUNS}

    def event(self, record: Seen, event: Event) -> Iterator[str]:
        if not isinstance(event, get_args(ev.ControlEvent)):
            yield f"{codec.wire_name(type(event))} does not belong here"
            return
        if record.key != event.organization_id.encode():
            yield "its key is not its organization"
        if isinstance(event, ev.LogDamaged | ev.LogMended | ev.AlertEvent | ev.AlertTold):
            self.state.apply(event)
            return
        noun, _, verb = codec.wire_name(type(event)).partition(".")
        noun = "organization" if noun == "volume" else noun
        made = str(getattr(event, f"{noun}_id", ""))
        known = self._made[noun]
        applied = self.state.apply(event)
        if verb in _MAKING:
            if applied or noun == "account":
                known.add(made)
                self._note(event)
            elif made in known:
                yield f"it makes the {noun} {made} again"
        elif made not in known:
            yield f"no event before it made the {noun} {made}"
        if isinstance(event, ev.ListenerCreated) and event.queue_id not in self.queues:
            yield f"no event before it made the queue {event.queue_id}"
        if isinstance(event, ev.ReplayStarted) and event.listener_id not in self.receivers:
            yield f"no event before it made the listener {event.listener_id}"

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
    """The checks that `everput verify` makes in one partition of `messages`.

    by_queue: for each queue, the offsets of its messages, ascending.
    begin: the offset at which the checks begin; callers may set it higher.
    queues: as in ControlChecks.
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
        """Whether all messages that this partition ever had have been read so far."""
        return self.begin == 0 and not self._damage

    def _unread(self, offset: int) -> bool:
        return offset < self.begin or any(first <= offset <= last for first, last in self._damage)

    def event(self, record: Seen, event: Event) -> Sequence[str]:
        if not isinstance(event, ev.MessagePut):  # decode_message takes no other
            return ()
        offset, message_id = record.offset, event.message_id.encode()
        first = self._places.setdefault(message_id, offset)
        self.by_queue[event.queue_id].append(offset)
        parts = parse_message_id(event.message_id)
        if parts is None:
            return (f"{event.message_id} is no message id",)
        at_ms, partition = parts
        wrong = []
        if partition != self.partition:
            wrong.append(f"the id {event.message_id} says partition {partition}")
        if not -TOLERANCE_MS <= at_ms - event.at_ms <= TOLERANCE_MS:
            wrong.append(f"the id {event.message_id} was made {event.at_ms - at_ms} ms before the event")
        if record.key != message_id:
            wrong.append("its key is not its message's id")
        if first != offset:
            wrong.append(f"the id {event.message_id} is at offset {first} already")
        if self.queues.get(event.queue_id) != event.organization_id:
            wrong.append(f"no queue {event.queue_id} of the organization {event.organization_id} was ever made")
        return wrong

    def has(self, offset: int, queue_id: str) -> bool:
        """Return whether this offset is a message of this queue. Offsets before the beginning, or damaged ones, count
        as such.
        """
        if self._unread(offset):
            return True
        offsets = self.by_queue.get(queue_id, [])
        index = bisect_left(offsets, offset)
        return index < len(offsets) and offsets[index] == offset

    def is_at(self, offset: int, message_id: str) -> bool:
        """Return whether this message is at this offset. Offsets before the beginning, or damaged ones, count as
        such.
        """
        return self._unread(offset) or self.place(message_id) == offset

    def place(self, message_id: str) -> int | None:
        return self._places.get(message_id.encode())
