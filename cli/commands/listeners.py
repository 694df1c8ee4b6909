"""`everput listeners`: list, show, create, change, pause, test and delete listeners.

Not for: requests and output (api_commands.py)."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import IO, Any, Final

import click
from msgspec import UNSET

import everput
from cli.api_commands import asks, find_listener, find_queue, show, show_all, show_deleted
from cli.arguments import alert_option, listener_arguments, queue_argument
from cli.groups import Group, examples
from cli.printing import say
from cli.steps import steps, took
from cli.visible import visible
from everput import Client

# If the user gives `none` as an option's value, the value becomes this object. None stands for an option not given.
NO_LIMIT: Final = object()
# For each field of a listener's `batch`: the option `--batch-…` that sets the field, such as --batch-messages.
_BATCH: Final = {"max_messages": "messages", "max_bytes": "bytes", "wait_ms": "wait_ms"}


@click.group("listeners", cls=Group)
def command() -> None:
    """List, show, create, change, pause, resume, test and delete the listeners of a queue; show and replace their
    signing secrets. QUEUE and LISTENER are names or IDs.
    """


def _headers(_context: click.Context, _parameter: click.Parameter, values: Sequence[str]) -> dict[str, str] | None:
    found = dict(value.partition(":")[::2] for value in values)
    return {name.strip(): value.strip() for name, value in found.items()} or None


class _OrNone(click.ParamType):
    """The type of an option whose value is a number or the word `none`. The word becomes the object NO_LIMIT."""

    name = "number"

    def __init__(self, kind: type[int | float]) -> None:
        self._kind = kind

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "none":
            return NO_LIMIT
        try:
            return self._kind(value)
        except ValueError:
            self.fail(f"{value!r} is neither a number nor none", param, ctx)


_SETTINGS = (
    click.option("--max-in-flight", type=int, help="Most requests to the listener at a time.  [default: 64]"),
    click.option(
        "--rate-per-s", type=_OrNone(float), help="Most deliveries per second, or none for no limit.  [default: none]"
    ),
    click.option("--timeout-ms", type=int, help="Timeout of an attempt, in milliseconds.  [default: 15000]"),
    click.option(
        "--max-attempts",
        type=_OrNone(int),
        help="Park a delivery after this many attempts, or none for no limit.  [default: none]",
    ),
    click.option(
        "--max-age-s", type=int, help="Park a delivery this many seconds after its first attempt.  [default: 259200]"
    ),
    click.option(
        "--retry-first-ms",
        type=int,
        help="Longest delay after the first failure, in milliseconds; it doubles with each.  [default: 1000]",
    ),
    click.option("--retry-max-s", type=int, help="Longest delay between two attempts, in seconds.  [default: 3600]"),
    click.option(
        "--header",
        "headers",
        multiple=True,
        metavar="NAME:VALUE",
        callback=_headers,
        help="Header to add to each request. May be repeated.",
    ),
    alert_option,
    click.option(
        "--format",
        type=click.Choice(["standard", "slack"]),
        help="Format of the requests; slack for Slack's incoming webhooks.  [default: standard]",
    ),
    click.option(
        "--batch-messages",
        type=_OrNone(int),
        help="Send batches of up to this many messages, or none for one message in each request.  [default: none; "
        "with another --batch option: 100]",
    ),
    click.option(
        "--batch-bytes",
        type=int,
        help="Most bytes in the body of a batch. A message that is larger is sent alone.  [default: 1048576]",
    ),
    click.option(
        "--batch-wait-ms",
        type=int,
        help="Longest time that a message waits for others of its batch, in milliseconds.  [default: 100]",
    ),
)
# The secret is read from a file, because other users of the machine can see the arguments of commands.
_secret = click.option(
    "--secret-file",
    "secret",
    type=click.File(),
    help="File whose first line is the signing secret; - for standard input. Default: a new secret.",
)


def _settings(decorated: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(_SETTINGS):
        decorated = option(decorated)
    return decorated


def _said(values: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of an API request that the given options set, by name. Raises click.UsageError if the options
    contradict each other.
    """
    batch = {name: values.pop(f"batch_{option}") for name, option in _BATCH.items()}
    if batch["max_messages"] is NO_LIMIT:
        if batch["max_bytes"] is not None or batch["wait_ms"] is not None:
            raise click.UsageError("--batch-messages none turns batches off; leave out the other --batch options.")
        values["batch"] = NO_LIMIT
    else:
        values["batch"] = {name: value for name, value in batch.items() if value is not None} or None
    said = {name: value for name, value in values.items() if value is not None}
    return {name: None if value is NO_LIMIT else value for name, value in said.items()}


def _line(secret: IO[str] | None) -> str | None:
    return None if secret is None else secret.readline().strip()


@command.command("list", epilog=examples("everput listeners list orders"))
@queue_argument
@asks
def list_(client: Client, *, queue: str, as_json: bool) -> None:
    """List the listeners of a queue, oldest first, with their states and the numbers of their retrying and parked
    deliveries.
    """
    pages = client.pages(everput.list_listeners(find_queue(client, queue)))
    columns = {"id": "id", "name": "name", "state": "health", "retrying": "retrying", "parked": "parked"}
    columns |= {"notify_url": "notify_url", "paused": "paused"}
    show_all((listener for page in pages for listener in page.listeners), columns, as_json=as_json)


@command.command("get", epilog=examples("everput listeners get orders billing"))
@listener_arguments
@asks
def get(client: Client, *, queue: str, listener: str, as_json: bool) -> None:
    """Show a listener's settings, state, backlog and last error."""
    show(client.send(everput.get_listener(*find_listener(client, queue, listener))).listener, as_json=as_json)


@command.command(
    "create",
    epilog=examples(
        "everput listeners create orders billing --notify-url https://shop.example/hook "
        "--liveness-url https://shop.example/live"
    ),
)
@queue_argument
@click.argument("name")
@click.option("--notify-url", required=True, help="URL that gets each message by POST.")
@click.option("--liveness-url", required=True, help="URL that is checked while deliveries fail.")
@click.option(
    "--from",
    "begin",
    help="First message to deliver: now, beginning, or a time such as 2026-01-31T12:00:00Z.  [default: now]",
)
@_settings
@_secret
@asks
def create(client: Client, *, queue: str, secret: IO[str] | None, as_json: bool, **values: Any) -> None:
    """Create a listener and show its signing secret."""
    values["secret"] = _line(secret)
    made = client.send(everput.create_listener(find_queue(client, queue), **_said(values)))
    show(made.listener, as_json=as_json)


@command.command(
    "update",
    epilog=examples(
        "everput listeners update orders billing --max-in-flight 8 --rate-per-s none",
        "everput listeners update orders billing --batch-messages 500 --batch-wait-ms 50",
        "everput listeners update orders billing --batch-messages none",
    ),
)
@listener_arguments
@click.option("--name", help="New name.")
@click.option("--notify-url", help="New URL for messages. Pending deliveries go there, too.")
@click.option("--liveness-url", help="URL that is checked while deliveries fail.")
@_settings
@asks
def update(client: Client, *, queue: str, listener: str, as_json: bool, **values: Any) -> None:
    """Change a listener. Settings without an option keep their values.

    The given --header options replace all headers of the listener. The given --alert options replace all thresholds of
    the listener: for a threshold that is not given, the queue's threshold applies again. If only one or two of the
    --batch options are given, the others are set to their defaults.
    """
    request = everput.update_listener(*find_listener(client, queue, listener), **_said(values))
    show(client.send(request).listener, as_json=as_json)


@command.command("delete", epilog=examples("everput listeners delete orders billing"))
@listener_arguments
@click.confirmation_option(prompt="This cancels its pending deliveries. Delete the listener?")
@asks
def delete(client: Client, *, queue: str, listener: str, as_json: bool) -> None:
    """Delete a listener and cancel its pending deliveries."""
    deleted = client.send(everput.delete_listener(*find_listener(client, queue, listener))).listener
    show_deleted("listener", deleted, as_json=as_json)


@command.command("pause", epilog=examples("everput listeners pause orders billing"))
@listener_arguments
@asks
def pause(client: Client, *, queue: str, listener: str, as_json: bool) -> None:
    """Pause a listener: its messages wait until it is resumed."""
    show(client.send(everput.pause_listener(*find_listener(client, queue, listener))).listener, as_json=as_json)


@command.command("resume", epilog=examples("everput listeners resume orders billing"))
@listener_arguments
@asks
def resume(client: Client, *, queue: str, listener: str, as_json: bool) -> None:
    """Resume a paused listener. The messages that wait for the listener are sent."""
    show(client.send(everput.resume_listener(*find_listener(client, queue, listener))).listener, as_json=as_json)


@command.command("test", epilog=examples("everput listeners test orders billing"))
@listener_arguments
@asks
def test(client: Client, *, queue: str, listener: str, as_json: bool) -> None:
    """Send a listener a test message, and show the listener's answer. A listener with batches gets a batch that holds
    only this message.

    The exit code is 1 if the listener does not accept the message.
    """
    answer = client.send(everput.send_test(*find_listener(client, queue, listener))).test
    if as_json:
        show(answer, as_json=True)
    else:
        result = f"no answer: {answer.error}" if answer.status is None else f"HTTP {answer.status}"
        sent = "one test message" if answer.batch_id is UNSET else "a batch of one test message"
        rejected = ", which rejects the message" if answer.status is not None and answer.error is not None else ""
        say(visible(f"sent {sent}: {result}{rejected}, {took(answer.took_ms)}{steps(answer)}"))
        if answer.answer is not UNSET:
            for header in answer.answer.headers:
                say(visible(f"  {header.name}: {header.value}"))
            for line in answer.answer.body.splitlines():
                say(visible(f"  {line}"))
    if answer.status is None or answer.error is not None or not 200 <= answer.status < 300:
        sys.exit(1)


@command.command("secret", epilog=examples("everput listeners secret orders billing"))
@listener_arguments
@asks
def secret(client: Client, *, queue: str, listener: str, as_json: bool) -> None:
    """Show a listener's signing secret."""
    show(client.send(everput.get_secret(*find_listener(client, queue, listener))), as_json=as_json)


@command.command("rotate-secret", epilog=examples("everput listeners rotate-secret orders billing --overlap-s 3600"))
@listener_arguments
@click.option(
    "--overlap-s",
    type=int,
    help="Seconds for which the previous secret signs, too; 0 if it has leaked.  [default: 86400]",
)
@_secret
@asks
def rotate_secret(
    client: Client, *, queue: str, listener: str, overlap_s: int | None, secret: IO[str] | None, as_json: bool
) -> None:
    """Replace a listener's signing secret."""
    place = find_listener(client, queue, listener)
    request = everput.rotate_secret(*place, secret=_line(secret), overlap_s=overlap_s)
    show(client.send(request), as_json=as_json)
