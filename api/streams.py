"""Streamed answers: their chunks are created while the client reads them.

For: sending one chunk after another as fast as the client takes them, until the client disconnects. Not for: the
content.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Final, NamedTuple

from starlette.types import Receive, Scope, Send

from api.problems import Headers

log = logging.getLogger(__name__)

_TAKE_S: Final = 30.0


class Stream(NamedTuple):
    """A streamed answer."""

    # The media type of the answer.
    kind: bytes
    # Yields the parts of the HTTP answer's body. No part is empty.
    chunks: AsyncGenerator[bytes, None]
    # answer_stream() calls this function once when the answer ends, even if no part of the body was sent.
    close: Callable[[], Awaitable[None]]
    # If the client is so slow that sending one part takes longer than this many seconds, the connection is closed.
    take_s: float = _TAKE_S


async def answer_stream(
    scope: Scope, receive: Receive, send: Send, stream: Stream, request_id: bytes, more: Headers
) -> None:
    """Send the status 200, the headers and all chunks of the body. For a HEAD request, send no chunks.

    If creating or sending a chunk fails, log the error instead of raising it. The connection then closes without the
    last chunk of HTTP/1.1, so that the client can tell that the answer is incomplete.
    """
    headers = [(b"content-type", stream.kind), (b"cache-control", b"no-store"), (b"x-request-id", request_id), *more]
    sending = asyncio.create_task(_send_all(scope, send, stream, headers))
    gone = asyncio.create_task(_disconnected(receive))
    try:
        await asyncio.wait([sending, gone], return_when=asyncio.FIRST_COMPLETED)
        if sending.done() and (error := sending.exception()) is not None:
            log.warning("stream.cut id=%s path=%s reason=%r", request_id.decode(), scope["path"], error)
    finally:
        for task in (sending, gone):
            task.cancel()
        await asyncio.gather(sending, gone, return_exceptions=True)
        await stream.chunks.aclose()
        await stream.close()


async def _send_all(scope: Scope, send: Send, stream: Stream, headers: Headers) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    if scope["method"] != "HEAD":
        async for chunk in stream.chunks:
            async with asyncio.timeout(stream.take_s):
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
