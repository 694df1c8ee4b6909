"""The history of a run: what was put and how it was answered, what was delivered, and what that proves.

For: load while things die, and the checks afterwards. Not for: starting or killing anything (running.py)."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections import Counter

import httpx

from tests.listeners import Listeners, until

PUBLISHERS = 8


class History:
    """accepted: data of the puts answered 200. doubtful: of those answered otherwise, or not at all."""

    def __init__(self, url: str, api_key: str, listeners: Listeners) -> None:
        self.client = httpx.AsyncClient(
            base_url=url,
            headers={"x-api-key": api_key},
            timeout=30,
            limits=httpx.Limits(max_connections=PUBLISHERS + 2),
        )
        self.listeners = listeners
        self.accepted: list[str] = []
        self.doubtful: list[str] = []
        self.answers: Counter[int] = Counter()
        self.queue_id = ""
        self._numbers = itertools.count()
        self._publishers: list[asyncio.Task[None]] = []

    async def set_up(self, *paths: str) -> None:
        """A queue with a listener per path."""
        answer = await self.client.put("/v1/queues", json={"name": "faults"})
        self.queue_id = answer.raise_for_status().json()["queue"]["id"]
        for path in paths:
            urls = {"notify_url": self.listeners.url(path), "liveness_url": self.listeners.url(path)}
            answer = await self.client.put(f"/v1/queues/{self.queue_id}/listeners", json={"name": path, **urls})
            answer.raise_for_status()

    def start(self) -> None:
        self._publishers = [asyncio.create_task(self._publish()) for _ in range(PUBLISHERS)]

    async def stop(self) -> None:
        for publisher in self._publishers:
            publisher.cancel()
        await asyncio.gather(*self._publishers, return_exceptions=True)

    async def _publish(self) -> None:
        while True:
            data = f"m{next(self._numbers)}"
            self.doubtful.append(data)  # until it is answered
            status = 0
            with contextlib.suppress(httpx.HTTPError):
                answer = await self.client.put(f"/v1/queues/{self.queue_id}/messages", json={"data": data})
                status = answer.status_code
            self.answers[status] += 1
            if status == 200:
                self.doubtful.remove(data)
                self.accepted.append(data)
            else:
                await asyncio.sleep(0.05)

    async def more(self, count: int) -> None:
        """Wait until so many more puts are accepted."""
        wanted = len(self.accepted) + count
        await until(lambda: len(self.accepted) >= wanted, what=f"{count} more puts are accepted", within_s=60)

    async def check(self, *paths: str, duplicates_max: int) -> None:
        """Nothing lost, nothing invented, few repeated; every answer was 200, 503 or a broken connection."""
        accepted = set(self.accepted)
        for path in paths:

            def missing(path: str = path) -> set[str]:
                return accepted - {got.data for got in self.listeners.taken(path)}

            with contextlib.suppress(AssertionError):
                await until(lambda: not missing(), what="all delivered", within_s=60)
            assert not missing(), f"{path} lacks {len(missing())} of {len(accepted)}: {sorted(missing())[:5]}"
            received = Counter(got.data for got in self.listeners.taken(path))
            assert set(received) <= accepted | set(self.doubtful), "something was delivered that nobody put"
            twice = {got.message_id for got in self.listeners.taken(path)}
            repeated = len(self.listeners.taken(path)) - len(twice)
            assert repeated <= duplicates_max, f"{repeated} deliveries were repeated"
        assert set(self.answers) <= {0, 200, 503}, self.answers
