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
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

from websockets.asyncio.client import ClientConnection, connect

from cli.demo.server import DemoListeners, DemoServer
from everput import AsyncClient, create_listener, create_queue, put_message

QUEUES: Final = {"shop/orders": ("billing", "warehouse", "analytics"), "shop/returns": ("billing", "mail")}
DOWN: Final = "analytics"
WIDTH, HEIGHT = 1200, 760
SECONDS: Final = 25  # of messages, before the picture is taken: for the charts


class Browser:
    """A page of a headless Chromium, driven by the DevTools protocol."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)

    async def call(self, method: str, **params: Any) -> Any:
        """Call a method of the protocol, and return its result."""
        number = next(self._numbers)
        await self._socket.send(json.dumps({"id": number, "method": method, "params": params}))
        while True:
            answer = json.loads(await self._socket.recv())
            if answer.get("id") == number:
                return answer["result"]

    async def run(self, script: str) -> Any:
        """Run JavaScript in the page, await what it returns, and return that."""
        found = await self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        return found["result"].get("value")

    async def until(self, condition: str) -> None:
        """Wait until a condition holds in the page."""
        async with asyncio.timeout(120):
            while not await self.run(condition):
                await asyncio.sleep(0.1)


async def _picture(url: str, path: str, password: str) -> bytes:
    chromium = shutil.which("chromium") or shutil.which("google-chrome") or sys.exit("Chromium is needed")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = await asyncio.create_subprocess_exec(
            *(chromium, "--headless", "--remote-debugging-port=0", f"--user-data-dir={profile}", "--hide-scrollbars"),
            *(("--no-sandbox",) if os.geteuid() == 0 else ()),  # Chromium has no sandbox for root
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            port_file = Path(profile, "DevToolsActivePort")
            while not port_file.exists() or "\n" not in port_file.read_text():
                await asyncio.sleep(0.1)
            port, target = port_file.read_text().split()
            async with connect(f"ws://127.0.0.1:{port}{target}", max_size=None) as socket:
                made = await Browser(socket).call("Target.createTarget", url="about:blank")
            async with connect(f"ws://127.0.0.1:{port}/devtools/page/{made['targetId']}", max_size=None) as socket:
                page = Browser(socket)
                await page.call(
                    "Emulation.setDeviceMetricsOverride",
                    width=WIDTH,
                    height=HEIGHT,
                    deviceScaleFactor=1,
                    mobile=False,
                )
                await page.call("Page.navigate", url=f"{url}/console")
                await page.until("document.querySelector('input[type=password]') !== null")
                body = json.dumps(json.dumps({"email": "admin@everput.local", "password": password}))
                headers = "{'content-type': 'application/json'}"
                await page.run(f"fetch('/v1/sessions', {{method: 'POST', headers: {headers}, body: {body}}})")
                await page.call("Page.navigate", url=f"{url}/console#{path}")
                await page.call("Page.reload")
                await page.until("document.querySelectorAll('main tr').length > 3")
                await asyncio.sleep(SECONDS)
                taken = await page.call("Page.captureScreenshot", format="png")
                return base64.b64decode(taken["data"])
        finally:
            process.terminate()
            await process.wait()


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
