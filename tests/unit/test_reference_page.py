"""The API reference in a real Chromium: search, samples, schemas, "Try it". How it looks is tested in
test_console_everywhere.py.
"""

from __future__ import annotations

import json
from http import HTTPStatus

import pytest
from test_api_server import live_api

from api.reference import OPERATION_DOCS
from tests.browser import CHROMIUM, Browser, browser

SHOWN = "[...document.querySelectorAll('#operations li')].filter((one) => one.offsetParent)"

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine's PATH")


async def opened(page: Browser, url: str, part: str = "") -> None:
    await page.go(f"{url}/docs{part}")
    await page.until("document.querySelectorAll('.operation').length > 0")


async def search(page: Browser, text: str) -> list[str]:
    """Type into the search field, and return the operations that are left."""
    await page.run("document.getElementById('search').value = ''")
    await page.run("document.getElementById('search').focus()")
    await page.call("Input.insertText", text=text)
    return await page.run(f"{SHOWN}.map((one) => one.querySelector('a').hash.slice(1))")


async def test_each_operation_is_shown_and_found_by_its_name_its_path_and_its_words():
    async with live_api() as api, browser() as page:
        await page.size(1440, 900)
        await opened(page, str(api.bare.base_url))
        ids = await page.run("[...document.querySelectorAll('.operation')].map((one) => one.id)")
        webhooks = (await api.bare.get("/v1/openapi.json")).json()["webhooks"]
        assert set(ids) == {doc.name for doc in OPERATION_DOCS.values()} | {f"webhook-{name}" for name in webhooks}
        await page.run("document.activeElement.blur()")
        for kind in ("keyDown", "keyUp"):
            await page.call("Input.dispatchKeyEvent", type=kind, key="/", text="/" if kind == "keyDown" else "")
        assert await page.run("document.activeElement.id") == "search"
        await page.run("document.activeElement.blur()")
        await page.page.keyboard.press("Control+k")
        assert await page.run("document.activeElement.id") == "search"
        assert await search(page, "createqueue") == ["createQueue"]
        assert "putMessage" in await search(page, "idempotency-key")
        assert {"createListener", "updateListener"} <= set(await search(page, "max_in_flight")), "a field in a field"
        assert "listListeners" in await search(page, "recent_failures"), "a field of the answer"
        assert await search(page, "secret rotate") == ["rotateSecret"]
        assert await page.run("document.getElementById('found').textContent") == "1 operations found"
        await page.run("document.getElementById('search').form.requestSubmit()")
        await page.until("document.activeElement.id === 'rotateSecret'")
        assert page.errors == []


async def test_samples_are_in_tabs_for_the_keyboard_and_fields_are_shown_level_by_level():
    async with live_api() as api, browser() as page:
        await page.size(1440, 900)
        await opened(page, str(api.bare.base_url), "#putMessage")
        tabs = "[...document.querySelectorAll('#putMessage [role=tab]')]"
        assert await page.run(f"{tabs}.map((one) => one.textContent)") == ["curl", "JavaScript", "Python", "Go"]
        await page.run(f"{tabs}[0].focus()")
        for key in ("ArrowRight", "ArrowRight"):
            for kind in ("keyDown", "keyUp"):
                await page.call("Input.dispatchKeyEvent", type=kind, key=key)
        assert await page.run(f"{tabs}.map((one) => one.ariaSelected)") == ["false", "false", "true", "false"]
        chosen = "[...document.querySelectorAll('[role=tab][aria-selected=true]')].map((one) => one.textContent)"
        assert set(await page.run(chosen)) == {"Python"}, "it is chosen for all operations"
        shown = "[...document.querySelectorAll('#putMessage [role=tabpanel]')].find((one) => !one.hidden).textContent"
        source = await page.run(shown)
        assert "import httpx" in source
        assert str(api.bare.base_url) in source
        answer = "[...document.querySelectorAll('#getMessage > div > .fields')].at(-1)"
        await page.until(f"Boolean({answer}.querySelector('summary'))")
        await page.run(f"{answer}.querySelector('summary').click()")
        await page.until(f"Boolean({answer}.querySelector('details[open] .fields'))")
        assert "created_at" in await page.run(f"{answer}.textContent")
        assert page.errors == []


async def test_a_request_is_tried_with_a_typed_key_and_a_problem_leads_to_its_page():
    async with live_api() as api, browser() as page:
        await page.size(1440, 900)
        await opened(page, str(api.bare.base_url), "#createQueue")
        await page.run("document.querySelector('#createQueue .try summary').click()")
        await page.until("Boolean(document.querySelector('#createQueue .try form'))")
        key = "document.querySelector('#createQueue [name=api-key]')"
        await page.run(f"{key}.value = {json.dumps(api.key)}; {key}.dispatchEvent(new Event('input'))")
        answer = "document.querySelector('#createQueue .try [role=status]')"
        for status in ("200 OK", f"422 {HTTPStatus(422).phrase}"):  # Python 3.13 changed this phrase
            await page.run("document.querySelector('#createQueue .try form').requestSubmit()")
            await page.until(f"{answer}.querySelector('.state')?.textContent === {status!r}")
        assert await page.run(f"{answer}.querySelector('a').getAttribute('href')") == "problems/name-taken"
        assert [one for one in page.errors if "422" not in one] == []
