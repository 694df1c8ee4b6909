"""From `everput serve` to a first delivery that a person sees in the console's play inbox, in a real Chromium."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Iterator
from urllib.parse import urlencode

import httpx
import pytest
from websockets.asyncio.client import connect

from tests.browser import CHROMIUM, Browser, browser
from tests.scenarios.running import Running

WHO = {"email": "ann@example.com", "password": "correct horse battery"}
CLICKS_MAX = 6
SIZES = ((1440, 900), (390, 844))
SEEN = "one => one.textContent === wanted && one.offsetParent && !one.disabled"
INBOX = "[...document.querySelectorAll('.inbox li')]"

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine's PATH")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with Running(tmp_path_factory.mktemp("onboarding") / "data") as running:
        assert running.url
        yield running


class Person:
    """Somebody who uses a page with mouse and keyboard. `clicks` counts the clicks."""

    def __init__(self, page: Browser) -> None:
        self.page = page
        self.clicks = 0

    async def click(self, text: str, *, within: str = "main") -> None:
        """Click the button with this text with the mouse, as soon as it is visible in this part of the page."""
        await self.page.run(
            f"window.clicked = () => [...document.querySelectorAll({within + ' button'!r})].find(({SEEN}))"
        )
        await self.page.run(f"window.wanted = {json.dumps(text)}")
        await self.page.until("Boolean(clicked())")
        await self.page.run("clicked().scrollIntoView({ block: 'center' })")
        box = await self.page.run("clicked().getBoundingClientRect().toJSON()")
        at = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2, "button": "left", "clickCount": 1}
        for kind in ("mousePressed", "mouseReleased"):
            await self.page.call("Input.dispatchMouseEvent", type=kind, **at)
        self.clicks += 1

    async def type(self, text: str) -> None:
        """Type into the field that has the focus."""
        await self.page.until("document.activeElement.tagName === 'INPUT'")
        await self.page.call("Input.insertText", text=text)

    async def tab(self) -> None:
        for kind in ("keyDown", "keyUp"):
            await self.page.call("Input.dispatchKeyEvent", type=kind, key="Tab", code="Tab", windowsVirtualKeyCode=9)


async def headed(page: Browser, title: str) -> None:
    await page.until(f"document.querySelector('h1')?.textContent === {json.dumps(title)}")


async def test_a_new_user_sees_a_first_delivery_after_six_clicks_and_one_paste_at_most(server: Running):
    async with browser(permissions=["clipboard-read", "clipboard-write"]) as page:
        await page.size(1440, 900)
        person = Person(page)
        await page.go(server.url)
        assert await page.run("location.pathname") == "/console"
        await headed(page, "Sign in")
        page.errors.clear()  # Chromium reports the 401 of the page's question who is signed in.
        await person.click("Register")
        await headed(page, "Register")
        await person.type(WHO["email"])
        await person.tab()
        await person.type(WHO["password"])
        await person.click("Register")
        await headed(page, "Create your organization")
        await page.run("document.querySelector('main input').focus()")
        await person.type("shop")
        await person.click("Create organization")
        await headed(page, "Get started")
        await person.click("Create queue and key")
        await page.until("document.querySelector('.state.live')?.textContent === 'listening'")
        await person.click("Copy", within="[role=tabpanel]")
        pasted = await page.run("navigator.clipboard.readText()")
        put = await asyncio.to_thread(subprocess.run, ["sh", "-c", pasted], capture_output=True, text=True, check=True)
        assert "message" in json.loads(put.stdout), put.stdout
        await page.until(f"{INBOX}.length === 1 && {INBOX}[0].textContent.includes('signature valid')")
        assert "Hello, Everput" in await page.run(f"{INBOX}[0].textContent")
        assert "Your first message was delivered." in await page.run("document.querySelector('main').textContent")
        assert person.clicks <= CLICKS_MAX
        for width, height in SIZES:
            await page.size(width, height)
            assert await page.run("document.documentElement.scrollWidth") <= width
            assert await page.violations() == []
        assert page.errors == []


async def test_in_the_inbox_retries_are_watched_and_its_listener_goes_with_the_page(server: Running):
    async with browser() as page:
        await page.size(390, 844)
        await page.color_scheme("dark")
        password = (server.data_dir / "console-password").read_text().strip()
        async with httpx.AsyncClient(base_url=server.url, headers={"x-api-key": server.api_key}, timeout=60) as http:
            queue = (await http.put("/v1/queues", json={"name": "watched"})).json()["queue"]["id"]
            listeners = f"/v1/queues/{queue}/listeners"
            await page.sign_in(server.url, "admin@everput.local", password)
            page.errors.clear()
            await page.go(f"{server.url}/console#/queues/{queue}/play")
            await page.until("document.querySelector('.state.live')?.textContent === 'listening'")
            assert len((await http.get(listeners)).json()["listeners"]) == 1
            await page.run("document.querySelector('#play-answer').value = '500'")
            put = await http.put(f"/v1/queues/{queue}/messages", json={"data": '{"order": 7}'})
            name = put.json()["message"]["name"]
            await page.until(f"{INBOX}.some((one) => one.textContent.includes('answered 500'))")
            await page.run("document.querySelector('#play-answer').value = '200'")
            await page.until(f"{INBOX}[0].textContent.includes('answered 200')")
            last = await page.run(f"{INBOX}[0].textContent")
            assert name in last
            assert "attempt 1" not in last
            assert "signature valid" in last
            assert await page.run("document.documentElement.scrollWidth") <= 390
            await page.run(f"{INBOX}[0].querySelector('summary').click()")
            assert "everput-attempt" in await page.run(f"{INBOX}[0].innerText.toLowerCase()")
            assert await page.violations() == []
            assert await page.run("document.documentElement.scrollWidth") <= 390
            # Another client opens the same listener.
            inbox = (await http.get(listeners)).json()["listeners"][0]["name"]
            path = f"{server.url.replace('http', 'ws')}/v1/queues/{queue}/listen?{urlencode({'name': inbox})}"
            async with connect(path, additional_headers={"x-api-key": server.api_key}):
                await page.until("document.querySelector('main').textContent.includes('Another tab has opened')")
            again = "[...document.querySelectorAll('main button')].find((one) => one.textContent === 'Start again')"
            await page.run(f"{again}.click()")
            await page.until("document.querySelector('.state.live')?.textContent === 'listening'")
            await page.go(f"{server.url}/console#/queues")
            async with asyncio.timeout(30):
                while (await http.get(listeners)).json()["listeners"]:
                    await asyncio.sleep(0.1)
            assert page.errors == []
