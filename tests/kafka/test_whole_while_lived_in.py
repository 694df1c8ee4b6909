"""Verify has nothing to say of a log that is whole, whatever goes on while it reads."""

from __future__ import annotations

import asyncio
import random
import time
from itertools import count

import pytest

from broker.audit.verify import State, Verifier
from broker.core.checks import Finding
from broker.core.digests import state_hash
from broker.kafka.outstanding_sums import noted_sum
from broker.kafka.topics import Topics
from broker.ports import LATEST
from broker.settings import KafkaSettings
from tests.kafka.rig import Rig, running
from tests.kafka.test_replay import start
from tests.kafka.test_retention import sweep
from tests.listeners import until

ROUNDS = 6


@pytest.fixture
async def rig(kafka_settings: KafkaSettings, ready_topics: Topics):
    async with running(kafka_settings, clock_skew_ms=0) as made:
        made.tune(set_aside_after_ms=0)
        yield made


@pytest.fixture
def dice() -> random.Random:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    return random.Random(seed)


async def wrong(rig: Rig, topics: Topics) -> list[str]:
    verifier = Verifier(rig.settings.kafka, rig.log.requests, topics, lambda _: None)
    position = rig.projections.position
    here = state_hash(rig.projections.directory.state)
    found = [one async for one in verifier.findings({position})]
    (state,) = [one for one in found if isinstance(one, State)]
    assert (state.position, state.sha256) == (position, here)
    wrong = [str(one) for one in found if isinstance(one, Finding) and one.wrong]
    for partition in range(topics.outstanding.partitions) if wrong else ():
        print(partition, "is noted as", await noted_sum(rig.log.requests, partition))
        end = (await rig.log.requests.offsets(topics.outstanding.name, {partition: LATEST}))[partition]
        async for record in rig.log.requests.walk(topics.outstanding.name, partition, 0, end):
            print(partition, record.offset, record.timestamp, record.key, record.value)
    return wrong


async def live(rig: Rig, dice: random.Random, *, retain: bool) -> None:
    """Queues, listeners and messages come, change and go; some fail, are parked, redriven, replayed."""
    names = count()
    steady = await rig.queue("steady")
    listener = await rig.listen(steady, "steady", retry_first_ms=100, retry_max_s=1)
    began = time.monotonic()
    for number in range(ROUNDS):
        print(f"round {number} begins after {time.monotonic() - began:.1f} s")
        queue = await rig.queue(f"q{next(names)}")
        await rig.put(queue, "before it has a listener")
        flaky = await rig.listen(queue, f"flaky{next(names)}", max_attempts=2, retry_first_ms=100, begin_at_ms=0)
        ids = await rig.put(queue, *("bad" if dice.random() < 0.2 else "m" for _ in range(20)))
        ids += await rig.put(queue, "bad", key="k")
        await asyncio.gather(
            rig.put(steady, *["m"] * 30),
            rig.update(queue, ids[0], "bad"),
            rig.update(queue, ids[1], "new"),
            rig.delete(queue, ids[2]),
            rig.delete(queue, ids[-1]),
        )
        await rig.commands.redrive_listener(rig.context, queue.id, flaky.id, ())
        await start(rig, queue, flaky, only=dice.choice(["all", "failed", "undelivered"]))
        if dice.random() < 0.5:
            await rig.commands.delete_listener(rig.context, queue.id, flaky.id)
        if dice.random() < 0.3:
            await rig.queue_commands.delete_queue(rig.context, queue.id)
        if dice.random() < 0.3:
            (worker, *_) = rig.workers
            await rig.end(worker)
            await rig.work()
        for worker in rig.workers if retain else ():
            await sweep(worker)
    await start(rig, steady, listener)


@pytest.mark.timeout(900)  # It waits for more than fifty things, one after the other.
@pytest.mark.parametrize("retain", [False, True], ids=["kept for ever", "with retention"])
async def test_a_log_that_is_lived_in_is_whole_at_every_moment(
    rig: Rig, ready_topics: Topics, dice: random.Random, retain: bool
):
    rig.listeners.decide = lambda got: 500 if got.data == "bad" else 200
    await rig.work()
    await rig.work()
    living = asyncio.create_task(live(rig, dice, retain=retain))
    looks = 0
    try:
        while not living.done():
            assert await wrong(rig, ready_topics) == []
            looks += 1
    finally:
        living.cancel()
        await asyncio.wait([living])
    living.result()
    assert looks > 2

    def finished() -> bool:
        state = rig.projections.directory.state
        return all(one.replay is None for one in state.listeners.values())

    await until(finished, what="all replays have ended")
    assert await wrong(rig, ready_topics) == []
