"""The agent of the delivery streams beside the agent of the directory, on real Kafka: one is faster, or the other.

For: that both read every event, and that it makes no difference which of them comes to it first."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from typing import Any

import pytest

from broker.core import events as ev
from broker.core.entities import Listener, Queue
from broker.delivery.worker import Worker
from broker.kafka.topics import Topics
from broker.settings import KafkaSettings
from projections.agents import Agent, run_delivery_streams
from projections.app import Projections
from tests.kafka.rig import Rig, running
from tests.listeners import until


@pytest.fixture
async def rig(kafka_settings: KafkaSettings, ready_topics: Topics):
    async with running(kafka_settings) as made:
        yield made


class Gated:
    """A Faust stream, of which the agent gets an event when the gate is open. came: events that have come so far."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.came = 0

    def before(self, agent: Agent) -> Agent:
        async def gated(stream: Any) -> None:
            self.stream = stream.noack()
            await agent(self)

        return gated

    def noack(self) -> Gated:
        return self

    async def events(self) -> AsyncIterator[Any]:
        async for event in self.stream.events():
            self.came += 1
            await self.gate.wait()
            yield event


async def work(rig: Rig, which: str) -> tuple[Worker, Projections, Gated]:
    """A worker whose agent of this name is held up; the worker is not started, its projections are starting."""
    projections, gated = Projections(rig.settings.kafka, rig.log.control), Gated()
    worker = rig.worker(projections)
    projections.add_agent(which, gated.before(projections._agents[which]))
    rig.workers[worker] = projections
    return worker, projections, gated


async def rename_url(rig: Rig, listener: Listener, path: str) -> None:
    await rig.log.control.append(
        ev.ListenerUpdated(
            at_ms=1,
            organization_id=rig.organization_id,
            listener_id=listener.id,
            name=listener.name,
            notify_url=rig.listeners.url(path),
            liveness_url=rig.listeners.url(path),
            settings=listener.settings,
        )
    )


async def got(rig: Rig, queue: Queue, paths: Iterable[str]) -> None:
    """Of the next messages every one of these has each, and nobody else has any."""
    rig.listeners.got.clear()
    ids = Counter(await rig.put(queue, *(f"m{number}" for number in range(12))))
    await until(lambda: all(len(rig.listeners.taken(path)) >= 12 for path in paths), what=f"{paths} have all")
    assert {one.path for one in rig.listeners.got} == set(paths)
    assert all(rig.listeners.ids(path) == ids for path in paths)


async def test_listeners_follow_though_the_agent_of_the_streams_is_far_behind_the_directory(rig: Rig):
    queue = await rig.queue()
    paused, deleted, moved = [await rig.listen(queue, name) for name in ("paused", "deleted", "moved")]
    worker, projections, streams = await work(rig, "delivery_streams")
    streams.gate.set()
    await projections.start()
    await worker.start()
    await until(lambda: streams.came == projections.position, what="the agent has read all")
    streams.gate.clear()
    context, commands = rig.context, rig.commands
    await rig.listen(queue, "created")
    brief = await rig.listen(queue, "brief")
    await commands.pause_listener(context, queue.id, paused.id, reason="test")
    await commands.delete_listener(context, queue.id, deleted.id)
    await commands.delete_listener(context, queue.id, brief.id)
    await rename_url(rig, moved, "there")
    await projections.directory.caught_up()
    assert worker.dispatchers.keys() == {paused.id, deleted.id, moved.id}, "the directory alone changes no stream"
    streams.gate.set()
    await until(lambda: streams.came == projections.position, what="the agent has read all")
    await got(rig, queue, ("created", "there"))
    await commands.resume_listener(context, queue.id, paused.id)
    await until(lambda: len(rig.listeners.taken("paused")) == 12, what="the one that was paused has all, too")


async def test_an_agent_of_the_streams_that_begins_at_offset_0_after_the_take_over_changes_nothing(rig: Rig):
    queue = await rig.queue()
    listeners = {name: await rig.listen(queue, name) for name in ("paused", "deleted", "moved", "stays")}
    context, commands = rig.context, rig.commands
    await commands.pause_listener(context, queue.id, listeners["paused"].id, reason="test")
    await rename_url(rig, listeners["moved"], "there")
    await commands.delete_listener(context, queue.id, listeners["deleted"].id)
    worker, projections, streams = await work(rig, "delivery_streams")
    await projections.start()
    await worker.start()
    before = dict(worker.dispatchers)
    await got(rig, queue, ("there", "stays"))
    streams.gate.set()
    await until(lambda: streams.came == projections.position, what="the agent has read all")
    assert worker.dispatchers == before
    await got(rig, queue, ("there", "stays"))
    await rig.listen(queue, "created")
    await until(lambda: len(worker.dispatchers) == len(before) + 1, what="the new one")
    await got(rig, queue, ("there", "stays", "created"))


async def test_the_agent_of_the_streams_waits_for_the_directory_to_fold_the_same_event(rig: Rig):
    queue = await rig.queue()
    deleted, paused = await rig.listen(queue, "deleted"), await rig.listen(queue, "paused")
    worker, projections, directory = await work(rig, "control")
    directory.gate.set()
    await projections.start()
    await worker.start()
    directory.gate.clear()
    position = projections.position
    new = await rig.listen(queue, "created")
    await rig.commands.delete_listener(rig.context, queue.id, deleted.id)
    await rig.commands.pause_listener(rig.context, queue.id, paused.id, reason="test")
    await until(lambda: directory.came > position, what="Faust has brought the next event")
    assert worker.dispatchers.keys() == {deleted.id, paused.id}
    assert projections.position == position
    directory.gate.set()
    await until(lambda: worker.dispatchers.keys() == {new.id, paused.id}, what="created and deleted")
    await got(rig, queue, ("created",))


async def test_an_error_of_the_delivery_streams_ends_the_process(rig: Rig):
    class Broken:
        def concerned(self, _event: ev.Event) -> list[str]:
            raise ZeroDivisionError

    projections = Projections(rig.settings.kafka, rig.log.control)
    projections.add_agent("streams", run_delivery_streams(projections.directory, Broken(), projections.failed))
    try:
        await projections.start()
        assert isinstance(await asyncio.wait_for(projections.crashed(), 60), ZeroDivisionError)
    finally:
        await projections.stop()
