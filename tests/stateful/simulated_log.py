"""The Kafka of the simulation: the twins in memory, a step at each await, and outages that leave a writer in doubt.

For: the ports of one worker (tests/memory_kafka.py), and what stands for asyncio in the parts that it drives. Not for:
what may be written when (simulation.py)."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Generator, Iterable, Mapping, MutableMapping
from typing import TYPE_CHECKING, Any

from broker.core.codec import decode
from broker.core.cursor import Cursor
from broker.delivery.ports import Gained, GivenUp, KeyAndValue, Ports
from broker.errors import LogDamaged, LogUnavailable
from broker.kafka.changes import ChangesTopic
from broker.ports import NoMember, Record
from tests.memory_kafka import MemoryAppender, MemoryChangeFeed, MemoryCursors, MemoryKafka, MemoryLog, MemoryReader

if TYPE_CHECKING:
    from broker.core.flow import Share
    from tests.stateful.simulated_worker import SimWorker
    from tests.stateful.simulation import World

CLOCK_SKEW_MS = 5_000
READ_MAX = 8  # records that one request brings


class Pause:
    """An await at which a step ends: anything may happen before the next one. seconds: as asked of sleep()."""

    def __init__(self, seconds: float = 0.0) -> None:
        self._seconds = seconds

    def __await__(self) -> Generator[float, None, None]:
        yield self._seconds


class SimKafka(MemoryKafka):
    """The cluster of one run."""

    def __init__(self, world: World, partitions: int) -> None:
        super().__init__(partitions)
        self._world = world
        self.time = lambda: world.now_ms / 1000

    async def asked(self) -> None:
        await self._world.read_time()
        self.records_max = self._world.dice.randint(1, READ_MAX)
        if self._world.unavailable():
            raise LogUnavailable("an outage")

    def ports(self, worker: SimWorker) -> Ports:
        return Ports(
            log=SimLog(self._world, worker),
            membership=SimMembership(self._world, worker),
            cursors=SimCursors(self._world, worker),
            changes=SimFeed(self._world),
        )


class SimReader(MemoryReader):
    def __init__(self, world: World) -> None:
        super().__init__(world.kafka)
        self._world = world

    def report(self, damage: LogDamaged) -> None:
        self._world.found.append(f"damaged: {damage}")  # nothing ever is here


class SimLog(MemoryLog):
    def __init__(self, world: World, worker: SimWorker) -> None:
        super().__init__(world.kafka)
        self.requests = SimReader(world)
        self.deliveries = Deliveries(world)
        self.outstanding = Outstanding(world, worker)
        self.changes = ChangesTopic(
            MemoryAppender(world.kafka, "changes"),
            SimReader(world),
            "deliveries",
            None,
            clock_skew_ms=CLOCK_SKEW_MS,
        )


class Deliveries(MemoryAppender):
    def __init__(self, world: World) -> None:
        super().__init__(world.kafka, "deliveries")
        self._world = world

    async def append(self, outcomes: MutableMapping[int, list[KeyAndValue]]) -> None:
        """At once: who was a member a moment ago still is, there are seconds for it."""
        failed = self._world.unavailable()
        _append(self._world, outcomes, self._write, failed=failed)
        await Pause()
        if failed:
            raise LogUnavailable("an outage")

    def _write(self, partition: int, key: bytes, value: bytes | None) -> None:
        self._world.kafka.write("deliveries", partition, key, value)
        self._world.changes.told(decode(value))


class Outstanding(MemoryAppender):
    def __init__(self, world: World, worker: SimWorker) -> None:
        super().__init__(world.kafka, "outstanding")
        self._world, self._worker = world, worker

    async def append_one(self, partition: int, key: bytes, value: bytes) -> int:
        dice, ownership = self._world.dice, self._worker.ownership
        await Pause()
        failed, offset = self._world.unavailable(), -1
        if not failed or dice.random() < 0.5:
            offset = self._write(partition, key, value)
            crash = self._worker.cut if ownership == self._worker.ownership else self._worker.gave_up
            if crash is not None:  # the next owner of the partition after this one finds it: docs/decisions/0006
                self._world.more_in_flight(crash)
                self._world.stored_late[key] = crash
        await Pause()
        if failed:
            raise LogUnavailable("an outage")
        return offset if dice.random() < 0.9 else -1

    async def append(self, outcomes: MutableMapping[int, list[KeyAndValue]]) -> None:
        await Pause()
        failed = self._world.unavailable()
        _append(self._world, outcomes, self._write, failed=failed)
        if failed:
            raise LogUnavailable("an outage")

    def _write(self, partition: int, key: bytes, value: bytes | None) -> int:
        self._world.keep(key, value)
        return self._world.kafka.write("outstanding", partition, key, value)


def _append(
    world: World,
    outcomes: MutableMapping[int, list[KeyAndValue]],
    write: Callable[[int, bytes, bytes | None], object],
    *,
    failed: bool,
) -> None:
    """As Appender.append. failed: some of it may be written, and what is may not be known."""
    for number in list(outcomes):
        if not failed or world.dice.random() < 0.5:
            for key, value in outcomes[number]:
                write(number, key, value)
            if not failed or world.dice.random() < 0.5:
                del outcomes[number]


class SimCursors(MemoryCursors):
    def __init__(self, world: World, worker: SimWorker) -> None:
        super().__init__(world.kafka)
        self._world, self._worker = world, worker

    async def store(self, cursors: Mapping[str, Mapping[int, Cursor]]) -> None:
        await Pause()
        self._worker.confirmed = False
        if self._world.unavailable():
            raise LogUnavailable("an outage")
        self._world.commit(cursors, by=self._worker)


class SimMembership:
    """Membership. positions: by partition, where it reads on. share_now: as the group has agreed. gained, given_up: of
    the worker that has joined.
    """

    def __init__(self, world: World, worker: SimWorker) -> None:
        self._world, self._worker = world, worker
        self.positions: dict[int, int] = {}
        self.share_now: Share
        self.gained: Gained
        self.given_up: GivenUp

    async def start(self, gained: Gained, given_up: GivenUp) -> None:
        self.gained, self.given_up = gained, given_up

    def begin(self, offsets: Mapping[int, int]) -> None:
        self.positions.update(offsets)

    async def read(self) -> dict[int, list[Record]]:
        """A few records of one partition."""
        await self._world.read_time()
        if not self.positions:  # they were given up meanwhile
            return {}
        dice, number = self._world.dice, self._world.dice.choice(list(self.positions))
        at = self.positions[number]
        rows = self._world.kafka.records["messages"][number][at : at + dice.randint(1, READ_MAX - 2)]
        self.positions[number] += len(rows)
        return {number: rows} if rows else {}

    def lags(self) -> bool:
        return any(at < len(self._world.log[number]) for number, at in self.positions.items())

    async def confirm(self, offsets: Mapping[int, int], notes: Mapping[int, str]) -> None:
        await Pause()
        if self._worker.cut is not None:
            raise (NoMember if self._world.dice.random() < 0.3 else LogUnavailable)("no member any more")
        self._world.kafka.notes.update({number: notes.get(number, "") for number in offsets})
        self._worker.confirmed = True

    async def notes(self, partitions: Iterable[int]) -> dict[int, str]:
        """Half of all runs are as if the last owner were an older program, which leaves none."""
        await Pause()
        there = self._world.kafka.notes if self._world.changing else {}
        return {number: text for number in partitions if (text := there.get(number))}

    async def share(self, _partitions: object) -> Share:
        await Pause()
        return self.share_now


class SimFeed(MemoryChangeFeed):
    """at: by partition, up to where it was read."""

    def __init__(self, world: World) -> None:
        super().__init__(world.kafka)
        self._world = world

    @property
    def at(self) -> dict[int, int]:
        return self._positions

    async def read(self) -> list[tuple[int, int, Any]]:
        await self._world.read_time()
        found = []
        for partition, at in self.at.items():
            rows = self._world.changes.rows[partition][at : at + self._world.dice.randint(0, 3)]
            found += [(partition, row.offset, decode(row.value)) for row in rows]
            self.at[partition] += len(rows)
        return found

    def lags(self) -> bool:
        return any(at < len(self._world.changes.rows[number]) for number, at in self.at.items())


class Shared:
    """A coroutine whose end several may wait for: for asyncio.create_task() and asyncio.shield()."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        self._coroutine = coroutine
        self._came_to: Callable[[], Any] | None = None

    def __await__(self) -> Generator[None, None, Any]:
        while self._came_to is None:
            try:
                self._coroutine.send(None)
            except StopIteration as end:
                self._came_to = lambda value=end.value: value
            except LogUnavailable as error:
                self._came_to = lambda error=error: _raise(error)
            else:
                yield
        return self._came_to()


def _raise(error: Exception) -> None:
    raise error


async def in_turn(*coroutines: Coroutine[Any, Any, Any]) -> list[Any]:
    """For asyncio.gather()."""
    try:
        return [await one for one in coroutines]
    finally:
        for one in coroutines:
            one.close()


class Future:
    """For asyncio.Future, as far as the worker's parts need one."""

    def __init__(self) -> None:
        self._result: Callable[[], Any] | None = None

    def done(self) -> bool:
        return self._result is not None

    def set_result(self, value: Any) -> None:
        self._result = lambda: value

    def set_exception(self, error: Exception) -> None:
        self._result = lambda: _raise(error)

    def exception(self) -> None:
        """Nobody else wants to know."""

    def __await__(self) -> Generator[None, None, Any]:
        while self._result is None:
            yield
        return self._result()
