"""Replays over REST: what one would be, what it is, how far it is, and what is refused."""

from __future__ import annotations

import msgspec
import pytest
from api_client import Api, make_api, problem
from memory import MemoryCursors

from api.replays import EXPECTED_PER_S
from broker.core import events as ev
from broker.core.codec import decode
from broker.core.cursor import Cursor
from broker.core.events import DeliveryParked, DeliverySetAside
from broker.core.ids import message_id
from broker.kafka.outstanding import KafkaOutstanding
from broker.kafka.read_slots import ReadSlots
from broker.settings import KafkaSettings
from tests.outstanding_topic import OutstandingTopic

KAFKA = KafkaSettings(bootstrap="unused", partitions=2)


@pytest.fixture
def topic() -> OutstandingTopic:
    return OutstandingTopic()


@pytest.fixture
def cursors() -> MemoryCursors:
    return MemoryCursors()


@pytest.fixture
async def api(topic, cursors) -> Api:
    return await make_api(outstanding=KafkaOutstanding(KAFKA, topic, ReadSlots()), cursors=cursors)


async def listener_of(api: Api, *, messages: int = 0, before: int = 0) -> tuple[str, str]:
    """Its id and its path. before: messages put before it was made."""
    queue_id = await api.queue()
    for _ in range(before):
        await api.put(f"/v1/queues/{queue_id}/messages", json={"data": "x"})
    listener_id = await api.listener(queue_id)
    for _ in range(messages):
        await api.put(f"/v1/queues/{queue_id}/messages", json={"data": "x"})
    return listener_id, f"/v1/queues/{queue_id}/listeners/{listener_id}"


async def replay(api: Api, path: str, **body) -> dict:
    answer = await api.request("POST", f"{path}/replay", json={"from": "beginning", **body})
    assert answer.status_code == 200, answer.text
    return answer.json()["replay"]


def replays_in(api: Api) -> int:
    return sum(b'"type":"replay.started"' in record for record in api.log.control.records)


async def test_a_dry_run_counts_and_estimates_and_begins_nothing(api):
    _, path = await listener_of(api, messages=6)
    planned = await replay(api, path, dry_run=True, rate_per_s=0.5)
    assert (planned["count"], planned["count_is_exact"], planned["estimated_s"]) == (6, True, 12.0)
    assert "id" not in planned
    for rate in (None, 2.5 * EXPECTED_PER_S):  # nobody promises such a one
        planned = await replay(api, path, dry_run=True, rate_per_s=rate)
        assert planned["estimated_s"] == round(6 / EXPECTED_PER_S, 1)
    assert replays_in(api) == 0


async def test_a_dry_run_shows_the_rate_limit_that_the_replay_then_shows(api):
    _, path = await listener_of(api, messages=6)
    assert (await api.put(path, json={"rate_per_s": 0.5})).status_code == 200
    planned, begun = await replay(api, path, dry_run=True), await replay(api, path)
    assert (planned["rate_per_s"], planned["estimated_s"]) == (None, 12.0)
    assert begun["rate_per_s"] is None
    planned, begun = await replay(api, path, dry_run=True, rate_per_s=2), await replay(api, path, rate_per_s=2)
    assert (planned["rate_per_s"], planned["estimated_s"]) == (2.0, 3.0)
    assert begun["rate_per_s"] == 2.0


async def test_it_begins_is_listed_and_shown_with_its_progress(api, cursors):
    _, path = await listener_of(api, messages=4)
    begun = await replay(api, path)
    assert (begun["state"], begun["count"], begun["progress"]) == ("running", 4, 0.0)
    cursors.committed[begun["id"]] = {0: Cursor(top=1), 1: Cursor(top=2)}
    shown = (await api.get(f"{path}/replays/{begun['id']}")).json()["replay"]
    assert shown["progress"] == 0.75
    listed = (await api.get(f"{path}/replays")).json()["replays"]
    assert [(one["id"], one["progress"]) for one in listed] == [(begun["id"], 0.75)]


async def test_it_has_finished_when_the_workers_have_said_so_of_every_partition(api):
    _, path = await listener_of(api, messages=4)
    begun = await replay(api, path)
    by = {"at_ms": 1, "organization_id": api.organization_id, "actor": "worker", "replay_id": begun["id"]}
    await api.log.control.append(ev.ReplayAdvanced(**by, partitions=(0, 1)))
    shown = (await api.get(f"{path}/replays/{begun['id']}")).json()["replay"]
    assert (shown["state"], shown["progress"]) == ("finished", 1.0)
    assert (await api.request("DELETE", f"{path}/replays/{begun['id']}")).json()["replay"]["state"] == "finished"


async def test_it_is_paused_resumed_and_cancelled_and_nothing_is_written_twice(api):
    _, path = await listener_of(api, messages=1)
    begun = await replay(api, path)
    place = f"{path}/replays/{begun['id']}"

    async def asked(method: str, more: str = "") -> str:
        return (await api.request(method, place + more)).json()["replay"]["state"]

    before = len(api.log.control.records)
    assert [await asked("POST", "/pause"), await asked("POST", "/pause")] == ["paused"] * 2
    assert [await asked("POST", "/resume"), await asked("POST", "/resume")] == ["running"] * 2
    assert [await asked("DELETE"), await asked("DELETE"), await asked("POST", "/pause")] == ["cancelled"] * 3
    assert len(api.log.control.records) == before + 3


async def test_one_to_a_listener_that_is_paused_says_that_it_stands_still(api):
    _, path = await listener_of(api, messages=1)
    begun = await replay(api, path)
    await replay(api, path, notify_url="https://8.8.8.8/")
    await api.request("POST", f"{path}/pause")
    shown = (await api.get(f"{path}/replays/{begun['id']}")).json()["replay"]
    assert shown["state"] == "paused"
    assert shown["paused"].startswith("its listener is paused: ")
    listed = (await api.get(f"{path}/replays")).json()["replays"]
    states = {one["id"]: one["state"] for one in listed}  # both may be of one millisecond, and so in either order
    assert (states.pop(begun["id"]), *states.values()) == ("paused", "running")
    await api.request("POST", f"{path}/resume")
    assert (await api.get(f"{path}/replays/{begun['id']}")).json()["replay"]["state"] == "running"


async def test_only_what_failed_is_picked_from_what_is_outstanding(api, topic):
    listener_id, path = await listener_of(api, messages=6)
    queue_id = api.first_queue_id
    failed = {
        "at_ms": 1, "organization_id": api.organization_id, "listener_id": listener_id, "queue_id": queue_id,
        "number": 3, "status": 500, "error": None, "put_at_ms": 1, "name": "n", "data": "x",
    }  # fmt: skip
    for partition, offset in ((0, 1), (1, 2)):
        the_id = message_id(at_ms=1, partition=partition, random_bits=offset)
        await topic.keep(DeliveryParked(**failed, message_id=the_id, partition=partition, offset=offset))
    begun = await replay(api, path, only="failed")
    assert begun["count"] == 2
    there = api.log.control.state.replays.find(api.organization_id, begun["id"])
    taken = [[offset for offset in range(3) if there.chooser(partition)(offset)] for partition in range(2)]
    assert taken == [[1], [2]]


@pytest.mark.parametrize("changes_per_min", [5, None])
async def test_the_offsets_that_a_replay_picks_count_as_changes_and_as_stored(topic, cursors, changes_per_min):
    outstanding = KafkaOutstanding(KAFKA, topic, ReadSlots())
    api = await make_api(outstanding=outstanding, cursors=cursors, changes_per_min=changes_per_min)
    listener_id, path = await listener_of(api)
    api.log.messages.records[0] = [(b"", b"", b"")] * 30_000
    for offset in range(0, 30_000, 3):
        parked = DeliveryParked(
            at_ms=1,
            organization_id=api.organization_id,
            listener_id=listener_id,
            put_at_ms=1,
            queue_id=api.first_queue_id,
            number=3,
            status=500,
            error=None,
            name="n",
            data="x",
            message_id=message_id(at_ms=1, partition=0, random_bits=offset),
            partition=0,
            offset=offset,
        )
        await topic.keep(parked)

    async def stored() -> int:
        return (await api.get("/v1/organizations")).json()["organizations"][0]["stored_bytes"]

    before = await stored()
    answer = await api.request("POST", f"{path}/replay", json={"from": "beginning", "only": "failed"})
    if changes_per_min is None:
        assert answer.json()["replay"]["count"] == 10_000
        event = next(record for record in api.log.control.records if b'"type":"replay.started"' in record)
        assert await stored() - before > len(event) > 10_000
    else:
        problem(answer, 429)
        assert replays_in(api) == 0


async def test_undelivered_is_what_came_before_the_listener_did_and_what_its_cursors_leave_open(api, topic, cursors):
    listener_id, path = await listener_of(api, before=2, messages=10)
    kept = {
        "at_ms": 1, "organization_id": api.organization_id, "listener_id": listener_id, "queue_id": api.first_queue_id,
        "put_at_ms": 1, "name": "n", "data": "x", "partition": 0, "status": None, "error": None,
    }  # fmt: skip
    for offset, kind, how in (
        (2, DeliveryParked, {"number": 3}),
        (3, DeliverySetAside, {"number": 0, "next_at_ms": 2}),  # its time has come, or not: no attempt was made
        (5, DeliveryParked, {"number": 1}),  # above the cursor: it was not committed since
    ):
        the_id = message_id(at_ms=1, partition=0, random_bits=offset)
        await topic.keep(kind(**kept, **how, message_id=the_id, offset=offset))
    cursors.committed[listener_id] = {
        0: Cursor(top=4),
        1: Cursor(top=5, open=(1, 3, 4), attempts=(0, 2, 1)),
    }

    async def taken(only: str, **body) -> list[list[int]]:
        planned, begun = [await replay(api, path, only=only, **body, dry_run=dry) for dry in (True, False)]
        there = api.log.control.state.replays.find(api.organization_id, begun["id"])
        span = list(zip(there.start_offsets, there.end_offsets, strict=True))
        chosen = [[one for one in range(*span[number]) if there.chooser(number)(one)] for number in range(2)]
        assert planned["count"] == begun["count"] == sum(map(len, chosen))
        assert planned["count_is_exact"]
        return chosen

    assert await taken("undelivered") == [[0, 2, 3, 4, 5], [0, 1, 3, 4, 5]]
    assert await taken("failed") == [[2, 5], [3, 4]]


async def test_all_is_undelivered_of_a_listener_that_has_taken_nothing(api):
    _, path = await listener_of(api, before=2, messages=4)
    assert (await replay(api, path, only="undelivered"))["count"] == 6


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({}, "/from"),
        ({"from": "yesterday"}, "/from"),
        ({"from": "2026-01-31T12:00:00Z", "to": "2026-01-31T11:00:00Z"}, "/to"),
        ({"from": "beginning", "only": "some"}, "/only"),
        ({"from": "beginning", "rate_per_s": 0}, "/rate_per_s"),
        ({"from": "beginning", "notify_url": "http://127.0.0.1/"}, "/notify_url"),
        ({"from": "beginning", "liveness_url": "https://8.8.8.8/"}, "/liveness_url"),
        ({"from": "beginning", "send_headers": True}, "/send_headers"),
        ({"from": "beginning", "speed": 1}, "/speed"),
    ],
)
async def test_what_makes_no_sense_is_refused(api, body, pointer):
    _, path = await listener_of(api)
    told = problem(await api.request("POST", f"{path}/replay", json=body), 422)
    assert told["errors"][0]["pointer"] == pointer
    assert replays_in(api) == 0


async def test_only_so_many_of_one_listener_are_under_way(api):
    _, path = await listener_of(api, messages=1)
    for _ in range(10):
        last = await replay(api, path)
    problem(await api.request("POST", f"{path}/replay", json={"from": "beginning"}), 422)
    await api.request("DELETE", f"{path}/replays/{last['id']}")
    await replay(api, path)


async def test_only_so_many_of_one_organization_are_under_way(api):
    queue_id = await api.queue()
    listeners = f"/v1/queues/{queue_id}/listeners"
    *paths, other = [f"{listeners}/{await api.listener(queue_id, name=f'l{number}')}" for number in range(11)]
    for path in paths:
        for _ in range(10):
            last = await replay(api, path)
    problem(await api.request("POST", f"{other}/replay", json={"from": "beginning"}), 422)
    await api.request("DELETE", f"{paths[-1]}/replays/{last['id']}")
    await replay(api, other)


async def test_an_unknown_one_is_404(api):
    _, path = await listener_of(api)
    for missing in ("018f0000-0000-7000-8000-000000000000", "nonsense"):
        problem(await api.get(f"{path}/replays/{missing}"), 404)


@pytest.mark.parametrize("to", ["9999-12-31T23:59:59-12:00", "9999-12-31T23:59:59.999999-00:01"])
async def test_a_time_after_the_last_year_is_refused(api, to):
    _, path = await listener_of(api, messages=1)
    for dry_run in (True, False):
        body = {"from": "beginning", "to": to, "dry_run": dry_run}
        answer = problem(await api.request("POST", f"{path}/replay", json=body), 422)
        assert answer["errors"][0]["pointer"] == "/to"
    assert replays_in(api) == 0
    assert (await replay(api, path, to="9999-12-31T23:59:59Z"))["to"] == "9999-12-31T23:59:59.000Z"


async def test_a_replay_until_a_year_that_there_is_not_is_shown_all_the_same(api):
    _, path = await listener_of(api, messages=1)
    begun = await replay(api, path)
    started = next(decode(one) for one in api.log.control.records if b'"type":"replay.started"' in one)
    replay_id = "0b57b1a2-6b8b-4b0e-9d4e-3a2f8f2b7a11"
    await api.log.control.append(msgspec.structs.replace(started, replay_id=replay_id, to_ms=253_402_344_000_000))
    listed = (await api.get(f"{path}/replays")).json()["replays"]
    assert {one["id"]: one["to"] for one in listed} == {begun["id"]: begun["to"], replay_id: "9999-12-31T23:59:59.999Z"}
