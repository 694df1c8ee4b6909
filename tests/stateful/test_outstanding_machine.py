"""A worker notes of a partition of `outstanding` only what Kafka has, in whatever order Kafka stores and answers.

For: the fingerprint (broker/delivery/outstanding/sync.py) while deliveries are set aside, parked, cancelled and buried,
listeners are deleted, and partitions change hands: each append is stored and acknowledged when the machine chooses.
Not for: what becomes of the deliveries (test_simulation.py).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, MutableMapping
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from broker.clock import now_ms
from broker.core.codec import encode
from broker.core.delivery import DROPPED, READY, Leaving
from broker.core.entities import Redrives
from broker.core.events import MessagePut
from broker.core.outstanding_sum import LiveKeys, OutstandingSum, parse_sum
from broker.delivery.dispatch.stream import Delivery
from broker.delivery.outstanding import schedule
from broker.delivery.outstanding.schedule import Outstanding
from broker.delivery.outstanding.sync import IndexSync, WatchedAppender
from broker.delivery.ports import KeyAndValue
from broker.delivery.reading.message import Message
from broker.delivery.reading.partition import Partition
from broker.delivery.tuning import Tuning
from broker.errors import LogUnavailable
from tests.outstanding_topic import OutstandingTopic

PARTITIONS = {"m-0": 0, "m-1": 0, "m-2": 1}  # of the messages
LISTENER = SimpleNamespace(id="l-1", organization_id="o", queue_id="q-1", redrives=Redrives())
DISPATCHER = SimpleNamespace(listener=LISTENER, parked_lines=SimpleNamespace(left_out=lambda *_: None), assignment=None)
TUNING = Tuning(append_pause_s=0.0, damaged_at_once=1)


class Asked:
    """Something that was asked of Kafka: it is carried out first, and answered later."""

    def __init__(self, partition: int, rows: list[KeyAndValue]) -> None:
        self.partition = partition
        self.rows = rows
        self.offset = -1
        self.ends: dict[int, int] = {}  # of the partitions, when it was carried out
        self.carried_out = False
        self.answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class SlowTopic(OutstandingTopic):
    """It stores records, and says so, when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[Asked] = []
        self.reported: list[Exception] = []
        self.slow = False  # whether offsets() waits to be answered, too

    async def offsets(self, topic: str, at_ms: dict[int, int]) -> dict[int, int]:
        if not self.slow:
            return await super().offsets(topic, at_ms)
        asked = Asked(min(at_ms), [])
        self.asked.append(asked)
        await asked.answer
        return {partition: asked.ends[partition] for partition in at_ms}

    async def _ask(self, partition: int, rows: list[KeyAndValue]) -> int:
        asked = Asked(partition, rows)
        self.asked.append(asked)
        await asked.answer
        return asked.offset

    async def append_one(self, partition: int, key: bytes, value: bytes) -> int:
        return await self._ask(partition, [(key, value)])

    async def append(self, outcomes: MutableMapping[int, list[KeyAndValue]]) -> None:
        async def write(partition: int, rows: list[KeyAndValue]) -> None:
            await self._ask(partition, rows)
            del outcomes[partition]

        ended = await asyncio.gather(*(write(*one) for one in outcomes.items()), return_exceptions=True)
        for error in filter(None, ended):
            raise error

    def carry_out(self, asked: Asked) -> None:
        asked.carried_out = True
        for key, value in asked.rows:
            asked.offset = self.write(asked.partition, key, value)
        asked.ends = {partition: len(self.records[partition]) for partition in (0, 1)}
        if asked.answer.done():  # Its caller has gone.
            self.asked.remove(asked)

    def end(self, asked: Asked, error: Exception | None = None) -> None:
        self.asked.remove(asked)
        if asked.answer.done():
            return
        if error is None:
            asked.answer.set_result(None)
        else:
            asked.answer.set_exception(error)

    def report(self, damage: Exception) -> None:
        self.reported.append(damage)

    def true(self, partition: int, end: int) -> OutstandingSum:
        """The fingerprint of the records before `end`."""
        keys = LiveKeys()
        for record in self.records[partition][:end]:
            assert record is not None
            keys.note(record.key, record.value)
        return keys.until(end)


class OutstandingMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.topic = SlowTopic()
        self.noted = {0: "", 1: ""}
        # Kafka may have a record that the worker will not ask about any more: of a former owner, of a loop that was
        # cancelled, or of a delivery that was dropped before it could be written again. Then nothing new is noted.
        self.strange = False
        self.run(self.own())

    def run(self, work: Coroutine[Any, Any, None] | None = None, *, turns: int = 10) -> None:
        async def a_while() -> None:
            if work is not None:
                await work
            for _ in range(turns):
                await asyncio.sleep(0)

        self.loop.run_until_complete(a_while())

    async def own(self) -> None:
        async def ours() -> None: ...

        partitions = {number: Partition(number, 0) for number in (0, 1)}
        self.outstanding = schedule.Outstanding(self.topic, self.topic, "messages", partitions, {}, ours, tuning=TUNING)
        self.leaving: dict[str, Delivery] = {}
        self.cancelled: set[str] = set()  # Their deliveries are over, so nobody sets them aside again.
        self.loops: dict[str, asyncio.Task[None]] = {}
        self.topic.slow = False
        for number in partitions:
            await self.outstanding.read(number, noted=self.noted[number])
            self.outstanding.take_over(number)
        self.topic.slow = True

    def teardown(self) -> None:
        try:
            self.come_to_rest()
        finally:
            self.pause(all_of_it=True)
            self.loop.close()

    def come_to_rest(self) -> None:
        """Kafka answers everything. Then a checkpoint notes what there is, unless an append came from elsewhere."""
        for work in (lambda: None, self.bury, self.checkpoint):
            work()
            while self.topic.asked:
                self.answer(0)
                self.every_note_is_true()
        assert not self.leaving
        for name, task in self.loops.items():
            assert task.done(), name
            task.result()
        for partition, noted in self.noted.items():
            end = len(self.topic.records[partition])
            assert self.strange or not end or parse_sum(noted) == self.topic.true(partition, end)

    # The worker

    @rule(message_id=st.sampled_from(sorted(PARTITIONS)), parked=st.booleans(), key=st.sampled_from([None, "k"]))
    def set_aside(self, message_id: str, *, parked: bool = False, key: str | None = None) -> None:
        if message_id in self.leaving or message_id in self.cancelled:
            return
        offset = sorted(PARTITIONS).index(message_id)
        put = MessagePut(
            at_ms=1, organization_id="o", message_id=message_id, queue_id="q-1", name="n", data="{}", key=key
        )
        message = Message(offset, message_id.encode(), "q-1", 1, encode(put))
        message.body(SimpleNamespace(id="q-1", name="q"))
        stream = SimpleNamespace(dispatcher=DISPATCHER, partition=PARTITIONS[message_id])
        delivery = Delivery(stream, offset, message)
        delivery.state = READY
        delivery.state = Leaving(None, 500, None)
        event = self.outstanding.expect(delivery, message, 500, None, None if parked else now_ms() + 3_600_000)
        self.leaving[message_id] = delivery

        async def leave(outstanding: Outstanding, leaving: dict[str, Delivery]) -> None:
            await outstanding.set_aside(delivery, event)
            del leaving[message_id]
            if message_id in self.cancelled:  # as Assignment does
                outstanding.cancel(PARTITIONS[message_id], "l-1", message_id)

        self.work(f"set aside {message_id}", leave(self.outstanding, self.leaving))

    @precondition(lambda self: self.leaving)
    @rule()
    def the_listener_goes(self) -> None:
        """Its dispatcher drops its deliveries."""
        self.drop()
        self.outstanding.removed("l-1")

    def drop(self) -> None:
        for delivery in self.leaving.values():
            if delivery.state is not DROPPED:
                delivery.state = DROPPED

    @rule(message_id=st.sampled_from(sorted(PARTITIONS)))
    def cancel(self, message_id: str) -> None:
        self.cancelled.add(message_id)
        self.outstanding.cancel(PARTITIONS[message_id], "l-1", message_id)

    @rule()
    def bury(self) -> None:
        self.repeat("bury", self.outstanding.bury, {"l-1"})

    @rule(first=st.sampled_from([10, 11]))
    def park_damaged(self, first: int) -> None:
        ranges = [(LISTENER, first, first), (LISTENER, first + 10, first + 12)]
        self.repeat("park", self.outstanding.park_damaged, 0, ranges)

    @rule()
    def checkpoint(self) -> None:
        async def checkpoint(outstanding: Outstanding) -> None:
            await outstanding.flush()
            await outstanding.note()
            self.noted |= outstanding.notes()

        self.repeat("checkpoint", checkpoint, self.outstanding)

    def repeat(self, name: str, ask: Callable[..., Coroutine[Any, Any, object]], *how: object) -> None:
        """Ask until Kafka has taken it, unless it is being asked already."""

        async def repeated() -> None:
            while True:
                with contextlib.suppress(LogUnavailable):
                    await ask(*how)
                    break

        if name not in self.loops or self.loops[name].done():
            self.work(name, repeated())

    def work(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        self.loops[name] = self.loop.create_task(work)
        self.run()

    @precondition(lambda self: self.loops)
    @rule(after=st.integers(0, 3))
    def pause(self, *, after: int = -1, all_of_it: bool = False) -> None:
        """The worker's loops are cancelled. What leaves goes on. after: so many turns after an answer has come."""
        for asked in [one for one in self.topic.asked if after >= 0 and one.carried_out][:1]:
            self.topic.end(asked)
            self.run(turns=after)
        for name in list(self.loops):
            if all_of_it or not name.startswith("set aside"):
                task = self.loops.pop(name)
                self.strange = self.strange or not task.done()
                task.cancel()
        self.run()

    @precondition(lambda self: len(self.topic.records[0]) % 4 == 0)  # not too often
    @rule()
    def hand_over(self) -> None:
        """The partition gets a new owner. Some of what the former one has asked may be carried out later."""
        self.drop()
        self.outstanding.close()
        self.pause(all_of_it=True)
        self.topic.asked = [one for one in self.topic.asked if one.rows and not one.carried_out]
        self.strange = bool(self.topic.asked)
        self.run(self.own())
        assert self.topic.reported == []

    # Kafka

    @precondition(lambda self: self.topic.asked)
    @rule(data=st.data(), how=st.sampled_from(["carry out", "answer", "answer", "fail"]))
    def kafka(self, data: st.DataObject, how: str) -> None:
        """Something that was asked is carried out, answered, or fails (perhaps after it was carried out)."""
        number = data.draw(st.integers(0, len(self.topic.asked) - 1))
        {"carry out": self.carry_out, "answer": self.answer, "fail": self.fail}[how](number)

    def carry_out(self, number: int) -> None:
        if not self.topic.asked[number].carried_out:
            self.topic.carry_out(self.topic.asked[number])
            self.run()

    def answer(self, number: int) -> None:
        asked = self.topic.asked[number]
        self.carry_out(number)
        if asked in self.topic.asked:
            self.topic.end(asked)
            self.run()

    def fail(self, number: int) -> None:
        self.strange = self.strange or any(one.state is DROPPED for one in self.leaving.values())
        self.topic.end(self.topic.asked[number], LogUnavailable("late"))
        self.run()

    @invariant()
    def every_note_is_true(self) -> None:
        for notes in (self.noted, self.outstanding.notes()):
            for partition, noted in notes.items():
                found = parse_sum(noted)
                assert found is None or found == self.topic.true(partition, found.end)


# The same runs each time: make it search elsewhere, and longer, by other numbers here.
OutstandingMachine.TestCase.settings = settings(
    max_examples=1_000,
    stateful_step_count=40,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
TestOutstanding = OutstandingMachine.TestCase


class OverlapsUnseen(WatchedAppender):
    def _end(self, partition, records, begun, *, written):
        before = set(self._in_doubt[partition])
        super()._end(partition, records, begun, written=written)
        for key, _ in records if written else ():
            if key not in before:
                self._in_doubt[partition].pop(key, None)


class TrustsFailedAppends(WatchedAppender):
    def _end(self, partition, records, begun, *, written):
        super()._end(partition, records, begun, written=True)


class TrustsFormerOwners(IndexSync):
    async def _knows(self, partition, end):
        return True


class ForgetsWhatIsDropped(Outstanding):
    """As if the listener were there no more, and the record neither."""

    def _enter(self, entry):
        if not entry.found:
            super()._enter(entry)


class NotesBeforeTheTombstones(Outstanding):
    async def note(self):
        await self._sync.note(self._owned)


class LosesWhatWasStored(WatchedAppender):
    """A caller that was cancelled does not hear of it."""

    async def append(self, outcomes, stored=None):
        await super().append(outcomes)
        for partition in range(2) if stored else ():
            stored(partition)


def overlap(machine: OutstandingMachine) -> None:
    machine.set_aside("m-0")
    machine.answer(0)
    machine.set_aside("m-0")
    machine.bury()
    machine.carry_out(0)
    machine.answer(1)
    machine.answer(0)


def lost_answer(machine: OutstandingMachine) -> None:
    machine.set_aside("m-0")
    machine.carry_out(0)
    machine.the_listener_goes()
    machine.fail(0)


def late_append(machine: OutstandingMachine) -> None:
    machine.set_aside("m-0")
    machine.hand_over()
    machine.carry_out(0)


def dropped(machine: OutstandingMachine) -> None:
    machine.set_aside("m-0")
    machine.the_listener_goes()
    machine.answer(0)


def cancelled_loop(machine: OutstandingMachine) -> None:
    for message_id in ("m-0", "m-2"):
        machine.set_aside(message_id)
        machine.answer(0)
    machine.bury()
    machine.answer(0)
    machine.pause()


def cancelled_meanwhile(machine: OutstandingMachine) -> None:
    for message_id in ("m-0", "m-2"):
        machine.set_aside(message_id)
        machine.answer(0)
    machine.cancel("m-2")
    machine.checkpoint()
    machine.cancel("m-0")
    machine.answer(0)


def cancelled_while_it_notes(machine: OutstandingMachine) -> None:
    machine.set_aside("m-0")
    machine.answer(0)
    machine.bury()
    machine.hand_over()
    machine.checkpoint()
    machine.cancel("m-0")


def test_a_delivery_that_is_cancelled_while_a_former_owner_buries_it_is_not_noted():
    play(cancelled_while_it_notes)


@pytest.mark.parametrize(
    ("planted", "steps"),
    [
        (OverlapsUnseen, overlap),
        (TrustsFailedAppends, lost_answer),
        (TrustsFormerOwners, late_append),
        (ForgetsWhatIsDropped, dropped),
        (LosesWhatWasStored, cancelled_loop),
        (NotesBeforeTheTombstones, cancelled_meanwhile),
    ],
)
def test_a_planted_bug_makes_a_note_false(planted: type, steps: Callable[[OutstandingMachine], None]):
    """With these steps. Without the bug, they make none false."""

    play(steps)
    with patch.object(schedule, planted.__base__.__name__, planted), pytest.raises(AssertionError):
        play(steps)


def play(steps: Callable[[OutstandingMachine], None]) -> None:
    machine = OutstandingMachine()
    try:
        steps(machine)
        machine.checkpoint()
        for _ in range(len(machine.topic.asked)):
            machine.answer(0)
        machine.every_note_is_true()
    finally:
        machine.pause(all_of_it=True)
        machine.loop.close()
