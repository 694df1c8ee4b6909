"""Puts that are sent again with their Idempotency-Key while API processes and Kafka are killed: each is stored once."""

from __future__ import annotations

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import everput
from tests.scenarios.running import Running

CLIENTS = 8
ROUNDS = 40
BATCH = 5


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_whatever_is_killed_a_repeated_put_is_stored_once(tmp_path: Path):
    with Running(tmp_path / "data", "--api-processes", "2") as server:
        url, key = server.url, server.api_key
        with everput.Client(url, key) as client:
            queue_id = client.send(everput.create_queue("orders")).queue.id
        half_way = threading.Semaphore(0)

        def put(number: int) -> list[str]:
            ids = []
            with everput.Client(url, key, give_up_after_s=180) as client:
                for turn in range(ROUNDS):
                    data = f"{number}.{turn}"
                    ids.append(client.send(everput.put_message(queue_id, data)).message.id)
                    batch = [{"data": f"{data}.{part}"} for part in range(BATCH)]
                    ids += [one.message.id for one in client.send(everput.put_batch(queue_id, batch)).messages]
                    half_way.release()
            return ids

        with ThreadPoolExecutor(CLIENTS) as threads:
            putting = [threads.submit(put, number) for number in range(CLIENTS)]
            for process in ("api-1", "api-2", "kafka", "api-1"):
                for _ in range(ROUNDS):
                    assert half_way.acquire(timeout=200)
                server.kill(process)
            answered = [one for done in putting for one in done.result()]

        with everput.Client(url, key) as client:
            stored = [one for page in client.pages(everput.list_messages(queue_id)) for one in page.messages]
        wanted = {f"{number}.{turn}" for number in range(CLIENTS) for turn in range(ROUNDS)}
        wanted |= {f"{one}.{part}" for one in set(wanted) for part in range(BATCH)}
        assert Counter(one.data for one in stored) == dict.fromkeys(wanted, 1)
        assert sorted(answered) == sorted(one.id for one in stored)
