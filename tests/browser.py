"""A page of a headless Chromium, for tests of the console and for its pictures.

For: starting the machine's own Chromium with Playwright, driving a page, collecting the errors that the page reports,
and checking its accessibility with axe. Not for: what is tested (tests/unit/test_console_pages.py), the pictures of the
documentation (docs/pictures/screenshots.py).
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar

from playwright.async_api import Browser as Chromium
from playwright.async_api import CDPSession, ConsoleMessage, Error, Page, async_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
PATIENCE_S = 60
_AXE = Path(__file__).parent / "vendored/axe-core/axe.min.js"
# One line for each element that breaks a rule.
_VIOLATIONS = """axe.run(document, {resultTypes: ["violations"]}).then(({violations}) => violations.flatMap(
  ({id, nodes}) => nodes.map(({target, failureSummary}) => `${id}: ${target.join(" ")} ${failureSummary}`)))"""


class Browser:
    """A page of a headless Chromium. `errors` holds what the page has reported: exceptions, errors in its console, and
    violations of its content security policy. `page` is Playwright's own.
    """

    def __init__(self, page: Page, protocol: CDPSession) -> None:
        self.errors: list[str] = []
        self.page = page
        self._protocol = protocol
        page.on("pageerror", self._thrown)
        page.on("console", self._said)

    def _thrown(self, error: Error) -> None:
        self.errors.append(error.stack or error.message)

    def _said(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            self.errors.append(f"{message.text} {message.location.get('url', '')}")

    async def call(self, method: str, **params: Any) -> Any:
        """Call a method of the DevTools protocol, and return its result."""
        return await self._protocol.send(method, params)

    async def run(self, script: str) -> Any:
        """Run JavaScript in the page, await what it returns, and return that.

        Playwright's own `evaluate` needs `eval`, which the page's content security policy forbids.
        """
        found = await self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in found:
            raise AssertionError(found["exceptionDetails"]["exception"].get("description"))
        return found["result"].get("value")

    async def until(self, condition: str) -> None:
        """Wait until a condition holds in the page."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                while not await self.run(condition):
                    await asyncio.sleep(0.1)
        except TimeoutError:
            raise AssertionError(f"the page did not become so: {condition}") from None

    async def size(self, width: int, height: int) -> None:
        await self.page.set_viewport_size({"width": width, "height": height})

    async def color_scheme(self, name: Any) -> None:
        """Show the page as `light` or `dark`."""
        await self.page.emulate_media(color_scheme=name)

    async def go(self, url: str) -> None:
        """Load a page, and wait until it is loaded."""
        await self.page.goto("about:blank")
        await self.page.goto(url)

    async def sign_in(self, url: str, email: str, password: str) -> None:
        """Sign in at the server with this URL."""
        await self.go(f"{url}/console")
        await self.until("document.querySelector('input[type=password]') !== null")
        body = json.dumps(json.dumps({"email": email, "password": password}))
        headers = "{'content-type': 'application/json'}"
        asked = f"fetch('/v1/sessions', {{method: 'POST', headers: {headers}, body: {body}}})"
        status = await self.run(f"{asked}.then((answer) => answer.status)")
        assert status == 200, f"the server answered the sign-in with {status}"

    async def violations(self) -> list[str]:
        """Return what axe finds wrong with the accessibility of the page as it is now."""
        if not await self.run("typeof axe !== 'undefined'"):
            await self.run(f"{_AXE.read_text()}\n0")
        found: list[str] = await self.run(_VIOLATIONS)
        return found

    async def picture(self, **more: Any) -> bytes:
        """Return a picture of the page as PNG."""
        return await self.page.screenshot(**more)


@asynccontextmanager
async def browser(**options: Any) -> AsyncIterator[Browser]:
    """Open a page in Chromium, and close it afterwards. `options` are those of a Playwright context."""
    async with chromium() as opened:
        yield await opened(options)


@asynccontextmanager
async def chromium() -> AsyncIterator[Any]:
    """Start Chromium if it does not run yet. The result opens a page without the cookies of other pages. All its pages
    are closed afterwards, and Chromium runs on until end_chromium() is called.
    """
    started = await _Started.chromium()
    async with AsyncExitStack() as pages:

        async def opened(options: Mapping[str, Any]) -> Browser:
            context = await started.new_context(**options)
            pages.push_async_callback(context.close)
            page = await context.new_page()
            return Browser(page, await context.new_cdp_session(page))

        yield opened


async def end_chromium() -> None:
    """End the Chromium that chromium() has started, if any."""
    await _Started.until_end.aclose()
    _Started.now = None


class _Started:
    """The one Chromium of this process: its start takes more processor time than most tests of a page."""

    now: ClassVar[Chromium | None] = None
    until_end: ClassVar[AsyncExitStack] = AsyncExitStack()

    @classmethod
    async def chromium(cls) -> Chromium:
        if CHROMIUM is None:
            raise RuntimeError("Chromium is needed. Install it, and put it on the PATH.")
        if cls.now is None:
            sandbox = () if os.geteuid() else ("--no-sandbox",)  # Chromium has no sandbox for root.
            driver = await cls.until_end.enter_async_context(async_playwright())
            cls.now = await driver.chromium.launch(executable_path=CHROMIUM, args=sandbox)
            cls.until_end.push_async_callback(cls.now.close)
        return cls.now
