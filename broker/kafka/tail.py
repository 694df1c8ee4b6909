"""Membership in the workers' consumer group, and the newest messages (the tail) of this worker's partitions.

For: joining and leaving the group, learning which partitions were assigned or revoked, and reading from given offsets
on. Not for: delivering the messages (broker/delivery), the listeners' cursors (cursors.py).

Everput does not continue at the offsets that this group commits. A successful commit shows that the worker is still a
member, and its metadata holds the notes for the next owner of the partition.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from typing import Any, Final

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener
from aiokafka import errors as kafka_errors
from aiokafka.coordinator.assignors.sticky.sticky_assignor import StickyPartitionAssignor
from aiokafka.structs import TopicPartition

from broker.core.flow import Share
from broker.errors import LogUnavailable
from broker.kafka.long_poll import LongPoll
from broker.kafka.reachability import reachable
from broker.kafka.requests import KafkaRequests
from broker.kafka.topics import topics, workers_group
from broker.ports import SESSION_TIMEOUT_MS, NoMember
from broker.settings import KafkaSettings

log = logging.getLogger(__name__)

_HEARTBEAT_MS: Final = 1_000
_CHECK_S: Final = 1.0
_FAILED_PAUSE_S: Final = 0.5
# aiokafka's consumer keeps up the membership, and fetches no records here. So its fetcher wakes up only once a minute.
_IDLE_MS: Final = 60_000
# The timeout of a group member's requests. Kafka answers a join only when each worker has handed over its partitions.
_ANSWER_MS: Final = SESSION_TIMEOUT_MS + 5_000
# If all polls fail for nine seconds, raise LogUnavailable to end the worker: aiokafka's consumer may never recover.
FAILING_S_MAX: Final = 9.0

_NO_NOTES: Final[Mapping[int, str]] = {}

Gained = Callable[[Collection[int]], None]
GivenUp = Callable[[Collection[int]], Awaitable[None]]


class Tail(ConsumerRebalanceListener):  # type: ignore[misc]
    """A member of the workers' consumer group. It reads new messages of the partitions that Kafka assigns to it.

    `name` is the member's client id. At the start, other members with this client id are removed from the group: they
    are assumed to be from an earlier process that has ended. If `name` is None, nobody is removed.
    """

    def __init__(self, kafka: KafkaSettings, requests: KafkaRequests, *, name: str | None = None) -> None:
        self._topic, self._group = topics(kafka).messages.name, workers_group(kafka)
        self._kafka = kafka
        self._requests = requests
        self._name = name
        self._consumer: Any = None
        self._long_poll = LongPoll(requests, self._topic)
        self._checked_s = 0.0
        self._member = (0, "")
        self._failing_since: float | None = None
        self._gained: Gained
        self._given_up: GivenUp

    async def start(self, gained: Gained, given_up: GivenUp) -> None:
        """See broker.delivery.ports.Membership."""
        self._gained, self._given_up = gained, given_up
        named = {}
        if self._name is not None:
            named["client_id"] = self._name
            await self._replace(self._name)
        self._consumer = AIOKafkaConsumer(
            **await reachable(self._kafka),
            **named,
            group_id=self._group,
            enable_auto_commit=False,
            session_timeout_ms=SESSION_TIMEOUT_MS,
            heartbeat_interval_ms=_HEARTBEAT_MS,
            rebalance_timeout_ms=SESSION_TIMEOUT_MS,
            request_timeout_ms=_ANSWER_MS,
            partition_assignment_strategy=(StickyPartitionAssignor,),
            consumer_timeout_ms=_IDLE_MS,
        )
        self._consumer.subscribe([self._topic], listener=self)
        try:
            await self._consumer.start()
        except (kafka_errors.KafkaError, OSError) as error:
            await self._consumer.stop()
            raise LogUnavailable(f"Kafka could not be reached: {error}") from error

    async def _replace(self, name: str) -> None:
        """Remove the group members with this client id, which are assumed to be from a process that has ended.
        Otherwise no worker would read their partitions until their session times out.
        """
        with contextlib.suppress(LogUnavailable):
            if await self._requests.groups.expel(self._group, name):
                log.info("worker.replaces name=%s", name)

    async def stop(self) -> None:
        """Leave the consumer group, so that other members get the partitions immediately."""
        await self._long_poll.stop()
        if self._consumer is not None:
            with contextlib.suppress(kafka_errors.KafkaError):
                await self._consumer.stop()

    def begin(self, offsets: Mapping[int, int]) -> None:
        """Begin to read each partition in `offsets` from its offset on. Ignore partitions that are no longer assigned
        to this worker.
        """
        assigned = {one.partition for one in self._consumer.assignment()}
        self._long_poll.begin({number: offset for number, offset in offsets.items() if number in assigned})

    async def confirm(self, offsets: Mapping[int, int], notes: Mapping[int, str] = _NO_NOTES) -> None:
        """Check that this worker still owns its partitions. For this, commit `offsets` as a member of the workers'
        consumer group: Kafka accepts the commit only from a current member. Raises NoMember if the worker is no longer
        a member. Raises LogUnavailable if Kafka does not answer, or if `offsets` is empty.

        Kafka's tools show the committed offsets as the group's progress. `notes` has the metadata to commit, by
        partition.
        """
        if not offsets:
            raise LogUnavailable(
                "this worker owns no partitions of the topic `messages` now; the next rebalance may give it some"
            )
        cursors = {partition: (offset, notes.get(partition, "")) for partition, offset in offsets.items()}
        try:
            await self._requests.groups.commit(self._group, self._topic, cursors, member=self._member)
        except LogUnavailable as error:
            if isinstance(error.__cause__, kafka_errors.UnknownMemberIdError | kafka_errors.IllegalGenerationError):
                raise NoMember(str(error)) from error
            raise

    async def notes(self, partitions: Iterable[int]) -> dict[int, str]:
        """See broker.delivery.ports.Membership."""
        found = await self._requests.groups.committed(self._group, self._topic, partitions)
        return {partition: text for partition, (_, text) in found.items() if text}

    async def share(self, partitions: Collection[int]) -> Share:
        """Return three numbers: the fraction of all partitions that this worker owns, the number of workers that own
        partitions, and this worker's index (from 0) in the list of these workers. Raises LogUnavailable if Kafka does
        not answer, or during a rebalance.
        """
        owned = await self._requests.groups.assignments(self._group, self._topic)
        workers = sorted(sorted(one) for one in owned if one)
        if sorted(partitions) not in workers:
            raise LogUnavailable("the workers' consumer group is rebalancing, and the worker tries again")
        return Share(
            partitions=len(partitions) / topics(self._kafka).messages.partitions,
            workers=len(workers),
            rank=workers.index(sorted(partitions)),
        )

    async def read(self) -> Mapping[int, list[Any]]:
        """Return new messages by partition. If there are no new messages, return an empty dictionary after at most
        about a second. Do the same if Kafka can't be reached.

        Raises LogDamaged if the next message of a partition is unreadable on every replica. To continue, call begin()
        with an offset after the damage. Raises LogUnavailable after nine seconds of errors: the caller must then end
        the worker, because aiokafka's tasks for the membership may have ended, and do not restart by themselves.
        """
        try:
            await self._check()
        except kafka_errors.KafkaError as error:
            log.warning("tail.failed error=%s", error)
            now = time.monotonic()
            self._failing_since = self._failing_since or now
            if now - self._failing_since > FAILING_S_MAX:
                raise LogUnavailable(
                    "this worker can't stay in the workers' consumer group, so it ends. A supervisor such as "
                    f"`everput serve` restarts it; without a supervisor, start it again. The error: {error}"
                ) from error
            await asyncio.sleep(_FAILED_PAUSE_S)
            return {}
        return await self._long_poll.read()

    async def _check(self) -> None:
        """Poll aiokafka's consumer, unless a poll has succeeded within the last second. The poll returns no records. It
        raises the error, if any, of aiokafka's tasks for the group membership.

        After five minutes without a poll, aiokafka would leave the consumer group.
        """
        now = time.monotonic()
        if now - self._checked_s >= _CHECK_S or self._failing_since is not None:
            await self._consumer.getmany(timeout_ms=0)
            self._checked_s, self._failing_since = now, None

    # aiokafka calls these two methods.

    async def on_partitions_revoked(self, revoked: Collection[TopicPartition]) -> None:
        self._long_poll.forget()
        await self._given_up([partition.partition for partition in revoked])

    async def on_partitions_assigned(self, assigned: Collection[TopicPartition]) -> None:
        coordinator = self._consumer._coordinator  # noqa: SLF001 - no public attribute has it
        self._member = (coordinator.generation, coordinator.member_id)
        if assigned:
            self._consumer.pause(*assigned)
        self._gained([partition.partition for partition in assigned])
