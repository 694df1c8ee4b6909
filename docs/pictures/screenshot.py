"""Takes the README's picture of the console: `make pictures` writes console.png. It needs Chromium.

For: a server of its own with a queue, a listener that is well and one that is down, and the browser that looks at them.
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
from typing import Final

from cli.demo.server import DemoListeners, DemoServer
from everput import AsyncClient, create_listener, create_queue, put_message
from tests.browser import browser

QUEUES: Final = {"shop/orders": ("billing", "warehouse", "analytics"), "shop/returns": ("billing", "mail")}
DOWN: Final = "analytics"
WIDTH, HEIGHT = 1200, 760
SECONDS: Final = 25  # of messages, before the picture is taken: for the charts


async def _picture(url: str, path: str, password: str) -> bytes:
    async with browser() as page:
        await page.size(WIDTH, HEIGHT)
        await page.sign_in(url, "admin@everput.local", password)
        await page.go(f"{url}/console#{path}")
        await page.until("document.querySelectorAll('main tr').length > 3")
        await asyncio.sleep(SECONDS)
        return await page.picture()


async def _fill(client: AsyncClient, ports: dict[str, int], secrets: dict[str, str]) -> str:
    first = ""
    for name, listeners in QUEUES.items():
        queue_id = (await client.send(create_queue(name))).queue.id
        first = first or queue_id
        for listener in listeners:
            base = f"http://127.0.0.1:{ports[listener]}"
            urls = {"notify_url": f"{base}/notify", "liveness_url": f"{base}/live"}
            await client.send(create_listener(queue_id, name=listener, secret=secrets[listener], **urls))
    return first


async def _put(client: AsyncClient, queue_id: str) -> None:
    for number in itertools.count(1):
        await client.send(put_message(queue_id, json.dumps({"order": number, "total": 1990 + number % 7 * 350})))
        await asyncio.sleep(0.08)


async def main(written: Path) -> None:
    """Start the server, fill it, take the picture, and end everything."""
    names = {name for listeners in QUEUES.values() for name in listeners}
    secrets = {name: "whsec_" + base64.b64encode(os.urandom(24)).decode() for name in names}
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder, "data")
        server, listeners = DemoServer(data), DemoListeners(secrets)
        try:
            await asyncio.gather(server.start(), listeners.start())
            async with AsyncClient(server.url, server.api_key) as client:
                queue_id = await _fill(client, listeners.ports, secrets)
                putting = asyncio.create_task(_put(client, queue_id))
                try:
                    await asyncio.sleep(3)
                    listeners.tell({"refuse": DOWN})
                    password = (data / "console-password").read_text().strip()
                    written.write_bytes(await _picture(server.url, f"/queues/{queue_id}", password))
                finally:
                    putting.cancel()
        finally:
            await server.stop()
            await listeners.stop()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
