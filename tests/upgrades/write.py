"""Writes a data directory as an earlier version of Everput leaves it, with deliveries in every state.

    python -m tests.upgrades.write COMMIT

starts `everput serve` of that commit, uses it over REST and stops it, which takes a minute or two. The data directory,
with an account of what is in it, becomes `tests/upgrades/written/COMMIT.tar.xz`. Run this once for each release, with
its commit, and commit the file: test_written.py opens all of them with today's code. `WORKTREE` instead of COMMIT takes
the code of this environment, to try the script itself. `--kill` after it kills the server (SIGKILL) instead of stopping
it, and makes `COMMIT-killed.tar.xz`.

For: making test data. Not for: what must become of it (test_written.py)."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import tarfile
import tempfile
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import httpx

from tests.kafka.features import finalized_features
from tests.listeners import Got, Listeners, until
from tests.scenarios.running import Running
from tests.upgrades.program import Program

WRITTEN = Path(__file__).with_name("written")
ARGUMENTS = ("--partitions", "4")
PORT = 21099  # of the listeners, now and whenever the directory is opened; not one that systems give out
SOON = timedelta(minutes=15)  # past whenever a test opens the directory
LATER = timedelta(days=365)  # the furthest that the API takes
OVERLAP_S = 30 * 86_400  # likewise, of a secret's rotation
REPLAYED_PER_S = 2
RETRY_S = 45  # long enough to be set aside, and past whenever a test opens the directory
LEFT_OUT = (
    "client.properties",
    "kafka.log",
    "kafka.out",
    "kafka.pid",
    "kafka.properties",
    ".lock",
)  # made anew at each start; paths in them
EMAIL, PASSWORD = "ann@example.com", "violet anchor 93 pelican"


class Writer:
    """One run. account: what write() has found out, for the test: JSON."""

    def __init__(self, server: Running, listeners: Listeners) -> None:
        self._server = server
        self._listeners = listeners
        self._http = httpx.AsyncClient(base_url=server.url, timeout=30)
        self.queue_id = ""
        self.account: dict[str, Any] = {"arguments": ARGUMENTS, "port": PORT, "listeners": {}, "messages": {}}

    async def close(self) -> None:
        await self._http.aclose()

    async def ask(self, method: str, path: str, **arguments: Any) -> Any:
        answer = await self._http.request(method, path, **arguments)
        assert answer.status_code == 200, f"{method} {path}: {answer.status_code} {answer.text}"
        return answer.json()

    async def sign_up(self) -> None:
        """An account, its organization, and a key of it that makes everything else."""
        who = {"email": EMAIL, "password": PASSWORD}
        await self.ask("PUT", "/v1/accounts", json=who)
        token = (await self.ask("POST", "/v1/sessions", json=who))["session"]["token"]
        session = {"headers": {"authorization": f"Bearer {token}"}}
        made = (await self.ask("PUT", "/v1/organizations", json={"name": "Ann's"}, **session))["organization"]
        path = f"/v1/organizations/{made['id']}/keys"
        key = (await self.ask("PUT", path, json={"name": "kept"}, **session))["key"]
        revoked = (await self.ask("PUT", path, json={"name": "revoked"}, **session))["key"]
        await self.ask("DELETE", f"{path}/{revoked['id']}", **session)
        self._http.headers["x-api-key"] = key["secret"]
        self.account |= who | {
            "organization_id": made["id"],
            "api_key": key["secret"],
            "revoked_key": revoked["secret"],
        }

    async def listen(self, name: str, **settings: Any) -> None:
        url = self._listeners.url(name)
        body = {"name": name, "notify_url": url, "liveness_url": url, **settings}
        made = (await self.ask("PUT", f"/v1/queues/{self.queue_id}/listeners", json=body))["listener"]
        secret = (await self.ask("GET", self.path(made["id"], "secret")))["secret"]
        self.account["listeners"][name] = {
            "id": made["id"],
            "secret": secret,
            "headers": settings.get("headers", {}),
        }

    def path(self, listener: str, *more: str) -> str:
        """listener: its name, or its id."""
        known = self.account["listeners"].get(listener)
        return "/".join((f"/v1/queues/{self.queue_id}/listeners", listener if known is None else known["id"], *more))

    async def put(self, data: str, *, headers: dict[str, str] | None = None, **more: Any) -> str:
        asked = {"json": {"data": data, **more}, "headers": headers or {}}
        made = (await self.ask("PUT", f"/v1/queues/{self.queue_id}/messages", **asked))["message"]
        self.account["messages"][made["id"]] = {"data": data, **more}
        return str(made["id"])

    async def put_all(self, *data: str, key: str | None = None) -> list[str]:
        return [await self.put(one, **({} if key is None else {"key": key})) for one in data]

    async def arrived(self, *names: str, data: list[str]) -> None:
        for name in names:
            await until(
                lambda name=name: {one.data for one in self._listeners.taken(name)} >= set(data),
                what=f"{name} has {data}",
            )

    async def outstanding(self, name: str, state: str) -> set[str]:
        found = await self.ask("GET", self.path(name, "deliveries"), params={"state": state, "limit": "1000"})
        return {one["message"]["id"] for one in found["deliveries"]}

    async def states(self, message_id: str) -> dict[str, str]:
        """Of its deliveries, by listener."""
        found = await self.ask("GET", f"/v1/queues/{self.queue_id}/messages/{message_id}")
        return {one["name"]: one["state"] for one in found["message"]["listeners"]}

    async def write(self) -> None:
        await self.sign_up()
        await self.queues()
        await self.listen("steady", headers={"x-tenant": "blue"})
        await self.listen("rotated")
        await self.listen("replayed")
        await self.listen("picky", max_attempts=1)
        await self.listen("flaky", retry_first_ms=RETRY_S * 1000, retry_max_s=RETRY_S, max_age_s=366 * 86_400)
        everybody = list(self.account["listeners"])
        first = [*(f"m{number}" for number in range(24)), "k0", "k1"]
        await self.put_all(*first[:24])
        await self.put_all(*first[24:], key="k")
        await self.arrived(*everybody, data=first)
        await self.rotate("rotated")
        self.account["idempotent"] = {"key": "a key", "data": "once", "at_ms": _now_ms()}
        self.account["idempotent"]["id"] = await self.put("once", headers={"idempotency-key": "a key"})
        await self.arrived(*everybody, data=["once"])
        await self.replay_half("replayed")
        await self.put("due soon", deliver_at=_in(SOON))
        await self.put("due later", deliver_at=_in(LATER))
        self._listeners.down.add("rotated")
        await self.put_all("w0", "w1", "w2")
        await self.put_all("k2", "k3", "k4", key="k")
        await self.put_all("other0", "other1", key="other")
        changed, deleted = await self.put_all("changed", "deleted")
        refused = await self.put_all("refused0", "refused1")
        failed = await self.put_all("fails0", "fails1")
        await self.put_all("fails2", "behind0", "behind1", key="fails")
        await until(lambda: self._are("picky", "parked", set(refused)), what="picky's are parked")
        await until(lambda: self._are("flaky", "retrying", set(failed)), what="flaky's are set aside")
        await self.change(changed, deleted)
        above = [f"above{number}" for number in range(8)]
        await self.put_all("fails3", *above)  # the one is tried again by its stream, whose cursor says what is above it
        await self.arrived("flaky", data=above)
        await self.settled()

    async def queues(self) -> None:
        """One that is kept, under another name than at first, and one that is deleted."""
        self.queue_id = (await self.ask("PUT", "/v1/queues", json={"name": "at first"}))["queue"]["id"]
        await self.ask("PUT", f"/v1/queues/{self.queue_id}", json={"name": "orders"})
        deleted = (await self.ask("PUT", "/v1/queues", json={"name": "deleted"}))["queue"]["id"]
        await self.ask("PUT", f"/v1/queues/{deleted}/messages", json={"data": "nobody's"})
        await self.ask("DELETE", f"/v1/queues/{deleted}")
        self.account |= {"queue_id": self.queue_id, "queue": "orders"}

    async def rotate(self, name: str) -> None:
        former = self.account["listeners"][name]["secret"]
        made = await self.ask("POST", self.path(name, "secret", "rotate"), json={"overlap_s": OVERLAP_S})
        ends = datetime.fromisoformat(made["former"][0]["ends_at"])
        self.account["listeners"][name] |= {
            "secret": made["secret"],
            "former_secret": former,
            "former_ends_s": ends.timestamp(),
        }

    async def replay_half(self, name: str) -> None:
        """Half of what the listener has got comes once more; then the listener is down."""
        settings = {"from": "beginning", "rate_per_s": REPLAYED_PER_S}
        made = (await self.ask("POST", self.path(name, "replay"), json=settings))["replay"]
        await until(lambda: len(self._replayed()) >= made["count"] // 2, what="half of it is replayed")
        self._listeners.down.add(name)
        self.account["replay"] = {"id": made["id"], "listener": name, "count": made["count"]}

    def _replayed(self) -> list[Got]:
        return [one for one in self._listeners.got if "everput-replay" in one.headers]

    async def _are(self, name: str, state: str, ids: set[str]) -> bool:
        return await self.outstanding(name, state) >= ids

    async def change(self, changed: str, deleted: str) -> None:
        """What the listener that is down has not got yet is changed, or cancelled."""
        path = f"/v1/queues/{self.queue_id}/messages"
        await self.ask("PUT", f"{path}/{changed}", json={"data": "changed for the better"})
        await self.ask("DELETE", f"{path}/{deleted}")
        self.account["messages"][changed]["updated"] = "changed for the better"
        self.account["messages"][deleted]["deleted"] = True

    async def settled(self) -> None:
        """Ask for the state of each delivery until it is the one that stays."""
        lasting = {"delivered", "parked", "retrying", "pending", "cancelled"}
        got = {(one.path, one.message_id) for one in self._listeners.got if "everput-replay" not in one.headers}
        for message_id, message in self.account["messages"].items():
            if message.get("deleted"):
                continue

            async def last(message_id: str = message_id) -> dict[str, str] | None:
                states = await self.states(message_id)
                right = all(
                    state in lasting and (state == "delivered") == ((name, message_id) in got)
                    for name, state in states.items()
                )
                return states if right else None

            message["states"] = await until(last, what=f"{message} has come to rest")

    def stopped(self) -> None:
        """After the end of the server: what the listeners got is final."""
        taken: dict[str, list[str]] = {name: [] for name in self.account["listeners"]}
        replayed = []
        for one in self._listeners.got:
            if "everput-replay" in one.headers:
                replayed.append(one.message_id)
            else:
                taken[one.path].append(one.message_id)
        self.account["replay"]["taken"] = replayed
        for name, listener in self.account["listeners"].items():
            listener["taken"] = taken[name]


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _in(ahead: timedelta) -> str:
    return (datetime.now(UTC) + ahead).isoformat(timespec="milliseconds")


def _decide(listeners: Listeners, got: Got) -> int:
    if got.path in listeners.down:
        return 503
    refused = (got.path == "picky" and got.data.startswith("refused")) or (
        got.path == "flaky" and got.data.startswith("fails")
    )
    return 422 if refused else 200


async def features(server: Running) -> dict[str, int]:
    """What the server's Kafka has finalized."""
    return await finalized_features(int(server.kafka_address.rpartition(":")[2]))


@contextlib.asynccontextmanager
async def listening(port: int, **settings: Any) -> AsyncIterator[Listeners]:
    """Listeners at a port that another run of these tests may have; then it is waited for."""
    listeners = Listeners(port=port, **settings)

    async def bound() -> bool:
        try:
            await listeners.__aenter__()
        except OSError:
            return False
        return True

    await until(bound, what=f"port {port} is free", within_s=120)
    try:
        yield listeners
    finally:
        await listeners.__aexit__()


async def killed(server: Running) -> None:
    """End the server as a power cut would, and wait until its Kafka has ended with it."""
    kafka = int((server.data_dir / "kafka" / "kafka.pid").read_text())
    server.process.kill()

    def is_gone() -> bool:
        try:
            os.kill(kafka, 0)
        except ProcessLookupError:
            return True
        return False

    await asyncio.to_thread(server.process.wait)
    await until(is_gone, what="Kafka has ended")


async def write(directory: Path, commit: str, *, kill: bool = False) -> dict[str, Any]:
    """Fill the data directory; the account of what is in it. kill: the server does not end in order."""
    python = Path(sys.executable) if commit == "WORKTREE" else Program.at(commit).python
    async with listening(PORT) as listeners:
        listeners.decide = partial(_decide, listeners)
        with Running(directory, *ARGUMENTS, python=python) as server:
            writer = Writer(server, listeners)
            try:
                await writer.write()
                writer.account["features"] = await features(server)
            finally:
                await writer.close()
            if kill:
                await killed(server)
            else:
                assert await asyncio.to_thread(server.stop) == 0
        writer.stopped()
    return {"commit": commit, "written_at_ms": _now_ms(), **writer.account}


def pack(directory: Path, account: dict[str, Any], archive: Path) -> None:
    def kept(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
        if Path(member.name).name in LEFT_OUT:
            return None
        member.uid = member.gid = 0
        member.uname = member.gname = ""
        return member

    for suffix, size in ((".index", 8), (".timeindex", 12)):
        for path in directory.rglob(f"*{suffix}"):  # a Kafka that was killed leaves 10 MiB of zeros behind the entries
            entries = path.read_bytes().rstrip(b"\0")
            path.write_bytes(entries.ljust(-(-len(entries) // size) * size, b"\0"))
    archive.parent.mkdir(exist_ok=True)
    (directory.parent / "account.json").write_text(json.dumps(account, indent=1))
    with tarfile.open(archive, "w:xz", preset=9) as file:
        file.add(directory.parent / "account.json", "account.json", filter=kept)
        file.add(directory, "data", filter=kept)


def main(commit: str, *, kill: bool = False) -> None:
    with tempfile.TemporaryDirectory(prefix="everput-upgrade-") as name:
        directory = Path(name) / "data"
        account = asyncio.run(write(directory, commit, kill=kill))
        archive = WRITTEN / f"{commit}{'-killed' if kill else ''}.tar.xz"
        pack(directory, account, archive)
    print(f"{archive}: {archive.stat().st_size:,} bytes")


if __name__ == "__main__":
    main(sys.argv[1], kill="--kill" in sys.argv[2:])
