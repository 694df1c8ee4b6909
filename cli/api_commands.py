"""What the commands that ask the REST API have in common.

For: a client whose errors become the command's, finding things by name or id, showing answers as tables or JSON.
Not for: the options (api_options.py), the requests (everput/)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any, Final

import click
import httpx
import msgspec
from rich import box
from rich.table import Table

from broker.errors import ConfigurationError, NotFound, Refused
from cli.api_options import api_options
from cli.names import NoNames, is_id
from cli.printing import say_json, stdout
from everput import Client, NoAnswer, Problem, get_queue, list_listeners, list_queues
from everput.answers import Answer
from everput.client import AGAIN

GIVE_UP_AFTER_S: Final = 30.0


def asks(command: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator: the options of the API and --json; the command is called with `client` and `as_json`."""

    @api_options
    @click.option("--json", "as_json", is_flag=True, help="JSON as the API shows it; of a list, one object a line.")
    @functools.wraps(command)
    def with_client(*, url: str, key: str, **values: Any) -> Any:
        with api_client(url, key) as client:
            return command(client=client, **values)

    decorated: Callable[..., Any] = with_client
    return decorated


@contextmanager
def api_client(url: str, key: str, *, give_up_after_s: float = GIVE_UP_AFTER_S) -> Iterator[Client]:
    """A client; its errors are as of errors_told()."""
    with errors_as_refusals(url), Client(url, key, give_up_after_s=give_up_after_s) as client:
        yield client


@contextmanager
def errors_as_refusals(url: str) -> Iterator[None]:
    """A client's errors become a command's (Refused; ConfigurationError: no API answers, or it refuses the key)."""
    try:
        httpx.URL(url)
    except (httpx.InvalidURL, ValueError) as error:
        raise ConfigurationError(f"{url} is no URL: {error}") from error
    try:
        yield
    except Problem as error:
        if error.status == HTTPStatus.UNAUTHORIZED:
            raise ConfigurationError(f"the API key was refused: {error}") from error
        if error.status == HTTPStatus.FORBIDDEN:
            raise ConfigurationError(f"this API key may not do that: {error}") from error
        if error.status in AGAIN:
            raise ConfigurationError(f"the API at {url} does not answer: {error}") from error
        raise Refused(str(error)) from error
    except NoAnswer as error:
        raise ConfigurationError(f"the API at {url} does not answer: {error}") from error


def find_queue(client: Client, queue: str) -> str:
    """The id of the queue of this id or name (NotFound; NoNames: the key may not look names up)."""
    try:
        if is_id(queue) and _is_there(client, queue):
            return queue
        for page in client.pages(list_queues(name=queue)):
            for found in page.queues:
                return found.id
    except Problem as error:
        if error.status != HTTPStatus.FORBIDDEN:
            raise
        if is_id(queue):  # what is done with its messages needs no look at the queue
            return queue
        raise NoNames(queue) from error
    raise NotFound(f"no queue has the name or id {queue}")


def _is_there(client: Client, queue_id: str) -> bool:
    try:
        client.send(get_queue(queue_id))
    except Problem as error:
        if error.status != HTTPStatus.NOT_FOUND:
            raise
        return False
    return True


def find_listener(client: Client, queue: str, listener: str) -> tuple[str, str]:
    """The ids of the queue and of its listener of this name or id (NotFound)."""
    queue_id = find_queue(client, queue)
    for page in client.pages(list_listeners(queue_id)):
        for found in page.listeners:
            if listener in (found.id, found.name):
                return queue_id, found.id
    raise NotFound(f"no listener of the queue {queue} has the name or id {listener}")


def show(item: Answer, *, as_json: bool) -> None:
    """One thing: its fields, one a line."""
    fields = msgspec.to_builtins(item)
    if as_json:
        say_json(msgspec.json.encode(fields))
        return
    table = Table("", "", box=None, show_header=False)
    for name, value in fields.items():
        table.add_row(name, _text(value))
    stdout().print(table)


def show_all(items: Iterable[Answer], columns: Mapping[str, str], *, as_json: bool) -> None:
    """Several. columns: heading to field."""
    if as_json:
        for item in items:
            say_json(msgspec.json.encode(item))
        return
    table = Table(box=box.SIMPLE)
    for heading, field in columns.items():
        table.add_column(heading, no_wrap=field == "id", overflow="fold")  # an id is there to be copied
    for item in items:
        fields = msgspec.to_builtins(item)
        table.add_row(*(_text(fields.get(field)) for field in columns.values()))
    stdout().print(table)


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, Mapping):
        if value.keys() == {"id", "name"}:
            return str(value["name"])
        return ", ".join(f"{name}: {_text(one)}" for name, one in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "\n".join(_text(one) for one in value)
    return str(value)
