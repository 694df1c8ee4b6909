"""The samples of Getting Started, run as programs of their own against a live server on real Kafka.

There is no worker: the samples' listeners are at myapp.io, and nothing must be sent there."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from api.app import make_app
from broker.commands import create_key, create_organization
from broker.kafka.log import KafkaLog
from broker.kafka.topics import Topics
from broker.sealing import Sealer, new_sealing_key
from broker.settings import KafkaSettings, Settings
from projections.app import Projections
from tests.patience import patient

__all__ = ["patient"]

HERE = Path(__file__).parent
UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"


@pytest.fixture
async def environment(kafka_settings: KafkaSettings, ready_topics: Topics) -> AsyncIterator[dict[str, str]]:
    """Where the API is, and a key for it."""
    settings = Settings(kafka=kafka_settings, sealing_key=new_sealing_key())
    log = KafkaLog(kafka_settings)
    await log.start()
    projections = Projections(kafka_settings, log.control)
    await projections.start()
    view = projections.directory
    organization = await create_organization(log.control, view, name="myapp.io")
    _, key = await create_key(log.control, view, organization_id=organization.id, name="first")
    app = make_app(settings, log=log, view=view, sealer=Sealer(settings.sealing_key))
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning", lifespan="off"))
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield {"EVERPUT_API": f"http://127.0.0.1:{port}", "EVERPUT_KEY": key, "NO_PROXY": "127.0.0.1"}
    server.should_exit = True
    await serving
    await projections.stop()
    await log.stop()


async def run(command: list[str], environment: dict[str, str]) -> dict[str, Any]:
    """What the program printed, as JSON."""
    process = await asyncio.create_subprocess_exec(
        *command,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, **environment},
    )
    out, err = await asyncio.wait_for(process.communicate(), 120)
    assert process.returncode == 0, err.decode()
    return json.loads(out)


def check(answers: dict[str, Any], api: str) -> None:
    """Each answer against the page."""
    queue, again, listener, message = (answers[name] for name in ("queue", "again", "listener", "message"))
    assert [one["status"] for one in (queue, again, listener, message)] == [200, 422, 200, 200]
    assert {one["type"] for one in (queue, listener, message)} == {"application/json"}
    queue_id = queue["body"]["queue"]["id"]
    assert re.fullmatch(UUID, queue_id)
    assert queue["body"] == {
        "queue": {"id": queue_id, "name": "myapp.io/deletion-request-queue", "listeners": []},
        "_links": {"self": {"href": f"{api}/v1/queues/{queue_id}"}},
    }
    assert again["type"] == "application/problem+json"
    assert {"title": "Unprocessable Entity", "status": 422}.items() <= again["body"].items()
    listener_id = listener["body"]["listener"]["id"]
    assert re.fullmatch(UUID, listener_id)
    assert listener["body"]["listener"]["name"] == "myapp.io/deletion-request-listener"
    assert listener["body"]["_links"] == {"self": {"href": f"{api}/v1/queues/{queue_id}/listeners/{listener_id}"}}
    message_id = message["body"]["message"]["id"]
    assert re.fullmatch(UUID, message_id)
    name = message["body"]["message"]["name"]
    assert re.fullmatch(r"myapp\.io/deletion-request-queue-message-[0-9a-f]{7}", name)
    assert message["body"] == {
        "message": {"id": message_id, "name": name},
        "_links": {"self": {"href": f"{api}/v1/queues/{queue_id}/messages/{message_id}"}},
    }


@pytest.mark.skipif(shutil.which("node") is None, reason="there is no node on this machine's PATH")
async def test_the_javascript_samples_get_the_answers_that_the_page_shows(environment):
    check(await run(["node", str(HERE / "getting_started.mjs")], environment), environment["EVERPUT_API"])


async def test_the_python_samples_get_the_answers_that_the_page_shows(environment):
    check(await run([sys.executable, str(HERE / "getting_started.py")], environment), environment["EVERPUT_API"])


@pytest.mark.skipif(shutil.which("go") is None, reason="there is no go on this machine's PATH")
async def test_the_go_samples_get_the_answers_that_the_page_shows(environment):
    local = {**environment, "GOTOOLCHAIN": "local", "GOPROXY": "off"}
    check(await run(["go", "run", str(HERE / "getting_started.go")], local), environment["EVERPUT_API"])
