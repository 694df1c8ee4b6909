"""For commands of operators, which read or write the topics themselves.

For: which Kafka (--kafka, or the one that `everput serve` runs on the data directory) and what its topics are like.
Not for: what is done with them (cli/commands/verify.py, cli/exports/export.py)."""

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


class Cluster(NamedTuple):
    """requests: started. table: as the topics are there."""

    kafka: KafkaSettings
    requests: KafkaRequests
    table: Topics


def kafka_of(options: Options) -> KafkaSettings:
    """As the options say, else the Kafka of the data directory's server (ConfigurationError)."""
    if options.kafka is not None:
        return options.kafka_settings()
    embedded = written_access(options.data_dir / "kafka")
    if embedded is None:
        raise ConfigurationError(
            f"which Kafka? Give --kafka HOST:PORT, or the --data-dir of an `everput serve`: {options.data_dir} is none"
        )
    return options.kafka_settings(embedded)


@contextlib.asynccontextmanager
async def cluster(options: Options) -> AsyncIterator[Cluster]:
    """The cluster, with as many partitions as its topics have (ConfigurationError: it can't be reached, or is half)."""
    kafka = kafka_of(options)
    requests = KafkaRequests(kafka)
    table = topics(kafka)
    try:
        await requests.start([topic.name for topic in table.all()])
    except LogUnavailable as error:
        raise ConfigurationError(f"{error}: is it running at {kafka.bootstrap}?") from error
    try:
        await refuse_unfinished(kafka)
        partitions = requests.partitions(table.messages.name)
        if partitions == 0:
            raise ConfigurationError(f"Kafka at {kafka.bootstrap} has no topic {table.messages.name}: --topic-prefix?")
        kafka = replace(kafka, partitions=partitions)
        yield Cluster(kafka, requests, topics(kafka))
    finally:
        await requests.stop()
