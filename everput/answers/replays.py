"""The shapes of the answers about replays."""

from __future__ import annotations

from typing import Annotated

from msgspec import UNSET, Meta, UnsetType, field

from everput.answers.base import Answer, Count, Id, Links, PageLinks, Time


class ReplaySpan(Answer):
    """The messages that a replay delivers."""

    from_: Time = field(name="from")
    """The start of the time range; messages put at or after it are delivered."""
    to: Time
    """The end of the time range; messages put before it are delivered."""
    only: str
    """The choice of messages: `all`, `failed` or `undelivered`."""
    rate_per_s: float | None
    """The replay's own limit of deliveries per second; null for the listener's limit."""
    count: Count
    """The number of messages, counted at the start."""
    count_is_exact: bool
    """Whether `count` is exact. If not, there may be more."""


class ReplayFields(ReplaySpan):
    """A replay: a range of a queue's messages that is delivered again, to a listener or to another URL."""

    id: Id
    """The replay's ID."""
    state: str
    """The state: `running`, `paused`, `finished` or `cancelled`."""
    notify_url: str | None
    """The URL that gets the messages; null for the listener's own."""
    liveness_url: str | None
    """The URL that is checked while deliveries fail; null for the listener's own."""
    send_headers: bool
    """Whether a `notify_url` of another origin gets the listener's headers."""
    paused: str | None
    """The reason for which the replay is paused; null if it is not."""
    created_at: Time
    """The time at which the replay was started."""
    ended_at: Time | None
    """The time at which the replay ended; null before."""


class ReplayListed(ReplayFields):
    """A replay in a list."""

    progress: Annotated[float, Meta(ge=0, le=1)] | UnsetType = UNSET
    """The finished part, from 0 to 1. It is left out while it can't be read."""


class ReplayNow(ReplayFields):
    """A replay with its progress."""

    progress: Annotated[float, Meta(ge=0, le=1)]
    """The finished part, from 0 to 1."""


class ReplayBegun(ReplaySpan):
    """A replay that was started. A request with `dry_run` starts no replay and only counts the messages: the answer
    then has only `from`, `to`, `only`, `rate_per_s`, `count`, `count_is_exact` and `estimated_s`.
    """

    estimated_s: Annotated[float, Meta(ge=0)] | UnsetType = UNSET
    """The expected duration in seconds, at the limit of the replay or else of the listener, but at most 2,000
    deliveries per second. A slow listener takes longer.
    """
    id: Id | UnsetType = UNSET
    """The replay's ID."""
    state: str | UnsetType = UNSET
    """The state: `running`, `paused`, `finished` or `cancelled`."""
    notify_url: str | UnsetType | None = UNSET
    """The URL that gets the messages; null for the listener's own."""
    liveness_url: str | UnsetType | None = UNSET
    """The URL that is checked while deliveries fail; null for the listener's own."""
    send_headers: bool | UnsetType = UNSET
    """Whether a `notify_url` of another origin gets the listener's headers."""
    paused: str | UnsetType | None = UNSET
    """The reason for which the replay is paused; null if it is not."""
    created_at: Time | UnsetType = UNSET
    """The time at which the replay was started."""
    ended_at: Time | UnsetType | None = UNSET
    """The time at which the replay ended; null before."""
    progress: Annotated[float, Meta(ge=0, le=1)] | UnsetType = UNSET
    """The finished part, from 0 to 1."""


class ReplayBegunAnswer(Answer):
    """A started or counted replay with its links."""

    replay: ReplayBegun
    """The replay."""
    links: Links | UnsetType = field(name="_links", default=UNSET)
    """Links of the replay. Missing for a dry run."""


class ReplayAnswer(Answer):
    """A replay with its links."""

    replay: ReplayNow
    """The replay."""
    links: Links = field(name="_links")
    """Links of the replay."""


class ReplaysAnswer(Answer):
    """A page of a listener's replays."""

    replays: list[ReplayListed]
    """The replays, oldest first."""
    links: PageLinks = field(name="_links")
    """Links to this page and the next."""
