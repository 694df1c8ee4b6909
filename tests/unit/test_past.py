"""The past is what a snapshot taken then would show."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from api_client import make_api
from hypothesis import given, settings
from hypothesis import strategies as st
from test_directory import control_events, names, of, seen_by

from broker.audit.pace import Others
from broker.audit.past import Past
from broker.clock import now_ms
from broker.commands.organizations import SCOPES, create_key, create_organization
from broker.core import events as ev
from broker.core.codec import encode
from broker.core.directory import Directory
from broker.core.events import Event
from broker.kafka.topics import topics
from broker.ports import EARLIEST, LATEST, FetchResult, Record
from broker.settings import KafkaSettings

WHERE = {"notify_url": "https://n.example", "liveness_url": "https://l.example", "start_offsets": (0, 1)}
REPLAY = {
    "from_ms": 0, "to_ms": 1, "only": "all", "notify_url": None, "liveness_url": None, "rate_per_s": None,
    "start_offsets": (0, 0), "end_offsets": (1, 2), "before_offsets": (), "picked": None, "count": 3,
    "counted_all": True,
}  # fmt: skip
TABLE = topics(KafkaSettings(bootstrap="unused"))


class Control:
    """audit.records.Records of one topic, two records a read, their times as the events say."""

    def __init__(self, log: list[Event]) -> None:
        self.records = [Record(offset, event.at_ms, None, encode(event), ()) for offset, event in enumerate(log)]

    async def offsets(self, topic: str, at_ms: Mapping[int, int]) -> dict[int, int]:
        assert topic == TABLE.control.name
        later = (record.offset for record in self.records if record.timestamp >= at_ms[0])
        return {0: {EARLIEST: 0, LATEST: len(self.records)}.get(at_ms[0], next(later, -1))}

    async def read(self, topic: str, partition: int, offset: int, *, bytes_max: int = 1) -> FetchResult:
        here = self.records[offset : offset + 2]
        return FetchResult(here, offset + len(here), len(self.records))


def without_members(directory: Directory) -> Directory:
    """An account belongs to no organization, so an organization's own events don't say who it is."""
    for organization in directory.organizations.values():
        directory.organizations[organization.id] = replace(organization, members=())
    return directory


OF_NONE = ev.AccountCreated | ev.AccountPasswordChanged | ev.SessionCreated | ev.SessionEnded
OWN = ("queue_id", "listener_id", "key_id", "replay_id", "secret_sha256")  # no two organizations make the same
BEGINNING: list[Event] = [
    kind(at_ms=0, organization_id=organization_id, **fields)  # type: ignore[arg-type]
    for organization_id in ("o1", "o2")
    for kind, fields in (
        (ev.OrganizationCreated, {"name": "o"}),
        (ev.KeyCreated, {"key_id": "k1", "name": "k", "prefix": "p", "secret_sha256": "s1", "scopes": ()}),
        (ev.QueueCreated, {"queue_id": "q1", "name": "a"}),
        (ev.ListenerCreated, {"listener_id": "l1", "queue_id": "q1", "name": "a", "sealed_secret": "s", **WHERE}),
        (ev.ReplayStarted, {"replay_id": "r1", "listener_id": "l1", **REPLAY}),
    )
]


# To what there is at the beginning; most of the others speak of what there is not.
changes = st.one_of(
    of(ev.QueueRenamed, queue_id=st.just("q1"), name=names),
    of(ev.ListenerPaused, listener_id=st.just("l1"), reason=names),
    of(ev.ListenerRedriven, listener_id=st.just("l1")),
    of(ev.ListenerRedrivesCancelled, listener_id=st.just("l1")),
    of(ev.ReplayPaused, replay_id=st.just("r1"), reason=names),
    of(ev.ReplayAdvanced, replay_id=st.just("r1"), partitions=st.just((1,))),
)


@st.composite
def histories(draw: st.DrawFn) -> list[Event]:
    """Some organization's life beside another's, by clocks that agree within a millisecond or so."""
    events = [*BEGINNING, *draw(st.lists(changes | control_events, min_size=5, max_size=60))]
    latest_ms = 0
    for place, event in enumerate(events):
        owner = "" if isinstance(event, OF_NONE) else event.organization_id
        own = {name: f"{owner}-{getattr(event, name)}" for name in OWN if hasattr(event, name)}
        latest_ms = max(latest_ms, latest_ms + draw(st.integers(-1, 2)))
        at_ms = max(0, latest_ms + draw(st.integers(-1, 0)))
        events[place] = msgspec.structs.replace(event, at_ms=at_ms, organization_id=owner, **own)
    return events


@settings(deadline=None)
@given(histories(), st.floats(0, 1), st.sampled_from(["o1", "o2"]))
async def test_it_is_what_a_snapshot_taken_then_would_show(log: list[Event], part: float, organization_id: str):
    at_ms = int(part * (1 + max(event.at_ms for event in log)))
    then, latest_ms = Directory(), 0
    for event in log:
        latest_ms = max(latest_ms, event.at_ms)
        if latest_ms <= at_ms:
            then.apply(event)
    past = Past(Control(log), TABLE, Others())
    for _ in range(2):  # the second time from what is kept
        view = await past.view(organization_id, at_ms)
        assert seen_by(view.state, organization_id) == seen_by(without_members(then), organization_id)
        other = {"o1": "o2", "o2": "o1"}[organization_id]
        assert seen_by(view.state, other) == seen_by(Directory(), other)


async def test_only_the_last_few_moments_are_kept():
    log = [
        ev.QueueCreated(at_ms=at_ms, organization_id="o1", queue_id=f"q{at_ms}", name=f"q{at_ms}") for at_ms in range(8)
    ]
    past = Past(Control(log), TABLE, Others())
    for at_ms in range(8):
        assert len((await past.view("o1", at_ms)).state.queues) == at_ms + 1
    assert len(past) == 4


async def moment() -> str:
    """The query for a moment after all that was done, and before all that is done next."""
    at_ms = now_ms()
    while now_ms() == at_ms:
        await asyncio.sleep(0)
    at = datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="milliseconds")
    return f"at={at.replace('+00:00', 'Z')}"


async def test_a_queue_and_its_listener_are_shown_as_they_were():
    api = await make_api()
    queue_id = await api.queue("before")
    listener_id = await api.listener(queue_id)
    first = await moment()
    await api.put(f"/v1/queues/{queue_id}", json={"name": "after"})
    await api.put(f"/v1/queues/{queue_id}/listeners/{listener_id}", json={"name": "renamed"})
    second = await moment()
    await api.request("DELETE", f"/v1/queues/{queue_id}")
    third = await moment()
    path = f"/v1/queues/{queue_id}"

    async def names(at: str) -> list[str]:
        queue = (await api.get(f"{path}?{at}")).json()["queue"]
        listener = (await api.get(f"{path}/listeners/{listener_id}?{at}")).json()["listener"]
        (listed,) = (await api.get(f"{path}/listeners?{at}")).json()["listeners"]
        assert listed == listener
        (found,) = (await api.get(f"/v1/queues?name={queue['name']}&{at}")).json()["queues"]
        assert found == queue
        return [queue["name"], listener["name"]]

    assert await names(first) == ["before", "listener"]
    assert await names(second) == ["after", "renamed"]
    assert (await api.get(f"{path}?{third}")).status_code == 404
    assert (await api.get(f"{path}?at=2025-12-31T23:59:59Z")).status_code == 404
    assert (await api.get(f"{path}/listeners/{listener_id}?{third}")).status_code == 404
    their_key = await api.another_organization()
    assert (await api.bare.get(f"{path}?{first}", headers={"x-api-key": their_key})).status_code == 404


async def test_keys_are_shown_as_they_were_to_who_may_see_them():
    api = await make_api()
    path = f"/v1/organizations/{api.organization_id}/keys"
    ours = {"x-api-key": await api.key_with(SCOPES)}

    async def asked(method: str, where: str, **more: Any) -> Any:
        return await api.bare.request(method, where, **{"headers": ours, **more})

    made = (await asked("PUT", path, json={"name": "for a while", "scopes": ["queues"]})).json()["key"]
    first = await moment()
    await asked("DELETE", f"{path}/{made['id']}")
    second = await moment()
    for then in ("", second):
        assert (await asked("GET", f"{path}/{made['id']}?{then}")).status_code == 404
        assert made["id"] not in [key["id"] for key in (await asked("GET", f"{path}?{then}")).json()["keys"]]
    assert (await asked("GET", f"{path}/{made['id']}?{first}")).json()["key"]["name"] == "for a while"
    assert made["id"] in [key["id"] for key in (await asked("GET", f"{path}?{first}")).json()["keys"]]
    other = await create_organization(api.log.control, api.log.control, name="another")
    makes = create_key(api.log.control, api.log.control, organization_id=other.id, name="theirs", scopes=SCOPES)
    for key, status in (((await makes)[1], 404), (await api.key_with(("messages",)), 403)):
        for where in (path, f"{path}/{made['id']}"):
            told = await asked("GET", f"{where}?{first}", headers={"x-api-key": key})
            assert told.status_code == status
    few = {"x-api-key": await api.key_with(("messages",))}
    assert (await asked("GET", f"/v1/queues?{first}", headers=few)).status_code == 403


@pytest.mark.parametrize("at", ["yesterday", "2999-01-01T00:00:00Z", ""])
async def test_a_bad_moment_is_named(at: str):
    api = await make_api()
    answer = await api.get(f"/v1/queues?at={at}")
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["parameter"] == "at"
