"""The API against a small model of it: two organizations, two API processes on a real Kafka, restarts in the middle.

For: what many requests in any order add up to with a real log. Not for: two requests at once, a fold that
lags (tests/stateful/test_api_machine.py, in memory and quick), processes that are killed (tests/scenarios)."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from broker.commands.organizations import create_key, create_organization
from broker.kafka.topics import Topics
from broker.sealing import new_sealing_key
from broker.settings import KafkaSettings, Settings
from tests.kafka.test_api_race import Process, process

URLS = {"notify_url": "https://8.8.8.8/", "liveness_url": "https://8.8.8.8/"}


class Fleet:
    """Two API processes, in an event loop of their own thread."""

    def __init__(self, kafka: KafkaSettings) -> None:
        self.settings = Settings(kafka=kafka, sealing_key=new_sealing_key())
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._stacks: list[contextlib.AsyncExitStack] = []
        self.processes: list[Process] = []
        for _ in range(2):
            stack, started = self.run(self._start())
            self._stacks.append(stack)
            self.processes.append(started)

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    def restart(self, number: int) -> None:
        self.run(self._stacks[number].aclose())
        self._stacks[number], self.processes[number] = self.run(self._start())

    def close(self) -> None:
        for stack in self._stacks:
            self.run(stack.aclose())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _start(self) -> tuple[contextlib.AsyncExitStack, Process]:
        stack = contextlib.AsyncExitStack()
        return stack, await stack.enter_async_context(process(self.settings))


@dataclass
class ModelQueue:
    """tag: its last ETag. listeners: names by id. messages: data by id."""

    id: str
    name: str
    tag: str
    listeners: dict[str, str] = field(default_factory=dict)
    messages: dict[str, str] = field(default_factory=dict)


@dataclass
class ModelOrganization:
    """once: by idempotency key, what was asked with it and the message's id."""

    key: str
    queues: dict[str, ModelQueue] = field(default_factory=dict)
    once: dict[str, tuple[str, str, str]] = field(default_factory=dict)


names = st.sampled_from(["orders", "bills", "größe"])
sides = st.integers(0, 1)


class Machine(RuleBasedStateMachine):
    """fleet: set by the test."""

    fleet: Fleet
    queues = Bundle("queues")

    @initialize()
    def two_organizations(self) -> None:
        control, view = self.fleet.processes[0].log.control, self.fleet.processes[0].view
        self.organizations = []
        for _ in range(2):
            made = self.fleet.run(create_organization(control, view, name="o"))
            _, key = self.fleet.run(create_key(control, view, organization_id=made.id, name="k"))
            self.organizations.append(ModelOrganization(key))

    def ask(self, side: int, who: int, method: str, path: str, body: Any = None, **headers: str) -> httpx.Response:
        """side: through which process. who: which organization."""
        sent = {"x-api-key": self.organizations[who].key, **{k.replace("_", "-"): v for k, v in headers.items()}}
        client = self.fleet.processes[side].client
        return self.fleet.run(client.request(method, path, json=body, headers=sent))

    def taken(self, who: int, name: str, but: str = "") -> bool:
        return any(one.name == name for one in self.organizations[who].queues.values() if one.id != but)

    @rule(target=queues, side=sides, who=sides, name=names)
    def a_queue_is_made(self, side: int, who: int, name: str):
        answer = self.ask(side, who, "PUT", "/v1/queues", {"name": name})
        if self.taken(who, name):
            assert answer.status_code == 422
            return multiple()
        made = answer.json()["queue"]
        self.organizations[who].queues[made["id"]] = ModelQueue(made["id"], name, answer.headers["etag"])
        return who, made["id"]

    @rule(queue=queues, side=sides, name=names, stale=st.booleans())
    def a_queue_is_renamed(self, queue: tuple[int, str], side: int, name: str, *, stale: bool) -> None:
        who, queue_id = queue
        known = self.organizations[who].queues[queue_id]
        tag = '"0.0000000000000000"' if stale else self.ask(side, who, "GET", f"/v1/queues/{queue_id}").headers["etag"]
        answer = self.ask(1 - side, who, "PUT", f"/v1/queues/{queue_id}", {"name": name}, if_match=tag)
        if stale:
            assert answer.status_code == 412
        elif self.taken(who, name, queue_id):
            assert answer.status_code == 422
        else:
            assert answer.json()["queue"]["name"] == name
            known.name, known.tag = name, answer.headers["etag"]

    @rule(queue=consumes(queues), side=sides)
    def a_queue_is_deleted(self, queue: tuple[int, str], side: int) -> None:
        who, queue_id = queue
        assert self.ask(side, who, "DELETE", f"/v1/queues/{queue_id}").status_code == 200
        del self.organizations[who].queues[queue_id]
        for other in (0, 1):
            assert self.ask(other, who, "GET", f"/v1/queues/{queue_id}").status_code == 404
            assert self.ask(other, who, "PUT", f"/v1/queues/{queue_id}/messages", {"data": "x"}).status_code == 404

    @rule(queue=queues, side=sides, name=names)
    def a_listener_is_made(self, queue: tuple[int, str], side: int, name: str) -> None:
        who, queue_id = queue
        listeners = self.organizations[who].queues[queue_id].listeners
        answer = self.ask(side, who, "PUT", f"/v1/queues/{queue_id}/listeners", {"name": name, **URLS})
        if name in listeners.values():
            assert answer.status_code == 422
        else:
            listeners[answer.json()["listener"]["id"]] = name

    @rule(queue=queues, side=sides)
    def the_oldest_listener_is_deleted(self, queue: tuple[int, str], side: int) -> None:
        who, queue_id = queue
        listeners = self.organizations[who].queues[queue_id].listeners
        for listener_id in list(listeners)[:1]:
            path = f"/v1/queues/{queue_id}/listeners/{listener_id}"
            assert self.ask(side, who, "DELETE", path).status_code == 200
            assert self.ask(1 - side, who, "GET", path).status_code == 404
            del listeners[listener_id]

    @rule(queue=queues, side=sides, data=st.text(st.characters(exclude_categories=["Cs"]), max_size=5))
    def a_message_is_put(self, queue: tuple[int, str], side: int, data: str) -> None:
        who, queue_id = queue
        answer = self.ask(side, who, "PUT", f"/v1/queues/{queue_id}/messages", {"data": data})
        self.organizations[who].queues[queue_id].messages[answer.json()["message"]["id"]] = data

    @rule(queue=queues, side=sides, data=st.sampled_from("ab"), key=st.sampled_from("kl"))
    def a_message_is_put_once(self, queue: tuple[int, str], side: int, data: str, key: str) -> None:
        who, queue_id = queue
        once = self.organizations[who].once
        answer = self.ask(side, who, "PUT", f"/v1/queues/{queue_id}/messages", {"data": data}, idempotency_key=key)
        asked = once.get(key)
        if asked is None:
            message_id = answer.json()["message"]["id"]
            once[key] = queue_id, data, message_id
            self.organizations[who].queues[queue_id].messages[message_id] = data
        elif asked[:2] == (queue_id, data):
            assert answer.json()["message"]["id"] == asked[2]
        else:
            assert answer.status_code == 422

    @rule(queue=queues, side=sides)
    def a_stranger_finds_nothing(self, queue: tuple[int, str], side: int) -> None:
        who, queue_id = queue
        stranger, path = 1 - who, f"/v1/queues/{queue_id}"
        assert self.ask(side, stranger, "GET", path).status_code == 404
        assert self.ask(side, stranger, "PUT", path, {"name": "stolen"}).status_code == 404
        assert self.ask(side, stranger, "DELETE", path).status_code == 404
        assert self.ask(side, stranger, "PUT", f"{path}/messages", {"data": "x"}).status_code == 404
        assert self.ask(side, stranger, "GET", f"{path}/messages").status_code == 404
        assert self.ask(side, stranger, "PUT", f"{path}/listeners", {"name": "l", **URLS}).status_code == 404

    @rule(queue=queues, side=sides)
    def its_messages_are_those_that_were_put(self, queue: tuple[int, str], side: int) -> None:
        who, queue_id = queue
        path: str | None = f"/v1/queues/{queue_id}/messages?limit=3"
        found = {}
        while path is not None:
            page = self.ask(side, who, "GET", path).json()
            found |= {one["id"]: one["data"] for one in page["messages"]}
            path = page["_links"].get("next", {}).get("href")
        assert found == self.organizations[who].queues[queue_id].messages

    @rule(side=sides)
    def a_process_is_restarted(self, side: int) -> None:
        self.fleet.restart(side)

    @invariant()
    def both_processes_show_what_the_model_knows(self) -> None:
        for who, organization in enumerate(getattr(self, "organizations", ())):
            wanted = {
                queue.id: (queue.name, {"id": queue.id, "listeners": queue.listeners})
                for queue in organization.queues.values()
            }
            for side in (0, 1):
                listed = self.ask(side, who, "GET", "/v1/queues").json()["queues"]
                assert wanted == {
                    one["id"]: (
                        one["name"],
                        {"id": one["id"], "listeners": {each["id"]: each["name"] for each in one["listeners"]}},
                    )
                    for one in listed
                }


@pytest.fixture
def fleet(kafka_settings: KafkaSettings, ready_topics: Topics) -> Iterator[Fleet]:
    fleet = Fleet(kafka_settings)
    yield fleet
    fleet.close()


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_api_does_what_the_model_does(fleet: Fleet):
    machine = type("MachineOfTheFleet", (Machine,), {"fleet": fleet})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=15,
            stateful_step_count=50,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
