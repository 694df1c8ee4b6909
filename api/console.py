"""The web console at `/console`: one page and its files, all served by this process.

For: serving api/console_files and the libraries in api/vendored, and leading from `/` to the console. Not for: what the
console does. It calls the REST API from the browser with a session's cookie (docs/decisions/0121).
"""

from __future__ import annotations

import html
from pathlib import Path
from typing import Final

import orjson
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from api.samples import samples
from api.static import MEDIA, static_route

_FOLDER: Final = Path(__file__).parent / "console_files"
# Each JavaScript library has a folder in this folder, with the library's license and the checksums of its files.
_VENDORED: Final = Path(__file__).parent / "vendored"
_PAGE: Final = "index.html"
# The console replaces these placeholders in code samples by the server's URL, a new API key and the queue's id.
_SERVER: Final = "https://[server]"  # Because of the brackets, shlex.quote() puts quotes around the URL in samples.
_KEY: Final = "API_KEY"
_QUEUE_ID: Final = "QUEUE_ID"


def console_routes(*, registration: bool, mail: bool = False, oidc: str = "") -> list[Route]:
    """Return the routes of the console: `/console`, its files, and redirects from `/` and `/console/`.

    `registration` says whether the page offers to register, and `mail` whether the page offers to reset a password by
    e-mail. `oidc` is the name of the OpenID Connect provider for sign-in, or empty without a provider.
    """
    routes = [Route(path, _to_console) for path in ("/", "/console/")]
    routes.append(static_route("/console/samples.json", "application/json", _samples()))
    for file in console_files():
        media, content = MEDIA[file.suffix], file.read_bytes()
        if file.name != _PAGE:
            routes.append(static_route(f"/console/{file.name}", media, content))
            continue
        if not registration:
            content = content.replace(b'data-registration="open"', b'data-registration="closed"')
        if mail:
            content = content.replace(b'data-mail="off"', b'data-mail="on"')
        content = content.replace(b'data-oidc=""', f'data-oidc="{html.escape(oidc)}"'.encode())
        routes.append(static_route("/console", media, content))
    return routes


def console_files() -> list[Path]:
    """Return the files of the console: its own files, and those of the vendored libraries."""
    vendored = (file for file in _VENDORED.glob("*/*") if file.suffix in MEDIA)
    return [*sorted(_FOLDER.iterdir()), *sorted(vendored)]


def _samples() -> bytes:
    """Return JSON with code samples for the put of a message, and with the samples' three placeholders. The console
    replaces the placeholders by the server's URL, an API key and the queue's id.
    """
    url = f"{_SERVER}/v1/queues/{_QUEUE_ID}/messages"
    made = samples("PUT", url, [("X-API-KEY", _KEY)], {"data": "Hello, Everput"})
    return orjson.dumps({"server": _SERVER, "key": _KEY, "queue_id": _QUEUE_ID, "samples": made})


async def _to_console(request: Request) -> Response:
    # The URL in the header Location is relative, because a proxy may add a prefix to the path.
    return RedirectResponse("console" if request.url.path == "/" else "../console", 307)
