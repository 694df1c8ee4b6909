"""The events of messages and their deliveries.

For: their fields and wire names. Not for: the topics they are stored in (broker/kafka/topics.py)."""

from __future__ import annotations

from typing import ClassVar, Final

from msgspec import UNSET, UnsetType

from broker.core.event import Event


class MessagePut(Event, frozen=True, kw_only=True, tag="message.put"):
    """The event that a message was put.

    key: the ordering key; messages of one key are delivered one at a time, in order.
    deliver_at_ms: the message is not delivered before this time; absent for at once. A message has at most one of the
        two.
    """

    message_id: str
    queue_id: str
    name: str
    data: str
    key: str | None = None
    deliver_at_ms: int | UnsetType = UNSET


class PutClaimed(Event, frozen=True, kw_only=True, tag="put.claimed"):
    """The event that a request with an Idempotency-Key is about to put its messages, if it is the first claim of its
    number.

    digest: hex SHA-256 of organization and key.
    body_sha256: of the request's values, which a repeat must have, too.
    number: 1, or one more than the claim that it takes over from.
    of: the claim_id of number 1; empty in that one itself.
    ids_at_ms, ids_seed, partition: what the messages' ids are made from.
    """

    claim_id: str
    queue_id: str
    digest: str
    body_sha256: str
    ids_at_ms: int
    ids_seed: str
    partition: int
    number: int = 1
    of: str = ""


class MessageChange(Event, frozen=True, kw_only=True):
    """The base class of the events of `changes`. It is not an event itself.

    partition, offset: the message's place in `messages`.
    if_version: the event counts only if the message is at this version (broker/core/changes.py).
    """

    message_id: str
    queue_id: str
    partition: int
    offset: int
    if_version: int | UnsetType = UNSET
    v: int = 2


class MessageUpdated(MessageChange, frozen=True, kw_only=True, tag="message.updated"):
    """The event that a message's data was changed. Later attempts send the new data. After a deletion it changes
    nothing.
    """

    data: str


class MessageDeleted(MessageChange, frozen=True, kw_only=True, tag="message.deleted"):
    """The event that a message was deleted. Deliveries that have not been sent are cancelled."""

    urgent: ClassVar[bool] = True


class ChangeApplied(Event, frozen=True, kw_only=True, tag="change.applied"):
    """The event that the owner of the partition has begun to honor a change. It is kept in `deliveries`.

    change_offset: the change's, in `changes`.
    applied: False when the change does not count (broker/core/changes.py).
    listeners: (id, state) at that moment: `delivered`, `retrying`, `parked`, `pending` or `unknown`.
    """

    queue_id: str
    message_id: str
    partition: int
    change_offset: int
    applied: bool
    listeners: tuple[tuple[str, str], ...]


class PartitionTakenOver(Event, frozen=True, kw_only=True, tag="partition.taken_over"):
    """The event that a worker owns a partition, and may send from now on. It is kept in `deliveries`.

    While no event follows it, that worker still owns the partition, or has crashed.
    """

    partition: int


class PartitionHandedOver(Event, frozen=True, kw_only=True, tag="partition.handed_over"):
    """The event that an owner gave a partition up with everything written. It is kept in `deliveries`.

    in_doubt_below: an earlier owner crashed; what was open below this offset of `messages` may have been sent.
    changes_below: all changes below this offset of `changes` were honored; unset by older programs.
    """

    partition: int
    in_doubt_below: int
    changes_below: int | UnsetType = UNSET


class DeliveriesSettled(Event, frozen=True, kw_only=True, tag="deliveries.settled"):
    """The event of first attempts that succeeded, gathered per stream and checkpoint.

    partition: of `messages`.
    rows: (offset, at_ms, status, took_ms), each a delivery accepted at attempt 1.
    waited_ms: the time of each row from the put, or from deliver_at_ms, to at_ms.
    """

    listener_id: str
    queue_id: str
    partition: int
    rows: tuple[tuple[int, int, int, int], ...]
    waited_ms: tuple[int, ...] | UnsetType = UNSET


class DeliveryAttempted(Event, frozen=True, kw_only=True, tag="delivery.attempted"):
    """The event of one attempt that failed, or that succeeded after failures.

    offset: the message's, in its partition of `messages`.
    number: 1 for the first attempt.
    status: None when there was no answer; `error` then names the reason in a word (`refused`, `timeout`, …).
    next_at_ms: when the next attempt is due, if there is one.
    outcome: `delivered`, `failed` or `parked`.
    waited_ms: as in DeliveriesSettled, of an attempt that delivered.
    """

    listener_id: str
    queue_id: str
    message_id: str
    partition: int
    offset: int
    number: int
    outcome: str
    status: int | None
    error: str | None
    took_ms: int
    next_at_ms: int | None
    waited_ms: int | UnsetType = UNSET


# One row is: minute, queue_id, listener_id, put, delivered, parked, sum of waited_ms,
# failed attempts by answer, waiting times by step of histogram.BOUNDS_MS.
StatisticsRow = tuple[int, str, str, int, int, int, int, dict[str, int], tuple[int, ...]]


class StatisticsCounted(Event, frozen=True, kw_only=True, tag="statistics.counted"):
    """The event that ranges of the log were counted per minute (statistics.py). Kept in `statistics`.

    after: the offset of `statistics` below which the writer had read everything.
    ranges: (topic, partition, first offset, the offset after the last, minute of the newest record).
    """

    after: int
    ranges: tuple[tuple[str, int, int, int, int], ...]
    minutes: tuple[StatisticsRow, ...]


# The error of a delivery whose message only a newer program can read; its record has no payload.
UNDECODABLE: Final = "undecodable"
DAMAGED: Final = "damaged"  # the error of a delivery whose message can't be read; its record has no payload
BARE: Final = (UNDECODABLE, DAMAGED)  # errors of records without a payload


class KeptDelivery(Event, frozen=True, kw_only=True):
    """The base class of the events of `outstanding`: a delivery with a copy of its message. It is not an event itself.

    number: attempts made.
    status, error: of the last attempt.
    redrives: how many redrives of its listener the writer had seen.
    forgiven: attempts before the last redrive, which no longer count.
    since_ms: the last redrive, or the message's `deliver_at`; 0 for neither.
    first_at_ms: the first attempt; 0 before it. The delivery's age counts from the later of the two.
    """

    listener_id: str
    queue_id: str
    message_id: str
    partition: int
    offset: int
    number: int
    status: int | None
    error: str | None
    put_at_ms: int
    name: str
    data: str
    key: str | None = None
    redrives: int = 0
    forgiven: int = 0
    since_ms: int = 0
    first_at_ms: int = 0

    def put(self) -> MessagePut:
        """Return the message's put event, as the message was when the delivery was set aside. Not for an UNDECODABLE
        message.
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
        )


class DeliverySetAside(KeptDelivery, frozen=True, kw_only=True, tag="delivery.set_aside"):
    """The event that a delivery waits in `outstanding` for an attempt that is later than its stream can wait.

    number: 0 before the first attempt. The message then has a `deliver_at`, waits for its ordering key, or is too old
        for the log.
    """

    next_at_ms: int


class DeliveryParked(KeptDelivery, frozen=True, kw_only=True, tag="delivery.parked"):
    """The event that a delivery has no attempt left. It stays in `outstanding` until it is redriven or cancelled."""
