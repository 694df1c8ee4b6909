"""A disk that is nearly full, and an organization that stores as much as it may.

The marks of free space are raised instead of the disk filled."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

import httpx
import pytest

from tests.scenarios.running import Running, wait_until


class _Refuses(BaseHTTPRequestHandler):
    """A listener that is alive and takes nothing."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.answer(500)

    def do_GET(self) -> None:
        self.answer(200)

    def answer(self, status: int) -> None:
        self.send_response(status)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def refuses() -> Iterator[str]:
    """Its URL."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Refuses) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()
        thread.join()


EMAIL = "admin@everput.local"
BEYOND = str(1 << 60)


class Client:
    """Requests of one server. key: of an organization; None for that of the first start."""

    def __init__(self, server: Running, key: str | None = None) -> None:
        self._server = server
        url = f"{server.url}/v1"  # first: then there is a key
        self._http = httpx.Client(base_url=url, headers={"x-api-key": key or server.api_key}, timeout=20)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> httpx.Response:
        return self._http.request(method, path, json=body, headers=headers)

    def answers(self) -> bool:
        try:
            return self.ask("GET", "/organizations").status_code == 200
        except httpx.TransportError:
            return False

    def made(self, path: str, body: Any) -> Any:
        answer = self.ask("PUT", path, body)
        assert answer.status_code == 200, answer.text
        return next(value for name, value in answer.json().items() if not name.startswith("_"))

    def sign_in(self) -> httpx.Response:
        password = (self._server.data_dir / "console-password").read_text().strip()
        return self.ask("POST", "/sessions", {"email": EMAIL, "password": password})


def test_rights_can_be_taken_away_below_the_first_mark_of_free_space_and_not_below_the_second(tmp_path: Path):
    with Running(tmp_path / "data") as server, Client(server) as client:
        organization = client.ask("GET", "/organizations").json()["organizations"][0]["id"]
        keys = [client.made(f"/organizations/{organization}/keys", {"name": name})["id"] for name in ("one", "two")]
        queues = [client.made("/queues", {"name": name})["id"] for name in ("one", "two")]
        url = "http://127.0.0.1:9999/"
        listener = client.made(
            f"/queues/{queues[1]}/listeners", {"name": "listener", "notify_url": url, "liveness_url": url}
        )["id"]
        messages = [client.made(f"/queues/{queues[1]}/messages", {"data": "x"})["id"] for _ in range(2)]
        bob = strangers_key(client, "bob")
        with Client(server, bob) as stranger:
            alerts = stranger.made("/queues", {"name": "everput.alerts"})["id"]
        assert server.stop() == 0

    def grows(client: Client) -> list[httpx.Response]:
        return [
            client.ask("PUT", f"/queues/{queues[1]}/messages", {"data": "x"}),
            client.ask("PUT", f"/queues/{queues[1]}/messages", {"data": "x"}, **{"idempotency-key": "1"}),
            client.ask("PUT", f"/queues/{queues[1]}/messages/{messages[1]}", {"data": "y"}),
            client.ask("PUT", "/queues", {"name": "three"}),
            client.ask("PUT", f"/organizations/{organization}/keys", {"name": "three"}),
            client.ask("PUT", "/accounts", {"email": "ann@example.com", "password": "correct horse battery"}),
        ]

    with Running(tmp_path / "data", "--disk-free-bytes-min", BEYOND) as server, Client(server) as client:
        wait_until(lambda: server.events("disk.nearly_full"), what="it has noticed")
        for refused in grows(client):
            assert refused.status_code == 503
            assert refused.json()["type"] == "/problems/disk-nearly-full"
        assert client.ask("DELETE", f"/organizations/{organization}/keys/{keys[0]}").status_code == 200
        session = client.sign_in()
        assert session.status_code == 200
        token = f"Bearer {session.json()['session']['token']}"
        assert client.ask("DELETE", "/sessions", authorization=token).status_code == 200
        assert client.ask("POST", f"/queues/{queues[1]}/listeners/{listener}/pause").status_code == 200
        assert client.ask("DELETE", f"/queues/{queues[1]}/messages/{messages[0]}").status_code == 200
        assert client.ask("DELETE", f"/queues/{queues[1]}/listeners/{listener}").status_code == 200
        assert client.ask("DELETE", f"/queues/{queues[0]}").status_code == 200
        with Client(server, bob) as stranger:

            def told() -> list[Any]:
                return list(stranger.ask("GET", f"/queues/{alerts}/messages").json()["messages"])

            (message,) = wait_until(told, what="an organization that asked for alerts is told")
            alert = json.loads(
                stranger.ask("GET", f"/queues/{alerts}/messages/{message['id']}").json()["message"]["data"]
            )
            assert (alert["type"], alert["facts"]) == ("disk.low", {"refused_below_mib": int(BEYOND) >> 20})
        assert server.stop() == 0
    both = ("--disk-free-bytes-min", BEYOND, "--disk-reserve-bytes", BEYOND)
    with Running(tmp_path / "data", *both) as server, Client(server) as client:
        wait_until(lambda: server.events("disk.full"), what="it has noticed")
        for refused in (
            *grows(client),
            client.ask("DELETE", f"/organizations/{organization}/keys/{keys[1]}"),
            client.sign_in(),
            client.ask("DELETE", f"/queues/{queues[1]}"),
        ):
            assert refused.status_code == 503
            assert refused.json()["type"] == "/problems/disk-nearly-full"
        assert client.ask("GET", f"/organizations/{organization}/keys/{keys[1]}").status_code == 200
        assert server.stop() == 0


def strangers_key(client: Client, name: str) -> str:
    """The key of a new account's organization."""
    who = {"email": f"{name}@example.com", "password": "correct horse battery"}
    client.made("/accounts", who)
    token = f"Bearer {client.ask('POST', '/sessions', who).json()['session']['token']}"
    organization = client.ask("PUT", "/organizations", {"name": name}, authorization=token).json()["organization"]
    # Without the operator's key, which would be taken for the asker.
    path = f"/organizations/{organization['id']}/keys"
    answer = client.ask("PUT", path, {"name": "k"}, authorization=token, **{"x-api-key": ""})
    return str(answer.json()["key"]["secret"])


def test_an_organization_at_its_bound_stays_refused_after_restarts_while_others_put_on(tmp_path: Path):
    bound = ("--organization-bytes-max", "100000")
    big = {"data": "x" * 1_000}
    with Running(tmp_path / "data", *bound) as server, Client(server) as operator:
        keys = [strangers_key(operator, name) for name in ("ann", "bob")]
        with Client(server, keys[0]) as ann, Client(server, keys[1]) as bob:
            paths = [f"/queues/{one.made('/queues', {'name': 'q'})['id']}/messages" for one in (ann, bob, operator)]
            answers = [ann.ask("PUT", paths[0], big).status_code for _ in range(110)]
            assert answers == sorted(answers)
            assert 60 < answers.count(200) < 100
            assert answers.count(507) == 110 - answers.count(200)
            assert bob.ask("PUT", paths[1], big).status_code == 200
            for _ in range(110):
                assert operator.ask("PUT", paths[2], big).status_code == 200
            server.kill("api-1")
            wait_until(bob.answers, what="the API is back")
            assert ann.ask("PUT", paths[0], big).status_code == 507
            assert bob.ask("PUT", paths[1], big).status_code == 200
        assert server.stop() == 0
    with Running(tmp_path / "data", *bound) as server:
        with Client(server, keys[0]) as ann, Client(server, keys[1]) as bob:
            refused = ann.ask("PUT", paths[0], big)
            assert refused.status_code == 507
            assert refused.json()["type"] == "/problems/storage-full"
            assert ann.ask("GET", "/organizations").json()["organizations"][0]["stored_bytes"] >= 100_000
            assert bob.ask("PUT", paths[1], big).status_code == 200
            assert 1_000 < bob.ask("GET", "/organizations").json()["organizations"][0]["stored_bytes"] < 10_000
        metrics = httpx.get(f"{server.admin_url}/metrics").text
        assert metrics.count("everput_organization_stored_bytes{") >= 2
        assert server.stop() == 0


def test_copies_that_workers_keep_for_listeners_count_for_their_organization(tmp_path: Path, refuses: str):
    with Running(tmp_path / "data", "--organization-bytes-max", str(4 << 20)) as server, Client(server) as operator:
        with Client(server, strangers_key(operator, "ann")) as ann:
            queue = ann.made("/queues", {"name": "q"})["id"]
            for number in range(20):
                body = {"name": str(number), "notify_url": refuses, "liveness_url": refuses, "max_attempts": 1}
                ann.made(f"/queues/{queue}/listeners", body)
            path = f"/queues/{queue}/messages"
            assert ann.ask("PUT", path, {"data": "x" * 250_000}).status_code == 200  # 5 MB are parked

            def stored() -> int:
                return int(ann.ask("GET", "/organizations").json()["organizations"][0]["stored_bytes"])

            wait_until(lambda: stored() >= 4 << 20, what="the worker has recorded the copies")
            assert ann.ask("PUT", path, {"data": "x"}).status_code == 507
        assert server.stop() == 0
