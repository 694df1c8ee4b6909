"""Creates the topics, and refuses a Kafka cluster that would lose data.

For: waiting for the cluster, creating topics, reading the cluster's settings. Not for: the safety rules (safety.py),
the list of topics (topics.py). Existing topics are never altered: the error says what to change, and the operator
decides.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import KafkaError, for_code
from aiokafka.protocol.transaction import InitProducerIdRequest

from broker.errors import ConfigurationError, LogUnavailable
from broker.kafka import safety
from broker.kafka.client import client_options
from broker.kafka.features import FeaturesRequest, finalized
from broker.kafka.reachability import of_those_that_answer, why_not
from broker.kafka.topics import Topic, Topics, import_mark, workers_group
from broker.settings import KafkaSettings

_log = logging.getLogger(__name__)

_CLUSTER_WITHIN_S: Final = 30.0
_BROKERS_WITHIN_S: Final = 10.0
_RETRY_S: Final = 0.2
_FIRST_LOOK_S: Final = 0.02  # new topics usually have leaders after this time
_RETRY_S_MAX: Final = 1.0
_REQUEST_TIMEOUT_MS: Final = 10_000
_EXISTS: Final = "TopicAlreadyExistsError"


async def ensure_topics(
    kafka: KafkaSettings,
    topics: Topics,
    *,
    importing: bool = False,
    within_s: float = _CLUSTER_WITHIN_S,
    brokers_within_s: float = _BROKERS_WITHIN_S,
    quiet: bool = False,
) -> None:
    """Create the missing Kafka topics of Everput, and wait until every partition of Everput's topics has a leader. Then
    check the settings of the topics and brokers. Existing topics are not changed. Several processes may call this
    function at the same time. With `quiet`, do not log which topics are created.

    Raises LogUnavailable if all of this takes longer than `within_s` seconds. Raises ConfigurationError if settings of
    Everput or Kafka are wrong or unsafe, if Kafka refuses the password or a new topic, or if a missing topic would have
    more replicas than there are brokers. Unless `importing` is true, also raises ConfigurationError if an import is
    unfinished.
    """
    options = client_options(kafka)
    try:
        async with asyncio.timeout(within_s), connected(options) as admin:
            await _wake(admin, kafka)
            found = await _created(
                admin, kafka, topics, importing=importing, brokers_within_s=brokers_within_s, quiet=quiet
            )
            cluster = await _cluster(admin, topics, found)
            _refuse(safety.problems(kafka, topics, cluster))
            for doubt in safety.doubts(kafka, cluster):
                _log.warning('kafka.doubtful what="%s"', doubt)
    except TimeoutError:
        _log.warning('kafka.awaited servers=%s reason="no answer, or topics without leaders"', kafka.bootstrap)
        raise LogUnavailable(
            f"Kafka at {kafka.bootstrap} did not answer, or its topics had no leaders, within {within_s:.0f} s: "
            "check its brokers"
        ) from None


def _refuse(problems: list[str]) -> None:
    if problems:
        raise ConfigurationError(
            "Everput can't use this Kafka cluster until these things are changed:\n- " + "\n- ".join(problems)
        )


def refuse_half_import(kafka: KafkaSettings, names: Iterable[str]) -> None:
    """Raise ConfigurationError if one of these topic names marks an unfinished import into this installation."""
    if any(name.startswith(import_mark(kafka)) for name in names):
        raise ConfigurationError(
            f"the topics {kafka.topic_prefix}* hold an unfinished import: if it is still running, wait for its end; "
            "if it was interrupted, run `everput import` again with the same folder"
        )


@asynccontextmanager
async def connected(options: dict[str, Any]) -> AsyncIterator[AIOKafkaAdminClient]:
    """Connect a Kafka admin client, and close it at the end of the `async with` block. Retry until Kafka answers or the
    caller cancels.

    Raises ConfigurationError if a retry can't help, such as after a refused password.
    """
    pause_s, said = _RETRY_S, ""
    while True:
        answering = await of_those_that_answer(options)
        admin = AIOKafkaAdminClient(**answering, request_timeout_ms=_REQUEST_TIMEOUT_MS)
        try:
            await admin.start()
            break
        except (KafkaError, OSError):
            await admin.close()
        except BaseException:
            await admin.close()
            raise
        reason = await why_not(options)
        if reason != said:
            said = reason
            _log.warning('kafka.awaited servers=%s reason="%s"', ",".join(options["bootstrap_servers"]), reason)
        await asyncio.sleep(pause_s)
        pause_s = min(pause_s * 2, _RETRY_S_MAX)
    try:
        yield admin
    finally:
        await admin.close()


async def _wake(admin: AIOKafkaAdminClient, kafka: KafkaSettings) -> None:
    """Let Kafka prepare what Everput's clients soon need: the topic for committed offsets, and a range of producer ids.
    A new Kafka does so only when it is first asked, and refuses this first request. Errors are ignored, because the
    clients ask again.
    """
    with suppress(KafkaError, OSError):
        await admin.find_coordinator(workers_group(kafka))
    with suppress(KafkaError, OSError, NotImplementedError):
        await admin._send_request(InitProducerIdRequest(None, -1))  # noqa: SLF001 - it has none for this


async def _enough_brokers(admin: AIOKafkaAdminClient, kafka: KafkaSettings, within_s: float) -> int:
    """Wait until there are as many Kafka brokers as each topic has replicas, but at most `within_s`. Return the number
    of brokers in Kafka's newest answer; 0 if Kafka did not answer.
    """
    brokers = 0
    with suppress(TimeoutError):
        async with asyncio.timeout(within_s):
            while True:
                with suppress(KafkaError, OSError):
                    brokers = len((await admin.describe_cluster())["brokers"])
                    if brokers >= kafka.replication:
                        break
                await asyncio.sleep(_RETRY_S)
    return brokers


async def _created(
    admin: AIOKafkaAdminClient,
    kafka: KafkaSettings,
    topics: Topics,
    *,
    importing: bool,
    brokers_within_s: float,
    quiet: bool,
) -> Mapping[str, Any]:
    """Create the missing topics, wait until every topic of Everput has leaders, and return the metadata of all topics
    of the cluster.

    If no topic is missing, the number of brokers is not checked, because a broker of a running cluster may be down.
    """
    asked, pause_s = False, _FIRST_LOOK_S
    while True:
        with suppress(KafkaError, OSError):
            # List all topics, because on many Kafka clusters a request for a missing topic would create it.
            found = {one["topic"]: one for one in await admin.describe_topics()}
            if not importing:
                refuse_half_import(kafka, found)
            missing = [topic for topic in topics.all() if topic.name not in found]
            if missing and not asked:
                asked = True
                _refuse(list(safety.copies(kafka, await _enough_brokers(admin, kafka, brokers_within_s))))
            if missing:
                await _create(admin, kafka, missing, quiet=quiet)
            elif all(_is_led(found[topic.name]) for topic in topics.all()):
                return found
        await asyncio.sleep(pause_s)
        pause_s = min(pause_s * 2, _RETRY_S)


def _is_led(topic: Mapping[str, Any]) -> bool:
    return topic["error_code"] == 0 and all(
        one["error_code"] == 0 and one["leader"] >= 0 for one in topic["partitions"]
    )


async def _create(admin: AIOKafkaAdminClient, kafka: KafkaSettings, missing: list[Topic], *, quiet: bool) -> None:
    wanted = [NewTopic(one.name, one.partitions, kafka.replication, topic_configs=one.config) for one in missing]
    answer = await admin.create_topics(wanted, timeout_ms=_REQUEST_TIMEOUT_MS)
    for name, code, message in answer.topic_errors:
        error = for_code(code)
        if code == 0:
            if not quiet:
                _log.info("topic.created name=%s", name)
        # If another process has created the topic at the same time, this is no error.
        # If Kafka says that a retry may help, raise no error: the caller lists the topics again, and retries.
        elif error.__name__ != _EXISTS and not getattr(error, "retriable", False):
            raise ConfigurationError(
                f"Kafka refused to create the topic {name}: {message or error.__name__}; correct the cause, and "
                "start again"
            )


async def _cluster(admin: AIOKafkaAdminClient, topics: Topics, found: Mapping[str, Any]) -> safety.Cluster:
    """Return the facts about the cluster from which safety.problems() decides whether the cluster is safe. If Kafka
    does not answer, repeat the requests for its brokers and settings.
    """
    names = [topic.name for topic in topics.all()]
    while True:
        with suppress(KafkaError, OSError):
            brokers = [one["node_id"] for one in (await admin.describe_cluster())["brokers"]]
            break
        await asyncio.sleep(_RETRY_S)
    kept = {*names, safety.OFFSETS_TOPIC}
    configs = await _configs(admin, [name for name in kept if name in found], brokers)
    return safety.Cluster(
        brokers={node: configs.get(str(node), {}) for node in brokers},
        topics={
            name: safety.FoundTopic(
                partitions=len(topic["partitions"]),
                replication=min(len(one["replicas"]) for one in topic["partitions"]),
                config=configs.get(name, {}),
            )
            for name, topic in found.items()
            if name in kept
        },
        features=await _features(admin),
    )


async def _features(admin: AIOKafkaAdminClient) -> Mapping[str, int] | None:
    """Return the cluster's feature levels; None if the cluster does not report them, or if the request fails."""
    try:
        return finalized(await admin._send_request(FeaturesRequest()))  # noqa: SLF001 - it has none for this
    except (KafkaError, NotImplementedError, OSError, ValueError) as error:
        _log.info("kafka.features_unknown error=%s", type(error).__name__)
        return None


async def _configs(admin: AIOKafkaAdminClient, names: list[str], brokers: list[int]) -> dict[str, dict[str, str]]:
    """Return all settings of the topics, and the BROKER_SETTINGS of the brokers, by topic name or broker id. If Kafka
    does not tell the settings of a topic or broker, log a warning and leave out this topic or broker. Retry until Kafka
    answers.
    """
    wanted = [ConfigResource(ConfigResourceType.TOPIC, name) for name in names]
    asked = dict.fromkeys(safety.BROKER_SETTINGS, "")
    wanted += [ConfigResource(ConfigResourceType.BROKER, str(node), asked) for node in brokers]
    while True:
        try:
            answers = await admin.describe_configs(wanted)
            break
        except (KafkaError, OSError) as error:
            _log.info("kafka.waiting error=%s", error)
            await asyncio.sleep(_RETRY_S)
    configs: dict[str, dict[str, str]] = {}
    for code, message, _kind, name, entries in (resource for answer in answers for resource in answer.resources):
        if code != 0:
            _log.warning("kafka.unchecked resource=%s error=%s", name, message or for_code(code).__name__)
            continue
        configs[name] = {entry[0]: entry[1] for entry in entries if entry[1] is not None}
    return configs
