"""The history of a run: load, and a record of what was put, how it was answered, what was delivered, what died.

For: load while things die. Not for: what the record proves (verdict.py), starting or killing anything (running.py)."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime

import httpx

from broker.core.alerts import ALERTS_QUEUE
from broker.delivery.tuning import TUNED
from tests.listeners import Listeners, until
from tests.scenarios.verdict import Attempt, Crash, Put, Record, Taken, Update, violations

PUBLISHERS = 8
CHECKPOINT_S = 2.5  # one a second, and it takes a moment, more on a busy machine
SLOW = "flaky", "picky"  # listeners that fail at times, and give way then
IN_FLIGHT = 64  # per listener
SLACK_S = 0.5
TIMED_EVERY = 7  # messages
DELETED_EVERY = 4 * TIMED_EVERY
UPDATED_EVERY = 31  # messages of those without a time; of those with one all that are not deleted, some of them twice
AHEAD_MS = TUNED.near_ms + 500  # what is due so late, or later, waits in `outstanding`
AHEAD_MS_MAX = AHEAD_MS + 3_000


def as_put(data: str) -> str:
    """Of data that may be an update's."""
    return data.partition("+")[0]


class History:
    """accepted: data of the puts answered 200. record: for verdict.violations(); a test adds its crashes.

    publishers: each puts one message after the other. keyed: so many more that give all of theirs an ordering key,
    each its own. pace_s: what each waits after an answer. timed_until: the moment up to which they give some messages
    a time, of those without a key, and delete or update these, and update some others. transport: instead of the
    network's.
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
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.client = httpx.AsyncClient(
            base_url=url,
            transport=transport,
            headers={"x-api-key": api_key},
            timeout=30,
            limits=httpx.Limits(max_connections=publishers + keyed + 2),
        )
        self.listeners = listeners
        self.accepted: list[str] = []
        self.record = Record(slack_s=SLACK_S, slow=set(SLOW))
        self.answers: Counter[int] = Counter()
        self.queue_id = ""
        self.timed_until = 0.0
        self._pace_s = pace_s
        self._keys = [*[None] * publishers, *(f"key-{number}" for number in range(keyed))]
        self._numbers = itertools.count()
        self._publishers: list[asyncio.Task[None]] = []
        self._stopping = False
        self._looked_at = 0

    async def set_up(self, *paths: str, port: int | None = None, **settings: object) -> None:
        """A listener per path, at first on a queue that is then the only one. port: where they are reached, when not
        directly."""
        if not self.queue_id:
            for queue in (await self.client.get("/v1/queues")).raise_for_status().json()["queues"]:
                if queue["name"] == ALERTS_QUEUE:  # made by the system, and not to be deleted
                    continue
                (await self.client.delete(f"/v1/queues/{queue['id']}")).raise_for_status()
            answer = await self.client.put("/v1/queues", json={"name": "faults"})
            self.queue_id = answer.raise_for_status().json()["queue"]["id"]
        for path in paths:
            url = self.listeners.url(path) if port is None else f"http://127.0.0.1:{port}/{path}"
            body = {"name": path, "notify_url": url, "liveness_url": url, **settings}
            asked_at = time.monotonic()
            await until(lambda body=body: self._made(body), what=f"the listener {path} is made")
            self.record.listeners[path] = (asked_at, time.monotonic())

    async def _made(self, listener: dict[str, object]) -> bool:
        """503: Kafka was away a moment ago. It may be stored all the same; the next answer is then that it is."""
        answer = await self.client.put(f"/v1/queues/{self.queue_id}/listeners", json=listener)
        if answer.status_code == 503:
            return False
        return answer.json().get("type") == "/problems/name-taken" or bool(answer.raise_for_status())

    async def redrive(self, path: str) -> None:
        """All that is parked or retried, once (httpx.HTTPError)."""
        listeners = f"/v1/queues/{self.queue_id}/listeners"
        found = (await self.client.get(listeners)).raise_for_status().json()["listeners"]
        listener_id = next(one["id"] for one in found if one["name"] == path)
        (await self.client.post(f"{listeners}/{listener_id}/redrive")).raise_for_status()

    def start(self) -> None:
        self._stopping = False
        self._publishers = [asyncio.create_task(self._publish(key)) for key in self._keys]

    async def stop(self) -> None:
        """Each publisher waits for its last answer: httpx leaves a socket open where it is cancelled as it connects."""
        self._stopping = True
        await asyncio.gather(*self._publishers)

    async def _publish(self, key: str | None) -> None:
        while not self._stopping:
            number = next(self._numbers)
            data = f"m{number}"
            body = {"data": data} if key is None else {"data": data, "key": key}
            status, message_id, sent_at, due_at = 0, None, time.monotonic(), None
            if sent_at < self.timed_until and key is None and number % TIMED_EVERY == 0:
                now_ms = time.time_ns() // 1_000_000
                due_ms = now_ms + AHEAD_MS + number * 37 % (AHEAD_MS_MAX - AHEAD_MS)
                body["deliver_at"] = datetime.fromtimestamp(due_ms / 1000, UTC).isoformat(timespec="milliseconds")
                due_at = sent_at + (due_ms - now_ms) / 1000
            with contextlib.suppress(httpx.HTTPError):
                answer = await self.client.put(f"/v1/queues/{self.queue_id}/messages", json=body)
                status = answer.status_code
                message_id = answer.json()["message"]["id"] if status == 200 else None
            self.record.puts.append(Put(data, key, sent_at, time.monotonic(), message_id, due_at))
            self.answers[status] += 1
            if status == 200:
                self.accepted.append(data)
            if message_id is not None and due_at is not None and number % DELETED_EVERY == 0:
                await self._delete(data, message_id)
            elif message_id is not None and (due_at is not None or self._updates(number, sent_at)):
                await self._update(data, message_id, times=1 + number % 2)
            await asyncio.sleep(self._pace_s if status == 200 else max(self._pace_s, 0.05))

    def _updates(self, number: int, sent_at: float) -> bool:
        return sent_at < self.timed_until and number % UPDATED_EVERY == 0

    async def _delete(self, data: str, message_id: str) -> None:
        self.record.deleted.add(data)
        with contextlib.suppress(httpx.HTTPError):
            answer = await self.client.delete(f"/v1/queues/{self.queue_id}/messages/{message_id}")
            if answer.status_code == 200:
                for listener in answer.json()["message"]["listeners"]:
                    if listener["state"] == "cancelled":
                        self.record.cancelled[listener["name"], data] = time.monotonic()

    async def _update(self, data: str, message_id: str, *, times: int) -> None:
        """One after the other, up to one in doubt: that may be stored after the next."""
        for number in range(1, times + 1):
            update = Update(data, number, time.monotonic())
            place = len(self.record.updates)
            self.record.updates.append(update)
            with contextlib.suppress(httpx.HTTPError):
                path = f"/v1/queues/{self.queue_id}/messages/{message_id}"
                answer = await self.client.put(path, json={"data": f"{data}+{number}"})
                if answer.status_code == 200:
                    states = {one["name"]: one["state"] for one in answer.json()["message"]["listeners"]}
                    if set(states.values()) - {"unknown"}:  # else no worker has said that it honours it
                        gets = frozenset(
                            name for name, state in states.items() if state not in ("delivered", "unknown")
                        )
                        self.record.updates[place] = replace(update, answered_at=time.monotonic(), gets=gets)
                    continue
            return

    @contextlib.contextmanager
    def crash(self, *, after_s: float = 0.0, settles_s: float | None = 0.0) -> Iterator[None]:
        """Meanwhile something dies, or stands still, that may repeat deliveries. after_s: and for so long after it.

        settles_s: for how long what is put meanwhile may be repeated, too, beside what was put before; None: always.
        """
        began = time.monotonic()
        puts_until = None if settles_s is None else began + settles_s
        since = began - CHECKPOINT_S
        crash = Crash(began, began, since, IN_FLIGHT, puts_until, since_of_slow=since - TUNED.low_priority_s)
        number = len(self.record.crashes)
        self.record.crashes.append(crash)
        yield
        self.record.crashes[number] = replace(crash, ended=time.monotonic() + after_s)

    async def more(self, count: int, *, within_s: float = 120) -> None:
        """Wait until so many more puts are accepted."""
        wanted = len(self.accepted) + count
        await until(lambda: len(self.accepted) >= wanted, what=f"{count} more puts are accepted", within_s=within_s)

    def taken(self, path: str) -> list[Taken]:
        """What a listener has taken up to now."""
        got = self.listeners.got
        while self._looked_at < len(got):
            one = got[self._looked_at]
            self._looked_at += 1
            update = int(one.data.partition("+")[2] or 0)
            self.record.taken.setdefault(one.path, []).append(Taken(as_put(one.data), one.message_id, one.at, update))
        return self.record.taken.setdefault(path, [])

    def repeated(self, path: str) -> int:
        taken = self.taken(path)
        return len(taken) - len({one.data for one in taken})

    async def arrived(self, *paths: str, within_s: float = 120) -> None:
        """Wait until all that was accepted after them has arrived at these listeners."""
        for path in paths:
            there_since = self.record.listeners[path][1]
            owed = {put.data for put in self.record.puts if put.message_id and put.sent_at >= there_since}
            owed -= self.record.deleted
            missing, looked_at = set(owed), 0

            def none_missing(path: str = path, missing: set[str] = missing) -> bool:
                nonlocal looked_at
                taken = self.taken(path)
                missing.difference_update(one.data for one in taken[looked_at:])
                looked_at = len(taken)
                return not missing

            with contextlib.suppress(AssertionError):
                await until(none_missing, what="all delivered", within_s=within_s)
            assert not missing, f"{path} lacks {len(missing)} of {len(owed)}: {sorted(missing)[:5]}"

    async def check(self, *, within_s: float = 120) -> None:
        """All that was put after them has arrived at the listeners, and the record shows no violation for any; every
        answer was 200, 503 or a broken connection."""
        await self.arrived(*self.record.listeners, within_s=within_s)
        self.record.attempts = {path: [] for path in self.record.listeners}
        for got, ended in self.listeners.ended:
            self.record.attempts[got.path].append(Attempt(as_put(got.data), got.at, ended))
        found = violations(self.record)
        assert not found, f"{len(found)} violations: {found[:5]}"
        assert set(self.answers) <= {0, 200, 503}, self.answers
