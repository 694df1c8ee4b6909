"""Batches of a real server: signed as docs/batches.md says, each message settled alone, and through a tunnel."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from test_listen import Listen, new_queue

import everput
from everput import BatchMessage
from tests.listeners import Got, Listeners, until
from tests.scenarios.running import Running

PAGE = (Path(__file__).parents[2] / "docs" / "batches.md").read_text()
POISON = "poison"
MANY = 300
MAX_MESSAGES = 50


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with Running(tmp_path_factory.mktemp("batches") / "data") as running:
        assert running.url
        yield running


@pytest.fixture
async def client(server: Running) -> AsyncIterator[httpx.AsyncClient]:
    headers = {"x-api-key": server.api_key}
    async with httpx.AsyncClient(base_url=f"{server.url}/v1", headers=headers, timeout=20) as client:
        yield client


async def put_many(client: httpx.AsyncClient, queue_id: str) -> list[str]:
    """Put messages of which every hundredth is one that a listener first rejects. Return their ids."""
    messages = [{"data": f"{POISON if number % 100 == 0 else 'plain'} {number}"} for number in range(MANY)]
    answer = await client.post(f"/queues/{queue_id}/messages/batch", json={"messages": messages})
    return [one["message"]["id"] for one in answer.raise_for_status().json()["messages"]]


def rejected(got: Got) -> bytes:
    """The answer to a batch that rejects the first attempts of some of its messages."""
    elements = orjson.loads(got.body)
    poison = (one for one in elements if one["body"]["message"]["data"].startswith(POISON))
    return orjson.dumps({"failed": [one["id"] for one in poison if one["attempt"] == 1]})


async def test_each_message_of_a_batch_is_verified_and_settles_alone(server: Running, client: httpx.AsyncClient):
    queue_id = await new_queue(client, "batched")
    async with Listeners(body=rejected) as local:
        urls = {"notify_url": local.url("hook"), "liveness_url": local.url("live")}
        settings = {"retry_first_ms": 100, "batch": {"max_messages": MAX_MESSAGES, "wait_ms": 50}}
        made = await client.put(f"/queues/{queue_id}/listeners", json={"name": "l", **urls, **settings})
        listener = made.raise_for_status().json()["listener"]

        def received() -> list[list[BatchMessage]]:
            return [everput.verify_batch(listener["secret"], got.headers, got.body) for got in local.taken("hook")]

        ids = await put_many(client, queue_id)
        poison = {ids[number] for number in range(0, MANY, 100)}
        wanted = Counter(ids) + Counter(poison)

        def seen() -> Counter[str]:
            return Counter(one.id for batch in received() for one in batch)

        await until(lambda: seen() == wanted, what="all are delivered")
        assert max(map(len, received())) > 1
        assert max(map(len, received())) <= MAX_MESSAGES
        for got, batch in zip(local.taken("hook"), received(), strict=True):
            assert got.headers["everput-batch"] == str(len(batch))
            assert everput.verify(listener["secret"], got.headers, got.body).startswith("batch_")
        for one in (one for batch in received() for one in batch):
            body = orjson.loads(one.body)
            assert (body["queue"]["id"], body["message"]["id"]) == (queue_id, one.id)

        async def attempts(message_id: str) -> list[tuple[int, str | None]]:
            shown = (await client.get(f"/queues/{queue_id}/messages/{message_id}")).json()["message"]["listeners"][0]
            return [(one["status"], one["error"]) for one in shown["attempts"]] if shown["state"] == "delivered" else []

        for message_id in (*poison, ids[1]):
            found = await until(lambda one=message_id: attempts(one), what="its attempts are stored")
            assert found == [(200, "failed-in-batch"), (200, None)] if message_id in poison else [(200, None)]

        (shown,) = re.findall(r"^```json\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
        assert alike(orjson.loads(shown)[0]) == alike(orjson.loads(local.taken("hook")[0].body)[0])
        await client.put(f"/queues/{queue_id}/listeners/{listener['id']}", json={"batch": None})

        async def is_alone() -> bool:
            before = len(local.taken("hook"))
            await client.put(f"/queues/{queue_id}/messages", json={"data": "alone"})
            await until(lambda: len(local.taken("hook")) > before, what="it comes")
            (alone,) = received()[-1]
            assert orjson.loads(alone.body)["message"]["data"] == "alone"
            return isinstance(orjson.loads(local.taken("hook")[-1].body), dict)

        await until(is_alone, what="the worker knows of the change")


def alike(value: Any) -> Any:
    """The names of all fields, and the types of their values."""
    return {name: alike(one) for name, one in value.items()} if isinstance(value, dict) else type(value)


async def test_a_tunnel_passes_batches_on_and_brings_the_rejected_messages_back(
    server: Running, client: httpx.AsyncClient
):
    queue_id = await new_queue(client, "tunnelled")
    async with Listeners(body=rejected) as local:
        async with Listen(server, "tunnelled", "--to", local.url("hook")) as listen:
            path = f"/queues/{queue_id}/listeners/{listen.events('listening')[0]['id']}"
        settings = {"retry_first_ms": 100, "batch": {"max_messages": MAX_MESSAGES}}
        (await client.put(path, json=settings)).raise_for_status()
        ids = await put_many(client, queue_id)  # They wait for the next tunnel, which comes after the setting.
        async with Listen(server, "tunnelled", "--to", local.url("hook")) as listen:

            def shown() -> Counter[tuple[str, bool]]:
                answered = [one for event in listen.events("answered") for one in event["messages"]]
                return Counter((one["message_id"], one["accepted"]) for one in answered)

            poison = {ids[number] for number in range(0, MANY, 100)}
            wanted = Counter((one, True) for one in ids) + Counter((one, False) for one in poison)
            await until(lambda: shown() == wanted, what="each is accepted once, and poison is rejected before")
            assert max(len(event["messages"]) for event in listen.events("answered")) > 1
