"""Access to Kafka for the operator's commands, which read or write the topics themselves.

For: choosing the Kafka (--kafka, or the one that `everput serve` runs on the data directory) and reading its topics'
shape. Not for: the commands (cli/commands/verify.py, cli/exports/export.py)."""

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
    """A reachable Kafka. requests: started. table: the topics with their real numbers of partitions."""

    kafka: KafkaSettings
    requests: KafkaRequests
    table: Topics


def kafka_of(options: Options) -> KafkaSettings:
    """Return the Kafka of the options, else that of the data directory's server. Raises ConfigurationError."""
    if options.kafka is not None:
        return options.kafka_settings()
    embedded = written_access(options.data_dir / "kafka")
    if embedded is None:
        raise ConfigurationError(
            f"no Kafka: give --kafka HOST:PORT, or the --data-dir of an `everput serve` ({options.data_dir} is not one)"
        )
    return options.kafka_settings(embedded)


@contextlib.asynccontextmanager
async def cluster(options: Options) -> AsyncIterator[Cluster]:
    """Yield the cluster with its topics' partitions. ConfigurationError: unreachable, or a half-finished import."""
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
                f"Kafka at {kafka.bootstrap} has no topic {table.messages.name}: check --topic-prefix"
            )
        kafka = replace(kafka, partitions=partitions)
        yield Cluster(kafka, requests, topics(kafka))
    finally:
        await requests.stop()
