"""Reads the log over the REST API: to its end or for ever, on where it broke off, each event once.

For: `everput log` and `everput export`. Not for: how it is shown (cli/commands/log.py) or kept
(cli/exports/export.py)."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from http import HTTPStatus
from typing import Any, Final, NamedTuple

import httpx
import orjson

from broker.core.events import decode
from broker.core.ids import parse_message_id
from broker.core.story import Story
from broker.errors import BrokerError, ConfigurationError, UnknownEvent
from everput.client import AGAIN, PAUSE_S_MAX, PAUSE_S_MIN, TIMEOUT

STORY_PAUSE_S: Final = 1.0  # a story is complete at once, unlike the rest of the log: there is nothing to wait for
_MARK: Final = b'{"cursor"'


class Refused(BrokerError):
    """The API refused the question."""


class Part(NamedTuple):
    """Events in the order of the log, each a line as the API sent it, and the cursor after them."""

    lines: list[bytes]
    cursor: str
    complete: bool


def client(url: str, key: str) -> httpx.Client:
    """Close it (ConfigurationError)."""
    try:
        return httpx.Client(base_url=url, headers={"x-api-key": key}, timeout=TIMEOUT, trust_env=False)
    except (httpx.InvalidURL, ValueError) as error:
        raise ConfigurationError(f"{url} is no URL: {error}") from error


def read(
    http_client: httpx.Client, query: Mapping[str, str], *, follow: bool = False, give_up_after_s: float = 60.0
) -> Iterator[Part]:
    """All parts (Refused; ConfigurationError when the API does not answer for so long). follow: never ends."""
    query = dict(query)
    tells = _teller(query)
    pause_s, alive_s = PAUSE_S_MIN, time.monotonic()
    while True:
        why = "it ended in the middle"
        try:
            for part in _ask(http_client, query):
                query["cursor"] = part.cursor
                pause_s, alive_s = PAUSE_S_MIN, time.monotonic()
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
        except httpx.UnsupportedProtocol as error:
            raise ConfigurationError(f"{http_client.base_url} is no URL: {error}") from error
        except httpx.TransportError as error:
            why = f"{type(error).__name__}: {error}"
        if time.monotonic() - alive_s > give_up_after_s:
            raise ConfigurationError(f"the API does not answer: {why}")
        time.sleep(random.uniform(0, pause_s))  # noqa: S311 - jitter
        pause_s = min(pause_s * 2, PAUSE_S_MAX)


def ask(http_client: httpx.Client, path: str, **query: str) -> dict[str, Any] | None:
    """The JSON at a path, None for 404 and for what this key may not see (Refused, ConfigurationError)."""
    try:
        answer = http_client.get(path, params=query)
    except httpx.HTTPError as error:
        raise ConfigurationError(f"the API does not answer: {type(error).__name__}: {error}") from error
    if answer.status_code in (HTTPStatus.NOT_FOUND, HTTPStatus.FORBIDDEN):
        return None
    _check(answer)
    found: dict[str, Any] = answer.json()
    return found


def _teller(query: Mapping[str, str]) -> Callable[[bytes], bool] | None:
    """Whether a line is a part of the story that is asked for; None when none is.

    The API, asked to go on with a story, knows nothing of what it told before: only we do.
    """
    parts = parse_message_id(query.get("message", ""))
    if parts is None:
        return None
    begin_ms = datetime.fromisoformat(query["from"]).timestamp() * 1000 if "from" in query else 0
    story = Story(whole=begin_ms <= parts[0])

    def tells(line: bytes) -> bool:
        try:
            return story.tells(decode(orjson.dumps(orjson.loads(line)["event"])))
        except UnknownEvent:  # of a newer API, or with something left out: none that a story depends on
            return True

    return tells


def _ask(http_client: httpx.Client, query: Mapping[str, str]) -> Iterator[Part]:
    with http_client.stream("GET", "/v1/log", params=query) as answer:
        if answer.status_code in AGAIN:
            raise httpx.RemoteProtocolError(f"{answer.status_code} {answer.reason_phrase}")
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
    """Whole ones, as they come. Not iter_lines(), which takes other characters for ends, too."""
    rest = b""
    for chunk in answer.iter_bytes():
        *whole, rest = (rest + chunk).split(b"\n")
        yield whole


def _check(answer: httpx.Response) -> None:
    if answer.status_code == HTTPStatus.OK:
        return
    try:
        told = answer.json()
        detail = told.get("detail") or told.get("title")
    except ValueError:
        detail = answer.reason_phrase
    raise Refused(f"the API refused: {answer.status_code} {detail}")
