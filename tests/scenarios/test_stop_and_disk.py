"""SIGTERM in the middle of a delivery, and a disk that is nearly full: an `everput serve` as users run it."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.scenarios.running import Running, wait_until

SLOW_S = 2.0  # after it was told to


class Listener(ThreadingHTTPServer):
    """A message whose data is `slow` it takes SLOW_S after go_on. begun, taken: by data.

    down: it answers 503, to probes too. stopped: nothing waits any more.
    """

    daemon_threads = True

    def __init__(self) -> None:
        self.begun: Counter[str] = Counter()
        self.taken: Counter[str] = Counter()
        self.go_on = threading.Event()
        self.stopped = threading.Event()
        self.down = False
        self.probes = 0
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/"


class _Handler(BaseHTTPRequestHandler):
    server: Listener

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        data = json.loads(body)["message"]["data"]
        if self.server.down:
            self.answer(503)
            return
        self.server.begun[data] += 1
        if data == "slow":
            self.server.go_on.wait()
            self.server.stopped.wait(SLOW_S)
        self.server.taken[data] += 1
        self.answer(200)

    def do_GET(self) -> None:
        self.server.probes += 1
        self.answer(503 if self.server.down else 200)

    def answer(self, status: int) -> None:
        self.send_response(status)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def listener() -> Iterator[Listener]:
    with Listener() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.go_on.set()
        server.stopped.set()
        server.shutdown()
        thread.join()


def put(server: Running, path: str, body: dict[str, Any]) -> httpx.Response:
    return httpx.put(f"{server.url}/v1{path}", json=body, headers={"x-api-key": server.api_key}, timeout=20)


def listen(server: Running, queue: str, name: str, url: str) -> None:
    body = {"name": name, "notify_url": url, "liveness_url": url}
    assert put(server, f"/queues/{queue}/listeners", body).status_code == 200


def test_an_attempt_under_way_is_finished_and_a_full_disk_takes_nothing_while_it_delivers(
    tmp_path: Path, listener: Listener
):
    data_dir = tmp_path / "data"
    with Running(data_dir) as server:
        queue = put(server, "/queues", {"name": "orders"}).json()["queue"]["id"]
        listen(server, queue, "slow", listener.url)
        path = f"/queues/{queue}/messages"
        assert put(server, path, {"data": "first"}).status_code == 200
        wait_until(lambda: listener.taken["first"], what="the listener is known")
        assert put(server, path, {"data": "slow"}).status_code == 200
        wait_until(lambda: listener.begun["slow"], what="the attempt is under way")
        server.process.terminate()
        wait_until(lambda: server.events("stopping"), what="stopping")
        assert not listener.taken["slow"]
        listener.go_on.set()
        assert server.stopped() == 0
        assert listener.taken == {"first": 1, "slow": 1}  # it was waited for
        assert not server.events("process.killed")
        listener.begun.clear()
    with Running(data_dir) as server:
        assert put(server, path, {"data": "after the start"}).status_code == 200
        wait_until(lambda: listener.taken["after the start"], what="deliveries go on")
        assert listener.begun["slow"] == 0  # its outcome was written down
        port = listener.server_address[1]
        listen(server, queue, "down", f"http://127.0.0.1:{port}/down")
        listener.down = True
        assert put(server, path, {"data": "waits"}).status_code == 200
        wait_until(lambda: listener.probes, what="the listener is down")
        assert server.stop() == 0
    with Running(data_dir, "--disk-free-bytes-min", str(1 << 60)) as server:
        wait_until(lambda: server.events("disk.nearly_full"), what="it has noticed")
        for refused in (
            put(server, path, {"data": "refused"}),
            put(server, path, {"data": "refused"}),
            put(server, "/queues", {"name": "another"}),
        ):
            assert refused.status_code == 503
            assert int(refused.headers["retry-after"]) > 0
            assert "disk is nearly full" in refused.json()["detail"]
        listener.down = False
        wait_until(lambda: listener.taken["waits"] == 2, what="both get what waited")
        assert listener.taken["refused"] == 0
        assert server.stop() == 0
