"""The marker topic of an unfinished import. Every process sees it, so that none works on an incomplete log.

For: creating it before the first record is written, and deleting it after the last. Its name says which export is
imported. Not for: refusing to work while it exists (admin.py), writing the records (restore.py).
"""

from __future__ import annotations

from typing import Final

from aiokafka.admin import NewTopic
from aiokafka.errors import KafkaError, for_code

from broker.errors import ConfigurationError, LogUnavailable
from broker.kafka.admin import connected, refuse_half_import
from broker.kafka.client import client_options
from broker.kafka.topics import import_mark
from broker.settings import KafkaSettings

_WITHIN_MS: Final = 10_000


async def is_begun(kafka: KafkaSettings, manifest_sha256: str) -> bool:
    """Return whether an import of this export has begun and is not finished. Wait until Kafka can be reached.

    Raises ConfigurationError if an import of another export is unfinished.
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
    """Create the marker topic that says that an import is unfinished. Wait until Kafka can be reached. Raises
    LogUnavailable if Kafka does not create the topic.
    """
    mark = NewTopic(import_mark(kafka, manifest_sha256), 1, kafka.replication)
    try:
        async with connected(client_options(kafka)) as admin:
            _check((await admin.create_topics([mark], timeout_ms=_WITHIN_MS)).topic_errors[0][1])
    except KafkaError as error:
        raise LogUnavailable(
            f"Kafka did not create the topic that marks an unfinished import: {type(error).__name__}; check "
            "Kafka, and run the command again"
        ) from error


async def end(kafka: KafkaSettings, manifest_sha256: str) -> None:
    """Delete the marker topic after an import has finished. Wait until Kafka can be reached. Raises LogUnavailable if
    Kafka does not delete the topic.
    """
    try:
        async with connected(client_options(kafka)) as admin:
            answer = await admin.delete_topics([import_mark(kafka, manifest_sha256)], timeout_ms=_WITHIN_MS)
            _check(answer.topic_error_codes[0][1])
    except KafkaError as error:
        raise LogUnavailable(
            f"Kafka did not delete the topic that marks an unfinished import: {type(error).__name__}; check "
            "Kafka, and run the command again"
        ) from error


async def refuse_unfinished(kafka: KafkaSettings) -> None:
    """Raise ConfigurationError while an import is unfinished, because its topics are incomplete.

    Wait until Kafka can be reached. Raises LogUnavailable if Kafka then does not list its topics.
    """
    refuse_half_import(kafka, await _topic_names(kafka))


async def _topic_names(kafka: KafkaSettings) -> list[str]:
    """Return the names of all topics. A request for one topic is no alternative: on many clusters, it would create the
    topic if it is missing.
    """
    try:
        async with connected(client_options(kafka)) as admin:
            return list(await admin.list_topics())
    except KafkaError as error:
        raise LogUnavailable(
            f"Kafka did not list its topics: {type(error).__name__}; check Kafka, and run the command again"
        ) from error


def _check(code: int) -> None:
    if code != 0:
        raise for_code(code)
