"""The lines of a file or a pipe, read as they arrive and in bounded memory.

For: cutting bytes into numbered lines. A line that is too long or no UTF-8 is returned with its fault. Not for: what
becomes of a line (cli/publish.py).
"""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import IO, Final

LINE_BYTES_MAX: Final = 4 << 20  # the most bytes of an input line; a message's data has 1 MiB at most
_CHUNK_BYTES: Final = 1 << 18


@dataclass(frozen=True, slots=True)
class TextLine:
    """A line of a file, with its number."""

    # The number of this line in the file, counted from 1.
    number: int
    text: str
    # Why a line can't be put as a message: it is too long, or not UTF-8. None if it can be put.
    fault: str | None = None


class TextLines:
    """The lines of a file. Read them with `async for`, and only once.

    `skipped` counts the empty lines so far. `size` is the file's size in bytes, or None if the size is unknown.
    """

    def __init__(self, source: IO[bytes]) -> None:
        self._source = source
        status = os.fstat(source.fileno())
        self._regular = stat.S_ISREG(status.st_mode)
        self.size: int | None = status.st_size if self._regular else None
        self.bytes_read = 0
        self.skipped = 0
        self._number = 0

    async def __aiter__(self) -> AsyncIterator[TextLine]:
        held = bytearray()
        too_long = False  # True while the rest of a line that is too long is being dropped
        async for chunk in self._chunks():
            self.bytes_read += len(chunk)
            held += chunk
            if b"\n" in chunk:
                *whole, rest = held.split(b"\n")
                held = rest
                for raw in whole:
                    if (line := self._line(raw, too_long=too_long)) is not None:
                        yield line
                    too_long = False
            if len(held) > LINE_BYTES_MAX:
                too_long = True
                held.clear()
        if (held or too_long) and (line := self._line(held, too_long=too_long)) is not None:
            yield line

    def _line(self, raw: bytearray, *, too_long: bool) -> TextLine | None:
        self._number += 1
        if too_long or len(raw) > LINE_BYTES_MAX:
            return TextLine(self._number, "", f"longer than {LINE_BYTES_MAX} bytes")
        try:
            text = raw.removesuffix(b"\r").decode()
        except UnicodeDecodeError:
            return TextLine(self._number, "", "not UTF-8")
        if not text:
            self.skipped += 1
            return None
        return TextLine(self._number, text)

    async def _chunks(self) -> AsyncIterator[bytes]:
        if self._regular:
            while chunk := await asyncio.to_thread(os.read, self._source.fileno(), _CHUNK_BYTES):
                yield chunk
            return
        # Read a pipe in the event loop. A thread could not be interrupted while it waits for the pipe's input.
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=_CHUNK_BYTES)
        transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), self._source)
        try:
            while chunk := await reader.read(_CHUNK_BYTES):
                yield chunk
        finally:
            transport.close()
