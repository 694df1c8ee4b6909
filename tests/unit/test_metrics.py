"""What /metrics and /health say, over a real socket: of one process, and of several together."""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_left
from collections import Counter
from itertools import product
from types import SimpleNamespace

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from memory import MemoryControl
from prometheus_client.parser import text_string_to_metric_families

from broker.audit.past import PastView
from broker.core.circuit import Circuit
from broker.core.directory import Directory
from broker.core.events import DeliveryAttempted, LogDamaged
from broker.core.health import Facts
from broker.core.health import Health as State
from broker.core.histogram import BOUNDS_MS, Histogram
from broker.core.ids import message_id
from broker.delivery.checkpoint.metrics import Condition, Lag, Metrics, Trouble, condition
from broker.delivery.outstanding.entry import OutstandingEntry
from broker.delivery.outstanding.schedule import Outstanding
from broker.errors import LogUnavailable
from cli.processes.admin import Health, process_app, serving
from cli.processes.admin_all import all_app
from cli.processes.hosts import Hosts
from cli.processes.metrics import LISTENERS_SHOWN, show_damage, show_worker

PUT_MS = 1_700_000_000_000


class SomeWorker:
    """A worker's metrics and condition as a test wants them."""

    def __init__(self) -> None:
        self.metrics = Metrics()
        self.now = Condition()

    async def condition(self) -> Condition:
        return self.now


def samples(text: str) -> dict[tuple, float]:
    """By name and labels; a scrape that names one twice is refused."""
    found: dict[tuple, float] = {}
    for family in text_string_to_metric_families(text):
        for one in family.samples:
            key = (one.name, *sorted(one.labels.items()))
            assert key not in found
            found[key] = one.value
    return found


async def scrape(url: str) -> dict[tuple, float]:
    async with httpx.AsyncClient(trust_env=False) as client:
        return samples((await client.get(url + "/metrics")).raise_for_status().text)


async def status(url: str) -> tuple[int, str]:
    async with httpx.AsyncClient(trust_env=False) as client:
        answer = await client.get(url + "/health/ready")
        return answer.status_code, answer.text


@given(st.lists(st.floats(0, 1e8)))
def test_a_histogram_counts_each_value_once_in_the_first_step_that_holds_it(values):
    histogram, together = Histogram(), Histogram()
    for value in values:
        histogram.add(value)
    together.add_all(values)
    for step, count in enumerate(histogram.counts):
        assert count == sum(bisect_left(BOUNDS_MS, value) == step for value in values)
    assert together.counts == histogram.counts
    assert histogram.total_ms == pytest.approx(sum(values))
    assert together.total_ms == pytest.approx(sum(values))


async def test_a_scrape_tells_attempts_and_the_time_from_put_to_delivery():
    worker, health = SomeWorker(), Health()
    health.look = show_worker(health.registry, worker)
    put = message_id(at_ms=PUT_MS, partition=0, random_bits=1)
    common = {"organization_id": "o", "listener_id": "l", "queue_id": "q", "message_id": put, "partition": 0}
    common |= {"offset": 3, "error": None, "took_ms": 1, "next_at_ms": None}
    worker.metrics.count(
        SimpleNamespace(id="l", queue_id="q"),
        [(1, PUT_MS + 3, 200, 1, PUT_MS), (2, PUT_MS + 70, 204, 1, PUT_MS)],
        [
            (DeliveryAttempted(at_ms=PUT_MS + 900, number=1, outcome="failed", status=503, **common), PUT_MS),
            (DeliveryAttempted(at_ms=PUT_MS + 1500, number=2, outcome="failed", status=None, **common), PUT_MS),
            (DeliveryAttempted(at_ms=PUT_MS + 4000, number=3, outcome="delivered", status=200, **common), PUT_MS),
        ],
    )
    async with serving(process_app(health), "127.0.0.1", 0, Hosts([])) as url:
        found = await scrape(url)
    attempts = {key[1:]: value for key, value in found.items() if key[0] == "everput_attempts_total"}
    assert attempts == {
        (("answer", "2xx"), ("outcome", "delivered")): 3,
        (("answer", "5xx"), ("outcome", "failed")): 1,
        (("answer", "none"), ("outcome", "failed")): 1,
    }
    below = {key[1][1]: value for key, value in found.items() if key[0] == "everput_put_delivered_seconds_bucket"}
    assert (below["0.002"], below["0.005"], below["0.1"], below["2.0"], below["5.0"]) == (0, 1, 2, 2, 3)
    assert found[("everput_put_delivered_seconds_count",)] == below["+Inf"] == 3
    assert found[("everput_put_delivered_seconds_sum",)] == pytest.approx(4.073)


async def test_however_many_listeners_lag_only_the_worst_are_named():
    worker, health = SomeWorker(), Health()
    health.look = show_worker(health.registry, worker)
    now_ms = int(time.time() * 1000)
    worker.now.lags = [Lag(f"l{number}", "q", number, now_ms - 60_000) for number in range(1, 1001)]
    worker.now.lags.append(Lag("old", "q", 1, now_ms - 3_600_000))
    worker.now.lags.append(Lag("unknown", "q", 5000, None))
    async with serving(process_app(health), "127.0.0.1", 0, Hosts([])) as url:
        found = await scrape(url)
    named = {
        dict(key[1:])["listener"]: value for key, value in found.items() if key[0].endswith("listener_lag_messages")
    }
    ages = {dict(key[1:])["listener"]: value for key, value in found.items() if key[0].endswith("listener_lag_seconds")}
    assert len(named) <= 2 * LISTENERS_SHOWN
    assert {"old", "unknown", "l1000", "l999"} <= named.keys()
    assert named["unknown"] == 5000
    assert ages["old"] == pytest.approx(3600, abs=60)
    assert "unknown" not in ages
    assert found[("everput_lag_messages",)] == sum(range(1, 1001)) + 1 + 5000
    assert found[("everput_listeners_lagging",)] == 1002


async def test_the_worst_listeners_in_trouble_are_named_with_their_state_and_all_are_counted():
    worker, health = SomeWorker(), Health()
    health.look = show_worker(health.registry, worker)
    for number in range(1, 1001):
        worker.now.health[State.FAILING] += 1
        facts = Facts(refused=number, refused_at_ms=1, parked=number, retrying=1001 - number)
        worker.now.troubles.append(Trouble(f"l{number}", "q", State.FAILING, facts))
    worker.now.health[State.DOWN] += 1
    worker.now.troubles.append(Trouble("away", "q", State.DOWN, Facts(down=True)))
    async with serving(process_app(health), "127.0.0.1", 0, Hosts([])) as url:
        found = await scrape(url)

    def named(name: str) -> dict[str, float]:
        return {dict(key[1:])["listener"]: value for key, value in found.items() if key[0] == name}

    worst = {f"l{number}": float(number) for number in range(1001 - LISTENERS_SHOWN, 1001)}
    assert named("everput_listener_parked") == worst
    assert named("everput_listener_retrying") == {f"l{n}": 1001.0 - n for n in range(1, LISTENERS_SHOWN + 1)}
    assert len(named("everput_listener_state")) == LISTENERS_SHOWN
    assert found[("everput_listener_state", ("listener", "away"), ("queue", "q"), ("state", "down"))] == 1
    assert found[("everput_listener_state", ("listener", "l1000"), ("queue", "q"), ("state", "failing"))] == 1
    assert found[("everput_parked",)] == found[("everput_retrying",)] == sum(range(1, 1001))
    counted = {key[1][1]: value for key, value in found.items() if key[0] == "everput_listeners_health"}
    assert counted == {"down": 1, "failing": 1000, "paused": 0, "replaying": 0, "new": 0, "healthy": 0}


def delivered(took_ms: int = 1) -> tuple[int, int, int, int, int]:
    """A row of a message that was delivered at the first attempt."""
    return 1, PUT_MS, 200, took_ms, PUT_MS


def failed_attempt(listener_id: str, *, outcome: str = "failed", took_ms: int = 1) -> DeliveryAttempted:
    return DeliveryAttempted(
        at_ms=PUT_MS,
        organization_id="o",
        listener_id=listener_id,
        queue_id="q",
        message_id="m",
        partition=0,
        offset=3,
        number=1,
        outcome=outcome,
        status=503,
        error=None,
        took_ms=took_ms,
        next_at_ms=None,
    )


async def test_attempts_are_counted_by_listener_with_their_duration():
    worker, health = SomeWorker(), Health()
    health.look = show_worker(health.registry, worker)
    listener = SimpleNamespace(id="l", queue_id="q")
    failed = failed_attempt("l", took_ms=1_500)
    parked = failed_attempt("l", outcome="parked", took_ms=15_000)
    worker.metrics.count(listener, [delivered(3), delivered(3), delivered(40)], [(failed, PUT_MS), (parked, PUT_MS)])
    async with serving(process_app(health), "127.0.0.1", 0, Hosts([])) as url:
        found = await scrape(url)
    own = ("listener", "l"), ("queue", "q")
    attempts = {
        dict(key[1:])["outcome"]: value for key, value in found.items() if key[0].endswith("listener_attempts_total")
    }
    assert attempts == {"delivered": 3, "failed": 1, "parked": 1}
    name = "everput_listener_attempt_seconds"
    below = {dict(key[1:])["le"]: value for key, value in found.items() if key[0] == f"{name}_bucket"}
    assert below == {"0.005": 2, "0.02": 2, "0.1": 3, "0.5": 3, "2.0": 4, "10.0": 4, "60.0": 5, "+Inf": 5}
    assert found[(f"{name}_count", *own)] == 5
    assert found[(f"{name}_sum", *own)] == pytest.approx(16.546)


async def test_only_listeners_with_the_most_attempts_and_failures_are_named_and_no_counter_decreases():
    worker, health = SomeWorker(), Health()
    health.look = show_worker(health.registry, worker)
    listeners = {number: SimpleNamespace(id=f"l{number}", queue_id="q") for number in range(1, 1001)}
    for number, listener in listeners.items():
        # The first 500 listeners fail now and then, the later ones less.
        failed = [(failed_attempt(listener.id), PUT_MS)] if number <= 500 else []
        worker.metrics.count(listener, [delivered()] * (number % 7 + 1), failed)
        worker.now.recent_attempts[listener.id] = (number, 501 - number if failed else 0)
    old = [(failed_attempt("old"), PUT_MS)] * 2  # more than 5 minutes ago
    worker.metrics.count(SimpleNamespace(id="old", queue_id="q"), [], old)

    async def named() -> dict[str, float]:
        """Return the numbers of attempts of the named listeners."""
        found = await scrape(url)
        counts = {dict(key[1:])["listener"]: n for key, n in found.items() if key[0].endswith("attempt_seconds_count")}
        total: Counter[str] = Counter()
        for key, number in found.items():
            if key[0] == "everput_listener_attempts_total":
                total[dict(key[1:])["listener"]] += number
        assert counts == total
        return counts

    async with serving(process_app(health), "127.0.0.1", 0, Hosts([])) as url:
        first = await named()
        assert first.keys() == {f"l{n}" for n in (*range(981, 1001), *range(1, LISTENERS_SHOWN + 1))}
        assert first["l1000"] == 1000 % 7 + 1
        worker.now.recent_attempts["l1000"] = (0, 0)
        worker.now.recent_attempts["l1"] = (1, 0)
        second = await named()
        assert {"l1000", "l1"}.isdisjoint(second)
        assert {"l980", "l21"} <= second.keys()
        worker.metrics.count(listeners[1000], [delivered()], [])
        worker.now.recent_attempts["l1000"] = (5000, 0)
        assert (await named())["l1000"] == first["l1000"] + 1
        worker.now.recent_attempts = {}
        assert "old" in await named()
        worker.metrics.removed("old")
        assert "old" not in await named()


async def test_whoever_asks_how_thousands_of_listeners_are_stops_nobody():
    listener = SimpleNamespace(id="l", paused=None, replay=None)
    memory = SimpleNamespace(held_bytes=1)
    counted = {"held": 1, "memory": memory, "behind": (), "streams": {}, "recent": {}, "listener": listener}
    dispatchers = [SimpleNamespace(circuit=Circuit(), **counted) for _ in range(1000)]
    looking = asyncio.create_task(condition(dispatchers, {}, Outstanding(None, None, "", {}, {}, None)))
    turns = 0
    while not looking.done():
        await asyncio.sleep(0)
        turns += 1
    assert turns > 10
    assert (await looking).listeners == {"live": 1000}


async def test_whoever_asks_while_very_many_become_due_together_lets_others_run_between_the_partitions():
    turn, counted_at = 0, list[int]()

    class Noting(Outstanding):
        def waiting(self, partition: int, listener_id: str) -> tuple[int, int | None]:
            counted_at.append(turn)
            return super().waiting(partition, listener_id)

    outstanding = Noting(None, None, "", {}, {}, None)
    dispatchers, ids = [], ("l-1", "l-2")
    for listener_id in ids:
        listener = SimpleNamespace(id=listener_id, queue_id="q", paused=None, replay=None)
        counted = {"held": 0, "memory": SimpleNamespace(held_bytes=0), "behind": (), "streams": {}, "recent": {}}
        dispatchers.append(SimpleNamespace(circuit=Circuit(), listener=listener, **counted))
    partitions = {number: SimpleNamespace(recent=0, recent_bytes=0) for number in range(4)}
    for partition, listener_id in product(partitions, ids):
        rows = [scheduled(listener_id, number, partition) for number in range(20)]
        outstanding._index.write(partition, {(listener_id, one.message_id): one for one in rows}, at_ms=1)
    looking = asyncio.create_task(condition(dispatchers, partitions, outstanding))
    while not looking.done():
        await asyncio.sleep(0)
        turn += 1
    assert [(one.listener_id, one.messages) for one in (await looking).lags] == [("l-1", 80), ("l-2", 80)]
    assert len(counted_at) == len(set(counted_at)) == 8


def scheduled(listener_id: str, number: int, partition: int) -> OutstandingEntry:
    """A delivery whose message has a `deliver_at` that has passed by now."""
    one, due_ms = message_id(at_ms=1_000, partition=partition, random_bits=number), 60_000
    return OutstandingEntry(0, partition, listener_id, one, number, None, 7, 0, 0, 0, 0, 0, due_ms, due_ms, 0, None)


async def test_a_process_is_ready_once_it_said_so_and_while_its_projections_catch_up():
    health, control = Health(), MemoryControl()
    async with serving(process_app(health), "127.0.0.1", 0, Hosts([])) as url:
        assert (await status(url))[0] == 503
        health.view = control
        assert "starting" in (await status(url))[1]
        health.ready = True
        assert await status(url) == (200, '{"status":"ready"}')

        async def away(*, timeout_s: float = 2.0) -> None:
            raise LogUnavailable("Kafka can't be reached")

        control.caught_up = away
        code, body = await status(url)
        assert (code, "Kafka can't be reached" in body) == (503, True)


async def test_the_processes_together_are_told_apart_by_a_label_and_ready_when_all_are():
    one, two = SomeWorker(), SomeWorker()
    first, second = Health(), Health()
    one.metrics.gained, two.metrics.gained = 1, 2
    first.look = show_worker(first.registry, one)
    second.look = show_worker(second.registry, two)
    for health in (first, second):
        health.view, health.ready = MemoryControl(), True
    async with (
        serving(process_app(first), "127.0.0.1", 0, Hosts([])) as here,
        serving(process_app(second), "127.0.0.1", 0, Hosts([])) as there,
    ):
        children = [SimpleNamespace(name="worker-1", admin_url=here), SimpleNamespace(name="worker-2", admin_url=there)]
        gone = SimpleNamespace(name="worker-3", admin_url=None)
        async with serving(all_app(children), "127.0.0.1", 0, Hosts([])) as url:
            assert (await status(url))[0] == 200
            second.ready = False
            assert "not ready: worker-2" in (await status(url))[1]
        async with serving(all_app([*children, gone]), "127.0.0.1", 0, Hosts([])) as url:
            found = await scrape(url)
            assert "worker-3" in (await status(url))[1]
    assert [found["everput_rebalances_total", ("process", f"worker-{number}")] for number in (1, 2)] == [1, 2]
    assert [found["everput_up", ("process", f"worker-{number}")] for number in (1, 2, 3)] == [1, 1, 0]


async def test_a_process_that_dies_while_it_is_asked_is_unavailable():
    async def answer_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if b" /health/ready " in await reader.readuntil(b"\r\n\r\n"):
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}")
        writer.close()

    async with await asyncio.start_server(answer_once, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        child = SimpleNamespace(name="worker-1", admin_url=f"http://127.0.0.1:{port}")
        async with (
            serving(all_app([child]), "127.0.0.1", 0, Hosts([])) as url,
            httpx.AsyncClient(trust_env=False) as client,
        ):
            answer = await client.get(url + "/health")
    assert (answer.status_code, answer.json()["type"].rpartition("/")[2]) == (503, "unavailable")
    assert "worker-1 did not answer" in answer.json()["detail"]


@pytest.mark.parametrize(("method", "path", "code"), [("GET", "/v1/queues", 404), ("POST", "/metrics", 405)])
async def test_nothing_else_is_there(method: str, path: str, code: int):
    async with (
        serving(process_app(Health()), "127.0.0.1", 0, Hosts([])) as url,
        httpx.AsyncClient(trust_env=False) as client,
    ):
        answer = await client.request(method, url + path)
    assert (answer.status_code, answer.headers["content-type"]) == (code, "application/problem+json")


async def test_a_histogram_of_the_worker_is_the_same_under_its_process():
    worker, health = SomeWorker(), Health()
    worker.metrics.checkpoints.add(12)
    health.look = show_worker(health.registry, worker)
    async with serving(process_app(health), "127.0.0.1", 0, Hosts([])) as own:
        child = SimpleNamespace(name="worker-1", admin_url=own)
        async with serving(all_app([child]), "127.0.0.1", 0, Hosts([])) as url:
            alone, together = await scrape(own), await scrape(url)
    mine = {key: value for key, value in alone.items() if key[0].startswith("everput_checkpoint_")}
    assert mine
    for (name, *labels), value in mine.items():
        assert together[(name, *sorted([*labels, ("process", "worker-1")]))] == value


async def test_damage_of_the_log_is_told_by_health_and_counted_but_the_process_is_ready():
    health, directory = Health(), Directory()
    health.view, health.ready = PastView(directory, 0, complete=True), True
    log = SimpleNamespace(requests=SimpleNamespace(bad_copies={("everput.messages", 1, 7, 2): None}))
    show_damage(health.registry, health.view, log)
    async with (
        serving(process_app(health), "127.0.0.1", 0, Hosts([])) as url,
        httpx.AsyncClient(trust_env=False) as client,
    ):
        assert (await client.get(url + "/health")).json() == {"status": "ok"}
        assert (await scrape(url))["everput_log_damaged_offsets", ("topic", "messages")] == 0
        for first in (4, 10, 20, 30):
            range_ = {"topic": "messages", "partition": 1, "first_offset": first, "last_offset": first + 2}
            directory.apply(LogDamaged(at_ms=1, organization_id="", **range_))
        answer = await client.get(url + "/health")
        assert (answer.status_code, answer.json()["type"].rpartition("/")[2]) == (503, "log-damaged")
        assert "messages/1 offsets 4 to 6, messages/1 offsets 10 to 12" in answer.json()["detail"]
        assert "and 1 more" in answer.json()["detail"]
        assert (await status(url))[0] == 200
        told = await scrape(url)
        assert told["everput_log_damaged_offsets", ("topic", "messages")] == 12
        assert told["everput_log_damaged_offsets", ("topic", "control")] == 0
        assert told[("everput_log_bad_copies",)] == 1
