"""The shape of a line of the log."""

from __future__ import annotations

from typing import Any

from msgspec import UNSET, UnsetType

from everput.answers.base import Answer


class LogLine(Answer):
    """A line of the log: an event with its position, or a cursor to continue from. The last line is a cursor.

    topic: The topic of the event.
    partition: The partition of the event in its topic.
    offset: The offset of the event in its partition.
    log_ms: The time that orders the event in the log, in milliseconds since the epoch.
    event: The event. Its fields are described in docs/events.md.
    cursor: The position after the events before this line. Pass it as `cursor` to continue there.
    complete: Whether the log had no further event of the range when the line was written.
    """

    topic: str | UnsetType = UNSET
    partition: int | UnsetType = UNSET
    offset: int | UnsetType = UNSET
    log_ms: int | UnsetType = UNSET
    event: dict[str, Any] | UnsetType = UNSET
    cursor: str | UnsetType = UNSET
    complete: bool | UnsetType = UNSET
