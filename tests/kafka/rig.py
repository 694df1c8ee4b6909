"""The delivery side on a real Kafka, in the test's own process: log, projections, commands, workers.

For: tests that look inside while real messages flow. Not for: processes that die (tests/scenarios)."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from datetime import datetime
from ipaddress import ip_network
from typing import Any

from msgspec import UNSET, UnsetType

from broker.clock import now_ms
from broker.commands.changes import delete_message, update_message
from broker.commands.context import Context
from broker.commands.listeners import ListenerCommands, ListenerInput
from broker.commands.organizations import create_organization
from broker.commands.puts import put_message
from broker.commands.queues import QueueCommands
from broker.core.changes import CLOCK_SKEW_MS
from broker.core.entities import Listener, Queue
from broker.core.ids import parse_message_id
from broker.delivery.checkpoint.metrics import state_of
from broker.delivery.ports import Ports
from broker.delivery.tuning import Tuning
from broker.delivery.worker import Worker
from broker.kafka.changes_tail import ChangesTail
from broker.kafka.cursors import KafkaCursors
from broker.kafka.deliveries import KafkaDeliveries
from broker.kafka.log import KafkaLog
from broker.kafka.tail import Tail
from broker.ports import DeliveryState
from broker.sealing import Sealer, new_sealing_key
from broker.settings import KafkaSettings, Settings
from broker.volume import StoredBytes
from projections.agents import run_delivery_streams
from projections.app import Projections
from tests.listeners import Listeners, until
from tests.patience import PATIENT


class StandIn:
    """A port that does as the real one does, but for some methods. These are attributes, and may be set again."""

    def __init__(self, real: Any, **instead: Any) -> None:
        self.real = real
        vars(self).update(instead)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)


def _as_they_are(ports: Ports) -> Ports:
    return ports


@dataclass
class Rig:
    """One organization's API side, and any number of workers.

    tuning: of the workers that are made from now on.
    reads_max: of the looks at deliveries (KafkaDeliveries), by parameter.
    ports: what the workers that are made from now on are given instead of their ports of Kafka.
    """

    settings: Settings
    log: KafkaLog
    projections: Projections
    commands: ListenerCommands
    queue_commands: QueueCommands
    organization_id: str
    listeners: Listeners
    stored: StoredBytes
    workers: dict[Worker, Projections] = field(default_factory=dict)
    tuning: Tuning = PATIENT
    reads_max: dict[str, int] = field(default_factory=dict)
    ports: Callable[[Ports], Ports] = _as_they_are

    @property
    def context(self) -> Context:
        return Context(organization_id=self.organization_id, actor="key:test", request_id="r", at_ms=now_ms())

    def tune(self, **numbers: Any) -> None:
        """Give the workers that are made from now on these numbers."""
        self.tuning = replace(self.tuning, **numbers)

    async def queue(self, name: str = "orders") -> Queue:
        return await self.queue_commands.create_queue(self.context, name=name)

    async def listen(
        self, queue: Queue, path: str, *, url: str | None = None, begin_at_ms: int | None = None, **settings: Any
    ) -> Listener:
        """url: where its messages go, when not to the rig's listeners, who are probed all the same."""
        listener_input = ListenerInput(
            name=path,
            notify_url=url or self.listeners.url(path),
            liveness_url=self.listeners.url(path),
            begin_at_ms=begin_at_ms,
            settings=settings,
        )
        return (await self.commands.create_listener(self.context, queue.id, listener_input))[0]

    async def put(
        self,
        queue: Queue,
        *data: str,
        key: str | None = None,
        deliver_at: datetime | None = None,
        traceparent: str | UnsetType = UNSET,
    ) -> list[str]:
        """Their ids, once each is acknowledged."""
        return [
            (
                await put_message(
                    self.log.messages,
                    queue,
                    data=one,
                    name=None,
                    ordering_key=key,
                    actor="key:test",
                    request_id="r",
                    deliver_at=deliver_at,
                    traceparent=traceparent,
                )
            ).id
            for one in data
        ]

    async def update(self, queue: Queue, message_id: str, data: str) -> dict[str, str]:
        """By listener, what its delivery was by then."""
        return (await update_message(self.log, self.context, queue, message_id, data=data))[1]

    async def delete(self, queue: Queue, message_id: str) -> dict[str, str]:
        return (await delete_message(self.log, self.context, queue, message_id))[1]

    def with_cursors(self, **instead: Any) -> StandIn:
        """Give the workers that are made from now on cursors that do this instead (StandIn)."""
        cursors = StandIn(KafkaCursors(self.settings.kafka, self.log.requests), **instead)
        self.ports = lambda ports: replace(ports, cursors=cursors)
        return cursors

    def worker(self, projections: Projections) -> Worker:
        """A worker that is not started, and its agent. projections: not started, either."""
        kafka, requests = self.settings.kafka, self.log.requests
        ports = Ports(
            log=self.log,
            membership=Tail(kafka, requests),
            cursors=KafkaCursors(kafka, requests),
            changes=ChangesTail(kafka, self.log.requests),
        )
        ports = self.ports(ports)
        view, sealer = projections.directory, Sealer(self.settings.sealing_key)
        worker = Worker(self.settings, ports, view, sealer, self.stored.count, tuning=self.tuning)
        projections.add_agent("delivery_streams", run_delivery_streams(view, worker.roster, projections.failed))
        return worker

    async def work(self) -> Worker:
        """Start one more worker, with projections of its own."""
        projections = Projections(self.settings.kafka, self.log.control)
        worker = self.worker(projections)
        await projections.start()
        await worker.start()
        self.workers[worker] = projections
        return worker

    async def end(self, worker: Worker) -> None:
        projections = self.workers.pop(worker)
        try:
            await worker.stop()
        finally:
            await projections.stop()

    async def noted(self, worker: Worker) -> None:
        """Wait until the worker has heard every answer to what is under way, and written down what came of it."""
        dispatchers = worker.dispatchers.values()
        await until(lambda: not any(dispatcher.busy for dispatcher in dispatchers), what="every attempt has ended")
        await worker.assignment.checkpoints.checkpoint()

    async def known_down(self, listener: Listener) -> None:
        """Wait until every worker knows it, and makes no attempt any more."""

        def known() -> bool:
            dispatchers = [worker.dispatchers[listener.id] for worker in self.workers]
            return all(state_of(dispatcher) == "down" and not dispatcher.busy for dispatcher in dispatchers)

        await until(known, what="the listener is known to be down")

    async def forgotten(self, worker: Worker) -> None:
        """Wait until the worker needs no change of a message any more."""

        async def none_is_known() -> bool:
            await worker.assignment.checkpoints.checkpoint()
            for partition in range(self.settings.kafka.partitions):
                worker.assignment.changes.forget_settled(partition)
            return not worker.assignment.changes.known

        await until(none_is_known, what="nobody needs the changes any more")

    @property
    def where(self) -> KafkaDeliveries:
        return KafkaDeliveries(self.settings.kafka, self.log.requests, self.log.read_slots, **self.reads_max)

    async def state(self, message_id: str, listener: Listener, *, deliver_at_ms: int = 0) -> DeliveryState:
        """Of the message's delivery, as GET of the message says."""
        at_ms, partition = parse_message_id(message_id) or (0, 0)
        found = await self.log.messages.find(
            partition=partition, at_ms=at_ms, message_id=message_id, organization_id=self.organization_id
        )
        assert found is not None
        states = await self.where.states(message_id, partition, found[0], [listener], at_ms, deliver_at_ms)
        return states[listener.id]


@contextlib.asynccontextmanager
async def running(kafka: KafkaSettings, *, clock_skew_ms: int = CLOCK_SKEW_MS) -> AsyncIterator[Rig]:
    settings = Settings(kafka=kafka, sealing_key=new_sealing_key(), allow_networks=(ip_network("127.0.0.0/8"),))
    log = KafkaLog(kafka, clock_skew_ms=clock_skew_ms)
    await log.start()
    projections = Projections(kafka, log.control)
    await projections.start()
    view = projections.directory
    commands = ListenerCommands(log, view, Sealer(settings.sealing_key), allow_networks=settings.allow_networks)
    organization = await create_organization(log.control, view, name="test")
    async with Listeners() as listeners:
        stored = StoredBytes(log.control, view, bytes_max=None)
        rig = Rig(
            settings, log, projections, commands, QueueCommands(log.control, view), organization.id, listeners, stored
        )
        rig.tune(clock_skew_ms=clock_skew_ms)
        try:
            yield rig
        finally:
            for worker in list(rig.workers):
                worker.tuning = replace(worker.tuning, drain_s=0.0)  # nobody looks at what is under way any more
                await rig.end(worker)
            await projections.stop()
            await log.stop()
