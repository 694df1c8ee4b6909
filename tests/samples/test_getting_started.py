"""The samples of Getting Started, run as programs of their own against an API process on real Kafka.

There is no worker: the samples' listeners are at myapp.io, and nothing must be sent there."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from broker.kafka.embedded import EmbeddedKafka
from broker.sealing import new_sealing_key
from tests.kafka_clients import sasl_variables
from tests.scenarios.running import alone, everput, said

HERE = Path(__file__).parent
UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"


@pytest.fixture(scope="module")
def api(kafka_server: EmbeddedKafka, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where an `everput api` process answers."""
    options = ["--kafka", kafka_server.bootstrap, "--topic-prefix", f"test-{uuid.uuid4().hex[:12]}."]
    options += ["--replication", "1", "--flush-each-batch", "--partitions", "2"]
    options += ["--data-dir", str(tmp_path_factory.mktemp("samples"))]
    variables = {"EVERPUT_SEALING_KEY": new_sealing_key(), **sasl_variables(kafka_server.access)}
    assert everput("init", *options, **variables).returncode == 0  # before that nobody can register
    with alone("api", "--port", "0", *options, **variables) as process:
        yield said(process).removeprefix("ready ")


@pytest.fixture
def environment(api: str) -> dict[str, str]:
    """Where the API is, and a key for it: of an organization of one's own, for each sample puts the same name."""
    who = {"email": f"{uuid.uuid4().hex}@example.com", "password": "correct horse battery"}
    with httpx.Client(base_url=f"{api}/v1", trust_env=False, timeout=20) as client:

        def answer(method: str, path: str, body: dict[str, str]) -> dict[str, Any]:
            return client.request(method, path, json=body).raise_for_status().json()

        answer("PUT", "/accounts", who)
        client.headers["authorization"] = f"Bearer {answer('POST', '/sessions', who)['session']['token']}"
        organization = answer("PUT", "/organizations", {"name": "myapp.io"})["organization"]["id"]
        key = answer("PUT", f"/organizations/{organization}/keys", {"name": "first"})["key"]["secret"]
    return {"EVERPUT_API": api, "EVERPUT_KEY": key, "NO_PROXY": "127.0.0.1"}


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
