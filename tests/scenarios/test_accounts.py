"""The operator's commands on accounts and organizations, beside API processes on one Kafka: who owns what, who is out.

For: `everput init` and what the shell does to accounts, as every API process answers it. Not for: each request
(tests/unit/test_api_accounts.py)."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import pytest

from broker.core import events as ev
from broker.kafka.log import KafkaLog
from broker.sealing import new_sealing_key
from broker.settings import KafkaSettings
from tests.scenarios.running import alone, everput, said

PASSWORD = "correct horse battery"
STRANGER = {"email": "admin@everput.local", "password": PASSWORD}


@pytest.fixture
def options(kafka_settings: KafkaSettings, ready_topics, tmp_path: Path) -> list[str]:
    given = ["--kafka", kafka_settings.bootstrap, "--topic-prefix", kafka_settings.topic_prefix]
    given += ["--partitions", str(kafka_settings.partitions), "--replication", "1", "--flush-each-batch"]
    return [*given, "--data-dir", str(tmp_path)]


async def shell(*arguments: str, **environment: str) -> str:
    """What the command prints."""
    done = await asyncio.to_thread(everput, *arguments, **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


async def strangers_of_an_older_version(kafka: KafkaSettings) -> None:
    """An account and an organization that somebody registered over HTTP before that was closed."""
    log = KafkaLog(kafka)
    await log.start()
    for event in (
        ev.AccountCreated(
            at_ms=1, organization_id="", actor="account:s", account_id="s", email=STRANGER["email"], password_hash="h"
        ),
        ev.OrganizationCreated(at_ms=2, organization_id="theirs", actor="account:s", name="default"),
        ev.OrganizationJoined(at_ms=3, organization_id="theirs", actor="account:s", account_id="s"),
    ):
        await log.control.append(event)
    await log.stop()


async def test_a_stranger_who_comes_first_can_not_register_and_owns_nothing_of_the_operators(
    kafka_settings: KafkaSettings, options: list[str]
):
    await strangers_of_an_older_version(kafka_settings)
    with alone("api", "--port", "0", *options, EVERPUT_SEALING_KEY=new_sealing_key()) as api:
        url = (await asyncio.to_thread(said, api)).removeprefix("ready ")
        async with httpx.AsyncClient(base_url=url, timeout=20) as client:

            async def own(key: str) -> dict[str, str]:
                answer = await client.get("/v1/organizations", headers={"x-api-key": key})
                return answer.json()["organizations"][0]

            early = {"email": "early@example.com", "password": PASSWORD}
            refused = await client.put("/v1/accounts", json=early)
            assert refused.status_code == 403
            assert "everput init" in refused.json()["detail"]

            made = await own(await shell("init", *options))
            assert made["name"] == "default"
            assert made["id"] != "theirs"
            assert await own(await shell("init", *options)) == made, "to repeat it is safe"
            assert (await client.put("/v1/accounts", json=early)).status_code == 200

            ann = ("init", *options, "--email", "ann@example.com")
            anns = await own(await shell(*ann, EVERPUT_PASSWORD=PASSWORD))
            assert anns["id"] not in (made["id"], "theirs")
            assert await own(await shell(*ann, EVERPUT_PASSWORD=PASSWORD)) == anns
            named = await own(await shell("init", *options, "--organization", "theirs"))
            assert named["id"] == "theirs", "whose id is named is meant"
