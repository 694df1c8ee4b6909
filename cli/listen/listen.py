"""`everput listen`: deliver the messages of queues to addresses on this machine, however far away the API is.

For: the command and its keys. Not for: addresses and filters (targets.py), the WebSocket and the local address
(tunnel_client.py), the lines (show.py), the keyboard (keys.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import Callable, Container, Coroutine, Mapping, Sequence
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import click

import everput
from broker.errors import BrokerError, ConfigurationError, NotFound
from cli.api_commands import api_client, find_queue
from cli.api_options import api_options, is_here
from cli.arguments import QueueName
from cli.groups import examples
from cli.listen.batches import accepted
from cli.listen.keys import HELP, Action, History, Keyboard, is_ours, keys
from cli.listen.show import Show
from cli.listen.targets import Address, Filter, names_of, wanted
from cli.listen.tunnel_client import Lost, TunnelClient
from cli.printing import say, say_error

GIVE_UP_AFTER_S = 10.0


class _Place(NamedTuple):
    """A listener of `everput listen`: its queue, its name, and the local address that gets its messages."""

    queue: str
    queue_id: str
    name: str
    target: str


@click.command(
    "listen",
    epilog=examples(
        "everput listen orders --to 3000",
        "everput listen orders invoices --to localhost:3000/hook --filter 'name=order-*' --temporary",
    ),
)
@click.argument("queues", metavar="QUEUE...", nargs=-1, required=True, type=QueueName())
@click.option(
    "--to",
    "to",
    type=Address(),
    multiple=True,
    required=True,
    metavar="ADDRESS",
    help="Local address that gets the messages by POST: 3000, localhost:3000, or a URL. May be repeated.",
)
@click.option(
    "--name",
    multiple=True,
    metavar="NAME",
    help="Name of the listener, one for each --to. Default: made of the address and this machine's name.",
)
@click.option(
    "--filter",
    "filters",
    type=Filter(),
    multiple=True,
    metavar="FIELD=PATTERN",
    help="Pass on only messages whose name, data or queue matches, such as name=order-*. Others are accepted and "
    "dropped. A batch is passed on whole if one of its messages matches. May be repeated.",
)
@click.option(
    "--temporary",
    is_flag=True,
    help="At the end, delete each listener that this command has created, with the messages that wait for it.",
)
@api_options
@click.option("--once", is_flag=True, help="End after one accepted message.")
@click.option("--body", is_flag=True, help="Show the bodies of messages.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
def command(
    *,
    queues: Sequence[str],
    to: Sequence[str],
    name: Sequence[str],
    filters: Sequence[tuple[str, str]],
    temporary: bool,
    url: str,
    key: str,
    once: bool,
    body: bool,
    as_json: bool,
) -> None:
    """Deliver the messages of each QUEUE (a name or an ID) to addresses on this machine.

    For each QUEUE and each --to, there is a listener. A new listener gets the messages that are put from now on. When
    the command ends, the listener stays, and its messages wait until the same command is started again. With
    --temporary, a listener that this command has created is deleted instead.

    While the command runs, anybody who may put messages on the queue can send requests to these addresses. At a
    terminal, press r to send the last request again, b to show bodies, l to list the requests, and q to quit.
    """
    names = names_of(to, name, temporary=temporary)
    terminal = not as_json and sys.stdout.isatty() and is_ours(sys.stdin.fileno())
    places = _places(url, key, queues, list(zip(names, to, strict=True)))
    say(risk(url, queues, to), err=True)
    show = Show(body=body, as_json=as_json)
    listening = _Listening(show, once=once, terminal=terminal, new_names=temporary and not name)
    # An exception that an `except*` block raises would come in a group, so raise it after the block.
    failure: BaseException | None = None
    lost: BaseException | None = None
    try:
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(listening.run(url, key, places, partial(wanted, filters) if filters else None))
    except* Lost as group:
        lost = group.exceptions[0]
    except* ConfigurationError as group:
        failure = group.exceptions[0]
    finally:
        _end(url, key, listening.served, listening.created if temporary and lost is None else set())
    if lost is not None:
        say_error(f"everput: {lost}")
        sys.exit(1)
    if failure is not None:
        raise failure


def risk(url: str, queues: Sequence[str], targets: Sequence[str]) -> str:
    """Return the warning about who can send requests to the local addresses `targets`."""
    ours = f"{', '.join(targets)} on this machine"
    may = f"anybody who may put messages on {', '.join(queues)} at {url} decides what is sent"
    if is_here(url):
        return f"Until this command ends (Ctrl-C), {may} to {ours}."
    return f"This lets the internet reach {ours}: until this command ends (Ctrl-C), {may} there."


def _places(url: str, key: str, queues: Sequence[str], targets: Sequence[tuple[str, str]]) -> list[_Place]:
    """Find the queues by name or id. Return the listeners to serve: one for each queue and each local address. Raises
    ConfigurationError if a queue is missing.
    """
    try:
        with api_client(url, key, give_up_after_s=GIVE_UP_AFTER_S) as client:
            ids = [(queue, find_queue(client, queue)) for queue in dict.fromkeys(queues)]
    except NotFound as error:
        raise ConfigurationError(str(error)) from error
    return [_Place(queue, queue_id, name, target) for (queue, queue_id), (name, target) in product(ids, targets)]


def _end(url: str, key: str, served: Mapping[str, _Place], temporary: Container[str]) -> None:
    """Delete those listeners of this run whose ids are in `temporary`. For each other listener of this run, print that
    it stays.
    """
    for listener_id, place in served.items():
        if listener_id not in temporary:
            say(
                f"The listener {place.name} of {place.queue} stays, and its messages wait. To delete it: "
                f"everput listeners delete {place.queue_id} {listener_id}",
                err=True,
            )
            continue
        try:
            with api_client(url, key, give_up_after_s=GIVE_UP_AFTER_S) as client:
                client.send(everput.delete_listener(place.queue_id, listener_id))
        except BrokerError as error:
            say_error(f"everput: the listener {place.name} could not be deleted: {error}")
        else:
            say(f"Deleted the temporary listener {place.name} of {place.queue}.", err=True)


async def _show_secret(url: str, key: str, place: _Place, listener_id: str) -> None:
    """Print the secret that signs a listener's requests, for the program on this machine that gets them. Print nothing
    if the API refuses or does not answer.
    """
    with contextlib.suppress(everput.EverputError):
        async with everput.AsyncClient(url, key, give_up_after_s=GIVE_UP_AFTER_S) as client:
            secret = (await client.send(everput.get_secret(place.queue_id, listener_id))).secret
            say(f"Requests of {place.name} are signed with the secret {secret}", err=True)


class _Listening:
    """A run of `everput listen`. At a terminal, it reads key presses, and gives each request a number.

    `served` maps the id of each listener that got a tunnel to its queue, name and local address. `created` has the ids
    of the listeners that this run has created. With `new_names`, each listener's name has a random part, so this run
    creates all of its listeners.
    """

    def __init__(self, show: Show, *, once: bool, terminal: bool, new_names: bool) -> None:
        self.served: dict[str, _Place] = {}
        self.created: set[str] = set()
        self._show = show
        self._once = once
        self._terminal = terminal
        self._new_names = new_names
        self._end = asyncio.Event()
        self._history = History()
        self._keyboard = Keyboard()
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(
        self,
        url: str,
        key: str,
        places: Sequence[_Place],
        wants: Callable[[dict[str, Any]], bool] | None,
    ) -> None:
        """Keep a tunnel open for each listener in `places` until the command ends.

        Raises an exception group. It has the error Lost if a tunnel has ended for good, for example because the
        listener was deleted. It has a ConfigurationError if the API refuses a tunnel.
        """

        showing: list[asyncio.Task[None]] = []

        def on_event(place: _Place, event: str, **fields: Any) -> None:
            if event == "listening":
                # If the listener's name has a random part, this run created the listener, even if `created` is false.
                # `created` is false if the listener exists already, for example because an earlier answer was lost.
                if self._new_names or fields.get("created", False):
                    self.created.add(fields["id"])
                if fields["id"] not in self.served:
                    self.served[fields["id"]] = place
                    showing.append(asyncio.create_task(_show_secret(url, key, place, fields["id"])))
            self._told(event, **fields)

        clients = [
            TunnelClient(url, key, place.queue_id, place.name, place.target, partial(on_event, place), wants)
            for place in places
        ]
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self._end.set)
        with keys(sys.stdin.fileno(), self._pressed) if self._terminal else contextlib.nullcontext():
            if self._terminal:
                say(HELP, err=True)
            async with asyncio.TaskGroup() as group:
                running = [group.create_task(client.run()) for client in clients]
                await self._end.wait()
                for one in (*running, *self._tasks):
                    one.cancel()
            if showing:  # `--once` can end the command before the signing secret is shown, so wait for the secret.
                await asyncio.wait(showing, timeout=GIVE_UP_AFTER_S)

    def _told(
        self,
        event: str,
        *,
        request: dict[str, Any] | None = None,
        resend: Callable[[int], Coroutine[Any, Any, None]] | None = None,
        number: int | None = None,
        **fields: Any,
    ) -> None:
        if self._terminal and request is not None and resend is not None:
            number = self._history.add(request, fields, partial(self._resend, resend)).number
        self._show(event, number=number, **fields)
        if self._once and event == "answered" and accepted(fields):
            self._end.set()

    def _resend(self, resend: Callable[[int], Coroutine[Any, Any, None]], number: int) -> None:
        self._start(resend(number))

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _pressed(self, key: str) -> None:
        action = self._keyboard.pressed(key)
        if action is not None:
            self._act(action)

    def _act(self, action: Action) -> None:
        """Perform the action of a key."""
        show, number = self._show, action.number
        if action.name == "quit":
            self._end.set()
        elif action.name == "help":
            show.say(HELP)
        elif action.name == "list":
            for one in self._history:
                show.again(one.number, one.fields)
            show.say(f"{self._history.count} requests so far")
        elif action.name == "body" and number is None:
            show.body = not show.body
            show.say("bodies are shown" if show.body else "bodies are hidden")
        elif (found := self._history.find(number)) is None:
            show.say("no requests yet" if number is None else f"#{number} is not in the list of the last requests")
        elif action.name == "body":
            show.one_body(found.request["body"])
        else:
            found.resend(found.number)
