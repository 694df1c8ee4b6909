"""The client that reads the log over the REST API, and continues after a broken connection without repeats.

For: `everput log` and `everput export`. Not for: how the log is shown (cli/commands/log.py) or stored
(cli/exports/export.py).
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from datetime import datetime
from http import HTTPStatus
from typing import Any, Final, NamedTuple

import httpx
import orjson

from broker.core.codec import decode
from broker.core.ids import parse_message_id
from broker.core.story import Story
from broker.errors import BrokerError, ConfigurationError, UnknownEvent
from cli.api_commands import check_address, nothing_answers
from cli.printing import say
from cli.waiting import waiting
from everput.client import AGAIN, PAUSE_S_MAX, PAUSE_S_MIN, TIMEOUT

STORY_PAUSE_S: Final = 1.0  # seconds between two requests for the newest events of one message
GIVE_UP_AFTER_S: Final = 60.0  # seconds without an answer
_MARK: Final = b'{"cursor"'


class LogRefused(BrokerError):
    """The API refused the request."""


class NotAllowed(ConfigurationError):
    """The API key has no right to this request."""


class Part(NamedTuple):
    """A part of the log: events in order, each as a line of JSON. `cursor` is the position after these events.
    `complete` is True if the part ends at the end of the log, or at the end of the query's time range.
    """

    lines: list[bytes]
    cursor: str
    complete: bool


def client(url: str, key: str) -> httpx.Client:
    """Create an HTTP client, which the caller closes. Raises ConfigurationError if the URL or the key is invalid."""
    check_address(url, key)
    return httpx.Client(base_url=url, headers={"x-api-key": key}, timeout=TIMEOUT, trust_env=False)


def read(
    http_client: httpx.Client,
    query: Mapping[str, str],
    *,
    follow: bool = False,
    give_up_after_s: float = GIVE_UP_AFTER_S,
) -> Iterator[Part]:
    """Yield the parts of the log up to its end or the query's `limit`. With `follow`, do not end at the log's end, but
    wait for further events.

    Raises NotAllowed if the API key has no right to read the log, LogRefused if the API refuses the request for another
    reason, or ConfigurationError if the API does not answer in time.
    """
    query = dict(query)
    tells = _teller(query)
    retries, reached = _Retries(http_client, give_up_after_s), False
    while True:
        why = "the answer ended before it was complete"
        try:
            for part in _ask(http_client, query):
                query["cursor"], reached = part.cursor, True
                retries.begin()
                lines = part.lines if tells is None else [line for line in part.lines if tells(line)]
                yield part._replace(lines=lines)
                if part.complete and not follow:
                    return
                if "limit" in query and (left := int(query["limit"]) - len(lines)) >= 0:
                    if left == 0:
                        return
                    query["limit"] = str(left)
            if follow:
                if tells is not None:
                    time.sleep(STORY_PAUSE_S)
                continue
        except httpx.TransportError as error:
            if isinstance(error, httpx.ConnectError) and not reached:
                raise nothing_answers(str(http_client.base_url), error) from error
            why = f"{type(error).__name__}: {error}"
        retries.wait(why)


def ask(http_client: httpx.Client, path: str, **query: str) -> dict[str, Any] | None:
    """Return the JSON that the API answers for a path, or None if the answer is 404.

    Raises NotAllowed if the API key has no right to read the path, LogRefused if the API refuses the request for
    another reason, or ConfigurationError if the API does not answer in time.
    """
    retries = _Retries(http_client, GIVE_UP_AFTER_S)
    while True:
        try:
            with waiting(f"the API at {http_client.base_url}"):
                answer = http_client.get(path, params=query)
            _check_answers_now(answer)
            break
        except httpx.ConnectError as error:
            raise nothing_answers(str(http_client.base_url), error) from error
        except httpx.RequestError as error:
            retries.wait(f"{type(error).__name__}: {error}")
    if answer.status_code == HTTPStatus.NOT_FOUND:
        return None
    _check(answer)
    found: dict[str, Any] = answer.json()
    return found


class _Retries:
    """The waits between the attempts of a request, and the time limit after which the request fails."""

    def __init__(self, http_client: httpx.Client, give_up_after_s: float) -> None:
        self._where = f"the API at {http_client.base_url}"
        self._give_up_after_s = give_up_after_s
        self._said = ""
        self.begin()

    def begin(self) -> None:
        """Start the pauses and the time limit again from the beginning, because the API has answered."""
        self._pause_s, self._since_s = PAUSE_S_MIN, time.monotonic()

    def wait(self, why: str) -> None:
        """Print the reason `why` of a failed attempt if it is a new one, and wait before the next attempt. Raise
        ConfigurationError if the API has not answered for too long.
        """
        if time.monotonic() - self._since_s > self._give_up_after_s:
            raise ConfigurationError(f"{self._where} gave no complete answer: {why}; check the URL, or try again later")
        if why != self._said:
            self._said = why
            say(f"trying again: {self._where} gave no complete answer: {why}", err=True)
        time.sleep(random.uniform(0, self._pause_s))  # noqa: S311 - jitter
        self._pause_s = min(self._pause_s * 2, PAUSE_S_MAX)


def _teller(query: Mapping[str, str]) -> Callable[[bytes], bool] | None:
    """Return a function that says whether a line of the log belongs to the history of the query's message. Return None
    if the query names no message.

    If a query continues at a cursor, the API does not know the events before the cursor. So the API can send events
    that do not belong to the history.
    """
    parts = parse_message_id(query.get("message", ""))
    if parts is None:
        return None
    begin_ms = datetime.fromisoformat(query["from"]).timestamp() * 1000 if "from" in query else 0
    story = Story(whole=begin_ms <= parts[0])

    def tells(line: bytes) -> bool:
        try:
            return story.tells(decode(orjson.dumps(orjson.loads(line)["event"])))
        except UnknownEvent:
            # Only a newer version of Everput can decode this event. Show it, because it may belong to the message.
            return True

    return tells


def _ask(http_client: httpx.Client, query: Mapping[str, str]) -> Iterator[Part]:
    with ExitStack() as stack:
        with waiting(f"the API at {http_client.base_url}"):
            answer = stack.enter_context(http_client.stream("GET", "/v1/log", params=query))
        _check_answers_now(answer)
        if answer.status_code != HTTPStatus.OK:
            answer.read()
            _check(answer)
        lines: list[bytes] = []
        for some in _lines(answer):
            begin = 0
            for place in [place for place, line in enumerate(some) if line.startswith(_MARK)]:
                lines += some[begin:place]
                mark = orjson.loads(some[place])
                yield Part(lines, mark["cursor"], mark["complete"])
                lines, begin = [], place + 1
            lines += some[begin:]


def _lines(answer: httpx.Response) -> Iterator[list[bytes]]:
    """Yield lines as they arrive, without incomplete ones.

    The method `iter_lines` of httpx is not used, because it also splits lines at other characters than the newline.
    """
    rest = b""
    for chunk in answer.iter_bytes():
        *whole, rest = (rest + chunk).split(b"\n")
        yield whole


def _check_answers_now(answer: httpx.Response) -> None:
    """Raise RemoteProtocolError if a later attempt may succeed: the answer's status is 429, 502, 503 or 504."""
    if answer.status_code in AGAIN:
        raise httpx.RemoteProtocolError(f"the API answered {answer.status_code} {answer.reason_phrase}")


def _check(answer: httpx.Response) -> None:
    if answer.status_code == HTTPStatus.OK:
        return
    try:
        problem = answer.json()
        detail = problem.get("detail") or problem.get("title")
    except ValueError:
        detail = answer.reason_phrase
    kind = NotAllowed if answer.status_code == HTTPStatus.FORBIDDEN else LogRefused
    raise kind(f"the API refused the request: {answer.status_code} {detail}")
