"""Bits that flip on the disk of a whole server: what is told, delivered, refused, and put back from an export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from api.damaged_ids import DamagedIds
from broker.core.ids import parse_damaged_id
from broker.sealing import Sealer
from tests.damage import flip, flip_within, with_text
from tests.scenarios.running import Running, everput, wait_until
from tests.scenarios.test_stop_and_disk import Listener, listen, listener, put

__all__ = ["listener"]  # a fixture

ALL = {f"message-{number:02}" for number in range(20)}
DELIVERED = ALL - {"message-04"} | {"updated-04"}
ALTERED = {"message-03", "message-11", "message-19"}


def get(server: Running, path: str) -> httpx.Response:
    return httpx.get(f"{server.url}/v1{path}", headers={"x-api-key": server.api_key}, timeout=60)


def health(server: Running) -> httpx.Response:
    return httpx.get(server.admin_url + "/health", timeout=60)


@pytest.mark.timeout(600)  # five servers, one after the other
def test_altered_messages_are_told_of_and_never_delivered_until_they_are_put_back_from_an_export(
    tmp_path: Path, listener: Listener
):
    data_dir, export = tmp_path / "data", tmp_path / "export"
    here = ("--data-dir", str(data_dir))
    listener.down = True
    with Running(data_dir) as server:
        queue = put(server, "/queues", {"name": "orders"}).json()["queue"]["id"]
        listen(server, queue, "it", listener.url)
        ids = {}
        for data in sorted(ALL):
            # The key decides the partition, so that the altered ones lie the same way in every run.
            answer = put(server, f"/queues/{queue}/messages", {"data": data, "key": data})
            assert answer.status_code == 200
            ids[data] = answer.json()["message"]["id"]
        updated = put(server, f"/queues/{queue}/messages/{ids['message-04']}", {"data": "updated-04"})
        assert updated.status_code == 200
        exported = everput("export-all", str(export), *here)
        assert exported.returncode == 0, exported.stderr
        assert server.stop() == 0

    # The quotes tell the data from the names of messages, which end like their random IDs.
    places = {data: with_text(data_dir, "everput.messages", b'"%b"' % data.encode()) for data in ALTERED}
    for data, (_, batch) in places.items():
        flip_within(batch, b'%b"' % data.encode())
    offsets = {(partition, batch.first) for partition, batch in places.values()}
    ranges = sum((partition, offset - 1) not in offsets for partition, offset in offsets)  # those that touch are one
    told = everput("mend", *here)
    assert (told.returncode, told.stdout.count("damaged: messages/")) == (1, 3), told.stderr

    listener.down = False
    with Running(data_dir) as server:
        wait_until(lambda: set(listener.taken) == DELIVERED - ALTERED, what="all others are delivered")
        path = f"/queues/{queue}/listeners"
        (one,) = get(server, path).json()["listeners"]
        events = [
            json.loads(line)["event"] for line in get(server, "/log").text.splitlines() if "queue.created" in line
        ]
        organization_id = events[0]["organization_id"]
        damaged_ids = DamagedIds(Sealer((data_dir / "sealing-key").read_text()))

        def parked() -> list[dict[str, Any]]:
            return get(server, f"{path}/{one['id']}/deliveries?state=parked").json()["deliveries"]

        def parked_offsets() -> set[tuple[int, int]]:
            """Of batches that touch, each may be parked by itself."""
            shown = [row["message"]["id"] for row in parked()]
            found = [parse_damaged_id(damaged_ids.opened(one, organization_id) or "") or (-1, 0, 0) for one in shown]
            return {(partition, offset) for partition, first, last in found for offset in range(first, last + 1)}

        wait_until(lambda: parked_offsets() == offsets, what="they are parked")
        assert {row["last_error"] for row in parked()} == {"damaged"}
        wait_until(lambda: health(server).status_code == 503, what="health tells")
        assert health(server).json()["detail"].count("messages/") == ranges
        assert httpx.get(server.admin_url + "/health/ready", timeout=60).status_code == 200
        assert get(server, f"/queues/{queue}/messages/{ids['message-03']}").status_code == 503
        assert get(server, f"/queues/{queue}/messages/{ids['message-04']}").status_code == 200
        log = [event for event in get(server, "/log").text.splitlines() if "log.damaged" in event]
        assert len(log) == ranges
        verified = everput("verify", *here)
        assert verified.returncode == 1
        assert verified.stdout.count("altered or missing") == ranges, verified.stdout
        again = everput("export-all", str(tmp_path / "another"), *here)
        assert (again.returncode, again.stderr.count("left out, because it is damaged")) == (1, ranges)
        assert server.stop() == 0

    mended = everput("mend", "--export", str(export), *here)
    assert (mended.returncode, mended.stdout.count("mended: messages/")) == (0, 3), mended.stdout + mended.stderr
    with Running(data_dir) as server:
        wait_until(lambda: set(listener.taken) == DELIVERED, what="these are delivered, too")
        assert set(listener.taken.values()) == {1}
        wait_until(lambda: health(server).status_code == 200, what="health is well")
        assert everput("verify", *here).returncode == 0
        assert server.stop() == 0

    _, batch = with_text(data_dir, "everput.changes", b"updated-04")
    flip(batch, at=26)  # how many offsets it has
    mended = everput("mend", "--export", str(export), *here)
    assert (mended.returncode, mended.stdout.count("mended: changes/")) == (0, 1), mended.stdout + mended.stderr
    assert everput("mend", *here).returncode == 0

    _, batch = with_text(data_dir, "everput.control", b"queue.created")
    at = flip_within(batch, b"orders")
    with Running(data_dir) as server:
        assert server.process.wait(120) != 0
        wait_until(lambda: any("no process can start" in line for line in server.stderr), what="it says why")
    flip(batch, at=at)
