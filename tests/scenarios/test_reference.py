"""The running server against its own OpenAPI document: Schemathesis asks what that allows, and what it does not.

No 5xx, no status and no body that the document does not tell of, nothing that is there after it was deleted."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from api.reference import KEY, OPERATION_DOCS
from tests.scenarios.running import Running, clean_environment

CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,"
    "response_schema_conformance,use_after_free,ensure_resource_availability,unsupported_method,"
    "allow_header_conformance"
)  # not ignored_auth: it holds a bad session beside a good key against a request for which either will do
# Not the password of the examples: with that one they delete the account.
ACCOUNT = {"email": "ann@example.com", "password": "another horse battery"}


def asked(arguments: list[str], folder: Path, timeout_s: float) -> subprocess.CompletedProcess[str]:
    """Run Schemathesis in this folder until it ends, for at most this long."""
    return subprocess.run(
        [sys.executable, "-m", "schemathesis.cli", *arguments],
        capture_output=True,
        text=True,
        cwd=folder,
        env=clean_environment(),
        timeout=timeout_s,
        check=False,
    )


@pytest.mark.parametrize(
    "runs",
    [
        # On a busy machine, the second run may end before it has followed a link. Then the third one is needed.
        [("examples", 60), ("stateful", 10), ("stateful", 60)],
        pytest.param(
            [("examples,coverage,fuzzing,stateful", 900)], marks=[pytest.mark.slow, pytest.mark.timeout(1200)]
        ),
    ],
    ids=["short", "long"],
)
def test_the_server_keeps_to_its_document(tmp_path: Path, runs: list[tuple[str, int]]):
    with Running(tmp_path / "data") as server:
        url = server.url
        httpx.put(f"{url}/v1/accounts", json=ACCOUNT, timeout=60).raise_for_status()
        token = httpx.post(f"{url}/v1/sessions", json=ACCOUNT, timeout=60).raise_for_status().json()["session"]["token"]
        links = 0
        for phases, time_s in runs:
            arguments = [
                *("run", f"{url}/v1/openapi.json", "--checks", CHECKS, "--continue-on-failure", "--no-shrink"),
                *("--max-time", str(time_s), "--phases", phases),
                *("--exclude-path", "/v1/changes"),  # a stream that ends after 15 minutes
                *("-H", f"X-API-KEY: {server.api_key}", "-H", f"Authorization: Bearer {token}"),
            ]
            done = asked(arguments, tmp_path, time_s + 120)
            assert done.returncode == 0, done.stdout[-20_000:] + done.stderr
            covered = re.search(r"API Links: +(\d+) covered", done.stdout)
            links = 0 if covered is None else int(covered[1])
            if links > 0:
                break
        assert links > 0, done.stdout[-20_000:]
        assert not server.events("request.failed")


# A stream of events has no answer that ends: tests/unit/test_api_watch.py.
ANSWERED = [where for where, doc in OPERATION_DOCS.items() if doc.media != "text/event-stream"]
# These need a mail server or the token of a link, which no example has.
OF_LINKS = {"askForPasswordReset", "resetPassword", "acceptInvitation", "registerInvited"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with Running(tmp_path_factory.mktemp("reference") / "data", "--allow-network", "127.0.0.0/8") as server:
        assert server.url, "it is ready"
        yield server


@pytest.mark.slow
@pytest.mark.parametrize(("method", "path"), ANSWERED, ids=[OPERATION_DOCS[one].name for one in ANSWERED])
def test_with_real_ids_each_operation_succeeds_and_keeps_to_the_document(
    server: Running, tmp_path: Path, method: str, path: str
):
    name = OPERATION_DOCS[method, path].name
    world = World(server, name)
    key = {KEY: f"X-API-KEY: {server.api_key}"}.get(
        OPERATION_DOCS[method, path].asks, "X-Nothing: else"
    )  # or the account's own
    lines = [f'"path.{name}" = "{value}"' for name, value in world.ids.items() if "{" + name + "}" in path]
    (tmp_path / "schemathesis.toml").write_text("\n".join(["[parameters]", *lines]))
    arguments = [
        *("run", f"{server.url}/v1/openapi.json", "--checks", CHECKS, "--continue-on-failure", "--no-shrink"),
        *("--include-operation-id", name, "--phases", "examples,coverage,fuzzing", "--max-examples", "10"),
        *("--max-time", "15", "--report", "har", "--report-har-path", str(tmp_path / "report.har")),
        *("-H", key, "-H", f"Authorization: Bearer {world.token}"),
    ]
    done = asked(arguments, tmp_path, 240)
    assert done.returncode == 0, done.stdout[-5000:]
    entries = orjson.loads((tmp_path / "report.har").read_bytes())["log"]["entries"]
    statuses = Counter(one["response"]["status"] for one in entries if one["request"]["method"] == method)
    assert statuses[200] or name in OF_LINKS, statuses
    assert not server.events("request.failed")


class World:
    """Real things for one operation: an account, an organization, a key, a queue, a listener, a message, a replay."""

    def __init__(self, server: Running, name: str) -> None:
        example: dict[str, Any] = dict(OPERATION_DOCS["PUT", "/v1/accounts"].example or {})
        who = {**example, "email": f"{name.lower()}@example.com"}  # that of the example is made by createAccount itself

        def ask(method: str, path: str, *, headers: dict[str, str] | None = None, json: Any) -> Any:
            sent = headers or {"x-api-key": server.api_key}
            while (
                answer := httpx.request(method, f"{server.url}{path}", headers=sent, json=json, timeout=60)
            ).status_code == 429:
                time.sleep(int(answer.headers["retry-after"]))
            assert answer.status_code == 200, (method, path, answer.text)
            return answer.json()

        self.ids = {"account_id": ask("PUT", "/v1/accounts", json=who)["account"]["id"]}
        self.token = ask("POST", "/v1/sessions", json=who)["session"]["token"]
        session = {"authorization": f"Bearer {self.token}"}
        organization = ask("PUT", "/v1/organizations", json={"name": name}, headers=session)["organization"]["id"]
        queue = ask("PUT", "/v1/queues", json={"name": name})["queue"]["id"]
        at = f"/v1/queues/{queue}"
        url = "http://127.0.0.1:18/"  # nobody is there: all waits
        made = {"name": "listener", "notify_url": url, "liveness_url": url}
        listener = ask("PUT", f"{at}/listeners", json=made)["listener"]["id"]
        message = ask("PUT", f"{at}/messages", json={"data": "{}"})["message"]["id"]
        replay = ask("POST", f"{at}/listeners/{listener}/replay", json={"from": "beginning", "rate_per_s": 0.001})
        key = ask("PUT", f"/v1/organizations/{organization}/keys", json={"name": "key"}, headers=session)["key"]["id"]
        self.ids |= {"organization_id": organization, "queue_id": queue, "listener_id": listener, "message_id": message}
        invitations = f"/v1/organizations/{organization}/invitations"
        invited = ask("PUT", invitations, json={"email": "bob@example.com"}, headers=session)["invitation"]["id"]
        self.ids |= {"replay_id": replay["replay"]["id"], "key_id": key, "invitation_id": invited}
