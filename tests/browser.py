"""A page of a headless Chromium, for tests of the console and for its pictures.

For: starting Chromium with a profile of its own, driving a page by the DevTools protocol, and collecting what the page
reports as errors. Not for: what is tested (tests/unit/test_console_pages.py), the README's picture
(docs/pictures/screenshot.py)."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import os
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from websockets.asyncio.client import ClientConnection, connect

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
PATIENCE_S = 60


class Browser:
    """A page of a headless Chromium. `errors` holds what the page has reported: exceptions, errors in its console, and
    violations of its content security policy.
    """

    def __init__(self, socket: ClientConnection) -> None:
        self.errors: list[str] = []
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
            self._note(answer.get("method"), answer.get("params", {}))

    def _note(self, method: str | None, params: dict[str, Any]) -> None:
        if method == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.errors.append(details.get("exception", {}).get("description") or details["text"])
        elif method == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.errors.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")

    async def run(self, script: str) -> Any:
        """Run JavaScript in the page, await what it returns, and return that."""
        found = await self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in found:
            raise AssertionError(found["exceptionDetails"]["exception"].get("description"))
        return found["result"].get("value")

    async def until(self, condition: str) -> None:
        """Wait until a condition holds in the page."""
        async with asyncio.timeout(PATIENCE_S):
            while not await self.run(condition):
                await asyncio.sleep(0.1)

    async def size(self, width: int, height: int) -> None:
        await self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
        )

    async def color_scheme(self, name: str) -> None:
        """Show the page as `light` or `dark`."""
        await self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": name}])

    async def go(self, url: str) -> None:
        """Load a page, and wait until it is loaded."""
        await self.call("Page.navigate", url="about:blank")
        await self.until("location.href === 'about:blank'")
        await self.call("Page.navigate", url=url)
        await self.until("location.href !== 'about:blank' && document.readyState === 'complete'")

    async def sign_in(self, url: str, email: str, password: str) -> None:
        """Sign in at the server with this URL."""
        await self.go(f"{url}/console")
        await self.until("document.querySelector('input[type=password]') !== null")
        body = json.dumps(json.dumps({"email": email, "password": password}))
        headers = "{'content-type': 'application/json'}"
        asked = f"fetch('/v1/sessions', {{method: 'POST', headers: {headers}, body: {body}}})"
        status = await self.run(f"{asked}.then((answer) => answer.status)")
        assert status == 200, f"the server answered the sign-in with {status}"

    async def picture(self, **more: Any) -> bytes:
        """Return a picture of the page as PNG."""
        taken = await self.call("Page.captureScreenshot", format="png", **more)
        return base64.b64decode(taken["data"])


@asynccontextmanager
async def browser() -> AsyncIterator[Browser]:
    """Start Chromium, open a page, and end Chromium afterwards."""
    if CHROMIUM is None:
        raise RuntimeError("Chromium is needed. Install it, and put it on the PATH.")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = await asyncio.create_subprocess_exec(
            *(CHROMIUM, "--headless", "--remote-debugging-port=0", f"--user-data-dir={profile}", "--hide-scrollbars"),
            *(("--no-sandbox",) if os.geteuid() == 0 else ()),  # Chromium has no sandbox for root
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            port_file = Path(profile, "DevToolsActivePort")
            async with asyncio.timeout(PATIENCE_S):
                while not port_file.exists() or "\n" not in port_file.read_text():
                    await asyncio.sleep(0.1)
            port, target = port_file.read_text().split()
            async with connect(f"ws://127.0.0.1:{port}{target}", max_size=None) as socket:
                made = await Browser(socket).call("Target.createTarget", url="about:blank")
            async with connect(f"ws://127.0.0.1:{port}/devtools/page/{made['targetId']}", max_size=None) as socket:
                page = Browser(socket)
                for domain in ("Runtime", "Log", "Page"):
                    await page.call(f"{domain}.enable")
                yield page
        finally:
            process.terminate()
            await process.wait()
