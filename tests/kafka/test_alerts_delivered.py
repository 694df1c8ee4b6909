"""Alerts on real Kafka, delivered by Everput itself to a real HTTP listener."""

from __future__ import annotations

from dataclasses import replace

import orjson
import pytest

from broker.alerts import AlertWatch, Sources
from broker.clock import now_ms
from broker.commands.listeners import ListenerCommands, ListenerInput
from broker.commands.organizations import create_organization
from broker.core.alerts import ALERTS_QUEUE, BACK_MS
from broker.core.events import LogDamaged, LogMended
from broker.delivery.worker import Worker
from broker.kafka.cursors import KafkaCursors
from broker.kafka.topics import Topics
from broker.sealing import Sealer
from broker.settings import KafkaSettings, SmtpSettings
from tests.kafka.rig import Rig, running
from tests.listeners import Got, nobody, until
from tests.smtp import receiving_mail


@pytest.fixture
async def rig(kafka_settings: KafkaSettings, ready_topics: Topics):
    async with running(kafka_settings) as made:
        yield made


def watch_of(rig: Rig, worker: Worker) -> AlertWatch:
    kafka = rig.settings.kafka
    sources = Sources(
        cursors=KafkaCursors(kafka, rig.log.requests),
        owns=lambda partition: partition in worker.assignment.partitions,
        assure=worker.assure,
        lag=worker.lag,
    )
    return AlertWatch(rig.log, rig.workers[worker].directory, sources, kafka.partitions)


def told(got: Got) -> dict[str, object]:
    return orjson.loads(got.data)


async def test_one_of_two_workers_tells_that_a_listener_is_down_and_another_one_that_it_is_back(rig: Rig):
    first, second = await rig.work(), await rig.work()
    await until(lambda: first.assignment.partitions and second.assignment.partitions, what="each worker has partitions")
    alerts = await rig.queue(ALERTS_QUEUE)
    await rig.listen(alerts, "pager")
    await rig.listen(alerts, "slack", format="slack")
    orders = await rig.queue()
    with nobody() as port:
        listener = await rig.listen(orders, "billing", url=f"http://127.0.0.1:{port}/")
        rig.listeners.down.add("billing")
        await rig.put(orders, *["d"] * 40)
        await rig.known_down(listener)
        for worker in rig.workers:
            await worker.assignment.checkpoints.checkpoint()
        watches, at_ms = [watch_of(rig, first), watch_of(rig, second)], now_ms()
        for after_ms in (0, 60_000, 61_000):
            for watch in watches:
                await watch.look(at_ms + after_ms)
        (alert,) = await until(lambda: rig.listeners.taken("pager"), what="the alert is delivered")
        assert told(alert)["type"] == "listener.down"
        assert told(alert)["listener"] == {"id": listener.id, "name": "billing"}
        assert told(alert)["facts"]["error"] == "refused"
        assert told(alert)["facts"]["lag"] == 40
    (shown,) = await until(lambda: rig.listeners.taken("slack"), what="Slack gets it, too")
    assert orjson.loads(shown.body)["text"].startswith(":red_circle: *listener.down* The listener billing of the queue")
    # The listener comes back, and the worker that was alone with the alert does not.
    asked = ListenerInput(notify_url=rig.listeners.url("billing"))
    await rig.commands.update_listener(rig.context, orders.id, listener.id, asked)
    rig.listeners.down.clear()
    await rig.end(first)
    await until(lambda: len(rig.listeners.ids("billing")) == 40, what="all messages are delivered")
    await rig.noted(second)
    watch = watch_of(rig, second)
    for after_ms in (62_000, 62_000 + BACK_MS):
        await watch.look(at_ms + after_ms)
    await until(lambda: len(rig.listeners.taken("pager")) == 2, what="the end is delivered")
    assert told(rig.listeners.taken("pager")[1])["type"] == "listener.back"


async def test_damage_of_the_log_is_told_to_an_organization_of_an_account_without_its_offsets(rig: Rig):
    view = rig.projections.directory
    rig.organization_id = (await create_organization(rig.log.control, view, name="ann", actor="account:a")).id
    worker = await rig.work()
    await until(lambda: worker.assignment.partitions, what="the worker has partitions")
    await rig.listen(await rig.queue(ALERTS_QUEUE), "pager")
    by = {"at_ms": now_ms(), "organization_id": "", "actor": "worker"}
    damaged = {"topic": "claims", "partition": 0, "first_offset": 12, "last_offset": 34}
    for event, state in (
        (LogDamaged(**by, **damaged), "raised"),
        (LogMended(**by, **damaged, given_up=False), "cleared"),
    ):
        await rig.log.control.append(event)
        await rig.workers[worker].directory.caught_up()
        await watch_of(rig, worker).look()  # with no memory of the look before, as after a restart
        got = await until(lambda: [told(one) for one in rig.listeners.taken("pager")], what="the alert is delivered")
        assert [(one["type"], one["state"], one["facts"]) for one in got] == [("log.damaged", state, {})]
        rig.listeners.got.clear()


async def test_an_alert_is_mailed_and_a_refusal_of_the_mail_server_is_retried(rig: Rig):
    async with receiving_mail() as inbox:
        smtp = SmtpSettings(host="127.0.0.1", port=inbox.port, tls=False, sender="everput@example.com")
        rig.settings = replace(rig.settings, smtp=smtp)
        rig.commands = ListenerCommands(
            rig.log,
            rig.projections.directory,
            Sealer(rig.settings.sealing_key),
            allow_networks=rig.settings.allow_networks,
            mail_for=lambda _organization_id: True,
        )
        inbox.reply = "451 Try again later"
        worker = await rig.work()
        alerts, orders = await rig.queue(ALERTS_QUEUE), await rig.queue()
        asked = ListenerInput(
            name="mail",
            notify_url="mailto:ops@example.com",
            liveness_url="mailto:ops@example.com",
            settings={"retry_first_ms": 100},
        )
        await rig.commands.create_listener(rig.context, alerts.id, asked)
        listener = await rig.listen(orders, "billing", max_attempts=1)
        rig.listeners.status["billing"] = 422
        await rig.put(orders, "d")
        await until(lambda: len(worker.assignment.outstanding) == 1, what="the delivery is parked")
        await rig.noted(worker)
        await watch_of(rig, worker).look(now_ms())
        await until(lambda: inbox.asked > 1, what="the mail is tried again")
        inbox.reply = ""
        await until(lambda: inbox.mails, what="the mail arrives")
        assert inbox.mails[0]["Subject"] == "Everput: listener.parked orders > billing"
        assert listener.name in inbox.mails[0].get_content()
