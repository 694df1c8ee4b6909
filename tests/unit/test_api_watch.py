"""The stream of changes over HTTP: what it tells, to whom, and when it ends."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import httpx
import orjson
import pytest
from api_client import Api, problem
from test_api_server import live_api

from broker.audit import feed
from broker.audit.feed import CHANGES_MAX, LogFeed
from broker.commands.organizations import create_key
from broker.core.events import DeliveriesSettled
from broker.ports import OffsetTooOld


class Stream:
    """A client of /v1/changes. `id` is that of the last event."""

    def __init__(self, answer: httpx.Response) -> None:
        self.answer = answer
        self._lines = answer.aiter_lines()
        self.id = ""

    async def next(self) -> dict[str, Any]:
        """The data of the next event."""
        data: dict[str, Any] | None = None
        async with asyncio.timeout(20):
            while True:
                line = await anext(self._lines)
                if line.startswith("id: "):
                    self.id = line.removeprefix("id: ")
                elif line.startswith("data: "):
                    data = orjson.loads(line.removeprefix("data: "))
                elif not line and data is not None:
                    return data

    async def until(self, kind: str) -> list[dict[str, str]]:
        """The changes of the first event with a change of this kind."""
        while True:
            changes = (await self.next())["changes"]
            if any(one["kind"] == kind for one in changes):
                return changes

    async def ends(self) -> None:
        async with asyncio.timeout(20):
            async for _ in self._lines:
                pass


@contextlib.asynccontextmanager
async def watching(api: Api, headers: dict[str, str] | None = None) -> AsyncIterator[Stream]:
    sent = {"x-api-key": api.key, **(headers or {})}
    async with (
        httpx.AsyncClient(base_url=api.bare.base_url, timeout=60) as client,
        client.stream("GET", "/v1/changes", headers=sent) as answer,
    ):
        if answer.status_code != 200:
            await answer.aread()
        yield Stream(answer)


@pytest.fixture
async def api(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Api]:
    monkeypatch.setattr(LogFeed.__init__, "__kwdefaults__", {"look_s": 0.02})
    async with live_api() as made:
        yield made


def settled(api: Api, queue_id: str, listener_id: str) -> None:
    of = {"organization_id": api.organization_id, "queue_id": queue_id, "listener_id": listener_id, "partition": 0}
    rows = ((0, 1, 200, 5),)
    api.records.add("deliveries", 0, DeliveriesSettled(at_ms=1, actor="worker", rows=rows, **of))


async def test_each_change_is_told_once_with_its_queue_and_listener(api: Api):
    async with watching(api) as stream:
        assert stream.answer.headers["content-type"] == "text/event-stream"
        assert stream.answer.headers["cache-control"] == "no-store"
        assert await stream.next() == {"all": True, "changes": []}
        queue_id = await api.queue("orders")
        assert await stream.next() == {"all": False, "changes": [{"kind": "queue", "queue_id": queue_id}]}
        listener_id = await api.listener(queue_id)
        both = {"queue_id": queue_id, "listener_id": listener_id}
        assert (await stream.next())["changes"] == [{"kind": "listener", **both}]
        await api.request("POST", f"/v1/queues/{queue_id}/listeners/{listener_id}/pause")
        assert (await stream.next())["changes"] == [{"kind": "listener", **both}]
        await api.put(f"/v1/queues/{queue_id}/messages", json={"data": "x"})
        assert (await stream.next())["changes"] == [{"kind": "message", "queue_id": queue_id}]
        settled(api, queue_id, listener_id)
        assert (await stream.next())["changes"] == [{"kind": "delivery", **both}]
        assert (await stream.next())["changes"] == [{"kind": "delivery", **both}], "once more, with the cursor"


async def test_a_replay_tells_of_its_listener(api: Api):
    queue_id = await api.queue("orders")
    listener_id = await api.listener(queue_id)
    await api.put(f"/v1/queues/{queue_id}/messages", json={"data": "x"})
    async with watching(api) as stream:
        await stream.next()
        path = f"/v1/queues/{queue_id}/listeners/{listener_id}/replay"
        replay = (await api.request("POST", path, json={"from": "beginning"})).json()["replay"]["id"]
        expected = {"kind": "replay", "queue_id": queue_id, "listener_id": listener_id}
        assert await stream.until("replay") == [expected]
        settled(api, queue_id, replay)
        assert await stream.until("replay") == [expected]


async def test_nobody_is_told_of_another_organization_and_a_key_for_some_queues_only_of_these(api: Api):
    mine, other = await api.queue("mine"), await api.queue("other")
    control = api.log.control
    _, narrow = await create_key(
        control, control, organization_id=api.organization_id, name="n", scopes=("queues",), queue_ids=(mine,)
    )
    theirs = {"x-api-key": await api.another_organization()}
    async with watching(api, {"x-api-key": narrow}) as narrowed, watching(api, theirs) as stranger:
        await narrowed.next()
        await stranger.next()
        await api.put(f"/v1/queues/{other}/messages", json={"data": "x"})
        await api.put(f"/v1/queues/{mine}/messages", json={"data": "x"})
        assert (await narrowed.next())["changes"] == [{"kind": "message", "queue_id": mine}]
        own = (await api.bare.put("/v1/queues", json={"name": "own"}, headers=theirs)).json()["queue"]["id"]
        assert await stranger.until("queue") == [{"kind": "queue", "queue_id": own}]


async def test_a_client_that_comes_back_gets_what_it_has_missed_and_all_if_that_is_not_known(api: Api):
    async with watching(api) as stays:  # without it, nobody follows the log
        await stays.next()
        async with watching(api) as stream:
            await stream.next()
            last = stream.id
        queue_id = await api.queue("orders")
        await stays.next()
        async with watching(api, {"last-event-id": last}) as stream:
            assert await stream.next() == {"all": False, "changes": [{"kind": "queue", "queue_id": queue_id}]}
        for unknown in ("x", "0-0", f"{last}9999999", last.partition("-")[0], last.replace("-", "--")):
            async with watching(api, {"last-event-id": unknown}) as stream:
                assert await stream.next() == {"all": True, "changes": []}, unknown
    async with watching(api, {"last-event-id": last}) as stream:
        assert (await stream.next())["all"], "nobody followed the log in between"


async def test_more_than_can_be_told_is_told_as_all(api: Api):
    queue_id = await api.queue("orders")
    async with watching(api) as stream:
        await stream.next()
        for number in range(CHANGES_MAX + 1):
            settled(api, queue_id, f"listener-{number}")
        assert (await stream.next())["all"]


async def test_a_log_that_grows_too_fast_to_read_is_told_as_all(api: Api, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(feed, "READ_BYTES", 1)  # one record a look
    queue_id = await api.queue("orders")
    async with watching(api) as stream:
        await stream.next()
        for number in range(3):
            settled(api, queue_id, f"listener-{number}")
        assert (await stream.next())["all"]


async def test_records_that_kafka_has_deleted_before_they_were_read_are_told_as_all_and_the_next_ones_as_usual(
    api: Api, monkeypatch: pytest.MonkeyPatch
):
    queue_id = await api.queue("orders")
    read = api.records.read

    async def without_the_first(topic: str, partition: int, offset: int, **more: Any) -> Any:
        if topic.endswith("deliveries") and offset == 0:
            raise OffsetTooOld("deleted by age")
        return await read(topic, partition, offset, **more)

    monkeypatch.setattr(api.records, "read", without_the_first)
    async with watching(api) as stream:
        await stream.next()
        settled(api, queue_id, "deleted")
        assert (await stream.next())["all"]
        settled(api, queue_id, "next")
        assert [one["listener_id"] for one in await stream.until("delivery")] == ["next"]


async def test_after_an_unexpected_error_all_is_told_again_for_what_was_stored_until_the_next_look(api: Api):
    queue_id = await api.queue("orders")

    async def fails_once() -> None:
        api.records.before_read = None
        settled(api, queue_id, "stored after the ends were asked for")
        raise ZeroDivisionError

    async with watching(api) as stream:
        await stream.next()
        api.records.before_read = fails_once
        settled(api, queue_id, "one")
        assert (await stream.next())["all"]
        assert (await stream.next())["all"]
        settled(api, queue_id, "later")
        assert [one["listener_id"] for one in await stream.until("delivery")] == ["later"]


async def test_who_may_not_watch_is_refused(api: Api):
    async with watching(api, {"x-api-key": await api.key_with(("messages",))}) as stream:
        problem(stream.answer, 403)
    async with watching(api, {"x-api-key": ""}) as stream:
        problem(stream.answer, 401)


async def test_the_stream_ends_when_its_key_is_revoked(api: Api):
    key = await api.key_with(("queues", "keys"))
    async with watching(api, {"x-api-key": key}) as stream:
        await stream.next()
        path = f"/v1/organizations/{api.organization_id}/keys"
        keys = (await api.bare.get(path, headers={"x-api-key": key})).json()["keys"]
        (mine,) = [one["id"] for one in keys if one["name"] == "with scopes"]
        assert (await api.bare.delete(f"{path}/{mine}", headers={"x-api-key": key})).status_code == 200
        await stream.ends()
    async with watching(api, {"x-api-key": key}) as stream:
        problem(stream.answer, 401)


async def test_the_clients_of_many_organizations_do_not_make_each_look_long(api: Api, monkeypatch: pytest.MonkeyPatch):
    """A search for each of their ids would take longer than to decode the records."""
    queue_id = await api.queue()
    listener_id = await api.listener(queue_id)
    searches: list[Any] = []
    read = api.records.read

    async def watched(*lane: Any, worth: Any, **more: Any) -> Any:
        searches.append(worth)
        return await read(*lane, worth=worth, **more)

    monkeypatch.setattr(api.records, "read", watched)
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(api.reader.feed.waiting(api.organization_id))
        for number in range(feed.SEARCHED_MAX):
            await stack.enter_async_context(api.reader.feed.waiting(f"organization {number}"))
        await api.reader.feed.looked(20)
        position = api.reader.feed.since(api.organization_id, "").position
        settled(api, queue_id, listener_id)
        async with asyncio.timeout(20):
            while not (changes := api.reader.feed.since(api.organization_id, position).changes):
                await api.reader.feed.looked(20)
    assert [one.kind for one in changes] == ["delivery"]
    assert searches
    assert all(worth is None for worth in searches)


async def test_clients_that_come_and_go_at_once_leave_one_reader_of_the_log_and_then_none(
    api: Api, monkeypatch: pytest.MonkeyPatch
):
    feed = api.reader.feed

    def readers() -> int:
        return sum(task.get_name() == "change feed" for task in asyncio.all_tasks())

    async def wait(leave: asyncio.Event) -> None:
        async with feed.waiting(api.organization_id):
            await leave.wait()

    offsets, asked = api.records.offsets, asyncio.Event()

    async def slow_offsets(*lanes: Any) -> Any:
        asked.set()
        for _ in range(20):
            await asyncio.sleep(0)
        return await offsets(*lanes)

    monkeypatch.setattr(api.records, "offsets", slow_offsets)
    leave = asyncio.Event()
    first = asyncio.create_task(wait(leave))
    await asked.wait()
    first.cancel()
    clients = []
    for _ in range(10):
        clients.append(asyncio.create_task(wait(leave)))
        await asyncio.sleep(0)
    await feed.looked(20)
    assert readers() == 1
    leave.set()
    await asyncio.gather(first, *clients, return_exceptions=True)
    await asyncio.sleep(0)
    assert readers() == 0


async def test_a_client_that_comes_while_the_log_is_read_misses_no_change(api: Api):
    feed, other = api.reader.feed, "another organization"
    queue_id = await api.queue()
    listener_id = await api.listener(queue_id)
    reading, come = asyncio.Event(), asyncio.Event()

    async def before_read() -> None:
        reading.set()
        await come.wait()

    async with feed.waiting(other):
        await feed.looked(20)
        api.records.before_read = before_read
        settled(api, queue_id, listener_id)
        await reading.wait()
        async with feed.waiting(api.organization_id):
            position = feed.since(api.organization_id, "").position
            come.set()
            await feed.looked(20)
            changes = feed.since(api.organization_id, position).changes
    assert changes is None or any(one.kind == "delivery" for one in changes)


async def test_the_stream_ends_when_the_process_ends(api: Api):
    async with watching(api) as stream:
        await stream.next()
        api.reader.feed.stop()
        await stream.ends()


async def test_an_organization_may_have_only_so_many_streams_and_a_closed_one_is_free_again(api: Api):
    async with contextlib.AsyncExitStack() as stack:
        streams = [await stack.enter_async_context(watching(api)) for _ in range(32)]
        assert [stream.answer.status_code for stream in streams] == [200] * 32
        async with watching(api) as refused:
            problem(refused.answer, 503)
            assert refused.answer.headers["retry-after"]
    async with asyncio.timeout(20):
        while True:
            async with watching(api) as stream:
                if stream.answer.status_code == 200:
                    return
