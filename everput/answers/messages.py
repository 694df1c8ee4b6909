"""The shapes of the answers about messages, and of the request that a listener gets."""

from __future__ import annotations

from msgspec import UNSET, UnsetType, field

from everput.answers.base import Answer, Links, Named, PageLinks, Time


class PutAnswer(Answer):
    """A message that was put.

    message: The message's ID and name.
    links: Links of the message.
    """

    message: Named
    links: Links = field(name="_links")


class BatchAnswer(Answer):
    """The messages of a batch.

    messages: One result for each message, in the order of the request.
    """

    messages: list[PutAnswer]


class MessageFields(Named):
    """A message.

    data: The data, as it is now.
    key: The ordering key; null for none.
    deliver_at: The time before which the message is not delivered; null for none.
    created_at: The time at which the message was put.
    updated_at: The time at which the data was last changed; null if never.
    """

    data: str
    key: str | None
    deliver_at: Time | None
    created_at: Time
    updated_at: Time | None


class MessagesAnswer(Answer):
    """A page of a queue's messages.

    messages: The messages, newest first. A page may be short, or empty, while there is a next one.
    links: Links to this page and the next.
    """

    messages: list[MessageFields]
    links: PageLinks = field(name="_links")


class AttemptFields(Answer):
    """An attempt to deliver a message.

    number: The number of the attempt, from 1.
    at: The time of the attempt.
    status: The HTTP status that the listener answered; null if it did not answer.
    took_ms: The duration of the attempt, in milliseconds.
    error: The reason for which there was no answer, such as `timeout`; null if there was one.
    """

    number: int
    at: Time
    status: int | None
    took_ms: int
    error: str | None


class DeliveryFields(Named):
    """The delivery of a message to a listener. `id` and `name` are the listener's.

    state: The state: `pending`, `retrying`, `parked`, `delivered` or `cancelled`; `unknown` if too many messages
        were put since to tell.
    attempts: The attempts so far, oldest first.
    next_attempt_at: The time of the next attempt; null if none is planned.
    """

    state: str
    attempts: list[AttemptFields]
    next_attempt_at: Time | None


class MessageNow(MessageFields):
    """A message with its deliveries.

    listeners: The delivery to each listener. Missing if the API does not know it.
    """

    listeners: list[DeliveryFields] | UnsetType = UNSET


class MessageAnswer(Answer):
    """A message with its deliveries and links.

    message: The message.
    links: Links of the message.
    """

    message: MessageNow
    links: Links = field(name="_links")


class ChangedDelivery(Named):
    """The delivery of a changed or deleted message to a listener. `id` and `name` are the listener's.

    state: `delivered` if the listener already had the message as it was before, `unknown` if that is not known.
        Otherwise `cancelled` if the message was deleted, or `pending`, `retrying` or `parked`.
    """

    state: str


class ChangedMessage(MessageFields):
    """A message that was changed or deleted.

    listeners: The delivery to each listener at the time of the change.
    """

    listeners: list[ChangedDelivery]


class ChangedMessageAnswer(Answer):
    """A changed or deleted message with its links.

    message: The message.
    links: Links of the message.
    """

    message: ChangedMessage
    links: Links = field(name="_links")


class NotifiedQueue(Named):
    """The queue of a message that a listener gets."""


class NotifiedMessage(Named):
    """The message that a listener gets.

    data: The data, as it was put or last changed.
    """

    data: str


class Notification(Answer):
    """The body of the request that a listener gets.

    queue: The queue of the message.
    message: The message.
    """

    queue: NotifiedQueue
    message: NotifiedMessage
