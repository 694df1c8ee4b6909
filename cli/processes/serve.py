"""`everput serve`: the supervisor of the embedded Kafka, the API processes and the workers.

For: which processes there are, in which order they start and stop, and the line `ready`. Not for: restarting one of
them (cli/processes/children.py), what they do (cli/processes/api.py, cli/processes/worker.py). The supervisor has no
state of its own, so killing it loses nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from dataclasses import replace
from functools import partial
from importlib import import_module
from ipaddress import ip_network
from typing import Final

import click

from broker.errors import BrokerError, ConfigurationError
from broker.kafka.embedded.access import EmbeddedAccess
from broker.kafka.embedded.kafka import EmbeddedKafka
from broker.private_files import write_secret
from cli import files, logs
from cli.groups import examples
from cli.logs import Logger
from cli.options import Options, is_loopback, shared_options, variable
from cli.processes.children import Child, Pauses
from cli.processes.prefork import Prefork, prefork
from cli.processes.python_version import warn_if_outdated
from cli.processes.signals import on_end
from cli.processes.sockets import address, bind
from cli.processes.supervisor_link import Link

# `everput serve` must end within 30 s. So the sum of the following three timeouts, in seconds, must be less than 30.
# The admin address needs no timeout here, because it closes at the same time as the API processes.
API_STOP_S: Final = 9.0
WORKER_STOP_S: Final = 10.0
KAFKA_STOP_S: Final = 9.0

_LOOPBACK: Final = (ip_network("127.0.0.0/8"), ip_network("::1/128"))

# If there are several workers, the embedded Kafka waits 100 ms for further group members before it assigns partitions.
# If Kafka did not wait, the first worker would get all partitions, and the other workers none for up to a second.
_JOIN_DELAY_MS: Final = 100

_log = Logger(__name__)
# The default of --workers: one for each processor, but at most 2. A busy worker uses a whole processor.
_WORKERS: Final = min(2, os.cpu_count() or 1)


@click.command(
    "serve",
    epilog=examples(
        "everput serve",
        "everput serve --data-dir /var/lib/everput --port 80",
        "everput serve --kafka kafka-1:9092,kafka-2:9092 --host 0.0.0.0",
    ),
)
@shared_options
@click.option(
    "--api-processes",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    envvar="EVERPUT_API_PROCESSES",
    show_envvar=True,
    help="Number of API processes, which share the port.",
)
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    default=_WORKERS,
    show_default="2 where there are two processors",
    envvar="EVERPUT_WORKERS",
    show_envvar=True,
    help="Number of workers, which share the deliveries.",
)
@click.option(
    "--kafka-port",
    type=click.IntRange(1, 65535),
    envvar="EVERPUT_KAFKA_PORT",
    show_envvar=True,
    help="Port of the embedded Kafka on 127.0.0.1. Default: a free one at each start.",
)
def command(options: Options, api_processes: int, workers: int, kafka_port: int | None) -> None:
    """Run everything on this machine: Kafka (unless --kafka names one), the API and the workers.

    The first start writes an API key to DIR/api-key, and the password of the console's first account to
    DIR/console-password. With the same --data-dir (by default the folder data in the working directory), the other
    commands find the key and the server's URL. When everything is ready, `ready http://HOST:PORT` is printed.

    If --host is a loopback address, and none of --public-url, --trusted-proxy and --allowed-host is given, only this
    machine can reach the API. Listeners may then be on this machine, too.
    """
    if options.kafka is not None and kafka_port is not None:
        raise ConfigurationError("--kafka-port sets the port of the embedded Kafka; leave it out with --kafka")
    options = with_loopback(options)
    files.make_data_dir(options.data_dir)
    with files.lock(options.data_dir):
        forked = prefork(api_processes + workers)  # before this process has threads
        logs.set_up("serve", options.log_level, options.log_format)
        warn_if_outdated()
        # If `everput demo` has started this process, the process ends together with the demo.
        Link.from_environment()
        supervisor = Supervisor(
            options, api_processes=api_processes, workers=workers, kafka_port=kafka_port, prefork=forked
        )
        asyncio.run(supervisor.run())


def with_loopback(options: Options) -> Options:
    """Return the options, with one change if only this machine can reach the API: listeners on loopback addresses are
    then allowed (docs/security.md).
    """
    proxied = options.public_url is not None or options.trusted_proxy or options.allowed_host
    if not is_loopback(options.host) or proxied:
        return options
    return replace(options, allow_network=tuple(dict.fromkeys([*options.allow_network, *_LOOPBACK])))


class Supervisor:
    """The supervisor of `everput serve`. Construct it inside the running event loop, and await `run` once."""

    def __init__(
        self,
        options: Options,
        *,
        api_processes: int,
        workers: int,
        kafka_port: int | None = None,
        prefork: Prefork | None = None,
    ) -> None:
        self._kafka_port = kafka_port
        self._options = options
        self._counts = {"api": api_processes, "worker": workers}
        self._prefork = prefork
        self._children: dict[str, list[Child]] = {"api": [], "worker": []}
        self._kafka: EmbeddedKafka | None = None

    async def run(self) -> None:
        """Run the supervisor until a signal ends it. Raises ConfigurationError if the server can't start."""
        loop = asyncio.get_running_loop()
        stop = asyncio.Event()
        on_end(partial(self._signalled, stop))
        if self._options.kafka is not None:
            self._options.kafka_settings()  # check the settings for Kafka before any process starts
        environment = self.environment()
        access: asyncio.Future[EmbeddedAccess | None] = loop.create_future()
        async with contextlib.AsyncExitStack() as stack:
            listening = stack.enter_context(bind(self._options.host, self._options.port))
            self._make_children(environment, access, listening.fileno())
            admin = await stack.enter_async_context(contextlib.AsyncExitStack())
            tasks = [asyncio.create_task(child.keep()) for child in self._all()]
            if self._options.kafka is None:
                self._kafka = EmbeddedKafka(
                    self._options.data_dir / "kafka",
                    port=self._kafka_port,
                    join_delay_ms=_JOIN_DELAY_MS if self._counts["worker"] > 1 else 0,
                )
                tasks.append(asyncio.create_task(self._keep_kafka(self._kafka, access)))
            else:
                access.set_result(None)
            announce = asyncio.create_task(self._announce(address(listening, self._options.host)))
            stopped = asyncio.create_task(stop.wait())
            try:
                await self._open_admin_address(admin)
                done, _ = await asyncio.wait([stopped, *tasks], return_when=asyncio.FIRST_COMPLETED)
                for task in done - {stopped}:
                    task.result()  # if the task has failed, result() raises its error
            finally:
                for task in (announce, stopped):
                    task.cancel()
                await self._stop_all(tasks, admin)
                access.cancel()

    async def _open_admin_address(self, admin: contextlib.AsyncExitStack) -> None:
        """Serve the admin address until the exit stack `admin` is closed. Import its code in a thread, so that Kafka
        and the processes start meanwhile.
        """
        await asyncio.to_thread(import_module, "cli.processes.admin_all")
        from cli.processes.admin import serving
        from cli.processes.admin_all import all_app

        app, options = all_app(self._all()), self._options
        url = await admin.enter_async_context(serving(app, options.admin_host, options.admin_port, options.hosts()))
        _log.info("admin.listening", url=url)

    def environment(self) -> dict[str, str]:
        options = self._options
        if options.kafka is None:
            # Tell the processes now: later, they could look while Kafka makes the folders.
            options = replace(options, partitions=options.partitions or options.partitions_there())
        key = files.sealing_key(options.data_dir, make=True)
        # Each child process chooses the port of its admin address, and reports it to the supervisor.
        own = {variable("admin_host"): "127.0.0.1", variable("admin_port"): "0", variable("tunnel_port"): "0"}
        inherited = {name: text for name, text in os.environ.items() if name != f"{files.SEALING_KEY_VARIABLE}_FILE"}
        return {**inherited, **options.environment(), **own, files.SEALING_KEY_VARIABLE: key}

    def _make_children(
        self, environment: dict[str, str], access: asyncio.Future[EmbeddedAccess | None], listening: int
    ) -> None:
        for number in range(self._counts["api"]):
            extra = {"EVERPUT_PROCESS": f"api-{number + 1}"}
            if number == 0:  # only the first API process creates the first API key and the first account
                extra["EVERPUT_FIRST_START"] = "1"
            self._children["api"].append(
                Child(
                    f"api-{number + 1}",
                    ["api"],
                    environment={**environment, **extra},
                    kafka=access,
                    descriptors={"EVERPUT_LISTEN_FD": listening},
                    prefork=self._prefork,
                )
            )
        server_id = files.server_id(self._options.data_dir)
        for number in range(self._counts["worker"]):
            name = f"worker-{number + 1}"
            names = {"EVERPUT_PROCESS": name, "EVERPUT_WORKER_NAME": f"everput-{server_id}-{name}"}
            self._children["worker"].append(
                Child(name, ["worker"], environment={**environment, **names}, kafka=access, prefork=self._prefork)
            )

    def _all(self) -> list[Child]:
        return [child for children in self._children.values() for child in children]

    async def _announce(self, url: str) -> None:
        # While the inner loop waits for one process, another that was ready may die. So check all processes again.
        while not all(child.ready.is_set() for child in self._all()):
            for child in self._all():
                await child.ready.wait()
        from cli.processes.first_start import EMAIL

        options = self._options
        key_file, password = files.api_key_file(options.data_dir), files.console_password_file(options.data_dir)
        console = f"{(options.public_url or url).rstrip('/')}/console"
        _log.info("api-key", path=key_file)
        _log.info("console", url=console, **({"email": EMAIL, "password_in": password} if password.exists() else {}))
        write_secret(files.url_file(options.data_dir), url)
        print(f"ready {url}", flush=True)
        if options.log_format == "text":
            from cli.printing import say  # import late, because this import takes longer than the rest of the method

            # Wait until all earlier log lines are written, so that the lines below are the last ones on the terminal.
            logging.getLogger().handlers[0].flush()
            sign_in = f"  (sign in as {EMAIL}; the password is in {password})" if password.exists() else ""
            say("Everput is ready.", err=True)
            say(f"  API      {options.public_url or url}", err=True)
            say(f"  Console  {console}{sign_in}", err=True)
            say(f"  API key  in {key_file}", err=True)
            if set(_LOOPBACK) <= set(options.allow_network):
                say("  Listeners may be on this machine, because only this machine can reach the API.", err=True)

    async def _keep_kafka(self, kafka: EmbeddedKafka, access: asyncio.Future[EmbeddedAccess | None]) -> None:
        """Start Kafka, and restart it on the same port whenever it has died. This loop is endless."""
        loop = asyncio.get_running_loop()
        pauses = Pauses()
        await kafka.start()
        while True:
            started_s = loop.time()
            _log.info("process.started", process="kafka", pid=kafka.pid, address=kafka.bootstrap)
            if not access.done():
                access.set_result(kafka.access)
            await kafka.wait()
            again = False
            while not again:
                pause_s = pauses.after(loop.time() - started_s)
                _log.error("process.died", process="kafka", again_in_s=pause_s)
                await asyncio.sleep(pause_s)
                started_s = loop.time()
                try:
                    await kafka.restart()
                    again = True
                except (BrokerError, OSError) as error:
                    _log.error("kafka.did-not-start", reason=error)

    async def _stop_all(self, tasks: list[asyncio.Task[None]], admin: contextlib.AsyncExitStack) -> None:
        """Stop the API processes first, then the workers, then Kafka. Kill each process that does not end within its
        timeout.
        """
        _log.info("stopping")
        await asyncio.gather(admin.aclose(), *(child.stop(timeout_s=API_STOP_S) for child in self._children["api"]))
        await asyncio.gather(*(child.stop(timeout_s=WORKER_STOP_S) for child in self._children["worker"]))
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        if self._kafka is not None:
            try:
                await asyncio.wait_for(self._kafka.stop(), KAFKA_STOP_S)
                _log.info("process.stopped", process="kafka")
            except TimeoutError:
                self._kafka.kill()
                _log.warning("process.killed", process="kafka", reason=f"did not stop within {KAFKA_STOP_S:g} s")
        _log.info("stopped")

    def _signalled(self, stop: asyncio.Event) -> None:
        if not stop.is_set():
            stop.set()
            return
        _log.warning("stopping-at-once", reason="a second signal")
        for child in self._all():
            child.kill()
        if self._kafka is not None:
            with contextlib.suppress(ProcessLookupError):
                self._kafka.kill()
        logging.shutdown()
        os._exit(1)
