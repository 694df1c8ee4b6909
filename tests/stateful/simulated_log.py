"""The topics of the simulation beside `messages`, as a worker writes and reads them: a step at each await, and outages
that leave it in doubt.

For: `outstanding`, `changes` and `deliveries` in memory. Not for: what may be written when (simulation.py)."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Generator, Mapping, MutableMapping
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from broker.core.events import decode
from broker.errors import LogUnavailable
from broker.kafka.changes import ChangesTopic
from broker.kafka.producer import KeyAndValue
from broker.kafka.requests import EARLIEST, LATEST, KafkaRequests, Stretch
from broker.kafka.requests import Record as Row
from tests.outstanding_topic import OutstandingTopic

if TYPE_CHECKING:
    from tests.stateful.simulated_worker import SimWorker
    from tests.stateful.simulation import World

READ_MAX = 3  # records of `changes` or `deliveries`


class Pause:
    """An await at which a step ends: anything may happen before the next one."""

    def __await__(self) -> Generator[None, None, None]:
        yield


async def asked(world: World) -> None:
    await Pause()
    if world.unavailable():
        raise LogUnavailable("an outage")


class Topic(OutstandingTopic):
    """`outstanding`."""

    def __init__(self, worker: SimWorker) -> None:
        super().__init__()
        self.records = worker.world.outstanding
        self._worker, self._world = worker, worker.world

    async def append_one(self, partition: int, key: bytes, value: bytes) -> int:
        dice, ownership = self._world.dice, self._worker.ownership
        await Pause()
        failed, offset = self._world.unavailable(), -1
        if not failed or dice.random() < 0.5:
            offset = self.write(partition, key, value)
            crash = self._worker.cut if ownership == self._worker.ownership else self._worker.gave_up
            if crash is not None:  # the next owner of the partition after this one finds it: docs/decisions/0006
                self._world.more_in_flight(crash)
                self._world.stored_late[key] = crash
        await Pause()
        if failed:
            raise LogUnavailable("an outage")
        return offset if dice.random() < 0.9 else -1

    async def append(self, outcomes: MutableMapping[int, list[KeyAndValue]]) -> None:
        await append(self._world, outcomes, self.write)

    def write(self, partition: int, key: bytes, value: bytes | None) -> int:
        self._world.keep(key, value)
        return super().write(partition, key, value)

    async def _asked(self) -> None:
        await asked(self._world)


async def append(
    world: World,
    outcomes: MutableMapping[int, list[KeyAndValue]],
    write: Callable[[int, bytes, bytes | None], object],
) -> None:
    """As OutcomesTopic.append."""
    await Pause()
    failed = world.unavailable()
    for number in list(outcomes):
        if not failed or world.dice.random() < 0.5:
            for key, value in outcomes[number]:
                write(number, key, value)
            if not failed or world.dice.random() < 0.5:
                del outcomes[number]
    if failed:
        raise LogUnavailable("an outage")


class Log:
    """What Changes wants of a KafkaLog; is its `deliveries` and its requests, too."""

    name = "deliveries"
    walk = KafkaRequests.walk

    def __init__(self, world: World) -> None:
        self._world = world
        self.deliveries = self.requests = self
        self.messages = SimpleNamespace(name="messages")
        self.changes = ChangesTopic(SimpleNamespace(name="changes"), self, "deliveries", None)

    async def append(self, outcomes: MutableMapping[int, list[KeyAndValue]]) -> None:
        """At once: who was a member a moment ago still is, there are seconds for it."""
        failed = self._world.unavailable()
        for number, rows in outcomes.items():
            if not failed or self._world.dice.random() < 0.5:
                for key, value in rows:
                    self._world.write_delivery(number, key, value)
                    self._world.changes.told(decode(value))
        await Pause()
        if failed:
            raise LogUnavailable("an outage")

    async def offsets(self, topic: str, at_ms: Mapping[int, int]) -> dict[int, int]:
        await asked(self._world)
        return {number: self._offset(self._rows(topic, number), at) for number, at in at_ms.items()}

    @staticmethod
    def _offset(rows: list[Row], at_ms: int) -> int:
        if at_ms in (EARLIEST, LATEST):
            return 0 if at_ms == EARLIEST else len(rows)
        return next((row.offset for row in rows if row.timestamp >= at_ms), -1)

    async def read(self, topic: str, partition: int, offset: int, *, bytes_max: int = 1 << 20) -> Stretch:
        await asked(self._world)
        rows = self._rows(topic, partition)
        records = rows[offset : offset + (1 if bytes_max == 1 else READ_MAX)]
        return Stretch(records, offset + len(records), len(rows))

    def _rows(self, topic: str, partition: int) -> list[Row]:
        world = self._world
        if topic == "changes":
            return world.changes.rows[partition]
        if topic == "deliveries":
            return world.deliveries[partition]
        puts = [put for put, _, _ in world.log[partition]]
        return [Row(offset, round(put.sent_at * 1000), b"", b"", ()) for offset, put in enumerate(puts)]


class Tail:
    """Stands for ChangesTail. at: by partition, up to where it was read."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.at: dict[int, int] = {}

    def follow(self, offsets: Mapping[int, int]) -> None:
        self.at = dict(offsets)

    async def read(self) -> list[tuple[int, int, Any]]:
        await Pause()
        found = []
        for partition, at in self.at.items():
            rows = self._world.changes.rows[partition][at : at + self._world.dice.randint(0, READ_MAX)]
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
