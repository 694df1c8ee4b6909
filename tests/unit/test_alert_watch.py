"""One worker's checks of alerts, on a log in memory: what is told, to whom, and how often."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from zlib import crc32

import pytest
from installation import Installation

from broker.commands.organizations import create_key, create_organization
from broker.core import events as ev
from broker.core.alerts import ALERTS_QUEUE, BACK_MS, CALM_MS, Alerts, Kind
from broker.core.codec import decode
from broker.core.cursor import Cursor
from broker.errors import LogDamaged, LogUnavailable


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
    await down(one)
    one.log.messages.failing = None
    one.watch = one.new_watch()
    await one.look(60_000)
    await one.look(60_000)
    assert [each["type"] for each in one.told()] == ["listener.down"]


@contextlib.contextmanager
def cannot_note(one: Installation) -> Iterator[None]:
    """No event says meanwhile that a message was put."""
    append = one.log.control.append

    async def without_told(event: ev.Event) -> int:
        if isinstance(event, ev.AlertTold):
            raise LogUnavailable("away")
        return await append(event)

    one.log.control.append = without_told
    yield
    one.log.control.append = append


async def test_an_alert_that_was_put_and_not_noted_is_not_put_again():
    one = await Installation.make()
    with cannot_note(one):
        await down(one)
    assert len(one.told()) == 1
    one.watch = one.new_watch()
    await one.look(60_000)
    assert len(one.told()) == 1
    assert all(episode.told for episode in one.view.state.alerts.episodes.values())


async def test_an_alert_that_was_put_late_and_not_noted_is_not_put_again():
    one = await Installation.make()
    one.at_ms -= 12 * 60_000
    one.log.messages.failing = LogUnavailable("away")
    await down(one)  # eleven minutes ago
    one.log.messages.failing = None
    with cannot_note(one):
        await one.look(40_000)
        assert len(one.told()) == 1
        await one.look(40_000)
    await one.look(40_000)
    assert len(one.told()) == 1
    assert all(episode.told for episode in one.view.state.alerts.episodes.values())


async def test_an_alert_that_was_put_late_is_found_after_an_outage(monkeypatch: pytest.MonkeyPatch):
    one = await Installation.make()
    monkeypatch.setattr("broker.alert_messages.now_ms", lambda: one.at_ms)
    one.log.messages.failing = LogUnavailable("away")
    await down(one)
    one.log.messages.failing = None
    with cannot_note(one):
        await one.look(12 * 60_000)
    assert len(one.told()) == 1
    one.watch = one.new_watch()
    await one.look(40 * 60_000)
    assert len(one.told()) == 1
    assert all(episode.told for episode in one.view.state.alerts.episodes.values())


async def test_an_alert_whose_message_may_be_in_an_unreadable_range_is_put_again():
    one = await Installation.make()
    one.log.messages.failing = LogUnavailable("away")
    await down(one)
    one.log.messages.failing = None

    async def unreadable(**_: object) -> None:
        raise LogDamaged("messages", 0, 1, 2)

    one.log.messages.find = unreadable
    await one.look(60_000)
    assert [each["type"] for each in one.told()] == ["listener.down"]


async def test_other_alerts_do_not_wait_for_a_partition_that_can_not_be_written():
    one = await Installation.make()
    listeners = [one.listener_id] + [
        await one.listen(one.queue.id, f"l-{number}", f"l-{number}") for number in range(9)
    ]
    here = [listener for listener in listeners if crc32(listener.encode()) % 2 == 1]
    assert 0 < len(here) < len(listeners)
    append = one.log.messages.append_together

    async def only_here(*builds: object, partition: int, **more: object) -> None:
        if partition == 0:
            raise LogUnavailable("away")
        await append(*builds, partition=partition, **more)

    one.log.messages.append_together = only_here
    for listener in listeners:
        one.state("down", listener)
    await one.look()
    await one.look(60_000)
    await one.look(60_000)
    assert sorted(told["listener"]["id"] for told in one.told()) == sorted(here)
    for listener in here:
        one.state("live", listener)
    await one.look()
    await one.look(BACK_MS)
    assert sorted(told["type"] for told in one.told()) == ["listener.back"] * len(here) + ["listener.down"] * len(here)
    one.log.messages.append_together = append
    await one.look(60_000)
    assert {told["listener"]["id"] for told in one.told()} == set(listeners)


async def test_other_alerts_do_not_wait_for_listeners_of_which_nothing_can_be_read():
    one = await Installation.make()
    listeners = [await one.listen(one.queue.id, f"l-{number}", f"l-{number}") for number in range(70)]
    for listener in listeners:
        one.state("down", listener)
    load = one.cursors.load

    async def some(listener_ids: Iterable[str], partitions: Iterable[int]) -> dict[str, dict[int, Cursor]]:
        ids = list(listener_ids)
        if "l-0" in ids:
            raise LogUnavailable("away")
        return await load(ids, partitions)

    one.cursors.load = some
    await one.damage()
    for after_ms in (0, 60_000):
        with pytest.raises(LogUnavailable):
            await one.look(after_ms)
    assert {each["type"] for each in one.told()} == {"log.damaged", "listener.down"}
    assert {each["listener"]["id"] for each in one.told() if each["listener"]} == set(listeners) - {"l-0"}
    one.cursors.load = load
    await one.look()
    await one.look(60_000)
    assert {each["listener"]["id"] for each in one.told() if each["listener"]} == set(listeners)


async def test_an_alert_that_another_worker_has_begun_meanwhile_is_ended():
    one = await Installation.make()
    await one.look()
    one.state("down")
    await one.look()
    other = one.new_watch()
    for after_ms in (0, 60_000):
        await other.look(one.at_ms + after_ms)
    one.state("live")
    await one.look(70_000)
    await one.look(BACK_MS)
    assert [each["type"] for each in one.told()] == ["listener.down", "listener.back"]


async def test_the_alert_about_an_api_key_is_forgotten_when_the_key_is_revoked():
    one = await Installation.make()
    by = {"at_ms": one.at_ms, "organization_id": one.organization_id}
    hour_ms = 3_600_000
    key, _ = await create_key(
        one.log.control, one.view, organization_id=one.organization_id, name="ci", expires_at_ms=one.at_ms + hour_ms
    )
    await one.look(hour_ms * 2 // 3)
    assert [(each["type"], each["key"]["name"]) for each in one.told()] == [("key.expiring", "ci")]
    await one.log.control.append(ev.KeyRevoked(**by, key_id=key.id))
    assert one.view.state.alerts == Alerts()
    raised = ev.AlertRaised(**by, actor="worker", alert="key.expiring", key_id=key.id, alert_id="late")
    await one.log.control.append(raised)
    assert one.view.state.alerts == Alerts()


async def test_the_alert_about_an_api_key_ends_without_a_message_when_the_key_expires():
    one = await Installation.make()
    hour_ms = 3_600_000
    await create_key(
        one.log.control, one.view, organization_id=one.organization_id, name="ci", expires_at_ms=one.at_ms + hour_ms
    )
    for after_ms in (hour_ms * 2 // 3, hour_ms, CALM_MS, CALM_MS):
        await one.look(after_ms)
    assert [each["state"] for each in one.told()] == ["raised"]
    assert not any(episode.open for episode in one.view.state.alerts.episodes.values())


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


async def test_the_operators_organization_is_told_of_damage_and_of_the_disk_with_all_that_is_known():
    one = await Installation.make()
    one.free_mib = 1_000
    await one.damage()
    await one.look()
    assert sorted(each["type"] for each in one.told()) == ["disk.low", "log.damaged"]
    known = {"ranges": 1, "first": "messages/0 offsets 1234 to 1240", "free_mib": 1_000, "refused_below_mib": 512}
    assert [each["facts"] for each in one.told()] == [known, known]
    one.free_mib = 1_200
    await one.mend()
    await one.look(1)
    await one.look(CALM_MS)
    assert sorted(each["state"] for each in one.told()) == ["cleared", "raised", "raised"]
    one.free_mib = 1_600
    await one.look(1)
    await one.look(CALM_MS)
    assert sorted(each["state"] for each in one.told()) == ["cleared", "cleared", "raised", "raised"]


async def test_a_registered_organization_that_asked_for_alerts_learns_what_matters_to_it_and_nothing_of_others():
    one = await Installation.make()
    ann, bob = await one.registered("ann"), await one.registered("bob", asks=False)
    one.free_mib = 1_000
    await one.damage()
    await one.look()
    disk, damaged = sorted(one.told(ann), key=lambda told: told["type"])
    assert disk["facts"] == {"refused_below_mib": 512}
    assert disk["text"] == "The disk is almost full. Puts are refused while less than 512 MiB are free."
    assert damaged["facts"] == {}
    assert "wait as parked deliveries with the error `damaged`" in damaged["text"]
    assert one.told(bob) == []
    assert (bob, ALERTS_QUEUE) not in one.view.state.queues_by_name
    await one.mend()
    one.free_mib = 1_600
    await one.look(1)
    await one.look(CALM_MS)
    assert sorted((told["type"], told["state"]) for told in one.told(ann)) == [
        ("disk.low", "cleared"),
        ("disk.low", "raised"),
        ("log.damaged", "cleared"),
        ("log.damaged", "raised"),
    ]
    # The organization may read these events in its log.
    events = [event for event in map(decode, one.view.records) if isinstance(event, ev.AlertEvent)]
    known = [(event.alert, event.facts) for event in events if event.organization_id == ann]
    assert known == [("log.damaged", {}), ("disk.low", {"refused_below_mib": 512})] * 2


async def test_an_organization_that_asks_while_the_disk_is_low_is_told_then_and_of_the_end_after_a_restart():
    one = await Installation.make()
    ann = await one.registered("ann", asks=False)
    one.free_mib = 1_000
    await one.look()
    assert one.told(ann) == []
    await one.ask_for_alerts(ann)
    one.watch = one.new_watch()
    await one.look(60_000)
    await one.look(60_000)
    assert [told["state"] for told in one.told(ann)] == ["raised"]
    one.free_mib = 1_600
    await one.look(1)
    one.watch = one.new_watch()
    await one.look(1)
    await one.look(CALM_MS)
    await one.look(CALM_MS)
    raised, cleared = one.told(ann)
    assert (raised["state"], cleared["state"]) == ("raised", "cleared")
    assert raised["id"] == cleared["id"]


async def test_an_organization_that_asks_while_the_disk_has_room_again_is_told_nothing():
    one = await Installation.make()
    one.free_mib = 1_000
    await one.look()
    one.free_mib = 1_200  # The operator's alert is still open.
    ann = await one.registered("ann")
    await one.look(1)
    one.free_mib = 1_600
    await one.look(1)
    await one.look(CALM_MS)
    assert len(one.told()) == 2
    assert one.told(ann) == []


async def test_a_low_disk_is_told_to_many_organizations_bit_by_bit_and_to_the_operators_at_once():
    one = await Installation.make()
    many = [await one.registered(f"o-{number}") for number in range(250)]
    operators = [
        one.organization_id,
        (await create_organization(one.log.control, one.view, name="operators")).id,
    ]

    def told(state: str) -> int:
        return sum(each["state"] == state for organization_id in many for each in one.told(organization_id))

    one.free_mib = 1_000
    for expected in (100, 200, 250, 250):
        await one.look(10_000)
        assert told("raised") == expected
        assert all(len(one.told(each)) == 1 for each in operators)
    one.free_mib = 1_600
    await one.look(10_000)
    for expected in (100, 200, 250, 250):
        await one.look(CALM_MS if expected == 100 else 10_000)
        assert told("cleared") == expected
        assert all(len(one.told(each)) == 2 for each in operators)
    assert all(
        [each["state"] for each in one.told(organization_id)] == ["raised", "cleared"] for organization_id in many
    )


async def test_an_alert_about_a_disk_that_is_not_watched_any_more_ends_without_a_message():
    one = await Installation.make()
    one.free_mib = 1_000
    await one.look()
    one.free_mib = None
    one.watch = one.new_watch()
    await one.look(10_000)
    assert [told["state"] for told in one.told()] == ["raised"]
    assert not one.view.state.alerts.is_open(Kind.DISK, one.organization_id)


async def test_an_alert_ends_only_after_the_message_about_its_beginning_was_put():
    one = await Installation.make()
    await one.damage()
    one.log.messages.failing = LogUnavailable("away")
    await one.look()
    one.log.messages.failing = None
    await one.mend()
    await one.look(10_000)
    assert one.told() == []
    await one.look(20_000)
    await one.look(10_000)
    raised, cleared = one.told()
    assert (raised["state"], cleared["state"]) == ("raised", "cleared")


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
