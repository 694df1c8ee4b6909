"""The fields that all events have. Not for: the events (events.py)."""

from __future__ import annotations

from typing import ClassVar

import msgspec


class Event(msgspec.Struct, frozen=True, kw_only=True, tag_field="type"):
    """An event: a fact that was recorded in the log.

    `actor` is `key:<id>`, `account:<id>`, `worker` or `shell`; it is empty in `volume.recorded`, and in some events of
    the first versions. While the disk of the embedded Kafka is nearly full, the API records only `urgent` events. Most
    urgent events revoke a right or end some work. A sign-in is urgent, too, because a person must sign in to cause such
    an event. With still less free space, the API records no event.
    """

    urgent: ClassVar[bool] = False

    at_ms: int  # ms since the UTC epoch, by the clock of the process that wrote the event
    organization_id: str  # empty if the event does not belong to one organization
    actor: str = ""
    request_id: str = ""  # empty without an HTTP request
    v: int = 1
