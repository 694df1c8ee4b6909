"""The samples of docs/getting-started.md, run as programs against an API process on real Kafka.

There is no worker: nothing is sent to the samples' listeners."""

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

PAGE_FOLDER = Path(__file__).parents[2] / "docs"
PAGE = (PAGE_FOLDER / "getting-started.md").read_text()
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
    # `everput serve` allows listeners on its own machine by itself, `everput api` does not.
    allowed = ("--allow-network", "127.0.0.0/8")
    with alone("api", "--port", "0", *allowed, *options, **variables) as process:
        yield said(process).removeprefix("ready ")


@pytest.fixture(scope="module")
def environment(api: str) -> dict[str, str]:
    """The variables that the page names. The key is of the organization that all languages share, as a reader's is."""
    who = {"email": f"{uuid.uuid4().hex}@example.com", "password": "correct horse battery"}
    with httpx.Client(base_url=f"{api}/v1", trust_env=False, timeout=20) as client:

        def answer(method: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
            return client.request(method, path, json=body).raise_for_status().json()

        answer("PUT", "/accounts", who)
        client.headers["authorization"] = f"Bearer {answer('POST', '/sessions', who)['session']['token']}"
        organization = answer("PUT", "/organizations", {"name": "myapp.io"})["organization"]["id"]
        rights = {"name": "first", "scopes": ["queues", "messages", "audit"]}
        key = answer("PUT", f"/organizations/{organization}/keys", rights)["key"]["secret"]
    listener = "http://127.0.0.1:9000"
    return {"EVERPUT_URL": api, "EVERPUT_API_KEY": key, "LISTENER_URL": listener, "NO_PROXY": "127.0.0.1"}


def blocks(language: str) -> list[str]:
    """The page's blocks of code in this language, in their order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


async def ended(
    command: list[str], environment: dict[str, str], folder: Path | None = None
) -> tuple[int | None, str, str]:
    """Run a program and return its exit code and what it printed to stdout and stderr."""
    process = await asyncio.create_subprocess_exec(
        *command,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, **environment},
        cwd=folder,
    )
    out, err = await asyncio.wait_for(process.communicate(), 280)
    return process.returncode, out.decode().strip(), err.decode()


async def run(command: list[str], environment: dict[str, str]) -> list[dict[str, Any]]:
    """Run a program and return the answers that it printed. Each may have its status before it, which must be 200."""
    code, rest, err = await ended(command, environment)
    assert code == 0, err
    answers = []
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
    text = re.sub(r"(myapp\.io/deletion-request-queue)-(js|python|go)\b", r"\1", text)
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


def with_id(variable: str, value: str, sample: str) -> str:
    """Set a variable of a shell sample to this ID, in place of the ID on the page."""
    sample, count = re.subn(rf"^{variable}={UUID}$", f"{variable}={value}", sample, flags=re.MULTILINE)
    assert count == 1
    return sample


async def check_program(command: list[str], environment: dict[str, str]) -> None:
    """Run a language's program twice. The second run ends with the reason, because its queue exists already."""
    await check(await run(command, environment), environment)
    code, _, err = await ended(command, environment)
    assert code != 0
    assert re.match(r"A queue named '\S+' exists already\. Choose another name\.$", err, re.MULTILINE)


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl on this machine's PATH")
async def test_the_curl_samples_get_the_answers_that_the_page_shows(environment):
    export, create_queue, set_id, create_listener, put, show = blocks("sh")
    assert set(re.findall(r"^export (\w+)=", export, re.MULTILINE)) == environment.keys() - {"NO_PROXY"}
    (queue,) = await run(["sh", "-ec", create_queue], environment)
    set_id = with_id("QUEUE_ID", queue["queue"]["id"], set_id)
    listener, message = await run(["sh", "-ec", f"{set_id}\n{create_listener}\n{put}"], environment)
    await check([queue, listener, message], environment)
    show = with_id("MESSAGE_ID", message["message"]["id"], show)
    (shown,) = await run(["sh", "-ec", f"{set_id}\n{show}"], environment)
    assert shown["message"]["name"] == message["message"]["name"]


@pytest.mark.skipif(shutil.which("node") is None, reason="there is no node on this machine's PATH")
async def test_the_javascript_samples_get_the_answers_that_the_page_shows(environment, tmp_path):
    await check_program(["node", program("js", tmp_path / "getting-started.mjs")], environment)


async def test_the_python_samples_get_the_answers_that_the_page_shows(environment, tmp_path):
    await check_program([sys.executable, program("python", tmp_path / "getting_started.py")], environment)


async def test_the_readme_client_puts_a_message_and_prints_events_each_time_it_runs(environment, tmp_path):
    """The queue is that of the README's quick start."""
    readme = PAGE_FOLDER.with_name("README.md").read_text()
    (client,) = re.findall(r"```python\n(import everput\n.*?)```", readme, re.DOTALL)
    assert "http://127.0.0.1:8080" in client
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "api-key").write_text(environment["EVERPUT_API_KEY"] + "\n")
    (tmp_path / "client.py").write_text(client.replace("http://127.0.0.1:8080", environment["EVERPUT_URL"]))
    with httpx.Client(trust_env=False, headers={"x-api-key": environment["EVERPUT_API_KEY"]}) as http:
        http.put(f"{environment['EVERPUT_URL']}/v1/queues", json={"name": "orders"}).raise_for_status()
    for runs in (1, 2):
        code, out, err = await ended([sys.executable, "client.py"], environment, folder=tmp_path)
        assert code == 0, err
        assert str(["first"] * runs) in out
        assert "queue.created" in out


@pytest.mark.skipif(shutil.which("go") is None, reason="there is no go on this machine's PATH")
@pytest.mark.timeout(600)  # With an empty cache, Go first compiles its own library.
async def test_the_go_samples_get_the_answers_that_the_page_shows(environment, tmp_path):
    local = {**environment, "GOTOOLCHAIN": "local", "GOPROXY": "off"}
    await check_program(["go", "run", program("go", tmp_path / "getting-started.go")], local)
