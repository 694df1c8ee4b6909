"""The setting `batch` of a listener, over the API and in the log."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from api_client import Api, make_api

from broker.core.codec import decode, encode
from broker.core.directory import Directory
from broker.core.entities import Listener
from broker.core.events import BatchSetting, ListenerCreated, ListenerUpdated, QueueCreated

GOLDEN = Path(__file__).parent.parent / "golden"
DEFAULTS = {"max_messages": 100, "max_bytes": 1 << 20, "wait_ms": 100}
URLS = {"notify_url": "https://8.8.8.8/n", "liveness_url": "https://8.8.8.8/l"}


async def new_listener(api: Api, **more: Any) -> tuple[str, dict[str, Any]]:
    """Return the path of a new listener, and the listener as the answer shows it."""
    queue_id = await api.queue()
    answer = await api.put(f"/v1/queues/{queue_id}/listeners", json={"name": "l", **URLS, **more})
    assert answer.status_code == 200, answer.text
    listener = answer.json()["listener"]
    return f"/v1/queues/{queue_id}/listeners/{listener['id']}", listener


def stored(api: Api, path: str) -> Listener:
    listener = api.log.control.state.listener(api.organization_id, path.rpartition("/")[2])
    assert listener is not None
    return listener


async def test_a_listener_gets_one_message_per_request_unless_batches_are_asked_for():
    api = await make_api()
    path, made = await new_listener(api)
    assert made["batch"] is None
    assert (await api.get(path)).json()["listener"]["batch"] is None
    assert stored(api, path).batch is None
    assert b"batch" not in encode(ListenerCreated(**EVENT)), "the stored bytes are as before"


async def test_batch_is_set_with_defaults_kept_by_other_changes_and_cleared_by_null():
    api = await make_api()
    path, made = await new_listener(api, batch={})
    assert made["batch"] == DEFAULTS
    assert stored(api, path).batch == BatchSetting()
    given = {"max_messages": 1000, "max_bytes": 8 << 20, "wait_ms": 0}
    changed = await api.put(path, json={"batch": given})
    assert changed.json()["listener"]["batch"] == given
    assert stored(api, path).batch == BatchSetting(**given)
    await api.put(path, json={"name": "new"})
    listed = (await api.get(path.rpartition("/")[0])).json()["listeners"][0]
    assert (listed["name"], listed["batch"]) == ("new", given)
    assert (await api.put(path, json={"batch": {"max_messages": 2}})).json()["listener"]["batch"] == {
        **DEFAULTS,
        "max_messages": 2,
    }
    assert (await api.put(path, json={"batch": None})).json()["listener"]["batch"] is None
    assert stored(api, path).batch is None


@pytest.mark.parametrize(
    ("batch", "pointer"),
    [
        ({"max_messages": 1}, "/batch/max_messages"),
        ({"max_messages": 1001}, "/batch/max_messages"),
        ({"max_messages": 2.5}, "/batch/max_messages"),
        ({"max_bytes": 1023}, "/batch/max_bytes"),
        ({"max_bytes": (8 << 20) + 1}, "/batch/max_bytes"),
        ({"wait_ms": -1}, "/batch/wait_ms"),
        ({"wait_ms": 10_001}, "/batch/wait_ms"),
        ({"wait_ms": None}, "/batch/wait_ms"),
        ({"messages": 3}, "/batch/messages"),
        (True, "/batch"),
        ([], "/batch"),
    ],
)
async def test_a_limit_out_of_range_is_refused_by_its_name(batch: Any, pointer: str):
    api = await make_api()
    path, _ = await new_listener(api)
    answer = await api.put(path, json={"batch": batch})
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, pointer)
    assert stored(api, path).batch is None


async def test_a_request_in_the_format_of_slack_carries_no_batch():
    api = await make_api()
    path, _ = await new_listener(api, batch={})
    answer = await api.put(path, json={"format": "slack"})
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/batch")
    assert (await api.put(path, json={"format": "slack", "batch": None})).status_code == 200
    assert (await api.put(path, json={"batch": {}})).status_code == 422


# The events of listeners

EVENT: dict[str, Any] = {
    "at_ms": 1,
    "organization_id": "o",
    "queue_id": "q",
    "listener_id": "l",
    "name": "l",
    "sealed_secret": "",
    "start_offsets": (0, 0),
    **URLS,
}


@pytest.mark.parametrize("version", [1, 2])
def test_a_listener_of_an_older_version_gets_one_message_per_request(version: int):
    made, updated = (
        decode((GOLDEN / f"listener.{verb}.v{version}.json").read_bytes()) for verb in ("created", "updated")
    )
    assert isinstance(made, ListenerCreated)
    directory = Directory()
    organization = {"organization_id": made.organization_id}
    directory.apply(QueueCreated(at_ms=0, queue_id=made.queue_id, name="orders", **organization))
    assert directory.apply(made)
    assert directory.listeners[made.listener_id].batch is None
    assert directory.apply(updated)
    assert directory.listeners[made.listener_id].batch is None


def test_the_events_of_a_listener_carry_its_batch():
    made = ListenerCreated(**EVENT)
    changed = ListenerUpdated(
        **{name: EVENT[name] for name in ("organization_id", "listener_id", "name", *URLS)},
        at_ms=2,
        settings=msgspec.structs.replace(made.settings, batch=BatchSetting(max_messages=7)),
    )
    directory = Directory()
    directory.apply(QueueCreated(at_ms=0, organization_id="o", queue_id="q", name="orders"))
    directory.apply(decode(encode(made)))
    assert directory.apply(decode(encode(changed)))
    assert directory.listeners["l"].batch == BatchSetting(max_messages=7, max_bytes=1 << 20, wait_ms=100)
