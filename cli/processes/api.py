"""`everput api`: one API process.

For: connecting the log, the projections and the Starlette application, and serving until a signal ends the process. Not
for: what is answered (api/).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket

import click

from api.app import make_app
from api.clients import Clients
from api.tunnel import Tunnels
from broker import disk
from broker.audit.reader import LogReader
from broker.damage import DamageReports
from broker.kafka.cursors import KafkaCursors
from broker.kafka.deliveries import KafkaDeliveries
from broker.kafka.log import KafkaLog
from broker.kafka.outstanding import KafkaOutstanding
from broker.kafka.statistics import KafkaStatistics
from broker.kafka.topics import topics
from broker.outbound.addresses import TUNNEL
from broker.passwords import Passwords
from broker.sealing import Sealer
from broker.volume import StoredBytes
from cli import files
from cli.groups import examples
from cli.options import Options, shared_options
from cli.processes import admin
from cli.processes.first_start import first_start
from cli.processes.metrics import show_answers, show_damage, show_log
from cli.processes.process import Process, run
from cli.processes.sockets import address, bind, inherited
from cli.processes.startup_server import StartupServer
from cli.tracing import tracing
from projections.app import CATCH_UP_S, Projections


@click.command("api", epilog=examples("everput api --kafka kafka-1:9092,kafka-2:9092 --host 0.0.0.0"))
@shared_options
def command(options: Options) -> None:
    """Run one API process against an existing Kafka (--kafka). Prints `ready http://HOST:PORT` when it is ready."""

    async def work(process: Process) -> None:
        await _serve(process, options)

    run("api", options, work)


async def _serve(process: Process, options: Options) -> None:
    settings = process.settings
    async with contextlib.AsyncExitStack() as stack:
        listening = _listening(options)
        clients = Clients(settings.trusted_proxies, behind_proxy=settings.public_url is not None)
        startup_server = StartupServer(
            listening, connections_max=options.connections_max, hosts=options.hosts(), clients=clients
        )
        stack.push_async_callback(startup_server.close)
        await process.kafka()
        startup_server.kafka_is_there()
        log = KafkaLog(
            settings.kafka,
            append_timeout_ms=settings.append_timeout_ms,
            batch_pause_ms=settings.batch_pause_ms,
        )
        await log.start()
        stack.push_async_callback(log.stop)
        projections = Projections(settings.kafka, log.control)
        await projections.start(timeout_s=CATCH_UP_S)
        stack.push_async_callback(projections.stop)
        view = projections.directory
        log.read_slots.tenant_of = view.state.tenant_of
        process.health.view = view
        await stack.enter_async_context(
            DamageReports(log.requests, log.control, view, topics(settings.kafka)).running()
        )
        show_log(process.health.registry, log)
        show_damage(process.health.registry, view, log)
        sealer = Sealer(settings.sealing_key)
        sealer.check(text for listener in view.state.listeners.values() for text in listener.sealed())
        if os.environ.get("EVERPUT_FIRST_START"):
            await first_start(
                log.control,
                view,
                key_file=files.api_key_file(options.data_dir),
                password_file=files.console_password_file(options.data_dir),
            )
        if options.kafka is None:
            watching = asyncio.create_task(disk.watch(options.data_dir, options.disk_marks(), log.refuse))
            stack.callback(watching.cancel)
        stored = StoredBytes(
            log.control, view, bytes_max=settings.organization_bytes_max, retain_s=settings.retain_messages_s
        )
        projections.on_change(stored.follow)
        stack.push_async_callback(stored.stop)
        recording = asyncio.create_task(stored.run())
        stack.callback(recording.cancel)
        deliveries = KafkaDeliveries(settings.kafka, log.requests, log.read_slots)
        reader = LogReader(log.requests, topics(settings.kafka), view)
        tunnels = Tunnels()
        tunnel_url = await stack.enter_async_context(
            admin.serving(tunnels.app, options.tunnel_host, options.tunnel_port, options.hosts())
        )
        tunnels.address = tunnel_url.replace("http:", f"{TUNNEL}:", 1)
        app = make_app(
            settings,
            log=log,
            view=view,
            sealer=sealer,
            deliveries=deliveries,
            status=deliveries,
            reader=reader,
            outstanding=KafkaOutstanding(settings.kafka, log.requests, log.read_slots),
            cursors=KafkaCursors(settings.kafka, log.requests),
            tunnels=tunnels,
            stored=stored,
            passwords=Passwords(),
            statistics=KafkaStatistics(settings.kafka, log.requests, log.read_slots),
            tracing=await stack.enter_async_context(tracing()),
        )
        show_answers(process.health.registry, app.state.requests, stored)
        await startup_server.open(app, app.state.direct_puts, before_end=reader.feed.stop)
        process.ready(address(listening, options.host))
        serving = asyncio.create_task(startup_server.served())
        crashed = asyncio.create_task(projections.crashed())
        stopped = asyncio.create_task(process.stop.wait())
        await asyncio.wait([serving, crashed, stopped], return_when=asyncio.FIRST_COMPLETED)
        await startup_server.close()
        for task in (serving, stopped):
            task.cancel()
        if crashed.done() and not process.stop.is_set():
            raise RuntimeError(
                "this API process can no longer read the topic `control`, so it ends. A supervisor such as "
                "`everput serve` restarts it; without a supervisor, start it again"
            ) from crashed.result()
        crashed.cancel()


def _listening(options: Options) -> socket.socket:
    """Return the socket on which the API listens. If a supervisor started this process, return the socket that the
    supervisor has opened. Otherwise, open a new socket.
    """
    descriptor = os.environ.get("EVERPUT_LISTEN_FD")
    return bind(options.host, options.port) if descriptor is None else inherited(int(descriptor))
