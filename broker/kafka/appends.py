"""Messages that wait for a record batch of the group commit, alone or as a group, and the queues in which they wait.

For: what waits, its size, and passing on the result. Not for: when and where it is sent (group_commit.py).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, Final

from broker.errors import InDoubt
from broker.kafka.produce import BATCH_BYTES_MAX
from broker.ports import Acknowledged, BuildRecord

QUEUE_HEADER: Final = "queue"
# A record in a batch has at most this many bytes besides its key, value and queue id.
_RECORD_BYTES_EXTRA: Final = 40


class Append:
    """A message that waits for its record batch, or is in one. When Kafka has stored the message, the future `done`
    gets the message's (partition, offset).
    """

    __slots__ = ("build", "deadline", "done", "size")
    count = 1  # messages; a Part may have several
    together: Together | None = None  # the message's group, if any

    def __init__(self, build: BuildRecord, done: Acknowledged, deadline: float, size: int) -> None:
        self.size = size
        self.build = build
        self.done = done
        self.deadline = deadline


class Together(Append):
    """A group of messages that should be in one record batch. If the group is too large for one batch, it uses as few
    batches as possible.

    `builds` has one function for each message that is in no batch yet. The function makes the message's record. When
    Kafka has stored all messages of the group, the future `done` gets None.
    """

    __slots__ = ("_unacknowledged", "begun", "builds", "count", "together")

    def __init__(self, builds: Sequence[BuildRecord], done: asyncio.Future[None], deadline: float, size: int) -> None:
        super().__init__(builds[0], done, deadline, size)
        self.together = self
        self.builds = builds
        self.count = self._unacknowledged = len(builds)
        self.begun = False

    def part(self, count: int) -> Append:
        """Take the next `count` messages out of this group, because they go into a record batch now. Return one item
        that stands for these messages in the batch.
        """
        done: asyncio.Future[tuple[int, int]] = asyncio.get_running_loop().create_future()
        done.add_done_callback(partial(self._part_done, count))
        self.builds = self.builds[count:]
        self.begun = True
        return Part(self.build, done, self.deadline, count)

    def add_to(self, batch: Any, items: list[Append], partition: int) -> bool:
        """Add messages of this group to a record batch. If the batch is empty, add as many messages as fit. Otherwise,
        add the whole group, or nothing if the group does not fit.

        Return True if no message of the group is left to add: all are in batches, or the group has failed.
        """
        try:
            # First compare the sizes, because building the records takes more time.
            if items and batch.size() + self.size > BATCH_BYTES_MAX:
                return False
            records: Iterable[tuple[bytes, bytes, bytes]] = (build(partition) for build in self.builds)
            # Build all records before the first is added: if one of them can't be built, the whole group fails.
            if items or not self.begun:
                records = list(records)
                size = sum(len(key) + len(value) + len(queue) + _RECORD_BYTES_EXTRA for key, value, queue in records)
                if items and batch.size() + size > BATCH_BYTES_MAX:
                    return False
            taken = 0
            for key, value, queue in records:
                if batch.append(key=key, value=value, timestamp=None, headers=[(QUEUE_HEADER, queue)]) is None:
                    break
                taken += 1
        except Exception as error:  # noqa: BLE001 - a faulty event must not end the group commit
            fail([self], error)
            return True
        if taken:
            items.append(self.part(taken))
        return not self.builds

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
    """The messages of one group that are in the same record batch. When Kafka has stored the batch, the future `done`
    gets the batch's partition, and the offset of the first of these messages.
    """

    __slots__ = ("count",)

    def __init__(self, build: BuildRecord, done: asyncio.Future[tuple[int, int]], deadline: float, count: int) -> None:
        super().__init__(build, done, deadline, 0)
        self.count = count


class AppendQueue:
    """A first-in, first-out queue of messages that wait for a record batch. `count` is the number of the queue's
    messages, and `size` is their total size in bytes.

    All messages of a group count until the last message of the group is in a batch.
    """

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
        """Remove and return the first item of the queue. Subtract its messages and bytes from `count` and `size`."""
        item = self._items.popleft()
        self.count -= item.count
        self.size -= item.size
        return item


def fail(items: Sequence[Append], error: Exception) -> int:
    """Give this error to each caller that waits for one of these messages, and return how many callers got an error.

    A caller gets InDoubt instead if some messages of its group are already in a record batch, because Kafka may have
    stored these messages.
    """
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
