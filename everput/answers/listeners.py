"""The shapes of the answers about listeners: settings, state, secrets, tests, waiting deliveries."""

from __future__ import annotations

from msgspec import UNSET, UnsetType, field

from everput.answers.base import Answer, Count, Link, Links, Named, PageLinks, Time
from everput.answers.queues import AlertFields


class ListenerFields(Named, kw_only=True):
    """A listener: the URL that gets every message of a queue.

    notify_url: The URL to which each message is sent by POST. A tunnel's URL is shown without its secret part.
    liveness_url: The URL that is checked by GET while deliveries fail.
    max_in_flight: The most requests to the listener at a time, over all workers; each worker may send at least one.
    rate_per_s: The most deliveries per second; null for no limit.
    timeout_ms: The time that an attempt may take, in milliseconds.
    max_attempts: The attempts after which a delivery is parked; null for no limit.
    max_age_s: The seconds after its first attempt at which a failing delivery is parked.
    retry_first_ms: The longest delay after the first failure, in milliseconds. It doubles with each further failure.
    retry_max_s: The longest delay between two attempts, in seconds.
    headers: The headers added to each request. Values are shown as `…`.
    alerts: The thresholds for alerts about the listener; absent if none is set.
    paused: The reason for which the listener is paused; null if it is not.
    created_at: The time at which the listener was created.
    """

    notify_url: str
    liveness_url: str
    max_in_flight: int
    rate_per_s: float | None
    timeout_ms: int
    max_attempts: int | None
    max_age_s: int
    retry_first_ms: int
    retry_max_s: int
    headers: dict[str, str]
    paused: str | None
    created_at: Time
    alerts: AlertFields | UnsetType = UNSET


class ListenerAnswer(Answer):
    """A listener with its links.

    listener: The listener.
    links: Links of the listener.
    """

    listener: ListenerFields
    links: Links = field(name="_links")


class NewListenerFields(ListenerFields):
    """A new listener with its signing secret.

    secret: The secret that signs the requests (Standard Webhooks). Give it to the listener.
    """

    secret: str


class NewListenerAnswer(Answer):
    """A new listener with its links.

    listener: The listener.
    links: Links of the listener.
    """

    listener: NewListenerFields
    links: Links = field(name="_links")


class ListenerHealth(ListenerFields):
    """A listener with its health. A request for a past time gets none of these fields.

    health: The state: `healthy`; `failing`: it is sent messages and refuses more than a quarter of them; `down`: it is
        sent nothing until its liveness_url answers; `paused`; `replaying`: healthy, and a replay to it is running;
        `new`: no attempt has ended yet.
    parked: The number of parked deliveries.
    retrying: The number of deliveries with a failed attempt that are retried. In the list of deliveries, those of the
        last minute are missing.
    recent_attempts: The attempts of the last 5 minutes.
    recent_failures: Those of them that failed.
    last_success_at: The time of the last attempt that the listener accepted; null if there is none.
    last_failure_at: The time of the last attempt that failed; null if there is none.
    """

    health: str | UnsetType = UNSET
    parked: Count | UnsetType = UNSET
    retrying: Count | UnsetType = UNSET
    recent_attempts: Count | UnsetType = UNSET
    recent_failures: Count | UnsetType = UNSET
    last_success_at: Time | UnsetType | None = UNSET
    last_failure_at: Time | UnsetType | None = UNSET


class ListenerNow(ListenerHealth):
    """A listener with its current state. A request for a past time gets none of the fields about the state.

    state: `live`, `down` or `paused`. It does not say whether a live listener accepts what it is sent; `health` does.
    lag: The number of messages still to be delivered, without parked ones and those whose `deliver_at` is to come.
    oldest_pending_at: The time at which the oldest of these messages was put; null if there is none.
    last_error: The last error of an attempt or a liveness check; null if there is none.
    """

    state: str | UnsetType = UNSET
    lag: Count | UnsetType = UNSET
    oldest_pending_at: Time | UnsetType | None = UNSET
    last_error: str | UnsetType | None = UNSET


class ListenerNowAnswer(Answer):
    """A listener with its current state and its links.

    listener: The listener.
    links: Links of the listener.
    """

    listener: ListenerNow
    links: Links = field(name="_links")


class ListenersAnswer(Answer):
    """A page of a queue's listeners.

    listeners: The listeners, oldest first.
    links: Links to this page and the next.
    """

    listeners: list[ListenerHealth]
    links: PageLinks = field(name="_links")


class Former(Answer):
    """A previous signing secret that still signs. The secret itself is not shown.

    ends_at: The time at which it stops signing.
    """

    ends_at: Time


class SecretAnswer(Answer):
    """A listener's signing secret.

    secret: The secret, `whsec_…`.
    former: The previous secrets that still sign, too.
    links: Links of the secret.
    """

    secret: str
    former: list[Former]
    links: Links = field(name="_links")


class TrialFields(Answer):
    """The result of a test message.

    message_id: The ID in the test's `webhook-id` header. No message with this ID is stored.
    status: The HTTP status that the listener answered; null if it did not answer.
    error: The reason for which there was no answer, such as `refused`; null if there was one.
    took_ms: The duration of the request, in milliseconds.
    """

    message_id: str
    status: int | None
    error: str | None
    took_ms: int


class TrialAnswer(Answer):
    """The result of a test.

    test: The result.
    """

    test: TrialFields


class Delivered(Named):
    """The message of a delivery.

    created_at: The time at which the message was put.
    """

    created_at: Time


class OutstandingFields(Answer):
    """A delivery that waits: for its next attempt, for its `deliver_at`, or for a redrive.

    message: The message.
    state: The state: `retrying`, `parked`, or `pending` before the message's `deliver_at`.
    attempts: The number of attempts so far.
    last_status: The HTTP status of the last attempt; null if there was no answer, or no attempt yet.
    last_error: The reason for which the last attempt had no answer; null if it had one.
    last_attempt_at: The time of the last attempt; null before the first.
    next_attempt_at: The time of the next attempt; null if none is planned.
    """

    message: Delivered
    state: str
    attempts: int
    last_status: int | None
    last_error: str | None
    last_attempt_at: Time | None
    next_attempt_at: Time | None


class DeliveriesAnswer(Answer):
    """A page of a listener's waiting deliveries.

    deliveries: The deliveries. A page may be short, or empty, while there is a next one.
    links: Links to this page and the next.
    """

    deliveries: list[OutstandingFields]
    links: PageLinks = field(name="_links")


class DeliveriesLink(Answer):
    """The links of a redrive.

    deliveries: The listener's waiting deliveries.
    """

    deliveries: Link


class RedriveAnswer(Answer):
    """The result of a redrive.

    count: The number of deliveries that are retried, counted just before.
    links: Links of the redrive.
    """

    count: Count
    links: DeliveriesLink = field(name="_links")
