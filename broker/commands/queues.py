"""Commands on queues.

For: creating, renaming and deleting queues, and their alerts. Not for: their listeners (listeners.py), what an event
changes (broker/core/directory.py), who may call a command (api/auth.py).
"""

from __future__ import annotations

from typing import Final
from uuid import uuid4

from broker.commands.context import (
    Context,
    Versions,
    check_name,
    check_version,
    event_fields,
    expected_version,
    find_queue,
    queue_now,
    record,
)
from broker.core import events as ev
from broker.core.alerts import ALERTS_QUEUE
from broker.core.entities import Queue
from broker.core.events import AlertThresholds, ControlEvent
from broker.errors import (
    NameTaken,
    QuotaReached,
    Refused,
)
from broker.ports import ControlLog, DirectoryView

QUEUES_MAX: Final = 10_000  # queues of one organization


class QueueCommands:
    """The commands on queues. They write their events to the topic `control`. An organization may have `queues_max`
    queues.
    """

    def __init__(self, control: ControlLog, view: DirectoryView, *, queues_max: int = QUEUES_MAX) -> None:
        self._control = control
        self._view = view
        self._queues_max = queues_max

    async def create_queue(self, context: Context, *, name: str) -> Queue:
        """Create a queue, and return it. Raises Refused if the name is not valid, NameTaken if another queue has this
        name, and QuotaReached if the organization has too many queues.

        If the name is `everput.alerts`, return the organization's queue for alerts, even if it exists already.
        """
        check_name(name)
        if name == ALERTS_QUEUE:
            return await alerts_queue(self._control, self._view, context)
        await self._check_queue_name_free(context.organization_id, name, None)
        if self._view.state.queue_count(context.organization_id) >= self._queues_max:
            raise QuotaReached(f"An organization may have at most {self._queues_max} queues. Delete one first.")
        event = ev.QueueCreated(**event_fields(context), queue_id=str(uuid4()), name=name)
        if not await self._record(event):
            raise NameTaken(f"A queue named {name!r} exists already. Choose another name.", pointer="/name")
        return queue_now(self._view, context, event.queue_id)

    async def rename_queue(
        self, context: Context, queue_id: str, *, name: str, if_match: Versions | None = None
    ) -> Queue:
        """Rename a queue, and return it.

        Raises Refused if the new name is not valid, or if the old or new name is `everput.alerts`. Raises NameTaken if
        another queue has the new name, NotFound if the queue does not exist, and Changed if `if_match` is given without
        the queue's version.
        """
        check_name(name)
        await self._view.caught_up()
        queue = await find_queue(self._view, context.organization_id, queue_id)
        if_version = expected_version(queue, if_match)
        if queue.name == name:
            return queue
        _refuse_reserved(queue, name)
        await self._check_queue_name_free(context.organization_id, name, queue_id)
        lost = not await self._record(
            ev.QueueRenamed(**event_fields(context), queue_id=queue_id, name=name, if_version=if_version)
        )
        queue = queue_now(self._view, context, queue_id)
        if lost:
            check_version(queue, if_version)
            raise NameTaken(f"A queue named {name!r} exists already. Choose another name.", pointer="/name")
        return queue

    async def set_alerts(
        self, context: Context, queue_id: str, alerts: AlertThresholds, *, if_match: Versions | None = None
    ) -> Queue:
        """Set the thresholds for alerts about the queue's listeners. Return the queue.

        Raises NotFound if the queue does not exist, and Changed if `if_match` is given without the queue's version.
        """
        await self._view.caught_up()
        queue = await find_queue(self._view, context.organization_id, queue_id)
        if_version = expected_version(queue, if_match)
        if (queue.alerts or AlertThresholds()) == alerts:
            return queue
        event = ev.QueueAlertsSet(**event_fields(context), queue_id=queue_id, alerts=alerts, if_version=if_version)
        if not await self._record(event):
            check_version(queue_now(self._view, context, queue_id), if_version)
        return queue_now(self._view, context, queue_id)

    async def delete_queue(self, context: Context, queue_id: str, *, if_match: Versions | None = None) -> None:
        """Delete a queue and its listeners.

        Raises Refused for the queue for alerts, NotFound if the queue does not exist, and Changed if `if_match` is
        given without the queue's version.
        """
        if if_match is not None:
            await self._view.caught_up()
        queue = await find_queue(self._view, context.organization_id, queue_id)
        _refuse_reserved(queue, queue.name)
        if_version = expected_version(queue, if_match)
        if not await self._record(ev.QueueDeleted(**event_fields(context), queue_id=queue_id, if_version=if_version)):
            check_version(queue_now(self._view, context, queue_id), if_version)

    async def _record(self, event: ControlEvent) -> bool:
        return await record(self._control, self._view, event)

    async def _check_queue_name_free(self, organization_id: str, name: str, own_id: str | None) -> None:
        """Raise NameTaken if another queue has this name.

        Before the error is raised, the topic `control` is read to its end, because another process may have just freed
        the name.
        """
        for checked in (False, True):
            holder = self._view.state.queues_by_name.get((organization_id, name))
            if holder is None or holder.id == own_id:
                return
            if not checked:
                await self._view.caught_up()
        raise NameTaken(f"A queue named {name!r} exists already. Choose another name.", pointer="/name")


def _refuse_reserved(queue: Queue, name: str) -> None:
    """Raise Refused if `queue` is the organization's queue for alerts, or if `name` is the name of that queue."""
    if ALERTS_QUEUE in (queue.name, name):
        raise Refused(
            f"The queue {ALERTS_QUEUE} is for Everput's alerts. It can't be deleted or renamed, and no other queue "
            "can get its name.",
            pointer="/name",
        )


async def alerts_queue(control: ControlLog, view: DirectoryView, context: Context) -> Queue:
    """Return the organization's queue for alerts, and create it if there is none.

    Raises InDoubt if it is unknown whether the queue was created. Any other Unavailable error means that it was not
    created.
    """
    queue = view.state.queues_by_name.get((context.organization_id, ALERTS_QUEUE))
    if queue is None:
        event = ev.QueueCreated(**event_fields(context), queue_id=str(uuid4()), name=ALERTS_QUEUE)
        # If another process has created the queue for alerts first, the event of this process has no effect.
        await record(control, view, event)
        queue = view.state.queues_by_name[context.organization_id, ALERTS_QUEUE]
    return queue
