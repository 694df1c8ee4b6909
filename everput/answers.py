"""The shapes of answers.

For: what a client may expect, also in the reference (api/openapi.py). Not for: making an answer (the API's resources
do; its tests compare every answer they get with its shape), requests (requests.py)."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import UNSET, Meta, Struct, UnsetType, field

Id = Annotated[str, Meta(pattern="^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$", extra_json_schema={"format": "uuid"})]
Time = Annotated[str, Meta(description="UTC, with milliseconds.", extra_json_schema={"format": "date-time"})]
Count = Annotated[int, Meta(ge=0)]


class Answer(Struct, kw_only=True):
    """Any of them. There may be more fields in an answer than a program knows."""


class Link(Answer):
    href: str


class Links(Answer):
    self_: Link = field(name="self")


class PageLinks(Links):
    """next: the next page; not there on the last one."""

    next: Link | UnsetType = UNSET


class Place(Answer):
    """Where a request is at fault: in its body (RFC 6901), its query, or its headers."""

    detail: str
    pointer: str | UnsetType = UNSET
    parameter: str | UnsetType = UNSET
    header: str | UnsetType = UNSET


class ProblemAnswer(Answer):
    """Problem details (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str
    errors: list[Place] | UnsetType = UNSET


class Named(Answer):
    """What is shown of a thing beside another."""

    id: Id
    name: str


class QueueFields(Named):
    listeners: list[Named]


class QueueAnswer(Answer):
    queue: QueueFields
    links: Links = field(name="_links")


class QueuesAnswer(Answer):
    queues: list[QueueFields]
    links: PageLinks = field(name="_links")


class ListenerFields(Named):
    """paused: why, null when it is not."""

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


class ListenerAnswer(Answer):
    listener: ListenerFields
    links: Links = field(name="_links")


class NewListenerFields(ListenerFields):
    """secret: signs the deliveries (Standard Webhooks)."""

    secret: str


class NewListenerAnswer(Answer):
    listener: NewListenerFields
    links: Links = field(name="_links")


class ListenerNow(ListenerFields):
    """lag: messages that wait for it, but not parked ones, and none whose time has not come.

    oldest_pending_at: when the oldest of these was put. state: live, down or paused.
    """

    state: str | UnsetType = UNSET
    lag: Count | UnsetType = UNSET
    oldest_pending_at: Time | UnsetType | None = UNSET
    last_error: str | UnsetType | None = UNSET


class ListenerNowAnswer(Answer):
    listener: ListenerNow
    links: Links = field(name="_links")


class ListenersAnswer(Answer):
    listeners: list[ListenerFields]
    links: PageLinks = field(name="_links")


class Former(Answer):
    ends_at: Time


class SecretAnswer(Answer):
    """former: the secrets before it, which sign, too, until then."""

    secret: str
    former: list[Former]
    links: Links = field(name="_links")


class TrialFields(Answer):
    """What the listener answered. error: why there was no answer, in a word."""

    message_id: str
    status: int | None
    error: str | None
    took_ms: int


class TrialAnswer(Answer):
    test: TrialFields


class Delivered(Named):
    created_at: Time


class OutstandingFields(Answer):
    """state: retrying, parked, or pending before the message's deliver_at. attempts: how many there were."""

    message: Delivered
    state: str
    attempts: int
    last_status: int | None
    last_error: str | None
    last_attempt_at: Time | None
    next_attempt_at: Time | None


class DeliveriesAnswer(Answer):
    deliveries: list[OutstandingFields]
    links: PageLinks = field(name="_links")


class DeliveriesLink(Answer):
    deliveries: Link


class RedriveAnswer(Answer):
    """count: deliveries that were outstanding just before."""

    count: Count
    links: DeliveriesLink = field(name="_links")


class ReplaySpan(Answer):
    """count: messages in it when it began. rate_per_s: null for none."""

    from_: Time = field(name="from")
    to: Time
    only: str
    rate_per_s: float | None
    count: Count
    count_is_exact: bool


class ReplayFields(ReplaySpan):
    """state: running, paused, finished or cancelled. paused: why, null when it is not.

    send_headers: whether a notify_url of another origin gets the listener's headers.
    """

    id: Id
    state: str
    notify_url: str | None
    liveness_url: str | None
    send_headers: bool
    paused: str | None
    created_at: Time
    ended_at: Time | None


class ReplayNow(ReplayFields):
    """progress: 0 to 1."""

    progress: Annotated[float, Meta(ge=0, le=1)]


class ReplayBegun(ReplaySpan):
    """Of a dry run the span and estimated_s; else all of the replay.

    estimated_s: at the rate, or at 2,000 a second where none or a higher one is set; a slow listener takes longer.
    """

    estimated_s: Annotated[float, Meta(ge=0)] | UnsetType = UNSET
    id: Id | UnsetType = UNSET
    state: str | UnsetType = UNSET
    notify_url: str | UnsetType | None = UNSET
    liveness_url: str | UnsetType | None = UNSET
    send_headers: bool | UnsetType = UNSET
    paused: str | UnsetType | None = UNSET
    created_at: Time | UnsetType = UNSET
    ended_at: Time | UnsetType | None = UNSET
    progress: Annotated[float, Meta(ge=0, le=1)] | UnsetType = UNSET


class ReplayBegunAnswer(Answer):
    replay: ReplayBegun
    links: Links | UnsetType = field(name="_links", default=UNSET)


class ReplayAnswer(Answer):
    replay: ReplayNow
    links: Links = field(name="_links")


class ReplaysAnswer(Answer):
    replays: list[ReplayFields]
    links: PageLinks = field(name="_links")


class PutAnswer(Answer):
    message: Named
    links: Links = field(name="_links")


class BatchAnswer(Answer):
    """One result for each message, in their order."""

    messages: list[PutAnswer]


class MessageFields(Named):
    """key: the ordering key. deliver_at: not before. data: as it is now. updated_at: null when it never was."""

    data: str
    key: str | None
    deliver_at: Time | None
    created_at: Time
    updated_at: Time | None


class MessagesAnswer(Answer):
    messages: list[MessageFields]
    links: PageLinks = field(name="_links")


class AttemptFields(Answer):
    """status: null when there was no answer; error: then why not, in a word."""

    number: int
    at: Time
    status: int | None
    took_ms: int
    error: str | None


class DeliveryFields(Named):
    """Of the listener. state: pending, retrying, parked, delivered or cancelled; unknown where too much came since."""

    state: str
    attempts: list[AttemptFields]
    next_attempt_at: Time | None


class MessageNow(MessageFields):
    listeners: list[DeliveryFields] | UnsetType = UNSET


class MessageAnswer(Answer):
    message: MessageNow
    links: Links = field(name="_links")


class ChangedDelivery(Named):
    """Of the listener. state: delivered, when it had the message as it was before, or unknown, when that is not known.

    Else cancelled, where the message was deleted, or pending, retrying, parked.
    """

    state: str


class ChangedMessage(MessageFields):
    listeners: list[ChangedDelivery]


class ChangedMessageAnswer(Answer):
    message: ChangedMessage
    links: Links = field(name="_links")


class AccountFields(Answer):
    id: Id
    email: str


class AccountAnswer(Answer):
    account: AccountFields


class DeletedAccountAnswer(Answer):
    """without_members: the organizations that have no member any more who can sign in."""

    account: AccountFields
    without_members: list[Named]


class MemberFields(AccountFields):
    """blocked: the operator does not let it sign in."""

    blocked: bool


class MemberAnswer(Answer):
    member: MemberFields


class MembersAnswer(Answer):
    members: list[MemberFields]


class SessionFields(Answer):
    id: Id
    expires_at: Time


class NewSessionFields(SessionFields):
    """token: for the header Authorization, as `Bearer evs_…`."""

    token: str


class NewSessionAnswer(Answer):
    session: NewSessionFields
    account: AccountFields


class SessionAnswer(Answer):
    session: SessionFields
    account: AccountFields


class EndedSessionAnswer(Answer):
    session: SessionFields


class OrganizationFields(Named):
    """stored_bytes: of messages, as far as one API process knows. stored_bytes_max: null for no bound.

    log_damaged: whether some of the installation's log can't be read, of whatever organization; unset by an older API.
    """

    stored_bytes: Count
    stored_bytes_max: Count | None
    log_damaged: bool | UnsetType = UNSET


class OrganizationAnswer(Answer):
    organization: OrganizationFields


class OrganizationsAnswer(Answer):
    organizations: list[OrganizationFields]


class KeyFields(Named):
    """prefix: the key's first characters. last_used_at: up to an hour behind.

    queues: the ids of the queues that it is for, null for all. expires_at: null for never.
    """

    prefix: str
    scopes: list[str]
    queues: list[Id] | None
    expires_at: Time | None
    created_at: Time
    last_used_at: Time | None


class KeyAnswer(Answer):
    key: KeyFields
    links: Links = field(name="_links")


class NewKeyFields(KeyFields):
    """secret: the key itself, shown this once."""

    secret: str


class NewKeyAnswer(Answer):
    key: NewKeyFields
    links: Links = field(name="_links")


class KeysAnswer(Answer):
    keys: list[KeyFields]
    links: PageLinks = field(name="_links")


class LogLine(Answer):
    """A line of the log: an event with its place, or where to go on."""

    topic: str | UnsetType = UNSET
    partition: int | UnsetType = UNSET
    offset: int | UnsetType = UNSET
    log_ms: int | UnsetType = UNSET
    event: dict[str, Any] | UnsetType = UNSET
    cursor: str | UnsetType = UNSET
    complete: bool | UnsetType = UNSET


class NotifiedQueue(Named):
    pass


class NotifiedMessage(Named):
    data: str


class Notification(Answer):
    """What a listener's notify_url gets."""

    queue: NotifiedQueue
    message: NotifiedMessage
