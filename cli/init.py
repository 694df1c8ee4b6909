"""`everput init`: an account, an organization and a key, from the shell.

For: an existing Kafka, where no `everput serve` makes them. It needs no session: who reaches Kafka may do everything.
Not for: how they are made (cli/first_start.py)."""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import Final

import click
import uvloop

from broker.accounts import WrongPassword
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

PASSWORD: Final = "EVERPUT_PASSWORD"  # noqa: S105 - the variable's name


@click.command("init")
@click.option("--organization", metavar="NAME", help="Of this name, made if missing; without it, the oldest one.")
@click.option("--email", metavar="ADDRESS", help="Of an account that is to be a member; made if it is missing.")
@shared_options
def command(options: Options, organization: str | None, email: str | None) -> None:
    """Make a key with all scopes, and the organization it belongs to if there is none, and print the key.

    The topics are made, too. The key is nowhere else: keep it. With --email, the account is made or, if it is there,
    checked, and becomes a member of the organization; its password comes by EVERPUT_PASSWORD or is asked for.
    """
    owner = None if email is None else (email, _password())
    logs.set_up("init", "warning" if options.log_level == "info" else options.log_level)
    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())  # as in cli/process.py
    try:
        key = asyncio.run(_make(options.kafka_settings(), organization, owner))
    except (Unavailable, Refused, WrongPassword) as error:
        raise ConfigurationError(str(error)) from error
    print(key)


def _password() -> str:
    given = os.environ.get(PASSWORD)
    return click.prompt("Password", hide_input=True, confirmation_prompt=True, err=True) if given is None else given


async def _make(kafka: KafkaSettings, organization: str | None, owner: tuple[str, str] | None) -> str:
    async with contextlib.AsyncExitStack() as stack:
        await ensure_topics(kafka, topics(kafka))
        log = KafkaLog(kafka)
        await log.start()
        stack.push_async_callback(log.stop)
        projections = Projections(kafka, log.control)
        await projections.start(timeout_s=CATCH_UP_S)
        stack.push_async_callback(projections.stop)
        return await new_key(log.control, projections.directory, organization=organization, owner=owner)
