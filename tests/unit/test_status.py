"""What `everput status` makes of the API's and the processes' answers. Not for: the command (test_serve.py)."""

from __future__ import annotations

import time

import httpx
import pytest
from api_client import make_api
from memory import MemoryControl

from broker.core.directory import Listener
from broker.errors import ConfigurationError
from broker.ports import ListenerCondition
from cli.admin import Health, process_app, serving
from cli.publish import Publisher
from cli.standing import Limits, listeners, processes
from cli.status import _Status

NO_LIMITS = Limits(None, None)


class Conditions:
    """ports.ListenerStatus: by the listener's name."""

    def __init__(self) -> None:
        self.by_name: dict[str, ListenerCondition] = {}

    async def condition(self, listener: Listener) -> ListenerCondition:
        return self.by_name.get(listener.name, ListenerCondition(state="live", lag=0))


@pytest.fixture
async def asked():
    """An API in memory, what its listeners are like, and a publisher that asks it."""
    conditions = Conditions()
    api = await make_api(status=conditions)
    transport = httpx.ASGITransport(api.app)
    async with Publisher("http://api.example.com", api.key, transport=transport, give_up_after_s=1) as publisher:
        yield api, conditions, publisher


async def test_every_listener_of_every_queue_is_shown_however_many_pages_they_are(asked):
    api, _, publisher = asked
    for queue in range(3):
        queue_id = await api.queue(f"q{queue}")
        for number in range(60):
            await api.listener(queue_id, name=f"l{number}")
    rows = await listeners(publisher, NO_LIMITS)
    assert {(row.queue, row.listener) for row in rows} == {(f"q{q}", f"l{n}") for q in range(3) for n in range(60)}
    assert {row.queue for row in await listeners(publisher, NO_LIMITS, "q1")} == {"q1"}


async def test_what_is_down_or_beyond_a_limit_is_wrong_and_what_is_paused_is_not(asked):
    api, conditions, publisher = asked
    queue_id = await api.queue()
    since_ms = int(time.time() * 1000) - 90_000
    conditions.by_name = {
        "down": ListenerCondition(state="down", lag=1, last_error="refused"),
        "paused": ListenerCondition(state="paused", lag=3),
        "much": ListenerCondition(state="live", lag=11),
        "long": ListenerCondition(state="live", lag=1, oldest_pending_at_ms=since_ms),
    }
    for name in ("well", *conditions.by_name):
        await api.listener(queue_id, name=name)

    async def wrong(limits: Limits) -> set[str]:
        return {row.listener for row in await listeners(publisher, limits) if row.wrong}

    assert await wrong(NO_LIMITS) == {"down"}
    assert await wrong(Limits(10, None)) == {"down", "much"}
    assert await wrong(Limits(11, 80)) == {"down", "long"}
    assert await wrong(Limits(11, 100)) == {"down"}


async def test_a_queue_that_is_not_there_is_an_error(asked):
    _, _, publisher = asked
    with pytest.raises(ConfigurationError, match="nowhere"):
        await _Status(publisher, "nowhere", [], NO_LIMITS).look()


async def test_a_process_that_is_not_ready_or_not_there_is_wrong():
    health = Health()
    async with serving(process_app(health), "127.0.0.1", 0) as url:
        (row,) = await processes([url])
        assert row.wrong == "this process is starting"
        health.view, health.ready = MemoryControl(), True
        (row,) = await processes([url])
        assert row.wrong is None
        assert row.figures["memory"] > 1 << 20
    (row,) = await processes([url])
    assert row.wrong == "does not answer: ConnectError"
