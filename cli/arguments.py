"""The arguments QUEUE and LISTENER, which a shell can complete.

For: asking the API for names while a command line is typed. Not for: finding the id of a name (api_commands.py).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import click
from click.shell_completion import CompletionItem

from broker.core.alerts import DEFAULTS
from broker.errors import BrokerError
from cli.api_options import connection
from everput import Client, EverputError, list_listeners, list_queues

_ANSWER_S: Final = 1.0  # The most seconds that the completion of a command line in a shell waits for the API.
_NAMES_MAX: Final = 1_000


def _names(context: click.Context, list_names: Callable[[Client], list[str]]) -> list[str]:
    """Return names for the completion of a command line in a shell: the first _NAMES_MAX that `list_names` gets from
    the API. Return an empty list if the API refuses, or does not answer within _ANSWER_S seconds.
    """
    found: list[str] = []

    def ask() -> None:
        given = context.params
        with suppress(BrokerError, EverputError, ValueError):
            at = connection(
                url=given.get("url"),
                key=given.get("key"),
                profile=given.get("profile"),
                data_dir=given.get("data_dir") or Path("data"),
            )
            with Client(*at, give_up_after_s=0.0, refused_at_once=True) as client:
                found.extend(list_names(client)[:_NAMES_MAX])

    request = threading.Thread(target=ask, daemon=True)
    request.start()
    request.join(_ANSWER_S)
    return list(found)


def _queues(client: Client) -> list[str]:
    return [queue.name for queue in client.send(list_queues()).queues]


class QueueName(click.ParamType):
    """The type of an argument that is the name or id of a queue. A shell can complete the name."""

    name = "queue"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:  # noqa: ARG002 - click's signature
        return [CompletionItem(name) for name in _names(ctx, _queues) if name.startswith(incomplete)]


class ListenerName(click.ParamType):
    """The type of an argument that is the name or id of a listener of the queue in the previous argument. A shell can
    complete the name if the previous argument is the queue's name, not its id.
    """

    name = "listener"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:  # noqa: ARG002 - click's signature
        queue = ctx.params.get("queue")

        def listeners(client: Client) -> list[str]:
            for found in client.send(list_queues(name=queue)).queues:
                return [listener.name for listener in client.send(list_listeners(found.id)).listeners]
            return []

        return [CompletionItem(name) for name in _names(ctx, listeners) if name.startswith(incomplete)]


def queue_argument(command: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a command with the argument QUEUE."""
    return click.argument("queue", type=QueueName())(command)


def listener_arguments(command: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a command with the arguments QUEUE and LISTENER."""
    return queue_argument(click.argument("listener", type=ListenerName())(command))


class _Threshold(click.ParamType):
    """A threshold of alerts, such as `parked=10`."""

    name = "name=number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, tuple):
            return value
        name, _, number = str(value).partition("=")
        if name not in asdict(DEFAULTS) or not number.isascii() or not number.isdigit():
            names = ", ".join(asdict(DEFAULTS))
            self.fail(f"{value!r} is not a threshold such as parked=10; the names: {names}", param, ctx)
        return name, int(number)


def _together(_context: click.Context, _parameter: click.Parameter, values: Sequence[Any]) -> dict[str, int] | None:
    return dict(values) or None


# Each option `--alert NAME=NUMBER` sets one threshold. The command gets them as one dict, or None without the option.
alert_option = click.option(
    "--alert",
    "alerts",
    type=_Threshold(),
    multiple=True,
    callback=_together,
    metavar="NAME=NUMBER",
    help="Threshold from which Everput alerts; 0 for never. May be repeated. All thresholds that were set before are "
    "replaced. Defaults: " + ", ".join(f"{name}={value}" for name, value in asdict(DEFAULTS).items()) + ".",
)
