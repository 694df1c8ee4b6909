"""API keys, computed from the events of the topic `control`.

For: the fields of an API key, and how events change them. Not for: the form of a key's text (keys.py), who may use a
key (api/auth.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

from broker.core import events as ev

# Unless it is revoked, an expired API key stays listed for 30 days.
# After that, the creation of another key in its organization removes it.
EXPIRED_KEYS_KEPT_MS: Final = 30 * 86_400_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """An API key of an organization.

    The key may be restricted to the queues in `queue_ids`; None means all queues. The key is invalid from
    `expires_at_ms` on; None means that it does not expire. `last_used_at_ms` is the time of the newest recorded use of
    the key; None if no use is recorded. Not every use is recorded, so the key may have been used again after this time,
    usually less than 1.5 hours after it.
    """

    id: str
    organization_id: str
    name: str
    prefix: str
    secret_sha256: str
    scopes: tuple[str, ...]
    created_at_ms: int
    last_used_at_ms: int | None = None
    created_by: str = ""  # the creating event's actor
    queue_ids: tuple[str, ...] | None = None
    expires_at_ms: int | None = None

    def has_expired(self, at_ms: int) -> bool:
        return self.expires_at_ms is not None and self.expires_at_ms <= at_ms

    def is_for(self, queue_id: str) -> bool:
        return self.queue_ids is None or queue_id in self.queue_ids


class ApiKeys:
    """The API keys of all organizations, without the revoked keys, computed from the events of the topic `control`."""

    def __init__(self) -> None:
        self.by_id: dict[str, ApiKey] = {}
        self.by_sha256: dict[str, ApiKey] = {}
        self._of: dict[str, dict[str, ApiKey]] = {}  # by organization id

    def of(self, organization_id: str) -> Iterator[ApiKey]:
        """Yield the organization's API keys in the order of their creation."""
        return iter(self._of.get(organization_id, {}).values())

    def apply(self, event: ev.KeyCreated | ev.KeyRevoked | ev.KeyUsed) -> bool:
        """Update the API keys with one event of the log. Return False if the event changes nothing."""
        if isinstance(event, ev.KeyCreated):
            return self._created(event)
        api_key = self.by_id.get(event.key_id)
        if api_key is None or api_key.organization_id != event.organization_id:
            return False
        if isinstance(event, ev.KeyRevoked):
            self._forget(api_key)
            return True
        if event.at_ms <= (api_key.last_used_at_ms or 0):
            return False
        self._put(replace(api_key, last_used_at_ms=event.at_ms))
        return True

    def _created(self, event: ev.KeyCreated) -> bool:
        if event.key_id in self.by_id or event.secret_sha256 in self.by_sha256:
            return False
        api_key = ApiKey(
            id=event.key_id,
            organization_id=event.organization_id,
            name=event.name,
            prefix=event.prefix,
            secret_sha256=event.secret_sha256,
            scopes=event.scopes,
            created_at_ms=event.at_ms,
            created_by=event.actor,
            queue_ids=event.queue_ids,
            expires_at_ms=event.expires_at_ms,
        )
        for other in list(self.of(api_key.organization_id)):
            if other.has_expired(event.at_ms - EXPIRED_KEYS_KEPT_MS):
                self._forget(other)
        self._put(api_key)
        return True

    def _put(self, api_key: ApiKey) -> None:
        self.by_id[api_key.id] = self.by_sha256[api_key.secret_sha256] = api_key
        self._of.setdefault(api_key.organization_id, {})[api_key.id] = api_key

    def _forget(self, api_key: ApiKey) -> None:
        del (
            self.by_id[api_key.id],
            self.by_sha256[api_key.secret_sha256],
            self._of[api_key.organization_id][api_key.id],
        )
