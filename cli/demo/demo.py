"""`everput demo`: messages put over REST, two listeners, one of which fails for a while, and a killed worker.

For: the course of the demo and its verdict. Not for: the processes (server.py), the listeners
(listeners.py), how it looks (view.py). Everything is real and in a temporary folder that goes at the end."""

from __future__ import annotations

import asyncio
import base64
import itertools
import os
import shlex
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

import click

from broker.errors import ConfigurationError
from cli.api_commands import errors_as_refusals
from cli.demo.server import DemoListeners, DemoServer
from cli.demo.view import Row, View
from cli.groups import examples
from cli.publish import Publisher
from everput import AsyncClient, EverputError, create_listener, create_queue, put_message

MESSAGES: Final = Path(__file__).with_name("messages.jsonl")
QUEUE: Final = "myapp.io/deletion-request-queue"
STEADY: Final = "crm"
FAILING: Final = "mail"
# Once a quarter of all messages has been put, the listener FAILING begins to refuse messages.
REFUSE_FROM: Final = 0.25
KILL_AT: Final = 0.5
ACCEPT_AFTER_S: Final = 2.0  # seconds after the last put
TICK_S: Final = 0.1
# If no message is put or received for 40 s, the demo gives up. Kafka notices a killed worker sooner.
PATIENCE_S: Final = 40.0
CONCURRENCY: Final = 16
_OVER: Final = object()

NEXT: Final = """\
What to try next:
  Run a server. It stores an API key in data/api-key:
    {everput} serve
  Create a queue, in another terminal in the same folder:
    {everput} queues create my-queue
  POST the messages of the queue to a program of yours on port 3000:
    {everput} listen my-queue --to 3000
  Put each line of a file on the queue, in a third terminal:
    {everput} put my-queue messages.txt
  Open the console in a browser. The password for admin@everput.local is in data/console-password:
    http://127.0.0.1:8080/console"""


@click.command("demo", epilog=examples("everput demo", "everput demo orders.jsonl --messages 5000"))
@click.argument(
    "file", type=click.Path(path_type=Path, dir_okay=False, exists=True), default=MESSAGES, metavar="[FILE]"
)
@click.option(
    "--messages",
    type=click.IntRange(min=1),
    help="Number of messages. A short FILE is repeated. Default: all lines of FILE.",
)
@click.option(
    "--pace-s",
    type=click.FloatRange(min=0),
    default=8.0,
    show_default=True,
    help="Seconds over which the messages are put.",
)
def command(*, file: Path, messages: int | None, pace_s: float) -> None:
    """Show Everput's promise: every message arrives at two listeners, although one of them refuses messages for a while
    and a worker is killed.

    Each line of FILE that is not empty is a message. Without FILE, the messages are 2,000 examples: requests to delete
    an account. The exit code is 1 if a message could not be put, did not arrive, or had a wrong signature.
    """
    lines = [line for line in file.read_text().splitlines() if line]
    if not lines:
        raise ConfigurationError(f"{file} holds no messages: write one message on each line")
    total = messages or len(lines)
    with tempfile.TemporaryDirectory(prefix="everput-demo-") as folder:
        try:
            complete = asyncio.run(_run(Path(folder), list(itertools.islice(itertools.cycle(lines), total)), pace_s))
        except asyncio.CancelledError:
            sys.exit(128 + signal.SIGTERM)
    if not complete:
        sys.exit(1)


async def _run(folder: Path, messages: list[str], pace_s: float) -> bool:
    this = asyncio.current_task()
    # On SIGTERM, cancel the demo like after Ctrl-C, so that it stops its processes and deletes its files.
    if this is not None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, this.cancel)
    async with AsyncExitStack() as stack:
        return await Demo(folder, messages, pace_s).run(stack)


class Demo:
    """A run of the demo."""

    def __init__(self, folder: Path, messages: list[str], pace_s: float) -> None:
        self._messages = messages
        self._pace_s = pace_s
        secrets = {name: "whsec_" + base64.b64encode(os.urandom(24)).decode() for name in (STEADY, FAILING)}
        self._secrets = secrets
        self._server = DemoServer(folder / "data")
        self._listeners = DemoListeners(secrets)
        self._view = View(len(messages))
        self._put: set[str] = set()
        self._refusals: list[EverputError] = []

    async def run(self, stack: AsyncExitStack) -> bool:
        """Run the demo. Return whether every message was put, and arrived at every listener with a right signature."""
        self._view.say("starting Kafka (the first start downloads 45 MB), the API, workers and two listeners")
        stack.push_async_callback(self._listeners.stop)
        stack.push_async_callback(self._server.stop)
        await asyncio.gather(self._server.start(), self._listeners.start())
        self._view.say(f"ready: {self._server.url}")
        async with Publisher(self._server.url, self._server.api_key, concurrency=CONCURRENCY) as publisher:
            queue_id = await self._create(publisher.client(0))
            putting = asyncio.create_task(self._put_all(publisher, queue_id))
            with self._view:
                await self._watch(putting)
            await putting
        return await self._verdict()

    async def _create(self, client: AsyncClient) -> str:
        with errors_as_refusals(self._server.url):
            queue_id = (await client.send(create_queue(QUEUE))).queue.id
            for name, secret in self._secrets.items():
                base = f"http://127.0.0.1:{self._listeners.ports[name]}"
                urls = {"notify_url": f"{base}/notify", "liveness_url": f"{base}/live"}
                await client.send(create_listener(queue_id, name=name, secret=secret, **urls))
        self._view.say(f"created the queue {QUEUE} with the listeners {STEADY} and {FAILING}")
        return queue_id

    async def _put_all(self, publisher: Publisher, queue_id: str) -> None:
        started_s = time.monotonic()
        every_s = self._pace_s / len(self._messages)
        numbered = iter(enumerate(self._messages))

        async def send(task: int, mine: Iterator[tuple[int, str]]) -> None:
            for number, data in mine:
                await asyncio.sleep(max(0.0, started_s + number * every_s - time.monotonic()))
                try:
                    put = await publisher.client(task).send(put_message(queue_id, data))
                except EverputError as error:
                    self._refusals.append(error)
                else:
                    self._put.add(put.message.id)

        async with asyncio.TaskGroup() as group:
            for task in range(CONCURRENCY):
                group.create_task(send(task, numbered))

    async def _watch(self, putting: asyncio.Task[None]) -> None:
        """Cause the demo's failures (one listener refuses messages, and a worker is killed), and show the numbers of
        messages. Return when the failures are over and every message that was put has arrived.

        Also return if no message was put or received for PATIENCE_S seconds.
        """
        course = self._course(putting)
        progress: object = None
        moved_s = time.monotonic()
        while True:
            over = next(course, _OVER) is _OVER
            rows = self._rows()
            self._view.show(len(self._put), rows)
            arrived = over and all(row.waiting <= 0 for row in rows)
            seen = (len(self._put), [row.received for row in rows])
            if seen != progress:
                progress, moved_s = seen, time.monotonic()
            if arrived or time.monotonic() - moved_s > PATIENCE_S:
                self._view.show(len(self._put), rows, now=True)
                return
            await asyncio.sleep(TICK_S)

    def _course(self, putting: asyncio.Task[None]) -> Iterator[None]:
        """Let the listener FAILING refuse messages, kill a worker, and later let the listener accept messages again.

        This generator is resumed every TICK_S seconds, so each `yield` is a pause of TICK_S seconds.
        """
        server, listeners, view = self._server, self._listeners, self._view
        while len(self._put) < REFUSE_FROM * len(self._messages) and not putting.done():
            yield
        listeners.tell({"refuse": FAILING})
        view.say(f"{FAILING} refuses from now on: 503, and its liveness_url too")
        while len(self._put) < KILL_AT * len(self._messages) and not putting.done():
            yield
        killed = server.kill_worker()
        view.say(f"kill -9 {killed}: a worker is gone; putting goes on")
        while server.pids["worker-1"] == killed or "worker-1" not in server.ready:
            yield
        view.say(f"the supervisor has started another worker: {server.pids['worker-1']}")
        while not putting.done():
            yield
        done_s = time.monotonic()
        view.say(f"all {len(self._put):,} are put")
        while time.monotonic() < done_s + ACCEPT_AFTER_S:
            yield
        listeners.tell({"accept": FAILING})
        view.say(f"{FAILING} is back")

    def _rows(self) -> list[Row]:
        return [
            Row(
                name=name,
                state="refuses" if counts["refusing"] else "takes them",
                received=counts["received"],
                waiting=len(self._put) - counts["received"],
                refused=counts["refused"],
                retries=counts["again"],
                duplicates=counts["duplicates"],
            )
            for name, counts in self._listeners.counts.items()
        ]

    async def _verdict(self) -> bool:
        everything = await self._listeners.everything()
        say = self._view.say
        complete = not self._refusals
        for refusal in self._refusals[:5]:
            say(f"a message was not taken: {refusal}")
        for name, received in everything.items():
            missing = len(self._put - received.keys())
            duplicates = sum(received.values()) - len(received)
            forged = self._listeners.counts[name]["forged"]
            unknown = len(received.keys() - self._put)
            complete = complete and not missing and not forged
            say(
                f"{name}: {len(self._put):,} put, {len(received):,} received, {duplicates:,} duplicates,"
                f" {missing:,} missing"
                + (f", {unknown:,} stored although the put was not answered" if unknown else "")
                + (f", {forged:,} with a wrong signature" if forged else "")
            )
        if any(sum(received.values()) > len(received) for received in everything.values()):
            say("duplicates: sent again after the kill -9, with the same webhook-id; a second's worth at most")
        say("nothing is missing" if complete else "NOT everything arrived")
        self._view.console.print(NEXT.format(everput=_this_command()), soft_wrap=True, markup=False)
        return complete


def _this_command() -> str:
    """Return the command with which a shell starts this `everput`: the name if it is on the PATH, else the path of the
    file. After `make demo`, for example, `everput` is not on the PATH.
    """
    if shutil.which("everput"):
        return "everput"
    return shlex.quote(os.path.relpath(Path(sys.executable).with_name("everput")))
