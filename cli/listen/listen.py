"""`everput listen`: an address on this machine is a listener, however far away the API is.

For: the command, and what its keys do. Not for: the socket and the local address (tunnel_client.py), the lines
(show.py), the keyboard (keys.py)."""

from __future__ import annotations

import asyncio
import contextlib
import platform
import sys
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from hashlib import sha256
from typing import Any

import click

from broker.core.names import NAME_CHARS_MAX
from broker.errors import ConfigurationError, NotFound
from cli.api_commands import api_client, find_queue
from cli.api_options import api_options
from cli.listen.keys import HELP, Action, History, Keyboard, is_ours, keys
from cli.listen.show import Show
from cli.listen.tunnel_client import Lost, TunnelClient
from cli.printing import say, say_error

GIVE_UP_AFTER_S = 10.0


@click.command("listen")
@click.argument("queue")
@click.option("--to", "to", multiple=True, required=True, metavar="URL", help="Where the POSTs go. May be repeated.")
@click.option("--name", multiple=True, metavar="NAME", help="The listener's, one for each --to; else made of it.")
@api_options
@click.option("--once", is_flag=True, help="End when one message was taken.")
@click.option("--body", is_flag=True, help="Show the bodies, too.")
@click.option("--json", "as_json", is_flag=True, help="A JSON object a line.")
def command(
    *, queue: str, to: Sequence[str], name: Sequence[str], url: str, key: str, once: bool, body: bool, as_json: bool
) -> None:
    """Have the messages of QUEUE, which is a name or an id, POSTed to addresses on this machine.

    Each --to is a listener of its own, which stays when this command ends: its messages wait, and come when it is
    started again with the same name. This lets the internet reach these addresses: whoever may put on QUEUE decides
    what is POSTed there, as long as the command runs. At a terminal r sends the last request to the address again, b
    shows bodies, l lists what came, and q quits.
    """
    names = names_of(to, name)
    say(
        f"This lets the internet reach {', '.join(to)} on this machine: whoever may put on {queue} at {url} decides "
        "what is POSTed there, until this command ends (Ctrl-C).",
        err=True,
    )
    terminal = not as_json and sys.stdout.isatty() and is_ours(sys.stdin.fileno())
    listening = _Listening(Show(body=body, as_json=as_json), once=once, terminal=terminal)
    with contextlib.suppress(KeyboardInterrupt):
        try:
            queue_id = _queue(url, key, queue)
            asyncio.run(listening.run(url, key, queue_id, list(zip(names, to, strict=True))))
        except* Lost as group:
            say_error(f"everput: {group.exceptions[0]}")
            sys.exit(1)
        except* ConfigurationError as group:
            raise group.exceptions[0] from None


def _queue(url: str, key: str, queue: str) -> str:
    """Its id (ConfigurationError: there is none)."""
    try:
        with api_client(url, key, give_up_after_s=GIVE_UP_AFTER_S) as client:
            return find_queue(client, queue)
    except NotFound as error:
        raise ConfigurationError(str(error)) from error


def names_of(targets: Sequence[str], given: Sequence[str]) -> Sequence[str]:
    """The listeners' names, one for each address (ConfigurationError: two would have the same)."""
    if given and len(given) != len(targets):
        raise ConfigurationError("give as many --name as --to, or none")
    names = given or [_name(one) for one in targets]
    if len(set(names)) < len(names):
        raise ConfigurationError("two listeners of one name: give each --to a --name of its own")
    return names


def _name(target: str) -> str:
    """One that this address has on this machine each time, and no other."""
    name = f"{target} on {platform.node()}"
    if len(name) <= NAME_CHARS_MAX:
        return name
    digest = sha256(name.encode()).hexdigest()[:16]
    return f"{name[: NAME_CHARS_MAX - len(digest) - 1]} {digest}"


class _Listening:
    """One run of the command. terminal: whether keys are read, and requests numbered for them."""

    def __init__(self, show: Show, *, once: bool, terminal: bool) -> None:
        self._show = show
        self._once = once
        self._terminal = terminal
        self._end = asyncio.Event()
        self._history = History()
        self._keyboard = Keyboard()
        self._resending: set[asyncio.Task[None]] = set()

    async def run(self, url: str, key: str, queue_id: str, targets: Sequence[tuple[str, str]]) -> None:
        """targets: (name, address) of each listener (Lost, ConfigurationError)."""
        clients = [TunnelClient(url, key, queue_id, name, target, self._told) for name, target in targets]
        with keys(sys.stdin.fileno(), self._pressed) if self._terminal else contextlib.nullcontext():
            if self._terminal:
                say(HELP, err=True)
            async with asyncio.TaskGroup() as group:
                running = [group.create_task(client.run()) for client in clients]
                await self._end.wait()
                for one in (*running, *self._resending):
                    one.cancel()

    def _told(
        self,
        event: str,
        *,
        request: dict[str, Any] | None = None,
        resend: Callable[[], Coroutine[Any, Any, None]] | None = None,
        **fields: Any,
    ) -> None:
        number = None
        if self._terminal and request is not None and resend is not None:
            number = self._history.add(request, fields, partial(self._resend, resend)).number
        self._show(event, number=number, **fields)
        if self._once and event == "answered" and 200 <= fields["status"] < 300:
            self._end.set()

    def _resend(self, resend: Callable[[], Coroutine[Any, Any, None]]) -> None:
        task = asyncio.create_task(resend())
        self._resending.add(task)
        task.add_done_callback(self._resending.discard)

    def _pressed(self, key: str) -> None:
        action = self._keyboard.pressed(key)
        if action is not None:
            self._act(action)

    def _act(self, action: Action) -> None:
        """What a key asks for."""
        show, number = self._show, action.number
        if action.name == "quit":
            self._end.set()
        elif action.name == "help":
            show.say(HELP)
        elif action.name == "list":
            for one in self._history:
                show.again(one.number, one.fields)
            show.say(f"{self._history.count} came")
        elif action.name == "body" and number is None:
            show.body = not show.body
            show.say("bodies are shown" if show.body else "bodies are hidden")
        elif (found := self._history.find(number)) is None:
            show.say("nothing came yet" if number is None else f"there is no #{number} (any more)")
        elif action.name == "body":
            show.one_body(found.request["body"])
        else:
            found.resend()
