"""The limit on an organization's changes: the events of `control`, which every process folds and keeps for ever.

For: limiting what creates, updates or starts something, and counting its bytes as stored. What ends something has no
limit: there is no more to end than was made, and a right must be revoked at once. Not for: messages (volume.py).
"""

from __future__ import annotations

from functools import partial
from typing import Any, Final

from api.calls import Call, Handler
from api.limits import Limit
from api.problems import Headers
from broker.volume import StoredBytes

_MINUTE_S: Final = 60
_EVENT_BYTES: Final = 1 << 10  # A change counts this much beside its body: its event, and its part of a record batch.
_BODY_BYTES: Final = 4 << 10  # Each further part of this size in a body counts as another change.


class Changes:
    """The count of changes in this process. per_min: of each organization, with a burst of a minute; None for no
    limit.
    """

    def __init__(self, per_min: int | None, stored: StoredBytes) -> None:
        self._stored = stored
        self._limit = None
        if per_min is not None:
            refusal = "This organization changes its queues, listeners or keys too often."
            self._limit = Limit("changes", per_min, per_s=per_min / _MINUTE_S, refusal=refusal)

    def take(self, headers: Headers, organization_id: str, body_bytes: int = 0) -> None:
        """Count one change, and more for a large body (TooManyRequests, StorageFull). headers: of the answer."""
        if self._limit is not None:
            self._limit.take(headers, organization_id, min(1 + body_bytes // _BODY_BYTES, self._limit.size))
        self._stored.count_change(organization_id, _EVENT_BYTES + body_bytes)

    def before(self, handler: Handler) -> Handler:
        """Return the handler with take() before it."""

        async def counted(call: Call) -> Any:
            length = call.declared_length()
            self.take(call.headers, call.organization_id, length or 0)
            if length is None:  # The size of a chunked body is known once it has arrived.
                call.when_received(partial(self.take_more, call.organization_id))
            return await handler(call)

        return counted

    def take_more(self, organization_id: str, body_bytes: int) -> None:
        """Count a size that take() could not know yet, as a body is counted. Raises TooManyRequests or StorageFull."""
        if self._limit is not None and body_bytes >= _BODY_BYTES:
            self._limit.take([], organization_id, min(body_bytes // _BODY_BYTES, self._limit.size))
        if body_bytes:
            self._stored.count_change(organization_id, body_bytes)
