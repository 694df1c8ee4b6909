"""Puts messages over the REST API, many at a time.

For: finding or making the queue, sending, sending again what was not answered (with its Idempotency-Key: it is stored
once), and counting. Used by `put` and `demo`.
Not for: where the lines come from (cli/lines.py), how it is shown (cli/put.py, cli/demo.py)."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from http import HTTPStatus
from types import TracebackType
from typing import Any, Final, Self
from uuid import uuid4

import httpx
import orjson

from broker.errors import ConfigurationError
from cli.lines import Line
from cli.names import NoNames, is_id

CONNECTIONS_EACH: Final = 4  # per client: httpx looks at every connection of a client at every request
PAUSE_S_MIN: Final = 0.1
PAUSE_S_MAX: Final = 5.0
TIMEOUT: Final = httpx.Timeout(30.0, connect=5.0)
AGAIN: Final = frozenset({429, 502, 503, 504})
# Lines that wait go together: a batch is one claim and one record batch in the log, whatever it holds.
BATCH_LINES_MAX: Final = 100
BATCH_CHARS_MAX: Final = 1 << 18
_IN_FLIGHT: Final = "/problems/in-flight"  # another request with its key, whose process may have died, is not through
_ONE_BY_ONE: Final = frozenset(
    {400, 413, 415, 422}
)  # a batch is refused for one of its lines: each finds out for itself


@dataclass(frozen=True, slots=True)
class Refusal:
    """status: None when there was no answer, or the line was not sent at all."""

    status: int | None
    detail: str

    def __str__(self) -> str:
        return self.detail if self.status is None else f"{self.status} {self.detail}"


@dataclass(slots=True)
class Tally:
    """put: answered 200. refused: not. skipped: empty lines. again: requests sent again."""

    put: int = 0
    refused: int = 0
    skipped: int = 0
    again: int = 0
    started_s: float = field(default_factory=time.monotonic)

    def settled(self, refusal: Refusal | None) -> None:
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


Settled = Callable[[Line, Refusal | None], None]


class Publisher:
    """url: of the API. concurrency: requests under way at once. give_up_after_s: for one message.

    transport: in place of the network, for tests. again: requests that were sent again. An async context manager.
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
        self.again = 0
        self.concurrency = concurrency
        self._give_up_after_s = give_up_after_s
        limits = httpx.Limits(max_connections=CONNECTIONS_EACH, max_keepalive_connections=CONNECTIONS_EACH)
        headers = {"x-api-key": key, "content-type": "application/json"}
        self._stack = AsyncExitStack()
        try:
            self._clients = [
                httpx.AsyncClient(
                    base_url=url, headers=headers, limits=limits, timeout=TIMEOUT, trust_env=False, transport=transport
                )
                for _ in range(-(-concurrency // CONNECTIONS_EACH))
            ]
        except (httpx.InvalidURL, ValueError) as error:
            raise ConfigurationError(f"{url} is no URL: {error}") from error

    async def __aenter__(self) -> Self:
        for client in self._clients:
            await self._stack.enter_async_context(client)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def request(
        self, method: str, path: str, body: object = None, *, number: int = 0, once: bool = False
    ) -> tuple[int | None, dict[str, Any]]:
        """(status, JSON of the answer); the status is None and `detail` says why when there was none in time.

        number: requests of the same number modulo the number of clients share connections. once: what is sent again is
        stored once (an Idempotency-Key).
        """
        client = self._clients[number % len(self._clients)]
        content = None if body is None else orjson.dumps(body)
        headers = {"idempotency-key": str(uuid4())} if once else None
        deadline_s = time.monotonic() + self._give_up_after_s
        pause_s = PAUSE_S_MIN
        while True:
            status: int | None = None
            asked_s = 0.0
            try:
                response = await client.request(method, path, content=content, headers=headers)
                status, answer = response.status_code, _json(response)
                asked_s = _retry_after_s(response)
            except httpx.UnsupportedProtocol as error:
                raise ConfigurationError(f"{client.base_url} is no URL: {error}") from error
            except httpx.TransportError as error:
                answer = {"detail": f"{type(error).__name__}: {error}"}
            if status is not None and status not in AGAIN and answer.get("type") != _IN_FLIGHT:
                return status, answer
            wait_s = max(asked_s, random.uniform(0, pause_s))  # noqa: S311 - jitter
            if time.monotonic() + wait_s > deadline_s:
                return status, {**answer, "detail": f"given up after {self._give_up_after_s:g} s: {_detail(answer)}"}
            self.again += 1
            await asyncio.sleep(wait_s)
            pause_s = min(pause_s * 2, PAUSE_S_MAX)

    async def put(self, queue_id: str, data: str, *, number: int = 0, once: bool = False) -> str | Refusal:
        """The id of the message, or why it was refused. number, once: as of request()."""
        path = f"/v1/queues/{queue_id}/messages"
        status, answer = await self.request("PUT", path, {"data": data}, number=number, once=once)
        if status == HTTPStatus.OK:
            return str(answer["message"]["id"])
        return Refusal(status, _detail(answer))

    async def put_all(self, queue_id: str, lines: AsyncIterator[Line] | Any, settled: Settled) -> None:
        """Put them all, each once; settled is told of each. The order is not kept."""
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
                    settled(line, Refusal(None, line.fault))
            await waiting.put(None)

    async def _put_lines(
        self, queue_id: str, lines: Sequence[Line], number: int
    ) -> Sequence[tuple[Line, Refusal | None]]:
        """Together or, where that is refused, one by one."""
        if len(lines) > 1:
            body = {"messages": [{"data": line.text} for line in lines]}
            path = f"/v1/queues/{queue_id}/messages/batch"
            status, answer = await self.request("POST", path, body, number=number, once=True)
            if status not in _ONE_BY_ONE:
                refusal = None if status == HTTPStatus.OK else Refusal(status, _detail(answer))
                return [(line, refusal) for line in lines]
        results = [(line, await self.put(queue_id, line.text, number=number, once=True)) for line in lines]
        return [(line, result if isinstance(result, Refusal) else None) for line, result in results]


class _Waiting:
    """Lines that nobody sends yet, at most size of them; None after the last."""

    def __init__(self, size: int) -> None:
        self._lines: asyncio.Queue[Line | None] = asyncio.Queue(size)

    async def put(self, line: Line | None) -> None:
        await self._lines.put(line)

    async def take(self) -> list[Line]:
        """What may go together of those that are there, one at least; none at the end, for everybody."""
        taken: list[Line] = []
        chars = 0
        line = await self._lines.get()
        while line is not None:
            taken.append(line)
            chars += len(line.text)
            if len(taken) >= BATCH_LINES_MAX or chars >= BATCH_CHARS_MAX or self._lines.empty():
                return taken
            line = self._lines.get_nowait()
        self._lines.put_nowait(None)  # one was just taken: there is room
        return taken


async def find_queue(publisher: Publisher, queue: str, *, create: bool | None) -> str:
    """The id of the queue of this id or name (ConfigurationError when there is none and it is not to be made).

    create: None where the command makes none, and so can't be told to.
    """
    if is_id(queue):
        status, _ = await publisher.request("GET", f"/v1/queues/{queue}")
        if status in (HTTPStatus.OK, HTTPStatus.FORBIDDEN):  # messages can be put without seeing the queue
            return queue
    path: str | None = str(httpx.URL("/v1/queues", params={"name": queue}))
    while path is not None:
        status, answer = await publisher.request("GET", path)
        if status == HTTPStatus.FORBIDDEN:
            raise NoNames(queue)
        _check_answered(status, answer)
        for found in answer.get("queues", ()):
            if found["name"] == queue:
                return str(found["id"])
        path = answer.get("_links", {}).get("next", {}).get("href")
    if not create:
        hint = "" if create is None else ": --create makes it"
        raise ConfigurationError(f"no queue has the name or id {queue}{hint}")
    status, answer = await ask(publisher, "PUT", "/v1/queues", {"name": queue})
    if status == HTTPStatus.OK:
        return str(answer["queue"]["id"])
    raise ConfigurationError(f"the queue {queue} was refused: {_detail(answer)}")


async def ask(publisher: Publisher, method: str, path: str, body: object = None) -> tuple[int, dict[str, Any]]:
    """(status, JSON of the answer) (ConfigurationError when there is none, or the key was refused)."""
    status, answer = await publisher.request(method, path, body)
    return _check_answered(status, answer), answer


def _check_answered(status: int | None, answer: dict[str, Any]) -> int:
    if status is None or status in AGAIN:
        raise ConfigurationError(f"the API does not answer: {_detail(answer)}")
    if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        raise ConfigurationError(f"the API key was refused: {status} {_detail(answer)}")
    return status


async def pages(publisher: Publisher, path: str | None, name: str) -> AsyncIterator[dict[str, Any]]:
    """Everything a list holds, page after page. name: what the answer calls it (ConfigurationError as ask())."""
    while path is not None:
        status, answer = await ask(publisher, "GET", path)
        for one in answer.get(name, ()) if status == HTTPStatus.OK else ():
            yield one
        path = answer.get("_links", {}).get("next", {}).get("href")


def _json(response: httpx.Response) -> dict[str, Any]:
    try:
        answer = orjson.loads(response.content)
    except orjson.JSONDecodeError:
        answer = None
    return answer if isinstance(answer, dict) else {"title": response.reason_phrase}


def _detail(answer: dict[str, Any]) -> str:
    faults = "; ".join(f"{fault.get('pointer', '')}: {fault.get('detail', '')}" for fault in answer.get("errors", ()))
    text = str(answer.get("detail") or answer.get("title") or "no reason given")
    return f"{text} ({faults})" if faults else text


def _retry_after_s(response: httpx.Response) -> float:
    try:
        return max(0.0, float(response.headers.get("retry-after", "0")))
    except ValueError:
        return 0.0
