"""An installation with a log in memory, whose only worker checks alerts when a test says so."""

from __future__ import annotations

import orjson
from memory import MemoryCursors, MemoryLog

from broker.alerts import AlertWatch, Sources
from broker.clock import now_ms
from broker.commands.context import Context
from broker.commands.organizations import create_organization
from broker.commands.queues import QueueCommands
from broker.core import events as ev
from broker.core.alerts import ALERTS_QUEUE
from broker.core.codec import decode_message
from broker.core.cursor import Cursor
from broker.core.health import Recent

DAMAGED = {"topic": "messages", "partition": 0, "first_offset": 1234, "last_offset": 1240}


class Installation:
    """An organization with a queue and a listener, and the watch of the only worker."""

    def __init__(self) -> None:
        self.log = MemoryLog()
        self.view = self.log.control
        self.cursors = MemoryCursors()
        self.at_ms = now_ms()
        self.free_mib: int | None = 4_000

    @classmethod
    async def make(cls) -> Installation:
        made = cls()
        organization = await create_organization(made.log.control, made.view, name="acme")
        made.organization_id = organization.id
        commands = QueueCommands(made.log.control, made.view)
        made.queue = await commands.create_queue(made.context, name="orders")
        made.listener_id = await made.listen(made.queue.id)
        made.watch = made.new_watch()
        return made

    @property
    def context(self) -> Context:
        return Context(organization_id=self.organization_id, actor="key:k", request_id="r", at_ms=self.at_ms)

    async def registered(self, name: str, *, asks: bool = True) -> str:
        """The id of an organization that an account has created. asks: it has a queue for alerts."""
        made = await create_organization(self.log.control, self.view, name=name, actor="account:a")
        if asks:
            await self.ask_for_alerts(made.id)
        return made.id

    async def ask_for_alerts(self, organization_id: str) -> None:
        context = Context(organization_id=organization_id, actor="account:a", request_id="r", at_ms=self.at_ms)
        await QueueCommands(self.log.control, self.view).create_queue(context, name=ALERTS_QUEUE)

    async def damage(self) -> None:
        await self.log.control.append(ev.LogDamaged(at_ms=1, organization_id="", actor="worker", **DAMAGED))

    async def mend(self) -> None:
        mended = ev.LogMended(at_ms=1, organization_id="", actor="worker", given_up=False, **DAMAGED)
        await self.log.control.append(mended)

    async def listen(self, queue_id: str, listener_id: str = "billing-id", name: str = "billing") -> str:
        await self.log.control.append(
            ev.ListenerCreated(
                at_ms=1,
                organization_id=self.organization_id,
                listener_id=listener_id,
                queue_id=queue_id,
                name=name,
                notify_url="https://l.example",
                liveness_url="https://l.example",
                sealed_secret="",
                start_offsets=(0, 0),
            )
        )
        return listener_id

    def new_watch(self) -> AlertWatch:
        async def assure() -> None:
            """Another worker never owns them."""

        sources = Sources(
            cursors=self.cursors,
            owns=lambda _partition: True,
            assure=assure,
            lag=lambda _listener_id: 0,
            disk=None if self.free_mib is None else lambda: ((self.free_mib or 0) << 20, 512 << 20),
        )
        return AlertWatch(self.log, self.view, sources, 2, "https://everput.example")

    def state(self, state: str, listener_id: str | None = None, *, parked: int = 0) -> None:
        recent = Recent()
        recent.add(self.at_ms, accepted=state == "live", refused=state == "failing")
        counts = recent.text(parked, 0, alive=False)
        state, error = ("live", None) if state == "live" else ("down" if state == "down" else "live", "refused")
        cursor = Cursor(top=9, pending=1, state=state, error=error, counts=counts)
        self.cursors.committed[listener_id or self.listener_id] = {1: cursor}

    async def look(self, after_ms: int = 0) -> None:
        self.at_ms += after_ms
        await self.watch.look(self.at_ms)

    def told(self, organization_id: str | None = None) -> list[dict]:
        """The alerts of an organization, in the order of their ids."""
        queue = self.view.state.queues_by_name.get((organization_id or self.organization_id, ALERTS_QUEUE))
        values = [(key, value) for partition in self.log.messages.records for key, value, _ in partition]
        puts = [decode_message(value) for _, value in sorted(values)]
        return [orjson.loads(put.data) for put in puts if queue is not None and put.queue_id == queue.id]
