"""The replays of a listener: their requests and answers.

Not for: which messages a replay covers (broker/commands/replays.py), or their delivery (broker/delivery).
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

from api.calls import Call
from api.pages import optional_rfc3339, page, rfc3339, rfc3339_ms
from api.shapes import ReplayBody
from broker.commands.context import find_listener
from broker.commands.replays import ReplayCommands, ReplayInput
from broker.core.entities import Listener
from broker.core.events import ReplayStarted
from broker.core.replays import Replay
from broker.errors import LogUnavailable, Refused
from broker.ports import Count, DirectoryView

# The estimate of a replay's duration assumes this many messages a second, or the rate limit if it is lower.
EXPECTED_PER_S: Final = 2_000.0


class Replays:
    """Handlers for the replays of a listener.

    The event of a replay for failed or undelivered messages (the request's field `only`) has a list of offsets. Before
    the event is stored, `count` is called with the organization's id and the bytes of this list. If the organization's
    limits do not allow so many bytes, `count` raises an error, and no replay starts.
    """

    def __init__(self, commands: ReplayCommands, view: DirectoryView, count: Count) -> None:
        self._commands = commands
        self._view = view
        self._count = count

    async def start(self, call: Call) -> Any:
        body = await call.json(ReplayBody)
        # A replay to another URL sends messages to a new place, so it needs the scope for creating listeners.
        if body.notify_url is not None:
            call.need("queues")
        replay_input = ReplayInput(
            from_ms=_time("/from", body.begin),
            to_ms=None if body.to is None else _time("/to", body.to),
            only=body.only,
            rate_per_s=body.rate_per_s,
            notify_url=body.notify_url,
            liveness_url=body.liveness_url,
            send_headers=body.send_headers,
        )
        ids = call.path("queue_id"), call.path("listener_id")
        if body.dry_run:
            listener = await find_listener(self._view, call.organization_id, *ids)
            planned = await self._commands.plan(call.context(), listener, replay_input)
            return {"replay": _planned(planned, listener)}
        return await self._answer(call, await self._commands.start(call.context(), *ids, replay_input, self._count))

    async def list(self, call: Call) -> Any:
        listener = await find_listener(
            self._view, call.organization_id, call.path("queue_id"), call.path("listener_id")
        )
        query = call.query()
        shown, page_token = page(self._view.state.replays.of(listener.id), query)
        links = call.links(_path(call), query, page_token)
        progress = await asyncio.gather(*(self._progress(replay) for replay in shown))
        answer = [{**_fields(replay, listener), **more} for replay, more in zip(shown, progress, strict=True)]
        return {"replays": answer, "_links": links}

    async def get(self, call: Call) -> Any:
        return await self._answer(call, await self._find(call))

    async def pause(self, call: Call) -> Any:
        return await self._answer(call, await self._commands.pause(call.context(), await self._find(call)))

    async def resume(self, call: Call) -> Any:
        return await self._answer(call, await self._commands.resume(call.context(), await self._find(call)))

    async def cancel(self, call: Call) -> Any:
        return await self._answer(call, await self._commands.cancel(call.context(), await self._find(call)))

    async def _find(self, call: Call) -> Replay:
        await self._view.caught_up()
        ids = call.path("queue_id"), call.path("listener_id"), call.path("replay_id")
        return await self._commands.find(call.organization_id, *ids)

    async def _progress(self, replay: Replay) -> dict[str, float]:
        """Return a replay's progress as a JSON field. If Kafka does not answer, return no field."""
        try:
            return {"progress": round(await self._commands.progress(replay), 4)}
        except LogUnavailable:
            return {}

    async def _answer(self, call: Call, replay: Replay) -> Any:
        progress = round(await self._commands.progress(replay), 4)
        href = call.href(f"{_path(call)}/{replay.id}")
        listener = self._view.state.listener(replay.organization_id, replay.listener_id)
        return {"replay": {**_fields(replay, listener), "progress": progress}, "_links": {"self": {"href": href}}}


def _path(call: Call) -> str:
    return f"/v1/queues/{call.path('queue_id')}/listeners/{call.path('listener_id')}/replays"


def _fields(replay: Replay, listener: Listener | None) -> dict[str, Any]:
    """Return a replay as JSON. The field `paused` is null, or the reason why the replay is paused.

    A replay without its own `notify_url` goes to the listener, so it is also paused while the listener is paused.
    """
    state, paused = replay.state, replay.paused
    if state == "running" and replay.notify_url is None and listener is not None and listener.paused is not None:
        state, paused = "paused", f"its listener is paused: {listener.paused}"
    return {
        "id": replay.id,
        "state": state,
        "from": rfc3339(replay.from_ms),
        "to": rfc3339(replay.to_ms),
        "only": replay.only,
        "notify_url": replay.notify_url,
        "liveness_url": replay.liveness_url,
        "send_headers": replay.send_headers,
        "rate_per_s": replay.rate_per_s,
        "count": replay.count,
        "count_is_exact": replay.counted_all,
        "paused": paused,
        "created_at": rfc3339(replay.created_at_ms),
        "ended_at": optional_rfc3339(replay.ended_at_ms),
    }


def _planned(planned: ReplayStarted, listener: Listener) -> dict[str, Any]:
    """Return a planned replay as JSON. The estimate of its duration assumes EXPECTED_PER_S messages a second, or the
    rate limit if the limit is lower. The replay's own rate limit counts; without it, the listener's rate limit counts.
    """
    limit_per_s = planned.rate_per_s or listener.settings.rate_per_s or EXPECTED_PER_S
    return {
        "from": rfc3339(planned.from_ms),
        "to": rfc3339(planned.to_ms),
        "only": planned.only,
        "count": planned.count,
        "count_is_exact": planned.counted_all,
        "rate_per_s": planned.rate_per_s,
        "estimated_s": round(planned.count / min(limit_per_s, EXPECTED_PER_S), 1),
    }


def _time(pointer: str, text: str) -> int:
    if pointer == "/from" and text == "beginning":
        return 0
    try:
        return rfc3339_ms(text)
    except ValueError:
        allowed = "`beginning` or a time" if pointer == "/from" else "a time"
        raise Refused(
            f"The field `{pointer[1:]}` must be {allowed} with a time zone, such as 2026-01-31T12:00:00Z.",
            pointer=pointer,
        ) from None
