"""A list of messages with the states of their deliveries, from cursors and topics that workers have written."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest

from broker.clock import now_ms
from broker.commands.listing import MessageFilter, list_messages
from broker.core.entities import Queue
from broker.kafka.topics import Topics
from broker.settings import KafkaSettings
from tests.kafka.rig import Rig, running
from tests.listeners import Got, until


@pytest.fixture
async def rig(kafka_settings: KafkaSettings, ready_topics: Topics) -> AsyncIterator[Rig]:
    async with running(kafka_settings) as rig:
        yield rig


async def listed(rig: Rig, queue: Queue, **wanted: str) -> dict[str, dict[str, str]]:
    """The states of all messages that the filter accepts: by data, and by the listener's name."""
    messages = rig.log.messages
    begin, end = await messages.offsets_at(0), await messages.end_offsets()
    listeners = list(rig.projections.directory.state.queue(rig.organization_id, queue.id).listeners.values())
    names = {one.id: one.name for one in listeners}
    found: dict[str, dict[str, str]] = {}
    while any(at < to for at, to in zip(begin, end, strict=True)):
        page, begin, end = await list_messages(
            rig.log,
            rig.where,
            queue,
            MessageFilter(**wanted),
            listeners=listeners,
            begin=begin,
            end=end,
            limit=2,
            with_states=True,
            at_ms=now_ms(),
        )
        for one in page:
            assert one.deliveries is not None
            found[one.message.data] = {names[listener_id]: known.state for listener_id, known in one.deliveries.items()}
    return found


async def test_the_states_are_those_of_each_message_and_filters_find_them(rig: Rig):
    queue = await rig.queue()
    picky = await rig.listen(queue, "picky", max_attempts=1)
    patient = await rig.listen(queue, "patient")

    def decide(got: Got) -> int:
        return 400 if got.data == "bad" else 200

    rig.listeners.decide = decide
    worker = await rig.work()
    later = datetime.now(UTC) + timedelta(hours=1)
    (bad,) = await rig.put(queue, "bad")
    await rig.put(queue, *(f"good{number}" for number in range(20)))
    await rig.put(queue, "later", deliver_at=later)
    await until(lambda: len(rig.listeners.taken("patient")) == 20, what="all good messages")
    await until(lambda: len(rig.listeners.taken("picky")) == 20, what="all good messages")

    async def attempted() -> bool:
        await rig.noted(worker)
        states = [(await rig.state(bad, one)).state for one in (picky, patient)]
        return states == ["parked", "retrying"]

    await until(attempted, what="the bad message is parked for one, and retrying for the other")
    good = {f"good{number}": {"picky": "delivered", "patient": "delivered"} for number in range(20)}

    async def aside() -> bool:
        await rig.noted(worker)
        return (await listed(rig, queue, state="scheduled")).keys() == {"later"}

    await until(aside, what="the scheduled message is known")
    expected = {
        **good,
        "bad": {"picky": "parked", "patient": "retrying"},
        "later": {"picky": "scheduled", "patient": "scheduled"},
    }
    assert await listed(rig, queue) == expected
    for state, names in (("parked", {"bad"}), ("retrying", {"bad"}), ("pending", set()), ("delivered", set(good))):
        assert await listed(rig, queue, state=state) == {name: expected[name] for name in names}, state
    await rig.end(worker)
    await rig.put(queue, "unseen")
    assert await listed(rig, queue, state="pending") == {"unseen": {"picky": "pending", "patient": "pending"}}
