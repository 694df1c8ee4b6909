"""The common parts of commands that use the REST API.

For: a client whose errors become the command's errors, finding things by name or id, and showing answers as tables or
JSON. Not for: the options (api_options.py), the requests (everput/).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any, Final, TypeVar

import click
import httpx
import msgspec
from rich.table import Table

from broker.errors import ConfigurationError, NotFound, Refused
from cli.api_options import api_options
from cli.names import NoNames, is_id
from cli.printing import say, say_json, stdout
from cli.short_ids import whole_id
from cli.tables import Column, FittingTable
from cli.waiting import waiting
from everput import Client, NoAnswer, NotReached, Problem, Request, get_queue, list_listeners, list_queues
from everput.answers import Answer
from everput.client import AGAIN

GIVE_UP_AFTER_S: Final = 30.0

# Tables show a listener's field `health` under the heading `state`, like `everput status` and the console.
# The field `state` of a listener says whether the listener's circuit is open. So tables call this field `circuit`.
_LISTENER_NAMES: Final = {"health": "state", "state": "circuit"}

T = TypeVar("T")


class WaitingClient(Client):
    """An API client for commands. If a request takes longer than a second, a line on stderr names the URL of the API.
    If the first connection is refused, the client fails without retries.
    """

    def __init__(self, url: str, key: str | None, *, give_up_after_s: float) -> None:
        super().__init__(url, key, give_up_after_s=give_up_after_s, refused_at_once=True)
        self._url = url

    def send(self, request: Request[T]) -> T:
        with waiting(f"the API at {self._url}"):
            return super().send(request)


def asks(command: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a command that uses the API: add `--json`, and the options for the API's URL and key.

    The command's function gets two further arguments: `client`, an API client, and `as_json`, which says whether to
    print JSON.
    """

    @api_options
    @click.option(
        "--json", "as_json", is_flag=True, help="Print JSON as the API sends it; for a list, one object a line."
    )
    @functools.wraps(command)
    def with_client(*, url: str, key: str, **values: Any) -> Any:
        with api_client(url, key) as client:
            return command(client=client, **values)

    decorated: Callable[..., Any] = with_client
    return decorated


@contextmanager
def api_client(url: str, key: str, *, give_up_after_s: float = GIVE_UP_AFTER_S) -> Iterator[Client]:
    """Yield a client of the API. Errors of the client become errors of the command, which are shown without a
    traceback.
    """
    check_address(url, key)
    with errors_as_refusals(url), WaitingClient(url, key, give_up_after_s=give_up_after_s) as client:
        yield client


def check_address(url: str, key: str) -> None:
    """Raise ConfigurationError if the API's URL is not an http or https URL, or if the API key has a character that no
    API key can have.
    """
    where = "where you set it, such as --url, EVERPUT_URL or the profile"
    try:
        parts = httpx.URL(url)
    except (httpx.InvalidURL, ValueError) as error:
        raise ConfigurationError(f"the API's address {url} is not a URL: {error}; correct it {where}") from error
    if parts.scheme not in ("http", "https") or not parts.host:
        raise ConfigurationError(
            f"the API's address {url} is not a URL such as http://127.0.0.1:8080; correct it {where}"
        )
    if not (key.isascii() and key.isprintable()):
        raise ConfigurationError(
            "the API key has a character that no API key can have; copy the key again to where you set it, such as "
            "--key, EVERPUT_API_KEY or the profile"
        )


@contextmanager
def errors_as_refusals(url: str) -> Iterator[None]:
    """Turn errors of the API client into errors of a command.

    Raises ConfigurationError if no API answers, if the answer is not usable, or if the API can't answer at the moment
    (429, 502, 503 or 504). Also raises ConfigurationError if the API key is refused, or has no right to this request.
    Raises Refused if the API refuses the request for another reason.
    """
    try:
        yield
    except Problem as error:
        if error.status == HTTPStatus.UNAUTHORIZED:
            raise ConfigurationError(f"the API key was refused: {error}") from error
        if error.status == HTTPStatus.FORBIDDEN:
            raise ConfigurationError(f"the API key has no right to do this: {error}") from error
        if error.status in AGAIN:
            raise ConfigurationError(f"the API at {url} can't answer at the moment: {error}") from error
        raise Refused(str(error)) from error
    except NotReached as error:
        raise nothing_answers(url, error) from error
    except NoAnswer as error:
        raise ConfigurationError(
            f"the API at {url} gave no usable answer: {error}; check the URL. If the command makes a change, look "
            "whether the change was made before you repeat it"
        ) from error


def nothing_answers(url: str, error: Exception) -> ConfigurationError:
    """Return the error for a server to which no connection can be opened."""
    return ConfigurationError(f"nothing answers at {url}; is `everput serve` running? ({error})")


def find_queue(client: Client, queue: str) -> str:
    """Return the id of the queue with this id or name. Raises NotFound if there is no such queue that the API key may
    read.

    If the API key may read no queues at all, an id is returned without a check, and a name raises NoNames.
    """
    queue_id = whole_id(queue)
    try:
        if is_id(queue_id) and _is_there(client, queue_id):
            return queue_id
        for page in client.pages(list_queues(name=queue)):
            for found in page.queues:
                return found.id
    except Problem as error:
        if error.status != HTTPStatus.FORBIDDEN:
            raise
        if is_id(queue_id):  # An API key that may not read queues can use a queue by its id, but not by its name.
            return queue_id
        raise NoNames(queue) from error
    raise NotFound(
        f"no queue that the API key can read has the name or ID {queue}; `everput queues list` shows the queues that "
        "it can read"
    )


def _is_there(client: Client, queue_id: str) -> bool:
    try:
        client.send(get_queue(queue_id))
    except Problem as error:
        if error.status != HTTPStatus.NOT_FOUND:
            raise
        return False
    return True


def find_listener(client: Client, queue: str, listener: str) -> tuple[str, str]:
    """Find a queue, and a listener of this queue, each by its name or id. Return both ids. Raises NotFound if one of
    them does not exist.
    """
    queue_id = find_queue(client, queue)
    for page in client.pages(list_listeners(queue_id)):
        for found in page.listeners:
            if listener == found.name or whole_id(listener) == found.id:
                return queue_id, found.id
    raise NotFound(
        f"the queue {queue} has no listener with the name or ID {listener}; `everput listeners list QUEUE` shows a "
        "queue's listeners"
    )


def show(item: Answer, *, as_json: bool) -> None:
    """Print one item: a table with a row for each field, or JSON with `as_json`."""
    fields = msgspec.to_builtins(item)
    if as_json:
        say_json(msgspec.json.encode(fields))
        return
    names = _LISTENER_NAMES if fields.keys() >= _LISTENER_NAMES.keys() else {}
    table = Table("", "", box=None, show_header=False)
    for name, value in fields.items():
        table.add_row(names.get(name, name), _text(value))
    stdout().print(table)


def show_deleted(kind: str, item: Answer, *, as_json: bool) -> None:
    """Print that an item, such as a queue, was deleted. With `as_json`, print the deleted item as JSON instead."""
    if as_json:
        show(item, as_json=True)
        return
    fields = msgspec.to_builtins(item)
    say(" ".join(["deleted the", kind, *(fields[name] for name in ("name", "id") if fields.get(name))]))


def show_all(items: Iterable[Answer], columns: Mapping[str, str], *, as_json: bool) -> None:
    """Print several items as a table with a row for each item. On a narrow terminal, print several lines for each item
    instead. With `as_json`, print each item as one line of JSON.

    `columns` maps each heading of the table to the name of its field.
    """
    if as_json:
        for item in items:
            say_json(msgspec.json.encode(item))
        return
    # Ids are shown whole, so that users can copy them.
    table = FittingTable([Column(heading, whole=field == "id") for heading, field in columns.items()], simple=True)
    for item in items:
        fields = msgspec.to_builtins(item)
        table.add_row([_text(fields.get(field)) for field in columns.values()])
    stdout().print(table)


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, Mapping):
        if value.keys() == {"id", "name"}:
            return str(value["name"])
        if value.keys() >= {"id", "name", "state", "attempts"}:  # a delivery to a listener
            return f"{value['name']}: {value['state']}"
        return ", ".join(f"{name}: {_text(one)}" for name, one in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "\n".join(_text(one) for one in value)
    return str(value)
