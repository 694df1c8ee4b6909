"""Organizations, queues and listeners, as the directory holds them.

For: their fields. Not for: API keys (api_keys.py), accounts (accounts.py), replays (replays.py), how events change them
(organizations.py, directory.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from msgspec import UnsetType

from broker.core.cursor import Cursor
from broker.core.events import AlertThresholds, BatchSetting, ListenerSettings
from broker.core.redrives import NO_REDRIVES, Redrives
from broker.core.replays import Replay

DAY_MS: Final = 86_400_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Organization:
    """An organization, which owns queues, listeners, messages and API keys.

    `founder` is the account that created it; empty if no account did. `by_shell` says that the operator created it,
    for example with `everput init`.
    """

    id: str
    name: str
    members: tuple[str, ...] = ()  # account ids in joining order
    founder: str = ""
    # the roles of the members who are not owners (roles.py), by account id
    roles: Mapping[str, str] = field(default_factory=dict)
    by_shell: bool = False
    # stored bytes by day since 1970
    bytes_by_day: Mapping[int, int] = field(default_factory=dict)

    def bytes_since(self, at_ms: int) -> int:
        """Return how many bytes the organization has stored since the start of the UTC day that contains `at_ms`. Bytes
        that no event `volume.recorded` has reported yet are not included.
        """
        day = at_ms // DAY_MS
        return sum(size for one, size in self.bytes_by_day.items() if one >= day)


@dataclass(frozen=True, slots=True, kw_only=True)
class Listener:
    """A listener of a queue, or a temporary listener through which a running replay is delivered.

    `start_offsets` has, for each partition of `messages`, the offset of the first message that the listener may get.
    `former_secrets` has older signing secrets, encrypted, each with a time. Until this time, requests to the listener
    are also signed with the older secret.
    """

    id: str
    organization_id: str
    queue_id: str
    name: str
    notify_url: str
    liveness_url: str
    sealed_secret: str
    start_offsets: tuple[int, ...]
    settings: ListenerSettings
    created_at_ms: int
    paused: str | None = None  # None if not paused
    version: int = 1  # increases by one with each change
    former_secrets: tuple[tuple[str, int], ...] = ()
    redrives: Redrives = NO_REDRIVES
    replay: Replay | None = None  # None for a real listener

    def sealed(self) -> Iterator[str]:
        """Yield each encrypted text of the listener: its secrets and header values."""
        yield self.sealed_secret
        yield from (sealed for sealed, _ in self.former_secrets)
        yield from self.settings.sealed_headers.values()

    @property
    def batch(self) -> BatchSetting | None:
        """The limits of a request with several messages; None if each request carries one message."""
        batch = self.settings.batch
        return None if isinstance(batch, UnsetType) else batch

    @property
    def has_liveness_url(self) -> bool:
        """Whether the listener has a liveness_url. Every listener of a queue has one. The temporary listener of a
        replay to another URL may have none: probes then go to its notify_url, which need not support GET.
        """
        replay = self.replay
        return replay is None or replay.notify_url is None or replay.liveness_url is not None

    def reach(self, partition: int, tail: int) -> int:
        """Return the end offset of the listener's deliveries in a partition: only messages below this offset are
        delivered to the listener. For the temporary listener of a replay, this is the replay's end offset. For any
        other listener, it is `tail`: the offset of the next new message.
        """
        return tail if self.replay is None else self.replay.end_offsets[partition]

    def stands_at(self, cursors: Mapping[int, Cursor], partition: int) -> Cursor:
        """Return the listener's cursor in a partition: the progress of its deliveries. If `cursors`, the committed
        cursors by partition, has none for this partition, return a cursor at the listener's start offset.
        """
        return cursors.get(partition) or Cursor(top=self.start_offsets[partition])


@dataclass(slots=True, kw_only=True)
class Queue:
    """A queue, with its listeners in the order of their creation.

    `version` begins at 1, and increases when the queue's name or alert thresholds change, and when a listener of the
    queue is created, renamed or deleted. `alerts` holds the thresholds for alerts about the queue's listeners; None
    means the defaults.
    """

    id: str
    organization_id: str
    name: str
    created_at_ms: int
    listeners: dict[str, Listener] = field(default_factory=dict)
    version: int = 1
    alerts: AlertThresholds | None = None
