"""The Kafka topics of Everput: their names, partitions and settings.

For: the list of all topics. Not for: reading or writing them (log.py), the meaning of events (broker/core).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from broker.settings import KafkaSettings

_FOR_EVER = {"cleanup.policy": "delete", "retention.ms": "-1", "retention.bytes": "-1"}
_TWO_DAYS = {"cleanup.policy": "delete", "retention.ms": str(2 * 24 * 3600 * 1000), "retention.bytes": "-1"}
_THIRTY_DAYS = {"cleanup.policy": "delete", "retention.ms": str(30 * 24 * 3600 * 1000), "retention.bytes": "-1"}
# Use segments of 16 MiB for compacted topics, instead of Kafka's default of 1 GiB.
# Kafka does not compact the segment to which it writes, and a partition's new worker must read all records in it.
_COMPACTED = {"cleanup.policy": "compact", "segment.bytes": str(16 << 20)}
_UUID: Final = "[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"


@dataclass(frozen=True, slots=True)
class Topic:
    """A Kafka topic of Everput. The name includes the prefix, and `config` holds the settings that Everput requires."""

    name: str
    partitions: int
    config: dict[str, str]


@dataclass(frozen=True, slots=True)
class Topics:
    """All Kafka topics of an Everput installation."""

    control: Topic
    messages: Topic
    changes: Topic
    claims: Topic
    deliveries: Topic
    outstanding: Topic
    statistics: Topic

    def all(self) -> tuple[Topic, ...]:
        log = self.control, self.messages, self.changes, self.claims, self.deliveries, self.outstanding
        return *log, self.statistics


def topics(kafka: KafkaSettings) -> Topics:
    """Return Everput's topics, with the names, partitions and settings that follow from the configuration."""
    # The cluster's limit on a batch's bytes may be too low. So set Kafka's default limit, or more, for each topic.
    common = {
        "max.message.bytes": "1048588",
        "min.insync.replicas": str(kafka.min_insync),
        "unclean.leader.election.enable": "false",
    }
    if kafka.flush_each_batch:
        common["flush.messages"] = "1"

    def topic(name: str, partitions: int, kept: dict[str, str]) -> Topic:
        return Topic(kafka.topic_prefix + name, partitions, {**common, **kept})

    many = kafka.partitions
    return Topics(
        control=topic("control", 1, _FOR_EVER),
        messages=topic("messages", many, {**_FOR_EVER, "max.message.bytes": str(8 << 20)}),
        changes=topic("changes", many, {**_FOR_EVER, "max.message.bytes": str(8 << 20)}),
        claims=topic("claims", many, _TWO_DAYS),
        deliveries=topic("deliveries", many, _FOR_EVER),
        outstanding=topic("outstanding", many, {**_COMPACTED, "max.message.bytes": str(8 << 20)}),
        statistics=topic("statistics", 1, {**_THIRTY_DAYS, "max.message.bytes": str(8 << 20)}),
    )


def by_name(table: Topics) -> dict[str, Topic]:
    """Return the topics of the log, by name without the prefix.

    `statistics` is left out, because workers can compute it again from the other topics.
    """
    return {
        "control": table.control,
        "messages": table.messages,
        "changes": table.changes,
        "claims": table.claims,
        "deliveries": table.deliveries,
        "outstanding": table.outstanding,
    }


def import_mark(kafka: KafkaSettings, manifest_sha256: str = "") -> str:
    """Return the name of the topic that marks an unfinished import of an export. `manifest_sha256` is the hash of the
    export's manifest. Without it, return the text with which all these names begin.
    """
    return f"{kafka.topic_prefix}import-{manifest_sha256[:32]}"


def workers_group(kafka: KafkaSettings) -> str:
    """Return the name of the workers' consumer group, which assigns partitions to workers."""
    return kafka.topic_prefix + "workers"


def listener_group(kafka: KafkaSettings, listener_id: str) -> str:
    """Return the name of the consumer group that holds a listener's committed offsets."""
    return f"{kafka.topic_prefix}listener.{listener_id}"


def group_listener(kafka: KafkaSettings, group: str) -> str | None:
    """Return the id of the listener whose committed offsets a consumer group holds. Return None for any other group."""
    # This regular expression takes linear time on any input: all texts that it matches have the same length.
    found = re.fullmatch(re.escape(listener_group(kafka, "")) + f"({_UUID})", group)
    return None if found is None else found[1]
