"""Records unreadable ranges of the log as events, and records when they can be read again.

For: the events `log.damaged` and `log.mended` in `control`, one for each range, however many processes find it. Not
for: finding damage (broker/kafka/batches.py), deliveries that wait because of damage
(broker/delivery/outstanding/damaged.py).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Final

from broker.clock import now_ms
from broker.core import events as ev
from broker.core.damage import Damage, DamagedRange, joined
from broker.errors import BrokerError, LogDamaged
from broker.kafka.outstanding_sums import holds_all
from broker.kafka.requests import KafkaRequests
from broker.kafka.scan import scan
from broker.kafka.topics import Topics, by_name
from broker.ports import EARLIEST, ControlLog, DirectoryView

log = logging.getLogger(__name__)

_RETRY_S: Final = 1.0
LOOK_S: Final = 30.0
# Before this process reports an unreadable range, it reads `control` to its end: another process may have reported it.
# If reading `control` to its end takes over 5 s, this process tries again to report the range a second later.
_BEHIND_S: Final = 5.0


class DamageReports:
    """The code that reports unreadable ranges of the log, as events in the topic `control`.

    `requests` is the Kafka client whose reads find these ranges. Call start() after this process has read `control` to
    its end.
    """

    def __init__(self, requests: KafkaRequests, control: ControlLog, view: DirectoryView, table: Topics) -> None:
        self._requests = requests
        self._control = control
        self._view = view
        self._table = by_name(table)
        self._names = {topic.name: name for name, topic in self._table.items()}
        self._found = Damage()
        self._some = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    @asynccontextmanager
    async def running(self, *, look: bool = False) -> AsyncIterator[None]:
        """Report unreadable ranges of the log while the `async with` block runs."""
        self.start(look=look)
        try:
            yield
        finally:
            await self.stop()

    def start(self, *, look: bool = False) -> None:
        """Start to report unreadable ranges of the log, as events in the topic `control`.

        With `look`, also check every 30 seconds whether reported ranges can be read again, or were deleted by
        retention. It is enough if one process of the installation makes these checks.
        """
        self._requests.on_damage, self._requests.given_up = self.found, self.given_up
        self._tasks = [asyncio.create_task(self._tell())]
        if look:
            self._tasks.append(asyncio.create_task(self._look()))

    async def stop(self) -> None:
        self._requests.on_damage = None
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def found(self, damage: LogDamaged) -> None:
        """Remember an unreadable range that a read has found, so that an event reports it soon. Do nothing if the range
        is reported as unreadable already, or was given up.

        An unreadable range in the topic `statistics` is only logged, because statistics can be computed again.
        """
        if damage.topic not in self._names:
            log.error("log.damaged topic=%s first_offset=%d last_offset=%d", damage.topic, damage.first, damage.last)
            return
        one = self._range(damage)
        if not self._known(one) and self._found.add(one):
            log.error("log.damaged topic=%s partition=%d first_offset=%d last_offset=%d", one.topic, *one[1:])
            self._some.set()

    def given_up(self, damage: LogDamaged) -> bool:
        """Return whether this unreadable range was given up: by an operator, or because retention has deleted it."""
        return self._view.state.given_up.covers(self._range(damage))

    def _range(self, damage: LogDamaged) -> DamagedRange:
        return DamagedRange(self._names.get(damage.topic, damage.topic), damage.partition, damage.first, damage.last)

    def _known(self, one: DamagedRange) -> bool:
        state = self._view.state
        # Events may say that one part of the range is damaged, and another part given up. So check both sets together.
        return joined(state.damage, state.given_up).covers(one)

    async def _tell(self) -> None:
        while True:
            await self._some.wait()
            self._some.clear()
            for one in list(self._found):
                while not await self._told(one):
                    await asyncio.sleep(_RETRY_S)
                self._found.remove(one)

    async def _told(self, one: DamagedRange) -> bool:
        try:
            await self._view.caught_up(timeout_s=_BEHIND_S)
            if not self._known(one):
                await self._control.append(
                    ev.LogDamaged(
                        at_ms=now_ms(),
                        organization_id="",
                        actor="worker",
                        topic=one.topic,
                        partition=one.partition,
                        first_offset=one.first,
                        last_offset=one.last,
                    )
                )
        except BrokerError as error:
            log.warning("damage.waits error=%s", error)
            return False
        return True

    async def _look(self) -> None:
        while True:
            await self.look_again(list(self._view.state.damage))
            await asyncio.sleep(LOOK_S)

    async def look_again(self, known: Iterable[DamagedRange]) -> None:
        """Try to read these unreadable ranges again. Report in `control` which of them are readable now, and which
        offsets retention has deleted.

        A range may become readable after a repair, or with another partition leader.
        """
        for one in known:
            try:
                await self._look_at(one)
            except BrokerError as error:
                log.info("damage.remains range=%s error=%s", one, error)

    async def _look_at(self, one: DamagedRange) -> None:
        begin = (await self._requests.offsets(self._table[one.topic].name, {one.partition: EARLIEST}))[one.partition]
        if begin > one.first:
            deleted = one._replace(last=min(one.last, begin - 1))
            await self._control.append(mended(deleted, given_up=True, actor="worker"))
            one = one._replace(first=begin)
        if one.first <= one.last and await self._readable(one):
            await self._control.append(mended(one, given_up=False, actor="worker"))

    async def _readable(self, one: DamagedRange) -> bool:
        at = one.first
        if one.topic == "outstanding" and not await holds_all(self._requests, one.partition):
            return False
        async for fetched in scan(self._requests, self._table[one.topic].name, one.partition, at, one.last + 1):
            at = fetched.next_offset
        return at > one.last


def mended(one: DamagedRange, *, given_up: bool, actor: str) -> ev.LogMended:
    return ev.LogMended(
        at_ms=now_ms(),
        organization_id="",
        actor=actor,
        topic=one.topic,
        partition=one.partition,
        first_offset=one.first,
        last_offset=one.last,
        given_up=given_up,
    )
