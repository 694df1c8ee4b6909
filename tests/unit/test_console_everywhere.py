"""Every page and dialog of the console in Chromium, on a desk and on a phone, by day and by night.

axe finds nothing wrong, nothing overflows, and nothing is reported as an error. The keyboard leads everywhere.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import httpx
import pytest
from test_api_accounts import PASSWORD, SAME, WHO
from test_console_pages import CHARTS, DRAWN, NAMES, Shop, needs_chromium, opened, shop

from api import console
from tests.browser import Browser, browser

__all__ = ["shop"]  # the fixture

pytestmark = [needs_chromium, pytest.mark.timeout(300)]
LOOKS = [(width, height, scheme) for width, height in ((1440, 900), (390, 844)) for scheme in ("light", "dark")]
VIEWS = re.findall(
    r'^  \["([^"]+)", show\w+', (Path(console.__file__).parent / "console_files/main.js").read_text(), re.MULTILINE
)
READY = """document.querySelector('main h1') !== null && !/Loading…/.test(document.querySelector('main').textContent) &&
  ![...document.querySelectorAll('main td')].some((one) => one.textContent === '…') &&
  [...document.querySelectorAll('.over-time .plot')].every((one) => one.querySelector('canvas') !== null)"""
# The elements that are wider than the screen, without those that scroll inside another.
WIDE = """(() => {
  const wide = document.documentElement.clientWidth;
  const scrolls = (one) => one.closest('.scroll, pre, .u-wrap, .over-time, table > thead') !== null;
  return [...document.querySelectorAll('body *')].filter((one) => !scrolls(one) && one.checkVisibility())
    .filter((one) => one.getBoundingClientRect().right > wide + 1 && getComputedStyle(one).position !== 'absolute')
    .map((one) => `${one.tagName} ${one.className} ${one.textContent.slice(0, 40)}`);
})()"""

# The fields and buttons that stick out of the element around them.
OUTSIDE = """[...document.querySelectorAll('input, select, textarea, button')].filter((one) => one.checkVisibility() &&
  one.getBoundingClientRect().right > one.parentElement.getBoundingClientRect().right + 1)
  .map((one) => `${one.tagName} ${one.ariaLabel || one.parentElement.textContent.slice(0, 40)}`)"""
SCROLLED = """[...document.querySelectorAll('.panel, dialog')].filter((one) => one.scrollWidth > one.clientWidth + 1)
  .map((one) => one.textContent.slice(0, 60))"""


async def put(shop: Shop, path: str, body: dict[str, object]) -> httpx.Response:
    """Send a PUT as the shop's member."""
    async with httpx.AsyncClient(base_url=shop.url, headers=SAME, timeout=60) as http:
        await http.post("/v1/sessions", json=WHO)
        return (await http.put(path, json=body, headers={"everput-organization": shop.organization})).raise_for_status()


async def faults(page: Browser, where: str) -> list[str]:
    """Return what is wrong with a page or a dialog, in each size and color scheme."""
    found = []
    for width, height, scheme in LOOKS:
        await page.size(width, height)
        await page.color_scheme(scheme)
        for _ in range(100):  # The charts get their new size a moment later.
            if not await page.run(SCROLLED):
                break
            await asyncio.sleep(0.05)
        here = f"{where} at {width} px, {scheme}:"
        found += [f"{here} overflow of {one}" for one in await page.run(WIDE)]
        found += [f"{here} {one} sticks out" for one in await page.run(OUTSIDE)]
        found += [f"{here} a panel scrolls sideways: {one}" for one in await page.run(SCROLLED)]
        if await page.run("document.documentElement.scrollWidth") > width:
            found.append(f"{here} the page scrolls sideways")
        # What axe finds depends on the width or on the color scheme, so it looks at each of them once.
        if (width > 1000) == (scheme == "light"):
            found += [f"{here} {one}" for one in await page.violations()]
        if await page.run(f"{CHARTS}.length > 0"):
            line = await page.run("getComputedStyle(document.documentElement).getPropertyValue('--line').trim()")
            rgb = ",".join(str(int(line[at : at + 2], 16)) for at in (1, 3, 5))
            for _ in range(100):  # The charts get their new colors a moment later, too.
                if rgb in await page.run(f"({DRAWN})({CHARTS}[0].querySelector('canvas'))"):
                    break
                await asyncio.sleep(0.05)
            else:
                found.append(f"{here} the chart has other colors")
    found += [f"{where}: {one}" for one in page.errors]
    page.errors.clear()
    await page.size(1440, 900)
    return found


@pytest.fixture
async def page(shop: Shop) -> AsyncIterator[Browser]:
    """A page whose person is signed in."""
    async with browser(viewport={"width": 1440, "height": 900}) as made:
        await opened(made, shop.url, "/overview")
        await made.until(READY)
        yield made


async def test_every_page(shop: Shop, page: Browser):
    data = '{"order": 7, "name": "' + "a long name without spaces".replace(" ", "") * 12 + '"}'
    messages = f"/v1/queues/{shop.queue}/messages"
    message = (await put(shop, messages, {"data": data, "key": "k" * 60})).json()["message"]["id"]
    await put(shop, f"/v1/organizations/{shop.organization}/keys", {"name": "deploy", "scopes": ["messages"]})
    await put(shop, f"/v1/organizations/{shop.organization}/invitations", {"email": "bob@example.com"})
    ids = {"queue_id": shop.queue, "listener_id": shop.listener, "message_id": message, "token": "evi_unknown"}
    ids |= {"organization_id": shop.organization}
    found = []
    for view in VIEWS:
        path = re.sub(r":(\w+)", lambda name: ids[name[1]], view)
        await page.go(f"{shop.url}/console#/{path}")
        await page.until(READY)
        if view.endswith("keys"):
            page.errors.clear()
        found += await faults(page, view)
    assert not found, "\n".join(found)


async def test_an_auditor_sees_the_pages_without_a_refused_request(shop: Shop):
    body = {"email": "aud@example.com", "role": "auditor"}
    made = (await put(shop, f"/v1/organizations/{shop.organization}/invitations", body)).json()["invitation"]
    async with httpx.AsyncClient(base_url=shop.url, headers=SAME, timeout=60) as http:
        registered = {"token": made["token"], "password": PASSWORD}
        (await http.post("/v1/invitations/register", json=registered)).raise_for_status()
    async with browser(viewport={"width": 1440, "height": 900}) as page:
        await page.sign_in(shop.url, body["email"], PASSWORD)
        page.errors.clear()
        for path in (
            "overview",
            "queues",
            f"queues/{shop.queue}",
            f"queues/{shop.queue}/listeners/{shop.listener}",
            "log",
            "members",
        ):
            await page.go(f"{shop.url}/console#/{path}")
            await page.until(READY)
            await page.until("performance.getEntriesByType('resource').some((one) => one.name.includes('/v1/'))")
            assert page.errors == [], path
        assert await page.run("document.querySelector('#nav').textContent.includes('Log')")


async def test_the_pages_for_who_is_not_signed_in(shop: Shop):
    async with browser(viewport={"width": 1440, "height": 900}) as page:
        await page.go(f"{shop.url}/console")
        await page.until("document.querySelector('input[type=password]') !== null")
        page.errors.clear()  # Chromium reports the 401 of the page's question who is signed in.
        found = await faults(page, "sign-in")
        await page.go(f"{shop.url}/console#/invitation/evi_unknown")
        await page.until("document.querySelector('main h1') !== null")
        page.errors.clear()
        found += await faults(page, "invitation")
        for path in ("/problems", "/problems/refused", "/docs"):
            await page.go(f"{shop.url}{path}")
            await page.until("document.querySelector('h1') !== null")
            if path == "/docs":  # All fields and forms would be more than axe reads in a minute.
                parts = "[...document.querySelectorAll('#createListener details, #getMessage details')]"
                await page.run(f"{parts}.forEach((one) => {{ one.open = true; }})")
                await page.until("document.querySelectorAll('.try form').length === 2")
            found += await faults(page, path)
        assert found == []


async def press(page: Browser, name: str) -> None:
    await page.page.get_by_role("button", name=name, exact=True).first.click()


async def test_every_dialog(shop: Shop, page: Browser):
    listener = f"/queues/{shop.queue}/listeners/{shop.listener}"
    dialogs: list[tuple[str, str, Callable[[], Awaitable[None]]]] = [
        ("/queues", "create queue", lambda: press(page, "Create queue")),
        (f"/queues/{shop.queue}", "edit queue", lambda: press(page, "Edit")),
        (f"/queues/{shop.queue}", "delete queue", lambda: press(page, "Delete")),
        (f"/queues/{shop.queue}", "create listener", lambda: press(page, "Create listener")),
        (listener, "edit listener", lambda: press(page, "Edit")),
        (listener, "secret", lambda: press(page, "Manage secret")),
        ("/overview", "palette", lambda: page.page.keyboard.press("Control+k")),
        ("/overview", "keys of the keyboard", lambda: page.page.keyboard.press("?")),
        ("/keys", "create key", lambda: press(page, "Create API key")),
    ]
    found = []
    for path, name, opens in dialogs:
        await page.go(f"{shop.url}/console#{path}")
        await page.until(READY)
        await opens()
        await page.until("document.querySelector('dialog[open], form.new') !== null")
        found += await faults(page, f"dialog: {name}")
    assert not found, "\n".join(found)
    here = page.page
    await here.get_by_label("Name", exact=True).fill("deploy")
    await here.get_by_label("shop/orders", exact=True).check()
    await here.get_by_label("Expires", exact=True).fill("2099-01-31T12:00")
    await here.locator("dialog button[type=submit]").click()
    await page.until("document.querySelector('dialog[open] .copyable') !== null")
    await here.locator("dialog[open] .row button").click()
    cells = "[...document.querySelectorAll('main tbody td')].map((one) => one.textContent)"
    await page.until(f"{cells}.includes('deploy')")
    expires = await page.run("new Date('2099-01-31T12:00').toISOString().slice(0, 16).replace('T', ' ')")
    assert {"queues, messages (1 queue only)", expires} <= set(await page.run(cells))


async def test_a_queue_from_its_creation_to_its_deletion_by_clicks(shop: Shop, page: Browser):
    """The forms and buttons of queues, listeners, messages, replays and keys, as a person uses them."""
    here = page.page
    heading = "document.querySelector('main h1')?.textContent"

    async def fill(label: str, text: str) -> None:
        await here.get_by_label(label, exact=True).locator("visible=true").last.fill(text)

    async def submit(name: str) -> None:
        await here.locator("button[type=submit]", has_text=name).locator("visible=true").last.click()

    await page.go(f"{shop.url}/console#/queues")
    await page.until(READY)
    await press(page, "Create queue")
    await fill("Name", "shop/returns")
    await submit("Create queue")
    await page.until(f"{heading} === 'shop/returns'")
    await page.until(READY)
    await press(page, "Create listener")
    await fill("Name", "refunds")
    await fill("notify_url", "https://8.8.8.8/n")
    await fill("liveness_url", "https://8.8.8.8/l")
    await submit("Create listener")
    await page.until("document.querySelector('dialog[open] .copyable') !== null")  # the secret
    await here.locator("dialog[open] .row button").last.click()
    await page.until(f"{heading} === 'refunds'")
    await here.locator("p.way a").last.click()
    await page.until(f"{NAMES}.includes('refunds')")
    await here.locator("details.put > summary").click()
    await fill("Data", '{"order": 7}')
    await submit("Put message")
    await here.locator("details.put [role=status] a").click()
    await page.until("document.querySelector('main').textContent.includes('refunds')")
    await page.go(f"{shop.url}/console#/queues")
    await page.until(READY)
    await here.locator("a.name", has_text="shop/returns").click()
    await page.until(f"{NAMES}.includes('refunds')")
    await here.locator("a.name", has_text="refunds").click()
    await page.until(f"{heading} === 'refunds'")
    await page.until(READY)
    await press(page, "Pause")
    await page.until("document.querySelector('main').textContent.includes('The listener is paused')")
    await press(page, "Resume")
    await page.until("!document.querySelector('main').textContent.includes('The listener is paused')")
    await here.locator("summary", has_text="Replay a time range").click()
    await press(page, "Count only")
    await page.until("document.querySelector('main').textContent.includes('1 message, about')")
    await submit("Start replay")
    await page.until("document.querySelector('.progress progress') !== null")
    assert "0 of 1 message (0 %)" in await page.run("document.querySelector('.progress').textContent")
    await here.get_by_role("row", name="running").get_by_role("button", name="Cancel").click()
    await press(page, "Cancel replay")
    await page.until("document.querySelector('.progress') === null")
    await here.locator("p.way a").last.click()
    await page.until(f"{heading} === 'shop/returns'")
    await page.until(READY)
    await press(page, "Delete")
    await press(page, "Delete queue")
    await page.until(f"{heading} === 'Queues' && !{NAMES}.includes('shop/returns')")
    assert page.errors == []


async def test_the_keyboard_leads_to_the_search_to_any_page_and_to_help(shop: Shop, page: Browser):
    keyboard = page.page.keyboard
    message = (await put(shop, f"/v1/queues/{shop.queue}/messages", {"data": "x"})).json()["message"]["id"]
    await page.go(f"{shop.url}/console#/queues")
    await page.until(READY)
    await keyboard.press("/")
    await keyboard.type("ord?")  # and a question mark is text there
    assert await page.run("document.activeElement.value") == "ord?"
    for text, address in (
        ("log", "/log"),
        ("bill", f"/queues/{shop.queue}/listeners/{shop.listener}"),
        ("orders", f"/queues/{shop.queue}"),
        (message, f"/queues/{shop.queue}/messages/{message}"),
    ):
        await keyboard.press("Control+k")
        await keyboard.type(text)
        chosen = "document.querySelector('.options [aria-selected=true]')?.textContent.toLowerCase()"
        await page.until(f"{chosen}?.includes('{text}')")
        await keyboard.press("Enter")
        await page.until(f"location.hash === '#/o/{shop.organization}{address}'")
    await page.until(READY)
    await keyboard.press("?")
    await page.until("document.querySelector('dialog[open] kbd') !== null")
    await keyboard.press("Escape")
    await page.until("document.querySelector('dialog') === null")
    assert page.errors == []


def test_the_pages_of_the_test_are_those_of_the_console():
    assert {"overview", "queues", "log", "queues/:queue_id/messages/:message_id"} <= set(VIEWS)
