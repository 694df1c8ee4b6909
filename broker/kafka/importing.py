"""The marker topic of an unfinished import. Every process sees it, so that none works on an incomplete log.

For: creating it before the first record is written, and deleting it after the last. Its name says which export is
imported. Not for: refusing to work while it exists (admin.py), writing the records (restore.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaError, for_code

from broker.errors import ConfigurationError, LogUnavailable
from broker.kafka.admin import connected, refuse_half_import
from broker.kafka.client import client_options
from broker.kafka.topics import import_mark
from broker.settings import KafkaSettings

_WITHIN_S: Final = 30.0  # seconds to create, delete or list topics, including the time until Kafka can be reached
_REQUEST_MS: Final = 10_000


async def is_begun(kafka: KafkaSettings, manifest_sha256: str) -> bool:
    """Return whether an import of the export with this manifest has begun and is not finished.

    Raises ConfigurationError if an import of another export is unfinished. Raises LogUnavailable if Kafka does not
    return the names of its topics.
    """
    mine = import_mark(kafka, manifest_sha256)
    marks = {name for name in await _topic_names(kafka) if name.startswith(import_mark(kafka))}
    if marks - {mine}:
        raise ConfigurationError(
            f"the topics {kafka.topic_prefix}* hold an unfinished import of a different export: "
            "finish it with that export, or import into an empty installation"
        )
    return bool(marks)


async def begin(kafka: KafkaSettings, manifest_sha256: str) -> None:
    """Create the marker topic that says that an import is unfinished. Raises LogUnavailable if Kafka does not create
    the topic.
    """
    mark = NewTopic(import_mark(kafka, manifest_sha256), 1, kafka.replication)
    async with _admin(kafka, "create the topic that marks an unfinished import") as admin:
        _check((await admin.create_topics([mark], timeout_ms=_REQUEST_MS)).topic_errors[0][1])


async def end(kafka: KafkaSettings, manifest_sha256: str) -> None:
    """Delete the marker topic after an import has finished. Raises LogUnavailable if Kafka does not delete it."""
    async with _admin(kafka, "delete the topic that marks an unfinished import") as admin:
        answer = await admin.delete_topics([import_mark(kafka, manifest_sha256)], timeout_ms=_REQUEST_MS)
        _check(answer.topic_error_codes[0][1])


async def refuse_unfinished(kafka: KafkaSettings) -> None:
    """Raise ConfigurationError if an import into this installation is unfinished: until its end, records are missing in
    the topics of Everput. Raises LogUnavailable if Kafka does not return the names of its topics.
    """
    refuse_half_import(kafka, await _topic_names(kafka))


async def _topic_names(kafka: KafkaSettings) -> list[str]:
    """Return the names of all topics of the cluster. Do not ask Kafka for a single topic instead: on many clusters, a
    request for a topic that does not exist creates the topic.
    """
    async with _admin(kafka, "list its topics") as admin:
        return list(await admin.list_topics())


@asynccontextmanager
async def _admin(kafka: KafkaSettings, what: str) -> AsyncIterator[AIOKafkaAdminClient]:
    """Connect a Kafka admin client for the requests in the `async with` block. Raises LogUnavailable if Kafka can't be
    reached, or if the requests fail or take longer than 30 s together. `what` completes the error's text "Kafka did not
    …", for example "list its topics".
    """
    try:
        async with asyncio.timeout(_WITHIN_S), connected(client_options(kafka)) as admin:
            yield admin
    except (KafkaError, TimeoutError) as error:
        reason = type(error).__name__ if isinstance(error, KafkaError) else f"no answer within {_WITHIN_S:g} s"
        raise LogUnavailable(f"Kafka did not {what}: {reason}; check Kafka, and run the command again") from error


def _check(code: int) -> None:
    if code != 0:
        raise for_code(code)
