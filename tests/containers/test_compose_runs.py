"""compose.yaml and the Dockerfile run for real, in podman: started, locked down, delivering, started again.

images.sh makes the images, which stand in for those of a registry. It needs root, podman, runc, debootstrap and
podman-compose (`pip install podman-compose`); without them the test is skipped. On one machine with
`CONTAINERS_CONF` naming a file with `[engine] runtime = "runc"` and `[network] network_backend = "netavark"`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml

from broker.kafka.embedded.jars import KAFKA_VERSION
from broker.sealing import new_sealing_key
from tests.scenarios.running import wait_until

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
NEEDED = ("podman", "runc", "debootstrap", "podman-compose")
PROJECT = "everput-test"
READY_S = 300.0
LISTENER = """
from http.server import BaseHTTPRequestHandler, HTTPServer
class Listener(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(204); self.end_headers()
    def do_POST(self):
        print("got", self.rfile.read(int(self.headers["content-length"])).decode(), flush=True)
        self.do_GET()
HTTPServer(("0.0.0.0", 9000), Listener).serve_forever()
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(
        sys.platform != "linux" or os.geteuid() != 0 or not all(map(shutil.which, NEEDED)),
        reason=f"needs root and {', '.join(NEEDED)}",
    ),
]


def run(*command: str, **environment: str) -> str:
    """What it prints on stdout."""
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, **environment}, check=False
    )
    assert done.returncode == 0, f"{command}: {done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


class Composed:
    """The services of compose.yaml. What podman's older versions do not know is left out: when health is looked at."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "compose.yaml"
        self.key_file = folder / "secrets" / "sealing-key"
        self.key_file.parent.mkdir(mode=0o700)
        self.key_file.write_text(new_sealing_key() + "\n")
        self.key_file.chmod(0o444)
        self.services = yaml.safe_load((ROOT / "compose.yaml").read_text())
        for service in self.services["services"].values():
            service.pop("depends_on", None)
            service.get("healthcheck", {}).pop("start_interval", None)
            service.pop("build", None)
        self.services["services"]["api"]["ports"] = ["127.0.0.1:18080:8080"]
        self._file.write_text(yaml.safe_dump(self.services))

    def __call__(self, *arguments: str) -> str:
        compose = ("podman-compose", "--in-pod", "false", "--project-name", PROJECT, "--file", str(self._file))
        given = {"EVERPUT_PARTITIONS": "4", "EVERPUT_ALLOW_NETWORK": "10.0.0.0/8"}
        given["KAFKA_IMAGE"] = f"docker.io/apache/kafka:{KAFKA_VERSION}"  # by images.sh: no digest is the real one's
        return run(*compose, *arguments, SEALING_KEY_FILE=str(self.key_file), **given)

    def healthy(self, *services: str) -> None:
        """Wait until each service's own health check is content. No systemd is there to ask it."""
        for service in services:
            ask = ("podman", "healthcheck", "run", container(service))
            wait_until(
                lambda ask=ask: subprocess.run(ask, capture_output=True, check=False).returncode == 0,
                what=f"{service} is healthy",
                within_s=READY_S,
            )


def container(service: str) -> str:
    return f"{PROJECT}_{service}_1"


def inside(service: str, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["podman", "exec", container(service), *command], capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def composed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Composed]:
    folder = tmp_path_factory.mktemp("containers")
    run(str(HERE / "images.sh"), str(folder / "images"))
    compose = Composed(folder)
    try:
        compose("up", "--detach", "--no-build", "kafka-1", "kafka-2", "kafka-3")
        compose.healthy("kafka-1", "kafka-2", "kafka-3")
        compose("up", "--detach", "--no-build", "--no-recreate", "api", "worker")
        compose.healthy("api", "worker")
        yield compose
    finally:
        for service in compose.services["services"]:
            log = ["podman", "logs", "--tail", "20", container(service)]
            print(subprocess.run(log, capture_output=True, text=True, check=False))
        compose("down", "--volumes")


@pytest.fixture(scope="module")
def client(composed: Composed) -> Iterator[httpx.Client]:
    said = composed("--profile", "init", "run", "--rm", "--no-deps", "-T", "init")
    key = next(text.strip() for text in said.splitlines() if text.startswith("evp_"))
    with httpx.Client(base_url="http://127.0.0.1:18080/v1", headers={"x-api-key": key}, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def listener(composed: Composed) -> Iterator[str]:
    name = f"{PROJECT}-listener"
    where = ("--name", name, "--network", f"{PROJECT}_default")
    run("podman", "run", "--detach", "--rm", *where, "docker.io/library/python:3.13-slim", "python", "-c", LISTENER)
    yield name
    run("podman", "rm", "--force", "--time", "0", name)


def put(client: httpx.Client, queue: str, data: str) -> None:
    client.put(f"/queues/{queue}/messages", json={"data": data}).raise_for_status()


def arrived(listener: str, data: str) -> bool:
    return data in run("podman", "logs", listener)


def test_a_message_is_delivered_also_when_a_broker_and_our_processes_were_started_again(
    composed: Composed, client: httpx.Client, listener: str
):
    queue = client.put("/queues", json={"name": "orders"}).raise_for_status().json()["queue"]["id"]
    where = {"notify_url": f"http://{listener}:9000/notify", "liveness_url": f"http://{listener}:9000/live"}
    client.put(f"/queues/{queue}/listeners", json={"name": "billing", **where}).raise_for_status()
    put(client, queue, "before")
    wait_until(lambda: arrived(listener, "before"), what="delivered")
    for service in ("kafka-1", "worker", "api"):
        run("podman", "restart", "--time", "60", container(service))
        composed.healthy(service)
    deadline_s = time.monotonic() + READY_S
    while True:
        try:
            put(client, queue, "after")
            break
        except httpx.HTTPError:
            assert time.monotonic() < deadline_s
    wait_until(lambda: arrived(listener, "after"), what="delivered again", within_s=READY_S)


@pytest.mark.parametrize("service", ["api", "worker"])
def test_compiled_modules_run_in_a_container_without_a_compiler(composed: Composed, service: str):
    where = "from broker.delivery.dispatch import dispatcher; print(dispatcher.__file__)"
    assert inside(service, "python", "-c", where).stdout.strip().endswith(".so")
    compilers = "import shutil; print([shutil.which(name) for name in ('cc', 'gcc')])"
    assert inside(service, "python", "-c", compilers).stdout.strip() == "[None, None]"


@pytest.mark.parametrize("service", ["kafka-1", "api", "worker"])
def test_a_container_has_no_rights_and_writes_nowhere_but_where_it_must(composed: Composed, service: str):
    status = inside(service, "cat", "/proc/1/status").stdout
    facts = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert facts["Uid"].split("\t")[0] != "0"
    assert {facts[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd")} == {"0" * 16}
    assert facts["NoNewPrivs"] == "1"
    for folder in ("/", "/etc", "/home", "/opt", "/usr/bin"):
        assert inside(service, "touch", f"{folder}/x").returncode != 0
    assert inside(service, "touch", "/tmp/x").returncode == 0


def test_the_sealing_key_is_not_in_the_environment(composed: Composed):
    key = composed.key_file.read_text().strip()
    for service in ("api", "worker"):
        assert key not in inside(service, "cat", "/proc/1/environ").stdout
        assert inside(service, "cat", "/run/secrets/sealing-key").stdout.strip() == key


def test_a_listener_in_the_other_network_does_not_reach_the_brokers(composed: Composed, listener: str):
    ask = "import socket; socket.create_connection(('kafka-1', 9092), 5)"
    assert inside("worker", "python", "-c", ask).returncode == 0
    refused = subprocess.run(["podman", "exec", listener, "python", "-c", ask], capture_output=True, check=False)
    assert refused.returncode != 0
