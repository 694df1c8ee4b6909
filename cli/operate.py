"""Access to Kafka for operators' commands, which read or write the topics themselves.

For: choosing the Kafka (--kafka, or the Kafka of the `everput serve` on the data directory) and reading the numbers of
partitions. Not for: the commands (cli/commands/verify.py, cli/exports/export.py).
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import NamedTuple

from broker.errors import ConfigurationError, LogUnavailable
from broker.kafka.embedded.access import written_access
from broker.kafka.importing import refuse_unfinished
from broker.kafka.requests import KafkaRequests
from broker.kafka.topics import Topics, topics
from broker.settings import KafkaSettings
from cli.options import Options
from cli.waiting import waiting


class Cluster(NamedTuple):
    """A connection to Kafka: its settings, a started client, and Everput's topics with their numbers of partitions."""

    kafka: KafkaSettings
    requests: KafkaRequests
    table: Topics


def kafka_of(options: Options) -> KafkaSettings:
    """Return the settings for the Kafka cluster that --kafka names. Without --kafka, return the settings for the
    embedded Kafka that has run in the data directory.

    Raises ConfigurationError if no embedded Kafka has run there, or if a setting is wrong.
    """
    if options.kafka is not None:
        return options.kafka_settings()
    embedded = written_access(options.data_dir / "kafka")
    if embedded is None:
        raise ConfigurationError(
            "no Kafka: give --kafka HOST:PORT. For an `everput serve` with an embedded Kafka, give its data directory "
            f"as --data-dir; no embedded Kafka has run in {options.data_dir}"
        )
    return options.kafka_settings(embedded)


@contextlib.asynccontextmanager
async def cluster(options: Options) -> AsyncIterator[Cluster]:
    """Connect to Kafka for the duration of the `with` block, and yield the connection.

    Raises ConfigurationError if Kafka can't be reached, if Everput's topics are missing in it, or if an import into
    this Kafka has begun but has not finished.
    """
    kafka = kafka_of(options)
    requests = KafkaRequests(kafka)
    table = topics(kafka)
    try:
        with waiting(f"Kafka at {kafka.bootstrap}"):
            await requests.start([topic.name for topic in table.all()])
    except LogUnavailable as error:
        raise ConfigurationError(f"{error}; is Kafka (or `everput serve`) running at {kafka.bootstrap}?") from error
    try:
        await refuse_unfinished(kafka)
        partitions = requests.partitions(table.messages.name)
        if partitions == 0:
            raise ConfigurationError(
                f"Kafka at {kafka.bootstrap} has no topic {table.messages.name}: check --topic-prefix. If Everput has "
                "never run on this Kafka, start it there first"
            )
        kafka = replace(kafka, partitions=partitions)
        yield Cluster(kafka, requests, topics(kafka))
    finally:
        await requests.stop()
