"""One delivery as a state machine: its states, the transitions between them, and what follows an attempt.

For: the table NEXT, its documentation (docs/delivery.md), and judge(), which decides what follows an attempt. Pure: no
clock, no randomness, no I/O. Not for: carrying out the decision (broker/delivery/dispatch), which deliveries exist
(window.py), when the next attempt is due (retry.py).

A delivery is in memory from when a worker takes its message until the listener's cursor may pass it. A worker sets
`Delivery.state` at each transition, and the tests compare every transition with NEXT (tests/legal.py).

Rule 1: a delivery has its message in memory only in the states of HOLDS, which count against the listener's limit.
Rule 2: the states in ENDED are final. A late answer for a dropped delivery changes nothing.
Rule 3: an attempt begins only in READY, and only judge() decides what follows it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final

from broker.core.retry import RetryPolicy, next_at_ms

# A tunnel answers with this HTTP status if no `everput listen` takes the message. Such an attempt does not count.
TUNNEL_AWAY: Final = 599
SLOW_DOWN: Final = (429, 503)  # HTTP statuses of an overloaded listener
TIMEOUTS: Final = ("timeout", "connect-timeout")


class Kind(Enum):
    """The kinds of states in which a delivery in memory can be."""

    MISSING = "missing"
    READY = "ready"
    QUEUED = "queued"
    RENEWING = "renewing"
    WAITING = "waiting"
    CONNECTING = "connecting"
    SENT = "sent"
    LEAVING = "leaving"
    DELIVERED = "delivered"
    KEPT = "kept"
    RETURNED = "returned"
    CANCELLED = "cancelled"
    DROPPED = "dropped"


class State:
    """The state of one delivery in a worker's memory. Most kinds of state have one State object, which all deliveries
    share. For the kinds with data about the delivery (Waiting and Leaving), each delivery gets an object of a subclass.
    """

    __slots__ = ("kind",)

    def __init__(self, kind: Kind) -> None:
        self.kind: Final = kind

    def __repr__(self) -> str:
        return self.kind.name


class Waiting(State):
    """The state of a delivery that waits in memory until `due_ms`.

    `why` is `retry`, `scheduled` (the message has a `deliver_at`) or `put off` (no attempt was possible).
    """

    __slots__ = ("due_ms", "why")

    def __init__(self, due_ms: int, why: str) -> None:
        super().__init__(Kind.WAITING)
        self.due_ms: Final = due_ms
        self.why: Final = why


class Leaving(State):
    """The state of a delivery whose record is being written to the topic `outstanding`.

    `due_ms` is the time of the delivery's next attempt; None means that the delivery is parked. `status` and `error`
    are the HTTP status and the error of the newest failed attempt; None if no attempt has failed. If the message can't
    be read or decoded, `error` says so.
    """

    __slots__ = ("due_ms", "error", "status")

    def __init__(self, due_ms: int | None, status: int | None, error: str | None) -> None:
        super().__init__(Kind.LEAVING)
        self.due_ms: Final = due_ms
        self.status: Final = status
        self.error: Final = error


MISSING: Final = State(Kind.MISSING)
READY: Final = State(Kind.READY)
QUEUED: Final = State(Kind.QUEUED)
RENEWING: Final = State(Kind.RENEWING)
CONNECTING: Final = State(Kind.CONNECTING)
SENT: Final = State(Kind.SENT)
DELIVERED: Final = State(Kind.DELIVERED)
KEPT: Final = State(Kind.KEPT)
RETURNED: Final = State(Kind.RETURNED)
CANCELLED: Final = State(Kind.CANCELLED)
DROPPED: Final = State(Kind.DROPPED)

MEANS: Final[Mapping[Kind, str]] = {
    Kind.MISSING: "the message must be read from the log",
    Kind.READY: "an attempt may begin as soon as the listener's limits allow",
    Kind.QUEUED: "another delivery with the same ordering key is in progress",
    Kind.RENEWING: "the message was updated, and the new data is being read",
    Kind.WAITING: "the delivery waits in memory until its `deliver_at` or its next attempt, which is near",
    Kind.CONNECTING: "a connection to the listener is being made",
    Kind.SENT: "the request was sent, and its result is not known yet",
    Kind.LEAVING: "the delivery is being written to the topic `outstanding`",
    Kind.DELIVERED: "the listener has accepted the message",
    Kind.KEPT: "the delivery is stored in the topic `outstanding`: it is retried from there, or parked",
    Kind.RETURNED: "the delivery came from the topic `outstanding`, and waits there again",
    Kind.CANCELLED: "the message was deleted",
    Kind.DROPPED: "the partition was handed over, or the listener was deleted",
}

# The permitted transitions between the states of a delivery: for each state, the next states with their conditions.
# Transitions to DROPPED have empty texts here: the text of DROPPED in MEANS says when these transitions happen.
NEXT: Final[Mapping[Kind, Mapping[Kind, str]]] = {
    Kind.MISSING: {
        Kind.READY: "the message is read",
        Kind.DROPPED: "",
    },
    Kind.READY: {
        Kind.CONNECTING: "no connection is idle",
        Kind.SENT: "a connection is idle",
        Kind.QUEUED: "another delivery of its ordering key is in progress",
        Kind.RENEWING: "the message was updated",
        Kind.WAITING: "its deliver_at is near",
        Kind.LEAVING: "its deliver_at is far, its ordering key is blocked, or it can't be decoded",
        Kind.KEPT: "it was already in outstanding",
        Kind.RETURNED: (
            "the listener is down, an earlier delivery of its ordering key failed, or its redrive was cancelled"
        ),
        Kind.MISSING: "the listener is down or paused",
        Kind.CANCELLED: "the message was deleted",
        Kind.DROPPED: "",
    },
    Kind.QUEUED: {
        Kind.READY: "it is the next delivery of its ordering key",
        Kind.LEAVING: "an earlier delivery of its ordering key takes long",
        Kind.RETURNED: "the listener is down",
        Kind.MISSING: "the listener is down or paused",
        Kind.DROPPED: "",
    },
    Kind.RENEWING: {
        Kind.READY: "the new data is read",
        Kind.LEAVING: "the new data can't be read",
        Kind.RETURNED: "the listener is down",
        Kind.MISSING: "the listener is down or paused",
        Kind.DROPPED: "",
    },
    Kind.WAITING: {
        Kind.READY: "it is due, or was redriven",
        Kind.RETURNED: "the listener is down",
        Kind.MISSING: "the listener is down or paused",
        Kind.DROPPED: "",
    },
    Kind.CONNECTING: {
        Kind.SENT: "connected",
        Kind.READY: "the tunnel has no client",
        Kind.WAITING: "no connection: retry, or nothing was tried",
        Kind.LEAVING: "no connection: set aside or parked",
        Kind.RENEWING: "the message was updated",
        Kind.CANCELLED: "the message was deleted",
        Kind.DROPPED: "",
    },
    Kind.SENT: {
        Kind.DELIVERED: "2xx",
        Kind.WAITING: "failed: retry",
        Kind.LEAVING: "failed: set aside or parked",
        Kind.READY: "no attempt was made, repeat it",
        Kind.DROPPED: "",
    },
    Kind.LEAVING: {
        Kind.KEPT: "its record is written",
        Kind.CANCELLED: "the message was deleted",
        Kind.DROPPED: "",
    },
    Kind.DELIVERED: {},
    Kind.KEPT: {},
    Kind.RETURNED: {},
    Kind.CANCELLED: {},
    Kind.DROPPED: {},
}

ENDED: Final = frozenset(kind for kind, following in NEXT.items() if not following)
HOLDS: Final = frozenset(kind for kind in NEXT if kind is not Kind.MISSING and kind not in ENDED)


def legal(before: State, after: State) -> bool:
    """Return whether a delivery is allowed to change from the state `before` to the state `after`."""
    return after.kind in NEXT[before.kind]


class Decision(Enum):
    """The possible decisions about what follows an attempt."""

    # RETRY: the attempt failed, and the delivery waits in memory until its next attempt, which is due soon.
    RETRY = "retry"
    # SET_ASIDE: the attempt failed, and the topic `outstanding` holds the delivery until its next attempt.
    SET_ASIDE = "set aside"
    PARK = "park"  # the attempt failed, and the delivery is parked: it has no attempts or no time left
    # PUT_OFF: no attempt was made, because no thread was free for the DNS look-up. Try again `put_off_ms` later.
    PUT_OFF = "put off"
    # AWAY: the tunnel has no client, so this attempt does not count. The next attempt follows a successful probe.
    AWAY = "away"
    # AGAIN: the listener had closed the idle connection, so this attempt does not count. The delivery is ready again.
    AGAIN = "again"


@dataclass(frozen=True, slots=True)
class Verdict:
    """The decision about what follows an attempt, and when.

    If `fault` is true, the listener's circuit breaker counts the attempt as a failure of the listener. If `slow_down`
    is true, the listener is overloaded.
    """

    decision: Decision
    due_ms: int | None = None  # time of the next attempt
    fault: bool = False
    slow_down: bool = False


PUT_OFF: Final = Verdict(Decision.PUT_OFF)
AWAY: Final = Verdict(Decision.AWAY)
AGAIN: Final = Verdict(Decision.AGAIN)


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """An attempt that the listener did not accept: it got no 2xx answer, or the answer to a batch rejects the message.

    Without an answer, `status` is None and `error` names the reason, such as `timeout`. `stale` is True if no answer
    came to a request on a connection that had been idle.
    """

    status: int | None = None
    error: str | None = None
    retry_after_s: int | None = None
    tried: bool = True  # whether a request was sent
    connected: bool = True  # False if there was no connection
    tunnel: bool = False  # the address is a tunnel
    stale: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """The facts about a delivery from which judge() decides what follows its current attempt. `number` is the number of
    the current attempt. The delivery's age counts from `since_ms`, the time of its first attempt. For a delivery in the
    topic `outstanding`, a redrive restarts both: `number` counts from 1 again, and `since_ms` is the time of the
    redrive.
    """

    number: int
    first_at_ms: int
    since_ms: int
    # True if this delivery was already repeated at once, because the listener had closed an idle connection.
    again: bool = False
    outstanding: bool = False  # True if the topic `outstanding` already holds the delivery
    crowded: bool = False  # True if the memory is needed for other deliveries


def taken(status: int) -> bool:
    """Return whether an answer with this HTTP status accepts a message. The body of a 2xx answer to a batch can reject
    some messages nevertheless.
    """
    return 200 <= status < 300


def judge(
    failure: Failure, history: History, policy: RetryPolicy, *, at_ms: int, set_aside_after_ms: int, jitter: float
) -> Verdict:
    """Decide what follows an attempt that was not accepted.

    If the attempt does not count, the decision is PUT_OFF, AGAIN or AWAY. Otherwise, the delivery is parked if it has
    no attempts or no time left. If it is not parked, it usually waits in memory for its next attempt. It waits in the
    topic `outstanding` in three cases: it came from this topic, other deliveries need its memory, or the next attempt
    is due at least `set_aside_after_ms` after the first one. `jitter` is a random number in [0, 1).
    """
    status, error = failure.status, failure.error
    if not failure.tried:
        return PUT_OFF
    if error == "closed" and failure.stale and not history.again:
        return AGAIN
    if failure.tunnel and (not failure.connected or status == TUNNEL_AWAY or error == "garbage"):
        # The tunnel has no client, or its API process has probably ended ("garbage": another program answers there).
        return AWAY
    due_ms = next_at_ms(
        policy,
        history.number,
        since_ms=history.since_ms,
        at_ms=at_ms,
        retry_after_s=failure.retry_after_s,
        jitter=jitter,
    )
    if due_ms is None:
        decision = Decision.PARK
    elif history.outstanding or history.crowded or due_ms - history.first_at_ms >= set_aside_after_ms:
        decision = Decision.SET_ASIDE
    else:
        decision = Decision.RETRY
    return Verdict(
        decision,
        due_ms,
        fault=status is None or status >= 500,
        slow_down=status in SLOW_DOWN or error in TIMEOUTS,
    )


def picture() -> str:
    """Return the text of docs/delivery.md: a table and a Mermaid diagram of a delivery's states."""
    states = "\n".join(f"| {kind.value} | {means} | {_holds(kind)} |" for kind, means in MEANS.items())
    arrows = "\n".join(
        f"    {before.value} --> {after.value}: {why}"
        for before, following in NEXT.items()
        for after, why in following.items()
        if after is not Kind.DROPPED
    )
    ends = "\n".join(f"    {kind.value} --> [*]" for kind in NEXT if kind in ENDED and kind is not Kind.DROPPED)
    return _PICTURE.format(states=states, arrows=arrows, ends=ends)


def _holds(kind: Kind) -> str:
    return "final" if kind in ENDED else "yes" if kind in HOLDS else "no"


_PICTURE: Final = """\
# The states of a delivery

Made by `make events` from `broker/core/delivery.py`; don't edit it.

A delivery is the duty to send one message to one listener. It ends when the listener accepts the message, or when the
message, the listener or its queue is deleted. It also ends when an operator gives up its lost message, or when its
replay is cancelled. A delivery that has no attempts or no time left is parked: it is kept until somebody redrives it
(asks for new attempts).

Each Kafka partition of messages belongs to one worker, which keeps in memory the deliveries that it has begun
and not finished.

This page shows the states of a delivery in the memory of its worker.

When a partition moves to another worker, the former worker gives the partition's unfinished deliveries the state
*dropped*. When a listener is deleted, its unfinished deliveries get this state, too.

A worker that takes over a partition reads the metadata of each listener's committed Kafka offset. When the
former owner of the partition last committed the offset, it wrote there which deliveries it had in memory, unfinished.

The worker gives each of these deliveries the state *missing*, and reads the message from the log again.

| state | meaning | message in memory |
|---|---|---|
{states}

```mermaid
stateDiagram-v2
    [*] --> missing
{arrows}
{ends}
```
"""
