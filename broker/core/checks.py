"""Whether the log holds together: what each event says, against its place and against the events before it.

For: the rules, topic by topic; all records of a topic's partition are shown in order. Pure. Not for: reading them
(broker/audit/verify.py). What no rule can tell: whether a value that nothing else repeats (a message's data, a queue's
name) is the one that was written. There is no chain of hashes (docs/decisions/0091).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple, Protocol, get_args

from broker.core import events as ev
from broker.core.cursor import Cursor
from broker.core.directory import Directory, Listener
from broker.core.events import Event, decode, decode_message
from broker.core.ids import parse_message_id
from broker.errors import UnknownEvent

# The clocks of the machines that write differ by less; a record may also wait that long for Kafka.
TOLERANCE_MS: Final = 10 * 60_000
_NOUNS: Final = ("account", "session", "organization", "key", "listener")  # and queue


class Seen(Protocol):
    """A record of the log. timestamp: the record's time, in milliseconds."""

    @property
    def offset(self) -> int: ...
    @property
    def timestamp(self) -> int: ...
    @property
    def key(self) -> bytes | None: ...
    @property
    def value(self) -> bytes | None: ...


class Finding(NamedTuple):
    """What is wrong, and where. offset: None when it is no one record. wrong: False for what can't be checked."""

    topic: str
    partition: int
    offset: int | None
    what: str
    wrong: bool = True

    def __str__(self) -> str:
        place = f"{self.topic}/{self.partition}"
        return f"{place}{'' if self.offset is None else f' offset {self.offset}'}: {self.what}"


class Checks(ABC):
    """Of one partition of one topic: what holds for every record. Subclasses say what its events must be."""

    def __init__(self, topic: str, partition: int, begin: int, *, compacted: bool = False) -> None:
        self.topic = topic
        self.partition = partition
        self._next = begin
        self._compacted = compacted
        self._latest_ms = 0

    def check(self, records: Iterable[Seen]) -> Iterator[Finding]:
        """What is wrong with the partition's next records: millions of them, so a good one costs few steps."""
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
            try:
                event = self.decode(value)
            except UnknownEvent as error:
                yield self._finding(offset, str(error))
                continue
            if not -TOLERANCE_MS <= at_ms - event.at_ms <= TOLERANCE_MS:
                yield self._finding(offset, f"it says it happened {at_ms - event.at_ms} ms before it was recorded")
            for what in self.event(record, event):
                yield self._finding(offset, what)

    def ended(self, end: int) -> Iterator[Finding]:
        """What is wrong when nothing more comes before this offset, where the partition ends."""
        if self._next < end and not self._compacted:
            yield self._finding(self._next, "the records from here on are missing")

    def decode(self, value: bytes) -> Event:
        return decode(value)

    @abstractmethod
    def event(self, record: Seen, event: Event) -> Iterable[str]:
        """What is wrong with this event."""

    def buried(self, record: Seen) -> None:  # noqa: B027 - most topics have none
        """A tombstone, in a compacted topic."""

    def _finding(self, offset: int, what: str) -> Finding:
        return Finding(self.topic, self.partition, offset, what)


class ControlChecks(Checks):
    """Folds `control` again. state: so far. Every id that is spoken of must have been made before."""

    def __init__(self, begin: int) -> None:
        super().__init__("control", 0, begin)
        self.state = Directory()
        self.queues: dict[str, str] = {}  # all there ever were: organization by id
        self._made: dict[str, set[str]] = {noun: set() for noun in _NOUNS}

    def event(self, record: Seen, event: Event) -> Iterator[str]:
        if not isinstance(event, get_args(ev.ControlEvent)):
            yield f"{ev.wire_name(type(event))} does not belong here"
            return
        if record.key != event.organization_id.encode():
            yield "its key is not its organization"
        noun, _, verb = ev.wire_name(type(event)).partition(".")
        applied = self.state.apply(event)
        fields: Any = event
        if verb == "created":
            if applied or noun == "account":
                self._note(noun, fields)
            elif self._id(noun, fields) in self._known(noun):
                yield f"it makes the {noun} {self._id(noun, fields)} again"
        elif (noun == "queue" or noun in _NOUNS) and self._id(noun, fields) not in self._known(noun):
            yield f"no event before it made the {noun} {self._id(noun, fields)}"
        if noun == "listener" and verb == "created" and fields.queue_id not in self.queues:
            yield f"no event before it made the queue {fields.queue_id}"

    def _known(self, noun: str) -> Mapping[str, str] | set[str]:
        return self.queues if noun == "queue" else self._made[noun]

    def _note(self, noun: str, fields: Any) -> None:
        if noun == "queue":
            self.queues[fields.queue_id] = fields.organization_id
        else:
            self._made[noun].add(self._id(noun, fields))

    @staticmethod
    def _id(noun: str, fields: Any) -> str:
        return str(getattr(fields, f"{noun}_id", ""))


class MessageChecks(Checks):
    """One partition of `messages`. by_queue: the offsets of each queue's messages, ascending."""

    def __init__(self, partition: int, begin: int, queues: Mapping[str, str]) -> None:
        super().__init__("messages", partition, begin)
        self.begin = begin
        self.by_queue: defaultdict[str, list[int]] = defaultdict(list)
        self._queues = queues
        self._places: dict[bytes, int] = {}

    @property
    def end(self) -> int:
        return self._next

    def decode(self, value: bytes) -> Event:
        return decode_message(value)

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
        if self._queues.get(event.queue_id) != event.organization_id:
            wrong.append(f"no queue {event.queue_id} of the organization {event.organization_id} was ever made")
        return wrong

    def has(self, offset: int, queue_id: str) -> bool:
        """Whether this offset is a message of this queue; True for what was not read."""
        if not self.begin <= offset < self.end:
            return True
        offsets = self.by_queue.get(queue_id, [])
        index = bisect_left(offsets, offset)
        return index < len(offsets) and offsets[index] == offset

    def is_at(self, offset: int, message_id: str) -> bool:
        """Whether this message is at this offset; True for what was not read."""
        return not self.begin <= offset < self.end or self.place(message_id) == offset

    def place(self, message_id: str) -> int | None:
        return self._places.get(message_id.encode())


class OutcomeChecks(Checks):
    """One partition of `changes`, `deliveries` or `outstanding`, against the messages of the same partition.

    outcomes: by listener, the offsets of messages of which the end is told, or which are owed. deleted: the offsets of
    messages that all listeners are spared.
    """

    def __init__(self, topic: str, messages: MessageChecks, begin: int) -> None:
        super().__init__(topic, messages.partition, begin, compacted=topic == "outstanding")
        self.outcomes: dict[str, set[int]] = {}
        self.deleted: set[int] = set()
        self._messages = messages

    def event(self, record: Seen, event: Event) -> Iterator[str]:  # noqa: ARG002 - the rule's signature
        if isinstance(event, ev.DeliveriesSettled):
            yield from self._settled(event)
            return
        fields: Any = event
        message_id, listener_id = getattr(fields, "message_id", None), getattr(fields, "listener_id", None)
        if message_id is None:
            return
        known = self._messages.place(message_id)
        offset = getattr(fields, "offset", known)
        if offset is None and self._messages.begin:
            return  # of a message that is not there to be checked any more
        if offset is None or not self._messages.is_at(offset, message_id):
            where = "in this partition" if offset is None else f"at offset {offset}"
            yield f"the message {message_id} is not {where}"
        elif not self._messages.has(offset, fields.queue_id):
            yield f"the message {message_id} is not of the queue {fields.queue_id}"
        elif listener_id is None and ev.wire_name(type(event)).endswith(".deleted"):
            self.deleted.add(offset)
        elif listener_id is not None and getattr(fields, "outcome", "kept") != "failed":
            self.outcomes.setdefault(listener_id, set()).add(offset)

    def _settled(self, event: ev.DeliveriesSettled) -> Iterator[str]:
        told = self.outcomes.setdefault(event.listener_id, set())
        if event.partition != self.partition:
            yield f"it tells of partition {event.partition}"
            return
        for offset, *_ in event.rows:
            told.add(offset)
        wrong = [offset for offset, *_ in event.rows if not self._messages.has(offset, event.queue_id)]
        if wrong:
            yield f"no message of the queue {event.queue_id} is at offset {wrong[0]}"


def unaccounted(
    listener: Listener, cursor: Cursor | None, messages: MessageChecks, others: Sequence[OutcomeChecks]
) -> Iterator[Finding]:
    """How many messages below a listener's cursor there are of which no outcome is told."""
    start = listener.start_offsets[messages.partition]
    place = cursor or Cursor(top=start)
    told = set().union(*(checks.outcomes.get(listener.id, ()) for checks in others), place.open)
    told.update(*(checks.deleted for checks in others))
    own = messages.by_queue.get(listener.queue_id, [])
    left = [offset for offset in own[bisect_left(own, start) : bisect_left(own, place.top)] if offset not in told]
    if left:
        what = f"the listener {listener.id} has passed {len(left)} message(s) of which no outcome is told"
        yield Finding(
            "deliveries",
            messages.partition,
            None,
            f"{what}, the first at offset {left[0]} of messages/{messages.partition}",
        )
