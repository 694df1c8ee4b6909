"""The shapes of the answers about listeners: settings, state, secrets, tests, waiting deliveries."""

from __future__ import annotations

from msgspec import UNSET, UnsetType, field

from everput.answers.base import Answer, Count, Link, Links, ListenerReply, Named, PageLinks, Time
from everput.answers.queues import AlertFields


class BatchFields(Answer):
    """The limits of a request that carries several messages to a listener."""

    max_messages: int
    """The most messages in a request."""
    max_bytes: int
    """The most bytes in the body of a request. A message that is larger is sent alone."""
    wait_ms: int
    """The longest time that a message waits for others, in milliseconds."""


class ListenerFields(Named, kw_only=True):
    """A listener: the URL that gets every message of a queue."""

    notify_url: str
    """The URL to which each message is sent by POST. A tunnel's URL is shown without its secret part."""
    liveness_url: str
    """The URL that is checked by GET while deliveries fail."""
    max_in_flight: int
    """The most requests to the listener at a time, over all workers; each worker may send at least one."""
    rate_per_s: float | None
    """The most deliveries per second; null for no limit."""
    timeout_ms: int
    """The time that an attempt may take, in milliseconds."""
    max_attempts: int | None
    """The attempts after which a delivery is parked; null for no limit."""
    max_age_s: int
    """The seconds after its first attempt at which a failing delivery is parked."""
    retry_first_ms: int
    """The longest delay after the first failure, in milliseconds. It doubles with each further failure."""
    retry_max_s: int
    """The longest delay between two attempts, in seconds."""
    headers: dict[str, str]
    """The headers added to each request. Values are shown as `…`."""
    format: str
    """The format of the requests: `standard`, or `slack` for Slack's incoming webhooks."""
    batch: BatchFields | None
    """The limits of a request that carries several messages; null for one message in each request."""
    paused: str | None
    """The reason for which the listener is paused; null if it is not."""
    created_at: Time
    """The time at which the listener was created."""
    alerts: AlertFields | UnsetType = UNSET
    """The thresholds for alerts about the listener; absent if none is set."""


class ListenerAnswer(Answer):
    """A listener with its links."""

    listener: ListenerFields
    """The listener."""
    links: Links = field(name="_links")
    """Links of the listener."""


class NewListenerFields(ListenerFields):
    """A new listener with its signing secret."""

    secret: str
    """The secret that signs the requests (Standard Webhooks). Give it to the listener."""


class NewListenerAnswer(Answer):
    """A new listener with its links."""

    listener: NewListenerFields
    """The listener."""
    links: Links = field(name="_links")
    """Links of the listener."""


class ListenerHealth(ListenerFields):
    """A listener with its current health. If the request asks about a past time (`at`), the fields about the health are
    missing. In a list of listeners, they are also missing while Kafka does not answer in time. A list has `lag` and
    `oldest_pending_at` only with `backlog=true`.
    """

    health: str | UnsetType = UNSET
    """The state: `healthy`; `failing`: it is sent messages, but too many of the newest attempts have failed; `down`: it
    is sent nothing until its liveness_url answers; `paused`; `replaying`: healthy, and a replay to it is running;
    `new`: no attempt has ended yet.
    """
    parked: Count | UnsetType = UNSET
    """The number of parked deliveries."""
    retrying: Count | UnsetType = UNSET
    """The number of deliveries with a failed attempt that are retried. The list of deliveries leaves out most of those
    that have failed for less than a minute.
    """
    recent_attempts: Count | UnsetType = UNSET
    """The attempts of the last 5 minutes."""
    recent_failures: Count | UnsetType = UNSET
    """The failed attempts of the last 5 minutes."""
    last_success_at: Time | UnsetType | None = UNSET
    """The time of the last attempt that the listener accepted; null if there is none."""
    last_failure_at: Time | UnsetType | None = UNSET
    """The time of the last attempt that failed; null if there is none."""
    last_error: str | UnsetType | None = UNSET
    """The error or the HTTP status of the newest failed attempt; null if there is none, or if a later attempt was
    accepted.
    """
    lag: Count | UnsetType = UNSET
    """The number of messages still to be delivered, without parked ones and those whose `deliver_at` is to come."""
    oldest_pending_at: Time | UnsetType | None = UNSET
    """The time at which the oldest message that `lag` counts was put; null if there is none."""


class ListenerNow(ListenerHealth):
    """A listener with its current state and health. If the request asks about a past time (`at`), all fields about the
    state and the health are missing.
    """

    state: str | UnsetType = UNSET
    """`live`, `down` or `paused`. It does not say whether a live listener accepts what it is sent; `health` does."""


class ListenerNowAnswer(Answer):
    """A listener with its current state and its links."""

    listener: ListenerNow
    """The listener."""
    links: Links = field(name="_links")
    """Links of the listener."""


class ListenersAnswer(Answer):
    """A page of a queue's listeners."""

    listeners: list[ListenerHealth]
    """The listeners, oldest first."""
    links: PageLinks = field(name="_links")
    """Links to this page and the next."""


class Former(Answer):
    """A previous signing secret with which requests are still signed. The secret itself is not shown."""

    ends_at: Time
    """The time at which it stops signing."""


class SecretAnswer(Answer):
    """A listener's signing secret."""

    secret: str
    """The secret, `whsec_…`."""
    former: list[Former]
    """The previous secrets that still sign, too."""
    links: Links = field(name="_links")
    """Links of the secret."""


class ListenerTestFields(Answer):
    """The result of a test message."""

    message_id: str
    """The ID of the test message, in the `webhook-id` header or in the batch. No message with this ID is stored."""
    status: int | None
    """The HTTP status that the listener answered; null if it did not answer."""
    error: str | None
    """The reason for which there was no answer, such as `refused`; `failed-in-batch` if the answer to a batch rejects
    the message; null otherwise.
    """
    took_ms: int
    """The duration of the request until the answer began, in milliseconds."""
    batch_id: str | UnsetType = UNSET
    """The ID of the batch that carried the message, in the `webhook-id` header. Missing without batches."""
    dns_ms: int | UnsetType = UNSET
    """The duration of the DNS look-up, in milliseconds."""
    connect_ms: int | UnsetType = UNSET
    """The duration of connecting, in milliseconds."""
    tls_ms: int | UnsetType = UNSET
    """The duration of the TLS handshake, in milliseconds. Missing without TLS."""
    answer: ListenerReply | UnsetType = UNSET
    """What the listener answered. Missing if it did not answer."""


class ListenerTestAnswer(Answer):
    """The result of a test."""

    test: ListenerTestFields
    """The result."""


class Delivered(Named):
    """The message of a delivery."""

    created_at: Time
    """The time at which the message was put."""


class OutstandingFields(Answer):
    """A delivery that waits for its next attempt or for the time `deliver_at`, or a parked delivery, which waits for a
    redrive.
    """

    message: Delivered
    """The message."""
    state: str
    """The state: `retrying`, `parked`, or `pending` before the first attempt, mostly because of `deliver_at`."""
    attempts: int
    """The number of attempts so far."""
    last_status: int | None
    """The HTTP status of the last attempt; null if there was no answer, or no attempt yet."""
    last_error: str | None
    """The reason for which the last attempt had no answer; `failed-in-batch` if the answer to a batch rejected the
    message; null otherwise.
    """
    last_attempt_at: Time | None
    """The time of the last attempt; null before the first."""
    next_attempt_at: Time | None
    """The time of the next attempt; null if none is planned."""


class DeliveriesAnswer(Answer):
    """A page of the scheduled, retrying and parked deliveries to a listener. If a delivery has failed for less than a
    minute, the page usually does not list it.
    """

    deliveries: list[OutstandingFields]
    """The deliveries. A page may be short, or empty, while there is a next one."""
    links: PageLinks = field(name="_links")
    """Links to this page and the next."""


class DeliveriesLink(Answer):
    """The links of a redrive or its cancellation."""

    deliveries: Link
    """The listener's waiting deliveries."""


class RedriveAnswer(Answer):
    """The result of a redrive, or of its cancellation."""

    count: Count
    """The number of deliveries that the request concerns, counted just before."""
    links: DeliveriesLink = field(name="_links")
    """Links of the redrive or its cancellation."""
