"""The directory of accounts, organizations and queues, for commands that read and change it in Kafka itself.

For: running a command with the topic `control` and the state folded from it. Not for: which Kafka (cli/operate.py),
what is changed (broker/commands/accounts.py, broker/commands/organizations.py).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import NamedTuple, TypeVar

import uvloop

from broker.errors import ConfigurationError, Unavailable
from broker.kafka.log import KafkaLog
from broker.ports import ControlLog, DirectoryView
from broker.settings import KafkaSettings
from cli import logs
from cli.operate import cluster
from cli.options import Options
from cli.waiting import waiting
from projections.app import CATCH_UP_S, Projections

T = TypeVar("T")


class OpenDirectory(NamedTuple):
    """The topic `control`, and the directory that is computed from the topic's events: accounts, organizations, API
    keys, queues, listeners and more.
    """

    control: ControlLog
    view: DirectoryView


@contextlib.asynccontextmanager
async def directory(kafka: KafkaSettings) -> AsyncIterator[OpenDirectory]:
    """Read the topic `control` from Kafka. Yield access to the topic, and the directory (accounts, organizations,
    queues and listeners) that is computed from its events.

    Raises Unavailable if Kafka does not answer in time, or ConfigurationError if the topic is damaged or has lost
    records.
    """
    async with contextlib.AsyncExitStack() as stack:
        log = KafkaLog(kafka)
        await log.start()
        stack.push_async_callback(log.stop)
        projections = Projections(kafka, log.control)
        with waiting("the directory to be read from Kafka"):
            await projections.start(timeout_s=CATCH_UP_S)
        stack.push_async_callback(projections.stop)
        yield OpenDirectory(log.control, projections.directory)


def in_directory(options: Options, work: Callable[[OpenDirectory], Awaitable[T]]) -> T:
    """Run `work` with the directory (accounts, organizations, queues and listeners) that is stored in Kafka, and return
    its result.

    The directory is read from the cluster of --kafka, or from the Kafka of the `everput serve` that runs on --data-dir.
    Raises ConfigurationError if Kafka can't be reached, does not answer in time, or lacks Everput's topics.
    """

    async def run() -> T:
        async with cluster(options) as found, directory(found.kafka) as opened:
            return await work(opened)

    return run_quietly("shell", options, run())


def run_quietly(name: str, options: Options, work: Awaitable[T]) -> T:
    """Run the asynchronous `work` of a command, and return its result. If the log level is the default `info`, log only
    warnings and errors, because the command prints its own result.

    If the work raises Unavailable, raise ConfigurationError instead.
    """
    logs.set_up_quietly(name, options.log_level)
    # Use the same event loop (uvloop) as API processes and workers.
    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())

    async def run() -> T:
        return await work

    try:
        return asyncio.run(run())
    except Unavailable as error:
        raise ConfigurationError(str(error)) from error
