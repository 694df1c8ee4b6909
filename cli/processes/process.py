"""The common parts of an API process and a worker.

For: waiting for Kafka, the event loop, signals, file descriptors, the garbage collector, telling that it is ready, and
what its end means. Not for: the work itself (cli/processes/api.py, cli/processes/worker.py).
"""

from __future__ import annotations

import asyncio
import gc
import os
import platform
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
from cli.processes.signals import on_end
from cli.processes.supervisor_link import Link

_GIVE_UP_S: Final = 5.0
CATCH_UP_S: Final = 120.0  # A start may take this long to fold all of `control`, at about 15,000 events a second.

_PYTHONS_SOUND: Final = {
    (3, 11): 10,
    (3, 12): 6,
}  # These are the first patch releases with the security fixes that we know of.

_log = Logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """The parts of a process that its work uses.

    stop: set by cli/processes/signals.py. Before the process is ready, the work is cancelled, too.
    kafka: waits for Kafka and all topics.
    ready: called once, with what to print after `ready`.
    health: gets what the admin address shows.
    """

    settings: Settings
    stop: asyncio.Event
    health: Health
    kafka: Callable[[], Awaitable[None]]
    ready: Callable[[str], None]


def run(name: str, options: Options, work: Callable[[Process], Awaitable[None]]) -> None:
    """Run the work until it returns, which it does after `stop` is set (ConfigurationError when it can't start).

    An error in the work ends the process with exit code 1. The supervisor, or systemd, restarts it.
    """
    logs.set_up(os.environ.get("EVERPUT_PROCESS", name), options.log_level, options.log_format)
    threading.excepthook = _thread_failed
    if sound := outdated(sys.version_info[:3]):
        _log.warning(
            "python.outdated", version=platform.python_version(), wanted=sound, because="CVE-2024-7592, CVE-2024-6232"
        )
    link = Link.from_environment()
    try:
        # Everything is imported by now. The embedded Kafka may still be starting; its address comes with `go`.
        embedded = link.wait_for_go() if link is not None else None
        settings = options.settings(sealing_key=files.sealing_key(options.data_dir), embedded=embedded)
        _raise_limits()
        # Faust asks the policy for its loop, so a loop factory is not enough.
        asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
        asyncio.run(_run(settings, options, link, work))
    except ConfigurationError as error:
        if link is None:
            raise
        link.failed(str(error))
        sys.exit(2)
    except (Unavailable, Suspended) as error:  # Kafka went away, or the machine slept: no traceback is needed.
        _log.error("process.failed", reason=error)
        if link is not None:
            link.failed(str(error))
        sys.exit(1)
    except Exception as error:  # noqa: BLE001 - the last place that can log it
        _log.error("process.failed", error)
        sys.exit(1)


def outdated(version: tuple[int, int, int]) -> str | None:
    """Return the first release of this Python's minor version that has the security fixes; None where this one has."""
    sound = _PYTHONS_SOUND.get(version[:2], 0)
    return None if version[2] >= sound else f"{version[0]}.{version[1]}.{sound}"


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
    if stop.is_set() and not health.ready:  # A process that is still starting has nothing to finish.
        working.cancel()
        await asyncio.wait([working], timeout=_GIVE_UP_S)
        return
    await working


async def _await_kafka(kafka: KafkaSettings) -> None:
    """However long it takes."""
    while True:
        with suppress(Unavailable):  # which has said so
            await ensure_topics(kafka, topics(kafka))
            return


def _thread_failed(told: threading.ExceptHookArgs) -> None:
    """Ignore the end of Faust's consumer thread, which cancels itself while Kafka is away."""
    if not isinstance(told.exc_value, asyncio.CancelledError):
        _log.error("thread.failed", told.exc_value, thread=None if told.thread is None else told.thread.name)


def _raise_limits() -> None:
    """Raise the limit of open files to the highest allowed; the soft limit is often 1,024."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):  # macOS refuses its own "unlimited"
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _settle_garbage() -> None:
    """Exempt modules and long-lived objects from garbage collection, and make collections rare: their pauses are the
    p99.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)
