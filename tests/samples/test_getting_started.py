"""The samples of docs/getting-started.md, run as programs against an API process on real Kafka.

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

from broker.kafka.embedded.kafka import EmbeddedKafka
from broker.sealing import new_sealing_key
from tests.kafka_clients import sasl_variables
from tests.scenarios.running import alone, everput, said

PAGE = (Path(__file__).parents[2] / "docs" / "getting-started.md").read_text()
UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
JSON = json.JSONDecoder()


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
    """The variables that the page names. The key is of a new organization: each language puts the same names."""
    who = {"email": f"{uuid.uuid4().hex}@example.com", "password": "correct horse battery"}
    with httpx.Client(base_url=f"{api}/v1", trust_env=False, timeout=20) as client:

        def answer(method: str, path: str, body: dict[str, str]) -> dict[str, Any]:
            return client.request(method, path, json=body).raise_for_status().json()

        answer("PUT", "/accounts", who)
        client.headers["authorization"] = f"Bearer {answer('POST', '/sessions', who)['session']['token']}"
        organization = answer("PUT", "/organizations", {"name": "myapp.io"})["organization"]["id"]
        key = answer("PUT", f"/organizations/{organization}/keys", {"name": "first"})["key"]["secret"]
    return {"EVERPUT_URL": api, "EVERPUT_API_KEY": key, "NO_PROXY": "127.0.0.1"}


def blocks(language: str) -> list[str]:
    """The page's blocks of code in this language, in their order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


async def run(command: list[str], environment: dict[str, str]) -> list[dict[str, Any]]:
    """Run a program and return the answers that it printed. Each may have its status before it, which must be 200."""
    process = await asyncio.create_subprocess_exec(
        *command,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, **environment},
    )
    out, err = await asyncio.wait_for(process.communicate(), 120)
    assert process.returncode == 0, err.decode()
    answers, rest = [], out.decode().strip()
    while rest:
        answer, end = JSON.raw_decode(rest.removeprefix("200 "))
        answers.append(answer)
        rest = rest.removeprefix("200 ")[end:].strip()
    return answers


def alike(value: Any, api: str) -> Any:
    """Return the JSON value with what differs from run to run replaced: ids, addresses, secrets."""
    text = json.dumps(value, ensure_ascii=False).replace("http://127.0.0.1:8080", api)
    text = re.sub(UUID, "UUID", text)
    text = re.sub(r"-message-[0-9a-f]{7}\b", "-message-SHORT", text)
    return json.loads(re.sub(r"whsec_[^\"]+", "SECRET", text))


def is_shown(shown: Any, answer: Any) -> bool:
    """Whether the answer has every field that the page shows, with the same value."""
    if isinstance(shown, dict) and isinstance(answer, dict):
        return all(name in answer and is_shown(value, answer[name]) for name, value in shown.items())
    return bool(shown == answer)


async def check(answers: list[dict[str, Any]], environment: dict[str, str]) -> None:
    """Compare a language's three answers, and that to a name that is taken, with those on the page."""
    queue, listener, message = answers
    async with httpx.AsyncClient(trust_env=False, headers={"x-api-key": environment["EVERPUT_API_KEY"]}) as client:
        again = await client.put(f"{environment['EVERPUT_URL']}/v1/queues", json={"name": queue["queue"]["name"]})
        stored = await client.get(message["_links"]["self"]["href"])
    assert stored.json()["message"]["data"] == '{ "userId": "481512342" }'
    assert (again.status_code, again.headers["content-type"]) == (422, "application/problem+json")
    pages = [json.loads(text) for text in blocks("json")]
    for shown, answer in zip(pages, (queue, again.json(), listener, message), strict=True):
        shown_alike, answer_alike = alike(shown, environment["EVERPUT_URL"]), alike(answer, environment["EVERPUT_URL"])
        assert is_shown(shown_alike, answer_alike), (shown_alike, answer_alike)
    assert listener["_links"]["self"]["href"].endswith(f"{queue['queue']['id']}/listeners/{listener['listener']['id']}")
    assert message["_links"]["self"]["href"].endswith(f"{queue['queue']['id']}/messages/{message['message']['id']}")


def program(language: str, path: Path) -> str:
    """Write all of a language's samples to a file, as the page says, and return its name."""
    path.write_text("\n".join(blocks(language)))
    return str(path)


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl on this machine's PATH")
async def test_the_curl_samples_get_the_answers_that_the_page_shows(environment):
    export, create_queue, set_id, *others = blocks("sh")
    assert set(re.findall(r"^export (\w+)=", export, re.MULTILINE)) == {"EVERPUT_URL", "EVERPUT_API_KEY"}
    (queue,) = await run(["sh", "-ec", create_queue], environment)
    set_id, count = re.subn(rf"^QUEUE_ID={UUID}$", f"QUEUE_ID={queue['queue']['id']}", set_id, flags=re.MULTILINE)
    assert count == 1
    await check([queue, *await run(["sh", "-ec", "\n".join([set_id, *others])], environment)], environment)


@pytest.mark.skipif(shutil.which("node") is None, reason="there is no node on this machine's PATH")
async def test_the_javascript_samples_get_the_answers_that_the_page_shows(environment, tmp_path):
    await check(await run(["node", program("js", tmp_path / "getting-started.mjs")], environment), environment)


async def test_the_python_samples_get_the_answers_that_the_page_shows(environment, tmp_path):
    await check(
        await run([sys.executable, program("python", tmp_path / "getting_started.py")], environment), environment
    )


@pytest.mark.skipif(shutil.which("go") is None, reason="there is no go on this machine's PATH")
async def test_the_go_samples_get_the_answers_that_the_page_shows(environment, tmp_path):
    local = {**environment, "GOTOOLCHAIN": "local", "GOPROXY": "off"}
    await check(await run(["go", "run", program("go", tmp_path / "getting-started.go")], local), environment)
