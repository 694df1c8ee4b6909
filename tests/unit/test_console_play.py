"""The play inbox in a real Chromium; a worker's requests are made by hand."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
from collections.abc import AsyncIterator
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import httpx
import pytest
from api_client import Api, make_api
from test_api_accounts import PASSWORD, SAME, WHO
from test_api_server import serving

from api.tunnel import Tunnels
from tests.browser import CHROMIUM, Browser, browser

INBOX = "[...document.querySelectorAll('.inbox li')]"
LISTENING = "document.querySelector('.state.live')?.textContent === 'listening'"

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine's PATH")


class Place(NamedTuple):
    """A server, a queue, and what a member of its organization sends."""

    api: Api
    worker: httpx.AsyncClient
    queue: str
    headers: dict[str, str]

    async def listeners(self) -> list[dict[str, Any]]:
        answer = await self.api.bare.get(f"/v1/queues/{self.queue}/listeners", headers=self.headers)
        return answer.json()["listeners"]

    async def deliver(self, data: str, *, secret: str | None = None, number: int = 1) -> httpx.Response:
        """Send a message as a worker does, signed with the listener's secret or with this one. `number` is that of the
        attempt, and 0 for a batch of two.
        """
        (listener,) = await self.listeners()
        if secret is None:
            path = f"/v1/queues/{self.queue}/listeners/{listener['id']}/secret"
            secret = (await self.api.bare.get(path, headers=self.headers)).json()["secret"]
        one = {"queue": {"id": self.queue, "name": "q"}, "message": {"id": "m", "name": "n", "data": data}}
        batch = [{"id": "m", "content_type": "application/json", "attempt": 4, "body": one}] * 2
        body = json.dumps(one if number else batch)
        signed = hmac.new(base64.b64decode(secret.removeprefix("whsec_")), f"m.7.{body}".encode(), hashlib.sha256)
        headers = {
            "webhook-id": "m",
            "webhook-timestamp": "7",
            "webhook-signature": f"v1,AAAA v1,{base64.b64encode(signed.digest()).decode()}",
            "content-type": "application/json",
            **({"everput-attempt": str(number)} if number else {}),
        }
        url = self.api.log.control.state.listeners[listener["id"]].notify_url
        return await self.worker.post(urlsplit(url).path, content=body.encode(), headers=headers)


@pytest.fixture
async def place() -> AsyncIterator[Place]:
    tunnels = Tunnels("tunnel://127.0.0.1:7")
    api = await make_api(tunnels=tunnels)
    await api.bare.aclose()
    async with serving(api, websockets=True) as port:
        http = api.bare = httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60)
        assert (await http.put("/v1/accounts", json=WHO)).status_code == 200
        assert (await http.post("/v1/sessions", json=WHO, headers=SAME)).status_code == 200
        made = (await http.put("/v1/organizations", json={"name": "shop"}, headers=SAME)).json()["organization"]
        headers = {**SAME, "everput-organization": made["id"]}
        queue = (await http.put("/v1/queues", json={"name": "q"}, headers=headers)).json()["queue"]["id"]
        async with httpx.AsyncClient(transport=httpx.ASGITransport(tunnels.app), base_url="http://worker") as worker:
            yield Place(api, worker, queue, headers)


async def opened(page: Browser, place: Place) -> None:
    await page.size(1440, 900)
    url = str(place.api.bare.base_url)
    await page.sign_in(url, WHO["email"], PASSWORD)
    page.errors.clear()
    await page.go(f"{url}/console#/queues/{place.queue}/play")
    await page.until(LISTENING)


async def test_a_signature_is_right_only_with_the_listeners_secret(place: Place):
    async with browser() as page:
        await opened(page, place)
        other = f"whsec_{base64.b64encode(b'another secret of 32 characters.').decode()}"
        for secret, words in ((None, "✓ signature valid"), (other, "✗ signature wrong"), (None, "✓ signature valid")):
            assert (await place.deliver("ü<b>", secret=secret)).status_code == 200
            await page.until(f"{INBOX}[0].textContent.includes({words!r})")
            await page.run(
                "[...document.querySelectorAll('button')].find((one) => one.textContent === 'Clear').click()"
            )
            assert await page.run(f"{INBOX}.length") == 0
        assert page.errors == []


async def test_a_rotated_secret_is_read_again(place: Place):
    async with browser() as page:
        await opened(page, place)
        await place.deliver("first")
        await page.until(f"{INBOX}[0]?.textContent.includes('signature valid')")
        (listener,) = await place.listeners()
        path = f"/v1/queues/{place.queue}/listeners/{listener['id']}/secret/rotate"
        assert (await place.api.bare.post(path, headers=place.headers)).status_code == 200
        await place.deliver("second")
        await page.until(f"{INBOX}.length === 2 && {INBOX}[0].textContent.includes('signature valid')")
        assert page.errors == []


async def test_the_inbox_answers_as_chosen(place: Place):
    async with browser() as page:
        await opened(page, place)
        for value, status, after in (("500", 500, None), ("503", 503, "5"), ("200", 200, None)):
            await page.run(f"document.getElementById('play-answer').value = {value!r}")
            answer = await place.deliver("x", number=2)
            assert (answer.status_code, answer.headers.get("retry-after")) == (status, after)
        assert (
            await page.run(f"{INBOX}.map((one) => one.querySelectorAll('.state')[0].textContent)") == ["attempt 2"] * 3
        )
        assert page.errors == []


async def test_a_batch_is_shown_with_its_messages(place: Place):
    async with browser() as page:
        await opened(page, place)
        await place.deliver("first", number=0)
        await page.until(f"{INBOX}[0]?.textContent.includes('signature valid')")
        shown = await page.run(f"{INBOX}[0].textContent")
        assert "Batch of 2 messages" in shown
        assert "attempt 4" in shown
        assert "n: first\nn: first" in shown
        assert page.errors == []


async def test_data_is_shown_as_text_and_a_body_only_when_it_is_opened(place: Place):
    async with browser() as page:
        await opened(page, place)
        await place.deliver("<img src=x onerror=alert(1)>" * 9_000)
        await page.until(f"{INBOX}.length === 1")
        assert await page.run("document.querySelectorAll('main img, .inbox pre').length") == 0
        assert len(await page.run(f"{INBOX}[0].textContent")) < 1_000
        await page.run(f"{INBOX}[0].querySelector('summary').click()")
        await page.until("document.querySelector('.inbox pre')?.textContent.includes('onerror')")
        assert len(await page.run(f"{INBOX}[0].textContent")) < 110_000
        assert page.errors == []


async def test_the_listener_goes_when_the_page_goes(place: Place):
    async with browser() as page:
        await opened(page, place)
        assert [one["name"] for one in await place.listeners()] == [f"Play inbox of {WHO['email']}"]
        for leave, there in (("location.hash = '#/queues'", "**#/queues"), ("location.href = 'docs'", "**/docs")):
            await page.run(leave)
            await page.page.wait_for_url(there)
            async with asyncio.timeout(30):
                while await place.listeners():
                    await asyncio.sleep(0.05)
            await page.go(f"{place.api.bare.base_url}/console#/queues/{place.queue}/play")
            await page.until(LISTENING)
        (listener,) = await place.listeners()
        path = f"/v1/queues/{place.queue}/listeners/{listener['id']}"
        assert (await place.api.bare.delete(path, headers=place.headers)).status_code == 200
        await page.until("document.querySelector('main').textContent.includes('listener was deleted')")
        await page.until(LISTENING)
        assert len(await place.listeners()) == 1
