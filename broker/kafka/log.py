"""The log: everything that a process writes to Kafka, with one producer and one client for single requests.

For: connecting, starting and stopping the objects of all topics. Not for: what each does (control.py, messages.py,
changes.py, claims.py, appender.py), the events (broker/core/events.py), applying them (projections/), new messages for
workers (tail.py).
"""

from __future__ import annotations

from broker.core.changes import CLOCK_SKEW_MS
from broker.disk import Refusal
from broker.kafka.appender import Appender
from broker.kafka.changes import ChangesTopic
from broker.kafka.claims import ClaimsTopic
from broker.kafka.control import ControlTopic
from broker.kafka.group_commit import GroupCommit
from broker.kafka.listener_tests import ListenerTestsTopic
from broker.kafka.messages import MessagesTopic
from broker.kafka.outstanding import KafkaOutstanding
from broker.kafka.producer import Producer
from broker.kafka.read_slots import ReadSlots
from broker.kafka.requests import KafkaRequests
from broker.kafka.topics import topics
from broker.settings import BATCH_PAUSE_MS, KafkaSettings


class KafkaLog:
    """The writers of all Kafka topics that one process writes to. All of them use one Kafka producer. Each topic has
    one writer, except `deliveries`: it has one for the results of workers, and one for the results of listener tests.
    An append waits at most `append_timeout_ms` for Kafka's acknowledgement. `batch_pause_ms` is the longest pause
    between two record batches of messages.
    """

    def __init__(
        self,
        kafka: KafkaSettings,
        *,
        append_timeout_ms: int = 5_000,
        batch_pause_ms: int = BATCH_PAUSE_MS,
        clock_skew_ms: int = CLOCK_SKEW_MS,
    ) -> None:
        names = topics(kafka)
        timeout_s = append_timeout_ms / 1000
        self.requests = KafkaRequests(kafka)
        self.read_slots = ReadSlots()
        self._topics = [topic.name for topic in names.all()]
        self.producer = Producer(kafka)
        self.control = ControlTopic(self.producer, self.requests, names.control.name, timeout_s)
        kept = KafkaOutstanding(kafka, self.requests, self.read_slots).message
        self._writer = GroupCommit(
            self.producer, self.requests, names.messages, timeout_s, pause_s=batch_pause_ms / 1000
        )
        self.messages = MessagesTopic(self._writer, self.requests, names.messages, timeout_s, self.read_slots, kept)
        self.claims = ClaimsTopic(Appender(self.producer, names.claims.name, timeout_s), self.requests, names.claims)
        self.deliveries = Appender(self.producer, names.deliveries.name, timeout_s)
        self.tests = ListenerTestsTopic(Appender(self.producer, names.deliveries.name, timeout_s))
        changes = Appender(self.producer, names.changes.name, timeout_s)
        self.changes = ChangesTopic(
            changes, self.requests, names.deliveries.name, self.read_slots, clock_skew_ms=clock_skew_ms
        )
        self.outstanding = Appender(self.producer, names.outstanding.name, timeout_s)
        self.statistics = Appender(self.producer, names.statistics.name, timeout_s)

    def refuse(self, refusal: Refusal | None) -> None:
        """Refuse the appends of API requests from now on. `refusal` has the reason, such as a nearly full disk.

        Urgent events are refused only if `refusal` says that they are refused, too. Pass None to accept appends again.
        Appends of workers are never refused.
        """
        self._writer.refuse(None if refusal is None else refusal.reason)
        self.control.refusal = refusal
        self.tests.refuse(refusal)
        self.claims.refuse(refusal)
        self.changes.refuse(refusal)

    async def start(self) -> None:
        """Connect to Kafka. Raises LogUnavailable if Kafka can't be reached, or ConfigurationError if a retry can't
        help, such as after a refused password.
        """
        await self.requests.start(self._topics)
        await self.producer.start()
        self._writer.start()
        self.claims.start()

    async def stop(self) -> None:
        """Finish the appends in progress, then disconnect."""
        await self.claims.stop()
        await self._writer.stop()
        await self.producer.stop()
        await self.requests.stop()
