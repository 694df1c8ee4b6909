"""Two versions on one Kafka while messages flow: processes are replaced one by one, and back again (make soak).

Also one data directory, served by this version and then the version before. The model is Knative's continual upgrade
test. Not for: what comes of each delivery in a written directory (test_written.py)."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest

from broker.kafka.ports import free_port
from broker.sealing import new_sealing_key
from broker.settings import KafkaSettings
from tests.kafka_clients import sasl_variables
from tests.listeners import Listeners, until
from tests.scenarios import soak
from tests.scenarios.history import History
from tests.scenarios.running import STOPS_WITHIN_S, Running, clean_environment, everput
from tests.upgrades.program import NotHere, Program
from tests.upgrades.write import WRITTEN, listening

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

BEFORE = "be92053"  # the version before this one: what people upgrade from
THIS = Path(sys.executable)
READY_WITHIN_S = 120.0
MORE = 100  # puts between two replacements
REPLAYED, REPLAYED_PER_S = 1_000, 20  # some messages more than that: for longer than the way back begins
REPLAY_WITHIN_S = 300.0


@pytest.fixture(scope="module")
def before() -> Path:
    """The interpreter of the version before."""
    try:
        return Program.at(BEFORE).python
    except NotHere as error:
        pytest.skip(str(error))


class Place:
    """Where one process runs: `api` on a port of its own, or `worker`; of either version, one after the other."""

    def __init__(self, name: str, directory: Path, arguments: Sequence[str], environment: dict[str, str]) -> None:
        self.name = name
        self._role = name.partition("-")[0]
        self._arguments = [*arguments, "--allow-network", "127.0.0.0/8"]
        self.port = free_port()
        if self._role == "api":
            self._arguments += ["--port", str(self.port)]
        self._log = directory / f"{name}.log"
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None
        self._heard = 0  # bytes of its log before this process

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def said(self) -> str:
        """By the process that runs now."""
        return self._log.read_bytes()[self._heard :].decode()

    async def start(self, python: Path) -> None:
        self._heard = self._log.stat().st_size if self._log.exists() else 0
        with self._log.open("ab") as log:
            command = [str(python), "-P", "-m", "cli.app", self._role, *self._arguments]
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, env=clean_environment(**self._environment)
            )
        await until(self._is_ready, what=f"{self.name} is ready", within_s=READY_WITHIN_S)

    def _is_ready(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.said()[-5000:]
        return any(line.startswith("ready ") for line in self.said().splitlines())

    async def stop(self) -> None:
        """In order, and in time."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(self._process.wait, STOPS_WITHIN_S) == 0, self.said()[-5000:]

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            print("\n".join(line for line in self.said().splitlines()[-100:] if "attempt.failed" not in line))


class Either(httpx.AsyncBaseTransport):
    """Sends requests to several API processes in turn, past one that can't be reached: a load balancer."""

    def __init__(self, places: Sequence[Place]) -> None:
        self._places = list(places)
        self._network = httpx.AsyncHTTPTransport(limits=httpx.Limits(max_connections=50))

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self._places.append(self._places.pop(0))
        *others, last = self._places
        for place in others:
            with contextlib.suppress(httpx.ConnectError):
                return await self._send(request, place)
        return await self._send(request, last)

    async def _send(self, request: httpx.Request, place: Place) -> httpx.Response:
        request.url = request.url.copy_with(port=place.port)
        request.headers["host"] = f"127.0.0.1:{place.port}"
        return await self._network.handle_async_request(request)

    async def aclose(self) -> None:
        await self._network.aclose()


class Installation:
    """Two API processes and two workers on one Kafka, each of the version that it was started with last."""

    def __init__(self, kafka: KafkaSettings, directory: Path) -> None:
        self.options = [
            *("--kafka", kafka.bootstrap, "--topic-prefix", kafka.topic_prefix),
            *("--partitions", str(kafka.partitions), "--replication", "1", "--flush-each-batch"),
            *("--data-dir", str(directory)),
        ]
        self.environment = {"EVERPUT_SEALING_KEY": new_sealing_key(), **sasl_variables(kafka)}
        names = ("worker-1", "worker-2", "api-1", "api-2")
        self.places = {name: Place(name, directory, self.options, self.environment) for name in names}
        self.apis = [self.places["api-1"], self.places["api-2"]]

    async def replace(self, python: Path, history: History) -> None:
        """Replace one process after the other by another version, while messages are put and delivered.

        Workers go first, and last on the way back: they know every event that an API process writes.
        """
        names = list(self.places) if python == THIS else list(self.places)[::-1]
        for name in names:
            place, worker = self.places[name], name.startswith("worker")
            # A hand-over does not wait for a failing listener: its deliveries may come again.
            with history.crash() if worker else contextlib.nullcontext():
                await place.stop()
                await history.more(MORE)
                await place.start(python)
                if worker:
                    await until(lambda place=place: "worker.gained" in place.said(), what=f"{name} has a share")
            await history.more(MORE)
            await self.each_sees_what_the_other_has_made(history, name)

    async def each_sees_what_the_other_has_made(self, history: History, name: str) -> None:
        async with httpx.AsyncClient(headers={"x-api-key": history.client.headers["x-api-key"]}, timeout=30) as client:
            for one, other in (self.apis, self.apis[::-1]):
                body = {"name": f"{name} {one.name} {time.monotonic_ns()}"}
                made = (await client.put(f"{one.url}/v1/queues", json=body)).raise_for_status().json()["queue"]
                found = (await client.get(f"{other.url}/v1/queues/{made['id']}")).raise_for_status().json()["queue"]
                assert found["name"] == body["name"]
                put = {"json": {"data": "once"}, "headers": {"idempotency-key": body["name"]}}
                path = f"/v1/queues/{made['id']}/messages"
                answers = [await client.put(f"{api.url}{path}", **put) for api in (one, other)]
                assert len({answer.raise_for_status().json()["message"]["id"] for answer in answers}) == 1


@pytest.fixture
async def installation(kafka_settings: KafkaSettings, tmp_path: Path) -> AsyncIterator[Installation]:
    made = Installation(kafka_settings, tmp_path)
    try:
        yield made
    finally:
        for place in made.places.values():
            place.kill()


async def test_processes_are_replaced_one_by_one_by_another_version_and_back_and_nothing_is_lost(
    installation: Installation, before: Path, dice: random.Random
):
    places = installation.places
    await places["worker-1"].start(before)
    made = await asyncio.to_thread(everput, "init", *installation.options, python=before, **installation.environment)
    key = made.stdout.strip()
    for name in ("worker-2", "api-1", "api-2"):
        await places[name].start(before)
    transport = Either(installation.apis)
    async with soak.load_on(installation.apis[0].url, key, dice, lasts_s=60, transport=transport) as history:
        await history.more(REPLAYED)
        until_here = datetime.now(UTC)
        await installation.replace(THIS, history)
        await history.set_up("late")
        async with a_replay_that_the_version_before_may_not_know(history, until_here) as replay:
            await installation.replace(before, history)
            await history.arrived("steady")
            await installation.replace(THIS, history)
            await until(replay.finished, what="the replay has finished", within_s=REPLAY_WITHIN_S)
            replay.check()
    print(f"repeated {soak.repeated(history)}, answers {dict(history.answers)}")
    assert history.repeated("steady") == 0
    await history.check()
    verified = await asyncio.to_thread(everput, "verify", *installation.options, **installation.environment)
    assert (verified.returncode, verified.stdout) == (0, ""), verified.stderr


class Replay:
    """Of all that `steady` has got, to a listener of its own."""

    def __init__(self, history: History, listeners: Listeners, path: str, count: int) -> None:
        self._history = history
        self._listeners = listeners
        self._path = path
        self._count = count

    async def finished(self) -> bool:
        answer = await self._history.client.get(self._path)
        return answer.status_code == 200 and answer.json()["replay"]["state"] == "finished"

    def check(self) -> None:
        """All of it came."""
        assert len(self._listeners.ids("replayed")) == self._count


@contextlib.asynccontextmanager
async def a_replay_that_the_version_before_may_not_know(history: History, to: datetime) -> AsyncIterator[Replay]:
    """While processes of that version run it may stand still. It goes on when they are gone."""
    async with Listeners() as listeners:
        path = f"/v1/queues/{history.queue_id}/listeners"
        found = (await history.client.get(path)).raise_for_status().json()["listeners"]
        steady = next(one["id"] for one in found if one["name"] == "steady")
        url = listeners.url("replayed")
        settings = {"from": "beginning", "to": to.isoformat(), "notify_url": url, "liveness_url": url}
        settings["rate_per_s"] = REPLAYED_PER_S
        answer = await history.client.post(f"{path}/{steady}/replay", json=settings)
        made = answer.raise_for_status().json()["replay"]
        await until(lambda: listeners.taken("replayed"), what="the replay has begun")
        yield Replay(history, listeners, f"{path}/{steady}/replays/{made['id']}", made["count"])


async def test_a_directory_that_this_version_has_served_is_served_by_the_version_before_again(
    before: Path, tmp_path: Path
):
    """With its Kafka, too."""
    with tarfile.open(WRITTEN / f"{BEFORE}.tar.xz") as packed:
        packed.extractall(tmp_path, filter="data")
    account = json.loads((tmp_path / "account.json").read_text())
    path = f"/v1/queues/{account['queue_id']}/messages"
    async with listening(account["port"]) as listeners:
        for python, data in ((THIS, "first"), (before, "second"), (THIS, "third")):
            with Running(tmp_path / "data", *account["arguments"], python=python) as server:
                headers = {"x-api-key": account["api_key"]}
                async with httpx.AsyncClient(base_url=server.url, headers=headers, timeout=30) as client:
                    (await client.put(path, json={"data": data})).raise_for_status()

                def all_have_it(data: str = data) -> bool:
                    return all(data in {one.data for one in listeners.taken(name)} for name in account["listeners"])

                await until(all_have_it, what=f"all have got {data}")
                assert await asyncio.to_thread(server.stop) == 0
    for name in account["listeners"]:
        got = [one.message_id for one in listeners.taken(name) if "everput-replay" not in one.headers]
        assert len(got) == len(set(got)), name
