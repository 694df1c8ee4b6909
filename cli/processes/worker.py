"""`everput worker`: one worker process.

For: connecting the log, the projections and the deliveries, until a signal ends the process. Not for: delivering
(broker/delivery).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from functools import partial

import click

from broker.alerts import AlertWatch, Sources
from broker.damage import DamageReports
from broker.delivery.ports import Ports
from broker.delivery.worker import Worker
from broker.kafka.changes_tail import ChangesTail
from broker.kafka.cursors import KafkaCursors
from broker.kafka.log import KafkaLog
from broker.kafka.tail import Tail
from broker.kafka.topics import topics
from broker.ports import DirectoryView
from broker.sealing import Sealer
from broker.settings import Settings
from broker.volume import StoredBytes
from cli.groups import examples
from cli.options import Options, shared_options
from cli.processes.metrics import show_damage, show_worker
from cli.processes.process import Process, run
from cli.tracing import tracing
from projections.agents import run_delivery_streams
from projections.app import CATCH_UP_S, Projections
from projections.statistics import Statistics


@click.command("worker", epilog=examples("everput worker --kafka kafka-1:9092,kafka-2:9092"))
@shared_options
def command(options: Options) -> None:
    """Run one worker against an existing Kafka (--kafka). Prints `ready worker` when it is ready."""
    run("worker", options, partial(_work, options=options))


async def _work(process: Process, *, options: Options) -> None:
    settings = process.settings
    await process.kafka()
    async with contextlib.AsyncExitStack() as stack:
        log = KafkaLog(settings.kafka, append_timeout_ms=settings.append_timeout_ms)
        await log.start()
        stack.push_async_callback(log.stop)
        projections = Projections(settings.kafka, log.control)
        view = projections.directory
        name = os.environ.get("EVERPUT_WORKER_NAME")
        ports = Ports(
            log=log,
            membership=Tail(settings.kafka, log.requests, name=name),
            cursors=KafkaCursors(settings.kafka, log.requests),
            changes=ChangesTail(settings.kafka, log.requests),
        )
        bytes_max, retain_s = settings.organization_bytes_max, settings.retain_messages_s
        stored = StoredBytes(log.control, view, bytes_max=bytes_max, retain_s=retain_s)
        sealer = Sealer(settings.sealing_key)
        traces = await stack.enter_async_context(tracing())
        worker = Worker(settings, ports, view, sealer, stored.count, tracing=traces)
        projections.add_agent("delivery_streams", run_delivery_streams(view, worker.roster, projections.failed))
        await projections.start(timeout_s=CATCH_UP_S)
        stack.push_async_callback(projections.stop)
        reports = DamageReports(log.requests, log.control, view, topics(settings.kafka))
        await stack.enter_async_context(reports.running(look=True))
        sealer.check(text for listener in view.state.listeners.values() for text in listener.sealed())
        stack.push_async_callback(stored.stop)
        recording = asyncio.create_task(stored.run())
        stack.callback(recording.cancel)
        process.health.view = view
        process.health.look = show_worker(process.health.registry, worker)
        show_damage(process.health.registry, view, log)
        stack.push_async_callback(worker.stop)
        await worker.start()
        statistics = Statistics(settings.kafka, log)
        statistics.start()
        stack.push_async_callback(statistics.stop)
        alerts = asyncio.create_task(_alerts(log, view, worker, ports, options, settings, stored).run())
        stack.callback(alerts.cancel)
        process.ready("worker")
        ends = {
            asyncio.create_task(process.stop.wait()): "told to stop",
            asyncio.create_task(projections.crashed()): "the projections ended",
            asyncio.create_task(worker.failed()): "the deliveries ended",
        }
        done, running = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        for task in running:
            task.cancel()
        if process.stop.is_set():
            return
        for task in done:
            reason = task.result()
            raise RuntimeError(ends[task]) from (reason if isinstance(reason, BaseException) else None)


def _alerts(
    log: KafkaLog,
    view: DirectoryView,
    worker: Worker,
    ports: Ports,
    options: Options,
    settings: Settings,
    stored: StoredBytes,
) -> AlertWatch:
    def disk() -> tuple[int, int]:
        """Return two numbers of bytes: the free space on the disk of the data directory, and the free space below which
        the API refuses puts.
        """
        return shutil.disk_usage(options.data_dir).free, options.disk_free_bytes_min

    sources = Sources(
        cursors=ports.cursors,
        owns=lambda partition: partition in worker.assignment.partitions,
        assure=worker.assure,
        lag=worker.lag,
        disk=disk if options.kafka is None else None,
    )
    return AlertWatch(log, view, sources, settings.kafka.partitions, settings.public_url, stored.count)
