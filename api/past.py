"""The parameter `at`: a GET that is answered as it would have been answered at an earlier time.

For: choosing the state that a request reads. Not for: folding it (broker/audit/past.py).
"""

from __future__ import annotations

from api.calls import Call
from api.pages import time_parameter
from api.problems import BadParameter
from broker.audit.past import Past
from broker.clock import now_ms
from broker.ports import DirectoryView


class Views:
    """The access to the directory (queues, listeners and API keys) as it is now, or as it was at an earlier time."""

    def __init__(self, view: DirectoryView, past: Past) -> None:
        self._view = view
        self._past = past

    async def of(self, call: Call, organization_id: str | None = None) -> DirectoryView:
        """Return the directory as it was at the time of the parameter `at`. Without this parameter, return the current
        directory.

        Raises BadParameter for a time in the future. Without `organization_id`, the organization of the request is
        used.
        """
        query = call.query()
        at_ms = time_parameter(query, "at")
        if at_ms is None:
            return self._view
        if at_ms > now_ms():
            raise BadParameter("The parameter `at` must not be in the future.", parameter="at")
        return await self._past.view(organization_id or call.organization_id, at_ms)
