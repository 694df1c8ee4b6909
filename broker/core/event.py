"""The fields that all events have. Not for: the events (events.py)."""

from __future__ import annotations

from typing import ClassVar

import msgspec


class Event(msgspec.Struct, frozen=True, kw_only=True, tag_field="type"):
    """A recorded fact.

    at_ms: when it was recorded, milliseconds since the UTC epoch, by the writer's clock.
    organization_id: the organization of the event; empty for accounts and for the installation.
    actor: `key:<id>`, `account:<id>`, `worker` or `shell`.
    request_id: the request that caused it; empty when none did.
    urgent: the API still records it when disk space is between the two marks (broker/disk.py). An urgent event revokes
        a right, ends some work, or lets a person in to do so.
    """

    urgent: ClassVar[bool] = False

    at_ms: int
    organization_id: str
    actor: str = ""
    request_id: str = ""
    v: int = 1
