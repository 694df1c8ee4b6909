"""The API reference: `/v1/openapi.json`, and the page `/docs` that shows it.

For: serving the document, and the files in api/reference_files. Not for: what is in the document (openapi.py). The page
loads a copy of the document that is the same for all clients, so that it can be compressed once.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable
from functools import cached_property
from pathlib import Path
from typing import Final

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from api.calls import Call
from api.openapi import document
from api.static import MEDIA, StaticFile, static_route
from api.streams import Stream

# This placeholder stands for the server's URL. Because of its brackets, shlex.quote() puts it in quotes in samples.
_SERVER: Final = "https://[server]"
PIECE_BYTES: Final = 32 << 10
_FOLDER: Final = Path(__file__).parent / "reference_files"


class Reference:
    """The handler for `GET /v1/openapi.json`, which returns the OpenAPI document. `routes` is a function that returns
    the HTTP method, the path and the required scope of each operation.
    """

    def __init__(self, routes: Callable[[], Iterable[tuple[str, str, str | None]]]) -> None:
        self._routes = routes

    async def get(self, call: Call) -> Stream:
        """Stream the OpenAPI document in small pieces, so that a slow client takes little of the server's memory."""
        # Escape the URL for JSON, because it may hold any text of the client's header Host.
        server = orjson.dumps(call.href(""))[1:-1]
        return Stream(b"application/json", self._pieces(server), _nothing_to_close)

    async def _pieces(self, server: bytes) -> AsyncGenerator[bytes, None]:
        first, *parts = self._parts
        piece = bytearray(first)
        for part in parts:
            piece += server + part
            while len(piece) >= PIECE_BYTES:
                yield bytes(piece[:PIECE_BYTES])
                del piece[:PIECE_BYTES]
                # Yield to the event loop, so that one fast client does not delay other clients.
                await asyncio.sleep(0)
        if piece:
            yield bytes(piece)

    @cached_property
    def _parts(self) -> list[bytes]:
        """Return the OpenAPI document, cut into parts at the places where the server's URL must be inserted."""
        return orjson.dumps(document(self._routes(), server=_SERVER)).split(_SERVER.encode())

    @cached_property
    def file(self) -> StaticFile:
        """The OpenAPI document for the reference page. The page itself fills in the server's URL."""
        return StaticFile("application/json", _SERVER.encode().join(self._parts))


async def _nothing_to_close() -> None:
    pass


def docs_routes(reference: Reference) -> list[Route]:
    """Return the routes of /docs and its files."""

    async def send(request: Request) -> Response:
        return await reference.file.send(request)

    files = {path.name: (MEDIA[path.suffix], path.read_bytes()) for path in sorted(_FOLDER.iterdir())}
    page = static_route("/docs", *files.pop("index.html"))
    return [
        page,
        *(static_route(f"/docs/{name}", *file) for name, file in files.items()),
        Route("/docs/reference.json", send),
    ]
