"""The common parts of an API process and a worker.

For: waiting for Kafka, the event loop, signals, file descriptors, the garbage collector, reporting that the process is
ready, and its exit code. Not for: the work itself (cli/processes/api.py, cli/processes/worker.py).
"""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import sys
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Final

import uvloop

from broker.errors import ConfigurationError, Suspended, Unavailable
from broker.kafka.admin import ensure_topics
from broker.kafka.topics import topics
from broker.settings import KafkaSettings, Settings
from cli import files, logs
from cli.logs import Logger
from cli.options import Options
from cli.processes.admin import Health, process_app, serving
from cli.processes.prctl import name_process
from cli.processes.python_version import warn_if_outdated
from cli.processes.signals import on_end
from cli.processes.supervisor_link import Link

_GIVE_UP_S: Final = 5.0

_log = Logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """The arguments of a function that does the work of a process, such as a worker. run() creates these arguments."""

    settings: Settings
    # Set when the process must end.
    stop: asyncio.Event
    # The parts of the process's state that its admin address shows, such as its metrics and whether it is ready.
    health: Health
    # A function that waits until Kafka answers, and then creates the topics that are missing.
    kafka: Callable[[], Awaitable[None]]
    # The work calls this function when the process is ready. Without a supervisor, it prints `ready` and its argument.
    ready: Callable[[str], None]


def run(name: str, options: Options, work: Callable[[Process], Awaitable[None]]) -> None:
    """Run the work of a process until it returns. The work returns after `stop` is set.

    Exit with code 2 if the configuration is wrong, and with code 1 after another error. After code 1, the supervisor
    restarts the process.
    """
    name = os.environ.get("EVERPUT_PROCESS", name)
    name_process(name)
    logs.set_up(name, options.log_level, options.log_format)
    threading.excepthook = _thread_failed
    link = Link.from_environment()
    if link is None:  # a supervisor has already warned
        warn_if_outdated()
    try:
        # With a supervisor, wait until Kafka is ready. An embedded Kafka starts while this process imports modules.
        embedded = link.wait_for_go() if link is not None else None
        settings = options.settings(sealing_key=files.sealing_key(options.data_dir), embedded=embedded)
        _raise_limits()
        # Set asyncio's policy, because Faust creates its event loop by the policy. Faust would ignore a loop factory.
        asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
        asyncio.run(_run(settings, options, link, work))
    except ConfigurationError as error:
        if link is None:
            raise
        link.failed(str(error))
        sys.exit(2)
    # If Kafka can't be reached or the machine was suspended, log no traceback, which would not help.
    except (Unavailable, Suspended) as error:
        _log.error("process.failed", reason=error)
        if link is not None:
            link.failed(str(error))
        sys.exit(1)
    except Exception as error:  # noqa: BLE001 - the last place that can log it
        _log.error("process.failed", error)
        sys.exit(1)


async def _run(
    settings: Settings, options: Options, link: Link | None, work: Callable[[Process], Awaitable[None]]
) -> None:
    health = Health()
    app = process_app(health)
    async with serving(app, options.admin_host, options.admin_port, options.hosts()) as url:
        if link is not None:
            link.admin(url)
        else:
            _log.info("admin.listening", url=url)
        await _run_work(settings, link, health, work)


async def _run_work(
    settings: Settings, link: Link | None, health: Health, work: Callable[[Process], Awaitable[None]]
) -> None:
    stop = asyncio.Event()
    on_end(stop.set)

    def ready(what: str) -> None:
        _settle_garbage()
        health.ready = True
        if link is None:
            print(f"ready {what}", flush=True)
        else:
            link.ready()

    kafka = partial(_await_kafka, settings.kafka)
    process = Process(settings=settings, stop=stop, health=health, kafka=kafka, ready=ready)
    working = asyncio.ensure_future(work(process))
    stopped = asyncio.create_task(stop.wait())
    await asyncio.wait([working, stopped], return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    if stop.is_set() and not health.ready:  # a process that is not ready yet has no work to finish
        working.cancel()
        await asyncio.wait([working], timeout=_GIVE_UP_S)
        return
    await working


async def _await_kafka(kafka: KafkaSettings) -> None:
    """Wait until Kafka answers and all topics exist."""
    while True:
        with suppress(Unavailable):  # the error was logged already
            await ensure_topics(kafka, topics(kafka))
            return


def _thread_failed(failure: threading.ExceptHookArgs) -> None:
    """Log the error that ended a thread. A CancelledError is not logged, because Faust's consumer thread ends with one
    whenever Kafka can't be reached.
    """
    if not isinstance(failure.exc_value, asyncio.CancelledError):
        _log.error("thread.failed", failure.exc_value, thread=None if failure.thread is None else failure.thread.name)


def _raise_limits() -> None:
    """Raise the limit of open files to the hard limit, if the system permits it. The default is often 1,024."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):  # macOS refuses an unlimited number of open files
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _settle_garbage() -> None:
    """Make garbage collections rare, and exclude all objects that exist now from them.

    Otherwise, most of the slowest 1% of requests would be requests that waited for a garbage collection.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)
