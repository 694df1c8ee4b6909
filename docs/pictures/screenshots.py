"""Takes the pictures of the console: `make screenshots` writes them into docs/pictures. It needs Chromium.

For: a server of its own with queues, listeners of which one is down, and the browser that looks at its pages.
Not for: the console (api/console_files).
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

from cli.demo.server import DemoListeners, DemoServer
from everput import AsyncClient, create_listener, create_queue, list_messages, put_message, start_replay
from tests.browser import Browser, browser, end_chromium

QUEUES: Final = {"shop/orders": ("billing", "warehouse", "analytics"), "shop/returns": ("billing", "mail")}
DOWN: Final = "analytics"
DESK: Final = (1280, 840)
PHONE: Final = (390, 844)
SECONDS: Final = 100  # of messages before the pictures are taken, because workers count once a minute


async def _pictures(page: Browser, url: str, places: dict[str, str], folder: Path) -> None:
    """Write a picture of each place. `places` maps file names to addresses."""
    for name, path in places.items():
        await page.size(*(PHONE if "phone" in name else DESK))
        await page.color_scheme("dark" if "dark" in name else "light")
        await page.go(f"{url}/console#{path}")
        await page.until("document.querySelector('main h1') !== null")
        await asyncio.sleep(6)  # until the charts have the newest minutes
        (folder / f"{name}.png").write_bytes(await page.picture())


async def _fill(client: AsyncClient, ports: dict[str, int], secrets: dict[str, str]) -> dict[str, Any]:
    """Create the queues and listeners. Return the ids by name."""
    ids: dict[str, Any] = {}
    for name, listeners in QUEUES.items():
        ids[name] = queue_id = (await client.send(create_queue(name))).queue.id
        for listener in listeners:
            base = f"http://127.0.0.1:{ports[listener]}"
            urls = {"notify_url": f"{base}/notify", "liveness_url": f"{base}/live"}
            made = await client.send(create_listener(queue_id, name=listener, secret=secrets[listener], **urls))
            ids[f"{name} {listener}"] = made.listener.id
    return ids


async def _put(client: AsyncClient, queue_id: str) -> None:
    for number in itertools.count(1):
        data = json.dumps({"order": number, "total": 1990 + number % 7 * 350})
        await client.send(put_message(queue_id, data, name=f"order-{number}"))
        await asyncio.sleep(0.08)


async def main(folder: Path) -> None:
    """Start the server, fill it, take the pictures, and end everything."""
    names = {name for listeners in QUEUES.values() for name in listeners}
    secrets = {name: "whsec_" + base64.b64encode(os.urandom(24)).decode() for name in names}
    with tempfile.TemporaryDirectory() as data:
        server, listeners = DemoServer(Path(data)), DemoListeners(secrets)
        try:
            await asyncio.gather(server.start(), listeners.start())
            async with AsyncClient(server.url, server.api_key) as client:
                ids = await _fill(client, listeners.ports, secrets)
                orders = ids["shop/orders"]
                putting = asyncio.create_task(_put(client, orders))
                try:
                    await asyncio.sleep(3)
                    listeners.tell({"refuse": DOWN})
                    await asyncio.sleep(SECONDS)
                    warehouse, analytics = ids["shop/orders warehouse"], ids[f"shop/orders {DOWN}"]
                    await client.send(start_replay(orders, warehouse, begin="beginning", rate_per_s=5))
                    message = (await client.send(list_messages(orders))).messages[-1]
                    places = {
                        "overview": "/overview",
                        "console": f"/queues/{orders}",
                        "listener-dark": f"/queues/{orders}/listeners/{analytics}",
                        "message": f"/queues/{orders}/messages/{message.id}",
                        "log": "/log",
                        "overview-phone": "/overview",
                    }
                    password = (Path(data) / "console-password").read_text().strip()
                    async with browser() as page:
                        await page.sign_in(server.url, "admin@everput.local", password)
                        await _pictures(page, server.url, places, folder)
                finally:
                    putting.cancel()
                    await end_chromium()
        finally:
            await server.stop()
            await listeners.stop()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
