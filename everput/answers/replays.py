"""The shapes of the answers about replays."""

from __future__ import annotations

from typing import Annotated

from msgspec import UNSET, Meta, UnsetType, field

from everput.answers.base import Answer, Count, Id, Links, PageLinks, Time


class ReplaySpan(Answer):
    """The messages that a replay delivers.

    from_: The start of the time range; messages put at or after it are delivered.
    to: The end of the time range; messages put before it are delivered.
    only: The choice of messages: `all`, `failed` or `undelivered`.
    rate_per_s: The replay's own limit of deliveries per second; null for none.
    count: The number of messages, counted at the start.
    count_is_exact: Whether `count` is exact. If not, there may be more.
    """

    from_: Time = field(name="from")
    to: Time
    only: str
    rate_per_s: float | None
    count: Count
    count_is_exact: bool


class ReplayFields(ReplaySpan):
    """A replay: a second delivery of messages to a listener.

    id: The replay's ID.
    state: The state: `running`, `paused`, `finished` or `cancelled`.
    notify_url: The URL that gets the messages; null for the listener's own.
    liveness_url: The URL that is checked while deliveries fail; null for the listener's own.
    send_headers: Whether a `notify_url` of another origin gets the listener's headers.
    paused: The reason for which the replay is paused; null if it is not.
    created_at: The time at which the replay was started.
    ended_at: The time at which the replay ended; null before.
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
    """A replay with its progress.

    progress: The finished part, from 0 to 1.
    """

    progress: Annotated[float, Meta(ge=0, le=1)]


class ReplayBegun(ReplaySpan):
    """A replay that was started or, for a dry run, only counted. A dry run has only the range and `estimated_s`.

    estimated_s: The expected duration in seconds: at `rate_per_s`, and at 2,000 per second at most. A slow listener
        takes longer.
    id: The replay's ID.
    state: The state: `running`, `paused`, `finished` or `cancelled`.
    notify_url: The URL that gets the messages; null for the listener's own.
    liveness_url: The URL that is checked while deliveries fail; null for the listener's own.
    send_headers: Whether a `notify_url` of another origin gets the listener's headers.
    paused: The reason for which the replay is paused; null if it is not.
    created_at: The time at which the replay was started.
    ended_at: The time at which the replay ended; null before.
    progress: The finished part, from 0 to 1.
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
    """A started or counted replay with its links.

    replay: The replay.
    links: Links of the replay. Missing for a dry run.
    """

    replay: ReplayBegun
    links: Links | UnsetType = field(name="_links", default=UNSET)


class ReplayAnswer(Answer):
    """A replay with its links.

    replay: The replay.
    links: Links of the replay.
    """

    replay: ReplayNow
    links: Links = field(name="_links")


class ReplaysAnswer(Answer):
    """A page of a listener's replays.

    replays: The replays, oldest first.
    links: Links to this page and the next.
    """

    replays: list[ReplayFields]
    links: PageLinks = field(name="_links")
