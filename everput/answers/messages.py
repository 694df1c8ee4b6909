"""The shapes of the answers about messages, and of the request that a listener gets."""

from __future__ import annotations

from msgspec import UNSET, UnsetType, field

from everput.answers.base import Answer, Links, ListenerReply, Named, PageLinks, Time


class PutAnswer(Answer):
    """A message that was put."""

    message: Named
    """The message's ID and name."""
    links: Links = field(name="_links")
    """Links of the message."""


class BatchAnswer(Answer):
    """The messages of a batch."""

    messages: list[PutAnswer]
    """One result for each message, in the order of the request."""


class MessageFields(Named, kw_only=True):
    """A message."""

    data: str
    """The data, as it is now. Empty in a list with `data=false`."""
    size: int = 0
    """The size of the data in bytes, as UTF-8. 0 from servers of earlier versions."""
    key: str | None
    """The ordering key; null for none."""
    deliver_at: Time | None
    """The time before which the message is not delivered; null for none."""
    created_at: Time
    """The time at which the message was put."""
    updated_at: Time | None
    """The time at which the data was last changed; null if never."""


class ListedDelivery(Named):
    """The delivery of a message to a listener, in a list of messages. The fields `id` and `name` are the listener's ID
    and name.
    """

    state: str
    """The state: `pending`, `scheduled`, `retrying`, `parked` or `delivered`; `unknown` if too many deliveries are
    outstanding to tell. `scheduled` is pending until the message's `deliver_at`.
    """
    attempts: int | None
    """The number of finished attempts; null if it is not known, as for delivered messages."""
    next_attempt_at: Time | None
    """The time of the next attempt; null if none is planned, or if it is less than a minute away."""


class ListedMessage(MessageFields):
    """A message of a list."""

    listeners: list[ListedDelivery] | UnsetType = UNSET
    """The delivery to each listener. Only with `deliveries=true`."""


class MessagesAnswer(Answer):
    """A page of a queue's messages."""

    messages: list[ListedMessage]
    """The messages, newest first. A page may be short, or empty, while there is a next one."""
    links: PageLinks = field(name="_links")
    """Links to this page and the next."""


class AttemptFields(Answer):
    """An attempt to deliver a message."""

    number: int
    """The number of the attempt, from 1."""
    at: Time
    """The time of the attempt."""
    status: int | None
    """The HTTP status that the listener answered; null if it did not answer."""
    took_ms: int
    """The duration of the attempt, in milliseconds."""
    error: str | None
    """The reason for which there was no answer, such as `timeout`; `failed-in-batch` if the answer to a batch rejects
    the message; null otherwise.
    """
    dns_ms: int | UnsetType = UNSET
    """The duration of the DNS look-up, in milliseconds. Only for a failed attempt."""
    connect_ms: int | UnsetType = UNSET
    """The duration of connecting, in milliseconds. Only for a failed attempt, and missing if a connection was open
    already.
    """
    tls_ms: int | UnsetType = UNSET
    """The duration of the TLS handshake, in milliseconds. Only for a failed attempt, and missing without TLS."""
    answer: ListenerReply | UnsetType = UNSET
    """The listener's answer to a failed attempt. A worker keeps at most 20 different answers of a listener in a minute,
    so the answer may be missing.
    """


class DeliveryFields(Named):
    """The delivery of a message to a listener, with its attempts. The fields `id` and `name` are the listener's ID and
    name.
    """

    state: str
    """The state: `pending`, `retrying`, `parked`, `delivered` or `cancelled`; `unknown` if too many messages were put
    since to tell.
    """
    attempts: list[AttemptFields]
    """The attempts so far, oldest first."""
    next_attempt_at: Time | None
    """The time of the next attempt; null if none is planned."""


class MessageNow(MessageFields):
    """A message with its deliveries."""

    listeners: list[DeliveryFields] | UnsetType = UNSET
    """The delivery to each listener. Missing if the API does not know it."""


class MessageAnswer(Answer):
    """A message with its deliveries and links."""

    message: MessageNow
    """The message."""
    links: Links = field(name="_links")
    """Links of the message."""


class ChangedDelivery(Named):
    """The delivery of a message to a listener when the message was changed or deleted. The fields `id` and `name` are
    the listener's ID and name.
    """

    state: str
    """`delivered` if the listener already had the message as it was before, `unknown` if that is not known. Otherwise
    `cancelled` if the message was deleted, or `pending`, `retrying` or `parked`.
    """


class ChangedMessage(MessageFields):
    """A message that was changed or deleted."""

    listeners: list[ChangedDelivery]
    """The delivery to each listener at the time of the change."""


class ChangedMessageAnswer(Answer):
    """A changed or deleted message with its links."""

    message: ChangedMessage
    """The message."""
    links: Links = field(name="_links")
    """Links of the message."""


class NotifiedQueue(Named):
    """The queue to which the listener's message belongs."""


class NotifiedMessage(Named):
    """The message that a listener gets."""

    data: str
    """The data, as it was put or last changed."""


class Notification(Answer):
    """The body of a request with one message, which a listener with the format `standard` gets."""

    queue: NotifiedQueue
    """The queue of the message."""
    message: NotifiedMessage
    """The message."""


class BatchedMessage(Answer):
    """A message of a batch."""

    id: str
    """The message's ID. It is the same in each attempt: use it to recognize repeats."""
    content_type: str
    """The media type of the body."""
    attempt: int
    """The number of the attempt for this message, from 1."""
    body: Notification
    """The body that a request with this message alone has."""
    traceparent: str | UnsetType = UNSET
    """The place in a trace, as in W3C Trace Context. Missing if the message has none."""


class BatchReply(Answer):
    """The body of a listener's answer to a batch, if the answer's status is 2xx. A 2xx answer without a body accepts
    all messages. An answer with any other status rejects all messages.
    """

    failed: list[str]
    """The IDs of the messages that the listener does not accept. They are retried."""
