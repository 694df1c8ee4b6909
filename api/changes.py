"""The rate limit on an organization's changes to queues, listeners, keys and replays.

For: limiting what creates, updates or starts something, and counting its bytes as stored. Every process folds these
events and keeps their state. Deleting, pausing and revoking have no limit: a right must be revoked at once, and there
is no more to delete than was created. Not for: messages (volume.py).
"""

from __future__ import annotations

from functools import partial
from typing import Any, Final

from api.calls import Call, Handler
from api.limits import Limit
from api.problems import Headers
from broker.volume import StoredBytes

_MINUTE_S: Final = 60
# In the tenant's stored bytes, a change counts as the bytes of its body, plus 1 KiB for the rest of its record.
_EVENT_BYTES: Final = 1 << 10
# For the rate limit, a change counts as 1, plus 1 for each whole 4 KiB of its body.
# A change counts at most as a full burst, because a change that counts as more could never be permitted.
_BODY_BYTES: Final = 4 << 10


class ChangeLimits:
    """The limits on the changes that an organization makes, such as to create a queue, to update a listener or to start
    a replay. Deleting, pausing, and changes of messages do not count. Each process counts on its own.

    Each organization may make `per_min` changes a minute, also in a single burst. If `per_min` is None, there is no
    rate limit.
    """

    def __init__(self, per_min: int | None, stored: StoredBytes) -> None:
        self._stored = stored
        self._limit = None
        if per_min is not None:
            refusal = "This organization changes its queues, listeners or keys too often."
            self._limit = Limit("changes", per_min, per_s=per_min / _MINUTE_S, refusal=refusal)

    def take(self, headers: Headers, organization_id: str, body_bytes: int = 0) -> None:
        """Count one change, and one more for each whole 4 KiB of its body. Raises TooManyRequests if the organization
        exceeds the rate limit, and StorageFull if the tenant's stored bytes are at least 10 % above their limit.
        """
        if self._limit is not None:
            self._limit.take(headers, organization_id, min(1 + body_bytes // _BODY_BYTES, self._limit.size))
        self._stored.count_change(organization_id, _EVENT_BYTES + body_bytes)

    def before(self, handler: Handler) -> Handler:
        """Return a handler that first counts the request as a change against the organization's limits, and then calls
        the given handler.
        """

        async def counted(call: Call) -> Any:
            length = call.declared_length()
            self.take(call.headers, call.organization_id, length or 0)
            if length is None:  # The size of a chunked body is known only when the whole body has arrived.
                call.when_received(partial(self.take_more, call.organization_id))
            return await handler(call)

        return counted

    def take_more(self, organization_id: str, body_bytes: int) -> None:
        """Count the body of a change when the whole body has arrived. Call this if the body's size was unknown before:
        take() has then counted the change without its body. Raises TooManyRequests if the organization exceeds the rate
        limit, and StorageFull if the tenant's stored bytes are at least 10 % above their limit.
        """
        if self._limit is not None and body_bytes >= _BODY_BYTES:
            self._limit.take([], organization_id, min(body_bytes // _BODY_BYTES, self._limit.size))
        if body_bytes:
            self._stored.count_change(organization_id, body_bytes)
