"""What is left of ended listeners is taken away, and never anything of a listener that lives."""

from __future__ import annotations

import asyncio

import pytest
from memory import MemoryControl

from broker.core import events as ev
from broker.delivery.housekeeping.ended_listeners import EndedListeners
from broker.delivery.tuning import Tuning
from broker.errors import LogUnavailable

BY = {"at_ms": 1, "organization_id": "o"}


class Kafka:
    """Cursors and records of these listeners; deleting those of `busy` is refused."""

    def __init__(self, *listeners: str) -> None:
        self.cursors = set(listeners)
        self.records = set(listeners)
        self.busy: set[str] = set()
        self.quiet = asyncio.Lock()

    async def listeners(self) -> set[str]:
        await asyncio.sleep(0)
        return set(self.cursors)

    async def delete(self, listener_id: str) -> None:
        assert self.quiet.locked()
        if listener_id in self.busy:
            raise LogUnavailable("Kafka refused: NonEmptyGroup")
        self.cursors.discard(listener_id)


class Records:
    def __init__(self, kafka: Kafka) -> None:
        self.kafka = kafka

    def listeners(self) -> set[str]:
        return set(self.kafka.records)

    async def bury(self, listeners: set[str]) -> None:
        self.kafka.records -= listeners


class Behind(MemoryControl):
    """Folds what was appended only when it is asked to catch up."""

    def __init__(self) -> None:
        super().__init__()
        self.unfolded: list[ev.Event] = []

    async def caught_up(self, *, timeout_s: float = 2.0) -> None:
        for event in self.unfolded:
            self.state.apply(event)
        self.unfolded.clear()


def created(listener_id: str) -> ev.Event:
    return ev.ListenerCreated(
        **BY,
        listener_id=listener_id,
        queue_id="q",
        name=listener_id,
        notify_url="http://n",
        liveness_url="http://l",
        sealed_secret="",
        start_offsets=(0,),
    )


@pytest.fixture
def view() -> Behind:
    view = Behind()
    view.unfolded += [ev.OrganizationCreated(**BY, name="o"), ev.QueueCreated(**BY, queue_id="q", name="q")]
    return view


def endings(kafka: Kafka, view: Behind, *, partitions: set[int], dispatchers: set[str]) -> EndedListeners:
    return EndedListeners(kafka, view, kafka, Records(kafka), partitions, dispatchers)


async def test_cursors_and_records_of_ended_listeners_go_and_those_of_the_others_stay(view: Behind):
    kafka = Kafka("ended", "lives")
    view.unfolded.append(created("lives"))
    assert await endings(kafka, view, partitions={0, 1}, dispatchers={"lives"}).clear()
    assert kafka.cursors == kafka.records == {"lives"}
    assert not await endings(kafka, view, partitions={0, 1}, dispatchers={"lives"}).clear()


async def test_only_the_owner_of_the_first_partition_deletes_cursors(view: Behind):
    kafka = Kafka("ended")
    assert not await endings(kafka, view, partitions={1}, dispatchers=set()).clear()
    assert (kafka.cursors, kafka.records) == ({"ended"}, set())


async def test_a_listener_made_while_it_looks_keeps_all_it_has(view: Behind):
    kafka = Kafka("new")
    view.unfolded.append(created("new"))  # known once it has caught up, which it must do after it has listed
    assert not await endings(kafka, view, partitions={0}, dispatchers=set()).clear()
    assert kafka.cursors == kafka.records == {"new"}


async def test_a_directory_that_lacks_what_a_newer_program_wrote_deletes_nothing(view: Behind):
    kafka = Kafka("written by a newer program")
    view.complete = False
    assert not await endings(kafka, view, partitions={0}, dispatchers=set()).clear()
    assert kafka.cursors == kafka.records == {"written by a newer program"}


async def test_cursors_wait_until_the_dispatcher_is_removed_and_for_nobody_else(view: Behind):
    kafka = Kafka("busy", "here", "gone")
    kafka.busy.add("busy")
    dispatchers = {"here"}
    clearing = endings(kafka, view, partitions={0}, dispatchers=dispatchers)
    assert await clearing.clear()
    assert kafka.cursors == {"busy", "here"}
    dispatchers.clear()
    kafka.busy.clear()
    assert await clearing.clear()
    assert not kafka.cursors


async def test_it_looks_again_until_there_is_nothing_left_and_then_rests(view: Behind):
    kafka, looks = Kafka("ended"), []

    async def away_at_first() -> set[str]:
        looks.append(set(kafka.cursors))
        if len(looks) == 1:
            raise LogUnavailable("away")
        return set(kafka.cursors)

    kafka.listeners = away_at_first
    looking = EndedListeners(kafka, view, kafka, Records(Kafka()), {0}, set(), Tuning(ended_again_s=0))
    looking.look()
    running = asyncio.create_task(looking.run())
    for _ in range(100):
        await asyncio.sleep(0)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert looks == [{"ended"}, {"ended"}, set()]
