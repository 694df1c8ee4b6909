"""The log's commands against a real server: what was done is told, as often as it is asked."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer, ThreadingHTTPServer
from itertools import islice
from pathlib import Path
from typing import Any

import httpx
import pytest

from cli import log_client
from cli.exports import manifest
from tests.scenarios.running import Running, clean_environment, everput, wait_until


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with Running(tmp_path_factory.mktemp("log") / "data") as running:
        assert running.url
        yield running


@pytest.fixture(scope="module")
def queue_id(server: Running) -> str:
    return str(request(server, "PUT", "/v1/queues", {"name": "orders"})["queue"]["id"])


def request(server: Running, method: str, path: str, body: object = None) -> dict[str, Any]:
    answer = httpx.request(
        method, server.url + path, json=body, headers={"x-api-key": server.api_key}, timeout=20
    ).raise_for_status()
    return dict(answer.json())


def log(server: Running, *arguments: str) -> list[str]:
    done = everput("log", *arguments, "--data-dir", str(server.data_dir), EVERPUT_URL=server.url)
    assert done.returncode == 0, done.stderr
    return done.stdout.removesuffix("\n").split("\n")  # not splitlines(): \u2028 ends no line of JSON


def test_the_log_tells_of_what_was_done_before_it_was_asked(server: Running, queue_id: str):
    data = "with \u2028 and \x1b[31m\n"
    made = request(server, "PUT", f"/v1/queues/{queue_id}/messages", {"data": data})["message"]
    lines = [json.loads(line) for line in log(server, "--json", "--queue", "orders")]
    assert [line["event"]["type"] for line in lines] == ["queue.created", "message.put"]
    assert lines[1]["event"]["data"] == data
    (told,) = log(server, "--message", made["id"])
    assert told.split()[1] == "message.put"
    said = ["orders (", made["id"], f"name={made['name']}", f"by {lines[1]['event']['actor']}"]
    assert [one for one in [*said, f"request {lines[1]['event']['request_id']}"] if one not in told] == []
    assert "\x1b" not in told
    who = [json.loads(line)["event"]["actor"] for line in log(server, "--json")]
    assert all(who)


def test_a_follower_is_told_of_what_happens_and_goes_on_when_the_api_was_killed(server: Running, queue_id: str):
    command = [sys.executable, "-P", "-m", "cli.app", "log", "--follow", "--json", "--type", "queue"]
    more = {"EVERPUT_URL": server.url, "EVERPUT_DATA_DIR": str(server.data_dir)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=clean_environment(**more)) as follower:
        assert follower.stdout is not None
        try:
            assert json.loads(follower.stdout.readline())["event"]["queue_id"] == queue_id
            server.kill("api-1")
            wait_until(
                lambda: httpx.get(f"{server.url}/v1/nothing", timeout=20).status_code == 404, what="the API answers"
            )
            request(server, "PUT", f"/v1/queues/{queue_id}", {"name": "orders-2"})
            assert json.loads(follower.stdout.readline())["event"]["name"] == "orders-2"
            request(server, "PUT", f"/v1/queues/{queue_id}", {"name": "orders"})
            assert json.loads(follower.stdout.readline())["event"]["name"] == "orders"
        finally:
            follower.send_signal(signal.SIGINT)
            follower.wait(60)
    assert follower.returncode == 0


@contextmanager
def a_listener() -> Iterator[str]:
    """Its URL. It takes whatever it gets."""

    class Taking(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Taking) as taking:
        threading.Thread(target=taking.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{taking.server_port}/"
        taking.shutdown()


def test_a_story_that_is_followed_goes_on_with_what_is_new_and_of_concern(server: Running):
    queue = f"/v1/queues/{request(server, 'PUT', '/v1/queues', {'name': 'followed'})['queue']['id']}"
    with a_listener() as url:
        urls = {"notify_url": url, "liveness_url": url}
        made = request(server, "PUT", f"{queue}/listeners", {"name": "taking", **urls})["listener"]
        message_id = request(server, "PUT", f"{queue}/messages", {"data": "d"})["message"]["id"]
        asked = ["--follow", "--json", "--message", message_id]
        command = [sys.executable, "-P", "-m", "cli.app", "log", *asked]
        more = {"EVERPUT_URL": server.url, "EVERPUT_DATA_DIR": str(server.data_dir)}
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=clean_environment(**more)) as follower:
            assert follower.stdout is not None

            def told() -> str:
                return str(json.loads(follower.stdout.readline())["event"]["type"])

            try:
                assert [told(), told()] == ["message.put", "deliveries.settled"]
                request(server, "POST", f"{queue}/listeners/{made['id']}/redrive")  # it does not owe this message
                request(server, "DELETE", f"{queue}/messages/{message_id}")
                assert told() == "message.deleted"
            finally:
                follower.send_signal(signal.SIGINT)
                follower.wait(60)
        assert follower.returncode == 0


def test_a_story_that_is_followed_is_asked_for_now_and_then(
    server: Running, queue_id: str, monkeypatch: pytest.MonkeyPatch
):
    made = request(server, "PUT", f"/v1/queues/{queue_id}/messages", {"data": "d"})["message"]
    slept: list[float] = []
    monkeypatch.setattr("cli.log_client.time.sleep", slept.append)
    with log_client.client(server.url, server.api_key) as api_client:
        parts = log_client.read(api_client, {"message": made["id"]}, follow=True)
        complete = islice((part for part in parts if part.complete), 4)
        assert [len(part.lines) for part in complete][:1] == [1]
    assert slept == [log_client.STORY_PAUSE_S] * 3


def test_each_filter_of_the_command_is_one_of_the_log(server: Running, queue_id: str):
    urls = {"notify_url": "https://listener.example/n", "liveness_url": "https://listener.example/l"}
    path = f"/v1/queues/{queue_id}/listeners"
    listener_id = request(server, "PUT", path, {"name": "filtered", **urls})["listener"]["id"]
    request(server, "POST", f"{path}/{listener_id}/pause")
    ids = [request(server, "PUT", f"/v1/queues/{queue_id}/messages", {"data": one})["message"]["id"] for one in "ab"]
    request(server, "DELETE", f"/v1/queues/{queue_id}/messages/{ids[0]}")
    request(server, "DELETE", f"{path}/{listener_id}")

    def told(*arguments: str) -> list[dict[str, Any]]:
        return [json.loads(line)["event"] for line in log(server, "--json", *arguments) if line]

    of_listener = told("--listener", listener_id)
    assert [event["type"] for event in of_listener] == ["listener.created", "listener.paused", "listener.deleted"]
    at = [f"{datetime.fromtimestamp(event['at_ms'] / 1000, UTC):%Y-%m-%dT%H:%M:%S.%fZ}" for event in of_listener]
    asked = [
        ["--listener", listener_id, "--type", "listener.paused"],
        ["--listener", listener_id, "--limit", "2"],
        ["--listener", listener_id, "--actor", of_listener[0]["actor"]],
        ["--listener", listener_id, "--actor", "worker"],
        ["--listener", listener_id, "--from", at[1], "--to", at[2]],
        ["--message", ids[0]],
        ["--queue", queue_id, "--type", "message.put"],
    ]
    with ThreadPoolExecutor() as at_once:  # each waits until its end is two seconds past
        paused, two, by_actor, by_another, between, story, puts = at_once.map(lambda one: told(*one), asked)
    assert paused == between == [of_listener[1]]
    assert (two, by_actor, by_another) == (of_listener[:2], of_listener, [])
    assert [event["type"] for event in story][:2] == ["message.put", "message.deleted"]
    assert {event["message_id"] for event in puts} >= set(ids)


def test_a_listeners_name_is_looked_up_in_the_queue_that_is_given(server: Running, queue_id: str):
    urls = {"notify_url": "https://listener.example/n", "liveness_url": "https://listener.example/l"}
    queues = [queue_id, request(server, "PUT", "/v1/queues", {"name": "twins"})["queue"]["id"]]
    for queue in queues:
        made = request(server, "PUT", f"/v1/queues/{queue}/listeners", {"name": "twin", **urls})["listener"]
        lines = log(server, "--json", "--queue", queue, "--listener", "twin")
        assert [json.loads(line)["event"]["listener_id"] for line in lines] == [made["id"]]
    asked = everput("log", "--listener", "twin", "--data-dir", str(server.data_dir), EVERPUT_URL=server.url)
    assert (asked.returncode, "2 queues have a listener with the name twin" in asked.stderr) == (2, True)


def test_a_key_of_the_scope_audit_is_all_that_a_story_needs(server: Running, queue_id: str):
    message_id = request(server, "PUT", f"/v1/queues/{queue_id}/messages", {"data": "d"})["message"]["id"]
    more = ["--data-dir", str(server.data_dir), "--json"]
    key = json.loads(everput("keys", "create", "auditor", "--scope", "audit", *more, EVERPUT_URL=server.url).stdout)
    done = everput("log", "--message", message_id, EVERPUT_URL=server.url, EVERPUT_API_KEY=key["secret"])
    assert (done.returncode, "message.put" in done.stdout) == (0, True), done.stderr
    assert httpx.get(f"{server.url}/v1/queues", headers={"x-api-key": key["secret"]}, timeout=20).status_code == 403


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--type", "nothing"], "is not a type of event"),
        (["--message", "x"], "No message of this organization has this ID."),
        (["--message", "019b76d9-05ab-7003-8123-456789abcdef"], "No message of this organization has this ID."),
        (["--queue", "nobody's"], "No queue of this organization has, or had, this ID."),
        (["--listener", "x"], "No listener or replay of this organization has, or had, this ID."),
        (["--actor", "somebody"], "`actor` must be"),
        (["--from", "tomorrow"], "is not a time"),
        (["--follow", "--to", "1s"], "does not end"),
    ],
)
def test_what_can_t_be_asked_is_said(server: Running, arguments: list[str], said: str, tmp_path: Path):
    done = everput("log", *arguments, "--data-dir", str(server.data_dir), EVERPUT_URL=server.url)
    assert done.returncode in (1, 2)
    assert said in done.stderr


def test_a_queue_is_shown_as_it_was(server: Running, queue_id: str):
    before = request(server, "GET", f"/v1/queues/{queue_id}")["queue"]["name"]
    made_at = json.loads(log(server, "--json", "--queue", queue_id, "--type", "queue.created")[0])["event"]["at_ms"]
    request(server, "PUT", f"/v1/queues/{queue_id}", {"name": "renamed"})
    at = f"{datetime.fromtimestamp((made_at + 1) / 1000, UTC):%Y-%m-%dT%H:%M:%S.%fZ}"
    arguments = ["--data-dir", str(server.data_dir), "--at", at, "--json"]
    shown = everput("show", "queue", queue_id, *arguments, EVERPUT_URL=server.url)
    assert json.loads(shown.stdout)["queue"]["name"] == "orders"
    missing = everput("show", "queue", "renamed", *arguments, EVERPUT_URL=server.url)
    assert (missing.returncode, "no queue that the API key can read has the name" in missing.stderr) == (1, True)
    request(server, "PUT", f"/v1/queues/{queue_id}", {"name": before})
    assert before in everput("show", "queue", before, *arguments[:2], EVERPUT_URL=server.url).stdout


def states(server: Running) -> dict[str, Any]:
    """What each process has folded, once all answer."""
    return wait_until(
        lambda: httpx.get(f"{server.admin_url}/state", timeout=20).json().get("states"), what="all processes answer"
    )


def test_the_log_is_whole_and_what_runs_holds_what_it_says(server: Running, queue_id: str):
    done = everput("verify", "--data-dir", str(server.data_dir), "--admin", server.admin_url)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    live = states(server)
    assert set(live) == {"api-1", "worker-1"}
    assert live["api-1"]["sha256"] in done.stderr


def test_a_process_that_holds_something_else_than_the_log_is_named(server: Running, queue_id: str):
    """Somebody who answers as an admin address does, and is wrong."""
    state = states(server)["api-1"]
    state["digests"][f"queue {queue_id}"] = "0" * len(state["digests"][f"queue {queue_id}"])
    state["sha256"] = "0" * 64
    body = json.dumps({"states": {"api-1": state, "of-another-version": {**state, "fields": "00000000"}}}).encode()

    class Wrong(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Wrong) as lying:
        threading.Thread(target=lying.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{lying.server_port}"
        done = everput("verify", "--data-dir", str(server.data_dir), "--admin", url)
        lying.shutdown()
    assert done.returncode == 1
    (line,) = done.stdout.splitlines()
    assert f"api-1 differs from the log at offset {state['position']} of control" in line
    assert f"queue {queue_id} is another there in id, with the hash 00000000 and not" in line
    assert f"{url} of-another-version was not compared" in done.stderr


def test_what_was_exported_of_a_data_dir_is_served_from_another(server: Running, queue_id: str, tmp_path: Path):
    message = request(server, "PUT", f"/v1/queues/{queue_id}/messages", {"data": "kept"})["message"]
    new = tmp_path / "new"
    new.mkdir()
    for name in ("sealing-key", "api-key"):  # with the key none is made anew, so the state is to be the same
        shutil.copy2(server.data_dir / name, new)
    before = states(server)["api-1"]["sha256"]
    for command, data_dir in (("export-all", server.data_dir), ("import", new)):
        done = everput(command, str(tmp_path / "all"), "--data-dir", str(data_dir))
        assert done.returncode == 0, done.stderr
    with Running(new) as again:
        assert request(again, "GET", f"/v1/queues/{queue_id}/messages/{message['id']}")["message"]["data"] == "kept"
        done = everput("verify", "--data-dir", str(new), "--admin", again.admin_url)
        assert (done.returncode, done.stdout) == (0, ""), done.stderr
        assert before in done.stderr


def test_the_exports_of_two_organizations_share_nothing(server: Running, queue_id: str, tmp_path: Path):
    with httpx.Client(base_url=server.url, timeout=20) as client:
        account = {"email": "other@example.com", "password": "correct horse battery staple"}
        client.put("/v1/accounts", json=account).raise_for_status()
        session = client.post("/v1/sessions", json=account).raise_for_status().json()["session"]
        client.headers["authorization"] = f"Bearer {session['token']}"
        organization = client.put("/v1/organizations", json={"name": "other"}).raise_for_status().json()["organization"]
        path = f"/v1/organizations/{organization['id']}/keys"
        scopes = ["queues", "messages", "audit"]
        key = client.put(path, json={"name": "k", "scopes": scopes}).raise_for_status().json()["key"]["secret"]
    private = {"name": "private", "notify_url": "https://n.example/", "liveness_url": "https://l.example/"}
    path = f"/v1/queues/{queue_id}/listeners"
    made = request(server, "PUT", path, {**private, "headers": {"authorization": "Bearer of-theirs"}})["listener"]
    signing = request(server, "GET", f"{path}/{made['id']}/secret")["secret"]
    their_queue = httpx.put(f"{server.url}/v1/queues", json={"name": "orders"}, headers={"x-api-key": key}, timeout=20)
    assert their_queue.status_code == 200
    texts = {}
    for name, mine in (("ours", server.api_key), ("theirs", key)):
        done = everput("export", str(tmp_path / name), EVERPUT_URL=server.url, EVERPUT_API_KEY=mine)
        assert done.returncode == 0, done.stderr
        texts[name] = b"".join(path.read_bytes() for path in sorted((tmp_path / name).glob("events-*")))
    found = {name: [json.loads(line) for line in text.splitlines()] for name, text in texts.items()}
    places = {name: {(one["topic"], one["partition"], one["offset"]) for one in of} for name, of in found.items()}
    assert places["ours"].isdisjoint(places["theirs"])
    assert {one["event"]["organization_id"] for one in found["theirs"]} == {organization["id"]}
    assert organization["id"].encode() not in texts["ours"]
    digest = hashlib.sha256(server.api_key.encode()).hexdigest()
    for secret in ("of-theirs", signing, "whsec_", "gAAAAA", server.api_key, digest, "argon2"):
        assert secret.encode() not in texts["ours"]
    assert made["id"].encode() in texts["ours"]
    assert queue_id.encode() in texts["ours"]
    assert queue_id.encode() not in texts["theirs"]


# The command as it is, but for the size of its files: the kills are to come between many.
SMALL_FILES = "from cli import app; from cli.exports import export; export.FILE_EVENTS = 500; app.main()"


def test_an_export_that_was_killed_again_and_again_has_every_event_once(server: Running, queue_id: str, tmp_path: Path):
    some = {"messages": [{"data": f"m{number}"} for number in range(1000)]}
    ids = {
        result["message"]["id"]
        for _ in range(10)
        for result in request(server, "POST", f"/v1/queues/{queue_id}/messages/batch", some)["messages"]
    }
    where = ["--data-dir", str(server.data_dir)]
    out, whole = tmp_path / "out", tmp_path / "whole"

    def made() -> manifest.Manifest:
        return manifest.load(out) or manifest.Manifest(kind="none yet")

    for files in (3, 8, 14):
        command = [sys.executable, "-P", "-c", SMALL_FILES, "export", str(out), *where]
        with subprocess.Popen(command, env=clean_environment(EVERPUT_URL=server.url)) as exporting:
            while len(made().files) < files and exporting.poll() is None:
                pass
            exporting.kill()
        # The first one has two seconds to wait at its end; the others, on a busy machine, may be through by now.
        assert files > 3 or not made().complete
    for folder in (out, whole):
        done = everput("export", str(folder), "--to", made().query["to"], *where, EVERPUT_URL=server.url)
        assert done.returncode == 0, done.stderr
        assert everput("check", str(folder)).returncode == 0
    assert made().complete
    lines = {
        folder: b"".join((folder / one.name).read_bytes() for one in kept.files).splitlines()
        for folder in (out, whole)
        if (kept := manifest.load(folder)) is not None
    }
    assert lines[out] == lines[whole]
    puts = [event["message_id"] for line in lines[out] if (event := json.loads(line)["event"])["type"] == "message.put"]
    assert len(puts) == len(set(puts))
    assert ids <= set(puts)
    assert sum(one.rows for one in made().files) == len(lines[out])
