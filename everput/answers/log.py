"""The shapes of a line of the log, and of an event of the changes."""

from __future__ import annotations

from typing import Any

from msgspec import UNSET, UnsetType

from everput.answers.base import Answer


class LogLine(Answer):
    """A line of the log. A line has either an event with its position, or a cursor. A request with this cursor
    continues after the lines before it. The last line of a complete answer has a cursor.
    """

    topic: str | UnsetType = UNSET
    """The topic of the event."""
    partition: int | UnsetType = UNSET
    """The partition of the event in its topic."""
    offset: int | UnsetType = UNSET
    """The offset of the event in its partition."""
    log_ms: int | UnsetType = UNSET
    """The time that orders the event in the log, in milliseconds since the epoch."""
    event: dict[str, Any] | UnsetType = UNSET
    """The event. Its fields are described in docs/events.md."""
    cursor: str | UnsetType = UNSET
    """The position after the events before this line. Pass it as `cursor` to continue there."""
    complete: bool | UnsetType = UNSET
    """Whether the log had no further event of the range when the line was written."""


class ChangeFields(Answer):
    """A change in the organization."""

    kind: str
    """The kind of the thing: `queue`, `listener`, `message`, `delivery`, `replay` or `alert`. To a session also `key`,
    `organization` and `invitation`."""
    queue_id: str | UnsetType = UNSET
    """The queue, if it is known."""
    listener_id: str | UnsetType = UNSET
    """The listener, if the change concerns one."""


class ChangesEvent(Answer):
    """The data of a server-sent event: the changes in the organization since the previous event."""

    all: bool
    """True if the changes since the event before are unknown: assume that everything has changed. The first event says
    so, unless the request has a `Last-Event-ID` that is known."""
    changes: list[ChangeFields]
    """The changes, each once. Ask for the things themselves to see their new values."""
