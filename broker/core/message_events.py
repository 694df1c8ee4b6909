"""The events of messages and their deliveries.

For: their fields and wire names. Not for: the topics that store them (broker/kafka/topics.py).
"""

from __future__ import annotations

from typing import ClassVar, Final

from msgspec import UNSET, UnsetType

from broker.core.event import Event


class MessagePut(Event, frozen=True, kw_only=True, tag="message.put"):
    """The event that a message was put.

    Messages with the same ordering key (`key`) are delivered one at a time, in order. A message with `deliver_at_ms` is
    not delivered before that time, and has no ordering key. Attempts continue the trace that `traceparent` names, if it
    is set.
    """

    message_id: str
    queue_id: str
    name: str
    data: str
    key: str | None = None
    deliver_at_ms: int | UnsetType = UNSET
    traceparent: str | UnsetType = UNSET


class PutClaimed(Event, frozen=True, kw_only=True, tag="put.claimed"):
    """The event which says that a request with an Idempotency-Key is about to put its messages (a claim of the key).
    The claim with `number` 1 holds the key for 24 hours. If the process that wrote this claim does not put the messages
    in time, a claim with the next number takes the key over. While the key is in use, several claims may have the same
    number. Only the first of them has an effect.

    `digest` is the SHA-256 of the organization and the Idempotency-Key. `body_sha256` is the SHA-256 of the values that
    a repeated request must have in common with the first.
    """

    claim_id: str
    queue_id: str
    digest: str
    body_sha256: str
    ids_at_ms: int  # the time in the ids of the messages; `ids_seed` gives the random bits of the ids
    ids_seed: str
    partition: int
    number: int = 1
    of: str = ""  # the `claim_id` of the key's claim with number 1; empty in that claim itself


class MessageChange(Event, frozen=True, kw_only=True):
    """The base class of the events of the topic `changes`. No event has this class itself.

    `partition` and `offset` say where the message is stored in the topic `messages`. If `if_version` is set, the event
    has an effect only if the message still has this version.
    """

    message_id: str
    queue_id: str
    partition: int
    offset: int
    if_version: int | UnsetType = UNSET
    v: int = 2


class MessageUpdated(MessageChange, frozen=True, kw_only=True, tag="message.updated"):
    """The event that a message's data was changed. Later attempts send the new data.

    The event has no effect if the message was deleted before, or does not have the version `if_version`.
    """

    data: str


class MessageDeleted(MessageChange, frozen=True, kw_only=True, tag="message.deleted"):
    """The event that a message was deleted. The message's waiting and parked deliveries are cancelled."""

    urgent: ClassVar[bool] = True


class ChangeApplied(Event, frozen=True, kw_only=True, tag="change.applied"):
    """The event which says that a worker has processed an update or deletion of a message. The worker owns the
    message's partition.

    `applied` is False if the update or deletion has no effect. `listeners` has the id of each listener that gets the
    message, with the state of the delivery at that time. The state is `unknown` if it is not certain.
    """

    queue_id: str
    message_id: str
    partition: int
    change_offset: int  # offset in the topic `changes`
    applied: bool
    listeners: tuple[tuple[str, str], ...]


class PartitionTakenOver(Event, frozen=True, kw_only=True, tag="partition.taken_over"):
    """The event which says that a worker owns a partition, and may send the partition's messages from now on.

    The worker owns the partition until the next event of this kind for the partition, or the event of its hand-over. A
    worker that crashes writes no hand-over.
    """

    partition: int


class PartitionHandedOver(Event, frozen=True, kw_only=True, tag="partition.handed_over"):
    """The event which says that a worker has given up a partition. Before, the worker has written all results of its
    attempts.

    Unfinished deliveries below the offset `in_doubt_below` may have been sent by an earlier owner of the partition that
    crashed before it recorded the attempts. All updates and deletions below the offset `changes_below` of the topic
    `changes` were processed.
    """

    partition: int
    in_doubt_below: int
    changes_below: int | UnsetType = UNSET


class DeliveriesSettled(Event, frozen=True, kw_only=True, tag="deliveries.settled"):
    """The event of one or more deliveries to one listener that were accepted at the first attempt.

    Each row is (offset of the message, time of its acceptance, HTTP status, duration of the attempt in ms). `waited_ms`
    has one number for each row: how many ms passed from the message's put, or from its `deliver_at_ms` if it has one,
    until the message was accepted.
    """

    listener_id: str
    queue_id: str
    partition: int
    rows: tuple[tuple[int, int, int, int], ...]
    waited_ms: tuple[int, ...] | UnsetType = UNSET


class DeliveryAttempted(Event, frozen=True, kw_only=True, tag="delivery.attempted"):
    """The event of one attempt that failed, or that was accepted but was not the first attempt of its delivery.

    `offset` is the offset of the message in its partition of `messages`. Without an answer, `status` is None and
    `error` names the reason, such as `refused` or `timeout`.
    """

    listener_id: str
    queue_id: str
    message_id: str
    partition: int
    offset: int
    number: int  # 1 for the first attempt
    outcome: str  # `delivered`, `failed` or `parked`
    status: int | None
    error: str | None
    took_ms: int
    next_at_ms: int | None
    waited_ms: int | UnsetType = UNSET  # set if the attempt was accepted


# An attempt: message offset, attempt number, answer id, answer partition, answer time, DNS ms, connecting ms, TLS ms.
# In a row for an attempt, the ms of a step are None if the step was absent, for example without TLS.
# In a row for an attempt, the id of the stored answer is empty if no answer is stored.
AnsweredAttempt = tuple[int, int, str, int, int, int | None, int | None, int | None]
# A stored answer: answer id, status, headers, body, whether the body was cut, request URL, request headers.
KeptAnswer = tuple[str, int, tuple[tuple[str, str], ...], str, bool, str, tuple[tuple[str, str], ...]]


class AnswersKept(Event, frozen=True, kw_only=True, tag="answers.kept"):
    """The event that stores answers of a listener to failed attempts, in the topic `deliveries`. The event also stores
    how long the DNS look-up, connecting and TLS took. A worker stores a repeated answer only about once a minute, and a
    limited number of different answers.

    Each attempt in `attempts` refers to its answer by three values: the answer's id, the partition of the event that
    holds the answer, and the time at which the answer was stored. The id is empty if no answer is stored for the
    attempt.
    """

    listener_id: str
    queue_id: str
    partition: int
    attempts: tuple[AnsweredAttempt, ...]
    answers: tuple[KeptAnswer, ...]


class ListenerTested(Event, frozen=True, kw_only=True, tag="listener.tested"):
    """The event that stores the result of one listener test, in the topic `deliveries`.

    `message_id` is the id of the test message. The message itself is not stored. `answers` is empty if there was no
    answer.
    """

    listener_id: str
    queue_id: str
    message_id: str
    partition: int
    status: int | None
    error: str | None
    took_ms: int
    dns_ms: int | None
    connect_ms: int | None
    tls_ms: int | None
    answers: tuple[KeptAnswer, ...]


# A row of statistics: minute, queue_id, listener_id, put, delivered, parked, sum of `waited_ms`, failures, histogram.
# In a row of statistics, `failures` counts the failed attempts by HTTP status or error.
# In a row of statistics, the histogram has the number of deliveries in each range of `waited_ms`.
# `waited_ms` is the time from the message's put, or from its `deliver_at`, until the listener accepted the message.
# If an attempt failed after a redrive, `waited_ms` is the time from the redrive until the message was accepted.
StatisticsRow = tuple[int, str, str, int, int, int, int, dict[str, int], tuple[int, ...]]


class StatisticsCounted(Event, frozen=True, kw_only=True, tag="statistics.counted"):
    """The event which says that some ranges of the log were counted for the statistics. The topic `statistics` stores
    the event, with the counts of each minute.

    `after` is an offset of `statistics`: the process that wrote this event had read all records before it. Each range
    is (topic, partition, first offset, offset after the last, minute of the newest record).
    """

    after: int
    ranges: tuple[tuple[str, int, int, int, int], ...]
    minutes: tuple[StatisticsRow, ...]


# The error of a delivery whose message can't be decoded, for example because a newer version of Everput wrote it.
UNDECODABLE: Final = "undecodable"
# The error of a parked delivery whose message, the message's update or earlier results are damaged in Kafka.
DAMAGED: Final = "damaged"
BARE: Final = (UNDECODABLE, DAMAGED)  # errors without a stored message


class KeptDelivery(Event, frozen=True, kw_only=True):
    """The base class of the events of the topic `outstanding`: a delivery that waits or is parked. The event has a copy
    of the message, unless the message can't be read or decoded.

    `number` counts all attempts made. `forgiven` counts the attempts before the last redrive: they no longer count
    against the limit of attempts. `redrives` counts the redrives of the listener that this event takes into account
    already. A later redrive applies to the delivery if it concerns the message.
    """

    listener_id: str
    queue_id: str
    message_id: str
    partition: int
    offset: int
    number: int
    status: int | None  # HTTP status of the newest attempt
    error: str | None
    put_at_ms: int
    name: str
    data: str
    key: str | None = None
    redrives: int = 0
    forgiven: int = 0
    since_ms: int = 0  # last redrive or `deliver_at`, or 0
    first_at_ms: int = 0  # first attempt, or 0
    traceparent: str | UnsetType = UNSET

    def put(self) -> MessagePut:
        """Return the event of the message's put, with the data that the message had when its delivery was moved to the
        topic `outstanding`.

        The record of the delivery must have a copy of the message.
        """
        return MessagePut(
            at_ms=self.put_at_ms,
            organization_id=self.organization_id,
            message_id=self.message_id,
            queue_id=self.queue_id,
            name=self.name,
            data=self.data,
            key=self.key,
            deliver_at_ms=self.since_ms if self.since_ms and not self.number else UNSET,
            traceparent=self.traceparent,
        )


class DeliverySetAside(KeptDelivery, frozen=True, kw_only=True, tag="delivery.set_aside"):
    """The event which says that a delivery waits in the topic `outstanding`, and not in memory. For example, its next
    attempt is far in the future, or other deliveries needed its place in memory.

    `number` is 0 before the first attempt.
    """

    next_at_ms: int


class DeliveryParked(KeptDelivery, frozen=True, kw_only=True, tag="delivery.parked"):
    """The event which says that a delivery is parked: it has no attempts or no time left, or its message can't be read
    or decoded. The topic `outstanding` keeps it until, for example, it is redriven, its message, listener or queue is
    deleted, or its replay ends.
    """
