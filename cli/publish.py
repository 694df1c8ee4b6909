"""The publisher of many messages over the REST API.

For: sending for `everput put` and `everput demo`, with repeats of unanswered requests, and counting. Not for: where the
lines come from (cli/lines.py), how progress is shown (cli/commands/put.py, cli/demo/demo.py).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, Self

import httpx

from cli.lines import TextLine
from everput import AsyncClient, EverputError, Problem, put_batch, put_message

# Each HTTP client has few connections, because httpx examines all of them at every request.
CONNECTIONS_EACH: Final = 4
# Waiting lines are sent as one batch, because a batch costs Kafka one claim and one record batch, whatever its size.
BATCH_LINES_MAX: Final = 100
BATCH_CHARS_MAX: Final = 1 << 18
_ONE_BY_ONE: Final = frozenset(
    {400, 413, 415, 422}
)  # if a batch is refused for one of its lines, each line is sent alone


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


# A function that is called for each finished line, with the reason if the line was refused.
Settled = Callable[[TextLine, str | None], None]


class Publisher:
    """The publisher of many lines as messages. It is an async context manager.

    `concurrency` is the number of requests in flight. `give_up_after_s` bounds a request with its repeats. `transport`
    replaces the network in tests.
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
        self._clients = [
            AsyncClient(url, key, give_up_after_s=give_up_after_s, transport=transport)
            for _ in range(-(-concurrency // CONNECTIONS_EACH))
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
        """Return the HTTP client of the sender with this number."""
        return self._clients[number % len(self._clients)]

    async def put_all(self, queue_id: str, lines: AsyncIterator[TextLine] | Any, settled: Settled) -> None:
        """Put each line as a message, once, in any order. Call `settled` for each finished line."""
        waiting = _Waiting(max(2 * self.concurrency, BATCH_LINES_MAX))

        async def send(number: int) -> None:
            while batch := await waiting.take():
                for line, refusal in await self._put_lines(queue_id, batch, number):
                    settled(line, refusal)

        async with asyncio.TaskGroup() as group:
            for number in range(self.concurrency):
                group.create_task(send(number))
            async for line in lines:
                if line.fault is None:
                    await waiting.put(line)
                else:
                    settled(line, line.fault)
            await waiting.put(None)

    async def _put_lines(
        self, queue_id: str, lines: Sequence[TextLine], number: int
    ) -> Sequence[tuple[TextLine, str | None]]:
        """Put several lines as one batch, or one by one if the batch is refused."""
        client = self.client(number)
        if len(lines) > 1:
            try:
                await client.send(put_batch(queue_id, [{"data": line.text} for line in lines]))
            except EverputError as error:
                if not isinstance(error, Problem) or error.status not in _ONE_BY_ONE:
                    return [(line, str(error)) for line in lines]
            else:
                return [(line, None) for line in lines]
        return [(line, await self._put_line(client, queue_id, line)) for line in lines]

    async def _put_line(self, client: AsyncClient, queue_id: str, line: TextLine) -> str | None:
        try:
            await client.send(put_message(queue_id, line.text))
        except EverputError as error:
            return str(error)
        return None


class _Waiting:
    """The lines that wait for a sender, at most `size` of them. None marks the end."""

    def __init__(self, size: int) -> None:
        self._lines: asyncio.Queue[TextLine | None] = asyncio.Queue(size)

    async def put(self, line: TextLine | None) -> None:
        await self._lines.put(line)

    async def take(self) -> list[TextLine]:
        """Return the waiting lines that fit one batch, at least one. At the end, return an empty list to every
        sender.
        """
        taken: list[TextLine] = []
        chars = 0
        line = await self._lines.get()
        while line is not None:
            taken.append(line)
            chars += len(line.text)
            if len(taken) >= BATCH_LINES_MAX or chars >= BATCH_CHARS_MAX or self._lines.empty():
                return taken
            line = self._lines.get_nowait()
        self._lines.put_nowait(None)  # there is room, because a line was just taken
        return taken
