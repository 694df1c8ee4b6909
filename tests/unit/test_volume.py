"""The bytes that an organization may store: counted, recorded now and then, refused beyond the bound."""

from __future__ import annotations

import asyncio
from uuid import uuid4

import httpx
import pytest
from api_client import Api, make_api, problem
from memory import MemoryControl

from api.reference import CHANGES, OPERATION_DOCS
from broker.clock import now_ms
from broker.commands.members import ORGANIZATIONS_MAX
from broker.commands.organizations import create_organization
from broker.core.codec import decode
from broker.core.events import VolumeRecorded
from broker.errors import InDoubt, LogUnavailable, StorageFull
from broker.volume import STEP_BYTES_MIN, StoredBytes
from cli.report import storage
from everput import AsyncClient

DAY_MS = 86_400_000


class Counting:
    """One process that counts for one organization, which a stranger made unless told otherwise."""

    def __init__(self, control: MemoryControl, bytes_max: int | None = 64 << 20, retain_s: int | None = None) -> None:
        self.control = control
        # A record has as many bytes as its value: the sums below are round.
        self.stored = StoredBytes(control, control, bytes_max=bytes_max, retain_s=retain_s, stored_size=int)
        self.organization_id = next(iter(control.state.organizations))

    async def put(self, size: int) -> None:
        self.stored.check(self.organization_id)
        self.stored.add(self.organization_id, size)
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    def recorded(self) -> list[int]:
        events = [decode(record) for record in self.control.records]
        return [event.bytes for event in events if isinstance(event, VolumeRecorded)]


async def made(*, actor: str = "account:ann") -> MemoryControl:
    control = MemoryControl()
    await create_organization(control, control, name="theirs", actor=actor)
    return control


async def test_sums_are_recorded_when_they_are_a_step_and_at_the_end():
    one = Counting(await made())
    for _ in range(5):
        await one.put(STEP_BYTES_MIN // 2)
    assert one.recorded() == [STEP_BYTES_MIN, STEP_BYTES_MIN]
    assert one.stored.stored(one.organization_id) == 5 * STEP_BYTES_MIN // 2
    await one.stored.stop()
    assert sum(one.recorded()) == 5 * STEP_BYTES_MIN // 2
    await one.stored.stop()
    assert len(one.recorded()) == 3
    assert one.stored.stored(one.organization_id) == 5 * STEP_BYTES_MIN // 2


async def test_what_workers_store_is_recorded_in_steps_too_and_never_refused():
    one = Counting(await made(), bytes_max=2 << 20)
    for _ in range(20):
        one.stored.count(one.organization_id, STEP_BYTES_MIN // 2)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    assert 9 <= len(one.recorded()) <= 10
    with pytest.raises(StorageFull):
        await Counting(one.control, bytes_max=2 << 20).put(1)
    await one.stored.stop()
    assert sum(one.recorded()) == 10 * STEP_BYTES_MIN


async def test_without_a_bound_the_events_become_fewer_as_more_is_stored():
    one = Counting(await made(), bytes_max=None)
    for _ in range(2_000):
        await one.put(16 << 20)
    assert 60 < len(one.recorded()) < 64 + 64 * 4
    assert one.stored.bound(one.organization_id) is None


async def test_processes_together_exceed_the_bound_by_no_more_than_a_step_each():
    control = await made()
    several = [Counting(control) for _ in range(3)]
    put = 0
    for one in several * 1_000:
        try:
            await one.put(100_000)
        except StorageFull:
            continue
        put += 100_000
    assert 64 << 20 <= put <= (64 << 20) + 3 * (STEP_BYTES_MIN + 100_000)
    for one in several:
        with pytest.raises(StorageFull):
            await one.put(1)


async def test_a_process_hears_what_another_has_recorded():
    control = await made()
    one, other = Counting(control, bytes_max=2 << 20), Counting(control, bytes_max=2 << 20)
    await one.put(1)
    for _ in range(2):
        await other.put(STEP_BYTES_MIN)
    await other.stored.stop()
    await one.put(1)  # it has a grant
    one.stored.follow(decode(control.records[-1]))
    with pytest.raises(StorageFull):
        await one.put(1)


async def test_one_that_is_full_is_full_for_a_process_that_starts_after_a_crash():
    control = await made()
    one = Counting(control, bytes_max=10_000)
    for _ in range(10):
        await one.put(1_000)
    with pytest.raises(StorageFull):
        await one.put(1_000)
    await asyncio.sleep(0)
    with pytest.raises(StorageFull):
        await Counting(control, bytes_max=10_000).put(1)


async def test_what_is_older_than_messages_are_kept_no_longer_counts():
    control = await made()
    organization_id = next(iter(control.state.organizations))
    for days in (0, 1, 5):
        event = VolumeRecorded(at_ms=now_ms() - days * DAY_MS, organization_id=organization_id, bytes=1_000)
        await control.append(event)
    assert Counting(control).stored.stored(organization_id) == 3_000
    kept = Counting(control, bytes_max=3_000, retain_s=2 * 86_400)
    assert kept.stored.stored(organization_id) == 2_000
    await kept.put(1)
    with pytest.raises(StorageFull):
        await Counting(control, bytes_max=3_000).put(1)


async def test_what_was_not_recorded_is_recorded_later_and_what_is_in_doubt_is_not_counted_twice():
    control = await made()
    one = Counting(control)
    await one.put(5)
    control.failing = LogUnavailable("away")
    await one.stored.stop()
    assert one.stored.stored(one.organization_id) == 5
    control.failing = InDoubt("away")
    await one.stored.stop()
    control.failing = None
    await one.stored.stop()
    assert one.recorded() == []


async def signed_in(api: Api, name: str) -> dict[str, str]:
    """The headers of a new account's session."""
    who = {"email": f"{name}@example.com", "password": "correct horse battery"}
    await api.bare.put("/v1/accounts", json=who)
    session = await api.bare.post("/v1/sessions", json=who)
    return {"authorization": f"Bearer {session.json()['session']['token']}"}


async def stranger(api: Api, name: str, headers: dict[str, str] | None = None) -> tuple[dict[str, str], str]:
    """The headers of a key, and a queue, of a new organization. headers: of a session; None: of a new account's."""
    headers = headers or await signed_in(api, name)
    organization = (await api.bare.put("/v1/organizations", json={"name": name}, headers=headers)).json()
    path = f"/v1/organizations/{organization['organization']['id']}/keys"
    key = (await api.bare.put(path, json={"name": "k"}, headers=headers)).json()["key"]["secret"]
    queue = await api.bare.put("/v1/queues", json={"name": "q"}, headers={"x-api-key": key})
    return {"x-api-key": key}, f"/v1/queues/{queue.json()['queue']['id']}/messages"


async def put_until_refused(api: Api, headers: dict[str, str], path: str) -> httpx.Response:
    for _ in range(1_000):
        answer = await api.bare.put(path, json={"data": "x" * 1_000}, headers=headers)
        if answer.status_code != 200:
            return answer
    raise AssertionError("never refused")


async def test_an_organization_at_its_bound_is_507_and_others_put_on():
    api = await make_api(organization_bytes_max=50_000)
    headers, path = await stranger(api, "ann")
    refused = await put_until_refused(api, headers, path)
    assert "--organization-bytes-max" in problem(refused, 507, "storage-full")["detail"]
    assert "retry-after" not in refused.headers
    told = (await api.bare.get("/v1/organizations", headers=headers)).json()["organizations"][0]
    assert 50_000 <= told["stored_bytes"] < 52_000
    assert told["stored_bytes_max"] == 50_000
    batch = {"messages": [{"data": "x"}]}
    problem(await api.bare.post(f"{path}/batch", json=batch, headers=headers), 507)
    problem(await api.bare.put(path, json={"data": "x"}, headers={**headers, "idempotency-key": "1"}), 507)
    other, elsewhere = await stranger(api, "bob")
    assert (await api.bare.put(elsewhere, json={"data": "x"}, headers=other)).status_code == 200
    queue = await api.queue()
    for _ in range(60):
        answer = await api.put(f"/v1/queues/{queue}/messages", json={"data": "x" * 1_000})
        assert answer.status_code == 200  # the operator's own organization has no bound
    told = (await api.get("/v1/organizations")).json()["organizations"][0]
    assert told["stored_bytes"] > 60_000
    assert told["stored_bytes_max"] is None


async def test_all_organizations_of_an_account_share_its_bound():
    api = await make_api(organization_bytes_max=50_000)
    session = await signed_in(api, "ann")
    one, first = await stranger(api, "first", session)
    other, second = await stranger(api, "second", session)
    for _ in range(20):
        assert (await api.bare.put(first, json={"data": "x" * 1_000}, headers=one)).status_code == 200
    refused = await put_until_refused(api, other, second)
    assert "account" in problem(refused, 507, "storage-full")["detail"]
    problem(await api.bare.put(first, json={"data": "x"}, headers=one), 507)
    told = (await api.bare.get("/v1/organizations", headers=session)).json()["organizations"]
    assert 50_000 <= sum(organization["stored_bytes"] for organization in told) < 52_000
    assert all(organization["stored_bytes"] >= organization["stored_bytes_max"] for organization in told)


async def test_an_account_makes_so_many_organizations_and_no_more_by_leaving_some():
    api = await make_api()
    session = await signed_in(api, "ann")
    account_id = (await api.bare.get("/v1/sessions", headers=session)).json()["account"]["id"]
    for number in range(ORGANIZATIONS_MAX):
        made = await api.bare.put("/v1/organizations", json={"name": f"o{number}"}, headers=session)
        path = f"/v1/organizations/{made.json()['organization']['id']}/members/{account_id}"
        left = await api.bare.delete(f"{path}?even_if_last=true", headers=session)
        assert left.status_code == 200, left.text
    problem(await api.bare.put("/v1/organizations", json={"name": "more"}, headers=session), 422)


@pytest.mark.parametrize("change", ["update", "delete", "claim"])
async def test_what_a_change_of_a_message_and_an_idempotency_key_store_counts(change):
    api = await make_api()
    queue = await api.queue()
    path = f"/v1/queues/{queue}/messages"
    message = (await api.put(path, json={"data": "x"})).json()["message"]["id"]

    async def stored() -> int:
        return (await api.get("/v1/organizations")).json()["organizations"][0]["stored_bytes"]

    before = await stored()
    if change == "update":
        assert (await api.put(f"{path}/{message}", json={"data": "x" * 1_000})).status_code == 200
        assert await stored() - before > 1_500
    elif change == "delete":
        assert (await api.request("DELETE", f"{path}/{message}")).status_code == 200
        assert await stored() - before > 500
        after = await stored()
        problem(await api.request("DELETE", f"{path}/{message}"), 404)
        assert await stored() == after
    else:
        await api.put(path, json={"data": "x"})
        put = await stored() - before
        assert (await api.put(path, json={"data": "x"}, headers={"idempotency-key": "1"})).status_code == 200
        assert await stored() - before - put > put + 300


async def test_changes_count_and_are_refused_a_tenth_beyond_the_bound():
    api = await make_api(organization_bytes_max=50_000)
    headers, path = await stranger(api, "ann")
    await put_until_refused(api, headers, path)
    queue = path.removesuffix("/messages")
    made = 0
    while (answer := await api.bare.put("/v1/queues", json={"name": f"q{made}"}, headers=headers)).status_code == 200:
        made += 1
    assert 1 <= made <= 6, "it can still mend something, and not for ever"
    problem(answer, 507, "storage-full")
    problem(await api.bare.put(queue, json={"name": "renamed"}, headers=headers), 507)
    assert (await api.bare.delete(queue, headers=headers)).status_code == 200
    assert (await api.put("/v1/queues", json={"name": "of the operator"})).status_code == 200


async def test_a_repeat_of_a_put_is_answered_though_the_organization_is_full():
    api = await make_api(organization_bytes_max=50_000)
    headers, path = await stranger(api, "ann")
    once = {**headers, "idempotency-key": "1"}
    first = await api.bare.put(path, json={"data": "x"}, headers=once)
    await put_until_refused(api, headers, path)
    assert (await api.bare.put(path, json={"data": "x"}, headers=once)).json() == first.json()


async def test_status_shows_what_is_stored_and_that_it_is_wrong_at_the_bound():
    api = await make_api(organization_bytes_max=50_000)
    headers, path = await stranger(api, "ann")
    transport = httpx.ASGITransport(api.app)
    async with AsyncClient("http://api.example.com", headers["x-api-key"], transport=transport) as client:
        before = await storage(client)
        assert (before.stored_bytes_max, before.wrong) == (50_000, None)
        assert before.stored_bytes < 5_000, "its key and its queue"
        await put_until_refused(api, headers, path)
        after = await storage(client)
    assert after.stored_bytes >= 50_000
    assert after.wrong


async def test_the_reference_tells_of_507_where_a_change_is_refused_so_and_nowhere_else():
    api = await make_api(organization_bytes_max=50_000)
    headers, path = await stranger(api, "ann")
    await put_until_refused(api, headers, path)
    while (await api.bare.put("/v1/queues", json={"name": str(uuid4())}, headers=headers)).status_code == 200:
        pass
    ids = dict.fromkeys(("queue_id", "listener_id", "replay_id", "message_id"), "0")
    refused = set()
    for (method, where), doc in OPERATION_DOCS.items():
        if method != "GET" and where.startswith("/v1/queues"):
            answer = await api.bare.request(method, where.format_map(ids), headers=headers)
            if answer.status_code == 507:
                refused.add(doc.name)
    assert refused == CHANGES - {"createKey", "changeMember"}  # which read their body first
