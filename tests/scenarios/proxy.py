"""A bad network: a TCP proxy that delays, swallows, resets and half-closes, as its dice decide.

For: standing between two of the processes of a run. Not for: what goes through it; it knows bytes only."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
import time
from collections import Counter
from typing import Any, Self

_CHUNK = 1 << 16
_ON_ITS_WAY_S = 0.2  # for so long an answer may not be there yet after it came through


class _Talk:
    """Whether who opened a connection may wait for an answer on it. answered_at: when the last one came through."""

    def __init__(self) -> None:
        self.asked = False
        self.answered_at = float("-inf")

    def passes(self, *, asks: bool) -> None:
        """Something comes through: a question, or an answer."""
        self.asked = asks
        if not asks:
            self.answered_at = time.monotonic()

    @property
    def open(self) -> bool:
        return self.asked or time.monotonic() < self.answered_at + _ON_ITS_WAY_S


class Proxy:
    """From a port of its own on 127.0.0.1 to another one.

    trouble: the chance that a connection gets into trouble, which then happens somewhere in its first `within` bytes,
    early more often than late, to one of its directions. troubles: what has happened so far, by kind:

    delay    all bytes wait for a moment, once
    swallow  nothing more comes through in this direction, and the connection stays
    reset    both ends are told that the other has reset it
    half     this direction ends in order, the other goes on
    cut      the test ended it, by cut()

    lost_answers: how many of them can have kept an answer from who had asked, where nobody asks before he has the last
    answer. patience_s: for how long one waits for it at least.
    """

    def __init__(
        self, target: int, dice: random.Random, *, trouble: float, within: int, patience_s: float = 0.0
    ) -> None:
        self.target = target
        self.trouble = trouble
        self.troubles: Counter[str] = Counter()
        self.lost_answers = 0
        self.port = 0
        self._patience_s = patience_s
        self._dice = dice
        self._within = within
        self._open: set[asyncio.Task[Any]] = set()
        self._passing = asyncio.Event()
        self._passing.set()
        self._server: Any = None

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accepted, "127.0.0.1", self.port, backlog=1024)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        self.cut()
        await asyncio.gather(*self._open, return_exceptions=True)

    def cut(self) -> None:
        """End every connection there is."""
        self.troubles["cut"] += len(self._open)
        for task in self._open:
            task.cancel()

    def silence(self) -> None:
        """From now on nothing comes through, and nobody is told; what is sent comes late, after the end of it."""
        self._passing.clear()

    def end_silence(self) -> None:
        self._passing.set()

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        writers, talk = [writer], _Talk()
        try:
            there, thither = await asyncio.open_connection("127.0.0.1", self.target)
            writers.append(thither)
            kind, direction, after = "", 0, 0
            if self._dice.random() < self.trouble:
                kind = self._dice.choice(("delay", "swallow", "reset", "half"))
                direction, after = self._dice.randrange(2), int(self._within ** self._dice.random())
            pumps = [
                self._pump(reader, thither, kind if direction == 0 else "", after, talk, asks=True),
                self._pump(there, writer, kind if direction == 1 else "", after, talk, asks=False),
            ]
            async with asyncio.TaskGroup() as group:
                for pump in pumps:
                    group.create_task(pump)
        except* (OSError, _Reset):
            for one in writers:
                _reset(one)
        except* asyncio.CancelledError:
            self.lost_answers += talk.open
        finally:
            for one in writers:
                one.transport.abort()
            self._open.discard(task)

    async def _pump(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        kind: str,
        after: int,
        talk: _Talk,
        *,
        asks: bool,
    ) -> None:
        """Until this direction ends. after: how many bytes before the trouble."""
        left = after
        while data := await reader.read(_CHUNK):
            await self._passing.wait()
            if kind and len(data) > left:
                writer.write(data[:left])
                self.troubles[kind] += 1
                delay_s = self._dice.uniform(0.05, 3)
                # A part of a question that is missing is no question.
                self.lost_answers += delay_s >= self._patience_s if kind == "delay" else not asks
                if kind == "delay":
                    await asyncio.sleep(delay_s)
                elif kind == "swallow":
                    await _swallow(reader)
                    return
                elif kind == "reset":
                    raise _Reset
                else:
                    break
                data, kind = data[left:], ""
            left -= len(data)
            writer.write(data)
            talk.passes(asks=asks)
            await writer.drain()
        with contextlib.suppress(OSError):
            writer.write_eof()
        await _swallow(reader)


class _Reset(Exception):
    """The dice want this connection to be reset."""


async def _swallow(reader: asyncio.StreamReader) -> None:
    while await reader.read(_CHUNK):
        pass


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close so that the other end gets RST instead of FIN."""
    with contextlib.suppress(OSError):
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
