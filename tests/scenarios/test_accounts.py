"""The operator's commands on accounts and organizations, beside API processes on one Kafka: who owns what, who is out.

For: `everput init` and what the shell does to accounts, as every API process answers it. Not for: each request
(tests/unit/test_api_accounts.py)."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest

from broker.core import events as ev
from broker.kafka.embedded.kafka import EmbeddedKafka
from broker.kafka.log import KafkaLog
from broker.sealing import new_sealing_key
from broker.settings import KafkaSettings
from tests.listeners import until
from tests.scenarios.running import alone, everput, said
from tests.smtp import receiving_mail

PASSWORD = "correct horse battery"
STRANGER = {"email": "admin@everput.local", "password": PASSWORD}


@pytest.fixture
def options(kafka_server: EmbeddedKafka, kafka_settings: KafkaSettings, ready_topics, tmp_path: Path) -> list[str]:
    (tmp_path / "kafka").symlink_to(kafka_server.data_dir)  # where the commands find its password
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
                # The use of the key is recorded in a moment, and counts as stored bytes.
                return {**answer.json()["organizations"][0], "stored_bytes": None}

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


async def test_what_the_shell_does_to_an_account_counts_in_every_process_at_once(options: list[str]):
    await shell("init", *options)
    sealed = {"EVERPUT_SEALING_KEY": new_sealing_key()}
    with alone("api", "--port", "0", *options, **sealed) as one, alone("api", "--port", "0", *options, **sealed) as two:
        urls = [(await asyncio.to_thread(said, process)).removeprefix("ready ") for process in (one, two)]
        async with httpx.AsyncClient(timeout=20) as client:
            ann, bob = ({"email": f"{name}@example.com", "password": PASSWORD} for name in ("ann", "bob"))

            async def sign_in(who: dict[str, str], status: int = 200) -> dict[str, str]:
                answer = await client.post(f"{urls[0]}/v1/sessions", json=who)
                client.cookies.clear()
                assert answer.status_code == status, answer.text
                return {"authorization": f"Bearer {answer.json()['session']['token']}"} if status == 200 else {}

            async def statuses(headers: dict[str, str], path: str = "/v1/sessions") -> set[int]:
                return {(await client.get(f"{url}{path}", headers=headers)).status_code for url in urls}

            for who in (ann, bob):
                assert (await client.put(f"{urls[1]}/v1/accounts", json=who)).status_code == 200
            session = await sign_in(ann)
            made = await client.put(f"{urls[0]}/v1/organizations", json={"name": "Ann's"}, headers=session)
            organization = made.json()["organization"]["id"]
            keys = f"{urls[1]}/v1/organizations/{organization}/keys"
            key = (
                await client.put(keys, json={"name": "deploy", "scopes": ["queues", "keys"]}, headers=session)
            ).json()["key"]
            made_with = {"x-api-key": key["secret"]}
            second = (await client.put(keys, json={"name": "second", "scopes": ["queues"]}, headers=made_with)).json()[
                "key"
            ]
            soon = {"name": "expired", "expires_at": (datetime.now(UTC) + timedelta(seconds=1)).isoformat()}
            expired = (await client.put(keys, json=soon, headers=session)).json()["key"]

            async def has_expired() -> bool:
                return await statuses({"x-api-key": expired["secret"]}, "/v1/queues") == {401}

            await until(has_expired, what="a key has expired")
            blocked = await asyncio.to_thread(everput, "accounts", "block", ann["email"], *options)
            assert "has no owner left who can sign in" in blocked.stderr
            assert f"still valid: the key deploy ({key['id']})" in blocked.stderr
            assert f"still valid: the key second ({second['id']})" in blocked.stderr
            assert expired["id"] not in blocked.stderr
            assert await statuses(session) == {401}
            assert await statuses({"x-api-key": key["secret"]}, "/v1/queues") == {200}
            await sign_in(ann, 403)
            await shell("organizations", "revoke-key", key["id"], *options)
            assert await statuses({"x-api-key": key["secret"]}, "/v1/queues") == {401}
            await shell("accounts", "unblock", ann["email"], *options)

            session = await sign_in(ann)
            await shell("accounts", "end-sessions", ann["email"], *options)
            assert await statuses(session) == {401}
            once = {**ann, "password": await shell("accounts", "reset-password", ann["email"], *options)}
            await sign_in(ann, 401)
            session = await sign_in(once)
            await sign_in(once, 401)
            assert await statuses(session) == {200}

            last = await asyncio.to_thread(everput, "accounts", "delete", ann["email"], "--yes", *options)
            assert last.returncode == 1
            assert "Ann's" in last.stderr
            leave = ("organizations", "remove-member", organization, ann["email"], "--even-if-last")
            await shell(*leave, *options)
            assert await statuses({**session, "everput-organization": organization}, "/v1/queues") == {404}
            await shell("accounts", "delete", ann["email"], "--yes", *options)
            assert await statuses(session) == {401}
            listed = [json.loads(line) for line in (await shell("accounts", "list", "--json", *options)).splitlines()]
            assert [(account["email"], account["blocked"]) for account in listed] == [(bob["email"], False)]
            listed = json.loads((await shell("organizations", "list", "--json", *options)).splitlines()[-1])
            assert (listed["name"], listed["members"], listed["made_by"]) == ("Ann's", [], "account")

            invite = ("organizations", "invite", organization)
            link = await shell(*invite, bob["email"], "--public-url", "https://everput.example/", *options)
            assert link.startswith("https://everput.example/console#/invitation/evi_")
            await shell(*invite, "eve@example.com", *options)
            invitations = ("organizations", "invitations", organization, "--json")
            _, other = [json.loads(line) for line in (await shell(*invitations, *options)).splitlines()]
            assert (other["email"], other["created_by"]) == ("eve@example.com", "shell")
            await shell("organizations", "revoke-invitation", other["id"], *options)
            async with receiving_mail() as inbox:
                server = ("--smtp-url", f"smtp://127.0.0.1:{inbox.port}", "--mail-from", "everput@example.com")
                by_mail = (*invite, "mia@example.com", "--role", "auditor", "--public-url", "https://everput.example/")
                printed = await shell(*by_mail, *server, *options)
                assert inbox.recipients == ["mia@example.com"]
                assert printed in inbox.mails[0].get_content()
            session = await sign_in(bob)
            token = {"token": link.rpartition("/")[2]}
            used = [await client.post(f"{url}/v1/invitations/accept", json=token, headers=session) for url in urls]
            assert [answer.status_code for answer in used] == [200, 422]
            assert await statuses({**session, "everput-organization": organization}, "/v1/queues") == {200}
            assert json.loads(await shell(*invitations, *options))["role"] == "auditor"
            await shell("organizations", "set-role", organization, bob["email"], "owner", *options)
            last = await asyncio.to_thread(
                everput, "organizations", "set-role", organization, bob["email"], "auditor", *options
            )
            assert (last.returncode, "No owner who can sign in" in last.stderr) == (1, True)
            missing = await asyncio.to_thread(everput, *invite[:2], "no-id", bob["email"], *options)
            assert (missing.returncode, "no organization has the ID no-id" in missing.stderr) == (1, True)

            missing = await asyncio.to_thread(everput, "accounts", "block", ann["email"], *options)
            assert (missing.returncode, "no account has the e-mail address" in missing.stderr) == (1, True)
