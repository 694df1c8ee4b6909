"""All of a log, exported and imported: the same records at the same offsets, the same state, none delivered again."""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from broker.kafka.requests import KafkaRequests
from broker.kafka.topics import Topics, by_name, topics
from broker.settings import KafkaSettings
from cli import export_all
from cli.app import everput
from cli.rows import line
from tests.kafka.rig import running
from tests.listeners import until


async def run(kafka: KafkaSettings, command: str, *arguments: str) -> Result:
    given = [command, *arguments, "--kafka", kafka.bootstrap, "--topic-prefix", kafka.topic_prefix]
    given += ["--replication", "1", "--min-insync", "1"]
    return await asyncio.to_thread(CliRunner().invoke, everput, given)


async def all_records(kafka: KafkaSettings, table: Topics) -> dict[str, list[bytes]]:
    requests = KafkaRequests(kafka)
    await requests.start([topic.name for topic in table.all()])
    found: dict[str, list[bytes]] = {}
    for name, topic in by_name(table).items():
        for number in range(topic.partitions):
            at = 0
            while (stretch := await requests.read(topic.name, number, at)).records:
                found.setdefault(f"{name}/{number}", []).extend(map(line, stretch.records))
                at = stretch.next_offset
    await requests.stop()
    return found


async def test_an_imported_log_has_the_same_state_and_its_listeners_go_on_where_they_were(
    kafka_settings: KafkaSettings, ready_topics: Topics, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(export_all, "FILE_RECORDS", 7)
    again = replace(kafka_settings, topic_prefix=f"test-{uuid.uuid4().hex[:12]}.")
    async with running(kafka_settings) as rig:
        queue = await rig.queue("orders")
        listener = await rig.listen(queue, "a")
        worker = await rig.work()
        await rig.put(queue, *(f"m{number}" for number in range(40)))
        await until(lambda: len(rig.listeners.got) == 40, what="all deliveries")
        await rig.end(worker)
        folder = tmp_path / "all"
        whole = await run(kafka_settings, "export-all", str(folder))
        assert whole.exit_code == 0, whole.output
        done = await run(again, "import", str(folder))
        assert done.exit_code == 0, done.output
        assert await all_records(again, topics(again)) == await all_records(kafka_settings, ready_topics)
        hashes = [(await run(kafka, "verify")).output for kafka in (kafka_settings, again)]
        assert hashes[0] == hashes[1]
        assert rig.projections.directory.state.state_hash() in hashes[0]
        refused = await run(again, "import", str(folder))
        assert (refused.exit_code, "is not empty" in refused.output) == (2, True)
    async with running(again) as there:
        there.settings = replace(there.settings, sealing_key=rig.settings.sealing_key)
        there.listeners.port = rig.listeners.port
        await there.projections.directory.caught_up()
        async with type(there.listeners)(port=rig.listeners.port) as listening:
            await there.work()
            await there.put(there.projections.directory.state.queues[queue.id], "new")
            await until(lambda: listening.got, what="the new message")
            assert [got.data for got in listening.got] == ["new"]
            state = there.projections.directory.state.listeners[listener.id]
            assert state == rig.projections.directory.state.listeners[listener.id]


async def test_an_export_that_was_killed_goes_on_and_is_what_it_would_have_been(
    kafka_settings: KafkaSettings, ready_topics: Topics, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(export_all, "FILE_RECORDS", 3)
    monkeypatch.setattr(export_all, "_STRETCH_BYTES", 1)
    async with running(kafka_settings) as rig:
        queue = await rig.queue("orders")
        for number in range(20):
            await rig.put(queue, f"m{number}")
        folder, whole = tmp_path / "all", tmp_path / "whole"
        files = 0
        real = export_all.manifest.add

        def killed(*arguments: object, **more: object) -> None:
            nonlocal files
            files += 1
            if files == 4:
                raise KeyboardInterrupt
            real(*arguments, **more)  # type: ignore[arg-type]

        monkeypatch.setattr(export_all.manifest, "add", killed)
        assert (await run(kafka_settings, "export-all", str(folder))).exit_code != 0
        monkeypatch.setattr(export_all.manifest, "add", real)
        await rig.put(queue, "after the export began")
        done = await run(kafka_settings, "export-all", str(folder))
        assert done.exit_code == 0, done.output
        lines = [text for path in sorted(folder.glob("messages-*")) for text in path.read_bytes().splitlines()]
        assert len(lines) == 20
        assert (await run(kafka_settings, "export-all", str(whole))).exit_code == 0
        altered = next(whole.glob("messages-*"))
        altered.write_bytes(altered.read_bytes() + b"\n")
        again = replace(kafka_settings, topic_prefix=f"test-{uuid.uuid4().hex[:12]}.")
        refused = await run(again, "import", str(whole))
        assert (refused.exit_code, "its hash is another" in refused.output) == (2, True)
