"""The fields that all events have. Not for: the events (events.py)."""

from __future__ import annotations

from typing import ClassVar

import msgspec


class Event(msgspec.Struct, frozen=True, kw_only=True, tag_field="type"):
    """An event: a fact that was recorded in the log.

    `actor` is `key:<id>`, `account:<id>`, `worker` or `shell`. The API records an `urgent` event even when the disk is
    nearly full, because such an event revokes a right, ends some work, or lets a person sign in to do so.
    """

    urgent: ClassVar[bool] = False

    at_ms: int  # ms since the UTC epoch, by the clock of the process that wrote the event
    organization_id: str  # empty if the event does not belong to one organization
    actor: str = ""
    request_id: str = ""  # empty without an HTTP request
    v: int = 1
