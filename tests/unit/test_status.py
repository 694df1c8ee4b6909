"""What `everput status` makes of the API's and the processes' answers. Not for: the command (test_serve.py)."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from api_client import make_api
from memory import MemoryControl
from rich.console import Console

from broker.core.catalogue import shown_json
from broker.core.damage import DamagedRange
from broker.core.entities import Listener
from broker.core.events import LogDamaged
from broker.core.health import Facts
from broker.damage import mended
from broker.errors import ConfigurationError
from broker.ports import ListenerCondition
from cli.commands import status as status_module
from cli.commands.status import _Status
from cli.processes.admin import Health, process_app, serving
from cli.processes.hosts import Hosts
from cli.report import Limits, listeners, processes
from everput import AsyncClient
from tests.apps import NoDeliveries
from tests.listeners import until

NO_LIMITS = Limits(None, None)
DOWN = ListenerCondition(state="down", lag=7, last_error="refused", facts=Facts(down=True))


class Conditions(NoDeliveries):
    """ports.ListenerStatus: by the listener's name."""

    def __init__(self) -> None:
        self.by_name: dict[str, ListenerCondition] = {}

    async def condition(self, listener: Listener) -> ListenerCondition:
        return self.by_name.get(listener.name, ListenerCondition(state="live", lag=0))


def client_of(api) -> AsyncClient:
    transport = httpx.ASGITransport(api.app)
    return AsyncClient("http://api.example.com", api.key, transport=transport, give_up_after_s=1)


@pytest.fixture
async def asked():
    """An API in memory, what its listeners are like, and a client that asks it."""
    conditions = Conditions()
    api = await make_api(status=conditions)
    async with client_of(api) as client:
        yield api, conditions, client


async def test_every_listener_of_every_queue_is_shown_however_many_pages_they_are(asked):
    api, _, client = asked
    for queue in range(3):
        queue_id = await api.queue(f"q{queue}")
        for number in range(60):
            await api.listener(queue_id, name=f"l{number}")
    rows = await listeners(client, NO_LIMITS)
    assert {(row.queue, row.listener) for row in rows} == {(f"q{q}", f"l{n}") for q in range(3) for n in range(60)}
    assert {row.queue for row in await listeners(client, NO_LIMITS, "q1")} == {"q1"}


async def test_what_is_down_or_beyond_a_limit_is_wrong_and_what_is_paused_is_not(asked):
    api, conditions, client = asked
    queue_id = await api.queue()
    since_ms = int(time.time() * 1000) - 90_000
    conditions.by_name = {
        "down": ListenerCondition(state="down", lag=1, last_error="refused", facts=Facts(down=True)),
        "paused": ListenerCondition(state="paused", lag=3),
        "much": ListenerCondition(state="live", lag=11),
        "long": ListenerCondition(state="live", lag=1, oldest_pending_at_ms=since_ms),
    }
    for name in ("well", *conditions.by_name):
        await api.listener(queue_id, name=name)

    async def wrong(limits: Limits) -> set[str]:
        return {row.listener for row in await listeners(client, limits) if row.wrong}

    assert await wrong(NO_LIMITS) == {"down"}
    assert await wrong(Limits(10, None)) == {"down", "much"}
    assert await wrong(Limits(11, 80)) == {"down", "long"}
    assert await wrong(Limits(11, 100)) == {"down"}


async def test_the_worst_come_first_and_what_counts_as_wrong_can_be_chosen(asked):
    api, conditions, client = asked
    queue_id = await api.queue()
    now_ms = int(time.time() * 1000)
    well, refused = {"accepted": 60, "accepted_at_ms": now_ms}, {"refused": 60, "refused_at_ms": now_ms}
    facts = {
        "well": Facts(**well),
        "new": Facts(),
        "retries": Facts(**well, retrying=4),
        "piled": Facts(**well, parked=2),
        "paused": Facts(**refused),
        "failing": Facts(**refused, retrying=60),
        "down": Facts(**refused, down=True),
    }
    for name, known in facts.items():
        state = name if name in ("down", "paused") else "live"
        conditions.by_name[name] = ListenerCondition(state=state, lag=0, facts=known)
        listener_id = await api.listener(queue_id, name=name)
        if name == "paused":
            await api.request("POST", f"/v1/queues/{queue_id}/listeners/{listener_id}/pause")

    async def wrong(*fail_on: str) -> list[tuple[str, str]]:
        rows = await listeners(client, Limits(None, None, frozenset(fail_on)))
        return [(row.listener, row.wrong) for row in sorted(rows, key=status_module.trouble) if row.wrong]

    rows = await listeners(client, Limits(None, None, frozenset()))
    in_order = [row.listener for row in sorted(rows, key=status_module.trouble)]
    assert in_order == ["down", "failing", "paused", "piled", "new", "retries", "well"]
    assert await wrong("down", "failing", "parked") == [
        ("down", "down"),
        ("failing", "failing"),
        ("piled", "2 parked"),
    ]
    assert await wrong("parked") == [("piled", "2 parked")]
    assert await wrong("paused") == [("paused", "paused")]
    assert await wrong("retrying") == [("failing", "60 retrying"), ("retries", "4 retrying")]
    assert await wrong() == []
    status = _Status(client, "http://api.test", None, [], NO_LIMITS)
    out = io.StringIO()
    Console(file=out, width=160).print(status_module.tables(*await status.look()))
    assert status.wrong
    assert "60 of 60" in out.getvalue()


async def test_a_queue_that_is_not_there_is_an_error(asked):
    _, _, client = asked
    with pytest.raises(ConfigurationError, match="nowhere"):
        await _Status(client, "http://api.test", "nowhere", [], NO_LIMITS).look()


async def test_a_process_that_is_not_ready_or_not_there_is_wrong():
    health = Health()
    async with serving(process_app(health), "127.0.0.1", 0, Hosts([])) as url:
        (row,) = await processes([url])
        assert row.wrong == "This process is starting. Try again later."
        health.view, health.ready = MemoryControl(), True
        (row,) = await processes([url])
        assert row.wrong is None
        assert row.figures["memory"] > 1 << 20
    (row,) = await processes([url])
    assert row.wrong == "does not answer: ConnectError"


@contextlib.asynccontextmanager
async def watching(status: _Status, *, as_json: bool, **how: Any) -> AsyncIterator[None]:
    task = asyncio.create_task(status.run(0.01, as_json=as_json, **how))
    yield
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_whoever_watches_is_told_again_and_again_how_it_is_by_then(asked, capsys: pytest.CaptureFixture[str]):
    api, conditions, _ = asked
    await api.listener(await api.queue(), name="l")
    status = _Status(client_of(api), "http://api.test", None, [], NO_LIMITS)
    told: list[dict] = []

    def told_that(state: str) -> bool:
        told.extend(map(json.loads, capsys.readouterr().out.splitlines()))
        return bool(told) and told[-1]["listeners"][0]["state"] == state

    async with watching(status, as_json=True):
        await until(lambda: told_that("live"), what="it is live")
        assert not status.wrong
        conditions.by_name["l"] = DOWN
        await until(lambda: told_that("down"), what="it is down")
        assert status.wrong
        conditions.by_name.clear()
        await until(lambda: told_that("live"), what="it is live again")
        assert not status.wrong
    assert [one["ok"] for one in told] == [one["listeners"][0]["state"] == "live" for one in told]


async def test_on_a_terminal_one_table_is_kept_up_to_date(asked):
    api, conditions, _ = asked
    await api.listener(await api.queue(), name="l")
    shown = io.StringIO()
    terminal = Console(file=shown, force_terminal=True, width=120, height=30, _environ={"TERM": "xterm"})
    status = _Status(client_of(api), "http://api.test", None, [], NO_LIMITS)
    async with watching(status, as_json=False, make_console=lambda: terminal):
        await until(lambda: "new" in shown.getvalue(), what="it is new")
        conditions.by_name["l"] = DOWN
        await until(lambda: "refused" in shown.getvalue(), what="it is down, and why")
    assert "\x1b[1A" in shown.getvalue()  # over the table of before


async def test_that_the_log_is_damaged_is_wrong_and_shown_until_it_is_mended(asked):
    api, _, client = asked
    await api.listener(await api.queue(), name="l")
    status = _Status(client, "http://api.test", None, [], NO_LIMITS)

    async def shown() -> str:
        out = io.StringIO()
        Console(file=out, width=120).print(status_module.tables(*await status.look()))
        return out.getvalue()

    assert "damaged" not in await shown()
    assert not status.wrong
    found = DamagedRange("messages", 1, 7_771, 7_779)
    range_ = {"topic": "messages", "partition": 1, "first_offset": 7_771, "last_offset": 7_779}
    await api.log.control.append(LogDamaged(at_ms=1, organization_id="", actor="worker", **range_))
    assert "log damaged" in await shown()
    assert status.wrong
    told = await api.get("/v1/organizations")
    assert told.json()["organizations"][0]["log_damaged"] is True
    assert "777" not in told.text  # another organization's messages may be there
    await api.log.control.append(mended(found, given_up=False, actor="worker"))
    assert "damaged" not in await shown()
    assert not status.wrong


def test_readers_of_the_log_are_not_told_which_offsets_are_damaged():
    range_ = {"topic": "messages", "partition": 1, "first_offset": 7_771, "last_offset": 7_779}
    line = shown_json(LogDamaged(at_ms=1, organization_id="", actor="worker", **range_))
    assert b"log.damaged" in line
    assert b"777" not in line
