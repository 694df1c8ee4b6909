"""The history of a run: what was put and how it was answered, what was delivered, and what that proves.

For: load while things die, and the checks afterwards. Not for: starting or killing anything (running.py)."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field

import httpx

from tests.listeners import Listeners, until

PUBLISHERS = 8


@dataclass
class Received:
    """What one listener took. first: data, in the order of their first deliveries. repeats: moments of a repeated
    delivery, each with the one before it. at: when each delivery was taken. Monotonic seconds."""

    first: dict[str, int] = field(default_factory=dict)
    repeats: list[tuple[float, float]] = field(default_factory=list)
    at: list[float] = field(default_factory=list)
    newest: dict[str, float] = field(default_factory=dict)  # by message id

    def busiest(self, span_s: float) -> int:
        """The most deliveries in any span of that length."""
        at = sorted(self.at)
        return max((number + 1 - bisect_left(at, moment - span_s) for number, moment in enumerate(at)), default=0)


class History:
    """accepted: data of the puts answered 200. doubtful: of those answered otherwise, or not at all.

    publishers: each puts one message after the other. keyed: so many more that give all of theirs an ordering key,
    each its own. pace_s: what each waits after an answer.
    """

    def __init__(
        self,
        url: str,
        api_key: str,
        listeners: Listeners,
        *,
        publishers: int = PUBLISHERS,
        keyed: int = 0,
        pace_s: float = 0.0,
    ) -> None:
        self.client = httpx.AsyncClient(
            base_url=url,
            headers={"x-api-key": api_key},
            timeout=30,
            limits=httpx.Limits(max_connections=publishers + keyed + 2),
        )
        self.listeners = listeners
        self.accepted: list[str] = []
        self.doubtful: set[str] = set()
        self.by_key: dict[str, list[str]] = {f"key-{number}": [] for number in range(keyed)}  # accepted, in order
        self.answers: Counter[int] = Counter()
        self.queue_id = ""
        self._pace_s = pace_s
        self._keys = [None] * publishers + list(self.by_key)
        self._numbers = itertools.count()
        self._publishers: list[asyncio.Task[None]] = []
        self._received: dict[str, Received] = {}
        self._looked_at = 0

    async def set_up(self, *paths: str, port: int | None = None, **settings: object) -> None:
        """A queue with a listener per path. port: where they are reached, when not directly."""
        answer = await self.client.put("/v1/queues", json={"name": "faults"})
        self.queue_id = answer.raise_for_status().json()["queue"]["id"]
        for path in paths:
            url = self.listeners.url(path) if port is None else f"http://127.0.0.1:{port}/{path}"
            body = {"name": path, "notify_url": url, "liveness_url": url, **settings}
            answer = await self.client.put(f"/v1/queues/{self.queue_id}/listeners", json=body)
            answer.raise_for_status()

    def start(self) -> None:
        self._publishers = [asyncio.create_task(self._publish(key)) for key in self._keys]

    async def stop(self) -> None:
        for publisher in self._publishers:
            publisher.cancel()
        await asyncio.gather(*self._publishers, return_exceptions=True)

    async def _publish(self, key: str | None) -> None:
        while True:
            data = f"m{next(self._numbers)}"
            self.doubtful.add(data)  # until it is answered
            body = {"data": data} if key is None else {"data": data, "key": key}
            status = 0
            with contextlib.suppress(httpx.HTTPError):
                answer = await self.client.put(f"/v1/queues/{self.queue_id}/messages", json=body)
                status = answer.status_code
            self.answers[status] += 1
            if status == 200:
                self.doubtful.remove(data)
                self.accepted.append(data)
                if key is not None:
                    self.by_key[key].append(data)
            await asyncio.sleep(self._pace_s if status == 200 else max(self._pace_s, 0.05))

    async def more(self, count: int, *, within_s: float = 60) -> None:
        """Wait until so many more puts are accepted."""
        wanted = len(self.accepted) + count
        await until(lambda: len(self.accepted) >= wanted, what=f"{count} more puts are accepted", within_s=within_s)

    def received(self, path: str) -> Received:
        """What a listener has taken up to now."""
        got = self.listeners.got
        while self._looked_at < len(got):
            one = got[self._looked_at]
            self._looked_at += 1
            mine = self._received.setdefault(one.path, Received())
            mine.first.setdefault(one.data, len(mine.first))
            mine.at.append(one.at)
            before = mine.newest.get(one.message_id)
            mine.newest[one.message_id] = one.at
            if before is not None:
                mine.repeats.append((before, one.at))
        return self._received.setdefault(path, Received())

    async def arrived(self, *paths: str, within_s: float = 60) -> None:
        """Wait until every accepted message has arrived at each of these listeners."""
        for path in paths:
            missing = set(self.accepted)

            def none_missing(path: str = path, missing: set[str] = missing) -> bool:
                missing.difference_update(self.received(path).first)
                return not missing

            with contextlib.suppress(AssertionError):
                await until(none_missing, what="all delivered", within_s=within_s)
            assert not missing, f"{path} lacks {len(missing)} of {len(self.accepted)}: {sorted(missing)[:5]}"

    async def check(self, *paths: str, duplicates_max: int, within_s: float = 60) -> None:
        """Nothing lost, nothing invented, order within a key, few repeated; every answer was 200, 503 or a broken
        connection."""
        await self.arrived(*paths, within_s=within_s)
        put = set(self.accepted) | self.doubtful
        for path in paths:
            received = self.received(path)
            assert received.first.keys() <= put, "something was delivered that nobody put"
            for key, accepted in self.by_key.items():
                places = [received.first[data] for data in accepted]
                wrong = [
                    data for data, place, after in zip(accepted, places, places[1:], strict=False) if place > after
                ]
                assert not wrong, f"{path} got {key} out of order, {len(wrong)} times: {wrong[:5]}"
            repeated = len(received.repeats)
            assert repeated <= duplicates_max, f"{path}: {repeated} deliveries were repeated, not {duplicates_max}"
        assert set(self.answers) <= {0, 200, 503}, self.answers
