"""All of a log, exported and imported: the same records at the same offsets, the same state, none delivered again."""

from __future__ import annotations

import asyncio
import uuid
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import confluent_kafka
import orjson
import pytest
from click.testing import CliRunner, Result
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType

from broker.core.digests import state_hash
from broker.core.ids import parse_message_id
from broker.errors import ConfigurationError
from broker.kafka import restore as broker_restore
from broker.kafka.admin import ensure_topics
from broker.kafka.requests import KafkaRequests
from broker.kafka.restore import Restorer
from broker.kafka.topics import Topics, by_name, topics
from broker.ports import Record
from broker.sealing import Sealer, new_sealing_key
from broker.settings import KafkaSettings
from cli.app import everput
from cli.commands.rotate import reseal
from cli.exports import export_all, restore
from cli.exports.rows import line
from tests.kafka.rig import running
from tests.kafka.test_retention import swept
from tests.kafka_clients import librdkafka, sasl_variables
from tests.listeners import until


async def run(kafka: KafkaSettings, command: str, *arguments: str) -> Result:
    given = [command, *arguments, "--kafka", kafka.bootstrap, "--topic-prefix", kafka.topic_prefix]
    given += ["--replication", "1", "--min-insync", "1", "--flush-each-batch"]
    return await asyncio.to_thread(CliRunner().invoke, everput, given, env=sasl_variables(kafka))


async def all_records(kafka: KafkaSettings, table: Topics) -> dict[str, list[bytes]]:
    requests = KafkaRequests(kafka)
    await requests.start([topic.name for topic in table.all()])
    found: dict[str, list[bytes]] = {}
    for name, topic in by_name(table).items():
        for number in range(topic.partitions):
            at = 0
            while (fetched := await requests.read(topic.name, number, at)).records:
                found.setdefault(f"{name}/{number}", []).extend(map(line, fetched.records))
                at = fetched.next_offset
    await requests.stop()
    return found


def produce(kafka: KafkaSettings, topic: str, partition: int, key: bytes | None, value: bytes | None) -> None:
    producer = confluent_kafka.Producer(librdkafka(kafka))
    producer.produce(topic, value, key, partition=partition)
    producer.flush()


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
        assert state_hash(rig.projections.directory.state) in hashes[0]
        refused = await run(again, "import", str(folder))
        assert (refused.exit_code, "is not empty" in refused.output) == (2, True)
        before = len(rig.listeners.got)
        async with running(again) as there:
            there.settings = replace(there.settings, sealing_key=rig.settings.sealing_key)
            await there.projections.directory.caught_up()
            await there.work()
            await there.put(there.projections.directory.state.queues[queue.id], "new")
            await until(lambda: rig.listeners.got[before:], what="the new message")
            assert [got.data for got in rig.listeners.got[before:]] == ["new"]
            state = there.projections.directory.state.listeners[listener.id]
            assert state == rig.projections.directory.state.listeners[listener.id]


async def test_an_export_that_was_killed_goes_on_and_is_what_it_would_have_been(
    kafka_settings: KafkaSettings, ready_topics: Topics, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(export_all, "FILE_RECORDS", 3)
    monkeypatch.setattr(export_all, "_FETCH_BYTES", 1)
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
        assert (refused.exit_code, "its SHA-256 differs" in refused.output) == (2, True)


async def test_what_is_owed_is_still_owed_after_an_import_and_nothing_else_is(
    kafka_settings: KafkaSettings, ready_topics: Topics, tmp_path: Path
):
    again = replace(kafka_settings, topic_prefix=f"test-{uuid.uuid4().hex[:12]}.")
    async with running(kafka_settings) as rig:
        rig.tune(set_aside_after_ms=0)
        queue = await rig.queue("orders")
        taking = await rig.listen(queue, "taking")
        parking = await rig.listen(queue, "parking", max_attempts=1)
        retrying = await rig.listen(queue, "retrying", retry_first_ms=3_600_000)
        paused = await rig.listen(queue, "paused")
        await rig.commands.pause_listener(rig.context, queue.id, paused.id, reason="asked for")
        rig.listeners.decide = lambda got: 500 if got.data == "bad" and got.path != "taking" else 200
        worker = await rig.work()
        ids = await rig.put(queue, "m1", "bad", "m2")

        async def states() -> list[str]:
            return [(await rig.state(ids[1], one)).state for one in (taking, parking, retrying, paused)]

        async def settled() -> bool:
            await worker.assignment.checkpoints.checkpoint()
            return len(rig.listeners.got) == 7 and await states() == ["delivered", "parked", "retrying", "pending"]

        await until(settled, what="all is as it is to stay")
        await rig.end(worker)
        assert (await run(kafka_settings, "export-all", str(tmp_path / "all"))).exit_code == 0
        assert (await run(again, "import", str(tmp_path / "all"))).exit_code == 0
        hashes = [(await run(kafka, "verify")).output for kafka in (kafka_settings, again)]
        assert hashes[0] == hashes[1]
        assert state_hash(rig.projections.directory.state) in hashes[1]
        rig.listeners.decide = None
        before = len(rig.listeners.got)

        def got(path: str) -> Counter[str]:
            return Counter(one.message_id for one in rig.listeners.got[before:] if one.path == path)

        async with running(again) as there:
            there.settings = replace(there.settings, sealing_key=rig.settings.sealing_key)
            there.organization_id = rig.organization_id
            await there.work()
            await there.commands.redrive_listener(there.context, queue.id, parking.id, ())
            await until(lambda: got("parking"), what="what was parked")
            await there.commands.redrive_listener(there.context, queue.id, retrying.id, ())
            await until(lambda: got("retrying"), what="what was to be tried again")
            await there.commands.resume_listener(there.context, queue.id, paused.id)
            await until(lambda: got("paused").total() == 3, what="what nobody had")
            assert got("parking") == got("retrying") == Counter(ids[1:2])
            assert got("paused") == Counter(ids)
            assert not got("taking")
            rows = [(await there.state(ids[1], one)).attempts for one in (parking, retrying)]
            assert [[one.number for one in attempts][:1] for attempts in rows] == [[1], [1]]


async def test_what_is_owed_is_in_an_export_although_it_moves_and_is_compacted_meanwhile(
    kafka_settings: KafkaSettings, ready_topics: Topics, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    async with running(kafka_settings) as rig:
        rig.tune(set_aside_after_ms=0)
        queue = await rig.queue("orders")
        await rig.listen(queue, "a", retry_first_ms=3_600_000)
        rig.listeners.status["a"] = 500
        worker = await rig.work()
        await rig.put(queue, "m1")
        topic = ready_topics.outstanding.name

        async def owed() -> list[tuple[int, Record]]:
            numbers = range(ready_topics.outstanding.partitions)
            return [(one, record) for one in numbers for record in (await rig.log.requests.read(topic, one, 0)).records]

        ((number, record),) = await until(owed, what="it is kept")
        await rig.end(worker)
        real = export_all.manifest.add

        def and_it_moves(*arguments: Any, **more: Any) -> None:
            """Right after the cursors are written: tried once more, and what was written first is compacted away."""
            real(*arguments, **more)
            if arguments[2] == export_all.CURSORS:
                produce(kafka_settings, topic, number, record.key, record.value)
                admin = AdminClient(librdkafka(kafka_settings))
                policy = ConfigEntry("cleanup.policy", "compact,delete", incremental_operation=AlterConfigOpType.SET)
                resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=[policy])
                (done,) = admin.incremental_alter_configs([resource]).values()  # so that it can be deleted at will
                done.result()
                (done,) = admin.delete_records([confluent_kafka.TopicPartition(topic, number, 1)]).values()
                done.result()

        monkeypatch.setattr(export_all.manifest, "add", and_it_moves)
        assert (await run(kafka_settings, "export-all", str(tmp_path))).exit_code == 0
        (file,) = tmp_path.glob("outstanding-*")
        assert [orjson.loads(row)["offset"] for row in file.read_bytes().splitlines()] == [1]


async def test_a_log_whose_beginning_retention_has_taken_begins_where_it_did(
    kafka_settings: KafkaSettings, ready_topics: Topics, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(broker_restore, "_FILL_AT_ONCE", 3)
    again = replace(kafka_settings, topic_prefix=f"test-{uuid.uuid4().hex[:12]}.")
    async with running(kafka_settings, clock_skew_ms=0) as rig:
        queue = await rig.queue("orders")
        await rig.listen(queue, "a")
        worker = await rig.work()
        for number in range(40):
            await rig.put(queue, f"old{number}")
        await until(lambda: len(rig.listeners.got) == 40, what="all deliveries")
        await swept(rig, worker, 40)
        kept = await rig.put(queue, "new", key="k")
        await until(lambda: len(rig.listeners.got) == 41, what="the new one")
        await rig.end(worker)
        assert (await run(kafka_settings, "export-all", str(tmp_path / "all"))).exit_code == 0
    real, fills = broker_restore.Restorer.append, 0

    async def killed(*arguments: Any) -> int:
        nonlocal fills
        fills += 1
        at = await real(*arguments)
        if fills == 2:
            raise KeyboardInterrupt
        return at

    monkeypatch.setattr(Restorer, "append", killed)
    assert (await run(again, "import", str(tmp_path / "all"))).exit_code not in (0, 2)
    done = await run(again, "import", str(tmp_path / "all"))
    assert done.exit_code == 0, done.output
    hashes = [(await run(kafka, "verify")) for kafka in (kafka_settings, again)]
    assert "earlier records can't be checked" in hashes[0].output
    assert (hashes[1].exit_code, hashes[1].output) == (0, hashes[0].output)
    async with running(again, clock_skew_ms=0) as there:
        at_ms, partition = parse_message_id(kept[0]) or (0, 0)
        found = await there.log.messages.find(
            partition=partition, at_ms=at_ms, message_id=kept[0], organization_id=rig.organization_id
        )
        assert found is not None


async def test_half_an_import_is_not_worked_on_and_goes_on_when_it_is_given_again(
    kafka_settings: KafkaSettings, ready_topics: Topics, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(restore, "_APPEND_RECORDS", 5)
    again = replace(kafka_settings, topic_prefix=f"test-{uuid.uuid4().hex[:12]}.")
    async with running(kafka_settings) as rig:
        queue = await rig.queue("orders")
        await rig.listen(queue, "a")
        worker = await rig.work()
        for number in range(30):
            await rig.put(queue, f"m{number}")
        await until(lambda: len(rig.listeners.got) == 30, what="all deliveries")
        await rig.end(worker)
    for folder in "one", "two":
        assert (await run(kafka_settings, "export-all", str(tmp_path / folder))).exit_code == 0
        await asyncio.to_thread(
            produce, kafka_settings, ready_topics.claims.name, 0, b"key", b"{}"
        )  # so that the second is another
    real, appends = Restorer.append, 0

    async def killed(*arguments: Any) -> int:
        nonlocal appends
        appends += 1
        if appends in (4, 9):  # before it is written, and after that
            raise KeyboardInterrupt
        at = await real(*arguments)
        if appends == 6:
            raise KeyboardInterrupt
        return at

    monkeypatch.setattr(Restorer, "append", killed)
    for _ in range(3):
        assert (await run(again, "import", str(tmp_path / "one"))).exit_code not in (0, 2)
        with pytest.raises(ConfigurationError, match="unfinished import"):
            await ensure_topics(again, topics(again))
        with pytest.raises(ConfigurationError, match="unfinished import"):
            await reseal(again, Sealer(new_sealing_key()))
        for command, *arguments in (
            ["verify"],
            ["export-all", str(tmp_path / "no")],
            ["import", str(tmp_path / "two")],
        ):
            refused = await run(again, command, *arguments)
            assert (refused.exit_code, "unfinished import" in refused.output) == (2, True)
    done = await run(again, "import", str(tmp_path / "one"))
    assert done.exit_code == 0, done.output
    theirs = await all_records(kafka_settings, ready_topics)
    assert await all_records(again, topics(again)) == {of: rows for of, rows in theirs.items() if "claims" not in of}
    await ensure_topics(again, topics(again))
    verified = [(await run(one, "verify")).output for one in (again, kafka_settings)]
    states = {said.partition(" records, ")[2] for said in verified}  # claims are not imported, and are counted
    assert len(states) == 1
    assert "" not in states
