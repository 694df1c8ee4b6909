"""Clients that send requests, synchronous and asynchronous, and retry them where that is safe.

For: retries with backoff, problems as errors, lists page by page, the log line by line. Not for: the requests
themselves (requests.py).
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from types import TracebackType
from typing import Any, Final, Self, TypeVar, cast

import httpx
import msgspec
from msgspec import UNSET

from everput.answers import LogLine, ProblemAnswer, PutAnswer
from everput.coalescing import CLOSED, Coalescer
from everput.errors import EverputError, NoAnswer, NotReached, Problem
from everput.requests import Request

PAUSE_S_MIN: Final = 0.1
PAUSE_S_MAX: Final = 5.0
TIMEOUT: Final = httpx.Timeout(30.0, connect=5.0)
AGAIN: Final = frozenset({429, 502, 503, 504})
_IN_FLIGHT: Final = "in-flight"
_IN_DOUBT: Final = "in-doubt"
_CUT_OFF: Final = "the answer ended before the log was complete; call lines() again with the newest `cursor`, if any"
_SESSION: Final = "evs_"  # prefix of a session's token

T = TypeVar("T")


class Client:
    """A synchronous client of Everput's API. Use it as a context manager. After a failure, a request is sent again only
    if the server can't have carried it out yet, or if carrying it out twice does no harm.
    """

    def __init__(
        self,
        url: str,
        key: str | None,
        *,
        organization: str | None = None,
        give_up_after_s: float = 60.0,
        refused_at_once: bool = False,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """Create a client for the API at the base URL `url`.

        `key` is an API key, a session's token, or None for requests that need neither. `organization` is the ID of the
        organization in which a session acts. `transport` replaces the network in tests.

        No retry of a request begins more than `give_up_after_s` seconds after the request was first sent. In lines(),
        this time begins again at each cursor. A single try may wait 30 seconds for its answer. `refused_at_once` is for
        the time before the server's first answer to this client: if the connection is then refused, NotReached is
        raised without retries.
        """
        self._give_up_after_s = give_up_after_s
        self._refused_at_once = refused_at_once
        self._http = httpx.Client(**_options(url, key, organization), transport=transport)
        self.etag: str | None = None  # the ETag of the newest answer, for the argument `if_match` of a request
        self.again = 0  # number of retries

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        self._http.close()

    def send(self, request: Request[T]) -> T:
        """Send a request and return its answer. Raises Problem if the server refuses the request, or NoAnswer if no
        answer from Everput comes in time.
        """
        tries = _Tries(request, self._give_up_after_s, refused_at_once=self._refused_at_once)
        while True:
            try:
                response = self._http.request(**_arguments(request))
            except httpx.TransportError as error:
                wait_s = tries.after_error(error)
            else:
                self._refused_at_once = False
                self.etag = response.headers.get("etag")
                if response.status_code == httpx.codes.OK:
                    return _answer(response, request.answer)
                wait_s = tries.after_problem(response)
            self.again += 1
            time.sleep(wait_s)
            if self._http.is_closed:
                raise NoAnswer(CLOSED)

    def pages(self, request: Request[T]) -> Iterator[T]:
        """Yield the pages of a list."""
        following: Request[T] | None = request
        while following is not None:
            page = self.send(following)
            yield page
            following = _following(request, page)

    def lines(self, request: Request[LogLine]) -> Iterator[LogLine]:
        """Yield the lines of the log. Each line has an event, or a `cursor` from which another call can continue. A
        broken connection is reopened, and no event is repeated. Raises Problem if the server refuses the request, and
        NoAnswer if it does not answer.
        """
        reading = _Reading(request, self._give_up_after_s, refused_at_once=self._refused_at_once)
        while True:
            try:
                with self._http.stream(**_arguments(reading.request)) as response:
                    self._refused_at_once = False
                    if response.status_code == httpx.codes.OK:
                        for part in response.iter_bytes():
                            yield from reading.lines(part)
                        if reading.complete:
                            return
                        raise httpx.RemoteProtocolError(_CUT_OFF)
                    response.read()
                    wait_s = reading.after_problem(response)
            except httpx.TransportError as error:
                wait_s = reading.after_error(error)
            time.sleep(wait_s)


class AsyncClient:
    """An asynchronous client of Everput's API. It works like Client, with `await` and `async for`.

    Concurrent puts on the same queue are sent together as batches, except puts for which the caller gives an
    idempotency key. Each put gets its own answer or error, as if it had been sent alone.

    After NoAnswer, the server may have stored the message. The message may be stored twice if you then send the put
    again, unless you gave the put an idempotency key.
    """

    def __init__(
        self,
        url: str,
        key: str | None,
        *,
        organization: str | None = None,
        give_up_after_s: float = 60.0,
        refused_at_once: bool = False,
        transport: httpx.AsyncBaseTransport | None = None,
        batches_in_flight: int = 4,
    ) -> None:
        """Create a client for the API at the base URL `url`. Except for `batches_in_flight`, the arguments mean the
        same as in Client.

        `batches_in_flight` is how many batches of puts on one queue may wait for their answers at the same time. With
        0, send() sends each put alone, and submit() raises ValueError. Raises ValueError if `batches_in_flight` is
        negative.
        """
        if batches_in_flight < 0:
            raise ValueError(
                f"batches_in_flight is {batches_in_flight}, but must be at least 0; with 0, puts are not joined into "
                "batches"
            )
        self._give_up_after_s = give_up_after_s
        self._refused_at_once = refused_at_once
        self._http = httpx.AsyncClient(**_options(url, key, organization), transport=transport)
        self.etag: str | None = None
        self.again = 0
        self._joins = batches_in_flight > 0
        self._puts = Coalescer(self._send, in_flight_max=batches_in_flight, give_up_after_s=give_up_after_s)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections. A request without an answer fails with NoAnswer, but the server may have carried it
        out.
        """
        await self._puts.close()
        await self._http.aclose()

    async def send(self, request: Request[T]) -> T:
        """Send a request and return its answer. Raises Problem if the server refuses the request, or NoAnswer if no
        answer from Everput comes in time.
        """
        if request.joins is not None and self._joins:
            put: Any = request  # if a request has `joins`, it puts one message
            return cast("T", await self._puts.put(put))
        return await self._send(request)

    def submit(self, request: Request[PutAnswer]) -> asyncio.Future[PutAnswer]:
        """Begin to send a put, and return a future for its answer. submit() takes less processor time than a task that
        calls send().

        `request` must come from put_message(), called without `idempotency_key`. Raises ValueError for any other
        request, and if this client was created with `batches_in_flight=0`.
        """
        if not self._joins:
            raise ValueError("submit() can't be used with batches_in_flight=0; use send(), or set it to 1 or more")
        return self._puts.put(request)

    async def _send(self, request: Request[T]) -> T:
        tries = _Tries(request, self._give_up_after_s, refused_at_once=self._refused_at_once)
        while True:
            try:
                response = await self._http.request(**_arguments(request))
            except httpx.TransportError as error:
                wait_s = tries.after_error(error)
            else:
                self._refused_at_once = False
                self.etag = response.headers.get("etag")
                if response.status_code == httpx.codes.OK:
                    return _answer(response, request.answer)
                wait_s = tries.after_problem(response)
            self.again += 1
            await asyncio.sleep(wait_s)
            if self._http.is_closed:
                raise NoAnswer(CLOSED)

    async def pages(self, request: Request[T]) -> AsyncIterator[T]:
        """Yield the pages of a list."""
        following: Request[T] | None = request
        while following is not None:
            page = await self.send(following)
            yield page
            following = _following(request, page)

    async def lines(self, request: Request[LogLine]) -> AsyncIterator[LogLine]:
        """Yield the lines of the log. Each line has an event, or a `cursor` from which another call can continue. A
        broken connection is reopened, and no event is repeated. Raises Problem if the server refuses the request, and
        NoAnswer if it does not answer.
        """
        reading = _Reading(request, self._give_up_after_s, refused_at_once=self._refused_at_once)
        while True:
            try:
                async with self._http.stream(**_arguments(reading.request)) as response:
                    self._refused_at_once = False
                    if response.status_code == httpx.codes.OK:
                        async for part in response.aiter_bytes():
                            for line in reading.lines(part):
                                yield line
                        if reading.complete:
                            return
                        raise httpx.RemoteProtocolError(_CUT_OFF)
                    await response.aread()
                    wait_s = reading.after_problem(response)
            except httpx.TransportError as error:
                wait_s = reading.after_error(error)
            await asyncio.sleep(wait_s)


class _Tries:
    """The tries of one request. After a failed try, call after_error() or after_problem(). Each of these methods
    returns how many seconds to wait before the next try, or raises the error of the failed try if the request must not
    be tried again.
    """

    def __init__(self, request: Request[Any], give_up_after_s: float, *, refused_at_once: bool) -> None:
        self._refused_at_once = refused_at_once
        self._repeatable = request.repeatable
        self._give_up_after_s = give_up_after_s
        # True if a try may have reached the server, so that the server may have carried out the request.
        self._sent = False
        self._begin()

    def _begin(self) -> None:
        self._deadline_s = time.monotonic() + self._give_up_after_s
        self._pause_s = PAUSE_S_MIN

    def after_error(self, error: httpx.TransportError) -> float:
        not_sent = isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)
        self._sent = self._sent or not not_sent
        failure = (NoAnswer if self._sent else NotReached)(f"{type(error).__name__}: {error}")
        refused = self._refused_at_once and isinstance(error, httpx.ConnectError)
        if refused or isinstance(error, httpx.UnsupportedProtocol) or not (self._repeatable or not_sent):
            raise failure from error
        return self._wait(failure, 0.0)

    def after_problem(self, response: httpx.Response) -> float:
        self._sent = True
        failure = _problem(response)
        code = failure.code if isinstance(failure, Problem) else ""
        again = response.status_code in AGAIN or code == _IN_FLIGHT
        known = response.status_code == httpx.codes.TOO_MANY_REQUESTS or code not in ("", _IN_DOUBT)
        if not again or not (self._repeatable or known):
            raise failure
        return self._wait(failure, _retry_after_s(response))

    def _wait(self, failure: EverputError, asked_s: float) -> float:
        wait_s = max(asked_s, random.uniform(0, self._pause_s))  # noqa: S311 - jitter
        self._pause_s = min(self._pause_s * 2, PAUSE_S_MAX)
        if time.monotonic() + wait_s > self._deadline_s:
            raise failure
        return wait_s


class _Reading(_Tries):
    """A reader of the log that continues after a broken connection. It holds lines back until a line with a cursor
    arrives. A new connection continues from the newest cursor, and the lines held back are dropped, so the caller gets
    no event twice.
    """

    def __init__(self, request: Request[LogLine], give_up_after_s: float, *, refused_at_once: bool) -> None:
        super().__init__(request, give_up_after_s, refused_at_once=refused_at_once)
        self.request = request  # the request to send next: it reads the log from the newest cursor on
        self.complete = False
        self._rest = b""
        self._held: list[LogLine] = []

    def lines(self, part: bytes) -> Iterator[LogLine]:
        """Add the next bytes of the answer, and yield the lines up to the newest line with a cursor. Hold later lines
        back, because a new connection can continue only from a cursor.
        """
        *whole, self._rest = (self._rest + part).split(b"\n")
        for text in whole:
            line = _decoded(text, self.request.answer)
            self._held.append(line)
            if line.cursor is UNSET:
                continue
            given, self._held = self._held, []
            self._went_on(line.cursor, len(given) - 1)
            self.complete = line.complete is True or self.request.query.get("limit") == "0"
            yield from given

    def after_error(self, error: httpx.TransportError) -> float:
        # A new connection sends all lines after the newest cursor again. So drop the lines that are held back.
        self._rest, self._held = b"", []
        return super().after_error(error)

    def _went_on(self, cursor: str, count: int) -> None:
        query = {**self.request.query, "cursor": cursor}
        if "limit" in query:
            query["limit"] = str(int(query["limit"]) - count)
        self.request = replace(self.request, query=query)
        self._begin()


def _options(url: str, key: str | None, organization: str | None) -> dict[str, Any]:
    headers: dict[str, str] = {}
    if key is not None:
        headers |= {"authorization": f"Bearer {key}"} if key.startswith(_SESSION) else {"x-api-key": key}
    if organization is not None:
        headers["everput-organization"] = organization
    return {"base_url": url, "headers": headers, "timeout": TIMEOUT, "trust_env": False}


def _arguments(request: Request[Any]) -> dict[str, Any]:
    headers = dict(request.headers)
    content = None
    if request.body is not None:
        headers["content-type"] = "application/json"
        content = msgspec.json.encode(request.body)
    return {
        "method": request.method,
        "url": request.path,
        "params": dict(request.query),
        "headers": headers,
        "content": content,
    }


def _answer(response: httpx.Response, shape: type[T]) -> T:
    return _decoded(response.content, shape)


def _decoded(text: bytes, shape: type[T]) -> T:
    try:
        return msgspec.json.decode(text, type=shape)
    except msgspec.MsgspecError as error:
        raise NoAnswer(
            "the answer is not from Everput, or from a version that does not fit this client; check the URL and the "
            f"versions. The error: {error}"
        ) from error


def _problem(response: httpx.Response) -> EverputError:
    try:
        return Problem(msgspec.json.decode(response.content, type=ProblemAnswer))
    except msgspec.MsgspecError:
        return NoAnswer(f"{response.status_code} {response.reason_phrase}")


def _retry_after_s(response: httpx.Response) -> float:
    try:
        return max(0.0, float(response.headers.get("retry-after", "0")))
    except ValueError:
        return 0.0


def _following(request: Request[T], page: T) -> Request[T] | None:
    """Return the request for the page after `page`. It has the query of the link `next` in `page`, and is otherwise
    equal to `request`. Return None if `page` is the last page.
    """
    link = getattr(getattr(page, "links", None), "next", None)
    if not link:
        return None
    return replace(request, query=dict(httpx.URL(link.href).params))
