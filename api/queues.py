"""The queues resource: its requests and answers. Not for: what a command does (broker/commands/queues.py)."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
from msgspec import UNSET

from api.calls import Call
from api.etags import Item
from api.health import LISTENERS_OF_PAGE_MAX, queue_backlog_fields, queue_health_fields
from api.pages import flag_parameter, page
from api.past import Views
from api.shapes import AlertsBody, QueueBody, QueueChangeBody
from broker.commands.context import find_queue
from broker.commands.queues import QueueCommands
from broker.core.entities import Queue
from broker.core.events import AlertThresholds
from broker.ports import DirectoryView, ListenerStatus


class Queues:
    """Handlers for /v1/queues and /v1/queues/{queue_id}."""

    def __init__(self, commands: QueueCommands, view: DirectoryView, status: ListenerStatus, views: Views) -> None:
        self._commands = commands
        self._view = view
        self._status = status
        self._views = views

    async def create(self, call: Call) -> Any:
        body = await call.json(QueueBody)
        queue = await self._commands.create_queue(call.context(), name=body.name)
        if isinstance(body.alerts, AlertsBody):
            queue = await self._commands.set_alerts(call.context(), queue.id, thresholds_of(body.alerts))
        return _answer(call, queue)

    async def list(self, call: Call) -> Any:
        """List the queues that the requester may see. The parameter `name` selects the queue with exactly this name.
        `health=true` adds the health of each queue's listeners, and `backlog=true` adds the listeners' backlog. An
        answer about a past time (`at`) has neither health nor backlog.
        """
        query = call.query()
        wanted = {name for name in ("health", "backlog") if flag_parameter(query, name) and "at" not in query}
        state, organization_id = (await self._views.of(call)).state, call.organization_id
        if "name" in query:
            named = state.queues_by_name.get((organization_id, query["name"]))
            found = [] if named is None else [named]
        else:
            found = list(state.queues_of(organization_id))
        api_key = call.api_key
        own = (queue for queue in found if api_key is None or api_key.is_for(queue.id))
        shown, page_token = page(own, query, size=_listeners_of if wanted else None, size_max=LISTENERS_OF_PAGE_MAX)
        links = call.links("/v1/queues", query, page_token)
        answer = [queue_fields(queue) for queue in shown]
        reads = []
        if "health" in wanted:
            reads.append(queue_health_fields(self._view, self._status, shown))
        if "backlog" in wanted:
            reads.append(queue_backlog_fields(self._status, shown))
        for read in await asyncio.gather(*reads):
            answer = [fields | more for fields, more in zip(answer, read, strict=True)]
        return {"queues": answer, "_links": links}

    async def get(self, call: Call) -> Any:
        view = await self._views.of(call)
        return _answer(call, await find_queue(view, call.organization_id, call.path("queue_id")))

    async def change(self, call: Call) -> Any:
        body = await call.json(QueueChangeBody)
        queue = await find_queue(self._view, call.organization_id, call.path("queue_id"))
        context, if_match = call.context(), call.if_match()
        if isinstance(body.name, str):
            queue = await self._commands.rename_queue(context, queue.id, name=body.name, if_match=if_match)
            if_match = None
        if isinstance(body.alerts, AlertsBody):
            alerts = thresholds_of(body.alerts)
            queue = await self._commands.set_alerts(context, queue.id, alerts, if_match=if_match)
        return _answer(call, queue)

    async def delete(self, call: Call) -> Any:
        """Delete the queue. The answer shows the queue as it was before."""
        queue = await find_queue(self._view, call.organization_id, call.path("queue_id"))
        await self._commands.delete_queue(call.context(), queue.id, if_match=call.if_match())
        return _answer(call, queue).fields


def queue_fields(queue: Queue) -> dict[str, Any]:
    """Return a queue as JSON, with the ids and names of its listeners and the thresholds that are set."""
    listeners = [{"id": listener.id, "name": listener.name} for listener in queue.listeners.values()]
    fields = {"id": queue.id, "name": queue.name, "listeners": listeners}
    alerts = threshold_fields(queue.alerts)
    return {**fields, "alerts": alerts} if alerts else fields


def _listeners_of(queue: Queue) -> int:
    return len(queue.listeners)


def thresholds_of(body: AlertsBody) -> AlertThresholds:
    """Convert the alert thresholds in a request's body to the type that events of the log contain."""
    return AlertThresholds(**msgspec.structs.asdict(body))


def threshold_fields(alerts: AlertThresholds | msgspec.UnsetType | None) -> dict[str, int]:
    """Return the alert thresholds that are set, as JSON fields."""
    if alerts is None or alerts is UNSET or not isinstance(alerts, AlertThresholds):
        return {}
    return {name: value for name, value in msgspec.structs.asdict(alerts).items() if value is not None}


def _answer(call: Call, queue: Queue) -> Item:
    links = {"self": {"href": call.href(f"/v1/queues/{queue.id}")}}
    return Item({"queue": queue_fields(queue), "_links": links}, queue.version)
