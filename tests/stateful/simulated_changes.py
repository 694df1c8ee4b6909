"""Updates and deletions of messages in the simulation: what the API does, and what its answers promise.

For: the log of changes, and the judge of what is sent and told after them, by a fold of its own. Not for: honouring
them (the real broker/delivery/changes/honour.py), when they come (simulation.py)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable
from typing import TYPE_CHECKING, Any, NamedTuple

from msgspec import UNSET

from broker.commands.changes import ANSWER_S
from broker.core.codec import encode
from broker.core.events import ChangeApplied, Event, MessageDeleted, MessageUpdated
from broker.ports import Record as Row

if TYPE_CHECKING:
    from broker.delivery.reading.message import Message
    from tests.stateful.simulated_worker import SimWorker
    from tests.stateful.simulation import World

RECENT = 6  # messages of a partition, of which one is changed
Position = tuple[int, int]


class Made(NamedTuple):
    """A change in the log. place: of its message."""

    place: Position
    offset: int
    deletes: bool
    if_version: Any
    at_ms: int


class SimChanges:
    """Of one run. rows: the topic, by partition. had: by listener and message, what it took of it: by request, which
    version of the data, unless the answer was lost on its way."""

    def __init__(self, world: World, partitions: int) -> None:
        self._world = world
        self.rows: list[list[Row]] = world.kafka.records["changes"]
        self.had: defaultdict[tuple[str, str], dict[Hashable, int]] = defaultdict(dict)
        self._made: defaultdict[Position, list[Made]] = defaultdict(list)
        self._asked: dict[Position, Made] = {}  # by place in `changes`
        self._promised = [0] * partitions  # all changes before it hold, for the API has said so

    # The API

    def change(self) -> None:
        """A message is updated or deleted; another API process may be doing the same."""
        world, dice = self._world, self._world.dice
        places = [
            (number, offset) for number, puts in enumerate(world.log) for offset, put in list(enumerate(puts))[-RECENT:]
        ]
        places += [(kept.partition, kept.offset) for kept in world.kept.values()]
        if not places:
            return
        partition, offset = dice.choice(places)
        made = self._made[partition, offset]
        counts, deleted = self.as_of((partition, offset))
        if deleted and any(worker.tail.at.get(partition, 0) > counts for worker in world.workers):
            return  # it is 404 by now
        if_version = dice.choice((UNSET, UNSET, UNSET, counts + 2, made[-1].offset + 2 if made else 1))
        put, queue_id, _ = world.log[partition][offset]
        deletes = dice.random() < 0.5
        fields = {
            "at_ms": world.now_ms,
            "organization_id": "o",
            "message_id": put.message_id,
            "queue_id": queue_id,
            "partition": partition,
            "offset": offset,
            "if_version": if_version if if_version is UNSET else max(1, if_version),
        }
        at = len(self.rows[partition])
        event = MessageDeleted(**fields) if deletes else MessageUpdated(**fields, data=f"u{at}")
        self.rows[partition].append(Row(at, world.now_ms, put.message_id.encode(), encode(event), ()))
        made.append(Made((partition, offset), at, deletes, event.if_version, world.now_ms))
        self._asked[partition, at] = made[-1]

    def asked_for_too_long(self) -> None:
        """A worker's session has ended meanwhile: nobody waits as long as that."""
        self._asked.clear()

    # What counts

    def as_of(self, place: Position, end: int | None = None) -> tuple[int, bool]:
        """Which change of the message at this place counts after those before `end`, -1 for none; is it deleted?"""
        counts, deleted = -1, False
        for one in self._made.get(place, ()):
            if deleted or (end is not None and one.offset >= end):
                break
            if one.if_version is UNSET or one.if_version == (1 if counts < 0 else counts + 2):
                counts, deleted = one.offset, one.deletes
        return counts, deleted

    def deleted(self, place: Position) -> bool:
        return self.as_of(place)[1]

    # The judge

    def sent(self, worker: SimWorker, listener: str, partition: int, message: Message) -> None:
        """What the owner of the partition has read, and what was promised, holds for what is sent now."""
        place = (partition, message.offset)
        if not self._made.get(place):
            return
        counts, deleted = self.as_of(place, max(worker.tail.at.get(partition, 0), self._promised[partition]))
        found, has = self._world.found, version(message)
        if deleted:
            found.append(f"deleted: {place} was sent ({listener})")
        elif has < counts or (has, False) != self.as_of(place, has + 1):
            found.append(f"outdated: {place} was sent with the data of {has}, not of {counts} ({listener})")

    def took(self, listener: str, message: Message, request: Hashable) -> None:
        self.had[listener, message.id.decode()][request] = version(message)

    def lost(self, listener: str, message: Message, request: Hashable) -> None:
        """Nobody will know that it took it."""
        self.had[listener, message.id.decode()].pop(request, None)

    def told(self, event: Event) -> None:
        """A record of `deliveries`: the API reads it in time, or not."""
        if not isinstance(event, ChangeApplied):
            return
        change = self._asked.pop((event.partition, event.change_offset), None)
        if change is None or self._world.now_ms - change.at_ms > ANSWER_S * 1000:
            return
        self._promised[event.partition] = max(self._promised[event.partition], change.offset + 1)
        place = change.place
        counts = self.as_of(place, change.offset + 1)[0] == change.offset
        waits = any(state not in ("delivered", "unknown") for _, state in event.listeners)  # else it may be forgotten
        if change.if_version is UNSET and counts != event.applied and (counts or waits):
            self._world.found.append(f"claimed: that the change {change.offset} of {place} counts: {event.applied}")
        for listener_id, state in event.listeners if counts else ():
            listener = self._world.name(listener_id)
            had = any(has < change.offset for has in self.had[listener, event.message_id].values())
            if state == "delivered" and not had:
                self._world.found.append(f"claimed: {place} was delivered before its change ({listener})")
            if state in ("pending", "retrying", "parked") and had:
                self._world.found.append(f"denied: {place} was delivered before its change, not {state} ({listener})")


def version(message: Message) -> int:
    """The change that the data is from; -1: it is as it was put."""
    data = message.name_and_data()[1]
    return int(data[1:]) if data.startswith("u") else -1
