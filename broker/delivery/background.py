"""Background tasks of a worker. The first error of a task ends the worker's process."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any


class Background:
    """The background tasks of a worker. The first error of a task ends the worker's process. When the worker stops, it
    cancels all tasks.
    """

    def __init__(self) -> None:
        self.tasks: set[asyncio.Task[None]] = set()
        # This future gets the first error of any background task. The worker awaits the future, and then ends.
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def run(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Start a background task, which is cancelled when the worker stops. If the task raises an error, the worker's
        process ends.
        """
        task = asyncio.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def cancel(self) -> None:
        for task in self.tasks:
            task.cancel()

    def _ended(self, task: asyncio.Task[None]) -> None:
        self.tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and not self.failed.done():
            self.failed.set_exception(error)
