"""The API reference: `/v1/openapi.json`, and the page `/docs` that shows it.

For: serving the document and the files of Swagger UI, all from this process. Not for: what is in the document
(openapi.py). The files are those of the package swagger-ui-py.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import orjson
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, Response
from starlette.routing import Route

from api.calls import Call
from api.openapi import document
from api.streams import Stream

# A placeholder for the server's URL in the document. In a shell, a URL with brackets needs quotes.
_SERVER: Final = "https://[server]"
PIECE_BYTES: Final = 32 << 10
_ASSETS: Final = ("swagger-ui-bundle.js", "swagger-ui.css", "favicon-32x32.png")
# Swagger UI sets inline styles, so they are allowed. Everything else must come from this server.
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS: Final = {
    "content-security-policy": _POLICY,
    "referrer-policy": "no-referrer",
}
_PAGE: Final = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Everput: API reference</title>
<link rel="stylesheet" href="docs/swagger-ui.css">
<link rel="icon" href="docs/favicon-32x32.png">
<div id="reference"></div>
<script src="docs/swagger-ui-bundle.js"></script>
<script src="docs/reference.js"></script>
</html>
"""
# This script moves the samples into the descriptions, because Swagger UI does not show x-codeSamples.
_SCRIPT: Final = """(async () => {
  const spec = await (await fetch("v1/openapi.json")).json();
  for (const path of Object.values(spec.paths)) {
    for (const operation of Object.values(path)) {
      const samples = operation["x-codeSamples"] || [];
      const shown = samples.map((one) => `**${one.label}**\\n\\n~~~${one.lang.toLowerCase()}\\n${one.source}\\n~~~`);
      operation.description = [operation.description || "", ...shown].join("\\n\\n");
    }
  }
  SwaggerUIBundle({ spec, dom_id: "#reference", deepLinking: true, validatorUrl: null });
})();
"""


class Reference:
    """The handler for /v1/openapi.json. `routes` returns the HTTP method, the path and the required scope of each
    operation.
    """

    def __init__(self, routes: Callable[[], Iterable[tuple[str, str, str | None]]]) -> None:
        self._routes = routes

    async def get(self, call: Call) -> Stream:
        """Stream the OpenAPI document in small pieces, so that slow clients hold little memory."""
        server = orjson.dumps(call.href(""))[1:-1]  # Escape the text, because a client's header Host may hold anything.
        return Stream(b"application/json", self._pieces(server), _nothing_to_close)

    async def _pieces(self, server: bytes) -> AsyncGenerator[bytes, None]:
        first, *parts = self._parts
        piece = bytearray(first)
        for part in parts:
            piece += server + part
            while len(piece) >= PIECE_BYTES:
                yield bytes(piece[:PIECE_BYTES])
                del piece[:PIECE_BYTES]
                # Yield to the event loop, so that one fast client does not delay the others.
                await asyncio.sleep(0)
        if piece:
            yield bytes(piece)

    @cached_property
    def _parts(self) -> list[bytes]:
        """Return the OpenAPI document in parts, between which the server's URL belongs."""
        return orjson.dumps(document(self._routes(), server=_SERVER)).split(_SERVER.encode())


async def _nothing_to_close() -> None:
    pass


def docs_routes() -> list[Route]:
    """Return the routes of /docs and its files."""
    found = find_spec("swagger_ui")
    folder = Path((found.submodule_search_locations or [""])[0]) / "static" if found is not None else Path()

    async def page(_request: Request) -> Response:
        return HTMLResponse(_PAGE, headers=_HEADERS)

    async def script(_request: Request) -> Response:
        return Response(_SCRIPT, media_type="text/javascript", headers=_HEADERS)

    def asset(name: str) -> Route:
        async def send(_request: Request) -> Response:
            return FileResponse(folder / name, headers={**_HEADERS, "cache-control": "max-age=86400"})

        return Route(f"/docs/{name}", send)

    return [Route("/docs", page), Route("/docs/reference.js", script), *map(asset, _ASSETS)]
