"""The topics: what each holds, how it is created, and whether an existing one would lose data.

For: the table of all topics. Not for: reading or writing them (log.py), what the events mean (broker/core)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from broker.settings import KafkaSettings

_FOR_EVER = {"cleanup.policy": "delete", "retention.ms": "-1", "retention.bytes": "-1"}
_TWO_DAYS = {"cleanup.policy": "delete", "retention.ms": str(2 * 24 * 3600 * 1000), "retention.bytes": "-1"}
_THIRTY_DAYS = {"cleanup.policy": "delete", "retention.ms": str(30 * 24 * 3600 * 1000), "retention.bytes": "-1"}
# Kafka compacts full segments only, and a new owner reads everything: the default of 1 GiB is too much.
_COMPACTED = {"cleanup.policy": "compact", "segment.bytes": str(16 << 20)}
_UUID: Final = "[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"


@dataclass(frozen=True, slots=True)
class Topic:
    """A topic's name and settings.

    name: with the prefix.
    partitions: how many.
    config: the settings that must hold.
    """

    name: str
    partitions: int
    config: dict[str, str]


@dataclass(frozen=True, slots=True)
class Topics:
    """All of them, by what they hold."""

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
    """Return the table of topics for these settings."""
    # Kafka's default, unless more is needed; a cluster may have a lower value.
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
    """Return the log's topics by their names without the prefix.

    `statistics` is not among them: it is folded from the others, so exports leave it out and workers fold it again.
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
    """Return the topic that exists while an import of this export is unfinished, or without an export the common
    prefix.
    """
    return f"{kafka.topic_prefix}import-{manifest_sha256[:32]}"


def workers_group(kafka: KafkaSettings) -> str:
    """Return the name of the workers' consumer group, which decides who owns which partition."""
    return kafka.topic_prefix + "workers"


def listener_group(kafka: KafkaSettings, listener_id: str) -> str:
    """Return the name of the group whose committed offsets are this listener's cursors."""
    return f"{kafka.topic_prefix}listener.{listener_id}"


def group_listener(kafka: KafkaSettings, group: str) -> str | None:
    """Return the listener whose cursors a group holds; None when it is not a listener's group of this installation."""
    # This pattern takes linear time: fixed lengths
    found = re.fullmatch(re.escape(listener_group(kafka, "")) + f"({_UUID})", group)
    return None if found is None else found[1]
