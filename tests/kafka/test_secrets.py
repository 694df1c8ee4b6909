"""Secrets on a real Kafka: a rotation reaches the workers, and another sealing key changes nothing for a listener."""

from __future__ import annotations

import dataclasses

import pytest

from broker.commands.secrets import SecretCommands
from broker.core.signing import Signer, secret_bytes
from broker.kafka.topics import Topics
from broker.sealing import Sealer, new_sealing_key
from broker.settings import KafkaSettings
from cli.commands.rotate import reseal
from tests.kafka.rig import Rig, running
from tests.listeners import Got, until


@pytest.fixture
async def rig(kafka_settings: KafkaSettings, ready_topics: Topics):
    async with running(kafka_settings) as made:
        yield made


def signed_by(got: Got, *secrets: str) -> bool:
    """Whether these, in this order, and no others signed it."""
    headers = got.headers
    content = (headers["webhook-id"].encode(), headers["webhook-timestamp"].encode(), got.body)
    wanted = [Signer(secret_bytes(secret)).sign(*content).decode() for secret in secrets]
    return headers["webhook-signature"].split() == wanted


async def test_a_rotation_reaches_the_workers_and_another_sealing_key_changes_nothing(rig: Rig):
    old_key, new_key = rig.settings.sealing_key, new_sealing_key()
    queue = await rig.queue()
    listener = await rig.listen(queue, "a", headers={"x-team": "blue"})
    first = Sealer(old_key).open(listener.sealed_secret)
    worker = await rig.work()
    view = rig.projections.directory
    commands = SecretCommands(rig.log.control, view, Sealer(old_key))
    _, second = await commands.rotate(rig.context, queue.id, listener.id, secret=None, overlap_s=600)
    await rig.workers[worker].directory.caught_up()

    await rig.put(queue, "rotated")
    (got,) = await until(lambda: rig.listeners.taken("a"), what="the delivery")
    assert signed_by(got, second, first)
    await rig.end(worker)

    assert await reseal(rig.settings.kafka, Sealer(f"{new_key},{old_key}")) == 1
    assert await reseal(rig.settings.kafka, Sealer(f"{new_key},{old_key}")) == 0
    await view.caught_up()
    Sealer(new_key).check(view.state.listeners[listener.id].sealed())
    rig.settings = dataclasses.replace(rig.settings, sealing_key=new_key)
    await rig.work()
    await rig.put(queue, "sealed anew")
    got = (await until(lambda: rig.listeners.taken("a")[1:], what="the next delivery"))[0]
    assert signed_by(got, second, first)
    assert got.headers["x-team"] == "blue"
