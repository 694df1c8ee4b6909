"""The joining of concurrent puts into batches.

For: which puts go together, and the answer of each. A batch costs the server little more than one message. Not for:
sending and retries (client.py), the requests (requests.py).
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Final

from everput.answers import PutAnswer
from everput.errors import EverputError, NoAnswer, Problem
from everput.requests import Request, put_batch

MESSAGES_MAX: Final = 100  # the most messages in a batch
CHARS_MAX: Final = 1 << 18  # the most characters of data in a batch; a message with more is sent alone
CLOSED: Final = "the client was closed before the request was answered; the server may have carried it out"
# These HTTP statuses may mean that one message of a batch is not valid, or that the whole batch is too large.
# If the server answers a batch with one of these HTTP statuses, the client sends each message of the batch alone.
_ONE_BY_ONE: Final = frozenset({400, 413, 415, 422})

Send = Callable[[Request[Any]], Awaitable[Any]]


class _Item:
    """A put that waits for its batch, or for its answer."""

    __slots__ = ("chars", "deadline_s", "done", "request")

    def __init__(self, request: Request[PutAnswer], done: asyncio.Future[PutAnswer], deadline_s: float) -> None:
        self.request = request
        self.done = done
        self.deadline_s = deadline_s
        self.chars = len((request.body or {}).get("data", ""))

    def fail(self, error: BaseException) -> None:
        if not self.done.done():
            self.done.set_exception(error)


class _Lane:
    """The puts to one queue."""

    __slots__ = ("in_flight", "looks", "waiting")

    def __init__(self) -> None:
        self.waiting: deque[_Item] = deque()
        self.in_flight = 0  # the number of requests without an answer
        # True if the next iteration of the event loop will call _look(), which sends waiting puts.
        self.looks = False


class Coalescer:
    """The part of AsyncClient that joins puts on the same queue into batches.

    All puts on a queue that begin in the same iteration of the event loop are sent at once, in one request. But if
    `in_flight_max` requests for the queue have no answer yet, puts on the queue wait until one of these requests is
    answered.

    A request has at most MESSAGES_MAX messages and CHARS_MAX characters of data. A message with more data is sent
    alone. If a put has waited for more than `give_up_after_s` seconds when the next request begins, it fails, and is
    not sent.
    """

    def __init__(self, send: Send, *, in_flight_max: int, give_up_after_s: float) -> None:
        self._send = send
        self._in_flight_max = in_flight_max
        self._give_up_after_s = give_up_after_s
        self._lanes: dict[str, _Lane] = {}  # by queue id; a queue is removed when all its puts are answered
        self._tasks: set[asyncio.Task[None]] = set()

    def put(self, request: Request[PutAnswer]) -> asyncio.Future[PutAnswer]:
        """Add a put to the next batch of its queue that has room, and return a future for its answer. Raises ValueError
        if the request does not come from put_message(), or has an `idempotency_key`.
        """
        if request.joins is None:
            raise ValueError(
                "submit() takes only a request from put_message() without an idempotency key; send any other request "
                "with send()"
            )
        loop = asyncio.get_running_loop()
        done: asyncio.Future[PutAnswer] = loop.create_future()
        lane = self._lanes.setdefault(request.joins, _Lane())
        lane.waiting.append(_Item(request, done, time.monotonic() + self._give_up_after_s))
        if not lane.looks:
            lane.looks = True
            loop.call_soon(self._look, request.joins, lane)
        return done

    async def close(self) -> None:
        """Cancel the requests in flight, and fail all puts that have no answer yet."""
        for lane in self._lanes.values():
            _fail(lane.waiting, NoAnswer(CLOSED))
            lane.waiting.clear()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _look(self, queue_id: str, lane: _Lane) -> None:
        lane.looks = False
        while lane.in_flight < self._in_flight_max and (items := self._take(lane)):
            lane.in_flight += 1
            task = asyncio.create_task(self._send_all(queue_id, items))
            self._tasks.add(task)
            task.add_done_callback(partial(self._sent, queue_id, lane, items))
        if not lane.in_flight and not lane.waiting:
            self._lanes.pop(queue_id, None)

    def _take(self, lane: _Lane) -> list[_Item]:
        """Remove the puts of the next batch from the queue's waiting puts, and return them. Puts that have waited too
        long fail instead.
        """
        items: list[_Item] = []
        chars, at_s = 0, time.monotonic()
        while lane.waiting and len(items) < MESSAGES_MAX:
            item = lane.waiting[0]
            if items and chars + item.chars > CHARS_MAX:
                break
            lane.waiting.popleft()
            if item.deadline_s < at_s:
                item.fail(
                    NoAnswer("earlier puts on this queue had no answer in time, so this put was not sent; repeat it")
                )
            elif not item.done.done():  # a put whose future was cancelled is not sent
                items.append(item)
                chars += item.chars
        return items

    def _sent(self, queue_id: str, lane: _Lane, items: Sequence[_Item], task: asyncio.Task[None]) -> None:
        """Fail the puts of a batch that have no answer, and send the puts that wait. This is called when the task that
        sends the batch has ended, even if the task was cancelled before it began.
        """
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        _fail(items, NoAnswer(CLOSED) if error is None else error)
        lane.in_flight -= 1
        self._look(queue_id, lane)

    async def _send_all(self, queue_id: str, items: Sequence[_Item]) -> None:
        if len(items) == 1 or not await self._send_batch(queue_id, items):
            for item in items:
                await self._send_one(item)

    async def _send_batch(self, queue_id: str, items: Sequence[_Item]) -> bool:
        """Send puts as one batch. Give each put its answer or its error, and return True.

        Return False if the server answers with a status in _ONE_BY_ONE: one message may be invalid, or the batch too
        large. The caller must then send each put alone.
        """
        try:
            answer = await self._send(put_batch(queue_id, [item.request.body or {} for item in items]))
        except EverputError as error:
            if isinstance(error, Problem) and error.status in _ONE_BY_ONE:
                return False
            _fail(items, error)
            return True
        if len(answer.messages) != len(items):
            _fail(items, NoAnswer("the answer is not from Everput, so check the URL"))
        for item, one in zip(items, answer.messages, strict=False):
            if not item.done.done():
                item.done.set_result(one)
        return True

    async def _send_one(self, item: _Item) -> None:
        try:
            answer = await self._send(item.request)
        except EverputError as error:
            item.fail(error)
        else:
            if not item.done.done():
                item.done.set_result(answer)


def _fail(items: Sequence[_Item] | deque[_Item], error: BaseException) -> None:
    for item in items:
        item.fail(error)
