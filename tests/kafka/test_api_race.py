"""The API on real Kafka, through two processes' worth of log, projection and application.

For: what only two writers show: races for a name, reading each other's writes. Not for: each answer's shape
(tests/unit/test_api_*)."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator

import httpx
import pytest

from broker.clock import now_ms
from broker.commands.organizations import create_key, create_organization
from broker.core.digests import state_hash
from broker.kafka.log import KafkaLog
from broker.kafka.topics import Topics
from broker.ports import DirectoryView
from broker.sealing import new_sealing_key
from broker.settings import KafkaSettings, Settings
from projections.app import Projections
from tests.apps import kafka_app_of
from tests.listeners import until

NAMES = 50


class Process:
    """What one API process holds."""

    def __init__(self, log: KafkaLog, view: DirectoryView, client: httpx.AsyncClient) -> None:
        self.log = log
        self.view = view
        self.client = client

    async def create_queue(self, name: str) -> httpx.Response:
        return await self.client.put("/v1/queues", json={"name": name})


@contextlib.asynccontextmanager
async def process(settings: Settings) -> AsyncIterator[Process]:
    log = KafkaLog(settings.kafka)
    await log.start()
    projections = Projections(settings.kafka, log.control)
    await projections.start()
    app = kafka_app_of(settings, log=log, view=projections.directory)
    try:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://api.example.com") as client:
            yield Process(log, projections.directory, client)
    finally:
        await projections.stop()
        await log.stop()


@pytest.fixture
async def two(kafka_settings: KafkaSettings, ready_topics: Topics) -> AsyncIterator[tuple[Process, Process]]:
    settings = Settings(kafka=kafka_settings, sealing_key=new_sealing_key())
    async with process(settings) as one, process(settings) as other:
        organization = await create_organization(one.log.control, one.view, name="acme")
        _, secret = await create_key(one.log.control, one.view, organization_id=organization.id, name="first")
        one.client.headers["x-api-key"] = other.client.headers["x-api-key"] = secret
        yield one, other


async def test_of_two_processes_that_race_for_a_name_one_gets_it_and_one_422(two):
    one, other = two
    answers = await asyncio.gather(
        *(asker.create_queue(f"queue {number}") for number in range(NAMES) for asker in (one, other))
    )
    assert Counter(answer.status_code for answer in answers) == {200: NAMES, 422: NAMES}
    for first, second in zip(answers[::2], answers[1::2], strict=True):
        assert {first.status_code, second.status_code} == {200, 422}
    for asker in two:
        await asker.view.caught_up()
        assert sorted(queue.name for queue in asker.view.state.queues.values()) == sorted(
            f"queue {number}" for number in range(NAMES)
        )
    assert state_hash(one.view.state) == state_hash(other.view.state)


async def test_of_two_renames_to_one_name_one_gets_it_and_the_loser_keeps_its_own(two):
    one, other = two
    for number in range(10):
        ids = [(await asker.create_queue(f"{number} of {who}")).json()["queue"]["id"] for who, asker in enumerate(two)]
        answers = await asyncio.gather(
            one.client.put(f"/v1/queues/{ids[0]}", json={"name": f"wanted {number}"}),
            other.client.put(f"/v1/queues/{ids[1]}", json={"name": f"wanted {number}"}),
        )
        assert sorted(answer.status_code for answer in answers) == [200, 422]


async def test_of_two_listeners_that_race_for_a_name_in_a_queue_one_gets_it(two):
    one, other = two
    queue_id = (await one.create_queue("queue")).json()["queue"]["id"]
    body = {"name": "same", "notify_url": "https://8.8.8.8/", "liveness_url": "https://8.8.8.8/"}
    path = f"/v1/queues/{queue_id}/listeners"
    answers = await asyncio.gather(*(asker.client.put(path, json=body) for asker in (one, other)))
    assert sorted(answer.status_code for answer in answers) == [200, 422]


async def test_what_was_put_through_one_process_is_there_in_the_other_at_once(two):
    one, other = two
    for number in range(20):
        queue_id = (await one.create_queue(f"queue {number}")).json()["queue"]["id"]
        body = {"name": "listener", "notify_url": "https://8.8.8.8/", "liveness_url": "https://8.8.8.8/"}
        listener = await other.client.put(f"/v1/queues/{queue_id}/listeners", json=body)
        assert listener.status_code == 200
        message = await one.client.put(f"/v1/queues/{queue_id}/messages", json={"data": str(number)})
        found = await other.client.get(f"/v1/queues/{queue_id}/messages/{message.json()['message']['id']}")
        assert found.json()["message"]["data"] == str(number)


async def test_a_name_freed_through_one_process_can_be_taken_through_the_other_at_once(two):
    one, other = two
    for _ in range(10):
        queue_id = (await one.create_queue("again")).json()["queue"]["id"]
        assert (await other.client.get(f"/v1/queues/{queue_id}")).status_code == 200
        assert (await one.client.delete(f"/v1/queues/{queue_id}")).status_code == 200
        taken = await other.create_queue("again")
        assert taken.status_code == 200
        assert (await one.client.delete(f"/v1/queues/{taken.json()['queue']['id']}")).status_code == 200


async def test_a_change_through_one_process_is_not_undone_or_overlooked_through_the_other(two):
    one, other = two
    queue_id = (await one.create_queue("queue")).json()["queue"]["id"]
    body = {"name": "listener", "notify_url": "https://8.8.8.8/", "liveness_url": "https://8.8.8.8/"}
    path = f"/v1/queues/{queue_id}/listeners"
    path += "/" + (await one.client.put(path, json=body)).json()["listener"]["id"]
    for number in range(1, 21):
        await one.client.put(path, json={"notify_url": f"https://8.8.8.8/{number}", "max_in_flight": number})
        changed = (await other.client.put(path, json={"timeout_ms": 1000 + number})).json()["listener"]
        assert (changed["notify_url"], changed["max_in_flight"]) == (f"https://8.8.8.8/{number}", number)
        assert (await one.client.post(f"{path}/pause")).json()["listener"]["paused"] is not None
        assert (await other.client.post(f"{path}/resume")).json()["listener"]["paused"] is None
        for asker, name in ((one, "other name"), (other, "queue")):
            assert (await asker.client.put(f"/v1/queues/{queue_id}", json={"name": name})).status_code == 200
        await one.view.caught_up()
        queue = one.view.state.queues[queue_id]
        assert queue.name == "queue"
        assert [listener.paused for listener in queue.listeners.values()] == [None]


async def test_a_listener_gets_nothing_from_before_it_unless_it_asks(two):
    one, other = two
    queue_id = (await one.create_queue("queue")).json()["queue"]["id"]
    await asyncio.gather(
        *(one.client.put(f"/v1/queues/{queue_id}/messages", json={"data": str(number)}) for number in range(30))
    )
    urls = {"notify_url": "https://8.8.8.8/", "liveness_url": "https://8.8.8.8/"}
    starts = {}
    for begin in ("now", "beginning", "2020-01-01T00:00:00Z", "2999-01-01T00:00:00Z"):
        body = {"name": begin, "from": begin, **urls}
        answer = await other.client.put(f"/v1/queues/{queue_id}/listeners", json=body)
        starts[begin] = other.view.state.listeners[answer.json()["listener"]["id"]].start_offsets
    assert sum(starts["now"]) == sum(starts["2999-01-01T00:00:00Z"]) == 30
    assert sum(starts["beginning"]) == sum(starts["2020-01-01T00:00:00Z"]) == 0


async def test_a_thousand_puts_at_once_are_all_found_again(two):
    one, other = two
    queue_id = (await one.create_queue("queue")).json()["queue"]["id"]
    path = f"/v1/queues/{queue_id}/messages"
    answers = await asyncio.gather(*(one.client.put(path, json={"data": str(number)}) for number in range(1000)))
    assert {answer.status_code for answer in answers} == {200}
    ids = [answer.json()["message"]["id"] for answer in answers]
    assert len(set(ids)) == 1000
    for number in range(0, 1000, 50):
        found = await other.client.get(f"{path}/{ids[number]}")
        assert found.json()["message"]["data"] == str(number)


async def test_a_keys_queues_and_its_end_count_in_every_process(two):
    one, other = two
    queues = [(await asker.create_queue(name)).json()["queue"]["id"] for asker, name in ((one, "a"), (other, "b"))]
    _, secret = await create_key(
        one.log.control,
        one.view,
        organization_id=one.view.state.queues[queues[0]].organization_id,
        name="for a moment",
        scopes=("messages:put",),
        queue_ids=queues[:1],
        expires_at_ms=now_ms() + 8_000,
    )
    headers = {"x-api-key": secret}

    async def statuses(queue_id: str) -> set[int]:
        path = f"/v1/queues/{queue_id}/messages"
        return {(await asker.client.put(path, json={"data": "x"}, headers=headers)).status_code for asker in two}

    assert await statuses(queues[0]) == {200}
    assert await statuses(queues[1]) == {404}
    async with asyncio.timeout(30):
        while await statuses(queues[0]) != {401}:
            await asyncio.sleep(0.1)


async def test_accounts_sessions_and_keys_count_in_every_process_at_once(two):
    one, other = two
    who = {"email": "ann@example.com", "password": "correct horse battery"}
    answers = await asyncio.gather(*(asker.client.put("/v1/accounts", json=who) for asker in two))
    assert sorted(answer.status_code for answer in answers) == [200, 422]
    session = await other.client.post("/v1/sessions", json=who)
    headers = {"authorization": f"Bearer {session.json()['session']['token']}", "x-api-key": ""}
    other.client.cookies.clear()
    made = await one.client.put("/v1/organizations", json={"name": "Ann's"}, headers=headers)
    path = f"/v1/organizations/{made.json()['organization']['id']}/keys"
    key = (await other.client.put(path, json={"name": "k"}, headers=headers)).json()["key"]
    with_key = {"x-api-key": key["secret"]}
    assert (await one.client.get("/v1/queues", headers=with_key)).status_code == 200
    assert (await other.client.delete(f"{path}/{key['id']}", headers=headers)).status_code == 200
    await until(lambda: key["id"] not in one.view.state.keys, what="the other process knows it, too")
    assert (await one.client.get("/v1/queues", headers=with_key)).status_code == 401
    assert (await other.client.delete("/v1/sessions", headers=headers)).status_code == 200
    assert (await one.client.get(path, headers=headers)).status_code == 401
