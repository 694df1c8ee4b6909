"""Files that everybody may read: the console, the API reference, the pages of problem types.

For: compressing a file once, and answering 304 to a browser that has it. Not for: answers of the API, which are never
compressed, because the size of a compressed answer can reveal a secret in it (BREACH).
"""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from functools import cached_property
from hashlib import sha256
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from api.etags import is_known

MEDIA: Final[Mapping[str, str]] = {
    ".html": "text/html",
    ".js": "text/javascript",
    ".css": "text/css",
    ".svg": "image/svg+xml",
}
# The pages may load scripts and styles only from this server, and may not make HTML from strings (trusted types).
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
_HEADERS: Final[Mapping[str, str]] = {
    "content-security-policy": _POLICY,
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    # A browser must ask whether a cached file has changed before it uses the file, so a reload gets the new version.
    "cache-control": "no-cache",
    "vary": "accept-encoding",
}


class StaticFile:
    """A file in memory, plain and compressed with gzip. The plain form and the compressed form have different entity
    tags.
    """

    def __init__(self, media: str, content: bytes) -> None:
        self._media = media
        self._content = content
        self._digest = sha256(content).hexdigest()[:32].encode()

    @cached_property
    def _compressed(self) -> bytes:
        return gzip.compress(self._content, mtime=0)

    async def send(self, request: Request) -> Response:
        """Answer a GET or HEAD request."""
        zipped = accepts_gzip(request.headers.get("accept-encoding", ""))
        tag = b'"%s-gzip"' % self._digest if zipped else b'"%s"' % self._digest
        headers = {**_HEADERS, "etag": tag.decode()}
        asked = request.headers.get("if-none-match")
        if is_known(None if asked is None else asked.encode("latin-1"), tag):
            return Response(status_code=304, headers=headers)
        if zipped:
            headers["content-encoding"] = "gzip"
        return Response(self._compressed if zipped else self._content, media_type=self._media, headers=headers)


def static_route(path: str, media: str, content: bytes) -> Route:
    """Return the route that answers with a file. The file is compressed once, when a client that accepts gzip first
    asks for it.
    """
    return Route(path, StaticFile(media, content).send)


def accepts_gzip(accept_encoding: str) -> bool:
    """Return whether the header Accept-Encoding allows gzip (RFC 9110, 12.5.3)."""
    allowed = {}
    for part in accept_encoding.lower().split(","):
        name, *parameters = part.split(";")
        weight = next((one.strip()[2:] for one in parameters if one.strip().startswith("q=")), "1")
        allowed[name.strip()] = weight.strip("0.") != ""
    return allowed.get("gzip", allowed.get("*", False))
