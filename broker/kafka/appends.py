"""Messages that wait for their batch of the group commit, alone or together with others, and the lines they wait in.

For: what waits, how much of it, and what its writer is told. Not for: when it is sent and where (group_commit.py)."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from functools import partial
from typing import Any

from broker.errors import InDoubt
from broker.ports import BuildRecord


class Append:
    """A message that waits for its batch, or is in one. done: its (partition, offset)."""

    __slots__ = ("build", "deadline", "done", "size")
    count = 1  # The number of messages; a Part may have more than one.
    together: Together | None = None  # the group that this belongs to, if it is a part of one

    def __init__(self, build: BuildRecord, done: asyncio.Future[Any], deadline: float, size: int) -> None:
        self.size = size
        self.build = build
        self.done = done
        self.deadline = deadline


class Together(Append):
    """Messages that wait for one batch. If they don't fit one, they go into as few as possible.

    done: None.
    builds: of the messages that are in no batch yet.
    """

    __slots__ = ("_unacknowledged", "begun", "builds", "count", "together")

    def __init__(self, builds: Sequence[BuildRecord], done: asyncio.Future[None], deadline: float, size: int) -> None:
        super().__init__(builds[0], done, deadline, size)
        self.together = self
        self.builds = builds
        self.count = self._unacknowledged = len(builds)
        self.begun = False

    def part(self, count: int) -> Append:
        """Move the first `count` messages that are in no batch into one, and return them."""
        done: asyncio.Future[tuple[int, int]] = asyncio.get_running_loop().create_future()
        done.add_done_callback(partial(self._part_done, count))
        self.builds = self.builds[count:]
        self.begun = True
        return Part(self.build, done, self.deadline, count)

    def _part_done(self, count: int, part: asyncio.Future[tuple[int, int]]) -> None:
        error = part.exception()
        self._unacknowledged -= count
        if self.done.done():
            return
        if error is not None:
            self.done.set_exception(error)
        elif not self._unacknowledged:
            self.done.set_result(None)


class Part(Append):
    """Messages of a Together that are in one batch. done: the place of the first of them."""

    __slots__ = ("count",)

    def __init__(self, build: BuildRecord, done: asyncio.Future[tuple[int, int]], deadline: float, count: int) -> None:
        super().__init__(build, done, deadline, 0)
        self.count = count


class AppendQueue:
    """A queue of what waits for one partition, or for any. count: messages. size: their bytes."""

    __slots__ = ("_items", "count", "size")

    def __init__(self) -> None:
        self._items: deque[Append] = deque()
        self.count = self.size = 0

    def __bool__(self) -> bool:
        return bool(self._items)

    @property
    def first(self) -> Append:
        return self._items[0]

    def add(self, item: Append) -> None:
        self._items.append(item)
        self.count += item.count
        self.size += item.size

    def pop(self) -> Append:
        """Remove and return the first item. A Together without builds left counts with its original size."""
        item = self._items.popleft()
        self.count -= item.count
        self.size -= item.size
        return item


def fail(items: Sequence[Append], error: Exception) -> int:
    """Fail the items that have no answer yet, and return how many there were."""
    waiting = [item for item in items if not item.done.done()]
    for item in waiting:
        begun = item.together is not None and item.together.begun
        item.done.set_exception(
            InDoubt(
                "Some of the messages may have been stored. With an Idempotency-Key it is safe to repeat the request."
            )
            if begun
            else error
        )
    return len(waiting)
