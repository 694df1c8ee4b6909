"""Two `everput api` processes on one Kafka: a name that both are asked for at once is taken once, and each tells what
the other stored.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from pathlib import Path

import httpx

from broker.sealing import new_sealing_key
from broker.settings import KafkaSettings
from tests.kafka_clients import sasl_variables
from tests.scenarios.running import STOPS_WITHIN_S, alone, everput, said

NAMES = 100
AT_ONCE = 20


async def test_of_two_processes_that_race_for_a_name_one_gets_it_and_one_says_422(
    kafka_settings: KafkaSettings, ready_topics, tmp_path: Path
):
    options = ["--kafka", kafka_settings.bootstrap, "--topic-prefix", kafka_settings.topic_prefix]
    options += ["--partitions", str(kafka_settings.partitions), "--replication", "1", "--flush-each-batch"]
    options += ["--data-dir", str(tmp_path)]
    key = (await asyncio.to_thread(everput, "init", *options, **sasl_variables(kafka_settings))).stdout.strip()
    sealed = {"EVERPUT_SEALING_KEY": new_sealing_key(), **sasl_variables(kafka_settings)}
    api = ("api", "--port", "0", *options)
    with alone(*api, **sealed) as one, alone(*api, **sealed) as other:
        urls = [(await asyncio.to_thread(said, process)).removeprefix("ready ") for process in (one, other)]
        assert len(set(urls)) == 2
        async with httpx.AsyncClient(headers={"x-api-key": key}, timeout=20) as client:
            turn = asyncio.Semaphore(AT_ONCE)

            async def race(number: int) -> dict[str, httpx.Response]:
                """By process; each is asked first every other time, by up to 90 ms."""
                order = urls if number % 2 else urls[::-1]

                async def asked(place: int, url: str) -> httpx.Response:
                    await asyncio.sleep(place * number // 2 % 10 / 100)
                    return await client.put(f"{url}/v1/queues", json={"name": f"queue {number}"})

                async with turn:
                    answers = await asyncio.gather(*(asked(place, url) for place, url in enumerate(order)))
                    return dict(zip(order, answers, strict=True))

            races = [list(both.items()) for both in await asyncio.gather(*map(race, range(NAMES)))]
            statuses = Counter(tuple(sorted(answer.status_code for _, answer in both)) for both in races)
            assert statuses == {(200, 422): NAMES}
            winners = {url for both in races for url, answer in both if answer.status_code == 200}
            assert winners == set(urls), "each wins now and then, or it was no race"
            refused = [answer for both in races for _, answer in both if answer.status_code == 422]
            assert {answer.json()["type"] for answer in refused} == {"/problems/name-taken"}
            made = {answer.json()["queue"]["id"] for both in races for _, answer in both if answer.status_code == 200}
            for url in urls:
                found = (await client.get(f"{url}/v1/queues", params={"limit": 100})).json()["queues"]
                assert {queue["id"] for queue in found} == made
            async with client.stream("GET", f"{urls[1]}/v1/changes") as stream:
                told = (line.removeprefix("data: ") async for line in stream.aiter_lines() if line.startswith("data: "))
                async with asyncio.timeout(20):
                    assert json.loads(await anext(told))["all"], "nothing is known from before"
                    queue_id = made.pop()
                    put = await client.put(f"{urls[0]}/v1/queues/{queue_id}/messages", json={"data": "x"})
                    assert put.status_code == 200
                    changes: list[dict[str, str]] = []
                    while not changes:
                        changes = json.loads(await anext(told))["changes"]
                assert changes == [{"kind": "message", "queue_id": queue_id}], (
                    "what one process stored, the other tells"
                )
                for process in (one, other):
                    process.terminate()
                assert [line async for line in told] == [], "and the body is complete"
        for process in (one, other):
            assert await asyncio.to_thread(process.wait, STOPS_WITHIN_S) == 0
