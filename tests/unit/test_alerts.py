"""Alerts: the rule of when one begins and ends, the fold, and one worker's look on a log in memory."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from memory import MemoryCursors, MemoryLog

from broker.alerts import AlertWatch, Sources
from broker.commands.context import Context, now_ms
from broker.commands.organizations import create_organization
from broker.commands.queues import QueueCommands
from broker.core import events as ev
from broker.core.alerts import (
    ALERTS_QUEUE,
    BACK_MS,
    CALM_MS,
    INTERVAL_MS,
    Alerts,
    Kind,
    Level,
    ListenerFacts,
    Reading,
    Step,
    Thresholds,
    Trigger,
    readings,
    steps,
    thresholds,
)
from broker.core.codec import decode_message
from broker.core.cursor import Cursor
from broker.core.events import AlertThresholds, ListenerSettings
from broker.core.health import Recent
from broker.errors import LogUnavailable

HOLD_MS = 60_000
waits = st.sampled_from([0, CALM_MS, HOLD_MS]) | st.integers(0, 400_000)
times = st.lists(st.tuples(waits, st.sampled_from(Level)), max_size=60)


def replay(looks: list[tuple[int, Level]]) -> list[tuple[int, Level, Step | None, int]]:
    """Each look's time, level, what came of it, and how long the level had lasted."""
    trigger, at_ms, since_ms, before, seen = Trigger(), 1, 1, None, []
    for wait_ms, level in looks:
        at_ms += wait_ms
        if level is not before:
            since_ms, before = at_ms, level
        seen.append((at_ms, level, trigger.step(Reading(level, HOLD_MS, CALM_MS), at_ms), at_ms - since_ms))
    return seen


@given(times)
def test_beginnings_and_ends_take_turns(looks):
    changes = [step for _, _, step, _ in replay(looks) if step is not None]
    assert all((step is Step.BEGIN) == (place % 2 == 0) for place, step in enumerate(changes))


@given(times)
def test_an_alert_begins_only_after_the_level_was_high_for_as_long_as_it_must(looks):
    for _, level, step, lasted_ms in replay(looks):
        if step is Step.BEGIN:
            assert level is Level.HIGH
            assert lasted_ms >= HOLD_MS
        if step is Step.END:
            assert level is Level.LOW
            assert lasted_ms >= CALM_MS
        if level is Level.BETWEEN:
            assert step is None


@given(times)
def test_two_beginnings_have_their_interval_between_them(looks):
    begun = [at_ms for at_ms, _, step, _ in replay(looks) if step is Step.BEGIN]
    assert all(later - earlier >= INTERVAL_MS for earlier, later in itertools.pairwise(begun))


def test_what_comes_and_goes_begins_again_only_after_the_interval():
    comes_and_goes = [(1, Level.HIGH), (HOLD_MS, Level.HIGH), (1, Level.LOW), (CALM_MS, Level.LOW)] * 10
    begun = [at_ms for at_ms, _, step, _ in replay(comes_and_goes) if step is Step.BEGIN]
    assert [later - earlier for earlier, later in itertools.pairwise(begun)] == [5 * (HOLD_MS + CALM_MS + 2)]


@given(st.integers(0, 3), st.integers(1, 400_000))
def test_what_is_high_long_enough_does_begin(looks_before, wait_ms):
    seen = replay([(1, Level.LOW)] * looks_before + [(wait_ms, Level.HIGH), (HOLD_MS, Level.HIGH)])
    assert [step for _, _, step, _ in seen][-1] is Step.BEGIN


def test_a_number_between_the_two_thresholds_changes_nothing():
    trigger = Trigger()
    limits = Thresholds(parked=10)
    found = [
        trigger.step(readings(ListenerFacts(parked=parked), limits, at_ms)[Kind.PARKED], at_ms)
        for at_ms, parked in [(1, 9), (2, 10), (3, 9), (4, 11), (5, 5), (6, 4), (6 + CALM_MS, 4)]
    ]
    assert found == [None, Step.BEGIN, None, None, None, None, Step.END]


@pytest.mark.parametrize(
    ("facts", "high"),
    [
        (ListenerFacts(health="down"), {Kind.DOWN}),
        (ListenerFacts(health="failing"), {Kind.FAILING}),
        (ListenerFacts(lag=10_000), {Kind.LAG}),
        (ListenerFacts(lag=1, oldest_at_ms=100_000), {Kind.LAG}),
        (ListenerFacts(lag=10_000, health="paused"), set()),
        (ListenerFacts(parked=1), {Kind.PARKED}),
        (ListenerFacts(secret_ends_at_ms=1_000_001), {Kind.SECRET}),
        (ListenerFacts(secret_ends_at_ms=1_000_000), set()),
        (ListenerFacts(), set()),
    ],
)
def test_facts_are_compared_with_the_thresholds(facts, high):
    found = readings(facts, Thresholds(lag_s=900), 1_000_000)
    assert {kind for kind, reading in found.items() if reading.level is Level.HIGH} == high


def test_a_threshold_of_zero_turns_an_alert_off_and_ends_it_without_a_message():
    off = Thresholds(lag_messages=0, lag_s=0, parked=0, down_s=0, failing_s=0)
    facts = ListenerFacts(health="down", lag=10**9, parked=10**9, oldest_at_ms=0)
    assert {reading.level for kind, reading in readings(facts, off, 10**9).items() if kind is not Kind.SECRET} == {
        Level.OFF
    }
    assert Trigger(open=True, begun_at_ms=1).step(Reading(Level.OFF), 2) is Step.END_QUIETLY


def test_a_listener_has_its_own_thresholds_then_its_queues_then_the_defaults():
    assert thresholds(AlertThresholds(parked=3), AlertThresholds(parked=5, lag_s=7)) == Thresholds(parked=3, lag_s=7)
    assert thresholds(ListenerSettings().alerts) == Thresholds()


def test_a_listener_that_fails_and_then_is_down_comes_back_once():
    triggers = {kind: Trigger() for kind in Kind}
    found, at_ms = [], 1
    for wait_ms, health in [
        (0, "failing"),
        (300_000, "failing"),
        (1, "down"),
        (60_000, "down"),
        (1, "healthy"),
        (BACK_MS, "healthy"),
        (BACK_MS, "healthy"),
    ]:
        at_ms += wait_ms
        found.append(steps(triggers, readings(ListenerFacts(health=health), Thresholds(), at_ms), at_ms))
    assert found == [
        {},
        {Kind.FAILING: Step.BEGIN},
        {},
        {Kind.DOWN: Step.BEGIN, Kind.FAILING: Step.END_QUIETLY},
        {},
        {Kind.DOWN: Step.END},
        {},
    ]


# The fold

BY = {"at_ms": 1, "organization_id": "o", "actor": "worker", "alert": "listener.down", "listener_id": "l"}


def test_the_first_beginning_counts_and_the_end_of_another_episode_does_not():
    alerts = Alerts()
    assert alerts.apply(ev.AlertRaised(**BY, alert_id="1"))
    assert not alerts.apply(ev.AlertRaised(**BY, alert_id="2"))
    assert not alerts.apply(ev.AlertCleared(**BY, alert_id="2"))
    assert alerts.trigger(Kind.DOWN, "l") == Trigger(open=True, begun_at_ms=1)
    assert alerts.apply(ev.AlertCleared(**BY, alert_id="1"))
    assert not alerts.apply(ev.AlertCleared(**BY, alert_id="1"))
    assert alerts.trigger(Kind.DOWN, "l") == Trigger(open=False, begun_at_ms=1)
    alerts.forget("l")
    assert alerts.trigger(Kind.DOWN, "l") == Trigger()
    assert not alerts.apply(ev.AlertTold(at_ms=1, organization_id="o", alert_id="1", message_id="m"))


# One worker's look, on a log in memory


class Installation:
    """An organization with a queue and a listener, and the watch of the only worker."""

    def __init__(self) -> None:
        self.log = MemoryLog()
        self.view = self.log.control
        self.cursors = MemoryCursors()
        self.at_ms = now_ms()
        self.free = 10

    @classmethod
    async def make(cls) -> Installation:
        made = cls()
        organization = await create_organization(made.log.control, made.view, name="acme")
        made.organization_id = organization.id
        commands = QueueCommands(made.log.control, made.view)
        made.queue = await commands.create_queue(made.context, name="orders")
        made.listener_id = await made.listen(made.queue.id)
        made.watch = made.new_watch()
        return made

    @property
    def context(self) -> Context:
        return Context(organization_id=self.organization_id, actor="key:k", request_id="r", at_ms=self.at_ms)

    async def listen(self, queue_id: str, listener_id: str = "billing-id", name: str = "billing") -> str:
        await self.log.control.append(
            ev.ListenerCreated(
                at_ms=1,
                organization_id=self.organization_id,
                listener_id=listener_id,
                queue_id=queue_id,
                name=name,
                notify_url="https://l.example",
                liveness_url="https://l.example",
                sealed_secret="",
                start_offsets=(0, 0),
            )
        )
        return listener_id

    def new_watch(self) -> AlertWatch:
        async def assure() -> None:
            """Another worker never owns them."""

        sources = Sources(
            cursors=self.cursors,
            owns=lambda _partition: True,
            assure=assure,
            lag=lambda _listener_id: 0,
            disk=lambda: (self.free, 5),
        )
        return AlertWatch(self.log, self.view, sources, 2, "https://everput.example")

    def state(self, state: str, listener_id: str | None = None, *, parked: int = 0) -> None:
        recent = Recent()
        recent.add(self.at_ms, accepted=state == "live", refused=state == "failing")
        counts = recent.text(parked, 0, alive=False)
        state, error = ("live", None) if state == "live" else ("down" if state == "down" else "live", "refused")
        cursor = Cursor(top=9, pending=1, state=state, error=error, counts=counts)
        self.cursors.committed[listener_id or self.listener_id] = {1: cursor}

    async def look(self, after_ms: int = 0) -> None:
        self.at_ms += after_ms
        await self.watch.look(self.at_ms)

    def told(self) -> list[dict]:
        """The alerts, in the order of their ids."""
        queue = self.view.state.queues_by_name.get((self.organization_id, ALERTS_QUEUE))
        values = [(key, value) for partition in self.log.messages.records for key, value, _ in partition]
        puts = [decode_message(value) for _, value in sorted(values)]
        return [orjson.loads(put.data) for put in puts if queue is not None and put.queue_id == queue.id]


async def down(one: Installation) -> None:
    one.state("down")
    await one.look()
    await one.look(60_000)


async def test_a_listener_that_is_down_is_told_once_and_so_is_that_it_is_back():
    one = await Installation.make()
    await down(one)
    await one.look(60_000)
    (told,) = one.told()
    assert told["type"] == "listener.down"
    assert told["state"] == "raised"
    assert told["listener"] == {"id": one.listener_id, "name": "billing"}
    assert told["queue"] == {"id": one.queue.id, "name": "orders"}
    assert told["facts"]["error"] == "refused"
    assert told["since_ms"] == one.at_ms - 120_000
    page = f"/console#/o/{one.queue.organization_id}/queues/{one.queue.id}/listeners/{one.listener_id}"
    assert told["link"] == f"https://everput.example{page}"
    one.state("live")
    await one.look()
    await one.look(BACK_MS)
    assert [(each["type"], each["state"]) for each in one.told()] == [
        ("listener.down", "raised"),
        ("listener.back", "cleared"),
    ]


async def test_an_episode_goes_on_after_a_restart():
    one = await Installation.make()
    await down(one)
    one.watch = one.new_watch()
    await one.look(60_000)
    await one.look(60_000)
    assert len(one.told()) == 1
    one.state("live")
    await one.look()
    one.watch = one.new_watch()
    await one.look()
    await one.look(BACK_MS)
    assert [each["type"] for each in one.told()] == ["listener.down", "listener.back"]


async def test_an_alert_that_was_recorded_and_not_put_is_put_by_the_next_owner():
    one = await Installation.make()
    one.log.messages.failing = LogUnavailable("away")
    with pytest.raises(LogUnavailable):
        await down(one)
    one.log.messages.failing = None
    one.watch = one.new_watch()
    await one.look(60_000)
    await one.look(60_000)
    assert [each["type"] for each in one.told()] == ["listener.down"]


async def test_an_alert_that_was_put_and_not_noted_is_not_put_again():
    one = await Installation.make()
    append = one.log.control.append

    async def without_told(event: ev.Event) -> int:
        if isinstance(event, ev.AlertTold):
            raise LogUnavailable("away")
        return await append(event)

    one.log.control.append = without_told
    with pytest.raises(LogUnavailable):
        await down(one)
    one.log.control.append = append
    assert len(one.told()) == 1
    one.watch = one.new_watch()
    await one.look(60_000)
    assert len(one.told()) == 1
    assert all(episode.told for episode in one.view.state.alerts.episodes.values())


async def test_a_listener_of_the_alerts_is_never_alerted_about():
    one = await Installation.make()
    await down(one)
    queue = one.view.state.queues_by_name[one.organization_id, ALERTS_QUEUE]
    await one.listen(queue.id, "pager")
    one.state("down", "pager")
    await one.look()
    await one.look(60_000)
    await one.look(60_000)
    assert [each["listener"]["id"] for each in one.told()] == [one.listener_id]


async def test_the_operators_organization_is_told_of_damage_and_of_the_disk():
    one = await Installation.make()
    one.free = 4
    one_range = {"topic": "messages", "partition": 0, "first_offset": 1, "last_offset": 2}
    await one.log.control.append(ev.LogDamaged(at_ms=1, organization_id="", actor="worker", **one_range))
    await one.look()
    assert sorted(each["type"] for each in one.told()) == ["disk.low", "log.damaged"]
    one.free = 6
    await one.log.control.append(ev.LogMended(at_ms=1, organization_id="", actor="worker", given_up=False, **one_range))
    await one.look(1)
    await one.look(CALM_MS)
    assert sorted(each["state"] for each in one.told()) == ["cleared", "raised", "raised"]
    one.free = 8
    await one.look(1)
    await one.look(CALM_MS)
    assert sorted(each["state"] for each in one.told()) == ["cleared", "cleared", "raised", "raised"]


async def test_an_organization_gets_a_bounded_number_of_alerts_at_once():
    one = await Installation.make()
    for number in range(150):
        one.state("down", await one.listen(one.queue.id, f"l-{number}", f"l-{number}"))
    await one.look()
    await one.look(60_000)
    assert len(one.told()) == 100
    await one.look(100_000)
    assert len(one.told()) == 110


async def test_a_listener_that_fails_for_long_and_parks_is_told_of_and_its_parked_ones_when_they_are_gone():
    one = await Installation.make()
    one.state("failing", parked=3)
    await one.look()
    await one.look(300_000)
    assert [(each["type"], each["facts"]["parked"]) for each in one.told()] == [
        ("listener.parked", 3),
        ("listener.failing", 3),
    ]
    one.state("live")
    await one.look()
    await one.look(CALM_MS)
    assert sorted(each["type"] for each in one.told()[2:]) == ["listener.back", "listener.parked"]


async def test_a_listener_that_a_worker_paused_because_it_is_gone_is_down_and_one_that_somebody_paused_is_not():
    one = await Installation.make()
    by = {"at_ms": 1, "organization_id": one.organization_id, "listener_id": one.listener_id}
    await one.log.control.append(ev.ListenerPaused(**by, reason="asked for"))
    await one.look()
    await one.look(60_000)
    assert one.told() == []
    await one.log.control.append(ev.ListenerPaused(**by, reason="the listener answered 410 Gone"))
    await one.look()
    await one.look(60_000)
    assert [each["type"] for each in one.told()] == ["listener.down"]


async def test_each_look_checks_the_listeners_with_an_alert_and_some_of_the_others_in_turn():
    one = await Installation.make()
    quiet = {await one.listen(one.queue.id, f"l-{number}", f"l-{number}") for number in range(450)}
    await down(one)
    one.watch = one.new_watch()
    looks: list[set[str]] = []
    load = one.cursors.load

    async def noted(listener_ids: Iterable[str], partitions: Iterable[int]) -> dict[str, dict[int, Cursor]]:
        ids = list(listener_ids)
        looks[-1].update(ids)
        return await load(ids, partitions)

    one.cursors.load = noted
    for _ in range(3):
        looks.append(set())
        await one.look()
    assert all(one.listener_id in look for look in looks)
    assert [len(look) for look in looks] == [201, 201, 201]
    assert set.union(*looks) == quiet | {one.listener_id}
