"""A listener's outstanding deliveries, asked of the REST API.

For: finding the listener, listing what is parked, redriving. Not for: showing it (cli/parked.py, cli/redrive.py)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from http import HTTPStatus
from typing import Any, Final

from broker.errors import ConfigurationError
from cli.publish import Publisher, ask, find_queue, pages

GIVE_UP_AFTER_S: Final = 30.0
_MESSAGES_MAX: Final = 1_000  # in one request


async def find_listener(publisher: Publisher, queue: str, listener: str) -> str:
    """The path of the listener of this id or name (ConfigurationError when there is none)."""
    path = f"/v1/queues/{await find_queue(publisher, queue, create=None)}/listeners"
    async for found in pages(publisher, path, "listeners"):
        if listener in (found["id"], found["name"]):
            return f"{path}/{found['id']}"
    raise ConfigurationError(f"no listener of the queue {queue} has the name or id {listener}")


def parked(publisher: Publisher, path: str) -> AsyncIterator[dict[str, Any]]:
    """As the API shows them."""
    return pages(publisher, f"{path}/deliveries?state=parked&limit=1000", "deliveries")


async def redrive(publisher: Publisher, path: str, message_ids: Sequence[str]) -> int:
    """How many were outstanding: of these messages, or all when none is named (ConfigurationError: refused)."""
    if not message_ids:
        return await _redrive(publisher, path, {})
    parts = [message_ids[at : at + _MESSAGES_MAX] for at in range(0, len(message_ids), _MESSAGES_MAX)]
    return sum([await _redrive(publisher, path, {"messages": part}) for part in parts])


async def _redrive(publisher: Publisher, path: str, body: object) -> int:
    status, answer = await ask(publisher, "POST", f"{path}/redrive", body)
    if status != HTTPStatus.OK:
        raise ConfigurationError(f"the redrive was refused: {status} {answer}")
    return int(answer["count"])
