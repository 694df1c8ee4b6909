"""The console's list of messages and its page of a message, in a real Chromium, with a server that delivers."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import httpx
import pytest

from tests.browser import CHROMIUM, Browser, browser
from tests.listeners import Got, Listeners, until
from tests.scenarios.running import Running

ROWS = "[...document.querySelectorAll('.messages tbody tr')]"
NAMES = f"{ROWS}.map((one) => one.querySelector('a').textContent)"
BADGES = f"{ROWS}.map((one) => [...one.querySelectorAll('.state')].map((badge) => badge.textContent))"
STEPS = """[...document.querySelectorAll('.delivery')].map((one) =>
    [...one.querySelectorAll('.timeline strong')].map((step) => step.textContent.replace('\u2013', '-')))"""
HOSTILE = 'it\'s <b>"bold"</b> $HOME `id` \\ \u202e\u001b[31m\nline'

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine's PATH")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with Running(tmp_path_factory.mktemp("messages") / "data") as running:
        assert running.url
        yield running


@dataclass
class Shop:
    """A queue of a server with the listeners `billing`, which takes everything, and `mail`, which has one attempt."""

    server: Running
    http: httpx.AsyncClient
    listeners: Listeners
    queue_id: str

    async def put(self, name: str, data: str = '{"order": 7}', **more: str) -> str:
        body = {"name": name, "data": data, **more}
        answer = await self.http.put(f"/v1/queues/{self.queue_id}/messages", json=body)
        return str(answer.json()["message"]["id"])

    async def sign_in(self, page: Browser) -> None:
        password = (self.server.data_dir / "console-password").read_text().strip()
        await page.sign_in(self.server.url, "admin@everput.local", password)
        page.errors.clear()

    async def open(self, page: Browser, path: str = "") -> None:
        """Open the page of the queue, or a page below it."""
        await page.go(f"{self.server.url}/console#/queues/{self.queue_id}{path}")


@pytest.fixture
async def shop(server: Running, request: pytest.FixtureRequest) -> AsyncIterator[Shop]:
    async with (
        Listeners() as listeners,
        httpx.AsyncClient(base_url=server.url, headers={"x-api-key": server.api_key}, timeout=60) as http,
    ):

        def decide(got: Got) -> int:
            return 400 if got.path == "mail" and got.data.startswith("bad") else 200

        listeners.decide = decide
        listeners.body = lambda got: b'{"why":"<script>no</script>"}' if decide(got) == 400 else b""
        queue = (await http.put("/v1/queues", json={"name": request.node.name[:200]})).json()["queue"]["id"]
        for name, more in (("billing", {}), ("mail", {"max_attempts": 1})):
            url = listeners.url(name)
            body = {"name": name, "notify_url": url, "liveness_url": url, **more}
            assert (await http.put(f"/v1/queues/{queue}/listeners", json=body)).status_code == 200
        yield Shop(server, http, listeners, queue)


async def choose(page: Browser, label: str, value: str) -> None:
    """Choose a filter's value."""
    await page.run(f"""(() => {{
        const fields = [...document.querySelectorAll('.messages .filter')];
        const field = fields.find((one) => one.firstChild.textContent === {label!r});
        field.lastChild.value = {value!r};
        field.lastChild.dispatchEvent(new Event('change'));
    }})()""")


async def test_new_messages_appear_with_the_state_of_each_delivery_without_a_request_for_each_row(shop: Shop):
    async with browser() as page:
        await page.size(1440, 900)
        await shop.sign_in(page)
        await shop.open(page)
        await page.until("document.querySelector('.messages')?.textContent.includes('No messages yet.')")
        assert "$EVERPUT_API_KEY" in await page.run("document.querySelector('.messages pre').textContent")
        await shop.put("first", key="customer-12")
        await page.until(f"JSON.stringify({NAMES}) === '[\"first\"]'")
        await shop.put("second", "bad")
        await page.until(
            f'JSON.stringify({BADGES}) === \'[["parked: mail (1 attempt)","1 delivered"],["2 delivered"]]\''
        )
        assert await page.run(NAMES) == ["second", "first"]
        cells = await page.run(f"[...{ROWS}[1].cells].map((one) => one.textContent)")
        assert cells[2:4] == ["customer-12", "12 B"]
        asked = "performance.getEntriesByType('resource').map((one) => new URL(one.name).pathname)"
        assert [path for path in await page.run(asked) if "/messages/" in path] == []
        assert page.errors == []


async def test_filters_are_in_the_address_and_a_link_shows_them_again(shop: Shop):
    await shop.put("good", key="customer-12")
    message_id = await shop.put("wrong", "bad")
    async with browser() as page:
        await page.size(1440, 900)
        await shop.sign_in(page)
        await shop.open(page)
        await page.until(f"{BADGES}.flat().includes('parked: mail (1 attempt)')")
        for label, value, expected in (
            ("State", "parked", ["wrong"]),
            ("State", "", ["wrong", "good"]),
            ("Search", "CUSTOMER", ["good"]),
            ("Search", message_id, ["wrong"]),
            ("Search", "", ["wrong", "good"]),
            ("Ordering key is", "customer-12", ["good"]),
            ("Ordering key is", "", ["wrong", "good"]),
            ("Name is", "good", ["good"]),
            ("Name is", "", ["wrong", "good"]),
            ("To", "2020-01-01T00:00:00", []),
        ):
            await choose(page, label, value)
            await page.until(f"JSON.stringify({NAMES}) === JSON.stringify({expected})")
        shown = "document.querySelector('.messages').textContent"
        await page.until(f"{shown}.includes('No message matches these filters.')")
        assert "to=" in await page.run("location.hash")
        clear = "[...document.querySelectorAll('.messages button')].find((one) => one.textContent === 'Clear filters')"
        await page.run(f"{clear}.click()")
        await page.until(f"{NAMES}.length === 2")
        assert "?" not in await page.run("location.hash")
        await shop.open(page, "?state=parked&search=WRO")
        await page.until(f"JSON.stringify({NAMES}) === '[\"wrong\"]'")
        assert await page.run("document.querySelector('.messages input[type=search]').value") == "WRO"
        assert page.errors == []


async def test_a_reader_keeps_the_place_and_the_list_can_be_paused(shop: Shop):
    for number in range(30):
        await shop.put(f"m{number}")
    listing = "performance.getEntriesByType('resource').filter((one) => one.name.includes('/listeners?')).length"
    async with browser() as page:
        await page.size(1440, 900)
        await shop.sign_in(page)
        await shop.open(page)
        await page.until(f"{ROWS}.length === 25")
        older = "[...document.querySelectorAll('.messages button')].find((one) => one.textContent === 'Show older')"
        await page.run(f"{older}.click()")
        await page.until(f"{ROWS}.length === 30")
        await page.run(f"{ROWS}[20].scrollIntoView()")
        await shop.put("new")
        await page.until("document.querySelector('.fresh').checkVisibility()")
        assert await page.run("document.querySelector('.fresh').textContent") == "Show 1 new message"
        assert "new" not in await page.run(NAMES)
        await page.run("document.querySelector('.fresh').click()")
        assert (await page.run(NAMES))[0] == "new"
        assert len(set(await page.run(NAMES))) == 31
        await page.run("window.scrollTo(0, 0)")
        live = "document.querySelector('.messages input[type=checkbox]')"
        await page.run(f"{live}.click()")
        before = await page.run(listing)
        await shop.put("newer")
        await page.until(f"{listing} > {before} + 1")
        assert (await page.run(NAMES))[0] == "new"
        await page.run(f"{live}.click()")
        await page.until(f"{NAMES}[0] === 'newer'")
        assert page.errors == []


@pytest.mark.parametrize("data", [HOSTILE, HOSTILE * 5000], ids=["hostile", "longer than an argument may be"])
async def test_a_put_is_copied_as_a_command_that_a_shell_runs_whatever_the_message_holds(shop: Shop, data: str):
    await shop.put("o'clock", data, key="customer's")
    async with browser(permissions=["clipboard-read", "clipboard-write"]) as page:
        await page.size(1440, 900)
        await shop.sign_in(page)
        await shop.open(page)
        await page.until(f"{ROWS}.length === 1")
        await page.run(f"{ROWS}[0].querySelector('button').click()")
        await page.until("document.querySelector('#notices').textContent.includes('Command copied.')")
        command = await page.run("navigator.clipboard.readText()")
        assert "\u202e" not in command
        assert "\u001b" not in command
        environment = {**os.environ, "EVERPUT_API_KEY": shop.server.api_key}
        run = await asyncio.to_thread(
            subprocess.run, ["sh"], input=command, capture_output=True, text=True, check=True, env=environment
        )
        copy = json.loads(run.stdout)["message"]
        found = (await shop.http.get(f"/v1/queues/{shop.queue_id}/messages/{copy['id']}")).json()["message"]
        assert (found["name"], found["key"], found["data"]) == ("o'clock", "customer's", data)
        assert page.errors == []


async def test_the_page_of_a_listener_leads_to_the_messages_in_the_same_state(shop: Shop):
    await shop.put("good")
    await shop.put("wrong", "bad")
    listeners = (await shop.http.get(f"/v1/queues/{shop.queue_id}/listeners")).json()["listeners"]
    (mail,) = [one["id"] for one in listeners if one["name"] == "mail"]
    async with browser() as page:
        await page.size(1440, 900)
        await shop.sign_in(page)
        await shop.open(page, f"/listeners/{mail}")
        state = "document.querySelector('[aria-label=\"Filter by state\"]')"
        await page.until(f"{state} !== null")
        await page.run(f"{state}.value = 'parked'; {state}.dispatchEvent(new Event('change'))")
        link = "[...document.querySelectorAll('main a')].find((one) => one.textContent === 'Show the messages')"
        await page.until(f"{link}.href.includes('state=parked')")
        await page.run(f"{link}.click()")
        await page.until(f"JSON.stringify({NAMES}) === '[\"wrong\"]'")
        assert await page.run(BADGES) == [["parked (1 attempt)"]]
        assert page.errors == []


async def test_all_parked_deliveries_of_a_listener_are_retried_and_that_is_cancelled(shop: Shop):
    for number in range(12):
        await shop.put(f"wrong {number}", "bad")
    path = f"/v1/queues/{shop.queue_id}/listeners"
    (mail,) = [one["id"] for one in (await shop.http.get(path)).json()["listeners"] if one["name"] == "mail"]
    changed = {"max_in_flight": 1, "timeout_ms": 60_000}
    assert (await shop.http.put(f"{path}/{mail}", json=changed)).status_code == 200
    bar = "document.querySelector('progress[aria-label=\"Progress of the retries\"]')"
    states = "[...document.querySelectorAll('main tbody td[data-label=State]')].map((one) => one.textContent)"
    async with browser() as page:
        await page.size(1440, 900)
        await shop.sign_in(page)
        await shop.open(page, f"/listeners/{mail}")
        await page.until(f"{states}.length === 12 && {states}.every((one) => one === 'parked')")
        shop.listeners.decide = lambda _: 200
        shop.listeners.hangs.add("mail")
        buttons = page.page.get_by_role("button", name="Cancel retries", exact=True)
        assert await buttons.count() == 0
        await page.page.get_by_role("button", name="Retry all", exact=True).click()
        await page.page.locator("dialog").get_by_role("button", name="Retry all", exact=True).click()
        await page.until(f"{bar} !== null")
        await page.until(f"{states}.every((one) => one === 'retrying')")
        await until(lambda: shop.listeners.hanging, what="one is being retried")
        await page.page.reload()
        await page.until(f"{bar} !== null && {bar}.offsetParent !== null")
        await page.until(f"{states}.length === 12")
        await buttons.click()
        await page.page.locator("dialog").get_by_role("button", name="Cancel retries", exact=True).click()
        await page.until("document.body.textContent.includes('Cancelled the retries of 12 deliveries.')")
        await page.until(f"{bar}.offsetParent === null")
        assert len(shop.listeners.hanging) == 1, "the attempt under way"
        shop.listeners.let_go()
        await page.until(f"{states}.length === 11 && {states}.every((one) => one === 'parked')")
        assert await buttons.count() == 0
        await page.run("document.querySelector('main td[data-label=Message] a').click()")
        who = "admin@everput.local"
        steps = ["Put", "Failed - attempt 1", "Parked", f"Retried by {who}", f"Retry cancelled by {who}"]
        await page.until(f"JSON.stringify({STEPS}[1]) === JSON.stringify({json.dumps(steps)})")
        assert page.errors == []


async def test_a_message_shows_each_step_of_its_deliveries_and_is_retried(shop: Shop):
    message_id = await shop.put("wrong", "bad")
    async with browser() as page:
        await page.size(1440, 900)
        await shop.sign_in(page)
        await shop.open(page, f"/messages/{message_id}")
        steps = json.dumps([["Put", "Delivered - attempt 1"], ["Put", "Failed - attempt 1", "Parked"]])
        await page.until(f"JSON.stringify({STEPS}) === JSON.stringify({steps})")
        await page.until("document.querySelector('.timeline details') !== null")
        await page.run("document.querySelector('.timeline summary').click()")
        shown = await page.run("document.querySelector('.timeline details').textContent")
        assert "<script>no</script>" in shown
        assert f"POST {shop.listeners.url('mail')}" in shown
        assert await page.run("document.querySelector('.delivery a').title") != ""
        shop.listeners.decide = lambda _: 200
        retry = "[...document.querySelectorAll('.delivery button')].find((one) => one.textContent === 'Retry now')"
        await page.run(f"{retry}.click()")
        retried = ["Put", "Failed - attempt 1", "Parked", "Retried by admin@everput.local", "Delivered - attempt 2"]
        await page.until(f"JSON.stringify({STEPS}[1]) === JSON.stringify({json.dumps(retried)})")
        await page.until("document.querySelector('.facts .badges').textContent === '2 delivered'")
        assert await page.run("document.querySelector('.timeline details').open"), "it is still open"
        assert page.errors == []


async def test_what_comes_next_is_counted_down(shop: Shop):
    message_id = await shop.put("later", deliver_at=f"{datetime.now(UTC) + timedelta(hours=1):%Y-%m-%dT%H:%M:%SZ}")
    async with browser() as page:
        await page.size(1440, 900)
        await shop.sign_in(page)
        await shop.open(page, f"/messages/{message_id}")
        await page.until(f"{STEPS}.length === 2 && {STEPS}[0].includes('First attempt')")
        assert (await page.run("document.querySelector('.timeline li:last-child time').textContent")).startswith("in ")
        assert await page.run("document.querySelector('.delivery .state').textContent") == "scheduled"
        await shop.open(page)
        await page.until(f"{BADGES}.flat().join() === 'scheduled: billing, mail'")
        assert page.errors == []


@pytest.mark.parametrize(("scheme", "width", "height"), [("light", 1440, 900), ("dark", 390, 844)])
async def test_nothing_overflows_with_long_names_and_data(shop: Shop, scheme: str, width: int, height: int):
    message_id = await shop.put("n" * 200, "bad" + "d" * 300, key="k" * 200)
    async with browser() as page:
        await page.size(width, height)
        await page.color_scheme(scheme)
        await shop.sign_in(page)
        await shop.open(page)
        await page.until(f"{BADGES}.flat().includes('parked: mail (1 attempt)')")
        cut = "[...document.querySelectorAll('.panel')].filter((one) => one.scrollWidth > one.clientWidth).length"
        assert await page.run("document.documentElement.scrollWidth") <= width
        assert await page.run(cut) == 0
        assert await page.violations() == []
        await shop.open(page, f"/messages/{message_id}")
        await page.until("document.querySelectorAll('.timeline details').length > 0")
        await page.run("document.querySelector('.timeline summary').click()")
        assert await page.run("document.documentElement.scrollWidth") <= width
        assert await page.run(cut) == 0
        assert await page.violations() == []
        assert page.errors == []
