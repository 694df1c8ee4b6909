"""The fields that all events have. Not for: the events (events.py)."""

from __future__ import annotations

from typing import ClassVar

import msgspec


class Event(msgspec.Struct, frozen=True, kw_only=True, tag_field="type"):
    """The base class of events: facts that were recorded in the log.

    `actor` is `key:<id>`, `account:<id>`, `worker` or `shell`; it is empty in `volume.recorded`, and in some events of
    the first versions. If the disk of the embedded Kafka is nearly full, the API records only events whose class sets
    `urgent` to True. Most of these events revoke a right or end some work. A sign-in is also urgent, because a person
    must sign in before revoking or ending anything. If even less space is free, the API records no event.
    """

    urgent: ClassVar[bool] = False

    at_ms: int  # ms since the UTC epoch, by the clock of the process that wrote the event
    organization_id: str  # empty if the event does not belong to one organization
    actor: str = ""
    request_id: str = ""  # empty without an HTTP request
    v: int = 1
