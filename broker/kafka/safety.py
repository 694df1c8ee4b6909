"""The rules for a Kafka cluster that loses no data. For each broken rule, an error says what to change.

For: the rules, as pure functions from facts to error texts. Not for: reading the facts (admin.py), the topics' settings
(topics.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from broker.kafka.topics import Topic, Topics
from broker.settings import KafkaSettings

# Kafka must have a record on two brokers before it acknowledges the record. With `--flush-each-batch`, one is enough.
ACKNOWLEDGED_MIN: Final = 2
OFFSETS_TOPIC: Final = "__consumer_offsets"
# Kafka must keep an idle listener's committed offsets for at least a year. Kafka's default is only 7 days.
OFFSETS_RETENTION_MINUTES_MIN: Final = 525_600

# The settings of a Kafka broker that Everput checks: with a wrong value, records or committed offsets can be lost.
BROKER_SETTINGS: Final = (
    "offsets.retention.minutes",
    "offsets.topic.replication.factor",
    "offset.metadata.max.bytes",
    "min.insync.replicas",
)
# The metadata of a listener's committed offset has up to 4,096 bytes (broker/core/cursor.py).
METADATA_BYTES_MIN: Final = 4_096
# With this feature of Kafka (KIP-966), only a replica that has every acknowledged record can become leader.
ELIGIBLE_LEADERS: Final = "eligible.leader.replicas.version"


@dataclass(frozen=True, slots=True)
class FoundTopic:
    """A topic that exists in Kafka. `replication` is the number of replicas of the partition with the fewest replicas.
    `config` has the topic's settings. It is empty if Kafka does not let this user read them.
    """

    partitions: int
    replication: int
    config: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Cluster:
    """The facts about a Kafka cluster that the safety rules need.

    `brokers` maps a broker's id to its settings, which are empty if Kafka does not let this user read them. `features`
    is None if the cluster does not report its features.
    """

    brokers: Mapping[int, Mapping[str, str]]
    topics: Mapping[str, FoundTopic]
    features: Mapping[str, int] | None = None


def copies(kafka: KafkaSettings, brokers: int) -> Iterator[str]:
    """Yield the problems with the numbers of brokers, replicas and acknowledgements. They are checked before any topic
    is created.
    """
    yield from _acknowledgements(kafka)
    if brokers < kafka.replication:
        yield (
            f"the cluster has {brokers} broker{'' if brokers == 1 else 's'} and each topic is to have "
            f"{kafka.replication} copies: start more brokers, or accept fewer copies with {_fewer(kafka, brokers)}"
        )


def _fewer(kafka: KafkaSettings, copies: int) -> str:
    """Return the command options that make Everput accept only `copies` replicas of each partition."""
    said = f"--replication {copies}"
    if kafka.min_insync > copies:
        said += f" --min-insync {copies}"
    if copies < ACKNOWLEDGED_MIN and not kafka.flush_each_batch:
        said += " --flush-each-batch"
    return said


def _acknowledgements(kafka: KafkaSettings) -> Iterator[str]:
    if kafka.min_insync < ACKNOWLEDGED_MIN and not kafka.flush_each_batch:
        # If Kafka acknowledges a record that only one broker has, and only in memory, a power cut can lose it.
        yield (
            f"one copy may acknowledge a record before any disk has it: set --min-insync {ACKNOWLEDGED_MIN}, "
            "or --flush-each-batch if there is only one broker"
        )
    if kafka.min_insync > kafka.replication:
        yield (
            f"{kafka.min_insync} copies must acknowledge but there are only {kafka.replication}: "
            "lower --min-insync or raise --replication"
        )


def problems(kafka: KafkaSettings, topics: Topics, cluster: Cluster) -> list[str]:
    """Return a text for each thing that must change before this cluster is safe for the log. Return an empty list if
    nothing must change. Settings that Kafka does not let this user read are not checked.

    If the topics exist, a broker that is down is no problem, because its replicas still count.
    """
    missing = any(topic.name not in cluster.topics for topic in topics.all())
    found = list(copies(kafka, len(cluster.brokers)) if missing else _acknowledgements(kafka))
    for topic in topics.all():
        if topic.name in cluster.topics:
            found += _topic_problems(kafka, topic, cluster.topics[topic.name])
    found += _cursor_problems(kafka, cluster)
    if _needs_eligible_leaders(kafka) and cluster.features is not None and not cluster.features.get(ELIGIBLE_LEADERS):
        found.append(
            "the cluster has no eligible leader replicas (KIP-966), so the last remaining broker may become leader "
            "without records that were acknowledged but not synced: run kafka-features upgrade "
            f"--feature {ELIGIBLE_LEADERS}=1 (Kafka 4.0 and newer), or --flush-each-batch"
        )
    return found


def doubts(kafka: KafkaSettings, cluster: Cluster) -> Iterator[str]:
    """Yield a warning if the cluster does not say whether it has eligible leader replicas (KIP-966). Also yield a
    warning if Kafka's topic of committed offsets has a lower `min.insync.replicas` than the topic `messages`. Committed
    offsets can then be lost, and deliveries are repeated.
    """
    if _needs_eligible_leaders(kafka) and cluster.features is None:
        yield f"the cluster does not say whether it has eligible leader replicas ({ELIGIBLE_LEADERS})"
    config = cluster.topics[OFFSETS_TOPIC].config if OFFSETS_TOPIC in cluster.topics else {}
    for where, settings in ((f"topic {OFFSETS_TOPIC}", config), *_of_brokers(cluster)):
        copies = settings.get("min.insync.replicas")
        if copies is not None and int(copies) < kafka.min_insync:
            yield (
                f"{where} has min.insync.replicas={copies}: cursors are acknowledged by fewer copies than messages. "
                "Deliveries may repeat when these are lost."
            )
            return


def _needs_eligible_leaders(kafka: KafkaSettings) -> bool:
    return kafka.replication > 1 and not kafka.flush_each_batch


def _of_brokers(cluster: Cluster) -> Iterator[tuple[str, Mapping[str, str]]]:
    if OFFSETS_TOPIC not in cluster.topics:
        for node, settings in sorted(cluster.brokers.items()):
            yield f"broker {node}", settings


def _topic_problems(kafka: KafkaSettings, topic: Topic, now: FoundTopic) -> Iterator[str]:
    name = topic.name
    if now.partitions != topic.partitions:
        # The number of partitions must not change: each message id and each committed offset belongs to one partition.
        say = (
            "delete the topic, so that it is created again"
            if topic.partitions == 1
            else f"set --partitions {now.partitions}"
        )
        yield f"topic {name} has {now.partitions} partitions, not {topic.partitions}: {say}"
    if now.replication < kafka.replication:
        yield (
            f"topic {name} has {now.replication} cop{'y' if now.replication == 1 else 'ies'} of each partition, not "
            f"{kafka.replication}: reassign its partitions (kafka-reassign-partitions), "
            f"or set {_fewer(kafka, now.replication)}"
        )
    for setting, wanted in topic.config.items():
        if setting in now.config and not _holds(setting, wanted, now.config[setting]):
            yield (
                f"topic {name} has {setting}={now.config[setting]}: "
                f"kafka-configs --alter --topic {name} --add-config {setting}={wanted}"
            )


def _holds(setting: str, wanted: str, now: str) -> bool:
    """Return whether the value of a topic's setting is acceptable: the required value, for some settings also a safer
    one, and for `segment.bytes` any value.
    """
    match setting:
        case "min.insync.replicas" | "max.message.bytes":
            return int(now) >= int(wanted)
        # The size of segments is not checked: it only decides how soon Kafka compacts the topic, so any size is safe.
        case "segment.bytes":
            return True
        case "flush.messages":
            return int(now) <= int(wanted)
        case _:
            return now.strip() == wanted


def _cursor_problems(kafka: KafkaSettings, cluster: Cluster) -> Iterator[str]:
    """Yield the problems of Kafka's own topic of committed offsets, which holds the listeners' offsets, and of the
    brokers' settings for it.
    """
    for node, settings in sorted(cluster.brokers.items()):
        minutes = settings.get("offsets.retention.minutes")
        if minutes is not None and int(minutes) < OFFSETS_RETENTION_MINUTES_MIN:
            yield (
                f"broker {node} has offsets.retention.minutes={minutes} and would lose the cursor of an idle listener: "
                "set it to 2147483647 in its server.properties (it must be at least "
                f"{OFFSETS_RETENTION_MINUTES_MIN}, a year) and restart it"
            )
    for node, settings in sorted(cluster.brokers.items()):
        size = settings.get("offset.metadata.max.bytes")
        if size is not None and int(size) < METADATA_BYTES_MIN:
            yield (
                f"broker {node} has offset.metadata.max.bytes={size}, and a cursor may need {METADATA_BYTES_MIN}: "
                "raise it in its server.properties and restart it"
            )
    if cluster.topics.get(OFFSETS_TOPIC, FoundTopic(0, 0)).config.get("unclean.leader.election.enable") == "true":
        yield (
            f"topic {OFFSETS_TOPIC} has unclean.leader.election.enable=true and may lose the listeners' cursors: "
            f"kafka-configs --alter --topic {OFFSETS_TOPIC} --add-config unclean.leader.election.enable=false"
        )
    if OFFSETS_TOPIC in cluster.topics:
        now = cluster.topics[OFFSETS_TOPIC].replication
        if now < kafka.replication:
            yield (
                f"topic {OFFSETS_TOPIC}, which holds the listeners' cursors, has {now} "
                f"cop{'y' if now == 1 else 'ies'} of each partition, not {kafka.replication}: "
                f"reassign its partitions (kafka-reassign-partitions), or set {_fewer(kafka, now)}"
            )
        return
    for node, settings in sorted(cluster.brokers.items()):
        factor = settings.get("offsets.topic.replication.factor")
        if factor is not None and int(factor) < kafka.replication:
            yield (
                f"broker {node} has offsets.topic.replication.factor={factor}, not {kafka.replication}: "
                "set it in its server.properties before you create the first listener"
            )
