"""GET of statistics: the steps asked for, what they hold, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from api_client import Api, make_api

from broker.clock import now_ms
from broker.commands.organizations import create_key
from broker.core.events import StatisticsCounted
from broker.core.health import Facts
from broker.core.statistics import MINUTE_MS, Counts, Key, Totals
from broker.errors import LogUnavailable
from broker.ports import Backlog, ListenerCondition
from cli.commands.stats import sparkline
from tests.apps import CountedStatistics, NoDeliveries


class Waiting(NoDeliveries):
    """ports.ListenerStatus of a listener for which seven messages wait."""

    async def condition(self, listener: Any) -> ListenerCondition:
        return ListenerCondition(state="live", lag=7, oldest_pending_at_ms=None, last_error=None)


@pytest.fixture
def counted() -> CountedStatistics:
    return CountedStatistics()


@pytest.fixture
async def api(counted: CountedStatistics) -> Api:
    return await make_api(statistics=counted, status=Waiting())


@pytest.fixture
async def then(counted: CountedStatistics) -> Api:
    """On 15 January 2026."""
    return await make_api(statistics=counted, status=Waiting(), clock=lambda: 1_768_435_200_000)


def event(*rows: tuple[Key, Counts]) -> StatisticsCounted:
    totals = Totals()
    totals.rows = dict(rows)
    return totals.counted(now_ms(), 0)


async def listened(api: Api) -> tuple[str, str]:
    """A queue and its listener."""
    queue = await api.queue()
    return queue, await api.listener(queue)


async def test_a_queue_and_its_listener_show_what_was_counted(api: Api, counted: CountedStatistics):
    queue, listener = await listened(api)
    minute = now_ms() // MINUTE_MS
    counts = Counts(delivered=4, parked=1, waited_ms=400, failed={"422": 2, "timeout": 1}, waited={5: 4})
    counted.events.append(
        event(
            (Key(minute, queue, ""), Counts(put=9)),
            (Key(minute, queue, listener), counts),
            (Key(minute, "x", listener), counts),
        )
    )
    told = (await api.get(f"/v1/queues/{queue}/listeners/{listener}/statistics?step=1m")).json()["statistics"]
    assert told["step_s"] == 60
    (point,) = [point for point in told["points"] if point["put"]]
    assert {name: point[name] for name in ("put", "delivered", "failed", "failed_by", "parked", "complete")} == {
        "put": 9,
        "delivered": 4,
        "failed": 3,
        "failed_by": {"422": 2, "timeout": 1},
        "parked": 1,
        "complete": True,
    }
    assert point["latency"]["p99_ms"] == 50
    assert point["latency"]["mean_ms"] == 100
    assert sum(point["latency"]["steps"]) == 4
    assert told["points"][-1]["backlog"] == 7
    of_queue = (await api.get(f"/v1/queues/{queue}/statistics")).json()["statistics"]
    assert sum(point["delivered"] for point in of_queue["points"]) == 4
    assert all(point["backlog"] is None for point in of_queue["points"])


@pytest.mark.parametrize(
    ("query", "step_s", "points"),
    [
        ("from=2026-01-02T03:04:05Z&to=2026-01-02T03:04:06Z", 60, 1),
        ("from=2026-01-02T03:04:05Z&to=2026-01-02T05:04:05Z", 60, 121),
        ("from=2026-01-02T03:00:00Z&to=2026-01-03T03:00:00Z", 900, 96),
        ("from=2026-01-02T00:00:00Z&to=2026-01-03T01:00:00Z&step=1m", 60, 1_500),
        ("from=2026-01-01T00:00:00Z&to=2026-01-11T00:00:00Z&step=3d", 259_200, 4),
    ],
)
async def test_the_steps_cover_the_time(then: Api, query: str, step_s: int, points: int):
    queue, _ = await listened(then)
    told = (await then.get(f"/v1/queues/{queue}/statistics?{query}")).json()["statistics"]
    assert (told["step_s"], len(told["points"])) == (step_s, points)
    assert told["from"] == told["points"][0]["at"]
    assert told["counted_at"] is None


@pytest.mark.parametrize(
    ("query", "parameter"),
    [
        ("step=0m", "step"),
        ("step=90", "step"),
        ("step=1w", "step"),
        ("step=99d", "step"),
        ("step=" + "9" * 5_000 + "m", "step"),
        ("from=2026-01-14T00:00:00Z&to=2026-01-13T00:00:00Z", "from"),
        ("from=2025-01-01T00:00:00Z", "from"),
        ("from=2026-01-16T00:00:00Z", "from"),
        ("from=2026-01-13T00:00:00Z&to=2026-01-15T00:00:00Z&step=1m", "step"),
        ("from=yesterday", "from"),
        ("at=2026-01-13T00:00:00Z", "at"),
    ],
)
async def test_what_makes_no_series_is_refused_by_name(then: Api, query: str, parameter: str):
    queue, _ = await listened(then)
    answer = await then.get(f"/v1/queues/{queue}/statistics?{query}")
    assert answer.status_code in (400, 422)
    assert answer.json()["errors"][0]["parameter"] == parameter


def test_a_sparkline_fits_its_line_and_shows_the_least_and_the_most():
    assert sparkline([0, 1, 50, 100]) == " ▁▄█"
    assert sparkline([]) == ""
    assert len(sparkline([1] * 1_500)) == 60
    assert sparkline([1, 2] * 60, together=max) == "█" * 60


class Troubled(Waiting):
    """ports.ListenerStatus by the names of the listeners: those named `down` are down, those named `parks` park."""

    async def facts(self, listeners: Any) -> dict[str, Facts]:
        known = {"down": Facts(down=True), "parks": Facts(parked=3, accepted_at_ms=1), "well": Facts(accepted_at_ms=1)}
        return {one.id: known[one.name] for one in listeners}


async def test_the_overview_adds_up_all_queues_and_names_the_listeners_in_trouble(counted: CountedStatistics):
    api = await make_api(statistics=counted, status=Troubled())
    orders, returns = await api.queue("orders"), await api.queue("returns")
    parks, well = await api.listener(orders, name="parks"), await api.listener(orders, name="well")
    down = await api.listener(returns, name="down")
    minute = now_ms() // MINUTE_MS
    counted.events.append(
        event(
            (Key(minute, orders, ""), Counts(put=10)),
            (Key(minute, orders, parks), Counts(delivered=4, parked=3, failed={"500": 3})),
            (Key(minute, orders, well), Counts(delivered=10)),
            (Key(minute, returns, ""), Counts(put=5)),
            (Key(minute, "another organization's", ""), Counts(put=1_000)),
            (Key(minute, orders, "deleted"), Counts(delivered=100)),
        )
    )
    told = (await api.get("/v1/overview")).json()
    (point,) = [one for one in told["statistics"]["points"] if one["put"]]
    assert (point["put"], point["delivered"], point["failed_by"]) == (15, 114, {"500": 3})
    backlog = [one["backlog"] for one in told["statistics"]["points"]]
    place = told["statistics"]["points"].index(point)
    assert (backlog[place - 1], backlog[place]) == (0, 3 * 7), "nothing waited before there were listeners"
    assert (told["queues"], told["listeners"]) == (2, {"healthy": 2, "down": 1})
    assert [(one["id"], one["queue"]["id"], one["health"]) for one in told["attention"]] == [
        (down, returns, "down"),
        (parks, orders, "healthy"),
    ]
    assert [one["lag"] for one in told["attention"]] == [7, 7]


async def test_a_key_of_some_queues_gets_the_overview_of_these(counted: CountedStatistics):
    api = await make_api(statistics=counted, status=Troubled())
    orders, returns = await api.queue("orders"), await api.queue("returns")
    await api.listener(returns, name="down")
    minute = now_ms() // MINUTE_MS
    counted.events.append(event((Key(minute, orders, ""), Counts(put=1)), (Key(minute, returns, ""), Counts(put=20))))
    control = api.log.control
    _, secret = await create_key(
        control, control, organization_id=api.organization_id, name="limited", queue_ids=[orders]
    )
    told = (await api.bare.get("/v1/overview", headers={"x-api-key": secret})).json()
    assert sum(one["put"] for one in told["statistics"]["points"]) == 1
    assert (told["queues"], told["listeners"], told["attention"]) == (1, {}, [])


async def test_the_overview_has_no_backlog_while_kafka_does_not_answer(counted: CountedStatistics):
    class Silent(Troubled):
        async def backlogs(self, listeners: Any) -> dict[str, Backlog]:
            raise LogUnavailable("no answer")

        async def facts(self, listeners: Any) -> dict[str, Facts]:
            raise LogUnavailable("no answer")

    api = await make_api(statistics=counted, status=Silent())
    await api.listener(await api.queue(), name="down")
    told = (await api.get("/v1/overview")).json()
    assert {one["backlog"] for one in told["statistics"]["points"]} == {None}
    assert (told["listeners"], told["attention"]) == ({}, [])
