"""A data directory that an earlier version has written is served by this one: every delivery ends as it would have.

write.py makes the directories and says what is in them. Not for: two versions at once (test_side_by_side.py)."""

from __future__ import annotations

import asyncio
import itertools
import json
import tarfile
import time
from collections import Counter
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from everput import InvalidSignature, verify
from tests.listeners import Got, Listeners, until
from tests.scenarios.running import Running, everput
from tests.upgrades.write import WRITTEN, features, listening

ARCHIVES = [  # the one whose server was killed holds more that must be put right
    pytest.param(path, id=path.name.removesuffix(".tar.xz"), marks=() if "-killed." in path.name else pytest.mark.slow)
    for path in sorted(WRITTEN.glob("*.tar.xz"))
]
KEY_KEPT_S = 86_400  # an Idempotency-Key


class Opened:
    """A written data directory that is served: what was in it, and what the listeners get now."""

    def __init__(self, account: dict[str, Any], client: httpx.AsyncClient, listeners: Listeners) -> None:
        self.account = account
        self.client = client
        self.listeners = listeners
        self.messages: dict[str, dict[str, Any]] = account["messages"]
        self.began_s = time.time()

    async def ask(self, method: str, path: str, **arguments: Any) -> Any:
        answer = await self.client.request(method, path, **arguments)
        assert answer.status_code == 200, f"{method} {path}: {answer.status_code} {answer.text}"
        return answer.json()

    def path(self, name: str, *more: str) -> str:
        queue = f"/v1/queues/{self.account['queue_id']}/listeners"
        return "/".join((queue, self.account["listeners"][name]["id"], *more))

    def is_due(self, message: Mapping[str, Any]) -> bool:
        """Whether its time had come when the directory was opened."""
        due = message.get("deliver_at")
        return due is None or datetime.fromisoformat(due).timestamp() < self.began_s

    def with_state(self, name: str, *states: str) -> set[str]:
        """The listener's messages whose deliveries were left in these states, and that are due."""
        return {
            one
            for one, message in self.messages.items()
            if message.get("states", {}).get(name) in states and self.is_due(message)
        }

    def got(self, name: str, *, replayed: bool = False) -> list[Got]:
        """What it has taken."""
        return [one for one in self.listeners.taken(name) if ("everput-replay" in one.headers) is replayed]

    def ids(self, name: str, *, replayed: bool = False) -> Counter[str]:
        return Counter(one.message_id for one in self.got(name, replayed=replayed))

    async def all_of(self, expected: Mapping[str, set[str]]) -> None:
        """Wait until each listener has got these messages."""
        for name, wanted in expected.items():
            await until(lambda name=name, wanted=wanted: self.ids(name).keys() >= wanted, what=f"{name} has all of its")

    def data_of(self, message_id: str) -> str:
        message = self.messages[message_id]
        return str(message.get("updated", message["data"]))


@pytest.mark.parametrize("archive", ARCHIVES)
async def test_every_delivery_of_a_written_directory_ends_as_it_would_have(archive: Path, tmp_path: Path):
    with tarfile.open(archive) as packed:
        packed.extractall(tmp_path, filter="data")
    account = json.loads((tmp_path / "account.json").read_text())
    async with listening(account["port"]) as listeners:
        with Running(tmp_path / "data", *account["arguments"]) as server:
            headers = {"x-api-key": account["api_key"]}
            async with httpx.AsyncClient(base_url=server.url, headers=headers, timeout=30) as client:
                opened = Opened(account, client, listeners)
                assert await features(server) == account["features"], "the Kafka before could not open it again"
                assert account["features"]["eligible.leader.replicas.version"] >= 1
                await who_could_sign_in_still_can(opened)
                await what_waited_arrives_and_nothing_else(opened)
                await the_replay_goes_on_where_it_was(opened)
                await what_was_parked_stays_until_it_is_redriven(opened)
                await later_requests_are_answered_as_before(opened)
                every_request_is_signed_and_holds_the_message(opened)
                messages_of_a_key_came_in_their_order(opened)
                await every_message_has_its_last_state(opened)
            done = await asyncio.to_thread(
                everput, "verify", "--data-dir", str(server.data_dir), "--admin", server.admin_url
            )
            assert (done.returncode, done.stdout) == (0, ""), done.stderr
            assert await asyncio.to_thread(server.stop) == 0


async def who_could_sign_in_still_can(opened: Opened) -> None:
    account = opened.account
    who = {"email": account["email"], "password": account["password"]}
    token = (await opened.ask("POST", "/v1/sessions", json=who))["session"]["token"]
    answer = await opened.client.get("/v1/organizations", headers={"authorization": f"Bearer {token}", "x-api-key": ""})
    assert [one["id"] for one in answer.json()["organizations"]] == [account["organization_id"]]
    revoked = await opened.client.get("/v1/queues", headers={"x-api-key": account["revoked_key"]})
    assert revoked.status_code == 401
    # What was parked is alerted by now, perhaps.
    found = (await opened.ask("GET", "/v1/queues"))["queues"]
    (queue,) = [one for one in found if one["name"] != "everput.alerts"]
    assert (queue["id"], queue["name"]) == (account["queue_id"], account["queue"])


async def what_waited_arrives_and_nothing_else(opened: Opened) -> None:
    names = opened.account["listeners"]
    expected = {name: opened.with_state(name, "pending", "retrying") for name in names}
    assert expected["rotated"], "the directory has nothing that waits"
    assert opened.with_state("flaky", "retrying"), "the directory has nothing that is tried again"
    await opened.all_of(expected)
    # What is put now comes after everything that was to be delivered at once.
    made = await opened.ask("PUT", f"/v1/queues/{opened.account['queue_id']}/messages", json={"data": "new"})
    opened.messages[made["message"]["id"]] = {"data": "new"}
    await opened.all_of({name: {made["message"]["id"]} for name in names})
    for name, wanted in expected.items():
        assert opened.ids(name) == Counter(wanted | {made["message"]["id"]}), name


async def the_replay_goes_on_where_it_was(opened: Opened) -> None:
    replay = opened.account["replay"]
    path = opened.path(replay["listener"], "replays", replay["id"])

    async def finished() -> bool:
        return (await opened.ask("GET", path))["replay"]["state"] == "finished"

    await until(finished, what="the replay has finished")
    before, now = Counter(replay["taken"]), opened.ids(replay["listener"], replayed=True)
    assert 0 < before.total() < replay["count"]
    whole = before + now
    assert set(whole.values()) == {1}
    assert len(whole) == replay["count"]
    assert set(whole) <= set(opened.account["listeners"][replay["listener"]]["taken"])


async def what_was_parked_stays_until_it_is_redriven(opened: Opened) -> None:
    parked = opened.with_state("picky", "parked")
    assert parked, "the directory has nothing that is parked"
    listed = await opened.ask("GET", opened.path("picky", "deliveries"), params={"state": "parked"})
    assert {one["message"]["id"] for one in listed["deliveries"]} == parked
    assert not parked & opened.ids("picky").keys()
    await opened.ask("POST", opened.path("picky", "redrive"))
    await opened.all_of({"picky": parked})


async def later_requests_are_answered_as_before(opened: Opened) -> None:
    """An Idempotency-Key brings the message of then, while it is kept, and what comes of it is delivered once."""
    once = opened.account["idempotent"]
    path = f"/v1/queues/{opened.account['queue_id']}/messages"
    age_s = time.time() - once["at_ms"] / 1000
    headers = {"idempotency-key": once["key"]}
    made = (await opened.ask("PUT", path, json={"data": once["data"]}, headers=headers))["message"]
    if abs(age_s - KEY_KEPT_S) > 3600:
        assert (made["id"] == once["id"]) is (age_s < KEY_KEPT_S)
    if made["id"] != once["id"]:
        opened.messages[made["id"]] = {"data": once["data"]}
        await opened.all_of({name: {made["id"]} for name in opened.account["listeners"]})


def every_request_is_signed_and_holds_the_message(opened: Opened) -> None:
    for name, listener in opened.account["listeners"].items():
        for one in (*opened.got(name), *opened.got(name, replayed=True)):
            assert verify(listener["secret"], one.headers, one.body) == one.message_id
            if "former_secret" in listener:
                signed_s = int(one.headers["webhook-timestamp"])
                assert signs(listener["former_secret"], one) is (signed_s < int(listener["former_ends_s"]))
            body = orjson.loads(one.body)
            assert body["queue"] == {"id": opened.account["queue_id"], "name": opened.account["queue"]}
            assert body["message"]["data"] == opened.data_of(one.message_id)
            for header, value in listener["headers"].items():
                assert one.headers[header] == value
    assert any(opened.got(name) for name, one in opened.account["listeners"].items() if one["headers"])


def signs(secret: str, got: Got) -> bool:
    try:
        verify(secret, got.headers, got.body)
    except InvalidSignature:
        return False
    return True


def messages_of_a_key_came_in_their_order(opened: Opened) -> None:
    """As they were put."""
    numbers = {message_id: number for number, message_id in enumerate(opened.messages)}
    for name in opened.account["listeners"]:
        keyed = [one for one in opened.got(name) if opened.messages[one.message_id].get("key")]
        keyed.sort(key=lambda one: opened.messages[one.message_id]["key"])
        for _, of_key in itertools.groupby(keyed, key=lambda one: opened.messages[one.message_id]["key"]):
            order = [numbers[one.message_id] for one in of_key]
            assert order == sorted(order), name


async def every_message_has_its_last_state(opened: Opened) -> None:
    """Delivered, or waiting for its time; what was deleted is not there, and came to nobody who had not got it."""
    path = f"/v1/queues/{opened.account['queue_id']}/messages"
    for message_id, message in opened.messages.items():
        if message.get("deleted"):
            assert (await opened.client.get(f"{path}/{message_id}")).status_code == 404
            assert not any(message_id in opened.ids(name) for name in opened.account["listeners"])
            continue
        last = {"delivered" if opened.is_due(message) else "pending"}

        async def settled(message_id: str = message_id, last: set[str] = last) -> bool:
            states = (await opened.ask("GET", f"{path}/{message_id}"))["message"]["listeners"]
            assert len(states) == len(opened.account["listeners"])
            return {one["state"] for one in states} == last

        await until(settled, what=f"{message} is {last}")
