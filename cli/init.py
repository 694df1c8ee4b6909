"""`everput init`: an organization and a key, from the shell.

For: an existing Kafka, where no `everput serve` makes them. Not for: how a key is made (broker/commands.py)."""

from __future__ import annotations

import asyncio
import contextlib

import click
import uvloop

from broker.errors import ConfigurationError, Refused, Unavailable
from broker.kafka.admin import ensure_topics
from broker.kafka.log import KafkaLog
from broker.kafka.topics import topics
from broker.settings import KafkaSettings
from cli import logs
from cli.first_start import new_key
from cli.options import Options, shared_options
from cli.process import CATCH_UP_S
from projections.app import Projections


@click.command("init")
@click.option("--organization", metavar="NAME", help="Of this name, made if missing; without it, the oldest one.")
@shared_options
def command(options: Options, organization: str | None) -> None:
    """Make a key with all scopes, and the organization it belongs to if there is none, and print the key.

    The topics are made, too. The key is nowhere else: keep it.
    """
    logs.set_up("init", "warning" if options.log_level == "info" else options.log_level)
    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())  # as in cli/process.py
    try:
        key = asyncio.run(_make(options.kafka_settings(), organization))
    except (Unavailable, Refused) as error:
        raise ConfigurationError(str(error)) from error
    print(key)


async def _make(kafka: KafkaSettings, organization: str | None) -> str:
    async with contextlib.AsyncExitStack() as stack:
        await ensure_topics(kafka, topics(kafka))
        log = KafkaLog(kafka)
        await log.start()
        stack.push_async_callback(log.stop)
        projections = Projections(kafka, log.control)
        await projections.start(timeout_s=CATCH_UP_S)
        stack.push_async_callback(projections.stop)
        return await new_key(log.control, projections.directory, organization=organization)
