"""The rules by which an existing Kafka is refused, one by one: each says what to change."""

from __future__ import annotations

from dataclasses import replace

import pytest

from broker.kafka.safety import OFFSETS_TOPIC, Cluster, FoundTopic, doubts, problems
from broker.kafka.topics import topics
from broker.settings import KafkaSettings

SETTINGS = KafkaSettings(bootstrap="kafka:9092", partitions=8)
TABLE = topics(SETTINGS)
SAFE_BROKER = {"offsets.retention.minutes": "2147483647", "offsets.topic.replication.factor": "3"}
MESSAGES = TABLE.messages.name


def cluster(*, brokers: int = 3, broker: dict[str, str] | None = None, **changed) -> Cluster:
    """A safe one, but for the changes to the topic `messages`."""
    found = {one.name: FoundTopic(one.partitions, 3, dict(one.config)) for one in TABLE.all()}
    config = {**found[MESSAGES].config, **changed.pop("config", {})}
    found[MESSAGES] = replace(found[MESSAGES], config=config, **changed)
    return Cluster({node: {**SAFE_BROKER, **(broker or {})} for node in range(1, brokers + 1)}, found)


def the_problem(settings: KafkaSettings, now: Cluster) -> str:
    found = problems(settings, topics(settings), now)
    assert len(found) == 1, found
    return found[0]


def test_a_safe_cluster_has_no_problems():
    assert problems(SETTINGS, TABLE, cluster()) == []


def test_more_than_is_asked_for_is_safe_too():
    config = {"min.insync.replicas": "3", "max.message.bytes": "99999999"}
    assert problems(SETTINGS, TABLE, cluster(replication=4, config=config)) == []


@pytest.mark.parametrize(
    ("setting", "value", "wanted"),
    [
        ("retention.ms", "604800000", "-1"),
        ("retention.bytes", "1000000000", "-1"),
        ("cleanup.policy", "compact,delete", "delete"),
        ("cleanup.policy", "compact", "delete"),
        ("unclean.leader.election.enable", "true", "false"),
        ("min.insync.replicas", "1", "2"),
        ("max.message.bytes", "1048588", str(8 << 20)),
    ],
)
def test_a_topic_setting_that_would_lose_data_is_named_with_the_command_that_changes_it(setting, value, wanted):
    said = the_problem(SETTINGS, cluster(config={setting: value}))
    assert f"{setting}={value}" in said
    assert f"--topic {MESSAGES} --add-config {setting}={wanted}" in said


def test_too_few_copies_of_a_topic():
    assert the_problem(SETTINGS, cluster(replication=2)).endswith("or set --replication 2")


def test_another_number_of_partitions_says_which_to_set():
    assert "set --partitions 12" in the_problem(SETTINGS, cluster(partitions=12))


def test_no_fsync_where_one_is_needed():
    settings = replace(SETTINGS, flush_each_batch=True)
    synced = {
        name: replace(one, config={**one.config, "flush.messages": "1"}) for name, one in cluster().topics.items()
    }
    assert problems(settings, topics(settings), Cluster(cluster().brokers, synced)) == []
    synced[MESSAGES] = replace(synced[MESSAGES], config={"flush.messages": "9223372036854775807"})
    assert "--add-config flush.messages=1" in the_problem(settings, Cluster(cluster().brokers, synced))


def test_cursors_that_would_expire_are_named_for_every_broker():
    found = problems(SETTINGS, TABLE, cluster(broker={"offsets.retention.minutes": "10080"}))
    assert len(found) == 3
    assert all("offsets.retention.minutes=10080" in one and "2147483647" in one for one in found)


def test_cursors_with_too_few_copies():
    assert len(problems(SETTINGS, TABLE, cluster(broker={"offsets.topic.replication.factor": "1"}))) == 3
    made = cluster()
    made = Cluster(made.brokers, {**made.topics, OFFSETS_TOPIC: FoundTopic(50, 1)})
    assert OFFSETS_TOPIC in the_problem(SETTINGS, made)


def test_a_single_broker_says_to_accept_a_single_copy():
    now = Cluster({1: SAFE_BROKER}, {})
    assert "1 broker " in the_problem(SETTINGS, now)
    assert the_problem(SETTINGS, now).endswith("--replication 1 --min-insync 1 --flush-each-batch")
    advised = replace(SETTINGS, replication=1, min_insync=1, flush_each_batch=True)
    assert problems(advised, topics(advised), now) == []


def test_a_single_copy_of_a_topic_says_to_sync_it():
    said = the_problem(SETTINGS, cluster(replication=1))
    assert said.endswith("--replication 1 --min-insync 1 --flush-each-batch")


@pytest.mark.parametrize("replication", [1, 3])
@pytest.mark.parametrize("made", [True, False])
def test_an_acknowledgement_of_one_broker_that_has_not_synced_is_refused(replication, made):
    settings = replace(SETTINGS, replication=replication, min_insync=1)
    now = cluster() if made else Cluster(cluster().brokers, {})
    said = the_problem(settings, now)
    assert "--min-insync 2" in said
    assert "--flush-each-batch" in said
    synced = replace(settings, flush_each_batch=True)
    assert problems(synced, topics(synced), Cluster(now.brokers, {})) == []


def test_more_acknowledgements_than_copies_can_never_be_given():
    settings = replace(SETTINGS, replication=2, min_insync=3)
    assert "lower --min-insync" in the_problem(settings, Cluster({1: SAFE_BROKER, 2: SAFE_BROKER}, {}))


def test_what_may_not_be_read_is_not_judged():
    now = Cluster({1: {}, 2: {}, 3: {}}, {one.name: FoundTopic(one.partitions, 3) for one in TABLE.all()})
    assert problems(SETTINGS, TABLE, now) == []


def test_all_problems_are_told_at_once():
    now = cluster(partitions=3, replication=1, config={"retention.ms": "1", "retention.bytes": "1"})
    assert len(problems(SETTINGS, TABLE, now)) == 4


UNSYNCED = replace(SETTINGS, flush_each_batch=False)
SYNCED = replace(SETTINGS, flush_each_batch=True)


def test_a_cluster_without_eligible_leader_replicas_is_refused_unless_each_batch_is_flushed():
    without = replace(cluster(), features={"metadata.version": 25})
    assert "--feature eligible.leader.replicas.version=1" in the_problem(UNSYNCED, without)
    flushed = replace(
        without, topics={n: replace(t, config={**t.config, "flush.messages": "1"}) for n, t in without.topics.items()}
    )
    assert problems(SYNCED, topics(SYNCED), flushed) == []
    level_0 = replace(cluster(), features={"eligible.leader.replicas.version": 0})
    assert "eligible leader replicas" in the_problem(UNSYNCED, level_0)
    enough = replace(cluster(), features={"eligible.leader.replicas.version": 1})
    assert problems(UNSYNCED, TABLE, enough) == []
    assert list(doubts(UNSYNCED, enough)) == []


def test_where_the_features_are_not_known_that_is_said_and_the_cluster_taken():
    assert problems(UNSYNCED, TABLE, cluster()) == []
    (doubt,) = doubts(UNSYNCED, cluster())
    assert "eligible.leader.replicas.version" in doubt
    assert list(doubts(SYNCED, cluster())) == []


def test_room_for_the_metadata_of_cursors():
    assert "offset.metadata.max.bytes=1024" in the_problem(
        SETTINGS, cluster(brokers=1, broker={"offset.metadata.max.bytes": "1024"})
    )
    assert problems(SETTINGS, TABLE, cluster(broker={"offset.metadata.max.bytes": "4096"})) == []


def test_cursors_must_not_be_lost_to_an_unclean_leader_and_few_copies_of_them_are_said():
    now = cluster()
    unclean = FoundTopic(50, 3, {"unclean.leader.election.enable": "true", "min.insync.replicas": "1"})
    said = the_problem(SETTINGS, replace(now, topics={**now.topics, OFFSETS_TOPIC: unclean}))
    assert f"--topic {OFFSETS_TOPIC} --add-config unclean.leader.election.enable=false" in said
    few = FoundTopic(50, 3, {"min.insync.replicas": "1"})
    (doubt,) = doubts(SYNCED, replace(now, topics={**now.topics, OFFSETS_TOPIC: few}))
    assert "min.insync.replicas=1" in doubt
    (doubt,) = doubts(SYNCED, cluster(broker={"min.insync.replicas": "1"}))
    assert "broker 1 has min.insync.replicas=1" in doubt
