"""Listeners that are wrong in every way, and a right one: the API, the command line, the console and the metrics say
the same of each, and it is true."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from api import console
from tests.listeners import Got, Listeners, nobody, until
from tests.scenarios.running import Running, everput

WORDS = Path(console.__file__).parent / "console_files" / "words.js"
MESSAGES = 10
SECRET = "Bearer t0ken-of-the-listener"
# What is true of each when everything has settled: its health, and how many deliveries are parked.
WANTED = {
    "right": ("healthy", 0),
    "endless": ("healthy", 0),
    "unprocessable": ("failing", MESSAGES),
    "broken": ("failing", 0),
    "hanging": ("failing", 0),
    "gone": ("paused", 0),
    "refused": ("down", 0),
    "nameless": ("down", 0),
    "unencrypted": ("down", 0),
}


@asynccontextmanager
async def endless() -> AsyncIterator[int]:
    """A server that answers 200 to everything and never ends its answer. Its port."""
    open_ones = set[asyncio.StreamWriter]()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        open_ones.add(writer)
        await reader.read(1)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\nsome")

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for one in open_ones:
            one.close()


def echo(got: Got) -> bytes:
    """Answer with what was sent, as a careless listener does, and with more than is kept. The others answer the same to
    all, so that most of their attempts name an answer of another one.
    """
    sent = got.headers if got.path == "unprocessable" else {}
    return f"{got.path} refuses: {json.dumps(sent)}".encode() + b"." * 5000


class Surfaces:
    """Everything that tells of the listeners of one queue."""

    def __init__(self, server: Running, http: httpx.AsyncClient, queue_id: str) -> None:
        self.server = server
        self.http = http
        self.path = f"/v1/queues/{queue_id}"

    async def get(self, path: str) -> Any:
        return (await self.http.get(path)).raise_for_status().json()

    async def items(self) -> dict[str, dict[str, Any]]:
        """The API's listeners, each by itself."""
        listed = (await self.get(f"{self.path}/listeners"))["listeners"]
        return {one["name"]: (await self.get(f"{self.path}/listeners/{one['id']}"))["listener"] for one in listed}

    async def say(self) -> dict[str, dict[str, tuple[str, int, int]]]:
        """By surface and listener: (health, parked, retrying)."""
        listed = (await self.get(f"{self.path}/listeners"))["listeners"]
        items = await self.items()
        names = {one["id"]: one["name"] for one in listed}
        return {
            "list": {one["name"]: _said(one) for one in listed},
            "item": {name: _said(one) for name, one in items.items()},
            "listeners list": {
                one["name"]: _said(one) for one in map(json.loads, await self.cli("listeners", "list", "wrong"))
            },
            "status": {
                one["listener"]: _said(one)
                for one in json.loads((await self.cli("status", "wrong", code=1))[0])["listeners"]
            },
            "metrics": await self.metrics(names),
        }

    async def cli(self, *arguments: str, code: int = 0, as_json: bool = True) -> list[str]:
        more = (*(["--json"] if as_json else []), "--url", self.server.url, "--data-dir", str(self.server.data_dir))
        done = await asyncio.to_thread(everput, *arguments, *more)
        assert done.returncode == code, done.stderr
        return done.stdout.splitlines()

    async def verified(self) -> None:
        """The log, with the kept answers, contradicts nothing."""
        admin = ("--data-dir", str(self.server.data_dir), "--admin", self.server.admin_url)
        done = await asyncio.to_thread(everput, "verify", *admin)
        assert done.returncode == 0, done.stdout + done.stderr

    async def metrics(self, names: dict[str, str]) -> dict[str, tuple[str, int, int]]:
        """Listeners without trouble are not named there."""
        text = (await self.http.get(self.server.admin_url + "/metrics")).raise_for_status().text
        found: dict[str, dict[str, Any]] = {name: {} for name in names.values()}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                name = names.get(sample.labels.get("listener", ""), "")
                if name and sample.name in ("everput_listener_parked", "everput_listener_retrying"):
                    found[name][sample.name.rpartition("_")[2]] = int(sample.value)
                if name and sample.name == "everput_listener_state":
                    found[name]["health"] = sample.labels["state"]
        return {name: _said({"health": "healthy", "parked": 0, "retrying": 0} | one) for name, one in found.items()}

    async def deliveries(self) -> dict[str, Counter[str]]:
        """By listener, the states of its deliveries, as the messages tell them."""
        found: dict[str, Counter[str]] = {}
        for message in (await self.get(f"{self.path}/messages"))["messages"]:
            whole = (await self.get(f"{self.path}/messages/{message['id']}"))["message"]
            for one in whole["listeners"]:
                found.setdefault(one["name"], Counter())[one["state"]] += 1
        return found


def _said(one: dict[str, Any]) -> tuple[str, int, int]:
    return one["health"], one["parked"], one["retrying"]


def sentences(listeners: dict[str, dict[str, Any]]) -> dict[str, str]:
    """What the console's page says of each."""
    script = f"""
        import * as words from "{WORDS.as_uri()}";
        const said = {{}};
        for (const one of {json.dumps(list(listeners.values()))})
          said[one.name] = `${{words.healthOf(one)}}: ${{words.healthSentences(one, Date.now()).join(" ")}}`;
        console.log(JSON.stringify(said));
    """
    done = subprocess.run(["node", "--input-type=module", "-e", script], capture_output=True, check=True, timeout=60)
    return dict(json.loads(done.stdout))


async def check_answers(here: Surfaces, items: dict[str, dict[str, Any]]) -> None:
    """Each failed attempt tells what was answered, or how far it came, and nothing tells a secret."""
    told = ""
    for message in (await here.get(f"{here.path}/messages"))["messages"]:
        whole = await here.get(f"{here.path}/messages/{message['id']}")
        told += json.dumps(whole)
        by_name = {one["name"]: one["attempts"] for one in whole["message"]["listeners"]}
        for name in ("right", "endless"):
            assert [(one["status"], "answer" in one) for one in by_name[name]] == [(200, False)]
        for name in ("unprocessable", "broken", "gone"):
            for attempt in by_name[name]:
                answer = attempt["answer"]
                assert answer["body"].startswith(f"{name} refuses: {{")
                assert len(answer["body"].encode()) <= 2048
                assert answer["truncated"] is True
                assert {"name": "content-type", "value": "application/json"} in answer["request"]["headers"]
        hidden = [{"name": "authorization", "value": "\u2026"}, {"name": "webhook-signature", "value": "\u2026"}]
        shown = [one["answer"]["request"]["headers"] for one in by_name["unprocessable"]]
        assert all(one in headers for headers in shown for one in hidden)
        assert [one["answer"]["request"]["url"] for one in by_name["gone"]] in ([], [items["gone"]["notify_url"]])
        for attempt in by_name["nameless"]:
            assert ("dns_ms" in attempt, "connect_ms" in attempt, "answer" in attempt) == (True, False, False)
        for attempt in by_name["refused"]:
            assert ("connect_ms" in attempt, "tls_ms" in attempt, "answer" in attempt) == (True, False, False)
        for attempt in by_name["unencrypted"]:
            assert ("connect_ms" in attempt, "tls_ms" in attempt, "answer" in attempt) == (True, True, False)
    lines = "\n".join(await here.cli("messages", "get", "wrong", message["id"], as_json=False))
    assert "unprocessable refuses: {" in lines
    assert "attempt 1: refused, " in lines
    assert " 0 ms" not in lines
    log = (await here.http.get("/v1/log")).text
    assert '"type":"answers.kept"' in log
    lines += "\n".join(await here.cli("log", "--message", message["id"], as_json=False))
    assert "refuses: {" in lines
    tested = await here.cli("listeners", "test", "wrong", "unprocessable", code=1, as_json=False)
    assert tested[0].startswith("sent one test message: HTTP 422, ")
    assert any("unprocessable refuses: {" in line for line in tested)
    test = await here.http.post(f"{here.path}/listeners/{items['unprocessable']['id']}/test")
    assert test.json()["test"]["answer"]["body"].startswith("unprocessable refuses: {")
    sent = test.json()["test"]["message_id"]
    stored = [json.loads(line)["event"] for line in (await here.http.get("/v1/log")).text.splitlines() if sent in line]
    assert [(one["type"], one["status"], one["listener_id"]) for one in stored] == [
        ("listener.tested", 422, items["unprocessable"]["id"])
    ]
    assert stored[0]["answers"][0][3].startswith("unprocessable refuses: {")
    lines += "\n".join(await here.cli("log", as_json=False))
    assert "listener.tested" in lines
    token = SECRET.removeprefix("Bearer ")
    everything = "\n".join((log, told, lines, test.text, *tested))
    assert token not in everything
    assert re.search(r"v1,[A-Za-z0-9+/]{43}=", everything) is None


async def test_every_surface_says_the_same_true_thing_of_every_listener(tmp_path: Path):
    with Running(tmp_path / "data") as server, nobody() as refusing:
        url = await asyncio.to_thread(lambda: server.url)
        headers = {"x-api-key": server.api_key}
        async with (
            Listeners(status={"unprocessable": 422, "broken": 500, "gone": 410}, hangs={"hanging"}, body=echo) as heard,
            endless() as unending,
            httpx.AsyncClient(base_url=url, headers=headers, timeout=30, trust_env=False) as http,
        ):
            queue = (await http.put("/v1/queues", json={"name": "wrong"})).raise_for_status().json()["queue"]
            here = Surfaces(server, http, queue["id"])
            elsewhere = {
                "endless": f"http://127.0.0.1:{unending}/",
                "refused": f"http://127.0.0.1:{refusing}/",
                "nameless": "http://nobody.invalid/",
                "unencrypted": f"https://127.0.0.1:{unending}/",
            }
            more = {
                "unprocessable": {"max_attempts": 2, "retry_first_ms": 100, "headers": {"authorization": SECRET}},
                "hanging": {"timeout_ms": 1000},
            }
            for name in WANTED:
                at = elsewhere.get(name) or heard.url(name)
                body = {"name": name, "notify_url": at, "liveness_url": at, **more.get(name, {})}
                (await http.put(f"{here.path}/listeners", json=body)).raise_for_status()
            assert {_said(one) for one in (await here.items()).values()} == {("new", 0, 0)}
            for number in range(MESSAGES):
                (await http.put(f"{here.path}/messages", json={"data": str(number)})).raise_for_status()

            async def settled() -> bool:
                items = await here.items()
                return {name: (one["health"], one["parked"]) for name, one in items.items()} == WANTED

            await until(settled, what="every listener is in its state")

            async def agree() -> bool:
                """Attempts go on, so each surface may tell anything between what was true before and after."""
                before = {name: _said(one) for name, one in (await here.items()).items()}
                said = await here.say()
                for name, states in (await here.deliveries()).items():
                    counted = before[name][0], states["parked"], states["retrying"]
                    said.setdefault("messages", {})[name] = counted
                after = {name: _said(one) for name, one in (await here.items()).items()}
                return all(
                    low <= one[name] <= high or high <= one[name] <= low
                    for one in said.values()
                    for name, low, high in ((name, before[name], after[name]) for name in WANTED)
                )

            async def queue_agrees() -> bool:
                """The lists of queues count the states and deliveries of the listeners."""
                path = "/v1/queues?health=true&backlog=true"
                before = await here.items()
                listed = [*(await here.get(path))["queues"], *map(json.loads, await here.cli("queues", "list"))]
                said = [one for one in listed if one["id"] == queue["id"]]  # Alerts have a queue of their own.
                after = await here.items()
                sums = {
                    name: sorted(sum(one[name] for one in items.values()) for items in (before, after))
                    for name in ("retrying", "lag")
                }
                return len(said) == 2 and all(
                    one["health"] == Counter(health for health, _ in WANTED.values())
                    and one["parked"] == MESSAGES
                    and all(low <= one[name] <= high for name, (low, high) in sums.items())
                    for one in said
                )

            await until(agree, what="all say the same, and what the deliveries come to")
            await until(queue_agrees, what="the lists of queues count the same")
            items = await here.items()
            assert {name: (one["health"], one["parked"]) for name, one in items.items()} == WANTED
            if shutil.which("node") is not None:
                said = sentences(items)
                assert {name: one.partition(":")[0] for name, one in said.items()} == {
                    name: health for name, (health, _) in WANTED.items()
                }
                assert [name for name, one in said.items() if "accepts messages" in one] == ["right", "endless"]
                assert f"{MESSAGES} deliveries parked" in said["unprocessable"]
                assert "20 of 20 attempts in the last 5 minutes failed" in said["unprocessable"]
            # Every error is said in a word or a status.
            errors = {name: one["last_error"] for name, one in items.items()}
            assert errors == {
                **dict.fromkeys(("right", "endless"), None),
                "unprocessable": "422",
                "broken": "500",
                "hanging": "timeout",
                "gone": "410",
                "refused": "refused",
                "nameless": "no-address",
                "unencrypted": "tls",
            }
            await check_answers(here, items)
            # What is parked can be tried again, and is counted while it is.
            heard.status.clear()
            (await http.post(f"{here.path}/listeners/{items['unprocessable']['id']}/redrive")).raise_for_status()

            async def mended() -> bool:
                now = (await here.items())["unprocessable"]
                return (now["parked"], now["retrying"], now["lag"]) == (0, 0, 0)

            await until(mended, what="nothing is parked any more")
            await until(agree, what="all say the same again")
            await here.verified()
