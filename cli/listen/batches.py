"""The batches that `everput listen` gets: their messages, and those that the local program did not accept.

For: a request with several messages (docs/batches.md). Not for: passing it on (tunnel_client.py), the lines (show.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import orjson

from broker.core.batching import failed_ids

_BATCH: Final = "batch_"  # If a header `webhook-id` begins with this text, the request is a batch of messages.


def is_batch(request_id: str | None) -> bool:
    """Return whether a request is a batch of messages. `request_id` is the request's header `webhook-id`."""
    return (request_id or "").startswith(_BATCH)


def messages_in(body: str) -> Sequence[Mapping[str, Any]]:
    """Parse the body of a batch, which is a JSON array. Return the array's objects, one for each message."""
    messages: Sequence[Mapping[str, Any]] = orjson.loads(body)
    return messages


def notifications(request: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a request's messages. Each has the form of the body of a request with only this message."""
    body = request["body"]
    if not is_batch(request["headers"].get("webhook-id")):
        return [orjson.loads(body)]
    return [message["body"] for message in messages_in(body)]


def failed_in(answer: bytes, body: str) -> list[str]:
    """Return the ids of those messages of a batch that the local program rejects with its answer `{"failed": [ids]}`.
    Ignore other ids in the answer.
    """
    rejected = failed_ids(answer)
    return [message["id"] for message in messages_in(body) if message["id"] in rejected]


def accepted(fields: Mapping[str, Any]) -> bool:
    """Return whether the local program accepted at least one message of a request. `fields` are the fields of the event
    `answered`.
    """
    if not 200 <= fields["status"] < 300:
        return False
    return not is_batch(fields["message_id"]) or len(fields["failed"]) < len(messages_in(fields["body"]))
