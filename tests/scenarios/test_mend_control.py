"""`control` loses events on the disk of a whole server: nothing starts, and an export brings everything back."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import pytest

from broker.kafka.embedded.kafka import EmbeddedKafka
from tests.damage import Batch, batches, cut, flip, partition_folder, split
from tests.scenarios.running import Running, everput, wait_until
from tests.scenarios.test_stop_and_disk import Listener, listen, listener, put

__all__ = ["listener"]  # a fixture


def queues(server: Running) -> set[str]:
    answer = httpx.get(f"{server.url}/v1/queues", headers={"x-api-key": server.api_key}, timeout=60)
    return {one["name"] for one in answer.json()["queues"]}


def remove(found: list[Batch], first: int, last: int) -> None:
    """Have these batches in segments of their own, which are gone."""
    if last + 1 < len(found) and found[last + 1].path == found[last].path:
        split(found[last + 1])
    for batch in reversed(found[first : last + 1]):
        (split(batch) if batch.at else batch.path).unlink()


def harmed(data_dir: Path, harm: str) -> tuple[int, int]:
    """Damage `control`; the first and last offset that are lost."""
    found = list(batches(partition_folder(data_dir, "everput.control", 0)))
    assert len(found) > 4
    match harm:
        case "cut":
            cut(found[-1])
            for index in found[-1].path.parent.glob("*.index"):  # else Kafka is not started, if it names the batch
                index.unlink()
            return found[-1].first, found[-1].last
        case "first":
            remove(found, 0, 1)
            return found[0].first, found[1].last
        case "middle":
            remove(found, 2, 3)
            return found[2].first, found[3].last
        case _:
            remove(found, len(found) - 2, len(found) - 1)
            return found[-2].first, found[-1].last


async def exported(data_dir: Path, export: Path) -> None:
    """Export everything while only Kafka runs, so that the export has the last event."""
    kafka = EmbeddedKafka(data_dir / "kafka", progress=False)
    await kafka.start()
    try:
        done = await asyncio.to_thread(everput, "export-all", str(export), "--data-dir", str(data_dir))
        assert done.returncode == 0, done.stderr
    finally:
        await kafka.stop()


def refused(data_dir: Path, what: str) -> None:
    with Running(data_dir) as server:
        assert server.process.wait(120) != 0
        wait_until(lambda: any(what in line for line in server.stderr), what="it says why")


@pytest.mark.timeout(600)
def test_lost_events_of_control_stop_a_start_and_all_is_served_once_an_export_has_brought_them_back(
    tmp_path: Path, listener: Listener
):
    data_dir, export = tmp_path / "data", tmp_path / "export"
    here = ("--data-dir", str(data_dir))
    listener.down = True
    with Running(data_dir) as server:
        queue = put(server, "/queues", {"name": "orders"}).json()["queue"]["id"]
        listen(server, queue, "it", listener.url)
        assert put(server, f"/queues/{queue}/messages", {"data": "before"}).status_code == 200
        assert put(server, "/queues", {"name": "last"}).status_code == 200
        assert server.stop() == 0
    asyncio.run(exported(data_dir, export))

    for harm in ("cut", "first", "middle", "last"):
        first, last = harmed(data_dir, harm)
        offsets = f"offset {first}" if first == last else f"offsets {first} to {last}"
        refused(data_dir, f"lack everput.control/0 {offsets}.")
        told = everput("mend", *here)
        assert (told.returncode, told.stdout.count(f"damaged: control/0 offsets {first} to {last}")) == (1, 1), harm
        mended = everput("mend", "--export", str(export), *here)
        assert (mended.returncode, mended.stdout.count("mended: control/0")) == (0, 1), mended.stdout + mended.stderr

    listener.down = False
    with Running(data_dir) as server:
        wait_until(lambda: set(listener.taken) == {"before"}, what="what was put is delivered")
        assert queues(server) == {"orders", "last"}
        assert put(server, "/queues", {"name": "after"}).status_code == 200
        assert put(server, f"/queues/{queue}/messages", {"data": "after"}).status_code == 200
        wait_until(lambda: set(listener.taken) == {"before", "after"}, what="and what comes after that")
        verified = everput("verify", *here)
        assert verified.returncode == 0, verified.stdout
        assert server.stop() == 0


@pytest.mark.timeout(600)
def test_without_an_export_what_is_lost_in_control_can_be_given_up_and_everything_else_is_served(tmp_path: Path):
    data_dir = tmp_path / "data"
    here = ("--data-dir", str(data_dir))
    names = {f"queue-{number}" for number in range(8)}
    with Running(data_dir) as server:
        for name in sorted(names):
            assert put(server, "/queues", {"name": name}).status_code == 200
        assert server.stop() == 0

    folder = partition_folder(data_dir, "everput.control", 0)
    for number, harm in enumerate(("flip", "middle", "cut"), 1):
        found = list(batches(folder))
        if harm == "cut":
            first, last = harmed(data_dir, "cut")
        else:
            altered = found[-2 * number]
            first, last = altered.first, altered.last
            if harm == "flip":
                flip(altered)
            else:
                remove(found, len(found) - 2 * number, len(found) - 2 * number)
        other = everput("mend", "--give-up", f"control/0:{first}-{last + 1}", *here)
        assert (other.returncode, f"control/0:{first}-{last}" in other.stderr) == (2, True), other.stderr
        given_up = everput("mend", "--give-up", f"control/0:{first}-{last}", *here)
        assert given_up.returncode == 0, given_up.stderr
    told = everput("mend", *here)
    assert (told.returncode, told.stdout) == (0, "")
    with Running(data_dir) as server:
        assert len(queues(server) & names) == len(names) - 2  # the last event was none of theirs
        assert put(server, "/queues", {"name": "after"}).status_code == 200
        assert server.stop() == 0
