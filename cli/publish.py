"""The publisher of many messages over the REST API.

For: sending for `everput put` and `everput demo`, with repeats of unanswered requests, and counting. Not for: where the
lines come from (cli/lines.py), how progress is shown (cli/commands/put.py, cli/demo/demo.py).
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import Any, Final, Self

import httpx

from cli.lines import TextLine
from everput import AsyncClient, put_message
from everput.answers import PutAnswer
from everput.coalescing import CHARS_MAX, MESSAGES_MAX

# At each request, an httpx client searches all of its connections. So each client has at most 4 connections.
CONNECTIONS_EACH: Final = 4


@dataclass(slots=True)
class Tally:
    """The counts of one run of a publisher."""

    # Messages that were answered 200.
    put: int = 0
    # Messages that were not answered 200.
    refused: int = 0
    # Empty lines.
    skipped: int = 0
    # Requests that were repeated.
    again: int = 0
    started_s: float = field(default_factory=time.monotonic)

    def settled(self, refusal: str | None) -> None:
        if refusal is None:
            self.put += 1
        else:
            self.refused += 1

    def summary(self) -> str:
        took_s = time.monotonic() - self.started_s
        parts = [f"{self.put:,} put in {took_s:.1f} s ({self.put / took_s if took_s else 0:,.0f}/s)"]
        if self.refused:
            parts.append(f"{self.refused:,} refused")
        if self.skipped:
            parts.append(f"{self.skipped:,} empty lines skipped")
        if self.again:
            parts.append(f"{self.again:,} sent again")
        return ", ".join(parts)


# A function that is called for each line, with the line and an error. The error is None if the line was stored.
Settled = Callable[[TextLine, str | None], None]


class Publisher:
    """A publisher that puts many lines as messages. Use it as an async context manager.

    At most `concurrency` requests run at the same time. No retry of a request begins more than `give_up_after_s`
    seconds after the request was first sent. `transport` replaces the network in tests.
    """

    def __init__(
        self,
        url: str,
        key: str,
        *,
        concurrency: int = 32,
        give_up_after_s: float = 60.0,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.concurrency = concurrency
        self._stack = AsyncExitStack()
        # Divide the concurrency equally among the clients, because each client gets equally many lines.
        count = -(-concurrency // CONNECTIONS_EACH)
        self._clients = [
            AsyncClient(
                url,
                key,
                give_up_after_s=give_up_after_s,
                transport=transport,
                batches_in_flight=(concurrency + number) // count,
            )
            for number in range(count)
        ]

    async def __aenter__(self) -> Self:
        for client in self._clients:
            await self._stack.enter_async_context(client)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    @property
    def again(self) -> int:
        """The number of requests that were repeated."""
        return sum(client.again for client in self._clients)

    def client(self, number: int) -> AsyncClient:
        """Return one of the HTTP clients. To use all clients in turn, call this method with the numbers 0, 1, 2, and so
        on.
        """
        return self._clients[number % len(self._clients)]

    async def put_all(self, queue_id: str, lines: AsyncIterator[TextLine] | Any, settled: Settled) -> None:
        """Put each line of text as a message. No message is stored twice. The order of the lines is not kept.

        For each line, call `settled` with the line and an error. The error is None if the message was stored.
        Otherwise, it says why not: the message was refused, there was no answer, or the line is too long or not UTF-8.
        """
        room = _Room(self.concurrency * MESSAGES_MAX, self.concurrency * CHARS_MAX)
        failed: list[Exception] = []
        ends = False

        def done(line: TextLine, put: asyncio.Future[PutAnswer]) -> None:
            error = None if put.cancelled() else put.exception()
            room.give(len(line.text))
            if ends or put.cancelled():
                return
            try:
                settled(line, None if error is None else str(error))
            except Exception as raised:  # noqa: BLE001 - raised again below
                failed.append(raised)

        number = itertools.count()
        try:
            async for line in lines:
                if line.fault is not None:
                    settled(line, line.fault)
                    continue
                await room.take(len(line.text))
                if failed:
                    break
                # A client sends messages that are put at the same time as one batch, of at most MESSAGES_MAX messages.
                # To fill batches, give MESSAGES_MAX lines in a row to the same client.
                client = self.client(next(number) // MESSAGES_MAX)
                client.submit(put_message(queue_id, line.text)).add_done_callback(partial(done, line))
            await room.all_given()
        finally:
            ends = True
        if failed:
            raise failed[0]


class _Room:
    """The limit on the lines that were sent but not answered yet: at most `lines` lines, with at most `chars`
    characters together. A line with more than `chars` characters waits until all other lines are answered.
    """

    def __init__(self, lines: int, chars: int) -> None:
        self._lines_max, self._chars_max = lines, chars
        self._lines = self._chars = 0
        self._given = asyncio.Event()

    async def take(self, chars: int) -> None:
        """Wait until a line with `chars` characters may be sent. Then count the line as unanswered."""
        while self._lines and (self._lines >= self._lines_max or self._chars + chars > self._chars_max):
            await self._wait()
        self._lines += 1
        self._chars += chars

    def give(self, chars: int) -> None:
        """Count a line with `chars` characters as answered."""
        self._lines -= 1
        self._chars -= chars
        self._given.set()

    async def all_given(self) -> None:
        """Wait until all lines are answered."""
        while self._lines:
            await self._wait()

    async def _wait(self) -> None:
        self._given.clear()
        await self._given.wait()
