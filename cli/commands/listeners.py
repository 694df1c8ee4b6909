"""`everput listeners`: everything about listeners. Not for: asking and showing (api_commands.py)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import IO, Any, Final

import click

import everput
from cli.api_commands import asks, find_listener, find_queue, show, show_all
from everput import Client

NO_LIMIT: Final = object()  # said; None is not said


@click.group("listeners")
def command() -> None:
    """See and change the listeners of a queue. QUEUE and LISTENER are names or ids."""


def _headers(_context: click.Context, _parameter: click.Parameter, values: Sequence[str]) -> dict[str, str] | None:
    found = dict(value.partition(":")[::2] for value in values)
    return {name.strip(): value.strip() for name, value in found.items()} or None


class _OrNone(click.ParamType):
    """A number, or `none` for no limit: the API's null."""

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
    click.option("--max-in-flight", type=int, help="Requests under way at once."),
    click.option("--rate-per-s", type=_OrNone(float), help="Requests a second, or none for no limit."),
    click.option("--timeout-ms", type=int, help="Of one attempt."),
    click.option("--max-attempts", type=_OrNone(int), help="Then a delivery is parked; none: by its age alone."),
    click.option("--max-age-s", type=int, help="Older deliveries are parked."),
    click.option("--retry-first-ms", type=int, help="The longest wait after the first failure; it doubles with each."),
    click.option("--retry-max-s", type=int, help="The longest wait after any failure."),
    click.option(
        "--header", "headers", multiple=True, metavar="NAME:VALUE", callback=_headers, help="Of each request."
    ),
)
# A file, for a command line is public.
_secret = click.option(
    "--secret-file", "secret", type=click.File(), help="Its first line is the secret; - for standard input."
)


def _settings(decorated: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(_SETTINGS):
        decorated = option(decorated)
    return decorated


def _said(values: dict[str, Any]) -> dict[str, Any]:
    said = {name: value for name, value in values.items() if value is not None}
    return {name: None if value is NO_LIMIT else value for name, value in said.items()}


def _line(secret: IO[str] | None) -> str | None:
    return None if secret is None else secret.readline().strip()


@command.command("list")
@click.argument("queue")
@asks
def list_(client: Client, *, queue: str, as_json: bool) -> None:
    """List a queue's listeners, oldest first."""
    pages = client.pages(everput.list_listeners(find_queue(client, queue)))
    columns = {"id": "id", "name": "name", "notify_url": "notify_url", "paused": "paused"}
    show_all((listener for page in pages for listener in page.listeners), columns, as_json=as_json)


@command.command("get")
@click.argument("queue")
@click.argument("listener")
@asks
def get(client: Client, *, queue: str, listener: str, as_json: bool) -> None:
    """Show a listener and how it is doing."""
    show(client.send(everput.get_listener(*find_listener(client, queue, listener))).listener, as_json=as_json)


@command.command("create")
@click.argument("queue")
@click.argument("name")
@click.option("--notify-url", required=True, help="Where the messages are sent.")
@click.option("--liveness-url", required=True, help="What is asked while the listener is down.")
@click.option("--from", "begin", help="now (the default), beginning, or a time.")
@_settings
@_secret
@asks
def create(client: Client, *, queue: str, secret: IO[str] | None, as_json: bool, **values: Any) -> None:
    """Make a listener; the answer shows its signing secret."""
    values["secret"] = _line(secret)
    made = client.send(everput.create_listener(find_queue(client, queue), **_said(values)))
    show(made.listener, as_json=as_json)


@command.command("update")
@click.argument("queue")
@click.argument("listener")
@click.option("--name", help="Another name.")
@click.option("--notify-url", help="Pending deliveries go there, too.")
@click.option("--liveness-url", help="What is asked while the listener is down.")
@_settings
@asks
def update(client: Client, *, queue: str, listener: str, as_json: bool, **values: Any) -> None:
    """Change what is said and leave the rest."""
    request = everput.update_listener(*find_listener(client, queue, listener), **_said(values))
    show(client.send(request).listener, as_json=as_json)


@command.command("delete")
@click.argument("queue")
@click.argument("listener")
@click.confirmation_option(prompt="Its pending deliveries are cancelled. Delete it?")
@asks
def delete(client: Client, *, queue: str, listener: str, as_json: bool) -> None:
    """Delete a listener; its pending deliveries are cancelled."""
    show(client.send(everput.delete_listener(*find_listener(client, queue, listener))).listener, as_json=as_json)


@command.command("pause")
@click.argument("queue")
@click.argument("listener")
@asks
def pause(client: Client, *, queue: str, listener: str, as_json: bool) -> None:
    """Send a listener nothing for now."""
    show(client.send(everput.pause_listener(*find_listener(client, queue, listener))).listener, as_json=as_json)


@command.command("resume")
@click.argument("queue")
@click.argument("listener")
@asks
def resume(client: Client, *, queue: str, listener: str, as_json: bool) -> None:
    """Send a paused listener its messages again."""
    show(client.send(everput.resume_listener(*find_listener(client, queue, listener))).listener, as_json=as_json)


@command.command("test")
@click.argument("queue")
@click.argument("listener")
@asks
def test(client: Client, *, queue: str, listener: str, as_json: bool) -> None:
    """Send a listener one marked message; the exit code is 1 unless it takes it."""
    answer = client.send(everput.send_test(*find_listener(client, queue, listener))).test
    show(answer, as_json=as_json)
    if answer.status is None or not 200 <= answer.status < 300:
        raise click.exceptions.Exit(1)


@command.command("secret")
@click.argument("queue")
@click.argument("listener")
@asks
def secret(client: Client, *, queue: str, listener: str, as_json: bool) -> None:
    """Show a listener's signing secret."""
    show(client.send(everput.get_secret(*find_listener(client, queue, listener))), as_json=as_json)


@command.command("rotate-secret")
@click.argument("queue")
@click.argument("listener")
@click.option("--overlap-s", type=int, help="How long the former secret signs, too.")
@_secret
@asks
def rotate_secret(
    client: Client, *, queue: str, listener: str, overlap_s: int | None, secret: IO[str] | None, as_json: bool
) -> None:
    """Change the signing secret to a new one, or to the one that is given."""
    place = find_listener(client, queue, listener)
    request = everput.rotate_secret(*place, secret=_line(secret), overlap_s=overlap_s)
    show(client.send(request), as_json=as_json)
