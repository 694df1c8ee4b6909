"""The API over a log in memory, and a client that has a key.

For: the tests named test_api_*. Not for: a server or Kafka (tests/kafka)."""

from __future__ import annotations

import asyncio
import re
from dataclasses import fields
from functools import lru_cache
from typing import Any

import httpx
import msgspec
from memory import MemoryCursors, MemoryLog, MemoryRecords

from api.openapi import document
from api.reference import OPERATION_DOCS
from broker.audit.reader import LogReader, ReaderTuning
from broker.commands.organizations import create_key, create_organization
from broker.kafka.topics import topics
from broker.sealing import new_sealing_key
from broker.settings import KafkaSettings, Settings
from everput.answers import ProblemAnswer
from tests.apps import app_of


class Api:
    """bare: a client that sends no key; the methods send this organization's."""

    def __init__(
        self, log: Any, app: Any, settings: Settings, organization_id: str, key: str, records: MemoryRecords
    ) -> None:
        self.log = log
        self.app = app
        self.settings = settings
        self.organization_id = organization_id
        self.key = key
        self.records = records
        self.reader: Any = None  # the LogReader
        self.first_queue_id: str | None = None
        self.bare = httpx.AsyncClient(
            transport=httpx.ASGITransport(app),
            base_url="http://api.example.com",
            event_hooks={"response": [as_documented]},
        )

    async def request(
        self, method: str, path: str, headers: dict[str, str] | None = None, **more: Any
    ) -> httpx.Response:
        sent = {"x-api-key": self.key, **(headers or {})}
        if "content" in more:
            sent.setdefault("content-type", "application/json")
        return await self.bare.request(method, path, headers=sent, **more)

    async def put(self, path: str, **more: Any) -> httpx.Response:
        return await self.request("PUT", path, **more)

    async def get(self, path: str, **more: Any) -> httpx.Response:
        return await self.request("GET", path, **more)

    async def queue(self, name: str = "queue") -> str:
        """The id of a new queue."""
        queue_id = (await self.put("/v1/queues", json={"name": name})).json()["queue"]["id"]
        self.first_queue_id = self.first_queue_id or queue_id
        return queue_id

    async def listener(self, queue_id: str, **more: Any) -> str:
        """The id of a new listener."""
        body = {"name": "listener", "notify_url": "https://8.8.8.8/n", "liveness_url": "https://8.8.8.8/l", **more}
        return (await self.put(f"/v1/queues/{queue_id}/listeners", json=body)).json()["listener"]["id"]

    async def key_with(self, scopes: tuple[str, ...]) -> str:
        """A new key of this organization."""
        control = self.log.control
        made = create_key(control, control, organization_id=self.organization_id, name="with scopes", scopes=scopes)
        return (await made)[1]

    async def another_organization(self) -> str:
        """The key of a new organization."""
        control = self.log.control
        organization = await create_organization(control, control, name="another")
        return (await create_key(control, control, organization_id=organization.id, name="theirs"))[1]


class Socket:
    """A WebSocket's client, by hand. said: what the application sent. takes: texts that it takes unasked; 0 for all."""

    def __init__(self, api: Api, path: str, query: str, headers: dict[str, str]) -> None:
        self.said: asyncio.Queue[Any] = asyncio.Queue()
        self.takes = 0
        self._taken = asyncio.Event()
        self._to_say: asyncio.Queue[Any] = asyncio.Queue()
        self._to_say.put_nowait({"type": "websocket.connect"})
        scope = {
            "type": "websocket",
            "scheme": "ws",
            "path": path,
            "raw_path": b"",
            "root_path": "",
            "query_string": query.encode(),
            "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
            "subprotocols": [],
            "extensions": {"websocket.http.response": {}},
        }
        self.task = asyncio.create_task(api.app(scope, self._to_say.get, self._hear))

    async def _hear(self, message: Any) -> None:
        while self.takes and self.said.qsize() >= self.takes:
            self._taken.clear()
            await self._taken.wait()
        self.said.put_nowait(message)

    async def next(self) -> Any:
        async with asyncio.timeout(5):
            message = await self.said.get()
        self._taken.set()
        return message

    def say(self, text: str) -> None:
        self._to_say.put_nowait({"type": "websocket.receive", "text": text})

    async def leave(self) -> None:
        self._to_say.put_nowait({"type": "websocket.disconnect", "code": 1000})
        await self.task


async def make_api(**parts: Any) -> Api:
    """parts: settings, and what make_app takes besides, such as deliveries. reading: the bounds of the log's reader.

    log: a MemoryLog; left out, a new one.
    """
    log = parts.pop("log", None) or MemoryLog()
    organization = await create_organization(log.control, log.control, name="acme")
    _, key = await create_key(log.control, log.control, organization_id=organization.id, name="first")
    settings = Settings(
        kafka=KafkaSettings(bootstrap="unused", partitions=2),
        sealing_key=new_sealing_key(),
        **{"body_bytes_max": 2 << 20}
        | {field.name: parts.pop(field.name) for field in fields(Settings) if field.name in parts},
    )
    records = MemoryRecords(log)
    tuning = parts.pop("reading", ReaderTuning(settle_ms=0))
    parts.setdefault("reader", LogReader(records, topics(settings.kafka), log.control, tuning))
    parts.setdefault("cursors", MemoryCursors())
    app = app_of(settings, log=log, view=log.control, **parts)
    api = Api(log, app, settings, organization.id, key, records)
    api.reader = parts["reader"]
    return api


_OPERATIONS = [
    (method, re.compile(re.sub(r"{\w+}", "[^/]+", path)), told) for (method, path), told in OPERATION_DOCS.items()
]


async def as_documented(response: httpx.Response) -> None:
    """Every answer has a status that the reference tells of, and the shape it tells."""
    method, path = response.request.method, response.request.url.raw_path.decode().partition("?")[0]
    for _, _, told in [one for one in _OPERATIONS if one[0] == method and one[1].fullmatch(path)][:1]:
        await response.aread()
        operation = documented(told.name)
        if response.status_code == 500:
            return  # asked for by a test
        assert str(response.status_code) in operation["responses"], (method, path, response.status_code)
        if response.status_code == 200:
            assert response.headers["content-type"] == told.media
            assert ("etag" in response.headers) == told.tagged
            lines = [response.content] if told.media == "application/json" else response.content.splitlines()
            for line in lines:
                as_told = msgspec.json.encode(msgspec.json.decode(line, type=told.answer))
                assert msgspec.json.decode(as_told) == msgspec.json.decode(line)  # and nothing else
        elif response.status_code != 304:
            msgspec.json.decode(response.content, type=ProblemAnswer)


@lru_cache
def documented(name: str) -> dict[str, Any]:
    """The operation of this name."""
    routes = [(method, path, None) for method, path in OPERATION_DOCS]
    paths = document(routes, server="http://api.example.com")["paths"]
    return next(one for path in paths.values() for one in path.values() if one["operationId"] == name)


def problem(response: httpx.Response, status: int, code: str | None = None) -> dict:
    """The answer, which must be a problem with this status and type."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers["x-request-id"]
    body = response.json()
    assert body["status"] == status
    assert body["title"]
    assert body["type"].startswith("/problems/")
    if code is not None:
        assert body["type"] == f"/problems/{code}"
    return body
