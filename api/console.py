"""The web console at `/console`: one page and its files, all served by this process.

For: serving api/console_files and the libraries in api/vendored, with a content security policy that permits nothing
else. Not for: what the console does. It calls the REST API from the browser with a session's cookie
(docs/decisions/0121).
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from api.etags import is_known

_FOLDER: Final = Path(__file__).parent / "console_files"
# Each library has a folder of its own here, with its license and the checksums of its unchanged files.
_VENDORED: Final = Path(__file__).parent / "vendored"
_PAGE: Final = "index.html"
_MEDIA: Final[Mapping[str, str]] = {
    ".html": "text/html",
    ".js": "text/javascript",
    ".css": "text/css",
    ".svg": "image/svg+xml",
}
# Allow only scripts and styles of this server, no other hosts, and no HTML made from strings (trusted types).
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
_HEADERS: Final[Mapping[str, str]] = {
    "content-security-policy": _POLICY,
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    # A browser asks before it uses a cached file, so that it never mixes files of two versions.
    "cache-control": "no-cache",
}


def console_routes(*, registration: bool, mail: bool = False) -> list[Route]:
    """Return the routes of `/console` and its files.

    `registration` says whether the page offers to register, and `mail` whether it offers to reset a password by e-mail.
    """
    routes = []
    for file in console_files():
        media, content = _MEDIA[file.suffix], file.read_bytes()
        if file.name != _PAGE:
            routes.append(_route(f"/console/{file.name}", media, content))
            continue
        if not registration:
            content = content.replace(b'data-registration="open"', b'data-registration="closed"')
        if mail:
            content = content.replace(b'data-mail="off"', b'data-mail="on"')
        routes.append(_route("/console", media, content))
    return routes


def console_files() -> list[Path]:
    """Return the files of the console: its own files, and those of the vendored libraries."""
    vendored = (file for file in _VENDORED.glob("*/*") if file.suffix in _MEDIA)
    return [*sorted(_FOLDER.iterdir()), *sorted(vendored)]


def _route(path: str, media: str, content: bytes) -> Route:
    tag = b'"%s"' % sha256(content).hexdigest()[:32].encode()
    headers = {**_HEADERS, "etag": tag.decode()}

    async def send(request: Request) -> Response:
        asked = request.headers.get("if-none-match")
        if is_known(None if asked is None else asked.encode("latin-1"), tag):
            return Response(status_code=304, headers=headers)
        return Response(content, media_type=media, headers=headers)

    return Route(path, send)
