"""The console's pages in a real Chromium: what is drawn, that nothing overflows, and that no error is reported."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest
from memory import MemoryRecords
from test_api_accounts import PASSWORD, SAME, WHO
from test_api_server import live_api

from api import console
from broker.audit.feed import LogFeed
from broker.clock import now_ms
from broker.core.entities import Listener
from broker.core.events import DeliveriesSettled, DeliveryAttempted, StatisticsCounted
from broker.core.health import Facts
from broker.core.statistics import MINUTE_MS, Counts, Key, Totals
from broker.ports import Backlog
from tests.apps import CountedStatistics, NoDeliveries
from tests.browser import CHROMIUM, Browser, browser

VENDORED = Path(console.__file__).parent / "vendored"
TESTS_VENDORED = Path(__file__).parent.parent / "vendored"
SIZES = ((1440, 900), (390, 844))
LONG_URL = f"https://8.8.8.8/{'hooks' * 20}?token=secret"
CHARTS = "[...document.querySelectorAll('.over-time')]"
# The colors of the pixels of a canvas, without those that are transparent.
DRAWN = """(canvas) => {
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  const found = new Set();
  for (let at = 0; at < data.length; at += 4) if (data[at + 3] === 255) found.add(data.slice(at, at + 3).join());
  return [...found];
}"""

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine's PATH")


@pytest.mark.parametrize(
    "folder",
    [one for there in (VENDORED, TESTS_VENDORED) for one in there.iterdir() if one.is_dir()],
    ids=lambda folder: folder.name,
)
def test_vendored_files_are_the_unchanged_ones_with_their_license(folder: Path):
    lines = (folder / "SHA256SUMS").read_text().splitlines()
    known = {name: digest for digest, name in (line.split("  ") for line in lines)}
    files = {path.name: path for path in folder.iterdir() if path.name != "SHA256SUMS"}
    assert {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()} == known
    assert "LICENSE" in files
    assert f"/{folder.name}`" in (folder.parent / "README.md").read_text()


def hour_of(queue_id: str, listener_id: str) -> StatisticsCounted:
    """An hour of counts, in which some attempts failed."""
    chance = random.Random(7)
    totals, minute = Totals(), now_ms() // MINUTE_MS
    for back in range(1, 60):
        put = chance.randrange(80, 120)
        failed = {"422": chance.randrange(1, 9), "timeout": chance.randrange(1, 5)} if 20 < back < 40 else {}
        took = {5: put - 5, 9: 4, 12: 1}
        totals.rows[Key(minute - back, queue_id, "")] = Counts(put=put)
        totals.rows[Key(minute - back, queue_id, listener_id)] = Counts(
            delivered=put, parked=back % 2 if failed else 0, waited_ms=put * 80, failed=failed, waited=took
        )
    return totals.counted(now_ms(), 0)


class Shop(NamedTuple):
    """A server, and the ids of a queue and its listener that was served for an hour.

    `records` are those of the log, and `feed` tells its changes.
    """

    url: str
    queue: str
    listener: str
    organization: str
    records: MemoryRecords
    feed: LogFeed


class OneDown(NoDeliveries):
    """ports.ListenerStatus of listeners for which seven messages wait; the one named `mail` is down."""

    async def backlogs(self, listeners: Sequence[Listener]) -> Mapping[str, Backlog]:
        return {one.id: Backlog(7, now_ms() - 60_000) for one in listeners}

    async def facts(self, listeners: Sequence[Listener]) -> Mapping[str, Facts]:
        well, down = (
            Facts(accepted=9, accepted_at_ms=now_ms()),
            Facts(down=True, parked=1, retrying=2, refused=3, accepted=1),
        )
        return {one.id: down if one.name == "mail" else well for one in listeners}


@pytest.fixture
async def shop() -> AsyncIterator[Shop]:
    statistics = CountedStatistics()
    async with live_api(statistics=statistics, status=OneDown(), server={"websockets": True}) as api:
        http = api.bare
        assert (await http.put("/v1/accounts", json=WHO)).status_code == 200
        assert (await http.post("/v1/sessions", json=WHO, headers=SAME)).status_code == 200
        made = (await http.put("/v1/organizations", json={"name": "shop"}, headers=SAME)).json()["organization"]
        headers = {**SAME, "everput-organization": made["id"]}
        queue = (await http.put("/v1/queues", json={"name": "shop/orders"}, headers=headers)).json()["queue"]["id"]
        urls = {"notify_url": "https://8.8.8.8/n", "liveness_url": "https://8.8.8.8/l"}
        listeners = f"/v1/queues/{queue}/listeners"
        listener = (await http.put(listeners, json={"name": "billing", **urls}, headers=headers)).json()["listener"]
        mail = {"name": "mail", **urls, "notify_url": LONG_URL}
        assert (await http.put(listeners, json=mail, headers=headers)).status_code == 200
        statistics.events.append(hour_of(queue, listener["id"]))
        yield Shop(str(http.base_url), queue, listener["id"], made["id"], api.records, api.reader.feed)


async def opened(page: Browser, url: str, path: str) -> None:
    """Sign in, and open a page of the console."""
    await page.sign_in(url, WHO["email"], PASSWORD)
    page.errors.clear()
    await page.go(f"{url}/console#{path}")


@needs_chromium
async def test_a_listener_shows_its_last_hour_at_once_with_numbers_on_hover_and_as_a_table(shop: Shop):
    url, queue, listener, *_ = shop
    async with browser() as page:
        await page.size(1440, 900)
        await opened(page, url, f"/queues/{queue}/listeners/{listener}")
        await page.until(f"{CHARTS}.length === 4 && {CHARTS}.every((one) => one.querySelector('canvas'))")
        titles = await page.run(f"{CHARTS}.map((one) => one.querySelector('h2').textContent)")
        assert titles == ["Messages", "Failed attempts", "Time from put to delivered", "Backlog"]
        for number in range(3):
            colors = await page.run(f"({DRAWN})({CHARTS}[{number}].querySelector('canvas'))")
            assert len(colors) > 1, titles[number]
        legend = await page.run(f"[...{CHARTS}[1].querySelectorAll('.legend li')].map((one) => one.textContent)")
        assert [one.split()[0] for one in legend] == ["422", "timeout"]
        label = await page.run(f"{CHARTS}[0].querySelector('.plot').getAttribute('aria-label')")
        assert label.startswith("Messages: Put ")
        whole = await page.run(f"{CHARTS}[0].querySelector('.legend').textContent")
        box = await page.run(f"{CHARTS}[0].querySelector('.u-over').getBoundingClientRect().toJSON()")
        middle = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2}
        await page.call("Input.dispatchMouseEvent", type="mouseMoved", **middle)
        await page.until(f"{CHARTS}[0].querySelector('.legend').textContent !== {whole!r}")
        assert await page.run(f"{CHARTS}[0].querySelector('.when').textContent.includes(':')")
        await page.run(f"{CHARTS}[0].querySelector('summary').click()")
        await page.until(f"{CHARTS}[0].querySelectorAll('tbody tr').length === 60")
        assert page.errors == []


@needs_chromium
async def test_what_is_not_counted_yet_comes_from_the_log(shop: Shop):
    of = {"organization_id": shop.organization, "queue_id": shop.queue, "listener_id": shop.listener, "partition": 0}
    attempt = {"offset": 1, "number": 1, "error": None, "took_ms": 3, "next_at_ms": None, "message_id": "m"}
    for at, outcome in enumerate(("failed", "parked")):
        told = DeliveryAttempted(at_ms=now_ms() + at, actor="worker", outcome=outcome, status=503, **of, **attempt)
        shop.records.add("deliveries", 0, told)
    rows = tuple((offset, now_ms(), 200, 5) for offset in range(7))
    shop.records.add("deliveries", 0, DeliveriesSettled(at_ms=now_ms(), actor="worker", rows=rows, **of))
    async with browser() as page:
        await page.size(1440, 900)
        await opened(page, shop.url, f"/queues/{shop.queue}/listeners/{shop.listener}")
        legend = f"[...{CHARTS}[1].querySelectorAll('.legend li')].map((one) => one.textContent)"
        await page.until(f"{CHARTS}.length === 4 && {legend}.includes('503 2')")
        sums = await page.run(f"[...{CHARTS}[0].querySelectorAll('.legend strong')].map((one) => one.textContent)")
        assert sums[0] == sums[1], "minutes whose puts are not known are in no sum"
        await page.run(f"{CHARTS}[0].querySelector('summary').click()")
        await page.until(f"{CHARTS}[0].querySelectorAll('tbody tr').length === 60")
        rows = f"[...{CHARTS}[0].querySelectorAll('tbody tr')].map((one) => one.textContent)"
        found = await page.run(rows)
        newest = [row for row in found[:2] if row.endswith("\u201371")]  # The minute may have ended meanwhile.
        assert len(newest) == 1, "put is not known yet; seven are delivered, and one is parked"
        assert not any("so far" in row for row in found[2:])
        assert page.errors == []


@needs_chromium
async def test_the_overview_and_the_list_of_queues_show_states_without_a_request_for_each_queue(shop: Shop):
    async with browser() as page:
        await page.size(1440, 900)
        await opened(page, shop.url, "")
        await page.until(f"location.hash.endsWith('/overview') && {CHARTS}.every((one) => one.querySelector('canvas'))")
        await page.until("document.querySelectorAll('.figures dt').length > 0")
        figures = await page.run("[...document.querySelectorAll('.figures dt')].map((one) => one.textContent)")
        assert figures == ["Put", "Delivered", "Success rate", "Time to delivery", "Backlog", "Queues"]
        figure = "[...document.querySelectorAll('.figures strong')].map((one) => one.textContent)"
        put, delivered, rate, latency, backlog, queues = await page.run(figure)
        assert put == delivered != "0"
        assert 95 < float(rate.removesuffix(" %")) < 100
        assert (latency, backlog, queues) == ("50 ms", "14", "1")
        rows = "[...document.querySelectorAll('main td')].map((one) => one.textContent)"
        assert (await page.run(rows))[:7] == ["mail", "shop/orders", "down", "3 of 4 attempts", "7", "2", "1"]
        span = "document.querySelector('.panel h2').textContent"
        choice = "document.querySelector('main select')"
        assert await page.run(span) == "Last hour"
        await page.run(f"{choice}.value = '24h'; {choice}.dispatchEvent(new Event('change'))")
        await page.until(f"{span} === 'Last 24 hours'")
        assert "Per 15 min;" in await page.run(f"{CHARTS}[0].querySelector('.when').textContent")
        assert "range=24h" in await page.run("location.hash")
        await page.run(f"{choice}.dataset.old = 'yes'; window.dispatchEvent(new Event('hashchange'))")
        await page.until(f"{choice} && !{choice}.dataset.old")
        assert await page.run(f"{choice}.value") == "24h"
        await page.run("location.hash = '#/queues'")
        await page.until("document.querySelector('h1')?.textContent === 'Queues'")
        cells = "[...document.querySelectorAll('main tbody td')].map((one) => one.textContent)"
        await page.until(f"{cells}.length > 0 && !{cells}.includes('…')")
        assert await page.run(cells) == ["shop/orders", "down healthy ", "14", "1 min", "1"]
        asked = "performance.getEntriesByType('resource').map((one) => new URL(one.name).pathname)"
        assert [path for path in await page.run(asked) if "/v1/queues/" in path] == []
        assert page.errors == []


@asynccontextmanager
async def member(shop: Shop) -> AsyncIterator[httpx.AsyncClient]:
    """A client that is signed in as the shop's member."""
    async with httpx.AsyncClient(base_url=shop.url, headers=SAME, timeout=60) as http:
        await http.post("/v1/sessions", json=WHO)
        http.headers["everput-organization"] = shop.organization
        yield http


async def many_listeners(shop: Shop, number: int) -> None:
    """Create listeners named `listener 0` and so on."""
    async with member(shop) as http:
        urls = {"notify_url": "https://8.8.8.8/n", "liveness_url": "https://8.8.8.8/l"}
        for name in (f"listener {at}" for at in range(number)):
            made = await http.put(f"/v1/queues/{shop.queue}/listeners", json={"name": name, **urls})
            assert made.status_code in (200, 422), "422: it is there already"


NAMES = "[...document.querySelectorAll('main tbody tr a.name')].map((one) => one.textContent)"
ASKED = "performance.getEntriesByType('resource').map((one) => new URL(one.name).pathname)"


@needs_chromium
async def test_a_queue_shows_sixty_listeners_with_one_request_and_finds_and_sorts_them(shop: Shop):
    await many_listeners(shop, 58)
    async with browser() as page:
        await page.size(1440, 900)
        await opened(page, shop.url, f"/queues/{shop.queue}")
        await page.until(f"{NAMES}.length === 60")
        paths = [path for path in await page.run(ASKED) if f"/v1/queues/{shop.queue}/listeners" in path]
        assert set(paths) == {f"/v1/queues/{shop.queue}/listeners"}, "none of one listener"
        assert (await page.run(NAMES))[:4] == ["billing", "listener 0", "listener 1", "listener 2"]
        mail = "[...document.querySelectorAll('main tbody tr')].find((one) => one.textContent.startsWith('mail')).cells"
        cells = await page.run(f"[...{mail}].map((one) => one.textContent)")
        assert cells[0] == f"mail8.8.8.8/{'hooks' * 20}"[:64] + "…", "the name, and the beginning of the URL"
        assert [*cells[1:4], *cells[5:]] == ["down", "3 of 4 attempts", "7", "2", "1", "\u2013"]
        status = "document.querySelector('.tools [role=status]').textContent"
        assert await page.run(status) == "60 listeners"
        head = "[...document.querySelectorAll('th')].find((one) => one.textContent === 'State')"
        await page.run(f"{head}.querySelector('button').click()")
        assert await page.run(f"{head}.getAttribute('aria-sort')") == "ascending"
        assert (await page.run(NAMES))[0] == "mail", "the one that is down"
        await page.run(f"{head}.querySelector('button').click()")
        assert await page.run(f"{head}.getAttribute('aria-sort')") == "descending"
        assert (await page.run(NAMES))[-1] == "mail"
        search = "document.querySelector('.tools input')"
        await page.run(f"{search}.value = 'LISTENER 5'; {search}.dispatchEvent(new Event('input'))")
        assert sorted(await page.run(NAMES)) == [
            *("listener 5", "listener 50", "listener 51", "listener 52"),
            *("listener 53", "listener 54", "listener 55", "listener 56", "listener 57"),
        ]
        assert await page.run(status) == "9 of 60 listeners"
        address = await page.run("location.href")
        await page.go(address)
        await page.until(f"{NAMES}.length === 9")
        assert page.errors == []


@needs_chromium
async def test_a_page_asks_nothing_until_something_changes_and_polls_without_the_stream(shop: Shop):
    looks = asyncio.Queue[None]()
    look = shop.feed._look

    async def counted() -> None:
        await look()
        looks.put_nowait(None)

    async with browser() as page:
        await page.size(1440, 900)
        await opened(page, shop.url, f"/queues/{shop.queue}")
        await page.until(f"{NAMES}.length === 2")
        listing = f"{ASKED}.filter((one) => one.endsWith('/listeners')).length"
        await page.until(f"{listing} === 2")  # again when the stream opens
        shop.feed._look = counted
        for _ in range(9):  # a second each; a page that polled would ask every five
            await looks.get()
        assert await page.run(listing) == 2
        await many_listeners(shop, 1)
        await page.until(f"{NAMES}.length === 3")
        shop.feed.stop()
        await many_listeners(shop, 2)
        await page.until(f"{NAMES}.length === 4")
        assert page.errors == []


HIDDEN = """((hidden) => {
  Object.defineProperty(document, 'hidden', { configurable: true, get: () => hidden });
  document.dispatchEvent(new Event('visibilitychange'));
})"""


@needs_chromium
async def test_a_hidden_tab_has_no_stream_and_shows_what_it_missed_when_it_is_back(shop: Shop):
    async with browser() as page:
        await page.size(1440, 900)
        await opened(page, shop.url, f"/queues/{shop.queue}")
        await page.until(f"{NAMES}.length === 2")
        async with asyncio.timeout(60):
            while not shop.feed._waiting:
                await asyncio.sleep(0.05)
            await page.run(f"{HIDDEN}(true)")  # a headless Chromium has no other tab in front
            while shop.feed._waiting:
                await asyncio.sleep(0.05)
        await many_listeners(shop, 1)
        assert await page.run(f"{NAMES}.length") == 2
        await page.run(f"{HIDDEN}(false)")
        await page.until(f"{NAMES}.length === 3")
        assert page.errors == []


async def replayed(shop: Shop) -> None:
    """Put a message, start a replay to the listener `billing`, and record two of the replay's deliveries."""
    async with member(shop) as http:
        queue = f"/v1/queues/{shop.queue}"
        assert (await http.put(f"{queue}/messages", json={"data": "x"})).status_code == 200
        started = await http.post(f"{queue}/listeners/{shop.listener}/replay", json={"from": "beginning"})
        of = {"organization_id": shop.organization, "queue_id": shop.queue, "partition": 0}
        replay = started.json()["replay"]["id"]
    rows = tuple((offset, now_ms(), 200, 5) for offset in range(2))
    settled = DeliveriesSettled(at_ms=now_ms(), actor="worker", rows=rows, listener_id=replay, **of)
    shop.records.add("deliveries", 0, settled)


@needs_chromium
async def test_the_log_shows_names_newest_first_and_follows(shop: Shop):
    lines = "[...document.querySelectorAll('.events .what')].map((one) => one.textContent)"
    async with browser() as page:
        await page.size(1440, 900)
        await opened(page, shop.url, "/log")
        await page.until(f"{lines}.length > 0")
        assert (await page.run(lines))[:5] == [
            "Listener mail of shop/orders created",
            "Listener billing of shop/orders created",
            "Queue shop/orders created",
            f"{WHO['email']} joined",
            "Organization shop created",
        ]
        assert await page.run("document.querySelector('.events .who').textContent") == WHO["email"]
        await many_listeners(shop, 1)
        await page.until(f"{lines}[0] === 'Listener listener 0 of shop/orders created'")
        await page.run("document.querySelector('.events details').open = true")
        await page.until("document.querySelector('.events pre')?.textContent.includes('listener.created')")
        waits = "document.querySelector('.fresh')"
        async with member(shop) as http:
            await http.put("/v1/queues", json={"name": "shop/returns"})
        await page.until(f"!{waits}.hidden")
        assert await page.run(f"{waits}.textContent") == "Show 1 new event", "the reader has an event open"
        await page.run(f"{waits}.click()")
        assert (await page.run(lines))[0] == "Queue shop/returns created"
        kind = "document.querySelector('.filterbar select')"
        await page.run(f"{kind}.value = 'queue'; {kind}.dispatchEvent(new Event('change'))")
        await page.until(f"{lines}.length === 2")
        assert "type=queue" in await page.run("location.hash")
        await replayed(shop)
        kinds = "delivery,deliveries,answers"
        await page.run(f"{kind}.value = '{kinds}'; {kind}.dispatchEvent(new Event('change'))")
        await page.until(f"{lines}.join() === '2 messages delivered to billing (replay)'")
        await page.go(await page.run("location.href"))
        await page.until(f"{lines}.join() === '2 messages delivered to billing (replay)'")
        heights = "[...document.querySelectorAll('.filter')].map((one) => one.getBoundingClientRect().height)"
        assert len(set(await page.run(heights))) == 1, "labels and fields are in line"
        assert page.errors == []


@needs_chromium
async def test_a_member_invites_a_person_who_registers_with_the_link_in_a_fresh_browser(shop: Shop):
    async with browser() as page:
        await page.size(1440, 900)
        await opened(page, shop.url, "/members")
        await page.until("document.querySelector('h1')?.textContent === 'Members'")
        await page.run("document.querySelector('.title button').click()")
        await page.run("document.querySelector('dialog input').value = 'bob@example.com'")
        await page.run("document.querySelector('dialog button[type=submit]').click()")
        await page.until("document.querySelector('.copyable input') !== null")
        link = await page.run("document.querySelector('.copyable input').value")
        assert link.startswith(f"{shop.url}/console#/invitation/evi_")
        await page.run("document.querySelector('dialog .row button').click()")
        await page.until("document.querySelector('#main').textContent.includes('bob@example.com')")
        for width, height in SIZES:
            await page.size(width, height)
            assert await page.run("document.documentElement.scrollWidth") <= width
        assert page.errors == []
    async with browser() as page:
        await page.size(390, 844)
        await page.go(link)
        await page.until("document.querySelector('h1')?.textContent === 'You are invited'")
        page.errors.clear()  # Chromium reports the 401 of the page's question who is signed in.
        await page.run(f"document.querySelector('input').value = '{PASSWORD}'")
        await page.run("document.querySelector('button[type=submit]').click()")
        await page.until("location.hash.endsWith('/overview') && document.querySelector('#nav select')?.value !== ''")
        assert await page.run("document.querySelector('#nav select').selectedOptions[0].textContent") == "shop"
        assert await page.run("document.querySelector('#nav .who').textContent") == "bob@example.com"
        assert page.errors == []
        await page.go(link)
        await page.until("document.querySelector('h1')?.textContent === 'Accept invitation'")
        await page.run("document.querySelector('button[type=submit]').click()")
        await page.until("document.querySelector('#main').textContent.includes('not valid any more')")


@needs_chromium
async def test_the_batches_of_a_listener_are_turned_on_changed_and_turned_off_in_its_form(shop: Shop):
    shown = "document.querySelector('main').textContent"
    async with browser() as page:
        await page.size(1440, 900)
        await opened(page, shop.url, f"/queues/{shop.queue}/listeners/{shop.listener}")
        await page.until(f"{shown}.includes('Messages in a request, at most1')")

        async def save(**values: str) -> None:
            edit = "[...document.querySelectorAll('.title button')].find((one) => one.textContent === 'Edit')"
            await page.until(f"document.querySelector('dialog') === null && {edit} !== undefined")
            await page.run(f"{edit}.click()")
            await page.until("document.querySelector('dialog form') !== null")
            for name, value in values.items():
                await page.run(f"document.querySelector('dialog [name=\"batch.{name}\"]').value = '{value}'")
            await page.run("document.querySelector('dialog button[type=submit]').click()")

        await save(max_messages="500", wait_ms="50")
        await page.until(f"{shown}.includes('500, in 1,048,576 bytes, collected for 50 ms')")
        await save(max_bytes="2048")
        await page.until(f"{shown}.includes('500, in 2,048 bytes, collected for 50 ms')")
        await save(wait_ms="99999")
        error = "document.querySelector('dialog [name=\"batch.wait_ms\"]').closest('.field').querySelector('.error')"
        await page.until(f"{error} !== null && {error}.textContent.includes('10000')")
        assert any("422" in one for one in page.errors)
        page.errors.clear()
        await page.run("[...document.querySelectorAll('dialog .row button')].at(-1).click()")
        await save(max_messages="")
        await page.until(f"{shown}.includes('Messages in a request, at most1')")
        assert page.errors == []


@needs_chromium
async def test_the_thresholds_of_alerts_are_set_in_the_forms_of_a_queue_and_of_a_listener(shop: Shop):
    queue, listener = (f"/queues/{shop.queue}{more}" for more in ("", f"/listeners/{shop.listener}"))
    asked = json.dumps({"headers": {"everput-organization": shop.organization}})
    async with browser() as page:
        await page.size(1440, 900)

        async def stored(path: str) -> dict[str, int] | None:
            answer = await page.run(f"fetch('/v1{path}', {asked}).then((one) => one.json())")
            return answer.get("listener", answer.get("queue")).get("alerts")

        async def edit(path: str, **values: str) -> str:
            """Fill in the thresholds, and return the words of the form."""
            await page.go(f"{shop.url}/console#{path}")
            await page.page.get_by_role("button", name="Edit", exact=True).click()
            await page.page.locator("dialog details.more > summary").click()
            for name, value in values.items():
                await page.page.locator(f'dialog [name="alerts.{name}"]').fill(value)
            words = await page.run("document.querySelector('dialog form').textContent")
            await page.page.locator("dialog button[type=submit]").click()
            await page.until("document.querySelector('dialog') === null")
            return str(words)

        await opened(page, shop.url, queue)
        words = await edit(queue, parked="7", lag_s="0")
        assert "Leave empty for the default, 10,000. 0 turns the alert off." in words
        assert await stored(queue) == {"parked": 7, "lag_s": 0}
        words = await edit(listener, down_s="5")
        assert "Leave empty for the queue's, 7. 0 turns the alert off." in words
        assert await stored(listener) == {"down_s": 5}
        alerts = "10,000 messages in the backlog, 7 parked deliveries, down for 5 s, failing for 5 min"
        await page.until(f"document.querySelector('main').textContent.includes({alerts!r})")
        await edit(listener, down_s="")
        assert await stored(listener) is None
        await edit(queue)
        assert await stored(queue) == {"parked": 7, "lag_s": 0}, "what was not changed stays"
        assert page.errors == []
