"""`everput put` against a real server: what was put is there, what was refused is named."""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from confluent_kafka import Consumer, TopicPartition

from tests.kafka_clients import librdkafka
from tests.scenarios.running import Running, clean_environment, everput

TOPIC = "everput.messages"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with Running(tmp_path_factory.mktemp("put") / "data") as running:
        assert running.url
        yield running


def put(server: Running, *arguments: str) -> subprocess.CompletedProcess[str]:
    return everput("put", *arguments, "--data-dir", str(server.data_dir), EVERPUT_URL=server.url)


def messages_of(server: Running, queue: str) -> list[str]:
    """The data of all messages of the queue, read from the log itself with another Kafka client."""
    queues = httpx.get(
        f"{server.url}/v1/queues", params={"name": queue}, headers={"x-api-key": server.api_key}, timeout=20
    ).json()["queues"]
    if not queues:
        return []
    consumer = Consumer({**librdkafka(server.kafka.settings()), "group.id": "reads-only", "enable.auto.commit": False})
    try:
        found = []
        places = {}
        for partition in consumer.list_topics(TOPIC, timeout=20).topics[TOPIC].partitions:
            low, high = consumer.get_watermark_offsets(TopicPartition(TOPIC, partition), timeout=20)
            if low < high:
                places[partition] = (low, high)
        consumer.assign([TopicPartition(TOPIC, partition, low) for partition, (low, _) in places.items()])
        while any(low < high for low, high in places.values()):
            for record in consumer.consume(1000, timeout=0.1):
                event = json.loads(record.value())
                places[record.partition()] = (record.offset() + 1, places[record.partition()][1])
                if event["queue_id"] == queues[0]["id"]:
                    found.append(event["data"])
        return found
    finally:
        consumer.close()


def test_every_line_is_put_once_and_empty_ones_are_counted(server: Running, tmp_path: Path):
    lines = [json.dumps({"userId": str(number)}) for number in range(500)]
    (tmp_path / "lines").write_text("\n\n".join(lines))
    done = put(server, "--create", "all of them", str(tmp_path / "lines"))
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("the queue all of them has no listeners; nobody gets these messages unless ")
    assert "\n500 put in " in done.stderr
    assert "499 empty lines skipped" in done.stderr
    assert sorted(messages_of(server, "all of them")) == sorted(lines)


def test_a_refused_line_is_named_and_the_others_are_put(server: Running, tmp_path: Path):
    (tmp_path / "lines").write_bytes(b"one\n\xff\n" + b"x" * (3 << 20) + b"\nfour\n")
    done = put(server, "--create", "some of them", str(tmp_path / "lines"))
    assert done.returncode == 1
    assert "line 2: not UTF-8" in done.stderr
    assert "line 3: 4" in done.stderr  # 413 or 422, and why
    assert "2 put in " in done.stderr
    assert "2 refused" in done.stderr
    assert sorted(messages_of(server, "some of them")) == ["four", "one"]


def test_lines_come_from_standard_input(server: Running):
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "cli.app", "put", "--create", "piped", "--quiet"],
        stdin=subprocess.PIPE,
        text=True,
        env=clean_environment(EVERPUT_URL=server.url, EVERPUT_API_KEY=server.api_key),
    )
    process.communicate("one\ntwo\n", timeout=120)
    assert process.returncode == 0
    assert sorted(messages_of(server, "piped")) == ["one", "two"]


def test_a_queue_that_is_not_there_is_a_clear_error(server: Running, tmp_path: Path):
    (tmp_path / "lines").write_text("one\n")
    done = put(server, "nowhere", str(tmp_path / "lines"))
    assert done.returncode == 2
    assert (
        done.stderr == "everput: no queue that the API key can read has the name or ID nowhere; `everput queues list` "
        "shows the queues that it can read; with --create, this command creates the queue\n"
    )


def test_a_wrong_key_is_a_clear_error(server: Running, tmp_path: Path):
    (tmp_path / "lines").write_text("one\n")
    done = put(server, "--key", "wrong", "all of them", str(tmp_path / "lines"))
    assert done.returncode == 2
    assert "the API key was refused: 401" in done.stderr


def test_an_api_that_is_killed_on_the_way_costs_no_message_and_doubles_none(server: Running):
    lines = [f"message {number}" for number in range(20_000)]
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "cli.app", "put", "--create", "killed"],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=clean_environment(EVERPUT_URL=server.url, EVERPUT_API_KEY=server.api_key),
    )
    assert process.stdin is not None
    process.stdin.write("\n".join(lines[:10_000]) + "\n")  # more than a pipe holds: some are under way
    process.stdin.flush()
    os.kill(server.pid_of("api-1"), signal.SIGKILL)
    _, stderr = process.communicate("\n".join(lines[10_000:]), timeout=240)
    assert process.returncode == 0, stderr
    assert sorted(messages_of(server, "killed")) == sorted(lines)


# Pipelining


def record_batches(server: Running) -> Counter[int]:
    """How many record batches of the topic have how many records, from Kafka's files."""
    found: Counter[int] = Counter()
    for path in server.data_dir.glob(f"kafka/**/{TOPIC}-*/*.log"):
        log = path.read_bytes()
        at = 0
        while at < len(log):
            (length,) = struct.unpack_from(">i", log, at + 8)
            (count,) = struct.unpack_from(">i", log, at + 57)
            found[count] += 1
            at += 12 + length
    return found


def test_puts_that_arrive_together_on_one_connection_are_one_record_batch(server: Running):
    headers = {"x-api-key": server.api_key}
    made = httpx.put(f"{server.url}/v1/queues", json={"name": "pipelined"}, headers=headers, timeout=20).json()["queue"]

    def request(data: str) -> bytes:
        body = json.dumps({"data": data}).encode()
        head = f"PUT /v1/queues/{made['id']}/messages HTTP/1.1\r\nhost: {place.netloc}\r\nx-api-key: {server.api_key}"
        return f"{head}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body

    place = urlsplit(server.url)
    with socket.create_connection((place.hostname, place.port), timeout=20) as connection:

        def answers(requests: bytes, count: int) -> None:
            connection.sendall(requests)
            received = b""
            while received.count(b"HTTP/1.1 200 ") < count or not received.endswith(b"}"):
                part = connection.recv(1 << 16)
                assert part, received
                received += part

        answers(request("before"), 1)  # The process knows the API key now, so that no put has to wait for it.
        before = record_batches(server)
        answers(b"".join(request(str(number)) for number in range(5)), 5)
    assert record_batches(server) - before == Counter({5: 1})
